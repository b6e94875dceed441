"""Which answers an evaluation's page shows: right and wrong ones, spread over the categories."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from omnikit.component import Sample

NUMBER = 6
"""Of a benchmark, at most; half of them wrong as far as there are any."""


class Example(NamedTuple):
    """A question, what was answered, and what the metric says of it."""

    sample: Sample
    category: str
    reference: Any
    answer: str
    taken: str
    right: float
    note: str


def examples(answered: Iterable[tuple[Sample, Mapping[str, Any], str]]) -> list[Example]:
    """Some of the (sample, line of grades.jsonl, answer) triples, in their order; the same of the same."""
    rows = [
        Example(sample, grade["category"], grade["reference"], answer, grade["taken"], grade["right"], grade["note"])
        for sample, grade, answer in answered
    ]
    chosen: list[int] = []
    shown: Counter[str] = Counter()
    for pool, until in (
        ([number for number, row in enumerate(rows) if row.right < 0.5], NUMBER // 2),
        ([number for number, row in enumerate(rows) if row.right >= 0.5], NUMBER),
        (list(range(len(rows))), NUMBER),
    ):
        left = [number for number in pool if number not in chosen]
        while left and len(chosen) < until:
            best = min(left, key=lambda number: (shown[rows[number].category], number))
            left.remove(best)
            chosen.append(best)
            shown[rows[best].category] += 1
    return [rows[number] for number in sorted(chosen)]
