"""Questions that are answered by yes or no, several about one picture.

Letters: B draws of the bootstrap.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from pydantic.dataclasses import dataclass

from omnikit.evaluate.benchmark import Grade, Metric, Question, Score
from omnikit.evaluate.metrics.averages import STRICT, Graded, by_category, by_group
from omnikit.evaluate.metrics.intervals import resampled, spread
from omnikit.evaluate.metrics.letters import yes_or_no

if TYPE_CHECKING:
    from omnikit.evaluate.judges import Judge

MME = {
    "perception": (
        "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
    ),
    "cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}  # fmt: skip
"""The subtasks of MME, by what they ask for."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Mme(Metric):
    """MME's score (Fu et al., 2023): the sum over subtasks of acc + acc+, at most 200 each, 2,800 in all.

    `acc` is the percentage of right answers, `acc+` that of pictures of which both answers are right. A question's
    category is its subtask, its group the picture. With fewer subtasks (a limit) the sum is over those there are.
    Yes and no are found by VLMEvalKit's rule; MME's own tool looks at the first four characters alone.
    """

    better = "higher"
    unit = "points"
    by = "text"
    judged = False

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """Right when the answer says yes or no, as the reference does."""
        if not any(question.category in subtasks for subtasks in MME.values()):
            known = ", ".join(name for subtasks in MME.values() for name in subtasks)
            raise ValueError(f"{question.id}: {question.category!r} is no subtask of MME; there are: {known}")
        return _grade(question, answer)

    def score(self, graded: Graded) -> Score:
        """The sum, with perception, cognition and each subtask as parts; the bootstrap draws pictures by subtask."""
        parts, draws = dict[str, float](), []
        for subtask, members in by_category(graded).items():
            pictures = np.array(
                [
                    (
                        sum(grade.right for _, grade in picture),
                        len(picture),
                        all(grade.right for _, grade in picture),
                        1,
                    )
                    for picture in by_group(members)
                ],
                float,
            )
            parts[subtask] = float(_ratios(pictures.sum(axis=0)[None]).sum())
            draws.append(_ratios(resampled(pictures)).sum(axis=0))
        low, high = spread(np.sum(draws, axis=0))
        sums = {name: sum(parts.get(subtask, 0.0) for subtask in subtasks) for name, subtasks in MME.items()}
        return Score(sum(sums.values()), low, high, len(graded), {**sums, **parts})


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Hallusion(Metric):
    """HallusionBench (Guan et al., 2024): the mean of aAcc, fAcc and qAcc, which VLMEvalKit's tables and so the paper
    give (github.com/open-compass/VLMEvalKit, issue 133; the benchmark's own paper has no single figure).

    aAcc is the percentage of right answers, fAcc that of figures of which all answers are right, qAcc that of questions
    that are right about every figure of a set. A question's group is its set (kind and number), `extra["figure"]` and
    `extra["question"]` say which figure and question of the set it is.
    """

    better = "higher"
    unit = "%"
    by = "text"
    judged = False

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """Right when the answer says yes or no, as the reference does."""
        if missing := [key for key in ("figure", "question") if key not in question.extra]:
            raise ValueError(f"{question.id}: extra has no {' and no '.join(missing)}; HallusionBench numbers both")
        return _grade(question, answer)

    def score(self, graded: Graded) -> Score:
        """The mean of the three, which are parts, as is their mean in each category; the bootstrap draws sets."""
        sets = self._sets(graded)
        three = _ratios(sets.sum(axis=0)[None])[:, 0]
        low, high = spread(_ratios(resampled(sets)).mean(axis=0))
        parts = dict(zip(("aAcc", "fAcc", "qAcc"), map(float, three), strict=True))
        for category, members in by_category(graded).items():
            if category:
                parts[category] = float(_ratios(self._sets(members).sum(axis=0)[None]).mean())
        return Score(float(three.mean()), low, high, len(graded), parts)

    @staticmethod
    def _sets(graded: Graded) -> Float[np.ndarray, "G 6"]:
        """For each set: right and all answers, figures, questions."""
        rows = []
        for members in by_group(graded):
            figures, questions = dict[str, bool](), dict[str, bool]()
            for question, grade in members:
                for found, key in ((figures, "figure"), (questions, "question")):
                    name = str(question.extra[key])
                    found[name] = found.get(name, True) and bool(grade.right)
            right = sum(grade.right for _, grade in members)
            counts = ((sum(found.values()), len(found)) for found in (figures, questions))
            rows.append((right, len(members), *(count for pair in counts for count in pair)))
        return np.array(rows, float)


def _grade(question: Question, answer: str) -> Grade:
    reference = str(question.reference).capitalize()
    if reference not in ("Yes", "No"):
        raise ValueError(f"{question.id}: the reference {question.reference!r} is neither yes nor no")
    taken = yes_or_no(answer)
    right = float(taken == reference)
    return Grade(taken, right, (right, 1.0))


def _ratios(sums: Float[np.ndarray, "B C"]) -> Float[np.ndarray, "C/2 B"]:
    """Percentages, of columns that are (right, all) in turn."""
    right, every = sums[:, ::2].T, sums[:, 1::2].T
    return np.asarray(100 * right / every)
