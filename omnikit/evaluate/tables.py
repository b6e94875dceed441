"""Rows of the tables in which benchmarks are published, from a local folder or the Hugging Face hub.

Tables that may hold media (parquet, TSV with base64) are converted once into Arrow files in the cache and mapped, so
that a row's bytes are read when it is asked for; question lists in JSON are a few megabytes and are read whole.
"""

import csv
import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from omnikit import cache

if TYPE_CHECKING:
    import pyarrow as pa

    from omnikit.evaluate.definition import Definition, Files

__all__ = ["Table", "files_of", "located", "opened"]

VERSION = 1
BATCH_BYTES = 16 * 2**20
MOST_JSON = 512 * 2**20
"""Bytes of a JSON table, which is read whole."""


class Table(Protocol):
    """Rows by index, and where each stands, in words."""

    def __len__(self) -> int: ...
    def row(self, index: int) -> dict[str, Any]: ...
    def values(self, column: str) -> list[Any]: ...
    def where(self, index: int) -> str: ...


# ------------------------------------------------------------------------------------------------------ where they are


def files_of(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files that the patterns mean, each pattern's in order of their names; none for one is an empty list."""
    found: list[Path] = []
    for pattern in patterns:
        matched = sorted(path for path in folder.glob(pattern) if path.is_file())
        if not matched:
            return []
        found += matched
    return found


def located(name: str, about: "Definition", folder: Path | None) -> Path:
    """The folder of the data; a ValueError says what to fetch and where it was looked for."""
    data = about.data
    tables = [data, *data.join, *([about.shots] if about.shots else [])]
    give = f"--data {name}=FOLDER"
    if folder is None:
        if not data.hub or data.by_hand:
            raise ValueError(f"{name}: give its folder by {give}; {about.fetch.strip()}")
        folder = _from_hub(name, about, [pattern for table in tables for pattern in table.files])
    elif not folder.is_dir():
        raise ValueError(f"{name}: there is no folder {folder}; {about.fetch.strip()}")
    for table in tables:
        for pattern in table.files:
            if not files_of(folder, [pattern]):
                raise ValueError(f"{name}: no file {pattern} in {folder}; {about.fetch.strip()}")
    return folder


def _from_hub(name: str, about: "Definition", patterns: list[str]) -> Path:
    from huggingface_hub import constants, snapshot_download

    hub, revision = about.data.hub, about.data.revision or None
    try:
        return Path(snapshot_download(hub, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except Exception as error:  # also its client's own, where a line breaks half-way
        raise ValueError(
            f"{name}: its data is not here: the hub's data set {hub} is neither in the cache nor to be reached "
            f"(looked in {constants.HF_HUB_CACHE}; {type(error).__name__}); {about.fetch.strip()} "
            f"(or --data {name}=FOLDER)"
        ) from error


# --------------------------------------------------------------------------------------------------------------- tables


def opened(files: Sequence[Path], about: "Files", folder: Path) -> Table:
    """The rows of these files, in order. Each also has _file (the file's name without its ending), _folder (the last
    one that it lies in) and _row (its number in the file, from 1)."""
    if about.layout in ("parquet", "csv", "tsv"):
        return _Mapped([(file, _converted(file, about)) for file in files])
    if about.layout == "lines":
        return _Held(_of_lines(files, about))
    read = _of_json if about.layout == "json" else _of_jsonl
    return _Held([(file, row) for file in files for row in read(file, about)])


class _Held:
    """Rows in memory."""

    def __init__(self, rows: list[tuple[Path, dict[str, Any]]]) -> None:
        self._rows: list[tuple[Path, dict[str, Any]]] = []
        number, last = 0, None
        for file, row in rows:
            number, last = (number + 1 if file == last else 1), file
            self._rows.append((file, {**row, **_place(file, number)}))

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> dict[str, Any]:
        return self._rows[index][1]

    def values(self, column: str) -> list[Any]:
        return [row.get(column) for _, row in self._rows]

    def where(self, index: int) -> str:
        file, row = self._rows[index]
        return f"{file}: row {row['_row']}"


def _place(file: Path, number: int) -> dict[str, Any]:
    return {"_file": file.stem, "_folder": file.parent.name, "_row": number}


class _Mapped:
    """Rows of Arrow files, mapped."""

    def __init__(self, files: list[tuple[Path, Path]]) -> None:
        import pyarrow as pa

        self._batches: list[tuple[Path, int, pa.RecordBatch]] = []
        for named, arrow in files:
            number = 1
            with refusing(str(named)), pa.ipc.open_stream(pa.memory_map(str(arrow))) as reader:
                for batch in reader:
                    self._batches.append((named, number, batch))
                    number += batch.num_rows
        self._ends = [*accumulate(batch.num_rows for *_, batch in self._batches)]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _found(self, index: int) -> "tuple[Path, int, pa.RecordBatch, int]":
        at = bisect_right(self._ends, index)
        file, first, batch = self._batches[at]
        inside = index - (self._ends[at] - batch.num_rows)
        return file, first + inside, batch, inside

    def row(self, index: int) -> dict[str, Any]:
        file, number, batch, inside = self._found(index)
        return {**batch.slice(inside, 1).to_pylist()[0], **_place(file, number)}

    def values(self, column: str) -> list[Any]:
        found: list[Any] = []
        for file, first, batch in self._batches:
            if column in _place(file, 0):
                found += [_place(file, first + number)[column] for number in range(batch.num_rows)]
            elif column in batch.schema.names:
                found += batch.column(column).to_pylist()
            else:
                found += [None] * batch.num_rows
        return found

    def where(self, index: int) -> str:
        file, number, *_ = self._found(index)
        return f"{file}: row {number}"


@contextmanager
def refusing(where: str) -> Iterator[None]:
    """Whatever a library raises of a broken file is a ValueError of one line that begins with `where`."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError, csv.Error, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{where}: cannot be read ({reason}); fetch it again") from error


# ----------------------------------------------------------------------------------------------------------- conversion


def _converted(file: Path, about: "Files") -> Path:
    """The table as an Arrow stream in the cache."""
    with refusing(str(file)):
        options = hashlib.sha256(repr((about.header, about.quoted)).encode()).hexdigest()[:8]
        name = f"benchmark-{VERSION}-{about.layout}-{options}-{cache.digest(file)}.arrow"
    try:
        return cache.made(name, lambda new: _convert(file, about, new))
    except OSError as error:
        raise ValueError(
            f"{file}: cannot be converted ({error.strerror}); set OMNIKIT_CACHE to a folder that has room for it"
        ) from error


def _convert(file: Path, about: "Files", new: Path) -> None:
    import pyarrow as pa

    batches = _parquet_batches(file) if about.layout == "parquet" else _text_batches(file, about)
    schema = next(batches)
    with new.open("wb") as out, pa.ipc.new_stream(out, schema) as stream:
        for batch in batches:
            stream.write_batch(batch)


def _parquet_batches(file: Path) -> Iterator[Any]:
    """The schema, then the rows, few enough at a time that media do not fill the memory."""
    import pyarrow.parquet

    with refusing(str(file)):
        table = pyarrow.parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
        with table:
            yield table.schema_arrow
            about = table.metadata
            total = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
            rows = max(1, min(1000, BATCH_BYTES * about.num_rows // max(1, total)))
            yield from table.iter_batches(batch_size=rows, use_threads=False)


def _text_batches(file: Path, about: "Files") -> Iterator[Any]:
    """The schema, then the rows, of a csv or tsv: every value a text, an empty one null."""
    import pyarrow as pa

    usual = csv.field_size_limit(2**31 - 1)  # pictures stand in fields as base64
    delimiter = "\t" if about.layout == "tsv" else ","
    try:
        with refusing(str(file)), file.open(encoding="utf-8-sig", newline="") as lines:
            if about.quoted:
                reader = csv.reader(lines, delimiter=delimiter)
            else:
                reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, escapechar="\\")
            header = about.header or next(reader, [])
            if len(set(header)) != len(header) or not header:
                raise ValueError(f"{file}: has no header of distinct columns; is it the published file?")
            schema = pa.schema([(column, pa.large_string()) for column in header])
            yield schema
            rows: list[list[str]] = []
            size = 0
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise ValueError(f"{file}:{reader.line_num}: has {len(row)} fields; the header has {len(header)}")
                rows.append(row)
                size += sum(map(len, row))
                if size > BATCH_BYTES:
                    yield _batch(rows, schema)
                    rows, size = [], 0
            if rows:
                yield _batch(rows, schema)
    finally:
        csv.field_size_limit(usual)


def _batch(rows: list[list[str]], schema: "pa.Schema") -> "pa.RecordBatch":
    import pyarrow as pa

    columns = [pa.array([value or None for value in column], pa.large_string()) for column in zip(*rows, strict=True)]
    return pa.record_batch(columns, schema=schema)


# ----------------------------------------------------------------------------------------------------------------- JSON


def _parsed(file: Path, text: str, where: str) -> Any:  # noqa: ANN401
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: is no JSON ({error}); fetch it again") from error


def _text(file: Path) -> str:
    with refusing(str(file)):
        if os.path.getsize(file) > MOST_JSON:
            raise ValueError(f"{file}: is larger than {MOST_JSON:,} bytes; a table of questions is not")
        return file.read_text(encoding="utf-8-sig")


def _of_json(file: Path, about: "Files") -> list[dict[str, Any]]:
    value = _parsed(file, _text(file), str(file))
    if about.within:
        value = value.get(about.within) if isinstance(value, dict) else None
    if isinstance(value, dict):  # an object of objects: the key is a column
        value = [{"_key": key, **one} if isinstance(one, dict) else one for key, one in value.items()]
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        where = f" under {about.within!r}" if about.within else ""
        raise ValueError(f"{file}: holds no list of objects{where}; is it the published file?")
    return value


def _of_jsonl(file: Path, about: "Files") -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_text(file).split("\n"), 1):
        if line.strip():
            rows.append(_parsed(file, line, f"{file}:{number}"))
            if not isinstance(rows[-1], dict):
                raise ValueError(f"{file}:{number}: is no JSON object; is it the published file?")
    return rows


def _of_lines(files: Sequence[Path], about: "Files") -> list[tuple[Path, dict[str, Any]]]:
    """Lines of parts between blanks, as Kaldi writes them; the last part keeps its blanks."""
    header = about.header or ["key", "value"]
    rows = []
    for file in files:
        for number, line in enumerate(_text(file).splitlines(), 1):
            parts = line.split(maxsplit=len(header) - 1)
            if parts and len(parts) != len(header):
                raise ValueError(f"{file}:{number}: has {len(parts)} parts; {' and '.join(header)} are needed")
            if parts:
                rows.append((file, dict(zip(header, parts, strict=True))))
    return rows
