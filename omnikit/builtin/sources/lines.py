"""Where the records of a JSON file lie: one a line, or the elements of one list, as LLaVA keeps its own data.

The file is read once in pieces and the places are kept on disk, so that neither its size nor the number of its records
is felt in memory: 24 bytes a record, mapped, and no record parsed. A list is cut by counting brackets outside of
strings (the vectorised scan of simdjson's first stage, arXiv 1902.08318, section 3.1, here by numpy).
"""

from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from omnikit import cache

if TYPE_CHECKING:
    import numpy as np

    Found = tuple[np.ndarray, np.ndarray, np.ndarray]

__all__ = ["Places", "places_of"]

VERSION = 1
PIECE = 2**18
BOM = b"\xef\xbb\xbf"
WHITE = b" \t\r\n"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Places(NamedTuple):
    """Uint64 (records, 3): number (of the line or the element, from 1), first byte and length of each record."""

    table: "np.ndarray"
    listed: bool


def places_of(path: Path) -> Places:
    """Where the records of a file lie.

    A file whose name ends in .json and that begins with a bracket is a list; every other has a record a line. A file
    that cannot be read, is not UTF-8 or holds no record is a ValueError.
    """
    import numpy as np

    try:
        with path.open("rb") as file:
            head = file.read(4096)
        if head.startswith(_UTF16) or b"\0" in head[:4]:
            raise ValueError(f"{path}: is UTF-16 or UTF-32; save it as UTF-8")
        listed = path.suffix == ".json" and head.removeprefix(BOM).lstrip(WHITE)[:1] == b"["
        name = f"{'list' if listed else 'lines'}-{VERSION}-{cache.digest(path)}.npy"
        write = partial(_write, path, listed)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a JSONL file") from error
    places: np.ndarray
    try:
        places = np.load(cache.made(name, lambda new: _to_file(new, write)), mmap_mode="r")
    except (OSError, EOFError, ValueError) as error:
        if isinstance(error, _Wrong):
            raise
        # Nowhere to write, or the entry has been damaged. No reason to stop: 24 bytes a record fit into memory.
        held = BytesIO()
        write(held)
        held.seek(0)
        places = np.load(held)
    if not len(places):
        raise ValueError(f"{path}: holds no record; write one JSON object a line")
    return Places(places, listed)


class _Wrong(ValueError):
    """What is wrong with the data file, not with the cache."""


def _to_file(path: Path, write: "partial[None]") -> None:
    with path.open("wb") as file:
        write(file)


def _write(path: Path, listed: bool, out: IO[bytes]) -> None:
    """The places as an .npy file. Its header, which tells their number, is written anew at the end."""
    import numpy as np

    def header(count: int) -> None:
        shape = {"descr": "<u8", "fortran_order": False, "shape": (count, 3)}
        np.lib.format.write_array_header_1_0(out, shape)  # numpy pads it, for a count that grows

    header(0)
    begin, count = out.tell(), 0
    for found in _elements(path) if listed else _lines(path):
        rows = np.stack([column.astype("<u8") for column in found], axis=1)
        out.write(rows.tobytes())
        count += len(rows)
    out.seek(0)
    header(count)
    if out.tell() != begin:
        raise OSError("numpy wrote a header of another length")


def _pieces(path: Path) -> "Iterator[tuple[int, np.ndarray]]":
    """(first byte, uint8 bytes) of each piece of the file, a byte-order mark left out."""
    import numpy as np

    try:
        with path.open("rb") as file:
            at = len(BOM) if file.read(len(BOM)) == BOM else 0
            file.seek(at)
            while piece := file.read(PIECE):
                yield at, np.frombuffer(piece, np.uint8)
                at += len(piece)
    except OSError as error:
        raise _Wrong(f"{path}: cannot be read ({error.strerror}); replace the file") from error


def _lines(path: Path) -> "Iterator[Found]":
    """(numbers, begins, lengths) of the lines that are not blank, piece by piece."""
    import numpy as np

    white = np.zeros(256, bool)
    white[list(WHITE)] = True
    number, begin, written = (
        1,
        None,
        0,
    )  # of the line that is open: its number, first byte, and bytes that are not white
    end = 0
    for at, piece in _pieces(path):
        if begin is None:
            begin = at
        breaks = np.flatnonzero(piece == 10)
        inked = np.concatenate([[0], np.cumsum(~white[piece])])  # up to each byte
        ends = at + breaks
        begins = np.concatenate([[begin], ends[:-1] + 1]) if len(ends) else ends
        ink = np.diff(np.concatenate([[-written], inked[breaks]])) if len(breaks) else breaks
        keep = ink > 0
        numbers = number + np.arange(len(breaks))
        yield numbers[keep], begins[keep], (ends - begins)[keep]
        end = at + len(piece)
        if len(breaks):
            number, begin, written = number + len(breaks), int(ends[-1]) + 1, int(inked[-1] - inked[breaks[-1]])
        else:
            written += int(inked[-1])
    if begin is not None and written:
        yield np.array([number]), np.array([begin]), np.array([end - begin])


