"""What a recipe means beyond its schema: what a stage reaches and builds, which rule holds, and whether it all agrees.

Paths are those of parameters: `backbone`, `encoders.vision`, `modalities.image.projector`, and what is below them.
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Literal, TypeVar

from pydantic import ValidationError

from omnikit.recipe_schema import Recipe, Rule
from omnikit.registry import did_you_mean

__all__ = [
    "built",
    "check",
    "frozen_encoders",
    "modules",
    "reach",
    "recomputes",
    "rule_for",
    "trains_within",
    "within",
]

R = TypeVar("R")
Found = tuple[tuple[str, ...], str]
"""A place in the recipe (its keys) and what is wrong there."""


def modules(recipe: Recipe) -> tuple[str, ...]:
    """The paths of all components that may hold parameters, in the recipe's order."""
    encoders = [f"encoders.{name}" for name in recipe.encoders]
    projectors = [f"modalities.{name}.projector" for name in recipe.modalities]
    return ("backbone", *encoders, *projectors)


def built(recipe: Recipe, stage: str) -> tuple[str, ...]:
    """The modalities that samples of the stage can hold, in the recipe's order: what the stage builds.

    A modality that is not among them cannot train (a rule that says so is refused), so it is not built at all.
    """
    mixture = recipe.stages[stage].data
    given = {
        share.as_.get(modality, modality)
        for source, share in mixture.items()
        if source in recipe.data
        for modality in recipe.data[source].modalities
    }
    return tuple(name for name in recipe.modalities if name in given)


def reach(recipe: Recipe, stage: str) -> frozenset[str]:
    """The paths of the components that samples of the stage pass through; the backbone always."""
    paths = {"backbone"}
    for name in built(recipe, stage):
        encoder = recipe.modalities[name].encoder
        paths |= {f"modalities.{name}.reader", f"encoders.{encoder}", f"modalities.{name}.projector"}
    return frozenset(paths)


def frozen_encoders(recipe: Recipe, stage: str) -> tuple[str, ...]:
    """The encoders that samples of the stage pass through and of which nothing trains, in the recipe's order."""
    reached = reach(recipe, stage)
    return tuple(
        name
        for name in recipe.encoders
        if f"encoders.{name}" in reached and not trains_within(recipe.stages[stage].train, f"encoders.{name}")
    )


def recomputes(recipe: Recipe, component: str) -> bool:
    """Whether the activations of a component's blocks are computed again in the backward pass."""
    chosen = recipe.run.recompute
    return chosen if isinstance(chosen, bool) else component in chosen


def trains_within(train: Mapping[str, Rule | Literal["frozen"]], component: str) -> bool:
    """Whether any parameter of a component has a rate."""
    for path, rule in train.items():
        if path == "rest" or within(component, path):
            return rule != "frozen"  # what is below holds for none of it
        if within(path, component) and rule != "frozen":
            return True
    return False


def rule_for(parameter: str, train: Mapping[str, R]) -> tuple[str, R] | None:
    """The first rule whose path is the parameter's name or a dotted prefix of it; `rest` fits all."""
    return next(((path, rule) for path, rule in train.items() if path == "rest" or within(parameter, path)), None)


def within(inner: str, outer: str) -> bool:
    """Whether a dotted path is another one or lies below it."""
    return inner == outer or inner.startswith(outer + ".")


def check(recipe: Recipe) -> Iterator[Found]:
    """Everything in the recipe that does not agree with the rest of it."""
    yield from _check_modalities(recipe)
    for name, held in recipe.heldout.items():
        for modality in held.data.modalities:
            if modality not in recipe.modalities:
                yield ("heldout", name, "data", "modalities"), _unknown_modality(modality, recipe)
    if recipe.run.eval and not recipe.heldout:
        yield ("run", "eval"), "there is no held-out data to measure; add `heldout`, or remove it"
    if not isinstance(recipe.run.recompute, bool):
        known = modules(recipe)
        for path in set(recipe.run.recompute) - set(known):
            text = f"{path[:80]!r} is the path of no component"
            yield ("run", "recompute"), text + did_you_mean(path, known, "components")
    for name in recipe.stages:
        data = list(_check_data(recipe, name))
        # Without sound data nobody knows what the stage reaches; a wrong guess would hide the real fault.
        yield from (*data, *_check_init(recipe, name), *_check_rules(recipe, name, is_reach_known=not data))
        if not data:
            yield from _check_cache(recipe, name)


