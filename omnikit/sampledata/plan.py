"""Every record and every media file of a data set, decided before anything is drawn or said.

Each record draws from its own random numbers, seeded by its place, so that no record depends on another one, and all
can be examined without rendering.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from .scenes import Clip, Picture, Question, Scene, ask_clip, ask_picture, pose, sample_clip, sample_picture
from .speech import NEW_VOICES, TRAIN_VOICES, Utterance
from .texts import KINDS as TEXT_KINDS
from .texts import QUESTION_KINDS, possible_answers, sample_order, sample_text, word_question
from .words import (
    ANSWERS,
    DESCRIBE_CLIP,
    DESCRIBE_PICTURE,
    DESCRIBE_SHAPES,
    DICTATION,
    HELDOUT_PAIRS,
    MEDIA_KINDS,
    QUESTIONS,
)

Record = dict[str, Any]
Part = dict[str, str]


class Drawing(NamedTuple):
    """A scene to draw; `look` seeds what no question asks about."""

    scene: Scene
    look: str


Medium = Drawing | Utterance


@dataclass
class Half:
    """The training or the held-out half: its records by file, and its media by path, both below the half's folder."""

    name: str
    seed: int
    records: dict[str, list[Record]] = field(default_factory=dict)
    media: dict[str, Medium] = field(default_factory=dict)

    @property
    def heldout(self) -> bool:
        """Whether this half is kept from training."""
        return self.name == "heldout"

    def random(self, file: str, index: int) -> Random:
        """Returns the random numbers of one record or medium."""
        return Random(f"{self.seed}/{self.name}/{file}/{index}")

    def add(self, file: str, kind: str, content: list[Part], answer: str, more: Iterable[tuple[str, str]] = ()) -> None:
        """Appends a record of one question and its answer, and of more of them in further turns."""
        records = self.records.setdefault(file, [])
        turns = []
        for asked, told in [(content, answer), *(([{"text": text}], told) for text, told in more)]:
            turns.append({"role": "user", "content": asked})
            turns.append({"role": "assistant", "content": [{"text": told}]})
        records.append({"id": f"{self.name}/{file}/{len(records):05d}", "kind": kind, "turns": turns})

    def draw(self, scene: Scene, name: str) -> Part:
        """Returns the content part of a scene that will be drawn under this name."""
        kind, ending = ("image", "png") if isinstance(scene, Picture) else ("video", "mp4")
        path = f"media/{name}.{ending}"
        self.media[path] = Drawing(scene, f"{self.seed}/{self.name}/{name}")
        return {kind: path}

    def say(self, text: str, voice: str, name: str) -> Part:
        """Returns the content part of a text that will be said under this name, at its own rate and pitch."""
        path = f"media/{name}.flac"
        random = Random(f"{self.seed}/{self.name}/{name}")
        self.media[path] = Utterance(text, voice, random.randint(150, 170), random.randint(44, 56))
        return {"audio": path}

    def say_question(self, question: Question, takes: int, random: Random) -> Part:
        """Returns the content part of a spoken question; as many takes as given are shared by all records."""
        text = word_question(question, QUESTIONS[question.kind].heard(self.heldout), random)
        voice, take = random.choice(TRAIN_VOICES), random.randrange(takes)
        return self.say(text, voice, f"questions/{text.replace(' ', '-')}.{voice.replace('+', '-')}.{take}")


class Plan(NamedTuple):
    """Both halves of a data set."""

    train: Half
    heldout: Half


