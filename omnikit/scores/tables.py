"""The papers' result tables, and a run's figures in their columns."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

from omnikit.evaluate.examples import Example

OURS = "this run"
ABSENT = "-"
"""Where there is no figure."""


class Evaluated(NamedTuple):
    """What a run came to on one benchmark: its name, what score.json holds, and some answers to show."""

    benchmark: str
    score: Mapping[str, Any]
    examples: Sequence[Example] = ()

    @property
    def sentence(self) -> str:
        """The score with its interval, and how many questions it is of."""
        score = self.score
        told = "".join(f"; {note}" for note in score["notes"])
        figure = f"{score['value']:.1f} {score['unit']} ({score['low']:.1f} to {score['high']:.1f})"
        number = score["questions"]
        return f"{figure}, {number:,} question{'s' if number != 1 else ''}{told}"


class Table(NamedTuple):
    """A table of a paper. `columns` are labels and what they are of: a benchmark, or `benchmark:part`."""

    title: str
    source: str
    columns: Mapping[str, str]
    rows: Mapping[str, Sequence[float | None]]

    def shown(self, value: float | None, column: int) -> str:
        """A figure with as many decimals as the column has; ABSENT for none."""
        if value is None:
            return ABSENT
        decimals = (len(str(row[column]).partition(".")[2]) for row in self.rows.values() if row[column] is not None)
        return f"{value:.{max(decimals, default=1)}f}"


class Beside(NamedTuple):
    """A table with the run's own figures: of each column the value, and the evaluation that it is of, or None."""

    table: Table
    own: Sequence[tuple[float, Evaluated] | None]


@cache
def papers_tables() -> tuple[Table, ...]:
    """The papers' tables, in the papers' order."""
    text = files(__package__).joinpath("paper.yaml").read_text(encoding="utf-8")
    return tuple(Table(**entry) for entry in yaml.safe_load(text))


def beside(evaluated: Sequence[Evaluated]) -> list[Beside]:
    """The tables in which the run has a figure."""
    by_name = {one.benchmark: one for one in evaluated}
    found = [Beside(table, [_own(by_name, at) for at in table.columns.values()]) for table in papers_tables()]
    return [one for one in found if any(own is not None for own in one.own)]


def _own(by_name: Mapping[str, Evaluated], at: str) -> tuple[float, Evaluated] | None:
    name, _, part = at.partition(":")
    if (evaluated := by_name.get(name)) is None:
        return None
    value = evaluated.score["parts"].get(part) if part else evaluated.score["value"]
    return None if value is None else (float(value), evaluated)
