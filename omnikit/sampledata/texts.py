"""The language stage in words: described scenes with questions about them, and sequences to write down.

A described scene stands where vision tokens will stand later; a stretched sequence, every word repeated and fillers
between, stands where audio tokens will stand: many per word and none of them marked as the last. Of the sequences to
write down three in ten are plain in training.
"""

import zlib
from random import Random

from .scenes import Picture, Question, ask, pose
from .words import ANSWERS, DICTATION, FILLER, MEDIA_KINDS, QUESTIONS, SPOKEN_WORDS, WORDS

QUESTION_KINDS = tuple(f"{medium}_{kind}" for medium, kinds in MEDIA_KINDS.items() for kind in kinds)
KINDS = ("echo", *QUESTION_KINDS, *(f"{kind}_stretched" for kind in QUESTION_KINDS))
"""Kinds of text records: to echo, to read about a picture or clip, and the same with the question stretched."""


def stretch(text: str, random: Random) -> str:
    """Returns the text with every word one to five times and fillers scattered between, as if heard frame by frame."""
    heard: list[str] = []
    for word in text.split():
        heard += [FILLER] * random.choice((0, 0, 1, 1, 2, 3))
        for _ in range(random.randint(1, 5)):
            heard.append(word)
            heard += [FILLER] * (random.random() < 0.05)
    return " ".join(heard + [FILLER] * random.choice((0, 1, 2)))


def collapse(heard: str) -> str:
    """Returns what was stretched: fillers dropped, then repeats."""
    words = [word for word in heard.split() if word != FILLER]
    return " ".join(word for index, word in enumerate(words) if index == 0 or word != words[index - 1])


def order_is_heldout(words: tuple[str, ...]) -> bool:
    """Returns whether this order of words is kept for held-out files: one in ten, single words never."""
    return len(words) > 1 and zlib.crc32(" ".join(words).encode()) % 10 == 0


def sample_order(random: Random, lengths: tuple[int, ...], heldout: bool, words: tuple[str, ...] = SPOKEN_WORDS) -> str:
    """Returns a random sequence without immediate repeats, from the training orders or from the held-out ones."""
    while True:
        order = [random.choice(words)]
        for _ in range(random.choice(lengths) - 1):
            order.append(random.choice([word for word in words if word != order[-1]]))
        if order_is_heldout(tuple(order)) == heldout:
            return " ".join(order)


def word_question(question: Question, wordings: tuple[str, ...], random: Random) -> str:
    """Returns the question in one of these wordings."""
    return random.choice(wordings).format(it=question.about)


def sample_echo(random: Random, heldout: bool) -> tuple[str, str]:
    """Returns (what is read, the answer) of a sequence to write down: dictation, a question, or any words at all."""
    share = random.random()
    if heldout:
        text = sample_order(random, (2, 3, 4, 5, 6), True)
    elif share < 0.5:
        text = sample_order(random, (1, 2, 3, 4, 5, 6), False)
    elif share < 0.75:
        medium = random.choice(tuple(MEDIA_KINDS))
        kind = random.choice(MEDIA_KINDS[medium])
        _, question = pose(medium, kind, random.choice(ANSWERS[kind]), random, False)
        text = word_question(question, QUESTIONS[kind].train, random)
    else:
        plain = tuple(word for word in WORDS if word != FILLER)
        text = sample_order(random, (1, 2, 3, 4, 5, 6, 7, 8), False, plain)
    # Some are not stretched: a plain echo is the quickest way to learn to copy, which all the others need.
    seen = text if not heldout and random.random() < 0.3 else stretch(text, random)
    return f"{seen} {random.choice(DICTATION.read(heldout))}", text


def sample_reading(
    medium: str, kind: str, answer: str, stretched: bool, random: Random, heldout: bool, more: int = 0
) -> list[tuple[str, str]]:
    """Returns (a described scene and a question about it as one text, the answer), then `more` questions about it."""
    # Words may tell of any pair, also of those that no training picture shows: a model that never read of a purple
    # circle rightly thinks that there is none.
    scene, question = pose(medium, kind, answer, random, heldout or None)
    words = word_question(question, QUESTIONS[kind].read(heldout), random)
    told = scene.caption
    if not isinstance(scene, Picture) and random.random() < 0.7:
        told = scene.frames(random)
    turns = [(f"{told} {stretch(words, random) if stretched else words}", question.answer)]
    while len(turns) <= more:
        another = ask(random.choice(MEDIA_KINDS[medium]), scene, random)
        if another is not None:
            turns.append((word_question(another, QUESTIONS[another.kind].read(heldout), random), another.answer))
    return turns


def sample_text(kind: str, answer: str, random: Random, heldout: bool, more: int = 0) -> list[tuple[str, str]]:
    """Returns (what is read, the answer) of one of `KINDS`, and of `more` turns where it is about a scene."""
    if kind == "echo":
        return [sample_echo(random, heldout)]
    medium, question = kind.removesuffix("_stretched").split("_", 1)
    return sample_reading(medium, question, answer, kind.endswith("_stretched"), random, heldout, more)


def possible_answers(kind: str) -> tuple[str, ...]:
    """Returns every answer of one of `KINDS`; an echo has no list, which an empty string stands for."""
    return ("",) if kind == "echo" else ANSWERS[kind.removesuffix("_stretched").split("_", 1)[1]]
