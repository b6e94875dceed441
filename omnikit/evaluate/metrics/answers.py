"""Short answers in words and numbers, beside accepted ones."""

import math
import unicodedata
from typing import TYPE_CHECKING

from pydantic import Field
from pydantic.dataclasses import dataclass

from omnikit.evaluate.benchmark import Grade, Metric, Question, Score
from omnikit.evaluate.metrics.averages import STRICT, Average, Graded, by_category, mean_score, present
from omnikit.evaluate.metrics.vqa_words import normalised

if TYPE_CHECKING:
    from omnikit.evaluate.judges import Judge


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Vqa(Metric):
    """VQA accuracy (TextVQA; Antol et al., 2015): how many of ten people gave this answer, three being enough.

    The mean over the people of min(1, others who agree with the answer / 3), each in turn left out; answers are
    compared as the official script normalises them (github.com/GT-Vision-Lab/VQA, vqaEval.py). The script leaves
    answers as they are where all ten people wrote the same; VLMEvalKit, TextVQA's own evaluator and this one do not.
    """

    better = "higher"
    unit = "%"
    by = "text"
    judged = False

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """0 to 1; the reference is the list of the people's answers."""
        people = [normalised(text) for text in _texts(question)]
        if len(people) < 2:
            raise ValueError(f"{question.id}: VQA accuracy compares with several people's answers, here is one")
        taken = normalised(answer)
        agree = people.count(taken)
        shares = [min(1.0, (agree - (person == taken)) / 3) for person in people]
        right = sum(shares) / len(shares)
        return Grade(taken, right, (right, 1.0))

    def score(self, graded: Graded) -> Score:
        """The mean, in percent."""
        return _mean(graded, "questions")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Relaxed(Metric):
    """Relaxed accuracy (ChartQA; Masry et al., 2022): numbers within 5 %, texts equal but for case.

    A percent sign divides by a hundred (github.com/google-research/pix2struct, metrics.py). With
    `average: categories` it is the mean of human and augmented questions, as ChartQA reports.
    """

    better = "higher"
    unit = "%"
    by = "text"
    judged = False
    tolerance: float = Field(default=0.05, ge=0)
    average: Average = "questions"

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """Right when it agrees with any of the accepted answers."""
        taken = answer.strip()
        right = float(any(self._agree(text.strip(), taken) for text in _texts(question)) and bool(taken))
        return Grade(taken, right, (right, 1.0))

    def score(self, graded: Graded) -> Score:
        """The percentage of right answers, and each category's."""
        return _mean(graded, self.average)

    def _agree(self, reference: str, taken: str) -> bool:
        wanted, given = _number(reference), _number(taken)
        if wanted and given is not None:  # of nothing there are no 5 %: 0 is compared as a text
            return abs(given - wanted) / abs(wanted) <= self.tolerance
        return reference.lower() == taken.lower()


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Anls(Metric):
    """Average normalised Levenshtein similarity (DocVQA, InfographicVQA; Biten et al., 2019).

    1 minus edits by the length of the longer, 0 below the threshold; the best of the accepted answers. Compared in
    lower case with single spaces, as VLMEvalKit does.
    """

    better = "higher"
    unit = "%"
    by = "text"
    judged = False
    threshold: float = Field(default=0.5, ge=0, le=1)

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """0 to 1."""
        from rapidfuzz.distance import Levenshtein

        taken = " ".join(answer.lower().split())
        texts = [" ".join(text.lower().split()) for text in _texts(question)]
        best = max(Levenshtein.normalized_similarity(text, taken) for text in texts)
        right = best if taken and best >= self.threshold else 0.0
        return Grade(taken, right, (right, 1.0))

    def score(self, graded: Graded) -> Score:
        """The mean, in percent."""
        return _mean(graded, "questions")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Contains(Metric):
    """OCRBench (Liu et al., 2024): right when an accepted text occurs in the answer; a point each, of 1,000.

    The score is points / 10, as the paper gives it (in percent of the questions there are). Compared in lower case;
    in the categories named by `formulas` (handwritten formulas) in their own case, without spaces.
    """

    better = "higher"
    unit = "%"
    by = "text"
    judged = False
    formulas: tuple[str, ...] = ()

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """Right when any of the accepted texts occurs in it; an empty one occurs nowhere."""
        is_formula = question.category in self.formulas
        texts = [_comparable(text, is_formula) for text in _texts(question)]
        right = float(any(text and text in _comparable(answer, is_formula) for text in texts))
        return Grade(answer.strip(), right, (right, 1.0))

    def score(self, graded: Graded) -> Score:
        """The percentage; parts are points, in all and of each category."""
        points = {name: sum(grade.right for _, grade in members) for name, members in by_category(graded).items()}
        named = {name: number for name, number in points.items() if name}
        return _mean(graded, "questions")._replace(parts={"points": sum(points.values()), **named})


def _mean(graded: Graded, average: Average) -> Score:
    values = ((question.category, grade.right) for question, grade in present(graded))
    return mean_score(values, average, 100, len(graded))


def _texts(question: Question) -> list[str]:
    """The accepted answers: the reference, a text or a list of texts."""
    found = [question.reference] if isinstance(question.reference, str) else question.reference
    if not isinstance(found, list | tuple) or not found or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{question.id}: the reference {question.reference!r} is neither a text nor a list of texts")
    return list(found)


def _number(text: str) -> float | None:
    percent = text.endswith("%")
    try:
        number = float(text.rstrip("%"))
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return number / 100 if percent else number


def _comparable(text: str, is_formula: bool) -> str:
    if is_formula:
        return "".join(text.split())
    return unicodedata.normalize("NFC", text).lower().strip().replace("\n", " ")
