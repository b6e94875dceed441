"""The account of bad samples: how many of each source a stage has met, and when there are too many to go on."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from omnikit.data import Seen

IN_A_ROW = 100
"""So many bad samples of a source one after another are no accident, whatever its `max_bad` allows."""
FEWEST = 100
"""Samples of a source before its share of bad ones says something."""


class Count(NamedTuple):
    """Samples of one source so far."""

    seen: int = 0
    bad: int = 0
    in_a_row: int = 0


class Ledger:
    """The counts of one stage. They are part of its checkpoints, so that resuming stops where going on would have."""

    def __init__(self, max_bad: Mapping[str, float], counts: Mapping[str, Iterable[int]]) -> None:
        self.max_bad = max_bad
        self.counts = {name: Count(*counts.get(name, ())) for name in max_bad}

    def add(self, samples: Iterable[Seen]) -> str | None:
        """Count the samples of a step. What is to be said where a source has too many bad ones, else None."""
        told = None
        for sample in samples:
            seen, bad, in_a_row = self.counts[sample.source]
            count = Count(seen + 1, bad + 1, in_a_row + 1) if sample.bad else Count(seen + 1, bad)
            self.counts[sample.source] = count
            if sample.bad and told is None:
                told = self._verdict(sample, count)
        return told

    def _verdict(self, sample: Seen, count: Count) -> str | None:
        allowed = self.max_bad[sample.source]
        if count.in_a_row >= IN_A_ROW:
            many = f"{count.in_a_row} samples in a row are bad"
        elif count.bad > allowed * max(count.seen, FEWEST):
            many = f"{count.bad} of {count.seen} samples are bad, more than max_bad {allowed:g} allows"
        else:
            return None
        return f"data.{sample.source}: {many}; the last: {sample.bad}"
