"""How many places each record of a source takes in a pack, found out once and kept in the cache.

With it the plan of a stage is arithmetic: it opens no file, is the same on every rank, and knows what cannot be used
before the first step. An index is a function of the records, of what lays them out (tokenizer, chat, readers,
projectors, limits) and of the length of a pack; it is named by the hash of all that. Of media only the headers are
read, and their size and time are remembered: where these have changed, the source is indexed anew.
"""

import hashlib
import itertools
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from omnikit import cache
from omnikit.component import Medium, Sample
from omnikit.recipe import Recipe
from omnikit.sample import BadSample, Layouter, TooLong
from omnikit.versions import versions

VERSION = 1
"""Raised whenever what an index holds, or how a sample is laid out, changes."""
PART = 1024
"""Records in a part. A build that is cut off goes on after its last whole part."""
LOOKED_AT = 256
"""Records whose media are looked at when an index is opened: so many usable ones, and so many others."""
TRIED = 4
"""Records of either kind that are laid out again then."""
UNPARSED = 0
"""The stamp of a record that cannot be parsed."""
ROW = np.dtype([("length", "<u4"), ("cost", "<f4"), ("stamp", "<u4")])

Progress = Callable[[str, int, int], None]
"""Called with a source's name, how many of its records are done, and how many there are."""


class Note(NamedTuple):
    """What became of one record: of `bad` and `dropped` ones nothing is used, of `cut` and `shrunk` ones a part."""

    id: str
    what: str
    reason: str


class _Entry(NamedTuple):
    """A record's length and cost, what is to be said of it, and its stamp."""

    length: int
    cost: float
    notes: list[Note]
    stamp: int


class Index(NamedTuple):
    """The records of a source, by number."""

    lengths: np.ndarray
    """uint32 (records,): places in a pack; 0 where nothing of it can be used."""
    cost: np.ndarray
    """float32 (records,): FLOPs of its media's forward passes through their encoders."""
    digest: str
    """The sha256 of both."""
    stamps: np.ndarray
    """uint32 (records,): changes with the size and time of its media files. Memory-mapped."""
    listed: Path

    def notes(self) -> Iterator[Note]:
        """The records of which something is to be said, in their order."""
        with self.listed.open(encoding="utf-8") as file:
            for line in file:
                yield Note(*json.loads(line))


def index_of(
    recipe: Recipe,
    stage: str,
    name: str,
    samples: Sequence[Sample],
    layouter: Layouter,
    progress: Progress,
    wanted: str | None = None,
) -> Index:
    """The index of the source `name`, which is open, as `stage` uses it: out of the cache, else made and kept there.

    One whose digest is `wanted` is taken as it is, whatever has become of the media since.
    """
    records = range(len(samples))  # a file that is missing or empty says so
    entry = partial(_entry, recipe, stage, name, layouter, samples)
    key = _key(recipe, stage, name, layouter, len(records))
    for index in _kept(key) if wanted else ():
        if index.digest == wanted:
            return index
    remade = False
    while True:
        parts: list[Path] = []

        def needed(key: str = key, parts: list[Path] = parts) -> list[Path]:
            if not parts:
                parts.extend(_parts(key, records, entry, recipe.run.workers or 1, partial(progress, name)))
            return parts

        table = cache.made(f"index-{key}.npy", lambda path: _write_table(path, needed()))
        listed = cache.made(f"index-{key}.jsonl", lambda path: _write_notes(path, needed()))
        for part in parts:
            part.unlink(missing_ok=True)
        try:
            index = _opened(table)._replace(listed=listed)
        except (ValueError, EOFError):  # the entry has been damaged
            table.unlink()
            continue
        changed = _changed(index, samples, entry)
        if not changed or remade:  # what changes whenever it is looked at is no reason to go on for ever
            return index
        remade = bool(parts)
        key += "-" + hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:8]


def _opened(table: Path) -> Index:
    rows = np.load(table, mmap_mode="r")
    digest = hashlib.sha256(rows["length"].tobytes() + rows["cost"].tobytes()).hexdigest()
    return Index(rows["length"], rows["cost"], digest, rows["stamp"], table.with_suffix(".jsonl"))


def _kept(key: str) -> Iterator[Index]:
    """The whole and sound indexes of this key that are in the cache, whatever has become of the media since."""
    with suppress(OSError):
        for table in sorted(cache.folder().glob(f"index-{key}*.npy")):
            with suppress(ValueError, EOFError):
                if (index := _opened(table)).listed.is_file():
                    yield index


def _changed(index: Index, samples: Sequence[Sample], entry: Callable[[int], _Entry]) -> list[tuple[int, int]]:
    """Numbers and new stamps, or lengths, of the records that were looked at and have other ones now.

    A few are laid out again: a reader that has been mended, a disk that answers again, change no file.
    """
    kinds = np.flatnonzero(index.lengths == 0), np.flatnonzero(index.lengths)
    looked_at = [number for kind in kinds for number in _some(kind, LOOKED_AT)]
    changed = [(number, now) for number in looked_at if (now := _stamp_of(samples, number)) != index.stamps[number]]
    tried = [number for kind in kinds for number in _some(kind, TRIED)] if not changed else []
    return changed + [(number, now) for number in tried if (now := entry(number).length) != index.lengths[number]]


