"""What step k of a stage consists of, and its batches.

The stage's data is one sequence of samples, shuffled and mixed by grain as a pure function of (seed, stage, position).
It is cut into windows; the samples of a window are packed into rows of T positions, by the lengths that the index
knows; the stage is the windows' packs one after another, and step k takes the next P of them. So a data position is
(window, offset), whatever reads it, and resuming plans one window. A sample that turns out bad when it is read leaves
its places to padding: no other sample moves.
"""

import functools
import hashlib
import itertools
import math
import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from omnikit.balancing import Assignment, costing, dealt, in_order
from omnikit.component import Item, Sample, SourceConfig
from omnikit.indexing import Index, Progress, index_of
from omnikit.mixing import mixture_of, seed_of
from omnikit.packing import Batch, collate, pack, read_items
from omnikit.reading import Reading, prepare
from omnikit.recipe import Recipe, Stage
from omnikit.sample import BadSample, Branch, Layout, Layouter

AHEAD = 3
"""Steps that are read while one is computed."""
LOOKED_AT = 64
"""Packs in which a medium that can be read is looked for before a stage begins, at least."""
TRIED = 4
"""Media of a modality that must fail, and none be read, before the modality is blamed."""


class Position(NamedTuple):
    """Where a stage's data stands: the next pack is number `offset` of window `window`."""

    window: int = 0
    offset: int = 0


class Entry(NamedTuple):
    """A sample in a plan: a record of a source, and the places it takes."""

    source: str
    number: int
    length: int


Plan = tuple[Entry, ...]
"""A pack before anything of it is read."""


class Seen(NamedTuple):
    """A sample of a step, and why it was bad, if it was."""

    source: str
    id: str
    bad: str


_Read = tuple[Batch, dict[tuple[int, int], Seen]]
"""A micro-batch, and its samples by where they stand in the step."""


class Step(NamedTuple):
    """One step, as one rank reads it."""

    batches: list[Batch]
    """The rank's micro-batches: as many as every rank's."""
    samples: list[Seen]
    """The samples in them, in their order."""
    at: list[tuple[int, int]]
    """Where each of them stands in the step: its pack, and its place there."""
    packs: list[Plan]
    """The packs of all ranks."""
    after: Position
    """Where the data stands after the step."""

    def bad(self) -> dict[tuple[int, int], Seen]:
        """The rank's bad samples by where they stand."""
        return {at: sample for at, sample in zip(self.at, self.samples, strict=True) if sample.bad}

    def seen(self, bad: Mapping[tuple[int, int], Seen]) -> Iterator[Seen]:
        """The samples of all ranks in the plan's order, of which those in `bad` were bad; the others have no id."""
        for number, one in enumerate(self.packs):
            for place, entry in enumerate(one):
                yield bad.get((number, place)) or Seen(entry.source, "", "")


def layouter_of(recipe: Recipe) -> Layouter:
    """The layouter of a recipe's backbone and modalities."""
    if recipe.run.workers:
        prepare(modality.reader for modality in recipe.modalities.values())
    return Layouter(recipe.backbone.chat, recipe.backbone.tokenizer(), branches_of(recipe))


def branches_of(recipe: Recipe) -> dict[str, Branch]:
    """What the layout needs of each modality."""
    reading = Reading(recipe.limits, recipe.run.workers)
    return {
        name: Branch(modality.reader, recipe.encoders[modality.encoder].input, modality.projector, reading)
        for name, modality in recipe.modalities.items()
    }


