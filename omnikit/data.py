"""What step k of a stage consists of, and its batches.

The stage's data is one endless sequence of samples, shuffled and mixed by grain as a pure function of (seed, stage,
position). It is cut into windows of WINDOW samples; the samples of a window are packed into rows of T positions; the
stage is the windows' packs one after another, and step k takes the next P of them. So a data position is (window,
offset), whatever reads it, and resuming plans one window.
"""

import functools
import itertools
import os
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import absl.logging
import numpy as np
import torch

from omnikit.component import Sample
from omnikit.packing import Batch, Pack, collate, pack, read_items
from omnikit.reading import Reading, prepare
from omnikit.recipe import Recipe, Stage
from omnikit.sample import Branch, Layout, Layouter

# When imported, grain warns that there is no jax whose profiler it could use. Nobody here asked for jax.
_verbosity = absl.logging.get_verbosity()
absl.logging.set_verbosity(absl.logging.ERROR)
import grain  # noqa: E402

absl.logging.set_verbosity(_verbosity)

WINDOW = 512
"""Samples planned at a time: enough for full packs, few enough that planning never stalls a run."""
AHEAD = 3
"""Steps that are read while one is computed."""
SMALL = 512
"""Sources with fewer samples are shuffled here: grain tries 2**16 / n numbers for a place in n, 0.1 s where n is 2."""


class Position(NamedTuple):
    """Where a stage's data stands: the next pack is number `offset` of window `window`."""

    window: int = 0
    offset: int = 0


class Step(NamedTuple):
    """The micro-batches of one step, the samples in them, and the position after it."""

    batches: list[Batch]
    sample_ids: list[str]
    after: Position


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


def seed_of(*parts: object) -> int:
    """A 32-bit seed from anything printable; the same on every machine."""
    return zlib.crc32("/".join(str(part) for part in parts).encode())


