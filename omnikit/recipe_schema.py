"""The schema of a recipe: what `Recipe`, `Stage` and the small models in them hold, and the JSON schema for editors.

Everything is frozen and refuses unknown keys. A bare value stands for a mapping with one key: a word for a component
without options, a number for a rule's rate or a source's share (`shorthand`).
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from omnikit.component import BackboneConfig, Component, EncoderConfig, ProjectorConfig, ReaderConfig, SourceConfig
from omnikit.media import MediaLimits
from omnikit.registry import NAME, Registry

__all__ = ["Batch", "Held", "Limits", "Modality", "Recipe", "Rule", "Run", "Schedule", "Share", "Stage", "Train"]


def complaint(cls: type[BaseModel], at: tuple[str, ...], message: str, value: object) -> ValidationError:
    """An error that pydantic places below where it is raised, at the keys `at`."""
    error = PydanticCustomError("recipe", "{message}", {"message": message})
    return ValidationError.from_exception_data(cls.__name__, [InitErrorDetails(type=error, loc=at, input=value)])


def refuse_booleans(cls: type[BaseModel], values: Mapping[str, Any]) -> None:
    """Refuse `true` for a number: pydantic takes it for 1."""
    for name, field in cls.model_fields.items():
        value = values.get(field.alias or name)
        kinds = leaves(field.annotation)
        if isinstance(value, bool) and not kinds & {bool, Any, object}:
            raise complaint(
                cls, (field.alias or name,), f"{str(value).lower()} is no value for it; write a number", value
            )


def leaves(annotation: Any) -> set[Any]:  # noqa: ANN401
    """The plain types in an annotation: {int, NoneType} of `int | None`."""
    inside = get_args(annotation)
    if not inside or get_origin(annotation) is Literal:
        return {type(value) for value in inside} or {annotation}
    return set().union(*(leaves(part) for part in inside))


class Strict(BaseModel):
    """Frozen, and without unknown keys, NaN or booleans for numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    shorthand: ClassVar[str | None] = None
    """The key that a bare value stands for."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:  # noqa: ANN401
        if cls.shorthand and data is not None and not isinstance(data, Mapping | list | BaseModel):
            data = {cls.shorthand: data}
        if isinstance(data, Mapping):
            refuse_booleans(cls, data)
        return data


# --------------------------------------------------------------------------------------------------------- components


def _as_component(kind: str) -> BeforeValidator:
    def parse(value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401
        if isinstance(value, Component):
            return value
        assert isinstance(info.context, Registry), "Recipe.model_validate(..., context=registry)"
        registry = info.context
        if isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
            types = ", ".join(registry.types(kind))
            raise ValueError(
                f"needs the `type` of {'an' if kind == 'encoder' else 'a'} {kind}; known: {types or 'none'}"
            )
        try:
            chosen = registry.get(kind, str(value["type"]))
        except ValueError as error:
            raise complaint(Component, ("type",), str(error), value["type"]) from None
        refuse_booleans(chosen, value)
        return chosen.model_validate({key: option for key, option in value.items() if key != "type"})

    return BeforeValidator(parse)


def _dump(component: Component) -> dict[str, Any]:
    return component.model_dump(mode="json", by_alias=True)


# The declared class of a component field is the kind's base; its JSON schema is filled in by `json_schema`.
Backbone = Annotated[
    BackboneConfig, _as_component("backbone"), PlainSerializer(_dump), WithJsonSchema({"component": "backbone"})
]
Encoder = Annotated[
    EncoderConfig, _as_component("encoder"), PlainSerializer(_dump), WithJsonSchema({"component": "encoder"})
]
Reader = Annotated[
    ReaderConfig, _as_component("reader"), PlainSerializer(_dump), WithJsonSchema({"component": "reader"})
]
Projector = Annotated[
    ProjectorConfig, _as_component("projector"), PlainSerializer(_dump), WithJsonSchema({"component": "projector"})
]
Source = Annotated[
    SourceConfig, _as_component("source"), PlainSerializer(_dump), WithJsonSchema({"component": "source"})
]


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError(f"{value[:60]!r} is no name; write lower-case letters, digits and _, a letter first")
    return value


def _modality_name(value: str) -> str:
    if value == "text":
        raise ValueError("`text` is every sample's own; give the modality another name")
    return _name(value)


Name = Annotated[str, AfterValidator(_name)]
ModalityName = Annotated[str, AfterValidator(_modality_name)]


# ------------------------------------------------------------------------------------------------------------- stages


def _rate(value: Any) -> Any:  # noqa: ANN401
    text = str(value).lower()
    if isinstance(value, bool) or text in ("off", "no", "none", "false", "0", "0.0"):
        raise ValueError(f"{text} is no learning rate; to keep something as it is write `frozen`")
    try:
        rate = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{str(value)[:60]!r} is no learning rate; write a number like 1e-4, or `frozen`") from None
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"{rate:g} is no learning rate; it must be positive and finite")
    return rate


class Rule(Strict):
    """How the parameters below a path train."""

    shorthand = "lr"
    lr: Annotated[float, BeforeValidator(_rate)]
    weight_decay: float = Field(default=0.0, ge=0)


def _rule(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, bool):
        return _rate(value)
    return value if value == "frozen" or isinstance(value, Rule) else Rule.model_validate(value)


Train = dict[str, Annotated[Rule | Literal["frozen"], BeforeValidator(_rule)]]
"""Rules by path, in order: the first that fits a name holds; `rest`, last, fits all that the stage builds."""


class Batch(Strict):
    """One optimizer step: `packs` rows of `length` positions, `micro` rows at a time, over all ranks together.

    The media of a sample that is longer than a pack become smaller (fewer tiles, fewer frames); a sample that is still
    too long is dropped, or, with `cut`, loses its end.
    """

    length: int = Field(gt=0)
    packs: int = Field(gt=0)
    micro: int = Field(default=1, gt=0)
    cut: bool = False

    @model_validator(mode="after")
    def _divides(self) -> "Batch":
        if self.packs % self.micro:
            raise ValueError(f"micro {self.micro} does not divide packs {self.packs}")
        return self


class Share(Strict):
    """How much of the mixture a source is, and which modalities its media pass as (`as: {image: video}`)."""

    shorthand = "share"
    share: float = Field(gt=0, le=1e12)
    as_: dict[str, str] = Field(default_factory=dict, alias="as")


class Schedule(Strict):
    """The factor on all rates: a linear rise over `warmup` of the steps, then `shape` down to `floor`."""

    shape: Literal["constant", "cosine", "linear"] = "cosine"
    warmup: float = Field(default=0.03, ge=0, le=1)
    floor: float = Field(default=0.0, ge=0, le=1)


class Stage(Strict):
    """One stage of training: so many steps of this mixture under these rules.

    Shares are of samples, or of tokens where `mix` says so. In the stead of `steps`, `epochs` goes through every sample
    of every source so often; there are no shares then. With `cache` the features of frozen encoders are made once,
    before the first step, and kept.
    """

    init: dict[str, str] = Field(default_factory=dict)
    steps: int | None = Field(default=None, gt=0)
    epochs: int | None = Field(default=None, gt=0)
    batch: Batch
    data: dict[str, Share] = Field(min_length=1)
    mix: Literal["samples", "tokens"] = "samples"
    train: Train = Field(min_length=1)
    schedule: Schedule = Schedule()
    clip: float = Field(default=1.0, gt=0)
    cache: bool = False

    @model_validator(mode="before")
    @classmethod
    def _no_before(cls, data: Any) -> Any:  # noqa: ANN401
        if isinstance(data, Mapping) and "before" in data:
            text = "`before` places a stage that is new in a file with `extends`; remove it, or move the stage"
            raise complaint(cls, ("before",), text, data["before"])
        return data

    @model_validator(mode="after")
    def _has_an_end(self) -> "Stage":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("needs either steps or epochs" + (", not both" if self.steps else ""))
        uneven = [name for name, use in self.data.items() if use.share != 1]
        if self.epochs and (uneven or self.mix != "samples"):
            at = ("data", uneven[0], "share") if uneven else ("mix",)
            text = "with epochs every sample of every source is seen as often; write 1, or give steps"
            raise complaint(type(self), at, text if uneven else "means nothing with epochs; remove it", None)
        return self


# ------------------------------------------------------------------------------------------------------------- recipe


class Modality(Strict):
    """reader -> encoder -> projector, under the name that samples use."""

    reader: Reader
    encoder: str
    projector: Projector


class Held(Strict):
    """Samples that are never trained on, how answers to them are scored, and the score that is good enough."""

    data: Source
    metric: Literal["exact", "wer"]
    target: float | None = None


class Limits(MediaLimits, Strict):
    """What a single medium may cost; a medium beyond it is a bad one."""


class Run(Strict):
    """What concerns the whole run: `save` and `log` count steps, `keep` checkpoints.

    `workers` are the processes in which media are opened, so that a decoder that crashes takes only itself with it;
    with 0 the run does it itself. `recompute` saves memory: the activations of every block, or of those of some
    components, are computed again in the backward pass. `cache_bytes` bounds the features of a stage that keeps them.

    `shard` is how many ranks hold one copy of the weights between them (by default those of a machine), `compile`
    compiles every block where it stands. `on_nonfinite` says what becomes of a step whose loss or gradient is no finite
    number: the run stops, or the step is skipped; the third in a row and more than 20 for each 1,000 stop the run
    all the same. A rank that does nothing for `hang` seconds ends the run.

    `tracker` shows the metrics elsewhere, too. Every `eval` steps and at the end of each stage the loss on held-out
    samples is measured; where that on text has risen by `forgetting` since the first stage's end, a line says so.
    """

    seed: int = Field(default=0, ge=0, lt=2**63)
    precision: Literal["fp32", "bf16"] = "bf16"
    save: int = Field(default=500, gt=0)
    keep: int = Field(default=2, ge=2)
    log: int = Field(default=10, gt=0)
    workers: int = Field(default=2, ge=0, le=256)
    recompute: bool | list[str] = False
    """Paths of components (`backbone`, `encoders.vision`), or all of them."""
    cache_bytes: int = Field(default=100_000_000_000, gt=0)
    shard: int | None = Field(default=None, gt=0)
    compile: bool = False
    on_nonfinite: Literal["stop", "skip"] = "stop"
    hang: float = Field(default=900.0, gt=0, le=7 * 86_400)
    tracker: Literal["tensorboard", "trackio", "wandb"] | None = None
    eval: int | None = Field(default=None, gt=0)
    forgetting: float = Field(default=0.1, gt=0)


class Recipe(Strict):
    """A whole training: the model's parts, the data and the stages."""

    backbone: Backbone
    encoders: dict[Name, Encoder] = Field(default_factory=dict)
    modalities: dict[ModalityName, Modality] = Field(default_factory=dict)
    data: dict[Name, Source] = Field(min_length=1)
    heldout: dict[Name, Held] = Field(default_factory=dict)
    stages: dict[Name, Stage] = Field(min_length=1)
    limits: Limits = Limits()
    run: Run = Run()


