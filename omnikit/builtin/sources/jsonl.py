"""The `jsonl` source: one JSON record a line, or a .json file that is a list of records."""

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from omnikit import cache
from omnikit.builtin.sources.lines import Places, places_of
from omnikit.builtin.sources.records import RecordSource, Row, no_number
from omnikit.component import Records

__all__ = ["JsonRows", "Jsonl", "parsed"]

LONGEST = 512 * 2**20
"""Bytes that a record may have: it is read whole, and may hold media as base64."""


class Jsonl(RecordSource):
    """Records as lines of JSON, or as the elements of one list in a .json file; media are paths beside the file.

    Where the records lie is indexed once and kept in the cache. A path of media is relative to the file. In omnikit's
    own records `{"id": ..., "turns": [{"role": "user", "content": [{"image": "a.png"}, {"text": "..."}]}, ...]}` a
    medium may also be `{"path": ..., "start": seconds, "end": seconds}`, `kind` names what a record asks, for reports,
    and `text` alone as content is short for one text part.
    """

    type: ClassVar[str] = "jsonl"

    def missing(self) -> str | None:
        """The file's path when it is not there."""
        return None if Path(self.path).is_file() else self.path

    def fingerprint(self) -> str:
        """The file's sha256. Media are not read for it."""
        return cache.digest(Path(self.path))

    def open(self) -> Records:
        """The records, parsed when asked for."""
        path = Path(self.path)
        return self.shaped(JsonRows(path, self.folder_of(path)))

    @classmethod
    def specimen(cls, folder: Path) -> Self:
        """Records of every shape: text alone, a picture, a part of a sound, a system turn, a blank line between."""
        from omnikit.testing import pictures, sounds

        picture, sound = (Path(str(media[0].source)).name for media in (pictures(folder), sounds(folder)))
        questions: list[Any] = [
            "zwei und zwei?",
            [{"image": picture}, {"text": "what is it?"}],
            [{"text": "listen"}, {"audio": {"path": sound, "start": 0.25, "end": 1.0}}],
        ]
        records: list[dict[str, Any]] = [
            {
                "id": f"specimen-{number}",
                "kind": "odd" if number % 2 else "",
                "turns": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": [{"text": f"answer {number}, grün"}]},
                ][number % 2 :],
            }
            for number, question in enumerate(questions * 2)
        ]
        path = folder / "specimen.jsonl"
        path.write_text("\n\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
        return cls(path=str(path), modalities=("image", "audio"))


class JsonRows:
    """The records of one file by index. Where they lie is on disk; the file is asked each time."""

    left_out = ""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder

    @cached_property
    def _places(self) -> tuple[Places, int]:
        """The places, and the size of the file that they are of."""
        places = places_of(self.path)
        return places, self.path.stat().st_size

    def __len__(self) -> int:
        return len(self._places[0].table)

    def row(self, index: int) -> Row:
        """The record; a line that is no JSON, or a file that has changed since, is a ValueError that names it."""
        places, size = self._places
        number, begin, length = places.table[index].tolist()
        where = f"{self.path}: record {number}" if places.listed else f"{self.path}:{number}"
        if length > LONGEST:
            raise ValueError(f"{where}: has {length:,} bytes, over the limit of {LONGEST:,}; keep media in files")
        try:
            with self.path.open("rb") as file:
                now = os.fstat(file.fileno()).st_size
                file.seek(begin)
                line = file.read(length)
        except OSError as error:
            raise ValueError(f"{where}: cannot be read any more ({error.strerror})") from error
        if now != size:
            raise ValueError(
                f"{where}: the file had {size:,} bytes when it was opened and has {now:,} now; start again"
            )
        return Row(parsed(line, where), where, self.folder)


def parsed(data: bytes, where: str) -> object:
    """The JSON value of UTF-8 bytes; anything else is a ValueError that begins with `where`."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=no_number)
    except UnicodeDecodeError as error:
        reason = f"byte {error.start + 1} is 0x{data[error.start]:02x}, no UTF-8"
        raise ValueError(f"{where}: is no JSON ({reason}); save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # also for too many digits or brackets
        raise ValueError(f"{where}: is no JSON ({error}); write one JSON object a line") from error
