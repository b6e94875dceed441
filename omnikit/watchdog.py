"""A run in which nothing moves is ended, and the rank that holds it up is named; so is one that is merely slow.

Every rank makes the same moves in the same order (law 3), so counting them is enough: of ranks that wait for one
another, the one with fewest moves is the one that the others wait for. A thread of each rank publishes its count and
its place (step and module) once in a while, in the store through which the ranks found each other.
"""

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from statistics import median
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self

from torch import nn

from omnikit.distributed import World

SLOW = 2.0
"""A rank that needs so many times as long as the others is slow."""
LEAST = 0.1
"""Seconds a step by which it is slower, at least: of toys nobody need know."""
STEPS = 10
"""Over about so many steps, and not sooner."""
LOOKS = 5
"""Times that a rank publishes before it counts as stopped, once nothing moves."""


class Beat(NamedTuple):
    """What a rank's thread publishes."""

    tick: int
    """Rises as long as the process lives."""
    moves: int
    at: str


UNHEARD = Beat(0, 0, "the stage's beginning")
"""Stands for a rank whose thread has published nothing yet."""


class Watchdog:
    """Watches the steps of a stage; a context, whose thread ends with it."""

    def __init__(self, name: str, modules: Mapping[str, nn.Module], world: World, seconds: float) -> None:
        """`modules` by their paths, none within another: those by which a place is named and the pace is taken.

        `name` is one that no other watchdog of the process has: the stage's.
        """
        self.name, self.world, self.seconds = name, world, seconds
        self.moves, self.at, self.moved = 0, "", time.monotonic()
        self.busy = 0.0
        """Seconds that this rank has computed in its modules; what it waits for others is not in it."""
        self._began = 0.0
        self._hooks: list[Any] = []
        for path, module in modules.items():
            self._hooks.append(module.register_forward_pre_hook(lambda *_, path=path: self._enter(path)))
            self._hooks.append(module.register_forward_hook(lambda *_, path=path: self._leave(path)))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        for hook in self._hooks:
            hook.remove()

    def move(self, at: str) -> None:
        """The rank goes on, and is there now."""
        self.moves, self.at, self.moved = self.moves + 1, at, time.monotonic()

    def take_busy(self) -> float:
        """`busy` since it was last taken."""
        busy, self.busy = self.busy, 0.0
        return busy

    def _enter(self, path: str) -> None:
        self.move(f"{self._step}: {path}")
        self._began = time.perf_counter()

    def _leave(self, path: str) -> None:
        self.busy += time.perf_counter() - self._began
        self.move(f"{self._step}: after {path}")

    @property
    def _step(self) -> str:
        return self.at.partition(": ")[0]

    def _watch(self) -> None:
        looks, before = 0, dict[int, Beat]()
        try:
            for tick in itertools.count(1):
                self._publish(Beat(tick, self.moves, self.at))
                if self._ended.wait(min(1.0, self.seconds / 5)):
                    return
                if time.monotonic() - self.moved <= self.seconds:
                    looks = 0
                    continue
                # A rank that is here too goes on publishing meanwhile, or the others would take it for a stopped one.
                before = before if looks else self._beats()
                looks += 1
                if looks > LOOKS:
                    looks = self._end(before)
        except RuntimeError:  # the store is gone, and with it the rank or the launcher that keeps it
            if not self._ended.is_set():
                self._leave_run("the first rank, or what started it, is gone")

    def _publish(self, beat: Beat) -> None:
        if self.world.store is not None:
            self.world.store.set(f"{self.name}/{self.world.rank}", json.dumps(beat))

    def _beats(self) -> dict[int, Beat]:
        """The last beat of every rank; of one that has not come so far, `UNHEARD`."""
        store = self.world.store
        if store is None:
            return {0: Beat(0, self.moves, self.at)}
        keys = [f"{self.name}/{rank}" for rank in range(self.world.size)]
        return {
            rank: Beat(*json.loads(store.get(key))) if store.check([key]) else UNHEARD for rank, key in enumerate(keys)
        }

    def _end(self, before: Mapping[int, Beat]) -> int:
        """End the run, unless a rank has gone on since `before`: then 0."""
        beats = self._beats()
        if any(beats[rank].moves != before[rank].moves for rank in beats):
            return 0
        if self.world.store is not None and self.world.store.add(f"{self.name}/told", 1) > 1:
            time.sleep(LOOKS)  # the one that speaks is heard first
            os._exit(1)
        stopped = {rank for rank, beat in beats.items() if beat.tick == before[rank].tick} - {self.world.rank}
        self._leave_run(told_of(beats, stopped, self.seconds))

    def _leave_run(self, told: str) -> NoReturn:
        remedy = "the same command again goes on from the last checkpoint"
        print(f"{told}; the run is ended: {remedy}", file=sys.stderr, flush=True)
        os._exit(1)


def told_of(beats: Mapping[int, Beat], stopped: set[int], seconds: float) -> str:
    """Which ranks hold the others up, and where."""
    fewest = min(beat.moves for beat in beats.values())
    behind = sorted(stopped) or [rank for rank, beat in beats.items() if beat.moves == fewest]
    where = ", ".join(f"rank {rank} at {beats[rank].at}" for rank in behind[:8])
    others = "" if len(behind) == len(beats) else "; the others wait for it"
    return f"nothing has moved for {seconds:g} s: {where}{others}"


class Pace:
    """How long each rank needs for its part of a step, so that a slow one is noticed."""

    def __init__(self) -> None:
        self.means: list[float] = []
        self.steps = 0
        self.told: set[int] = set()

    def add(self, seconds: Sequence[float], step: float) -> str:
        """What is to be said of a slow rank, once, else nothing.

        `seconds` are those that each rank waited for its data and computed, of a step that took all of them `step`.
        """
        weight = 1 / min(self.steps + 1, STEPS)
        self.means = [old + weight * (new - old) for old, new in zip(self.means or seconds, seconds, strict=True)]
        self.steps += 1
        if self.steps < STEPS or len(self.means) == 1:
            return ""
        for rank, mean in enumerate(self.means):
            rest = median(other for number, other in enumerate(self.means) if number != rank)
            if mean > SLOW * rest and mean - rest > max(step / 10, LEAST) and rank not in self.told:
                self.told.add(rank)
                return f"rank {rank} is slow: {mean:.3g} s a step where the others need {rest:.3g} s"
        return ""
