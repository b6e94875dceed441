"""The pass that fills the feature cache, before the first step of a stage that says `cache: true`.

It encodes each medium of the steps that remain, alone, as it would be encoded in a step, and writes shard after shard;
what a killed one has made is found by the next. In the steps the threads that read media then fetch features in their
stead, and the model runs only what comes after the encoder.
"""

import hashlib
import itertools
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from omnikit import cache
from omnikit.component import Item, count
from omnikit.data import Entry, Position, StageData, stand_back
from omnikit.distributed import ALONE, World, spread
from omnikit.features import Shelf, Stored, digest_of, key_of
from omnikit.model import OmniModel
from omnikit.packing import read_items
from omnikit.recipe import Recipe, frozen_encoders
from omnikit.sample import BadSample

ITEMS = 1024
"""Items of a shard, at most: what a fill that is killed loses."""
BYTES = 256 * 2**20
"""Size of a shard, about."""
AHEAD = 4
"""Media that are decoded ahead by each thread."""

A = TypeVar("A")
R = TypeVar("R")


class Display(Protocol):
    """Who is told of a fill."""

    def caching(self, what: str, done: int, total: int) -> None:
        """So many media of a stage are found, or features made."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...


class _Wanted(NamedTuple):
    """An item of the stage: the medium number `place` of a sample."""

    modality: str
    name: str
    size: int
    entry: Entry
    place: int


class _Nothing(Exception):
    """No item of a shard can be read."""


def use_features(
    recipe: Recipe,
    stage: str,
    model: OmniModel,
    data: StageData,
    start: Position,
    steps: int,
    display: Display,
    begun: bool,
    world: World = ALONE,
) -> bool:
    """Fill the cache for the next `steps` steps from `start`, and let `model` and `data` live from it.

    False, and nothing changed, where the features are too large, which the display is told; a stage that has `begun`
    with them then is a ValueError, since it would not end bitwise as it began. The encoders must be in evaluation mode
    and, on the first rank, as the stage has them; nothing of the model is sharded yet. Ranks share the work.
    """
    encoders = frozen_encoders(recipe, stage)
    device = world.device
    for name in encoders:
        state = model.encoders[name].to(device).state_dict()
        spread(state, state, world)

    def encoded(encoder: str, item: Item) -> Tensor:
        bf16 = recipe.run.precision == "bf16"
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            features = model.encoders[encoder]([Item(torch.as_tensor(item.value).to(device), item.grid)])
        if len(features) != count(item.grid):
            raise ValueError(f"encoders.{encoder}: gave {len(features)} features for an item of {count(item.grid)}")
        return features

    examples = {name: model.configs[name].example() for name in encoders}
    examples = {name: Item(encoded(name, item), item.grid) for name, item in examples.items()}
    branches = {name: entry.encoder for name, entry in model.branches.items() if entry.encoder in encoders}
    digests = {name: digest_of(model.encoders[name]) for name in encoders}
    shelves = {name: Shelf(key_of(recipe, name, digests[encoder], device)) for name, encoder in branches.items()}
    widths = {name: examples[encoder].value[:1].nbytes for name, encoder in branches.items()}

    total, missing = _missing(recipe, stage, data, start, steps, shelves, widths, display)
    told = world.agree(lambda: _no_room(recipe, total, sum(one.size for one in missing)))
    if told and begun:
        raise ValueError(f"stages.{stage}.cache: {told}, but it was begun with them; make room for them")
    if told:
        display.note(f"stage {stage}: {told}; it reads and encodes its media in every step")
        return False

    _fill(stage, data, shelves, missing, lambda one, item: encoded(branches[one.modality], item), display, world)
    model.stored = examples
    own = {name: branch for name, branch in data.branches.items() if name in shelves}
    stored = {name: branch._replace(reading=Stored.of(branch.reading, shelves[name])) for name, branch in own.items()}
    data.branches = {**data.branches, **stored}
    return True


def _no_room(recipe: Recipe, total: int, lacking: int) -> str:
    """Why features of so many bytes, of which so many are still to be made, cannot be kept; empty where they can."""
    free = _free()
    if total > recipe.run.cache_bytes:
        return f"its features take more than run.cache_bytes ({recipe.run.cache_bytes:,} bytes)"
    if lacking > free:
        return f"its features take {lacking:,} bytes more, and {cache.folder()} has room for {free:,}"
    return ""


def _missing(
    recipe: Recipe,
    stage: str,
    data: StageData,
    start: Position,
    steps: int,
    shelves: Mapping[str, Shelf],
    widths: Mapping[str, int],
    display: Display,
) -> tuple[int, list[_Wanted]]:
    """Bytes of all features of these steps, and the items that are not in the cache.

    Both end early where the bytes are too many.
    """
    held = {
        key: {use.as_.get(modality, modality) for modality in recipe.data[key].modalities}
        for key, use in data.stage.data.items()
    }
    packs = itertools.islice(data.packs(start), steps * data.stage.batch.packs)
    entries = dict.fromkeys(entry for pack, _ in packs for entry in pack if held[entry.source] & shelves.keys())

    def look(entry: Entry) -> list[_Wanted]:
        found: list[_Wanted] = []
        with suppress(BadSample):  # padding in its step
            for number, place in enumerate(data.layout(entry).places):
                if place.modality in shelves:
                    with suppress(OSError, ValueError):  # no medium to be read
                        name = shelves[place.modality].item(place.medium, place.grid)
                        size = count(place.grid) * widths[place.modality]
                        found.append(_Wanted(place.modality, name, size, entry, number))
        return found

    total, seen, missing = 0, set[tuple[str, str]](), list[_Wanted]()
    for done, found in enumerate(_ahead(look, entries, data.threads), 1):
        for one in found:
            if (one.modality, one.name) not in seen:
                seen.add((one.modality, one.name))
                total += one.size
                if one.name not in shelves[one.modality].shards:
                    missing.append(one)
        if total > recipe.run.cache_bytes:
            break
        display.caching(f"media of {stage}", done, len(entries))
    return total, missing


def _fill(
    stage: str,
    data: StageData,
    shelves: Mapping[str, Shelf],
    missing: Iterable[_Wanted],
    encoded: Callable[[_Wanted, Item], Tensor],
    display: Display,
    world: World,
) -> None:
    """Make the shards of what is missing, one after another. A medium that cannot be read is left out.

    The ranks of a machine, which have one cache folder, share what is missing by its names alone: another run may have
    made some between two ranks' looks, and each must know what is its own.
    """
    own = (one for one in missing if int(one.name, 16) % world.locals == world.local)
    missing = sorted(own, key=lambda one: one.modality)  # stable: within a modality as the steps come

    def read(one: _Wanted) -> tuple[_Wanted, Item | None]:
        with suppress(BadSample, OSError):
            layout = data.layout(one.entry)
            for place in layout.places[one.place : one.place + 1]:
                [item] = read_items((layout._replace(places=(place,)),), data.branches)
                # It may have changed since it was named, or while it was read.
                if shelves[one.modality].item(place.medium, place.grid) == one.name:
                    return one, item
        return one, None

    def write(path: Path, shard: list[_Wanted], made: int) -> None:
        if path.parent != cache.folder():  # not in a temporary folder, which may well be memory
            raise ValueError(
                f"stages.{stage}.cache: features cannot be written to {cache.folder()}; make room there, name another "
                "folder in OMNIKIT_CACHE, or remove `cache`"
            )
        tensors: dict[str, Tensor] = {}
        for number, (one, item) in enumerate(_ahead(read, shard, data.threads), made + 1):
            if item is not None:
                tensors[one.name] = encoded(one, item).cpu().clone()
            display.caching(f"features of {stage}", number, len(missing))
        if not tensors:
            raise _Nothing
        try:
            save_file(tensors, path)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    made = 0
    for shard in _shards(missing):
        key = shelves[shard[0].modality].key
        items = hashlib.sha256("".join(one.name for one in shard).encode()).hexdigest()[:40]
        with suppress(_Nothing):
            name = f"features-{key}-{items}.safetensors"
            cache.made(name, lambda path, shard=shard, made=made: write(path, shard, made))
        made += len(shard)
    world.meet()
    for shelf in shelves.values():
        shelf.look()


def _shards(items: Iterable[_Wanted]) -> Iterator[list[_Wanted]]:
    """Runs of items of one modality, as many as a shard takes."""
    for _, run in itertools.groupby(items, key=lambda one: one.modality):
        shard, size = list[_Wanted](), 0
        for one in run:
            if shard and (len(shard) == ITEMS or size + one.size > BYTES):
                yield shard
                shard, size = [], 0
            shard.append(one)
            size += one.size
        yield shard


def _free() -> int:
    """Bytes that the cache folder has room for."""
    folder = cache.folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


def _ahead(function: Callable[[A], R], arguments: Iterable[A], threads: int) -> Iterator[R]:
    """What the function says of each argument, in their order, computed by threads, a few ahead."""
    stream = iter(arguments)
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="features", initializer=stand_back) as pool:
        try:
            while True:
                more = itertools.islice(stream, AHEAD * threads - len(waiting))
                waiting.extend(pool.submit(function, argument) for argument in more)
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
