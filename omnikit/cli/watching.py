"""How a run is shown, and other work: bars on a terminal, plain lines elsewhere. Everything goes to stderr."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

RECENT = 20
"""Steps over which speeds are means."""


@contextmanager
def counted() -> Iterator[Callable[[str, int, int], None]]:
    """Show work that has several parts: yields a function to be told the name of one, how much is done, of how much."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    shown = sys.stderr.isatty()
    name = TextColumn("{task.description}", justify="right", markup=False)
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bars:

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)
            if not shown and done == total:
                print(f"{what}: {total}", file=sys.stderr, flush=True)

        yield progress


class Lines:
    """A run as plain lines: one where a stage begins, one every `every` steps, one at its end."""

    def __init__(self, stages: Sequence[str], every: int) -> None:
        self.stages, self.every = stages, every
        self.steps = self.first = 0
        self.recent: deque[Mapping[str, Any]] = deque(maxlen=RECENT)
        self.began = 0.0
        self.indexed: dict[str, float] = {}
        self.cached: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def indexing(self, source: str, done: int, records: int) -> None:
        """A line at the end of what took a second or more."""
        began = self.indexed.setdefault(source, time.monotonic())
        if done == records and time.monotonic() - began >= 1:
            self.note(f"indexed {source}: {records:,} records")

    def caching(self, what: str, done: int, total: int) -> None:
        """A line at the end of what took a second or more."""
        began = self.cached.setdefault(what, time.monotonic())
        if done == total and time.monotonic() - began >= 1:
            self.note(f"{what}: {total:,} in {_duration(time.monotonic() - began)}")

    def stage(self, name: str, done: int, steps: int) -> None:
        """A stage begins, or goes on after `done` steps."""
        self._begin(done, steps)
        self.note(
            f"stage {self.stages.index(name) + 1} of {len(self.stages)}, {name}: {steps} steps"
            + (f", going on after {done}" if done else "")
        )

    def step(self, record: Mapping[str, Any]) -> None:
        """A step was made."""
        self.recent.append(record)
        step = record["step"]
        if step % self.every == 0 or step == self.steps:
            self.note(f"{record['stage']} {step}/{self.steps}  {self.figures(record)}")

    def heldout(self, record: Mapping[str, Any]) -> None:
        """Held-out samples were measured."""
        groups = "  ".join(f"{group} {loss:.3f}" for group, loss in record["losses"].items())
        self.note(f"{record['stage']} {record['step']}/{self.steps}  held-out loss {record['loss']:.3f}: {groups}")
        if record["alarm"]:
            self.note(f"warning: {record['alarm']}")

    def figures(self, record: Mapping[str, Any]) -> str:
        """Loss, speed, share of the machine's peak, share of the time that data is waited for, memory, and the time
        that is left of the stage. Speeds are of the last steps.
        """
        # A step's whole time, from the end of the one before; what was waited for is the slowest rank's, part of it.
        times = [one["tokens"] / rate if (rate := one["tokens_per_second"]) else one["seconds"] for one in self.recent]
        seconds, waited = max(sum(times), 1e-9), sum(one["wait"] for one in self.recent)
        speed = sum(one["tokens"] for one in self.recent) / seconds
        mfu = sum(one["mfu"] * time for one, time in zip(self.recent, times, strict=True)) / seconds
        gone, made = time.monotonic() - self.began, record["step"] - self.first
        left = gone / made * (self.steps - record["step"])
        parts = (
            "skipped" if record["loss"] is None else f"loss {record['loss']:.3f}",
            f"{speed:,.0f} tokens/s",
            f"MFU {mfu:.0%}" if mfu >= 0.1 else f"MFU {mfu:.1%}",
            f"wait {min(waited / seconds, 1):.0%}",
            f"{record['memory'] / 1e9:.1f} GB",
            f"{_duration(left)} left" if left else f"in {_duration(gone)}",
        )
        return "  ".join(parts)

    def _begin(self, done: int, steps: int) -> None:
        self.steps, self.first, self.began = steps, done, time.monotonic()
        self.recent.clear()

    def note(self, text: str) -> None:
        """Something worth a line."""
        print(text, file=sys.stderr, flush=True)


class Silence(Lines):
    """Nothing is shown: the first rank speaks for all."""

    def note(self, text: str) -> None:
        """Not a word."""


class Bars(Lines):
    """A run as progress bars, one a stage."""

    def __init__(self, stages: Sequence[str], every: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
        from rich.table import Column

        super().__init__(stages, every)
        self.bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None),  # what the figures leave
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[figures]}", markup=False, table_column=Column(no_wrap=True)),
            console=Console(stderr=True),
            expand=True,
        )
        self.task: TaskID | None = None
        self.indexes: dict[str, TaskID] = {}
        self.caches: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def indexing(self, source: str, done: int, records: int) -> None:
        """A bar for each source that is not in the cache."""
        if source not in self.indexes:
            self.indexes[source] = self.bars.add_task(f"index of {source}", figures="")
        self.bars.update(self.indexes[source], completed=done, total=records, visible=done < records)

    def caching(self, what: str, done: int, total: int) -> None:
        """A bar that is gone when all is done, or the stage begins."""
        if what not in self.caches:
            self.caches[what] = self.bars.add_task(what, figures="")
        self.bars.update(self.caches[what], completed=done, total=total, visible=done < total)

    def stage(self, name: str, done: int, steps: int) -> None:
        """A new bar."""
        for task in self.caches.values():
            self.bars.update(task, visible=False)
        self._begin(done, steps)
        number = f"{self.stages.index(name) + 1}/{len(self.stages)}"
        width = max(map(len, self.stages))
        self.task = self.bars.add_task(f"{number} {name:<{width}}", total=steps, completed=done, figures="")

    def step(self, record: Mapping[str, Any]) -> None:
        """The bar moves."""
        self.recent.append(record)
        if self.task is not None:
            self.bars.update(self.task, completed=record["step"], figures=self.figures(record))

    def note(self, text: str) -> None:
        """A line above the bars."""
        self.bars.console.print(text, markup=False, highlight=False)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
