"""Questions with choices: right by letter."""

from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass

from omnikit.evaluate.benchmark import Grade, Metric, Question, Score
from omnikit.evaluate.metrics.averages import STRICT, Average, Graded, by_group, mean_score, present
from omnikit.evaluate.metrics.letters import letter_in, letters_of

if TYPE_CHECKING:
    from omnikit.evaluate.judges import Judge


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Choice(Metric):
    """Percent of questions whose chosen letter is the reference.

    `by: likelihood` takes the choice that the run holds most likely (MMLU, CMMLU, AGIEval, C-Eval, GAOKAO: Hendrycks
    et al., 2021); `by: text` finds the letter in what it generates (MMMU, RealWorldQA, SEED, MVBench, VideoMME and
    others: VLMEvalKit). `average: categories` is the mean over subjects, as C-Eval and CMMLU report.
    """

    better = "higher"
    unit = "%"
    judged = False
    by: Literal["likelihood", "text"] = "text"
    average: Average = "questions"

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """Right when the letter that the answer means (by `letter_in`'s rules) is the reference's."""
        return _grade(question, answer)

    def score(self, graded: Graded) -> Score:
        """The percentage of right answers, and each category's."""
        values = ((question.category, grade.right) for question, grade in present(graded))
        return mean_score(values, self.average, 100, len(graded))


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Circular(Metric):
    """CircularEval of MMBench (Liu et al., 2023): the percentage of questions that are right in every rotation.

    The rotations of one question share a group. VLMEvalKit, which the paper was evaluated with, does the same.
    """

    better = "higher"
    unit = "%"
    by = "text"
    judged = False

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """Right when the letter that the answer to this rotation means is the reference's."""
        return _grade(question, answer)

    def score(self, graded: Graded) -> Score:
        """The percentage of groups of which all are right, and each category's; `questions` counts groups."""
        groups = by_group(graded)
        values = [(members[0][0].category, float(all(grade.right for _, grade in members))) for members in groups]
        return mean_score(values, "questions", 100, len(groups))


def _grade(question: Question, answer: str) -> Grade:
    letters = letters_of(question.choices)
    if not isinstance(question.reference, str) or len(question.reference) != 1 or question.reference not in letters:
        raise ValueError(f"{question.id}: the reference {question.reference!r} is none of its letters, {letters}")
    taken = letter_in(answer, question.choices)
    right = float(taken == question.reference)
    return Grade(taken, right, (right, 1.0))
