"""The `webdataset` source: tar shards in which the files of a sample share their name up to the first dot.

The format is WebDataset's, read by an index instead of a stream, so that any sample can be asked for. Shards come from
strangers. Nothing is extracted and nothing unpickled: only media, .json and .txt are ever read, and what `columns`
names. A shard that is broken or cut is an error; a sample with a member that no shard should hold is a bad sample.
"""

import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import model_validator

from omnikit import cache
from omnikit.builtin.sources.arrow import ArrowRows, Stream
from omnikit.builtin.sources.jsonl import parsed
from omnikit.builtin.sources.paths import digest_of, each, files_of, missing_of
from omnikit.builtin.sources.records import RecordSource, Row
from omnikit.builtin.sources.tar import TarMember, members_of
from omnikit.component import PICKLES, Medium, Member, Records
from omnikit.media.kinds import KINDS, kind_of

__all__ = ["TarRows", "WebDataset"]

VERSION = 1
LONGEST = 64 * 2**20
"""Bytes of a text or a JSON in a shard."""
TEXTS = ("txt", "text", "caption", "transcript")
_PICKLES = (*PICKLES, ".pickle", ".pyd", ".npy", ".npz")
_SAID = ("id", "kind", "role", "from", "type", "text", "value", "content", "caption", "question", "answer", "system")
"""Keys of a .json under which a text is a text, even if it reads like a member's name."""


class WebDataset(RecordSource):
    """Tar shards: one, a folder of them, or a pattern such as `shards/{0000..0127}.tar` or `shards/*.tar`.

    The files of a sample share their folder and their name up to the first dot. Media become the sample's media, in
    the shard's order; a .txt is the caption; what a .json holds is the record, whatever its shape, and where it names a
    file of the same sample, that file is meant. `columns` names other parts by what follows the first dot, as in
    `{image: left.png, caption: alt.txt}`.
    """

    type: ClassVar[str] = "webdataset"

    @model_validator(mode="after")
    def _names_no_pickle(self) -> Self:
        for ours, part in self.columns.items():
            if f".{part}".endswith(_PICKLES):
                raise ValueError(
                    f"columns: {ours}: {part!r} may hold a pickle, which is never loaded; name another part"
                )
        return self

    def missing(self) -> str | None:
        """The first shard that is not there, or the path when it means no file."""
        return missing_of(files_of(self.path, ".tar"), self.path)

    def fingerprint(self) -> str:
        """Of the shards' content and names."""
        return digest_of(files_of(self.path, ".tar"))

    def open(self) -> Records:
        """The samples of all shards, in order of their names."""
        shards = files_of(self.path, ".tar")
        if not shards:
            raise ValueError(f"{self.path}: means no tar file; give a shard, a folder of them, or a pattern")
        indexes = each(_index, shards)
        streams = [Stream(made, shard, self.folder_of(shard)) for made, shard in zip(indexes, shards, strict=True)]
        return self.shaped(TarRows(streams, frozenset(self.columns.values())))

    @classmethod
    def specimen(cls, folder: Path) -> Self:
        """Two shards: pictures and sounds with captions, one of them with a .json beside."""
        from omnikit.testing import pictures, sounds

        media = [
            Path(str(medium.source)) for medium in [*pictures(folder / "media")[:4], *sounds(folder / "media")[:2]]
        ]
        for shard in range(2):
            with tarfile.open(folder / f"{shard:04}.tar", "w") as tar:
                for number, file in enumerate(media[shard::2]):
                    parts = {file.suffix[1:]: file.read_bytes(), "txt": f"caption {number}, grün".encode()}
                    if number == 1:
                        parts["json"] = json.dumps({"id": f"own-{shard}", "width": 7}).encode()
                    for part, content in parts.items():
                        about = tarfile.TarInfo(f"set/{number:06}.{part}")
                        about.size = len(content)
                        tar.addfile(about, io.BytesIO(content))
        return cls(path=str(folder / "{0000..0001}.tar"), modalities=("image", "audio"), prompt="What is it?")


