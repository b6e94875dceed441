"""What a plugin author implements, without torch.

A component is one frozen Config class of one kind. It answers every question that needs no weights (which grids a
file can give, how many tokens come out, what the preset's sizes are) and builds the `torch.nn.Module` for the rest;
the modules' side of the contract is in `omnikit.protocols`. Nothing here imports torch: `build` and `pretrained`
import late, so that recipes are checked and listed in a fraction of a second.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, Self

import pluggy
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from omnikit.inputs import Input, Mel, Pixels, to_pixels
from omnikit.weights import PICKLES, fetched, json_in, tensors_in

if TYPE_CHECKING:
    import torch

    from omnikit.evaluate.benchmark import Metric, Question
    from omnikit.protocols import BackboneModule, EncoderModule, ProjectorModule

__all__ = [
    "PICKLES",
    "BackboneConfig",
    "BenchmarkConfig",
    "Chat",
    "Component",
    "EncoderConfig",
    "Grid",
    "Input",
    "Item",
    "Medium",
    "Mel",
    "Member",
    "NothingToLearn",
    "Pixels",
    "ProjectorConfig",
    "ReaderConfig",
    "RecipePath",
    "Records",
    "Sample",
    "SourceConfig",
    "Turn",
    "Weights",
    "count",
    "fetched",
    "hookimpl",
    "hookspec",
    "json_in",
    "tensors_in",
    "to_pixels",
]

hookspec = pluggy.HookspecMarker("omnikit")
hookimpl = pluggy.HookimplMarker("omnikit")

Grid = tuple[int, int, int]
"""Features of one item as (t, h, w): audio (t, 1, 1), an image of V views (V, 27, 27)."""


def count(grid: Grid) -> int:
    """The number of features (or, after `shrink`, of tokens) that a grid holds."""
    t, h, w = grid
    return t * h * w


class Item(NamedTuple):
    """One prepared medium: the encoder's input, and the grid of features that the encoder makes of it."""

    value: Any
    grid: Grid


class Member(NamedTuple):
    """A file within a file, such as a picture in a tar shard: its name there, and the bytes that are its own."""

    name: str
    offset: int
    length: int


class Medium(NamedTuple):
    """One medium of a sample: a path or the file's bytes, and the seconds of it that are meant.

    With `member`, those bytes of the shard at that path. All three are opened by `omnikit.media.source_of` alone."""

    source: str | bytes
    start: float | None = None
    end: float | None = None
    member: Member | None = None

    def __str__(self) -> str:
        path = f"<{len(self.source)} bytes>" if isinstance(self.source, bytes) else self.source
        name = f"{path}/{self.member.name}" if self.member else path
        return name if self.start is None and self.end is None else f"{name}[{self.start}:{self.end}]"


class Turn(NamedTuple):
    """What one speaker says: texts and media in order, each a pair (modality or "text", text or Medium)."""

    role: str
    content: tuple[tuple[str, "str | Medium"], ...]


class Sample(NamedTuple):
    """One training or test example. `kind` names what it asks; reports group by it."""

    id: str
    turns: tuple[Turn, ...]
    kind: str = ""


class NothingToLearn(ValueError):
    """A source's refusal of a record that has no answer, or one that says nothing."""


# -------------------------------------------------------------------------------------------------------- the six kinds


class Located(Protocol):
    """A scalar of a recipe file that remembers the folder it was read from."""

    folder: Path


def _resolve(value: object) -> object:
    folder = getattr(value, "folder", None)
    return os.path.abspath(Path(folder, str(value))) if isinstance(value, str) and folder else value


RecipePath = Annotated[str, BeforeValidator(_resolve)]
"""A path in a recipe: relative to the file that it is written in, absolute once the recipe is loaded."""


def _resolve_folder(value: object) -> object:
    path = _resolve(value)
    is_path = isinstance(value, str) and (value.startswith(("./", "../", "/")) or Path(str(path)).exists())
    return path if is_path else value


Weights = Annotated[str, BeforeValidator(_resolve_folder)]
"""A folder or file (where one is at that path, or it starts with ./ ../ or /), else a hub id[@revision]."""


