"""When there is too much wrong to go on: the account of bad samples, and that of steps that could not be made."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from omnikit.data import Seen

IN_A_ROW = 100
"""So many bad samples of a source one after another are no accident, whatever its `max_bad` allows."""
SKIPPED = 3
"""So many steps in a row without a finite loss and gradient are no accident."""
OFTEN = 20
"""Nor are more than so many for each 1,000 of the stage so far."""
FEWEST = 100
"""Samples of a source before its share of bad ones says something."""


class Count(NamedTuple):
    """Samples of one source so far."""

    seen: int = 0
    bad: int = 0
    in_a_row: int = 0


class Ledger:
    """The counts of one stage. They are part of its checkpoints, so that resuming stops where going on would have."""

    def __init__(self, may_fail: Mapping[str, float], counts: Mapping[str, Iterable[int]]) -> None:
        """`may_fail` is the share of each source's planned samples that may be bad: `StageData.may_fail`."""
        self.may_fail = may_fail
        self.counts = {name: Count(*counts.get(name, ())) for name in may_fail}

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
        allowed = self.may_fail[sample.source]
        if count.in_a_row >= IN_A_ROW:
            many = f"{count.in_a_row} samples in a row are bad"
        elif count.bad > allowed * max(count.seen, FEWEST):
            many = f"{count.bad} of {count.seen} samples are bad, more than max_bad allows ({allowed:.3g})"
        else:
            return None
        return f"data.{sample.source}: {many}; the last: {sample.bad}"


class Skips:
    """The steps of one stage that were skipped, since their loss or gradient was no finite number."""

    def __init__(self, allowed: bool, in_a_row: int = 0, total: int = 0) -> None:
        """`allowed`: a step may be skipped at all. The counts are part of checkpoints."""
        self.allowed, self.in_a_row, self.total = allowed, in_a_row, total

    @property
    def counts(self) -> tuple[int, int]:
        """How many in a row, and in all."""
        return self.in_a_row, self.total

    def add(self, skipped: bool, step: int) -> str | None:
        """Count a step of the stage. What is to be said where the run must not go on, else None."""
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        self.total += skipped
        if skipped and not self.allowed:
            return "the step was not made"
        if self.in_a_row == SKIPPED:
            return f"{SKIPPED} steps in a row could not be made"
        if skipped and self.total > OFTEN * math.ceil(step / 1000):
            return f"{self.total} of {step} steps could not be made"
        return None
