"""What is made once of a data set and used by every later run: a folder of files named by what they were made of.

The folder is `OMNIKIT_CACHE`, else `XDG_CACHE_HOME/omnikit`, else `~/.cache/omnikit`. Whatever is in it can be deleted
at any time between runs: it is made again. An entry is written under another name, forced to disk, then renamed, so a
process that is killed leaves nothing that is taken for whole, and of several processes that want the same entry one
makes it while the others wait.
"""

import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

__all__ = ["digest", "folder", "key", "made", "sync"]

RACY = 2.0
"""Seconds that a file must have been left alone before its digest is remembered. Clocks of file systems are coarse: a
second change of the same size right after the first may leave the same time stamp (as in git's index)."""

_choosing = threading.Lock()
_own: "tempfile.TemporaryDirectory[str] | None" = None


def folder() -> Path:
    """Where entries lie. It is not made by asking."""
    given = os.environ.get("OMNIKIT_CACHE")
    if given:
        return Path(given).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "omnikit"
    except RuntimeError as error:  # a user without a home
        raise OSError(str(error)) from error


def made(name: str, make: Callable[[Path], None]) -> Path:
    """The path of the entry of this name; where there is none, `make(path)` writes it first.

    A cache folder in which nothing can be written (read-only, full) fails no run: the entry is then made in a folder
    that ends with this process. Where that cannot be written either, it is an OSError. What `make` itself finds wrong
    with its data it should raise as another kind of error.
    """
    try:
        return _made(folder(), name, make)
    except OSError:
        with suppress(OSError):
            if (path := folder() / name).exists():  # where files cannot be locked: another process was faster
                return path
        return _made(_temporary(), name, make)


def key(decides: Mapping[str, Any]) -> str:
    """40 hex digits that change with anything that decides what an entry holds: plain data, and configs.

    A config counts by its class and its fields but for `weights`: that is a name, and what counts is what it names.
    """

    def plain(config: BaseModel) -> list[Any]:
        return [type(config).__qualname__, config.model_dump(mode="json", exclude={"weights"})]

    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=plain).encode()).hexdigest()[:40]


def digest(path: Path) -> str:
    """The sha256 of a file's content, in hex. It is remembered by the file's path, size and times.

    A file that cannot be read is an OSError.
    """
    path = path.absolute()
    memo = _memo(path)
    with suppress(OSError, ValueError):
        known = (folder() / memo).read_text(encoding="ascii")
        if len(known) == 64:
            return known
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    status = path.stat()
    settled = time.time() - max(status.st_mtime, status.st_ctime) > RACY
    if settled and memo == _memo(path):
        with suppress(OSError):  # to forget it costs time alone
            _made(folder(), memo, lambda new: _write(new, found))
    return found


def _memo(path: Path) -> str:
    status = path.stat()
    seen = (str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return f"digest-{hashlib.sha256(repr(seen).encode()).hexdigest()[:40]}"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="ascii")


def _temporary() -> Path:
    global _own
    with _choosing:
        if _own is None:
            _own = tempfile.TemporaryDirectory(prefix="omnikit-cache-")  # removed when the process ends
    return Path(_own.name)


def _made(within: Path, name: str, make: Callable[[Path], None]) -> Path:
    path = within / name
    if path.exists():
        return path
    within.mkdir(parents=True, exist_ok=True)
    with _alone(within, name) as writing:
        if not path.exists():  # or another process made it while this one waited
            make(writing)
            sync(writing)
            os.replace(writing, path)
    with suppress(OSError):  # not every system can sync a folder
        sync(within)
    return path


@contextmanager
def _alone(within: Path, name: str) -> Iterator[Path]:
    """A file that no other process writes to meanwhile; what is left of it at the end is removed.

    All write to one name, each once it holds the lock on a file beside it: whoever writes may exchange his file for
    another, as safetensors does, and a lock on that would be gone. A lock ends with its process, so what a killed one
    left is simply written over. Where files cannot be locked, each process has a name of its own.
    """
    lock, writing = within / f"{name}.lock", within / f"{name}.part"
    file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _lock(file):
            writing = within / f"{name}.{os.getpid()}.part"
        elif not _is(file, lock):  # who held the lock has removed what was locked here
            os.close(file)
            file = -1
            with _alone(within, name) as writing:
                yield writing
            return
        try:
            yield writing
        finally:
            writing.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
    finally:
        if file >= 0:
            os.close(file)


def _lock(file: int) -> bool:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError):  # Windows; some network file systems
        return False
    return True


def _is(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


def sync(path: Path) -> None:
    """Force a file or a folder to disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