def _check_modalities(recipe: Recipe) -> Iterator[Found]:
    for name, modality in recipe.modalities.items():
        encoder = recipe.encoders.get(modality.encoder)
        if encoder is None:
            text = f"no encoder is called {modality.encoder[:60]!r}"
            yield ("modalities", name, "encoder"), text + did_you_mean(modality.encoder, recipe.encoders, "encoders")
            continue
        try:
            eaten = type(encoder.input)
        except ValueError as error:
            faults = error.errors() if isinstance(error, ValidationError) else []
            told = [f"{fault['loc'][-1]} {fault['msg'].removeprefix('Input ')}" for fault in faults if fault["loc"]]
            yield ("encoders", modality.encoder), f"no input fits: {', '.join(told) or ' '.join(str(error).split())}"
            continue
        if not issubclass(eaten, modality.reader.makes):
            text = f"the reader {modality.reader.type!r} makes {modality.reader.makes.__name__}"
            text += f", but the encoder {modality.encoder!r} eats {eaten.__name__}; choose another reader or encoder"
            yield ("modalities", name, "reader"), text
    used = {modality.encoder for modality in recipe.modalities.values()}
    for name in recipe.encoders:
        if name not in used:
            yield ("encoders", name), f"no modality uses the encoder {name!r}; remove it, or name it in a modality"


def _unknown_modality(modality: str, recipe: Recipe) -> str:
    return f"{modality[:60]!r} is no modality{did_you_mean(modality, recipe.modalities, 'modalities')}"


def _check_data(recipe: Recipe, stage: str) -> Iterator[Found]:
    for name, share in recipe.stages[stage].data.items():
        at = ("stages", stage, "data", name)
        source = recipe.data.get(name)
        if source is None:
            yield at, f"no data is called {name[:60]!r}{did_you_mean(name, recipe.data, 'data')}"
            continue
        for given, meant in share.as_.items():
            if given not in source.modalities:
                has = ", ".join(source.modalities) or "none"
                yield (*at, "as", given), f"{name!r} has no {given[:60]!r}; its modalities: {has}"
            if meant not in recipe.modalities:
                yield (*at, "as", given), _unknown_modality(meant, recipe)
        for modality in source.modalities:
            if modality not in recipe.modalities and modality not in share.as_:
                yield ("data", name, "modalities"), _unknown_modality(modality, recipe)


def _check_init(recipe: Recipe, stage: str) -> Iterator[Found]:
    known = modules(recipe)
    for target, source in recipe.stages[stage].init.items():
        at = ("stages", stage, "init", target)
        for path in (target, source):
            if path not in known:
                text = f"{path[:80]!r} is no component with tensors"
                yield at, text + did_you_mean(path, known, "components")
        if target == source:
            yield at, f"{target!r} would be copied onto itself; name two components"


def _check_rules(recipe: Recipe, stage: str, *, is_reach_known: bool) -> Iterator[Found]:
    train, reached, above = recipe.stages[stage].train, reach(recipe, stage), set[str]()
    for path, rule in train.items():
        at = ("stages", stage, "train", path)
        if "rest" in above:
            yield at, "stands below `rest`, which takes all that remains; put `rest` last"
        elif path != "rest":
            covered = [module for module in modules(recipe) if within(path, module) or within(module, path)]
            hiding = next((other for other in accumulate(path.split("."), "{}.{}".format) if other in above), None)
            if not covered:
                yield at, _names_nothing(path, recipe)
            elif hiding:
                yield at, f"never holds, since `{hiding}` above it fits first; put `{path}` above that"
            elif is_reach_known and isinstance(rule, Rule) and not reached.intersection(covered):
                given = ", ".join(("text", *built(recipe, stage)))
                text = f"trains {path!r}, which no sample of the stage reaches (they hold {given})"
                yield at, f"{text}; write `frozen`, or add data for it"
        above.add(path)
    if all(rule == "frozen" for rule in train.values()):
        yield ("stages", stage, "train"), "trains nothing, everything is frozen; give at least one path a rate"


def _check_cache(recipe: Recipe, stage: str) -> Iterator[Found]:
    if not recipe.stages[stage].cache or frozen_encoders(recipe, stage):
        return
    trained = [name for name in recipe.encoders if f"encoders.{name}" in reach(recipe, stage)]
    if trained:
        text = f"features of an encoder that trains cannot be kept, and {', '.join(trained)} trains; "
        text += f"remove it, or write `encoders.{trained[0]}: frozen`"
    else:
        text = "no sample of the stage passes through an encoder, so there are no features to keep; remove it"
    yield ("stages", stage, "cache"), text


def _names_nothing(path: str, recipe: Recipe) -> str:
    known = modules(recipe)
    match path.split("."):
        case ["modalities", name, "encoder", *_] if name in recipe.modalities:
            text = "a modality's encoder is trained under its own name"
            return f"{text}; write `encoders.{recipe.modalities[name].encoder}`"
        case ["modalities", name, "reader", *_] if name in recipe.modalities:
            return f"a reader has no parameters; did you mean `modalities.{name}.projector`?"
    return f"{path[:80]!r} is the path of no component{did_you_mean(path, known, 'components')}"
