"""The files that a recipe's path means: one file, a folder of them, a pattern with `*`, or numbered ones in braces."""

import glob
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from omnikit import cache

__all__ = ["digest_of", "each", "files_of", "missing_of"]

T = TypeVar("T")

MOST = 100_000
"""Files that a pattern in braces may mean: a slip of the keyboard is not to make a thousand million names."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")


def files_of(path: str, *ends: str) -> list[Path]:
    """The files, in order of their names; of a folder those with one of these ends. None found is an empty list.

    `shards/{0000..0127}.tar` and `{train,more}.tar` name files that must be there; `shards/*.tar` and
    `shards/**/*.tar` those that are. More than 100,000 names in braces are a ValueError.
    """
    if Path(path).is_dir():
        return sorted(file for file in Path(path).iterdir() if file.name.endswith(ends) and file.is_file())
    if Path(path).exists():
        return [Path(path)]
    names: list[str] = []
    for name in _expanded(path):
        if len(names) == MOST:
            raise ValueError(f"{path}: means more than {MOST:,} files; write fewer")
        names.append(name)
    if any(letter in path for letter in "*?["):
        return [Path(file) for name in names for file in sorted(glob.glob(name, recursive=True))]
    return [Path(name) for name in names]


def missing_of(files: Sequence[Path], path: str) -> str | None:
    """The first of the path's files that is not there, or the path itself where it means none."""
    return next((str(file) for file in files if not file.is_file()), None) if files else path


def _expanded(path: str) -> Iterator[str]:
    found = _BRACES.search(path)
    if not found:
        yield path
        return
    numbers = _NUMBERS.fullmatch(found[1])
    choices: Iterable[str] = found[1].split(",")
    if numbers:
        first, last, width = int(numbers[1]), int(numbers[2]), len(numbers[1])
        choices = (str(number).zfill(width) for number in range(first, last + 1))
    elif "," not in found[1]:
        choices = [found[0].replace("{", "\0").replace("}", "\1")]  # no pattern: braces of a name
    for choice in choices:
        for name in _expanded(f"{path[: found.start()]}{choice}{path[found.end() :]}"):
            yield name.replace("\0", "{").replace("\1", "}")


def each(function: Callable[[Path], T], files: Sequence[Path]) -> list[T]:
    """What the function says of every file, a few at a time: reading and hashing leave Python's lock alone."""
    if len(files) == 1:
        return [function(files[0])]
    with ThreadPoolExecutor(4, thread_name_prefix="shards") as pool:
        return list(pool.map(function, files))


def digest_of(files: Sequence[Path]) -> str:
    """Changes when one of the files does, or its name, or their order."""
    found = hashlib.sha256()
    for file, digest in zip(files, each(cache.digest, files), strict=True):
        found.update(f"{file.name}\0{digest}\n".encode())
    return found.hexdigest()
