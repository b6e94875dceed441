"""Rows of Arrow files, memory-mapped: the sources `hf_dataset` and, converted once, `parquet`.

By pyarrow alone. The package `datasets` reads the same files, but brings pandas and second copies of multiprocessing
and of object serialising for what is a memory map. Nothing is lost: a row costs some ten microseconds either way, and
pictures and sounds are stored as `{"bytes", "path"}`, whatever decodes them later.
"""

import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from omnikit import cache
from omnikit.builtin.sources.jsonl import parsed
from omnikit.builtin.sources.paths import digest_of, each, files_of, missing_of
from omnikit.builtin.sources.records import RecordSource, Row
from omnikit.component import Records

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ArrowRows", "HFDataset", "Parquet", "Stream"]

VERSION = 1
BATCH_BYTES = 16 * 2**20
"""What a batch of converted rows should have at most, if their sizes are alike."""
BATCH_ROWS = 1000
END = b"\xff\xff\xff\xff\0\0\0\0"
"""How an Arrow stream ends (the IPC format's end-of-stream marker). One that does not was cut."""


class Parquet(RecordSource):
    """Rows of parquet files: one file, a folder of shards, or a pattern.

    Pictures and sounds may lie in the file, as bytes or as Hugging Face keeps them: `{"bytes", "path"}`. A parquet file
    has no random access, so each is converted once into an Arrow file in the cache, with flat memory: the cache takes
    about as much room as the uncompressed data.
    """

    type: ClassVar[str] = "parquet"

    def missing(self) -> str | None:
        """The first file that is not there, or the path when it means no file."""
        return missing_of(files_of(self.path, ".parquet"), self.path)

    def fingerprint(self) -> str:
        """Of the files' content and names."""
        return digest_of(files_of(self.path, ".parquet"))

    def open(self) -> Records:
        """The rows of all files in order of their names."""
        files = files_of(self.path, ".parquet")
        if not files:
            raise ValueError(f"{self.path}: means no parquet file; give a file, a folder of them, or a pattern")
        streams = each(_converted, files)
        return self.shaped(
            ArrowRows([Stream(made, file, self.folder_of(file)) for made, file in zip(streams, files, strict=True)])
        )

    @classmethod
    def specimen(cls, folder: Path) -> Self:
        """Two shards of LLaVA's records with pictures inside."""
        import pyarrow as pa
        import pyarrow.parquet

        (folder / "data").mkdir()
        for number, rows in enumerate(_specimen_rows(folder)):
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / "data" / f"train-{number}.parquet")
        return cls(path=str(folder / "data"), modalities=("image",))


class HFDataset(RecordSource):
    """A folder that Hugging Face's `Dataset.save_to_disk` wrote: state.json and Arrow files, memory-mapped."""

    type: ClassVar[str] = "hf_dataset"

    def missing(self) -> str | None:
        """The folder's state.json, or the first data file that is not there."""
        folder = Path(self.path)
        if (folder / "dataset_dict.json").is_file():
            return None  # the wrong folder; `open` says which is right
        try:
            return (
                missing_of(self._files(), self.path)
                if (folder / "state.json").is_file()
                else str(folder / "state.json")
            )
        except ValueError:
            return None  # it is there, and broken: `open` says how

    def fingerprint(self) -> str:
        """Of the files' content and names."""
        return digest_of([Path(self.path) / "state.json", *self._files()])

    def open(self) -> Records:
        """The rows of all files in their order."""
        return self.shaped(ArrowRows([Stream(file, file, self.folder_of(file)) for file in self._files()]))

    def _files(self) -> list[Path]:
        folder = Path(self.path)
        splits = folder / "dataset_dict.json"
        if splits.is_file():
            names = _read_json(splits).get("splits")
            raise ValueError(f"{folder}: holds several data sets ({names}); give the folder of one of them")
        path = folder / "state.json"
        state = _read_json(path)
        if state.get("_indices_files") or state.get("_indices_data_files"):
            raise ValueError(f"{path}: is a selection of other rows; call flatten_indices() and save it again")
        files = state.get("_data_files")
        names = [
            file.get("filename") if isinstance(file, dict) else None
            for file in (files if isinstance(files, list) else [])
        ]
        if not names or not all(isinstance(name, str) and _is_beside(name) for name in names):
            raise ValueError(f"{path}: names no data files beside it; save the data set again with save_to_disk")
        return [folder / str(name) for name in names]

    @classmethod
    def specimen(cls, folder: Path) -> Self:
        """Two files of LLaVA's records with pictures inside."""
        import pyarrow as pa

        names = []
        for number, rows in enumerate(_specimen_rows(folder)):
            names.append(f"data-{number:05}-of-00002.arrow")
            table = pa.Table.from_pylist(rows)
            with pa.OSFile(str(folder / names[-1]), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table, max_chunksize=2)
        state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
        (folder / "state.json").write_text(json.dumps(state))
        return cls(path=str(folder), modalities=("image",))


