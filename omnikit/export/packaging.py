"""The code of an exported folder, and the configuration that it reads: of a recipe's components, those it names."""

from collections.abc import Iterator
from typing import Any, get_args

from omnikit.component import Component, Weights
from omnikit.export.sources import NotCopied, Sources, text_of
from omnikit.recipe import Recipe
from omnikit.registry import Registry

OWN = "omnikit.export."
FILES = {f"{OWN}{name}": f"{name}_omnikit" for name in ("configuration", "modeling", "processing")}
AUTO_MAP = {
    "AutoConfig": "configuration_omnikit.OmnikitConfig",
    "AutoModelForCausalLM": "modeling_omnikit.OmnikitForCausalLM",
    "AutoProcessor": "processing_omnikit.OmnikitProcessor",
}


def components(recipe: Recipe) -> Iterator[tuple[str, Component]]:
    """(recipe path, component) of all that a model is made of and that reads what it is asked."""
    yield "backbone", recipe.backbone
    for name, encoder in recipe.encoders.items():
        yield f"encoders.{name}", encoder
    for name, modality in recipe.modalities.items():
        yield f"modalities.{name}.reader", modality.reader
        yield f"modalities.{name}.projector", modality.projector


def packaged(recipe: Recipe, registry: Registry) -> Sources:
    """The code that the recipe's model needs. An ExceptionGroup says which components cannot be exported, and why."""
    own = {one.__module__.partition(".")[0] for plugin in registry.plugins for one in plugin.components}
    used = {(type(one).kind, type(one).type): type(one) for _, one in components(recipe)}
    lines = [f"from {one.__module__} import {one.__qualname__} as {kind}_{name}" for (kind, name), one in used.items()]
    chosen = "\n".join(
        [
            '"""The components of this model."""',
            *lines,
            "COMPONENTS = (",
            *(f"    {kind}_{name}," for kind, name in used),
            ")\n",
        ]
    )
    instead = {"omnikit.reading": text_of(f"{OWN}reading"), f"{OWN}chosen": chosen}
    sources = Sources(frozenset(own | {"omnikit"}), FILES, instead)
    refused: dict[type[Component], ValueError] = {}
    for path, component in components(recipe):
        kind = type(component)
        try:
            if kind not in refused:
                sources.require(kind.__module__, kind.__qualname__)
        except NotCopied as error:
            refused[kind] = ValueError(f"{path}: the {kind.kind} {kind.type} cannot be exported: {error}")
    if refused:
        raise ExceptionGroup("export", list(refused.values()))
    for target in AUTO_MAP.values():
        file, _, name = target.partition(".")
        sources.require(f"{OWN}{file.removesuffix('_omnikit')}", name)
    return sources


def origins(recipe: Recipe, registry: Registry) -> dict[str, str]:
    """The packages whose code is copied, with their versions."""
    used = {type(one) for _, one in components(recipe)}
    core = {plugin.distribution: plugin.version for plugin in registry.plugins if plugin.distribution == "omnikit"}
    return core | {one.distribution: one.version for one in registry.plugins if used & set(one.components)}


def configured(recipe: Recipe) -> dict[str, Any]:
    """What of the recipe the model and the processor are made of, as plain data that names no files of this machine."""
    for path, component in components(recipe):
        try:
            type(component).model_validate({key: value for key, value in _plain(component).items() if key != "type"})
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path}: cannot be exported: it cannot do without its `weights` ({reason})") from error
    return {
        "backbone": _plain(recipe.backbone),
        "encoders": {name: _plain(encoder) for name, encoder in recipe.encoders.items()},
        "modalities": {
            name: {"reader": _plain(one.reader), "encoder": one.encoder, "projector": _plain(one.projector)}
            for name, one in recipe.modalities.items()
        },
        # The modalities' numbers in `mm_token_type_ids`: transformers sorts what it saves.
        "order": list(recipe.modalities),
        "limits": recipe.limits.model_dump(mode="json"),
    }


def weights_of(component: Component) -> list[str]:
    """The options that say where a component's weights, or its tokenizer, come from."""
    return [name for name, field in type(component).model_fields.items() if Weights in get_args(field.annotation)]


def _plain(component: Component) -> dict[str, Any]:
    """Its type and options. A preset has filled its options already, and weights come with the folder."""
    options = component.model_dump(mode="json")
    return options | {name: None for name in ("preset", *weights_of(component)) if name in options}
