"""The `folder` source: media in a plain folder, with their captions beside them or in a table."""

import csv
import hashlib
import io
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from omnikit import cache
from omnikit.builtin.sources.jsonl import JsonRows
from omnikit.builtin.sources.records import RecordSource, Row, Rows
from omnikit.component import Records
from omnikit.media.kinds import kind_of

__all__ = ["Captioned", "Folder"]

TABLES = ("metadata.jsonl", "metadata.csv")
LARGEST_TABLE = 256 * 2**20
"""Bytes of a metadata.csv, which is read whole. A metadata.jsonl is indexed, and may have any size."""
LONGEST = 2**20
"""Bytes of a caption."""


class Folder(RecordSource):
    """Media files in a folder or below it, each with a caption: `a.png` and `a.txt`, or a table beside them.

    The table is metadata.jsonl or metadata.csv with a column `file_name` (or `file_names`), as Hugging Face's
    ImageFolder and AudioFolder have it, and any of the columns by which records tell their shape: `text` or `caption`,
    `question` and `answer`, `conversations`. Without a table, media of one stem (`a.png`, `a.wav`) make one sample, and
    those without a .txt are left out; `described()` says how many. Links to folders are not followed.
    """

    type: ClassVar[str] = "folder"

    def missing(self) -> str | None:
        """The folder when it is not there, or holds neither a table nor a medium with a caption."""
        if self._table() or (Path(self.path).is_dir() and next(_captioned(Path(self.path)), None)):
            return None
        return self.path

    def fingerprint(self) -> str:
        """Of the captions' content and the media's names and sizes; of a table its content alone."""
        table = self._table()
        if table:
            return cache.digest(table)
        found = hashlib.sha256()
        for stem, media, _ in _captioned(Path(self.path)):
            for name in media:
                found.update(f"{name}\0{(Path(self.path) / name).stat().st_size}\n".encode())
            found.update(Path(self.path, f"{stem}.txt").read_bytes() + b"\0")
        return found.hexdigest()

    def open(self) -> Records:
        """The rows of the table, or the media with captions, in order of their names."""
        table = self._table()
        if table:
            rows: Rows = JsonRows(table, table.parent) if table.suffix == ".jsonl" else _CsvRows(table)
            return self.shaped(_NamingFiles(rows, self.folder_of(table)))
        return self.shaped(Captioned(Path(self.path)))

    def _table(self) -> Path | None:
        return next((path for name in TABLES if (path := Path(self.path) / name).is_file()), None)

    @classmethod
    def specimen(cls, folder: Path) -> Self:
        """Pictures and sounds with a caption each, some below a folder, and one that has none."""
        from omnikit.testing import pictures, sounds

        media = [Path(str(one.source)) for one in [*pictures(folder)[:4], *sounds(folder / "sounds")[:2]]]
        for number, file in enumerate(media[1:]):
            file.with_suffix(".txt").write_text(f"caption {number}, grün\n", encoding="utf-8")
        return cls(path=str(folder), modalities=("image", "audio"), prompt="What is it?")


class _Stem(NamedTuple):
    """Media that share a name but for its ending, by their paths below the folder."""

    path: str
    media: tuple[str, ...]
    captioned: bool


class Captioned:
    """Media and the captions beside them. Their names are held in memory; what they hold is read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.left_out = folder, ""

    @cached_property
    def _found(self) -> list[_Stem]:
        stems = list(_stems(self.folder))
        found = [stem for stem in stems if stem.captioned]
        alone = sum(len(stem.media) for stem in stems if not stem.captioned)
        self.left_out = f"{alone:,} media without a caption left out" if alone else ""
        if not found:
            raise ValueError(
                f"{self.folder}: holds no medium with a caption; write a.txt beside a.png, or {' or '.join(TABLES)}"
            )
        return found

    def __len__(self) -> int:
        return len(self._found)

    def row(self, index: int) -> Row:
        """The media of one stem and their caption; a caption that is no text is a ValueError."""
        stem, media, _ = self._found[index]
        path = self.folder / f"{stem}.txt"
        try:
            with path.open("rb") as file:
                caption = file.read(LONGEST + 1)
            if len(caption) > LONGEST:
                raise ValueError(f"{path}: has more than {LONGEST:,} bytes; write a caption")
            text = caption.decode("utf-8-sig").strip()
        except OSError as error:
            raise ValueError(f"{path}: cannot be read any more ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: is no UTF-8 (byte {error.start + 1}); save it as UTF-8") from error
        record: dict[str, Any] = {"id": stem, "caption": text}
        for name in media:
            record.setdefault(str(kind_of(name)), []).append(name)
        return Row(record, str(path), self.folder)


def _captioned(folder: Path) -> Iterator[_Stem]:
    return (stem for stem in _stems(folder) if stem.captioned)


def _stems(folder: Path) -> Iterator[_Stem]:
    """The media of the folder and below, in order of names."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        media: dict[str, list[str]] = {}
        for name in sorted(files):
            if kind_of(name) and not name.startswith("."):
                media.setdefault(name.rpartition(".")[0], []).append(name)
        below = Path(parent).relative_to(folder)
        captions = {name[:-4] for name in files if name.endswith(".txt")}
        for stem, names in media.items():
            paths = tuple((below / name).as_posix() for name in names)
            yield _Stem((below / stem).as_posix(), paths, stem in captions)


# --------------------------------------------------------------------------------------------------------------- tables


class _NamingFiles:
    """Rows of a table whose column `file_name` names a medium, which is known by its ending."""

    def __init__(self, rows: Rows, folder: Path) -> None:
        self.rows, self.folder, self.left_out = rows, folder, rows.left_out

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        """The row with its files under their modalities."""
        record, where, _ = self.rows.row(index)
        if not isinstance(record, dict) or not ("file_name" in record or "file_names" in record):
            raise ValueError(f"{where}: has no file_name; name the medium that the row is of")
        rest = {key: value for key, value in record.items() if key not in ("file_name", "file_names")}
        told = record.get("file_names", record.get("file_name"))
        names = told if isinstance(told, list) else [told]
        media: dict[str, list[str]] = {}
        for name in names:
            kind = kind_of(name) if isinstance(name, str) else None
            if kind is None:
                raise ValueError(f"{where}: file_name {name!r:.60} tells of no modality by its ending")
            media.setdefault(kind, []).append(name)
        if not media:
            raise ValueError(f"{where}: file_names is empty; name the media that the row is of")
        if twice := sorted(rest.keys() & media.keys()):
            raise ValueError(
                f"{where}: has {twice[0]!r} beside file_name, which names the {twice[0]}; remove one of them"
            )
        return Row({"id": str(names[0])} | rest | media, where, self.folder)


class _CsvRows:
    """The rows of a CSV file with a line of names."""

    left_out = ""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _rows(self) -> list[tuple[int, dict[str, str]]]:
        try:
            if self.path.stat().st_size > LARGEST_TABLE:
                raise ValueError(f"{self.path}: has over {LARGEST_TABLE:,} bytes; write it as metadata.jsonl")
            text = self.path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: is no UTF-8 (byte {error.start + 1}); save it as UTF-8") from error
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            found = [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise ValueError(f"{self.path}:{reader.line_num}: is no CSV ({error}); mend the line") from error
        if not found:
            raise ValueError(f"{self.path}: holds no row; write one for each medium")
        return found

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        """The row's columns that are filled in."""
        line, row = self._rows[index]
        where = f"{self.path}:{line}"
        if None in row or None in row.values():
            raise ValueError(f"{where}: has not as many columns as the first line; mend it")
        return Row({key: value for key, value in row.items() if value}, where, self.path.parent)
