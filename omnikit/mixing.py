"""Which samples a stage sees, and in which order: sources shuffled and mixed by grain, in windows to be packed.

Everything is a pure function of (seed, stage, position): nothing is remembered, so any position can be asked for.
"""

import bisect
import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import absl.logging
import numpy as np

from omnikit.recipe import Stage

# When imported, grain warns that there is no jax whose profiler it could use. Nobody here asked for jax.
_verbosity = absl.logging.get_verbosity()
absl.logging.set_verbosity(absl.logging.ERROR)
import grain  # noqa: E402

absl.logging.set_verbosity(_verbosity)

WINDOW = 512
"""Samples packed at a time, at least."""
PACKS = 64
"""Packs made at a time, about: the last ones of a window stay half empty, so there should be many."""
SMALL = 512
"""Sources with fewer samples are shuffled here: grain tries 2**16 / n numbers for a place in n, 0.1 s where n is 2."""


class Mixture(NamedTuple):
    """The samples of a stage in their order."""

    at: Callable[[int], tuple[str, int]]
    """position -> (source, place among its usable records)."""
    window: int
    """Samples that are packed together."""
    samples: int | None
    """How many there are; None: they go on for ever."""

    def of_window(self, window: int) -> Iterator[tuple[str, int]]:
        """The samples of a window, fewer in the last one of the last epoch."""
        begin, end = window * self.window, (window + 1) * self.window
        for position in range(begin, end if self.samples is None else min(end, self.samples)):
            yield self.at(position)


def mixture_of(stage: Stage, sizes: Mapping[str, int], means: Mapping[str, float], seed: int) -> Mixture:
    """The mixture of a stage whose sources have so many usable samples, of so many tokens on average."""
    drawn = {key: float(sizes[key] if stage.epochs else use.share) for key, use in stage.data.items()}
    if stage.mix == "tokens":
        drawn = {key: share / means[key] for key, share in drawn.items()}
    mean = sum(means[key] * drawn[key] for key in drawn) / sum(drawn.values())
    window = max(WINDOW, round(PACKS * stage.batch.length / mean))
    if stage.epochs:
        return Mixture(_together(sizes, seed), window, sum(sizes.values()) * stage.epochs)
    return Mixture(_by_shares(sizes, drawn, seed), window, None)


def seed_of(*parts: object) -> int:
    """A 32-bit seed from anything printable; the same on every machine."""
    return zlib.crc32("/".join(str(part) for part in parts).encode())


def _by_shares(sizes: Mapping[str, int], shares: Mapping[str, float], seed: int) -> Callable[[int], tuple[str, int]]:
    """Shares are of samples; each source is reshuffled every epoch of its own."""
    ends = itertools.accumulate(sizes.values())
    numbers = [_shuffled(end - sizes[name], end, seed_of(seed, name)) for name, end in zip(sizes, ends, strict=True)]
    mixed = numbers[0] if len(numbers) == 1 else grain.MapDataset.mix(numbers, weights=[shares[name] for name in sizes])
    return _places(sizes, mixed)


def _together(sizes: Mapping[str, int], seed: int) -> Callable[[int], tuple[str, int]]:
    """Every epoch is all samples of all sources, shuffled together."""
    return _places(sizes, _shuffled(0, sum(sizes.values()), seed))


def _places(sizes: Mapping[str, int], order: grain.MapDataset[int]) -> Callable[[int], tuple[str, int]]:
    """position -> (source, place in it), of an order of the numbers of all sources' samples, end to end."""
    names, ends = list(sizes), list(itertools.accumulate(sizes.values()))

    def at(position: int) -> tuple[str, int]:
        number = order[position]
        owner = bisect.bisect_right(ends, number)
        return names[owner], number - (ends[owner - 1] if owner else 0)

    return at


def _shuffled(begin: int, end: int, seed: int) -> grain.MapDataset[int]:
    """The numbers from `begin` to below `end`, epoch after epoch, each in an order of its own.

    Without `repeat`, a layer that takes time: grain shuffles anew for whatever epoch is asked for.
    """
    length = end - begin
    if length >= SMALL:
        return grain.MapDataset.range(begin, end).shuffle(seed=seed)

    @functools.lru_cache(maxsize=16)
    def order(epoch: int) -> list[int]:
        return (begin + np.random.default_rng([seed, epoch]).permutation(length)).tolist()

    def number(position: int, _: int) -> int:
        epoch, within = divmod(position, length)
        return order(epoch)[within]

    return grain.MapDataset.range(begin, end).map_with_index(number)