def _specimen_rows(folder: Path) -> list[list[dict[str, Any]]]:
    from omnikit.testing import pictures

    files = [Path(str(medium.source)) for medium in pictures(folder / "pictures")[:4]]
    rows = [
        {
            "id": str(number),
            "image": {"bytes": file.read_bytes(), "path": file.name} if number % 3 else None,
            "conversations": [
                {"from": "human", "value": "<image>\nwhat is it?" if number % 3 else "zwei und zwei?"},
                {"from": "gpt", "value": f"answer {number}, grün"},
            ],
        }
        for number, file in enumerate(files * 2)
    ]
    return [rows[:5], rows[5:]]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = parsed(path.read_bytes(), str(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a folder that save_to_disk wrote") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: is no JSON object; give a folder that save_to_disk wrote")
    return value


def _is_beside(name: str) -> bool:
    return name == Path(name).name and name not in ("", "..") and "\0" not in name


# ----------------------------------------------------------------------------------------------------------------- rows


class Stream(NamedTuple):
    """An Arrow stream file, the file that its rows are named by, and where their paths begin."""

    arrow: Path
    named: Path
    folder: Path


class _Open(NamedTuple):
    stream: Stream
    size: int
    first: int


class ArrowRows:
    """The rows of Arrow streams by index. They are mapped: what is read of a file is the row that is asked for."""

    left_out = ""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._batches: list[tuple[_Open, pa.RecordBatch]] = []
        rows = 0
        for stream in streams:
            batches, size = _batches_of(stream)
            opened = _Open(stream, size, rows)
            self._batches += [(opened, batch) for batch in batches]
            rows += sum(batch.num_rows for batch in batches)
        self._ends = [*accumulate(batch.num_rows for _, batch in self._batches)]
        if not len(self):
            raise ValueError(f"{streams[0].named}: holds no row; give a data set that has some")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def stream(self, index: int) -> Stream:
        """The stream in which a row lies."""
        return self._batches[bisect_right(self._ends, index)][0].stream

    def row(self, index: int) -> Row:
        """The row, without what is null; one that cannot be read is a ValueError naming its file."""
        number = bisect_right(self._ends, index)
        (stream, size, first), batch = self._batches[number]
        where = f"{stream.named}: row {index - first + 1}"
        with _refusing(where):
            if os.stat(stream.arrow).st_size != size:  # to read where a mapped file has shrunk ends the process
                raise ValueError(f"{where}: {stream.arrow} has changed since it was opened; start again")
            one = batch.slice(index - (self._ends[number] - batch.num_rows), 1)
            one.validate(full=True)  # offsets that point elsewhere would be followed
            return Row(_without_nulls(one.to_pylist()[0]), where, stream.folder)


def _without_nulls(value: Any) -> Any:  # noqa: ANN401
    """Structs have every field in every row; a field that is null was not written."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _batches_of(stream: Stream) -> "tuple[list[pa.RecordBatch], int]":
    import pyarrow as pa

    with _refusing(str(stream.named)):
        with stream.arrow.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(END)))
            if file.read() != END:
                raise ValueError(f"{stream.named}: does not end as an Arrow stream does; the file was cut, replace it")
        with pa.ipc.open_stream(pa.memory_map(str(stream.arrow))) as reader:
            return list(reader), size


@contextmanager
def _refusing(where: str) -> Iterator[None]:
    """Whatever pyarrow raises of a broken file is a ValueError of one line that begins with `where`."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{where}: cannot be read ({reason}); replace the file") from error


# -------------------------------------------------------------------------------------------------------------- parquet


def _converted(path: Path) -> Path:
    """The Arrow stream of a parquet file, in the cache."""
    with _refusing(str(path)):
        name = f"parquet-{VERSION}-{cache.digest(path)}.arrow"
    try:
        return cache.made(name, lambda new: _convert(path, new))
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be converted ({error.strerror}); set OMNIKIT_CACHE to a folder that has room for it"
        ) from error


def _convert(path: Path, new: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    with _refusing(str(path)):
        file = pyarrow.parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
    with file, new.open("wb") as out, pa.ipc.new_stream(out, file.schema_arrow) as stream:
        for batch in _batches_in(path, file):
            stream.write_batch(batch)


def _batches_in(path: Path, file: Any) -> "Iterator[pa.RecordBatch]":  # noqa: ANN401  (pyarrow ships no types)
    """The file's rows, few enough at a time that large media do not fill the memory."""
    about = file.metadata
    total = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES * about.num_rows // max(1, total)))
    with _refusing(str(path)):
        yield from file.iter_batches(batch_size=rows, use_threads=False)
