"""Which answers are shown of an evaluation: right and wrong ones, spread over the categories."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from omnikit.evaluate.benchmark import Grade, Question

__all__ = ["Example", "chosen"]

NUMBER = 6
"""Of a benchmark, at most; half of them wrong as far as there are any."""
RIGHT = 0.5
"""What counts as right where there is something in between."""


class Example(NamedTuple):
    """A question, what was answered, and what the metric says of it."""

    question: Question
    answer: str
    grade: Grade


def chosen(graded: Sequence[tuple[Question, Grade]]) -> list[int]:
    """The numbers of those to show, in order. Nothing is drawn at random: the same grades give the same choice."""
    found: list[int] = []
    shown: Counter[str] = Counter()
    everything = range(len(graded))
    for pool, until in (
        ([number for number in everything if graded[number][1].right < RIGHT], NUMBER // 2),
        ([number for number in everything if graded[number][1].right >= RIGHT], NUMBER),
        (everything, NUMBER),
    ):
        left = [number for number in pool if number not in found]
        while left and len(found) < until:
            best = min(left, key=lambda number: (shown[graded[number][0].category], number))
            left.remove(best)
            found.append(best)
            shown[graded[best][0].category] += 1
    return sorted(found)