def _elements(path: Path) -> "Iterator[Found]":
    """(numbers, begins, lengths) of the elements of a list, piece by piece: they are objects, or lists."""
    import numpy as np

    step = np.zeros(256, np.int8)
    step[list(b"[{")], step[list(b"]}")] = 1, -1
    depth, inside, slashes = 0, 0, 0  # at a piece's beginning: brackets open, in a string, backslashes just before
    count, commas, begin = 0, 0, -1  # begin: the first byte of the element that is open, or -1
    for at, piece in _pieces(path):
        quotes = np.flatnonzero(piece == 34)
        quotes = quotes[~_escaped(piece, quotes, slashes)]
        brackets = np.flatnonzero(step[piece])
        brackets = brackets[(np.searchsorted(quotes, brackets) + inside) % 2 == 0]
        steps = step[piece[brackets]]
        depths = depth + np.cumsum(steps, dtype=np.int64)
        if len(depths) and depths.min() < 0:
            raise _Wrong(f"{path}: has more closing brackets than opening ones; write one JSON list")
        opened = brackets[(steps == 1) & (depths == 2)]
        closed = brackets[(steps == -1) & (depths == 1)] + 1

        # What lies between the elements must be commas: anything else would be left out without a word.
        change = np.zeros(len(piece) + 1, np.int8)
        change[opened], change[closed] = 1, -1  # two elements that touch: -1 and 1 at one place, found by the commas
        between = piece[np.cumsum(change[:-1], dtype=np.int64) + (begin >= 0) <= 0].tobytes()
        if rest := between.translate(None, WHITE + b",[]"):
            raise _Wrong(f"{path}: holds {rest[:20]!r} between records {count} and later; a list holds records only")
        commas += between.count(b",")

        begins, ends = at + opened, at + closed
        if begin >= 0:
            begins = np.concatenate([[begin], begins])
        yield count + 1 + np.arange(len(ends)), begins[: len(ends)], ends - begins[: len(ends)]
        begin = int(begins[-1]) if len(begins) > len(ends) else -1
        count += len(ends)
        depth = int(depths[-1]) if len(depths) else depth
        inside = (inside + len(quotes)) % 2
        slashes = _ending(piece, slashes)
    if depth or inside:
        raise _Wrong(f"{path}: ends within record {count + 1} of its list; the file was cut, replace it")
    if commas != max(0, count - 1):
        raise _Wrong(f"{path}: has {commas} commas between {count} records; write one JSON list")


def _escaped(piece: "np.ndarray", quotes: "np.ndarray", slashes: int) -> "np.ndarray":
    """Bool (quotes,): whether an odd number of backslashes stands right before, of which `slashes` before the piece."""
    import numpy as np

    backs = np.flatnonzero(piece == 92)
    runs = np.zeros(len(quotes), np.int64)
    if len(quotes) and quotes[0] == 0:
        runs[0] = slashes
    if len(backs):
        first = np.concatenate([[True], np.diff(backs) != 1])
        start = np.maximum.accumulate(np.where(first, np.arange(len(backs)), 0))  # where the run of each begins
        last = np.searchsorted(backs, quotes) - 1  # the last backslash before each quote
        near = (last >= 0) & (backs[last] == quotes - 1)
        begin = start[last[near]]
        runs[near] = last[near] - begin + 1 + np.where(backs[begin] == 0, slashes, 0)
    odd: np.ndarray = runs % 2 == 1
    return odd


def _ending(piece: "np.ndarray", slashes: int) -> int:
    """Backslashes at the end of what was read so far; only their parity counts."""
    import numpy as np

    others = np.flatnonzero(piece[-4096:] != 92)
    if len(others):
        return int(len(piece[-4096:]) - 1 - others[-1]) % 2
    others = np.flatnonzero(piece != 92)
    return int(len(piece) - 1 - others[-1]) % 2 if len(others) else (slashes + len(piece)) % 2
