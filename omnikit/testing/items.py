"""Different Items for an encoder: random ones where its Input is known, a reader's, or its example in noise."""

import tempfile
from pathlib import Path

import numpy as np

from omnikit.component import EncoderConfig, Input, Item, Mel, Pixels, ReaderConfig, count
from omnikit.testing.results import Fault

__all__ = ["items_of"]

LARGEST = 3
"""Items that a batch of the checks holds."""


def items_of(config: EncoderConfig, reader: ReaderConfig | None = None) -> list[Item]:
    """At least two different Items that the encoder eats, largest first."""
    items = _known(config.input) or _noisy(config.example())
    if reader is not None:
        items = _of_different_sizes(_read(reader, config.input)) or items
    items = sorted(items, key=lambda item: count(item.grid), reverse=True)
    if len(items) < 2 or all(np.array_equal(items[0].value, item.value) for item in items[1:]):
        raise Fault("no two different items are known for it; give a reader that has specimens")
    return items


def _known(input: Input) -> list[Item]:
    random = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    if isinstance(input, Pixels):
        return [Item(drawn(views, 3, input.size, input.size), (views, input.side, input.side)) for views in (3, 2, 1)]
    if isinstance(input, Mel):
        window = input.window_frames
        made = []
        for frames in (window + min(37, window), min(57, window), min(20, window)):
            whole = -(-frames // window) * window if input.padded else frames
            made.append(Item(drawn(input.bins, whole), (input.features(frames), 1, 1)))
        return made
    return []


def _noisy(example: Item) -> list[Item]:
    value = np.asarray(example.value)
    if not np.issubdtype(value.dtype, np.floating):
        return []  # numbers that stand for something: noise would make nonsense of them
    random = np.random.default_rng(0)
    return [
        Item((value + random.standard_normal(value.shape)).astype(value.dtype), example.grid) for _ in range(LARGEST)
    ]


def _read(reader: ReaderConfig, input: Input) -> list[Item]:
    with tempfile.TemporaryDirectory() as folder:
        media = reader.specimens(Path(folder), input)
        return [reader.read(medium, input, reader.grids(medium, input)[-1]) for medium in media]


def _of_different_sizes(items: list[Item]) -> list[Item]:
    """A few of the smaller ones, each of another grid where there are such."""
    by_grid = {item.grid: item for item in items}
    few = sorted(by_grid.values(), key=lambda item: count(item.grid))[:LARGEST]
    return few if len(few) > 1 else items[:LARGEST]