class StageData:
    """The data of one stage."""

    def __init__(
        self,
        recipe: Recipe,
        name: str,
        layouter: Layouter,
        progress: Progress = lambda *_: None,
        digests: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`digests` are those of the indexes that the plan began with, where it goes on."""
        self.stage: Stage = recipe.stages[name]
        self.threads = recipe.run.workers or 2
        self.layouter = layouter
        self.branches = layouter.branches
        """Where the steps read media: with a feature cache not where layouts are made."""
        self.seed = seed_of(recipe.run.seed, name)
        self.sources: dict[str, Sequence[Sample]] = {key: recipe.data[key].open() for key in self.stage.data}
        self.indexes = {
            key: index_of(recipe, name, key, samples, layouter, progress, digests.get(key))
            for key, samples in self.sources.items()
        }
        checked = {key: _usable(recipe.data[key], key, index) for key, index in self.indexes.items()}
        self.usable = {key: usable for key, (usable, _) in checked.items()}
        self.may_fail = {key: share for key, (_, share) in checked.items()}
        """The share of a source's usable records that may still turn out bad: what the index left of its `max_bad`."""
        means = {key: float(index.lengths[self.usable[key]].mean()) for key, index in self.indexes.items()}
        sizes = {key: len(usable) for key, usable in self.usable.items()}
        self.mixture = mixture_of(self.stage, sizes, means, self.seed)
        self.costing = costing(recipe, name)
        self._plans: dict[int, list[Plan]] = {}
        """The last two windows: checkpoints and the pass that fills a cache ask for them again."""

    @property
    def digests(self) -> dict[str, str]:
        """The indexes' digests: they decide the plan."""
        return {key: index.digest for key, index in self.indexes.items()}

    @functools.cached_property
    def steps_planned(self) -> int:
        """Steps of the stage. Of one that is given in epochs all windows are planned for it."""
        if self.stage.steps is not None:
            return self.stage.steps
        assert self.mixture.samples is not None
        windows = range(math.ceil(self.mixture.samples / self.mixture.window))
        return math.ceil(sum(len(self.plan(window)) for window in windows) / self.stage.batch.packs)

    def plan(self, window: int) -> list[Plan]:
        """The packs of a window, in the order they are used; none beyond the last epoch."""
        if window not in self._plans:
            self._plans = {**dict(list(self._plans.items())[-1:]), window: self._planned(window)}
        return self._plans[window]

    def _planned(self, window: int) -> list[Plan]:
        entries = []
        for key, place in self.mixture.of_window(window):
            number = int(self.usable[key][place])
            entries.append(Entry(key, number, int(self.indexes[key].lengths[number])))
        packs = pack([entry.length for entry in entries], self.stage.batch.length)
        # Packing puts long samples first; steps should not.
        order = np.random.default_rng([self.seed, window]).permutation(len(packs))
        return [tuple(entries[i] for i in packs[number]) for number in order]

    def mark(self, position: Position) -> str:
        """Changes with what comes next: another grain, numpy or omnikit may plan another way."""
        return hashlib.sha256(repr(self.plan(position.window)).encode()).hexdigest()

    def layout(self, entry: Entry) -> Layout:
        """The layout of a planned sample. One that has changed since it was indexed is a BadSample."""
        return self._laid_out(entry, self._sample(entry))

    def _sample(self, entry: Entry) -> Sample:
        try:
            return self.sources[entry.source][entry.number]
        except ValueError as error:
            raise BadSample(str(error)) from error

    def _laid_out(self, entry: Entry, sample: Sample) -> Layout:
        batch = self.stage.batch
        layout = self.layouter(sample, self.stage.data[entry.source].as_, room=batch.length, cut=batch.cut)
        if len(layout.ids) != entry.length:
            raise BadSample(
                f"sample {layout.id}: has {len(layout.ids)} tokens and had {entry.length} when it was indexed; its "
                "media have changed since: restore them, or begin a new run"
            )
        return layout

    def read(self, entry: Entry) -> tuple[Layout, list[Item]]:
        """The layout of a planned sample and its media, decoded; padding of the same length where it is bad."""
        name = f"{entry.source}[{entry.number}]"
        try:
            sample = self._sample(entry)
            name = sample.id
            layout = self._laid_out(entry, sample)
            return layout, read_items((layout,), self.branches)
        except BadSample as error:
            return Layout.padding(name, entry.length, str(error)), []

    def unreadable(self) -> list[str]:
        """What is wrong where of a modality several media fail and none can be read: then it is no bad sample, but a
        reader, a limit or a folder.
        """
        faults: dict[str, list[str]] = {}
        read: set[str] = set()
        for entry in itertools.chain.from_iterable(self.plan(0)[: max(self.stage.batch.packs, LOOKED_AT)]):
            try:
                layout = self.layout(entry)
            except BadSample:
                continue  # the ledger's business
            for place in layout.places:
                if place.modality in read or len(faults.get(place.modality, ())) == TRIED:
                    continue
                try:
                    read_items((layout._replace(places=(place,)),), self.layouter.branches)
                    read.add(place.modality)
                except BadSample as error:
                    faults.setdefault(place.modality, []).append(str(error))
        return [lines[0] for modality, lines in faults.items() if modality not in read and len(lines) == TRIED]

    def packs(self, start: Position) -> Iterator[tuple[Plan, Position]]:
        """Packs from a position on, each with the position after it."""
        window, offset = start
        while packs := self.plan(window):
            for number in range(offset, len(packs)):
                last = number == len(packs) - 1
                yield packs[number], Position(window + 1, 0) if last else Position(window, number + 1)
            window, offset = window + 1, 0

    def dealt(self, packs: Sequence[Plan], ranks: int) -> Assignment:
        """Which rank computes which packs of a step, and when."""
        if ranks == 1:
            return in_order(len(packs), ranks, self.stage.batch.micro)
        costs = [sum(self.cost(entry) for entry in one) for one in packs]
        return dealt(costs, ranks, self.stage.batch.micro)

    def cost(self, entry: Entry) -> float:
        """FLOPs that a sample takes in a step."""
        return self.costing(entry.source, entry.length, float(self.indexes[entry.source].cost[entry.number]))

    def ids(self, step: Step, ranks: Iterable[int], size: int) -> list[tuple[str, str]]:
        """Source and id of a step's samples that these ranks of `size` computed; of none, those of all."""
        chosen = set(ranks) or set(range(size))
        found = []
        for slot in self.dealt(step.packs, size):
            for number in (number for rank in chosen for number in slot[rank]):
                for entry in step.packs[number]:
                    try:
                        name = self.sources[entry.source][entry.number].id
                    except ValueError:
                        name = f"{entry.source}[{entry.number}]"
                    found.append((entry.source, name))
        return found

    def steps(self, start: Position, rank: int = 0, ranks: int = 1) -> Iterator[Step]:
        """Steps from a position on, as this rank computes them.

        Their media are read ahead: a thread for each worker, or two that decode.
        """
        size, length = self.stage.batch.packs, self.stage.batch.length
        stream = self.packs(start)

        def read(packs: Mapping[int, Plan]) -> _Read:
            rows, items, seen = [], [], {}
            for number, one in packs.items():
                layouts = []
                for place, entry in enumerate(one):
                    layout, found = self.read(entry)
                    layouts.append(layout)
                    items += found
                    seen[number, place] = Seen(entry.source, layout.id, layout.bad)
                rows.append(tuple(layouts))
            # A rank without a pack takes part with one of padding.
            return collate(rows or [()], items, length), seen

        with ThreadPoolExecutor(self.threads, thread_name_prefix="read", initializer=stand_back) as pool:
            waiting: deque[tuple[list[Future[_Read]], list[Plan], Position]] = deque()
            try:
                while True:
                    while len(waiting) < AHEAD and (taken := list(itertools.islice(stream, size))):
                        packs = [one for one, _ in taken]
                        slots = ({i: packs[i] for i in slot[rank]} for slot in self.dealt(packs, ranks))
                        waiting.append(([pool.submit(read, slot) for slot in slots], packs, taken[-1][1]))
                    if not waiting:
                        return
                    futures, packs, after = waiting.popleft()
                    made = [future.result() for future in futures]
                    seen = {at: sample for _, found in made for at, sample in found.items()}
                    yield Step([batch for batch, _ in made], list(seen.values()), list(seen), packs, after)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _usable(source: SourceConfig, name: str, index: Index) -> tuple[np.ndarray, float]:
    """The numbers of the records that can be used, and the share of them that `max_bad` still lets be bad.

    Too few of them are a ValueError.
    """
    usable = np.flatnonzero(index.lengths)
    bad, first = 0, ""
    for note in index.notes() if len(usable) < len(index.lengths) else ():
        first = note.reason if note.what == "bad" and not bad else first
        bad += note.what == "bad"
    if not len(usable):
        first = next(index.notes()).reason
        raise ValueError(f"data.{name}: none of its {len(index.lengths)} records can be used; the first: {first}")
    dropped = len(index.lengths) - len(usable) - bad
    if dropped > source.max_bad * len(index.lengths):
        warnings.warn(
            f"data.{name}: {dropped} of its {len(index.lengths)} records are longer than a pack, however small their "
            "media are made, and are not used; raise the stage's batch.length",
            stacklevel=2,
        )
    if bad > source.max_bad * len(index.lengths):
        raise ValueError(
            f"data.{name}: {bad} of its {len(index.lengths)} records are bad, more than max_bad {source.max_bad:g} "
            f"allows; mend them (`omnikit data lint` lists them), or raise it. The first: {first}"
        )
    return usable, (source.max_bad * len(index.lengths) - bad) / len(usable)


def stand_back() -> None:
    """A thread that reads leaves the cores to training: it takes one, and that when it is free (`docs/log.md`)."""
    torch.set_num_threads(1)  # of this thread's own operations
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