class StageData:
    """The data of one stage."""

    def __init__(self, recipe: Recipe, name: str, layouter: Layouter) -> None:
        self.stage: Stage = recipe.stages[name]
        self.threads = recipe.run.workers or 2
        self.layouter = layouter
        self.seed = seed_of(recipe.run.seed, name)
        self.sources: dict[str, Sequence[Sample]] = {key: recipe.data[key].open() for key in self.stage.data}
        self.mixture = _mixture(
            {key: len(source) for key, source in self.sources.items()},
            {key: use.share for key, use in self.stage.data.items()},
            self.seed,
        )

    def plan(self, window: int, unwanted: Callable[[], bool] = lambda: False) -> list[Pack]:
        """The packs of a window, in the order they are used; none once it is unwanted."""
        layouts = []
        for position in range(window * WINDOW, (window + 1) * WINDOW):
            if unwanted():
                return []
            layouts.append(self._layout(position))
        packs = pack([len(layout.ids) for layout in layouts], self.stage.batch.length)
        # Packing puts long samples first; steps should not.
        order = np.random.default_rng([self.seed, window]).permutation(len(packs))
        return [tuple(layouts[i] for i in packs[number]) for number in order]

    def faults(self) -> list[str]:
        """What is wrong with the samples of the first window; or, if nothing is, with the media of the first step."""
        try:
            first = list(itertools.islice(self.packs(Position()), self.stage.batch.packs))
        except ValueError as error:
            return faults_of(self._layout, range(WINDOW)) or [str(error)]
        return unread(self.layouter, (layout for one, _ in first for layout in one))

    def _layout(self, position: int) -> Layout:
        key, index = self.mixture(position)
        layout = self.layouter(self.sources[key][index], self.stage.data[key].as_)
        if len(layout.ids) > self.stage.batch.length:
            raise ValueError(
                f"sample {layout.id}: has {len(layout.ids)} tokens, more than a pack of {self.stage.batch.length}; "
                "raise the stage's batch.length, or let its readers give fewer views or frames"
            )
        return layout

    def packs(self, start: Position) -> Iterator[tuple[Pack, Position]]:
        """Packs from a position on, each with the position after it. A window is planned while the last half of the one
        before it is used: surveying media takes time, most of it waiting for the workers.
        """
        window, offset = start
        planner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="plan")
        closed = threading.Event()
        try:
            packs = self.plan(window)
            while True:
                coming = None
                for number in range(offset, len(packs)):
                    if coming is None and number >= len(packs) // 2:
                        coming = planner.submit(self.plan, window + 1, closed.is_set)
                    last = number == len(packs) - 1
                    yield packs[number], Position(window + 1, 0) if last else Position(window, number + 1)
                window, offset = window + 1, 0
                packs = self.plan(window) if coming is None else coming.result()
        finally:
            closed.set()  # or the end of the run would wait for a window that nobody needs
            planner.shutdown(wait=False, cancel_futures=True)

    def steps(self, start: Position) -> Iterator[Step]:
        """Steps from a position on, their media read ahead: a thread for each worker, or two that decode."""
        size, micro, length = self.stage.batch.packs, self.stage.batch.micro, self.stage.batch.length
        stream = self.packs(start)

        def read(packs: Sequence[Pack]) -> Batch:
            items = [item for one in packs for item in read_items(one, self.layouter.branches)]
            return collate(packs, items, length)

        with ThreadPoolExecutor(self.threads, thread_name_prefix="read", initializer=_stand_back) as pool:
            waiting: deque[tuple[list[Future[Batch]], list[str], Position]] = deque()
            try:
                while True:
                    while len(waiting) < AHEAD:
                        taken = [next(stream) for _ in range(size)]
                        packs = [one for one, _ in taken]
                        futures = [pool.submit(read, packs[i : i + micro]) for i in range(0, size, micro)]
                        ids = [layout.id for one in packs for layout in one]
                        waiting.append((futures, ids, taken[-1][1]))
                    futures, ids, after = waiting.popleft()
                    yield Step([future.result() for future in futures], ids, after)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _stand_back() -> None:
    """A thread that reads leaves the cores to training: it takes one, and that when it is free (`docs/log.md`)."""
    torch.set_num_threads(1)  # of this thread's own operations
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)


def faults_of(function: Callable[[Any], object], arguments: Iterable[Any]) -> list[str]:
    """The distinct errors of the function, of all arguments that it was tried with."""
    found: dict[str, None] = {}
    for argument in arguments:
        try:
            function(argument)
        except ValueError as error:
            found[str(error)] = None
    return list(found)


def unread(layouter: Layouter, layouts: Iterable[Layout]) -> list[str]:
    """What is wrong with the media of these layouts, found by reading them."""
    return faults_of(lambda layout: read_items((layout,), layouter.branches), layouts)


def _mixture(lengths: Mapping[str, int], shares: Mapping[str, float], seed: int) -> Callable[[int], tuple[str, int]]:
    """position -> (source, index). Each source is reshuffled every epoch; shares are of samples."""
    names = list(lengths)
    ranges = [_shuffled(name, lengths[name], seed_of(seed, name)) for name in names]
    mixed = ranges[0] if len(ranges) == 1 else grain.MapDataset.mix(ranges, weights=[shares[n] for n in names])
    return mixed.__getitem__


def _shuffled(name: str, length: int, seed: int) -> grain.MapDataset[tuple[str, int]]:
    """The places (name, index) of a source, epoch after epoch, each in an order of its own."""
    source = grain.MapDataset.source([(name, index) for index in range(length)])
    if length >= SMALL:
        return source.shuffle(seed=seed).repeat(None)

    @functools.lru_cache(maxsize=16)
    def order(epoch: int) -> list[int]:
        return np.random.default_rng([seed, epoch]).permutation(length).tolist()

    def place(position: int, _: tuple[str, int]) -> tuple[str, int]:
        epoch, within = divmod(position, length)
        return name, order(epoch)[within]

    return source.repeat(None).map_with_index(place)
