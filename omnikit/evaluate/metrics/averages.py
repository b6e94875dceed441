"""From grades to a score: sums of counts, by group and by category.

Letters: G groups of questions, C counts, B draws of the bootstrap.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict

from omnikit.evaluate.benchmark import Grade, Question, Score
from omnikit.evaluate.metrics.intervals import resampled, spread, wilson

STRICT = ConfigDict(extra="forbid")
"""Options of a metric come from files: what is not known is an error."""
Average = Literal["questions", "categories"]
"""Over what a score is the mean: every question alike, or every category alike, however many questions it has."""
Graded = Sequence[tuple[Question, Grade]]


def present(graded: Graded) -> Graded:
    """The graded questions; without any there is no score, which is a ValueError."""
    if not graded:
        raise ValueError("no question has a grade, so there is no score; give at least one question that is answered")
    return graded


def by_category(graded: Graded) -> dict[str, list[tuple[Question, Grade]]]:
    """The graded questions of each category, categories in order of first appearance."""
    found: dict[str, list[tuple[Question, Grade]]] = {}
    for question, grade in present(graded):
        found.setdefault(question.category, []).append((question, grade))
    return found


def by_group(graded: Graded) -> list[list[tuple[Question, Grade]]]:
    """The graded questions that are scored together; a question without a group is its own."""
    found: dict[tuple[bool, str], list[tuple[Question, Grade]]] = {}
    for question, grade in present(graded):
        found.setdefault((bool(question.group), question.group or question.id), []).append((question, grade))
    return list(found.values())


def summed(graded: Graded) -> Float[np.ndarray, "G C"]:
    """The counts of each group, summed over its questions."""
    return np.array([np.sum([grade.counts for _, grade in members], axis=0) for members in by_group(graded)])


def mean_score(values: Iterable[tuple[str, float]], average: Average, scale: float, questions: int) -> Score:
    """The score of (category, value from 0 to 1) pairs: their mean, and each category's as a part, times `scale`.

    Over questions the interval is Wilson's; over categories it is by bootstrap within each.
    """
    categories: dict[str, list[float]] = {}
    for category, value in values:
        categories.setdefault(category, []).append(value)
    means = {category: float(np.mean(found)) for category, found in categories.items()}
    if average == "questions":
        every = [value for found in categories.values() for value in found]
        mean = float(np.mean(every))
        low, high = wilson(mean, len(every))
    else:
        mean = float(np.mean([*means.values()]))
        draws = [resampled(np.array(found)[:, None])[:, 0] / len(found) for found in categories.values()]
        low, high = spread(np.mean(draws, axis=0))
    parts = {category: scale * mean for category, mean in means.items() if category}
    return Score(scale * mean, scale * low, scale * high, questions, parts)


def ratio_score(graded: Graded, average: Average, scale: float) -> Score:
    """The score of grades with two counts, the ratio of their sums (errors to words), times `scale`; by bootstrap."""
    categories = {category: summed(members) for category, members in by_category(graded).items()}
    if empty := [category for category, groups in categories.items() if not groups[:, 1].sum()]:
        where = f" of {', '.join(map(repr, empty))}" if empty != [""] else ""
        raise ValueError(f"the references{where} hold no words that could be counted; give such as do")
    ratios = {category: float(_ratio(groups.sum(axis=0)[None])[0]) for category, groups in categories.items()}
    if average == "questions":
        every = np.concatenate([*categories.values()])
        value, draws = float(_ratio(every.sum(axis=0)[None])[0]), _ratio(resampled(every))
    else:
        value = float(np.mean([*ratios.values()]))
        draws = np.mean([_ratio(resampled(groups)) for groups in categories.values()], axis=0)
    low, high = spread(draws)
    parts = {category: scale * ratio for category, ratio in ratios.items() if category}
    return Score(scale * value, scale * low, scale * high, len(graded), parts)


def _ratio(sums: Float[np.ndarray, "B C"]) -> Float[np.ndarray, " B"]:
    # Where a draw has only references without words, it has no errors to count against them either: 0.
    ratios = np.zeros(len(sums))
    np.divide(sums[:, 0], sums[:, 1], out=ratios, where=sums[:, 1] > 0)
    return ratios
