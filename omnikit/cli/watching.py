"""How a run is shown, and other work: bars on a terminal, plain lines elsewhere. Everything goes to stderr."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self


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
        self.steps = self.first = self.tokens = 0
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
        self.steps, self.first, self.tokens, self.began = steps, done, 0, time.monotonic()
        self.note(
            f"stage {self.stages.index(name) + 1} of {len(self.stages)}, {name}: {steps} steps"
            + (f", going on after {done}" if done else "")
        )

    def step(self, record: Mapping[str, Any]) -> None:
        """A step was made."""
        self.tokens += record["tokens"]
        step = record["step"]
        if step % self.every == 0 or step == self.steps:
            self.note(f"{record['stage']} {step}/{self.steps}  {self.figures(record)}")

    def figures(self, record: Mapping[str, Any]) -> str:
        """Loss, speed, and the time that is left of the stage, in words."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        left = seconds / (record["step"] - self.first) * (self.steps - record["step"])
        return f"loss {record['loss']:.3f}  {self.tokens / seconds:,.0f} tokens/s  {_duration(left)} left"

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

        super().__init__(stages, every)
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=Console(stderr=True),
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
        self.steps, self.first, self.tokens, self.began = steps, done, 0, time.monotonic()
        number = f"{self.stages.index(name) + 1}/{len(self.stages)}"
        width = max(map(len, self.stages))
        self.task = self.bars.add_task(f"{number} {name:<{width}}", total=steps, completed=done, figures="")

    def step(self, record: Mapping[str, Any]) -> None:
        """The bar moves."""
        self.tokens += record["tokens"]
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