def shape(annotation: Any, node: Any, registry: Registry) -> Any:  # noqa: ANN401
    """What stands at a place that is annotated so: a model class, `dict[...]`, or None for a scalar.

    A component's own class depends on what the recipe holds there, `node`.
    """
    if get_origin(annotation) is dict:
        return annotation
    if isinstance(annotation, type) and issubclass(annotation, Component) and "kind" in annotation.__dict__:
        name = node.get("type") if isinstance(node, Mapping) else node
        return registry.get(annotation.kind, name) if name in registry.types(annotation.kind) else annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (shape(part, node, registry) for part in get_args(annotation))
    return next((inner for inner in found if inner is not None), None)


def below(outer: Any, key: str, node: Any, registry: Registry) -> Any:  # noqa: ANN401
    """The shape of `key` in a mapping of shape `outer`, which holds `node` there."""
    if get_origin(outer) is dict:
        return shape(get_args(outer)[1], node, registry)
    return shape(fields(outer).get(key), node, registry)


def fields(outer: Any) -> dict[str, Any]:  # noqa: ANN401
    """The keys that a mapping of this shape knows, with their annotations; `type` too of a component."""
    if outer is None or get_origin(outer) is dict:
        return {}
    known = {field.alias or name: field.annotation for name, field in outer.model_fields.items()}
    return {"type": str, **known} if issubclass(outer, Component) else known
