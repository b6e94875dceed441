"""Answers as VQA's official script compares them (github.com/GT-Vision-Lab/VQA, PythonEvaluationTools, vqaEval.py)."""

import re
from collections.abc import Iterator

ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_BETWEEN_DIGITS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")


def _lacking_one(word: str) -> Iterator[str]:
    """The word with one apostrophe left out, for each that it has."""
    return (word[: match.start()] + word[match.end() :] for match in re.finditer("'", word))


CONTRACTIONS = {short: word for word in _CONTRACTED for short in _lacking_one(word)} | {"somebody'd": "somebodyd"}
"""What people leave out: one apostrophe of these words. The last entry is the script's own, the wrong way round."""


def normalised(text: str) -> str:
    """Lower case, without articles and punctuation, numbers to ten as digits, contractions with their apostrophes.

    Punctuation beside a space goes, elsewhere it becomes a space; where a comma stands between digits ("1,000"), all of
    it goes. Full stops go unless a digit follows.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    in_number = _BETWEEN_DIGITS.search(text) is not None
    found = text
    for mark in PUNCTUATION:
        goes = in_number or f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if goes else " ")
    words = (NUMBERS.get(word, word) for word in _FULL_STOP.sub("", found).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
