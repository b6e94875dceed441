"""What a benchmark's definition file may say. docs/evaluation.md explains each key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from omnikit.evaluate.columns import checked_operation, checked_template
from omnikit.strictyaml import read_text

__all__ = ["Definition", "Files", "Shots", "Shown", "read_definition"]

MOST_BYTES = 256 * 1024


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _inside(patterns: list[str]) -> list[str]:
    for pattern in patterns:
        if pattern.startswith("/") or ".." in pattern.split("/") or not pattern:
            raise ValueError(f"{pattern!r} leads out of the data's folder; write a path within it")
    return patterns


Patterns = Annotated[list[str], BeforeValidator(_listed), Field(min_length=1), AfterValidator(_inside)]
Template = Annotated[str, AfterValidator(checked_template)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Files(_Part):
    """Tables: which files, and how rows lie in them."""

    layout: Literal["parquet", "csv", "tsv", "json", "jsonl", "lines"]
    files: Patterns
    """Paths within the data's folder, with * and **."""
    header: list[str] | None = None
    """The columns of a csv or tsv that does not name them; of `lines`, what the parts of a line are."""
    quoted: bool = True
    """Whether quotation marks around a field of a csv or tsv are no part of it; where not, a backslash escapes."""
    within: str = ""
    """The key of a JSON object under which the list of rows stands."""


class Joined(Files):
    """Another table, whose row's columns are added where its column `by` holds what `key` is for the row."""

    by: str
    key: Template = ""
    """Of the row's columns; without it, its own column of the same name."""


class Data(Files):
    """Where the data is: on the hub, or in a folder in the same layout."""

    hub: str = ""
    """The id of the data set on the Hugging Face hub."""
    revision: str = ""
    by_hand: bool = False
    """Whether the hub's files must be unpacked, or come from elsewhere, before they can be read."""
    join: list[Joined] = Field(default_factory=list)


class Shown(_Part):
    """A medium of the question: of a column (bytes, or several), of a column in base64, or a file of the folder."""

    modality: str
    column: str = ""
    base64: str = ""
    path: Annotated[list[Template], BeforeValidator(_listed)] = Field(default_factory=list)
    """The first of these that is there."""
    start: str = ""
    """The column with the second at which the part that is meant begins; `end` likewise."""
    end: str = ""
    marker: str = ""
    """The text of the prompt in whose stead it stands; without one it stands before the prompt."""
    optional: bool = False
    """Whether there are questions without it."""

    @model_validator(mode="after")
    def _one_place(self) -> "Shown":
        if sum(map(bool, (self.column, self.base64, self.path))) != 1:
            raise ValueError("a medium is of a `column`, of `base64` or of a `path`; give one of them")
        return self


class Shots(Files):
    """Solved examples before the question."""

    number: int = Field(gt=0)
    same: str = ""
    """The column in which an example's value must be the question's."""
    example: Template
    between: str = "\n\n"


class Measured(_Part):
    """The metric and its options."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class Definition(_Part):
    """A benchmark's definition."""

    title: str
    about: str = ""
    """What it asks, in a sentence."""
    modality: str
    """What a run must take besides text: "text", "image", "video", "audio", "audio+image"."""
    data: Data
    fetch: str
    """What to fetch, from where and under which terms."""
    columns: dict[str, Annotated[dict[str, Any], AfterValidator(checked_operation)]] = Field(default_factory=dict)
    """Columns made of the row's, in order: each one operation of `omnikit.evaluate.columns`."""
    where: dict[str, list[Any]] = Field(default_factory=dict)
    """Of which values a column must have one, for the row to be a question."""
    present: list[str] = Field(default_factory=list)
    """Columns that must hold something."""
    id: Template = "{_file}:{_row}"
    prompt: Template
    choice: Template = "{letter}. {text}"
    """How each choice is written where the prompt says {_choices}, one a line."""
    choices: list[str] | str = Field(default_factory=list)
    """The columns of the choices, or the column that holds their list."""
    letters: int = Field(default=0, ge=0, le=26)
    """How many letters may be chosen, where the choices stand within the question itself."""
    media: list[Shown] = Field(default_factory=list)
    reference: str
    """The column of the reference: a text, a list, a letter."""
    category: Template = ""
    group: Template = ""
    extra: dict[str, str] = Field(default_factory=dict)
    """What the metric is also given: name to column."""
    shots: Shots | None = None
    metric: Measured
    weighs: Literal["letter", "text"] = "letter"
    max_tokens: int = Field(default=64, gt=0)
    differs: str = ""
    """In what the figures may differ from published ones."""
    unconfirmed: str = ""
    """What of the layout could not be looked up."""
    cite: str


def read_definition(file: Path) -> Definition:
    """The definition that a file holds; whatever is not right in it is a ValueError, a line for each fault."""
    try:
        data = file.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}); give the path of a definition") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not UTF-8 ({error.reason}); save it anew") from error
    if len(data) > MOST_BYTES:
        raise ValueError(f"{file}: is larger than {MOST_BYTES // 1024} KiB; a definition is a short text")
    value = read_text(text, str(file), file.parent)
    if not isinstance(value, Mapping):
        raise ValueError(f"{file}: holds no mapping; a definition starts with `title: ...`")
    try:
        return Definition.model_validate(value)
    except ValidationError as error:
        raise ValueError("\n".join(_faults(file, error))) from error


def _faults(file: Path, error: ValidationError) -> list[str]:
    found = []
    for fault in error.errors(include_url=False):
        where = ".".join(str(part) for part in fault["loc"])
        words = fault["msg"].removeprefix("Value error, ")
        given = fault["input"]
        shown = f", not {given!r}" if isinstance(given, str | int | float | bool) and "alue error" not in words else ""
        found.append(f"{file}: {where}: {words}{shown[:80]}")
    return found
