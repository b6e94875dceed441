"""What a generated answer says: the letter of a choice, or yes or no. By rules alone.

The rules are those of VLMEvalKit's `can_infer` and `YOrN_Extraction` (github.com/open-compass/VLMEvalKit,
vlmeval/utils/matching_util.py and vlmeval/dataset/utils/yorn.py), which the paper was evaluated with. Where its rules
fail, VLMEvalKit asks a judge, and where that fails too, takes a letter at random; here the rules reach a little
further, and what they do not decide is no answer, and wrong.
"""

import re
import unicodedata
from collections.abc import Sequence
from string import ascii_uppercase

_NO_PARTS = r"(?<![A-Za-z0-9'\u2019\-]){}(?![A-Za-z0-9'\u2019\-])"
_MARKS = str.maketrans(dict.fromkeys('.()[],:;!*#{}"`', " "))
_STATED = re.compile(
    r"(?:(?:answer|option|choice)(?:\s+is|\s+should\s+be|\s*:)|答案(?:是|为|选|应为|应选)?\s*:?|(?:应该?|故|所以)选)"
    r"[\s(\[*\"']*([A-Z])(?![A-Za-z0-9'\u2019])",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"(?<![A-Za-z0-9'\u2019\-])A +(?!(?i:and|because|is|it|or|the|this)\b)[A-Za-z]{2}")
_LAST = 4
"""A lone letter must stand among so many last words: elsewhere in a long answer it is an article, or a name."""


def letters_of(choices: Sequence[str]) -> str:
    """The letters A, B, C... of the choices."""
    if not 2 <= len(choices) <= len(ascii_uppercase):
        raise ValueError(f"a question has 2 to {len(ascii_uppercase)} choices, this one {len(choices)}")
    return ascii_uppercase[: len(choices)]


def letter_in(answer: str, choices: Sequence[str]) -> str:
    """The letter of the one choice that an answer means, or "" where the rules below do not decide. In this order:

    1. The whole answer is a letter, in any case and punctuation, or the text of just one choice.
    2. Just one letter stands in it as a word (an article "A" is none), and either opens the answer as an option does
       ("B.", "(B)", "B: ...") or is among its last four words.
    3. It states an answer ("the answer is B", "答案是B"); of several such statements the last one counts.
    4. The text of just one choice occurs in it, and it is at most twice as long as all choices together. A text begins
       where a word does; a number must be the whole number ("3" is not in "13", nor in "3.5").

    Full-width letters and punctuation count as their narrow forms.
    """
    letters = letters_of(choices)
    text = unicodedata.normalize("NFKC", answer).strip()
    texts = [_plain(choice) for choice in choices]
    whole = _plain(text)
    if len(whole) == 1 and whole.upper() in letters:
        return whole.upper()
    if whole and texts.count(whole) == 1:
        return letters[texts.index(whole)]
    words = text.translate(_MARKS).split()
    without_articles = _ARTICLE.sub(lambda match: match[0].replace("A", " ", 1), text)
    standing = [letter for letter in letters if re.search(_NO_PARTS.format(letter), without_articles)]
    if len(standing) == 1:
        (letter,) = standing
        alone = re.compile(_NO_PARTS.format(letter))
        opens = re.match(rf"[(\[*\s]*{letter}\s*(?:[.):\]*、,]|\n|$)", text)
        if opens or any(alone.search(word) for word in words[-_LAST:]):
            return letter
    stated = [match[1] for match in _STATED.finditer(text) if match[1] in letters]
    if stated:
        return str(stated[-1])
    if len(text) <= 2 * sum(map(len, choices)):
        lowered = text.casefold()
        within = [letter for letter, choice in zip(letters, choices, strict=True) if _found(choice, lowered)]
        if len(within) == 1:
            return within[0]
    return ""


def yes_or_no(answer: str) -> str:
    """ "Yes" or "No", where one of the two words stands in the answer and the other does not; else ""."""
    words = set(re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", answer).lower()))
    return {(True, False): "Yes", (False, True): "No"}.get(("yes" in words, "no" in words), "")


def _found(choice: str, lowered: str) -> bool:
    text = unicodedata.normalize("NFKC", choice).strip().casefold()
    if not text:
        return False
    after = r"(?![a-z0-9])" if len(text) == 1 else ""
    if text[-1].isdecimal():
        after = r"(?!\.?\d)"
    return re.search(rf"(?<![a-z0-9])(?<!\d\.){re.escape(text)}{after}", lowered) is not None


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).translate(_MARKS).split()).casefold()
