"""A data set on disk: planned, rendered by all processors, and in place only once it is whole."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .plan import Half, plan
from .render import Progress, render
from .speech import NEW_VOICES, SAMPLE_RATE, TRAIN_VOICES, find_espeak
from .words import HELDOUT_PAIRS

GENERATOR = 3
"""Version of what a (seed, size) means; raise it with every change of a record or medium."""


def make_sample_data(out: Path, seed: int = 0, size: int = 3000, progress: Progress | None = None) -> dict[str, int]:
    """Returns how many records each JSONL file has, after making the sample data set in the folder `out`.

    A folder that already holds the same data set is left alone. `size` is the number of training pictures, and of
    further ones of a single figure; all else scales with it. `progress` is called with (what is being made, how many
    are done, how many there will be).
    """
    out = Path(out)
    if size < 1:
        raise ValueError(f"omnikit data sample: size: {size} pictures make no data set; give 1 or more (default 3000)")
    wanted = {"generator": GENERATOR, "seed": seed, "size": size}
    if out.exists():
        return _finished_counts(out, wanted)
    find_espeak()
    halves = plan(seed, size)
    about = wanted | _about(halves)
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.{os.getpid()}.building")
    shutil.rmtree(building, ignore_errors=True)  # of a killed process that had our number
    building.mkdir()
    try:
        for half in halves:
            _write_records(half, building / half.name)
        media = {f"{half.name}/{path}": medium for half in halves for path, medium in half.media.items()}
        render(building, media, progress)
        (building / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        building.rename(out)
    except BaseException:
        shutil.rmtree(building)
        raise
    return about["counts"]


def _finished_counts(out: Path, wanted: dict[str, int]) -> dict[str, int]:
    """Returns how many records each file of the folder has, which must be a finished data set of these arguments."""
    try:
        about = json.loads((out / "about.json").read_text(encoding="utf-8"))
        found = {key: about[key] for key in wanted}
    except (OSError, ValueError, KeyError, TypeError):
        problem = f"{out}: exists and is no finished sample data set; remove it or name another folder"
        raise ValueError(problem) from None
    if found != wanted:
        told = [", ".join(f"{key} {value}" for key, value in what.items()) for what in (found, wanted)]
        raise ValueError(f"{out}: holds sample data of {told[0]}, not of {told[1]}; remove it or name another folder")
    return about["counts"]


def _about(halves: Iterable[Half]) -> dict[str, Any]:
    """Returns what about.json says beyond the arguments."""
    return {
        "counts": {f"{half.name}/{file}.jsonl": len(rows) for half in halves for file, rows in half.records.items()},
        "voices": {"train": TRAIN_VOICES, "new": NEW_VOICES},
        "sample_rate": SAMPLE_RATE,
        "heldout_pairs": HELDOUT_PAIRS,
    }


def _write_records(half: Half, folder: Path) -> None:
    folder.mkdir()
    for file, records in half.records.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{file}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