def plan(seed: int, size: int) -> Plan:
    """Returns all records and media of the data set of this seed and size."""
    train, heldout = Half("train", seed), Half("heldout", seed)
    takes = max(1, round(4 * size / 3000))
    _plan_pictures(train, size, takes)
    _plan_single_figures(train, size)
    _plan_clips(train, max(1, size * 2 // 3), size * 2 // 3, takes)
    _plan_train_speech(train, size * 5 // 3)
    _plan_train_text(train, size * 4)

    number = min(180, max(12, size * 6 // 100))
    for file, medium in (("image", "picture"), ("video", "clip")):
        _plan_heldout_questions(heldout, file, medium, number, spoken=False)
        _plan_heldout_questions(heldout, f"{file}_speech", medium, number, spoken=True)
    _plan_heldout_speech(heldout, number)
    _plan_heldout_text(heldout, number)
    return Plan(train, heldout)


def _plan_pictures(half: Half, number: int, takes: int) -> None:
    """Adds training pictures, each with a caption, a conversation of five written questions, and a spoken one."""
    for index in range(number):
        random = half.random("pictures", index)
        picture = sample_picture(random, half.heldout)
        image = half.draw(picture, f"pictures/{index:05d}")
        told, asked_for = (
            (picture.caption, DESCRIBE_PICTURE) if index % 2 else (picture.by_shape(random), DESCRIBE_SHAPES)
        )
        half.add("image_captions", "caption", [image, {"text": random.choice(asked_for)}], told)
        asked = [ask_picture(kind, picture, random) for kind in random.sample(MEDIA_KINDS["picture"], 5)]
        _add_questions(half, "image_questions", image, asked, random)
        kind = random.choice(MEDIA_KINDS["picture"])
        _add_spoken(half, "image_speech", image, ask_picture(kind, picture, random), takes, random)


def _plan_single_figures(half: Half, number: int) -> None:
    """Adds training pictures of one figure, with a caption: what single words are to dictation."""
    for index in range(number):
        random = half.random("figures", index)
        picture = sample_picture(random, half.heldout, number=1)
        image = half.draw(picture, f"figures/{index:05d}")
        half.add("image_figures", "caption", [image, {"text": random.choice(DESCRIBE_PICTURE)}], picture.caption)


def _plan_clips(half: Half, number: int, number_spoken: int, takes: int) -> None:
    """Adds training clips, each with a caption and a conversation of two questions; spoken ones go round the clips."""
    clips = []
    for index in range(number):
        random = half.random("clips", index)
        clip = sample_clip(random, half.heldout)
        video = half.draw(clip, f"clips/{index:05d}")
        clips.append((clip, video))
        half.add("video_captions", "caption", [video, {"text": random.choice(DESCRIBE_CLIP)}], clip.caption)
        _add_questions(half, "video_questions", video, _two_questions(clip, random), random)
    for index in range(number_spoken):
        random = half.random("video_speech", index)
        clip, video = clips[index % number]
        _add_spoken(half, "video_speech", video, random.choice(_two_questions(clip, random)), takes, random)


def _two_questions(clip: Clip, random: Random) -> list[Question]:
    """Returns one question that needs the time axis, and another one."""
    possible = [question for kind in MEDIA_KINDS["clip"] if (question := ask_clip(kind, clip, random))]
    timed = random.choice([question for question in possible if question.kind not in ("colour", "shape")])
    return [timed, random.choice([question for question in possible if question.kind != timed.kind])]


def _add_questions(half: Half, file: str, medium: Part, questions: Sequence[Question], random: Random) -> None:
    asked = [
        (word_question(question, QUESTIONS[question.kind].read(half.heldout), random), question.answer)
        for question in questions
    ]
    kind = questions[0].kind if len(questions) == 1 else "conversation"
    half.add(file, kind, [medium, {"text": asked[0][0]}], asked[0][1], asked[1:])


def _add_spoken(half: Half, file: str, medium: Part, question: Question, takes: int, random: Random) -> None:
    half.add(file, question.kind, [medium, half.say_question(question, takes, random)], question.answer)


def _plan_train_speech(half: Half, number: int) -> None:
    """Adds dictation, from single words on, and the transcript of every spoken question said so far."""
    questions = [(path, medium) for path, medium in half.media.items() if isinstance(medium, Utterance)]
    for index in range(number):
        random = half.random("dictation", index)
        share = random.random()
        lengths = (1,) if share < 0.35 else (2,) if share < 0.6 else (3, 4, 5, 6)
        text = sample_order(random, lengths, heldout=False)
        audio = half.say(text, TRAIN_VOICES[index % len(TRAIN_VOICES)], f"dictation/{index:05d}")
        half.add("speech", "dictation", [audio, {"text": random.choice(DICTATION.train)}], text)
    for index, (path, medium) in enumerate(questions):
        prompt = half.random("questions", index).choice(DICTATION.train)
        half.add("speech", "question", [{"audio": path}, {"text": prompt}], medium.text)


def _plan_heldout_speech(half: Half, number: int) -> None:
    """Adds the same never-heard orders of words by the known voices and by the new ones."""
    for index in range(number):
        random = half.random("speech", index)
        text = sample_order(random, (2 + index % 5,), heldout=True)
        prompt = {"text": random.choice(DICTATION.heldout)}
        for file, voices in (("speech", TRAIN_VOICES), ("speech_new_voices", NEW_VOICES)):
            audio = half.say(text, voices[index // 5 % len(voices)], f"{file}/{index:05d}")
            half.add(file, "dictation", [audio, prompt], text)


def _plan_train_text(half: Half, number: int) -> None:
    """Adds descriptions to read with questions one after another, the first of some stretched, and echoes."""
    read, stretched = QUESTION_KINDS, tuple(f"{kind}_stretched" for kind in QUESTION_KINDS)
    for index in range(number):
        random = half.random("text", index)
        kind = random.choice(random.choices((read, stretched, ("echo",)), (0.5, 0.25, 0.25))[0])
        (text, answer), *more = sample_text(kind, random.choice(possible_answers(kind)), random, half.heldout, more=4)
        half.add("text", kind, [{"text": text}], answer, more)


def _plan_heldout_text(half: Half, number: int) -> None:
    """Adds texts of every kind in turn, every answer of a kind in turn; echoes, of any answer, come five times."""
    for index in range(number):
        kind, answer, _ = _turn(("echo",) * 4 + TEXT_KINDS, possible_answers, index)
        [(text, answer)] = sample_text(kind, answer, half.random("text", index), half.heldout)
        half.add("text", kind, [{"text": text}], answer)


def _plan_heldout_questions(half: Half, file: str, medium: str, number: int, spoken: bool) -> None:
    """Adds a new scene per question: every kind in turn, every answer of a kind in turn.

    Each scene shows a held-out pair. In every third round over the answers the figure to name is itself such a pair, if
    one has this answer; in the others it is not, since a model that never saw a pair rightly thinks it unlikely.
    """
    for index in range(number):
        random = half.random(file, index)
        kind, answer, turn = _turn(MEDIA_KINDS[medium], ANSWERS.__getitem__, index)
        novel = None
        if kind in ("colour", "shape"):
            novel = turn % 3 == 0 and any(answer in pair for pair in HELDOUT_PAIRS)
        scene, question = pose(medium, kind, answer, random, half.heldout, novel)
        part = half.draw(scene, f"{file}/{index:05d}")
        if spoken:
            _add_spoken(half, file, part, question, 1, random)
        else:
            _add_questions(half, file, part, [question], random)


def _turn(kinds: tuple[str, ...], answers_of: Callable[[str], tuple[str, ...]], index: int) -> tuple[str, str, int]:
    """Returns (kind, answer, how often all answers of the kind were given before) of the index-th balanced question."""
    kind, nth = kinds[index % len(kinds)], index // len(kinds)
    answers = answers_of(kind)
    return kind, answers[nth % len(answers)], nth // len(answers)