def _some(numbers: np.ndarray, most: int) -> list[int]:
    places = np.linspace(0, len(numbers) - 1, min(len(numbers), most), dtype=int)
    return numbers[places].tolist()


def _stamp_of(samples: Sequence[Sample], number: int) -> int:
    try:
        return _stamp(samples[number])
    except ValueError:
        return UNPARSED


def _stamp(sample: Sample) -> int:
    """Changes when one of the sample's media files does."""
    found = 1
    for medium in (value for turn in sample.turns for _, value in turn.content if isinstance(value, Medium)):
        if isinstance(medium.source, str):
            try:
                status = os.stat(medium.source)
            except (OSError, ValueError):  # it is missing, or no name of a file
                continue
            found = zlib.crc32(f"{status.st_size} {status.st_mtime_ns}".encode(), found)
    return found


class _Unwanted(Exception):
    pass


def _key(recipe: Recipe, stage: str, name: str, layouter: Layouter, records: int) -> str:
    source, use, batch = recipe.data[name], recipe.stages[stage].data[name], recipe.stages[stage].batch
    met = {use.as_.get(modality, modality) for modality in source.modalities}
    branches = {
        modality: [entry.reader, recipe.encoders[entry.encoder].input, entry.projector, recipe.encoders[entry.encoder]]
        for modality, entry in recipe.modalities.items()
        if modality in met
    }
    decides: dict[str, Any] = {
        "version": VERSION,
        "versions": versions(),
        "source": [source.model_dump(mode="json", exclude={"max_bad"}), source.fingerprint()],
        "records": records,
        "as": dict(use.as_),
        "length": batch.length,
        "cut": batch.cut,
        "chat": layouter.chat.model_dump(mode="json"),
        "tokenizer": layouter.tokenizer_digest,
        "branches": branches,
        "limits": recipe.limits.lasting(),
    }
    return cache.key(decides)


def _entry(recipe: Recipe, stage: str, name: str, layouter: Layouter, samples: Sequence[Sample], number: int) -> _Entry:
    batch, use = recipe.stages[stage].batch, recipe.stages[stage].data[name]
    try:
        sample = samples[number]
    except ValueError as error:
        return _Entry(0, 0.0, [Note(f"{name}[{number}]", "bad", str(error))], UNPARSED)
    stamp = _stamp(sample)  # before its media are looked at: what changes meanwhile is seen the next time
    try:
        layout = layouter(sample, use.as_, room=batch.length, cut=batch.cut)
    except BadSample as error:
        return _Entry(0, 0.0, [Note(sample.id, "dropped" if isinstance(error, TooLong) else "bad", str(error))], stamp)
    told = {"shrunk": layout.shrunk, "cut": layout.cut}
    notes = [Note(layout.id, what, reason) for what, reason in told.items() if reason]
    encoders = {modality: recipe.encoders[entry.encoder] for modality, entry in recipe.modalities.items()}
    cost = sum(encoders[place.modality].cost(place.grid) for place in layout.places)
    return _Entry(len(layout.ids), cost, notes, stamp)


def _parts(
    key: str, records: range, entry: Callable[[int], _Entry], threads: int, progress: Callable[[int, int], None]
) -> list[Path]:
    """The index in parts, each in the cache as soon as it is whole; several are made at a time."""
    unwanted = threading.Event()

    def write(path: Path, begin: int) -> None:
        entries = []
        for number in records[begin : begin + PART]:
            if unwanted.is_set():
                raise _Unwanted
            entries.append(entry(number))
        path.write_text(json.dumps(entries), encoding="utf-8")

    def part(begin: int) -> Path:
        return cache.made(f"index-{key}-{begin:09d}.json", lambda path: write(path, begin))

    found = []
    with ThreadPoolExecutor(threads, thread_name_prefix="index") as pool:
        try:
            for path in pool.map(part, records[::PART]):
                found.append(path)
                progress(min(len(found) * PART, len(records)), len(records))
        finally:  # of an error or Ctrl-C: nobody waits for the other parts
            unwanted.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return found


def _entries(parts: Iterable[Path]) -> Iterator[_Entry]:
    for part in parts:
        yield from itertools.starmap(_Entry, json.loads(part.read_text(encoding="utf-8")))


def _write_table(path: Path, parts: Iterable[Path]) -> None:
    rows = np.fromiter(((entry.length, entry.cost, entry.stamp) for entry in _entries(parts)), ROW)
    with path.open("wb") as file:  # np.save would add to a name
        np.save(file, rows)


def _write_notes(path: Path, parts: Iterable[Path]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(note) + "\n" for entry in _entries(parts) for note in entry.notes)
