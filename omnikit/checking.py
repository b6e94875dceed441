"""What is found out before anything is trained: `check_recipe` asks the recipe alone, `check_data` its data too."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from omnikit.component import Records, SourceConfig, count
from omnikit.data import StageData
from omnikit.indexing import Progress
from omnikit.model import OmniModel
from omnikit.packing import read_items
from omnikit.recipe import Recipe, built, reach
from omnikit.sample import Layouter
from omnikit.stages import components, initialise, rules_by_parameter

FAULTS = 20
"""Lines that say what is wrong with the data, at most."""
HELDOUT_READ = 8
"""Samples of each held-out set whose media are read before training; the rest are only laid out."""


def check_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe's model and stages as plain data. What is wrong with rules or `init` is raised, all of it at once."""
    with torch.device("meta"):
        model = OmniModel(recipe, frozenset(recipe.modalities))
    faults: list[Exception] = []
    stages: dict[str, Any] = {}
    for name, stage in recipe.stages.items():
        try:
            initialise(model, dict(stage.init), name)
            stages[name] = {
                "steps": stage.steps,
                "epochs": stage.epochs,
                "components": _components(recipe, name, model),
            }
        except ExceptionGroup as group:
            faults.extend(group.exceptions)
        except ValueError as error:
            faults.append(error)
    if faults:
        raise ExceptionGroup("recipe", faults)
    tokens = _tokens(recipe)
    return {"stages": stages, "tokens": tokens, "warnings": _warnings(recipe, tokens)}


def check_data(
    recipe: Recipe,
    layouter: Layouter,
    progress: Progress,
    begun: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> dict[str, str]:
    """Index every stage's data, lay out all held-out samples, and read the media that come first: the shape that each
    source's records have, in words.

    What is wrong is said in one ValueError, a line for each fault. Single bad samples of a stage are none: they are
    listed when the stage begins. `begun` are, by stage, the digests of the indexes of stages that go on.
    """
    shapes: dict[str, str] = {}

    def stage_faults(name: str) -> list[str]:
        data = StageData(recipe, name, layouter, progress, begun.get(name, {}))
        for key, records in data.sources.items():
            if key not in shapes and isinstance(records, Records):
                shapes[key] = records.described()
        return data.unreadable()

    def faults() -> Iterable[Callable[[], Iterable[str]]]:
        for name in recipe.stages:
            yield lambda name=name: stage_faults(name)
        for entry in recipe.heldout.values():
            yield lambda data=entry.data: _heldout_faults(data, layouter)

    found: dict[str, None] = {}
    for check in faults():
        try:
            found |= dict.fromkeys(check())
        except ValueError as error:
            found[str(error)] = None
    lines = list(found)
    if len(lines) > FAULTS:
        lines[FAULTS - 1 :] = [f"and {len(lines) - FAULTS + 1} more faults in the data"]
    if lines:
        raise ValueError("\n".join(lines))
    return shapes


def _heldout_faults(data: SourceConfig, layouter: Layouter) -> list[str]:
    """What is wrong with any held-out sample, or with the media of the first ones."""
    found: dict[str, None] = {}
    for number in range(len(source := data.open())):
        try:
            layout = layouter(source[number], answer=False)
            if number < HELDOUT_READ:
                read_items((layout,), layouter.branches)
        except ValueError as error:
            found[str(error)] = None
    return list(found)


def _components(recipe: Recipe, stage: str, model: OmniModel) -> dict[str, dict[str, Any]]:
    modalities = built(recipe, stage)
    encoders = {recipe.modalities[name].encoder for name in modalities}
    kept = {"backbone", *(f"encoders.{name}" for name in encoders)}
    kept |= {f"modalities.{name}.projector" for name in modalities}
    for target in recipe.stages[stage].init:
        if target not in kept:
            raise ValueError(
                f"stages.{stage}.init.{target}: no sample of the stage reaches it, so it is not built here; "
                "move this to the first stage that has data for it"
            )
    parameters = {
        path: {f"{path}.{name}": parameter for name, parameter in module.named_parameters()}
        for path, module in components(model).items()
    }
    names = [name for path in parameters if path in kept for name in parameters[path]]
    rules = rules_by_parameter(names, recipe, stage)
    found = {}
    for path, own in parameters.items():
        rates: dict[str, float | None] = {}
        trainable = 0
        for name, parameter in own.items():
            if name in rules:
                rule = rules[name].rule
                rates[rules[name].path] = None if rule is None else rule.lr
                trainable += 0 if rule is None else parameter.numel()
        distinct = set(rates.values())
        found[path] = {
            "params": sum(parameter.numel() for parameter in own.values()),
            "trainable": trainable,
            "lr": rates if len(distinct) > 1 else next(iter(distinct), None),
            "built": path in kept,
        }
    return found


def _tokens(recipe: Recipe) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for name, modality in recipe.modalities.items():
        sizes = modality.reader.sizes(recipe.encoders[modality.encoder].input)
        try:
            found[name] = {size: count(modality.projector.shrink(grid)) for size, grid in sizes.items()}
        except ValueError as error:
            raise ValueError(f"modalities.{name}.projector: {error}") from error
    return found


def _warnings(recipe: Recipe, tokens: dict[str, dict[str, int]]) -> list[str]:
    found = []
    sources = {f"data.{name}": source for name, source in recipe.data.items()}
    sources |= {f"heldout.{name}.data": entry.data for name, entry in recipe.heldout.items()}
    for path, source in sources.items():
        missing = source.missing()
        if missing is not None:
            found.append(f"{path}: {missing} is not there yet; `omnikit train` needs it")
    for name, stage in recipe.stages.items():
        reached = reach(recipe, name)
        for modality, sizes in tokens.items():
            largest, most = max(sizes.items(), key=lambda pair: pair[1], default=("none", 0))
            if f"modalities.{modality}.projector" in reached and most > stage.batch.length:
                found.append(
                    f"stages.{name}.batch.length: {stage.batch.length} positions are fewer than the {most} tokens of "
                    f"modality {modality} at its largest ({largest}); such media are made smaller, or dropped"
                )
    return found