class Component(BaseModel):
    """The base of the six kinds. A concrete class sets `type`, the name it has in recipes.

    A field `preset` (declare it, with a default of None) names an entry of `presets`, a mapping of mappings that the
    plugin ships as data: the entry's values fill every field that the recipe leaves out. So a dumped Config holds all
    its sizes and reloads to the same thing, whatever a later version of the preset says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    kind: ClassVar[Literal["reader", "encoder", "projector", "backbone", "source", "benchmark"]]
    type: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:  # noqa: ANN401  (pydantic hands over whatever the YAML held)
        if not isinstance(data, Mapping) or data.get("preset") is None or "preset" not in cls.model_fields:
            return data
        name = data["preset"]
        if not isinstance(name, str) or name not in cls.presets:
            raise ValueError(f"{cls.type} has no preset {name!r}; presets: {', '.join(cls.presets) or 'none'}")
        return {**cls.presets[name], **data}

    def tiny(self) -> Self:
        """The same component with the same options, as small as it can be built: under two million parameters.

        For tests and the conformance kit; a component without sizes is its own.
        """
        return self

    @model_serializer(mode="wrap")
    def _dump_with_type(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # pydantic dumps the fields of the declared base and drops the class: a recipe could not be reloaded.
        return {"type": type(self).type, **handler(self)}


class ReaderConfig(Component):
    """Turns a medium into an Item, on the CPU, always the same one for the same medium and grid."""

    kind: ClassVar[Any] = "reader"
    makes: ClassVar[type[Input]]
    """The Input class it makes; the recipe refuses an encoder that eats another."""

    def sizes(self, input: Any) -> dict[str, Grid]:  # noqa: ANN401  (an instance of `makes`)
        """Grids worth knowing by name, for tables: {"tile": (1, 27, 27), "largest image": (10, 27, 27)}; or none."""
        return {}

    def grids(self, medium: Medium, input: Any) -> list[Grid]:  # noqa: ANN401
        """The grids that `read` can give for this medium, largest first, from the file's header alone."""
        raise NotImplementedError

    def read(self, medium: Medium, input: Any, grid: Grid) -> Item:  # noqa: ANN401
        """The medium as an Item of exactly this grid. A medium that cannot be read is a ValueError."""
        raise NotImplementedError

    def specimens(self, folder: Path, input: Any) -> list[Medium]:  # noqa: ANN401
        """A few good media, written into `folder`, for the conformance kit: the odd shapes first among them.

        `omnikit.testing` writes pictures, films and sounds; a new modality writes its own.
        """
        raise NotImplementedError


