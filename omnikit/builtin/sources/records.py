"""What all sources of the core share: their options, and the sequence of samples made of a container's rows.

A container (JSON lines, Arrow files, tar shards, a folder) gives rows: what stands at an index, as plain values, and
where that is. What the values mean is `shapes`' business, the same for all.
"""

import difflib
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pydantic import Field, field_validator, model_validator

from omnikit.builtin.sources.shapes import COLUMNS, Shaping, named, sample_of, shape_of
from omnikit.component import RecipePath, Records, Sample, SourceConfig
from omnikit.media.kinds import KINDS

__all__ = ["RecordSource", "Row", "Rows", "ShapedRecords", "no_number"]

LOOKED_AT = 100
"""Records by which a source's shape is known."""

OURS = ("id", "kind", "system", *COLUMNS)
_ADDRESS = re.compile(r"\s*(pipe:|[a-zA-Z][a-zA-Z0-9+.-]+://)")


class Row(NamedTuple):
    """A record in plain values, where it stands, and the folder that its paths begin in."""

    record: object
    where: str
    folder: Path


class Rows(Protocol):
    """A container's rows by index. A row that cannot be read is a ValueError that names where it stands."""

    left_out: str
    """What of the container is no row, in words, once its length is known; mostly nothing."""

    def __len__(self) -> int: ...
    def row(self, index: int) -> Row: ...


class RecordSource(SourceConfig):
    """The options of every source of records.

    The shape of the records (omnikit's turns, OpenAI messages, LLaVA or ShareGPT conversations, question and answer,
    caption) is recognised by the first hundred of them. `columns` maps our names to theirs where they differ, as in
    `{image: picture, caption: alt}`: id, kind, system, each modality, question, answer, caption, messages,
    conversations. `media` is the folder in which relative paths of media begin, where that is not the records' own.
    `prompt` is what the user says before a caption; without it, the user shows the medium alone.
    """

    path: RecipePath
    media: RecipePath | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    prompt: str = ""

    @field_validator("path", mode="before")
    @classmethod
    def _is_here(cls, value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, str) and (found := _ADDRESS.match(value)):
            raise ValueError(f"{found[1]} is an address; give the path of files on this machine")
        return value

    @model_validator(mode="after")
    def _columns_are_ours(self) -> "RecordSource":
        ours = (*OURS, *self.modalities)
        for name in self.columns:
            if name not in ours:
                if name in KINDS:
                    raise ValueError(f"columns: modality {name!r} is not in `modalities`; add it")
                near = difflib.get_close_matches(name, ours, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"our names are {', '.join(ours)}"
                raise ValueError(f"columns: {name!r} is none of our names; {hint}")
        return self

    def shaped(self, rows: Rows) -> "ShapedRecords":
        """The rows as samples, read as the options say."""
        return ShapedRecords(rows, Shaping(self.modalities, self.columns, self.prompt), self.path)

    def folder_of(self, file: Path) -> Path:
        """Where the relative paths of a file's records begin."""
        return Path(self.media) if self.media else file.parent


class ShapedRecords(Records):
    """Rows as samples."""

    def __init__(self, rows: Rows, shaping: Shaping, path: str) -> None:
        self.rows, self.shaping, self.path = rows, shaping, path

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401  (Sequence's own signature has overloads)
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"{self.path}: has no record {index}; it holds {length}")
        return self._sample(index % length)

    def _sample(self, index: int) -> Sample:
        record, where, folder = self.rows.row(index)
        record = named(record, self.shaping)
        expected, shape = self._seen.shape, shape_of(record, self.shaping)
        if shape is not None and expected is not None and shape != expected:
            raise ValueError(f"{where}: is a record of {shape}; the source holds {expected} (by its first records)")
        return sample_of(record, shape, where, folder, self.shaping)

    def described(self) -> str:
        """The shape of the records and how many there are. No usable one among the first hundred is a ValueError."""
        if self._seen.shape is None:
            for index in range(min(len(self), LOOKED_AT)):
                self._sample(index)  # which says what is wrong with the first
        words = f"{self._seen.words}, {len(self):,} record{'s' if len(self) != 1 else ''}"
        return f"{words} ({self.rows.left_out})" if self.rows.left_out else words

    @cached_property
    def _seen(self) -> "_Seen":
        """What the first records tell: their common shape, None where none has any."""
        shapes: dict[str, str] = {}
        records, keys = [], set()
        for index in range(min(len(self), LOOKED_AT)):
            try:
                record, where, _ = self.rows.row(index)
            except ValueError:  # said when it is asked for
                continue
            if isinstance(record, Mapping):
                keys |= {key for key, value in record.items() if value is not None}
                records.append(record := named(record, self.shaping))
                if shape := shape_of(record, self.shaping):
                    shapes.setdefault(shape, where)
        for ours, theirs in self.shaping.columns.items():
            if records and theirs not in keys:
                has = ", ".join(sorted(map(str, keys))) or "none"
                raise ValueError(
                    f"{self.path}: columns: {ours}: none of the first {len(records)} records has {theirs!r}; "
                    f"they have {has}"[:400]
                )
        if len(shapes) > 1:
            (one, here), (other, there), *_ = shapes.items()
            raise ValueError(f"{there}: is a record of {other}, but {here} one of {one}; make them two sources")
        shape = next(iter(shapes), None)
        return _Seen(shape, _words(shape, records))


class _Seen(NamedTuple):
    shape: str | None
    words: str


def _words(shape: str | None, records: "list[Mapping[str, Any]]") -> str:
    if shape == "conversations":
        # LLaVA keeps one medium under the modality's name; ShareGPT has none, or LLaMA-Factory's lists.
        alone = {*KINDS, "sound"}
        return f"{'llava' if any(alone & set(record) for record in records) else 'sharegpt'} conversations"
    words = {"turns": "omnikit turns", "messages": "openai messages", "question": "questions and answers"}
    return words.get(shape or "", "captions")


def no_number(constant: str) -> float:
    """For `json.loads`: NaN and infinity are no JSON."""
    raise ValueError(f"{constant} is no number")