class TarRows:
    """The samples of shards by index, through an index of each shard that lies in the cache."""

    left_out = ""

    def __init__(self, streams: Sequence[Stream], named: frozenset[str]) -> None:
        self._rows, self._named = ArrowRows(streams), named
        self._sizes = {stream.named: stream.named.stat().st_size for stream in streams}

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        """The sample's texts and media; one that holds what it must not is a ValueError that names the member."""
        sample: Any = self._rows.row(index).record
        stream = self._rows.stream(index)
        key, where = sample["key"], f"{stream.named}/{sample['key']}"
        if "fault" in sample:
            raise ValueError(f"{where}: {sample['fault']}")
        members = {
            part["part"]: Member(f"{key}.{part['part']}", part["offset"], part["length"]) for part in sample["parts"]
        }
        media = {part: Medium(str(stream.named), member=one) for part, one in members.items() if kind_of(part)}
        record: dict[str, Any] = {}
        shown: set[Medium] = set()
        if "json" in members:
            record, shown = self._from_json(stream.named, members["json"], media)
        told = not {"turns", "messages", "conversations"}.isdisjoint(record)
        for part in members:
            if part in self._named:
                record[part] = media.get(part) or self._text(stream.named, members[part])
            elif part in TEXTS and not told:
                record["caption"] = self._text(stream.named, members[part]).strip()
        for kind in KINDS:
            held = [media[part] for part in media if kind_of(part) == kind and part not in self._named]
            beside = [medium for medium in held if medium not in shown]
            if beside and "turns" not in record:  # these show what they name, and nothing else
                record[kind] = beside
        record.setdefault("id", f"{stream.named.name}/{key}")
        return Row(record, where, stream.folder)

    def _from_json(
        self, shard: Path, member: Member, media: Mapping[str, Medium]
    ) -> tuple[dict[str, Any], set[Medium]]:
        """The record that a .json holds, and those of the sample's media that it names."""
        where = f"{shard}/{member.name}"
        value = parsed(self._read(shard, member), where)
        if not isinstance(value, dict):
            raise ValueError(f"{where}: is no JSON object; write one record")
        shown: set[Medium] = set()
        files = {name: medium for medium in media.values() for name in _names_of(medium)}
        try:
            return _with_members(value, files, shown), shown
        except RecursionError as error:
            raise ValueError(f"{where}: is nested too deeply; write one record") from error

    def _text(self, shard: Path, member: Member) -> str:
        try:
            return self._read(shard, member).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{shard}/{member.name}: is no UTF-8 (byte {error.start + 1}); save it anew") from error

    def _read(self, shard: Path, member: Member) -> bytes:
        where = f"{shard}/{member.name}"
        if member.length > LONGEST:
            raise ValueError(f"{where}: has {member.length:,} bytes, over the limit of {LONGEST:,} for texts")
        try:
            with shard.open("rb") as file:
                now = os.fstat(file.fileno()).st_size
                file.seek(member.offset)
                data = file.read(member.length)
        except OSError as error:
            raise ValueError(f"{where}: cannot be read any more ({error.strerror})") from error
        if now != self._sizes[shard]:
            raise ValueError(f"{where}: the shard has changed since it was opened; start again")
        return data


def _names_of(medium: Medium) -> tuple[str, ...]:
    name = medium.member.name if medium.member else ""
    return name, name.rpartition("/")[2]


def _with_members(value: Any, files: Mapping[str, Medium], shown: set[Medium], key: str = "") -> Any:  # noqa: ANN401
    """The JSON value with the sample's own files where it names them; `shown` gathers them."""
    if isinstance(value, dict):
        return {name: _with_members(one, files, shown, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_with_members(one, files, shown, key) for one in value]
    if isinstance(value, str) and key not in _SAID and value in files:
        shown.add(files[value])
        return files[value]
    return value


# ---------------------------------------------------------------------------------------------------------------- index


def _index(shard: Path) -> Path:
    """The shard's samples as an Arrow stream in the cache: key, parts with their places, and what is wrong."""
    try:
        name = f"tar-{VERSION}-{cache.digest(shard)}.arrow"
    except OSError as error:
        raise ValueError(f"{shard}: cannot be read ({error.strerror}); give a tar file") from error
    try:
        return cache.made(name, lambda new: _write_index(shard, new))
    except OSError as error:
        raise ValueError(
            f"{shard}: its index cannot be written ({error.strerror}); set OMNIKIT_CACHE to a folder that has room"
        ) from error


def _write_index(shard: Path, new: Path) -> None:
    import pyarrow as pa

    place = pa.struct([("part", pa.string()), ("offset", pa.int64()), ("length", pa.int64())])
    schema = pa.schema([("key", pa.string()), ("parts", pa.list_(place)), ("fault", pa.string())])
    samples = _samples_of(members_of(shard))
    if not samples:
        raise ValueError(f"{shard}: holds no sample; name the files of each alike up to the first dot")
    with new.open("wb") as out, pa.ipc.new_stream(out, schema) as stream:
        stream.write_table(pa.Table.from_pylist(list(samples.values()), schema=schema), max_chunksize=10_000)


def _samples_of(members: "Sequence[TarMember] | Any") -> dict[str, dict[str, Any]]:  # noqa: ANN401
    samples: dict[str, dict[str, Any]] = {}
    for member in members:
        name = member.name.removeprefix("./")
        if member.kind == "folder" and ".." not in name.split("/"):
            continue
        base, _, part = name.rpartition("/")[2].partition(".")
        fault = _fault(name, member.kind)
        if not fault and not (base and part):
            continue  # a file that is no part of a sample, as a README
        key = name[: len(name) - len(part) - 1] if base and part else name
        sample = samples.setdefault(key, {"key": key, "parts": [], "fault": None})
        if part in (known["part"] for known in sample["parts"]):
            fault = f"holds {name!r} twice; which one is meant?"
        sample["fault"] = sample["fault"] or fault
        sample["parts"].append({"part": part, "offset": member.offset, "length": member.length})
    return samples


def _fault(name: str, kind: str) -> str | None:
    if kind not in ("file", "folder"):
        return f"holds {name!r}, a {kind}; a shard holds files only"
    if name.startswith("/") or ".." in name.split("/"):
        return f"holds {name!r}, a name that leads out of the shard; write it anew"
    return None
