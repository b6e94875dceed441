"""Questions of which some have choices and others want a word or a number."""

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from omnikit.evaluate.benchmark import Grade, Metric, Question, Score
from omnikit.evaluate.metrics.averages import STRICT, Average, Graded, mean_score, present
from omnikit.evaluate.metrics.letters import letter_in, letters_of

if TYPE_CHECKING:
    from omnikit.evaluate.judges import Judge


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ChoiceOrWords(Metric):
    """Percent of right answers, where a question's reference is a choice's letter, or words or a number (RealWorldQA,
    MMMU).

    A letter is found by `letter_in`'s rules. Words must be the reference's, or those of one of several, but for case,
    outer white space and a full stop; numbers must be equal ("3.0" and "3").
    """

    better = "higher"
    unit = "%"
    by = "text"
    judged = False
    average: Average = "questions"

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """Right when the answer is the reference."""
        reference = question.reference
        if question.choices and isinstance(reference, str) and reference in tuple(letters_of(question.choices)):
            taken = letter_in(answer, question.choices)
            right = float(taken == reference)
        else:
            taken = _plain(answer)
            accepted = [reference] if isinstance(reference, str) else reference
            if not isinstance(accepted, list | tuple) or not all(isinstance(text, str) for text in accepted):
                raise ValueError(f"{question.id}: the reference {reference!r} is neither a text nor a list of texts")
            right = float(bool(taken) and any(_same(taken, _plain(text)) for text in accepted))
        return Grade(taken, right, (right, 1.0))

    def score(self, graded: Graded) -> Score:
        """The percentage of right answers, and each category's."""
        values = ((question.category, grade.right) for question, grade in present(graded))
        return mean_score(values, self.average, 100, len(graded))


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()


def _same(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other
