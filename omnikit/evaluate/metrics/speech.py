"""Error rates of transcripts, by jiwer."""

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from omnikit.evaluate.benchmark import Grade, Metric, Question, Score
from omnikit.evaluate.metrics.averages import STRICT, Average, Graded, present, ratio_score

if TYPE_CHECKING:
    from omnikit.evaluate.judges import Judge

LONGEST_NUMBER = 1000
"""Digits in a row that a transcript keeps: Whisper's normaliser computes with numbers, and dies of 4,300 digits."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Wer(Metric):
    """Word error rate: substituted, deleted and inserted words by the words of the references, in percent.

    Both are normalised as Whisper's evaluation does (Radford et al., 2022, appendix C; openai-whisper's own
    normalisers): `language: en` by the English one (spelling, numbers, contractions), others by the basic one.
    """

    better = "lower"
    unit = "WER %"
    by = "text"
    judged = False
    language: str
    average: Average = "questions"

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """Counts are errors and words of the reference. An answer that normalises to nothing deletes every word."""
        return _grade(self._words(_text(question)), self._words(answer), " ")

    def score(self, graded: Graded) -> Score:
        """All errors by all words, and each category's rate; may pass 100."""
        return ratio_score(present(graded), self.average, 100)

    def _words(self, text: str) -> list[str]:
        shortened = re.sub(rf"(\d{{{LONGEST_NUMBER}}})\d+", r"\1", text)
        return whisper_normaliser(self.language)(shortened).split()


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Cer(Metric):
    """Character error rate of Chinese: wrong, missing and added characters by those of the references, in percent.

    Both are normalised: full-width forms to narrow ones (NFKC), lower case, without punctuation, symbols and spaces.
    Digits stay as they are written, and simplified and traditional characters differ. With `latin_words` a run of
    letters or digits counts as one word, which is the mixed error rate.
    """

    better = "lower"
    unit = "CER %"
    by = "text"
    judged = False
    latin_words: bool = False
    average: Average = "questions"

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """Counts are errors and characters of the reference. An empty answer deletes every character."""
        return _grade(self._units(_text(question)), self._units(answer), "")

    def score(self, graded: Graded) -> Score:
        """All errors by all characters, and each category's rate; may pass 100."""
        return ratio_score(present(graded), self.average, 100)

    def _units(self, text: str) -> list[str]:
        units = list[str]()
        joins = False
        for character in unicodedata.normalize("NFKC", text).lower():
            # Punctuation, symbols, separators, control characters; marks belong to what they stand on.
            if unicodedata.category(character)[0] in "PSZC":
                joins = False
                continue
            is_latin = self.latin_words and not _is_han(character)
            if is_latin and joins:
                units[-1] += character
            else:
                units.append(character)
            joins = is_latin
        return units


@cache
def whisper_normaliser(language: str) -> Callable[[str], str]:
    """Whisper's normaliser of texts in this language."""
    try:
        # Importing it imports torch, so it waits until a transcript is graded.
        from whisper.normalizers import (  # type: ignore[import-untyped]
            BasicTextNormalizer,
            EnglishTextNormalizer,
        )
    except ImportError:
        raise ValueError('word error rates need Whisper\'s normaliser; run: pip install "omnikit[eval]"') from None
    normalise: Callable[[str], str] = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    return normalise


def _grade(reference: list[str], taken: list[str], between: str) -> Grade:
    errors = float(_edits(reference, taken))
    right = max(0.0, 1 - errors / len(reference)) if reference else float(not taken)
    return Grade(between.join(taken), right, (errors, float(len(reference))))


def _edits(reference: list[str], taken: list[str]) -> int:
    """Substitutions, deletions and insertions, by jiwer."""
    import jiwer

    if not reference or not taken:  # jiwer has no rate of an empty reference
        return len(reference) + len(taken)
    found = jiwer.process_words(" ".join(reference), " ".join(taken))
    return found.substitutions + found.deletions + found.insertions


def _text(question: Question) -> str:
    if not isinstance(question.reference, str):
        raise ValueError(f"{question.id}: the reference {question.reference!r} is no text")
    return question.reference


def _is_han(character: str) -> bool:
    return unicodedata.name(character, "").startswith(("CJK ", "IDEOGRAPHIC "))