class EncoderConfig(Component):
    """A tower that makes features of Items. `weights` names a folder or hub id to start from; None means random."""

    kind: ClassVar[Any] = "encoder"
    weights: Weights | None = None

    @property
    def input(self) -> Input:
        """What the encoder eats."""
        raise NotImplementedError

    def example(self) -> Item:
        """A small valid Item of silence or grey: run where a batch lacks the modality, and as the blind control."""
        raise NotImplementedError

    def cost(self, grid: Grid) -> float:
        """FLOPs (two for each multiply-add) of one item's forward pass, for balance, plans and utilisation."""
        raise NotImplementedError

    def build(self) -> "EncoderModule":
        """The module, with random weights. Touches neither network nor disk."""
        raise NotImplementedError

    def pretrained(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """(name as in `build().state_dict()`, tensor) pairs of `weights`."""
        raise NotImplementedError


class ProjectorConfig(Component):
    """Maps an encoder's features to tokens of the backbone's width."""

    kind: ClassVar[Any] = "projector"

    def shrink(self, grid: Grid) -> Grid:
        """The grid of tokens that a grid of features becomes; tokens = product, always."""
        raise NotImplementedError

    def cost(self, grid: Grid, d_in: int, d_out: int) -> float:
        """FLOPs (two for each multiply-add) of one item's forward pass, between these widths."""
        raise NotImplementedError

    def build(self, d_in: int, d_out: int) -> "ProjectorModule":
        """The module from feature width `d_in` to backbone width `d_out`."""
        raise NotImplementedError


class Chat(BaseModel):
    """How turns become text, as data. Special tokens stand in these strings only, never in a sample's content.

    `open` stands once, before everything; `prefix` and `suffix` surround each role's content; `stop` is the special
    token that ends an assistant turn and is learned with it; `system` opens a conversation that has no system turn of
    its own (empty: with such a turn's prefix and suffix alone); `begin` and `end` surround the media of a modality with
    ordinary text, so that no vocabulary is resized.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    open: str = ""
    prefix: dict[str, str]
    suffix: dict[str, str]
    stop: str
    system: str | None = None
    begin: dict[str, str] = Field(default_factory=dict)
    end: dict[str, str] = Field(default_factory=dict)


class BackboneConfig(Component):
    """The decoder-only language model, with its tokenizer and chat format."""

    kind: ClassVar[Any] = "backbone"
    weights: Weights | None = None
    chat: Chat

    def cost(self, length: int, labels: int) -> float:
        """FLOPs of the forward pass of one document: `length` positions, of which `labels` go through the head."""
        raise NotImplementedError

    def context(self) -> int | None:
        """Positions that it is made for, prompt and answer together; None where it knows no bound."""
        return None

    def tokenizer(self) -> Any:  # noqa: ANN401  (tokenizers ships no types)
        """The `tokenizers.Tokenizer`; reads the tokenizer's file where it has one."""
        raise NotImplementedError

    def build(self) -> "BackboneModule":
        """The module, with random weights. Touches neither network nor disk."""
        raise NotImplementedError

    def pretrained(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """(name as in `build().state_dict()`, tensor) pairs of `weights`."""
        raise NotImplementedError


class Records(Sequence[Sample]):
    """An opened source that says what it has seen. A source may open any sequence of samples; its own do this."""

    def described(self) -> str:
        """The shape of its records and how many there are, in words: "llava conversations, 665,298 records"."""
        raise NotImplementedError


class SourceConfig(Component):
    """A data set: a sequence of samples."""

    kind: ClassVar[Any] = "source"
    modalities: tuple[str, ...] = ()
    """The modalities that its samples may hold besides text, declared so that a recipe is checked without its data."""
    max_bad: float = Field(default=0.2, ge=0, le=1)
    """The share of its samples that may turn out bad before the run stops."""

    def missing(self) -> str | None:
        """What is not there yet (a path), or None when `open` can be called."""
        return None

    def fingerprint(self) -> str:
        """Changes when the data does: a run refuses to go on with other data than it began with."""
        return ""

    def open(self) -> "Sequence[Sample]":
        """The samples, by index. Parsing a broken record is a ValueError that names where it stands."""
        raise NotImplementedError

    @classmethod
    def specimen(cls, folder: Path) -> Self:
        """A small data set, written into `folder`, for the conformance kit."""
        raise NotImplementedError


class BenchmarkConfig(Component):
    """Questions with their references, and how answers to them are scored.

    `folder` is where its data lies in the published layout; None means that the benchmark finds it itself. Most
    benchmarks need no class: `omnikit.evaluate.Defined` makes one of a YAML file.
    """

    kind: ClassVar[Any] = "benchmark"

    @property
    def title(self) -> str:
        """What tables call it, such as "MMBench (en)"."""
        raise NotImplementedError

    @property
    def metric(self) -> "Metric":
        """How an answer is graded, and grades become the score."""
        raise NotImplementedError

    @property
    def max_tokens(self) -> int:
        """Where a generated answer is cut."""
        return 64

    @property
    def weighs(self) -> Literal["letter", "text"]:
        """Of what, in a choice by likelihood, the likelihoods are: the choices' letters, or their texts."""
        return "letter"

    def missing(self, folder: Path | None) -> str | None:
        """What is not there, where it was looked for and how it is fetched, in a line; None when all is there."""
        raise NotImplementedError

    def fingerprint(self, folder: Path | None) -> str:
        """Changes when the data does: answers are kept by it."""
        raise NotImplementedError

    def definition(self) -> str:
        """Changes when what is asked or how it is scored does: answers are kept by it too."""
        raise NotImplementedError

    def questions(self, folder: Path | None) -> "Sequence[Question]":
        """The questions, by index. One that cannot be asked, as its medium is not there, is a ValueError when taken."""
        raise NotImplementedError

    @classmethod
    def specimen(cls) -> Path:
        """A folder with a few rows in the published layout, for the conformance kit and to try the benchmark on."""
        raise NotImplementedError
