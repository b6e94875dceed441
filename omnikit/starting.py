"""A stage as it begins, or goes on where it was cut off: its data, its model on all ranks, its optimizer, its counts.

What a stage trains is saved at its steps; what it leaves as it is, once, as its step 0, where no stage before has saved
it. So a tensor's value is in the newest checkpoint that has it, of this stage or of one before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from omnikit.balancing import costing
from omnikit.checkpoint import Checkpoint, RunFolder, flat_tensors
from omnikit.compiling import compile_in_place
from omnikit.data import Position, StageData
from omnikit.distributed import World, shard, spread
from omnikit.filling import Display as Filling
from omnikit.filling import use_features
from omnikit.ledger import Ledger, Skips
from omnikit.model import OmniModel
from omnikit.protocols import blocks
from omnikit.recipe import Recipe, built, recomputes, within
from omnikit.sample import Layouter
from omnikit.stages import (
    apply_rules,
    build,
    components,
    initialise,
    optimizer_of,
    recompute,
    rules_by_parameter,
    trained,
    units_of,
)
from omnikit.tensorfiles import load_into, names_in


class Display(Filling, Protocol):
    """Who is told what beginning takes."""

    def indexing(self, source: str, done: int, records: int) -> None:
        """So many of a source's records are indexed."""
        ...


@dataclass
class Begun:
    """A stage that has begun. `step` and `position` are where it stands."""

    name: str
    data: StageData
    model: OmniModel
    optimizer: torch.optim.AdamW
    ledger: Ledger
    skips: Skips
    step: int
    steps: int
    position: Position
    cached: bool
    """Whether frozen encoders' features come from the cache."""
    parents: list[str]
    """The hash of the checkpoint that it began with."""
    lasting: list[str]
    """Tensors that it leaves as they are and nobody has saved."""

    def state(self) -> dict[str, Any]:
        """What is saved beside the tensors."""
        return {
            "stage": self.name,
            "step": self.step,
            "steps": self.steps,
            "position": list(self.position),
            "plan": self.data.mark(self.position),
            "indexes": self.data.digests,
            "ledger": dict(self.ledger.counts),  # as it is now: what is written is written later
            "skips": self.skips.counts,
            "cached": self.cached,
            "parents": self.parents,
            "ties": flat_tensors(self.model)[1],
        }

    def unchanged(self) -> dict[str, Tensor]:
        """What is saved as step 0. Not to be kept: frozen layers are held in other memory soon."""
        tensors = flat_tensors(self.model)[0]
        return {name: tensors[name] for name in self.lasting}

    def tensors(self) -> dict[str, Tensor]:
        """What is saved after a step. The next stage begins with a fresh optimizer: the last step needs none."""
        state = {} if self.step == self.steps else optimizer_tensors(self.model, self.optimizer)
        return changing(self.model) | state


def begin(
    recipe: Recipe, name: str, run: RunFolder, layouter: Layouter, display: Display, world: World
) -> Begun | None:
    """The stage where it begins or goes on; None where it has ended. Every rank calls it alike."""
    stage = recipe.stages[name]
    resumed = world.agree(lambda: run.latest(name))
    state = {} if resumed is None else resumed.state()
    if resumed is not None and resumed.step >= state["steps"]:
        return None
    data = StageData(recipe, name, layouter, display.indexing, state.get("indexes", {}))
    indexes = world.union({world.rank: data.digests})
    world.agree(lambda: _check_alike(indexes))
    steps = data.steps_planned

    # The model as the stages before left it, on the first rank; elsewhere as its memory was.
    model = start_of(recipe, name, run, fill=world.is_first)
    rules = rules_by_parameter((parameter for parameter, _ in model.named_parameters()), recipe, name)
    apply_rules(model, rules)
    step, position = 0, Position()
    if resumed is not None:
        step, position = resumed.step, Position(*state["position"])
        _check_plan(state, data, position, resumed)
    # A stage that began without features, since they were too large, goes on without them.
    cached = state.get("cached", stage.cache)
    if cached:
        cached = use_features(recipe, name, model, data, position, steps - step, display, resumed is not None, world)
    if cached != stage.cache:
        data.costing = costing(recipe, name, cached)

    cut_up(model, recipe, world)
    optimizer = optimizer_of(model, rules)
    if resumed is not None:
        _restore(model, optimizer, resumed)

    def of_the_folder() -> tuple[list[str], list[str]]:
        run.forget_after(name, step)
        if step == 0:
            run.list_samples(name, 0, ((key, note) for key, index in data.indexes.items() for note in index.notes()))
        hashes = [checkpoint.hash() for checkpoint in ancestors(recipe, name, run)[:1]]
        return hashes, _unsaved(model, recipe, name, run) if step == 0 else []

    parents, lasting = world.agree(of_the_folder)
    return Begun(
        name=name,
        data=data,
        model=model,
        optimizer=optimizer,
        ledger=Ledger(data.may_fail, state.get("ledger", {})),
        skips=Skips(recipe.run.on_nonfinite == "skip", *state.get("skips", ())),
        step=step,
        steps=steps,
        position=position,
        cached=cached,
        parents=parents,
        lasting=lasting,
    )


def cut_up(model: OmniModel, recipe: Recipe, world: World) -> None:
    """Recompute and compile blocks as the recipe says, and cut the first rank's model up among all ranks."""
    units = units_of(model)
    for path, component in components(model).items():
        if recomputes(recipe, path):
            recompute(blocks(component))
    if recipe.run.compile:
        compile_in_place(units)
    whole = flat_tensors(model)[0]
    shard(model, units, world, recipe.run.precision == "bf16")
    spread(flat_tensors(model)[0], whole, world)


def _check_alike(indexes: Mapping[int, Mapping[str, str]]) -> None:
    """Refuse ranks that have other lengths than the first: each would plan other steps."""
    for rank, digests in indexes.items():
        for name, digest in digests.items():
            if digest != indexes[0][name]:
                raise ValueError(
                    f"data.{name}: has other lengths on rank {rank} than on rank 0; its media, or the versions of what "
                    "reads them, differ between their machines: make them alike"
                )


def _check_plan(state: Mapping[str, Any], data: StageData, position: Position, checkpoint: Checkpoint) -> None:
    """Refuse to go on with a plan other than the one that was begun."""
    changed = [name for name, digest in data.digests.items() if state["indexes"].get(name) != digest]
    if changed:
        raise ValueError(
            f"{checkpoint.folder}: data.{changed[0]} has other lengths now than when this was saved; its media, or the "
            "versions of what reads them, have changed: restore them, or give --out another folder"
        )
    if data.mark(position) != state["plan"]:
        raise ValueError(
            f"{checkpoint.folder}: its next samples are planned another way now; the versions of grain, numpy or "
            "omnikit have changed (lock.json): restore them, or give --out another folder"
        )


def start_of(recipe: Recipe, name: str, run: RunFolder, fill: bool = True) -> OmniModel:
    """The model with which a stage begins: what its recipe entry builds, as the stages before left it, after `init`.

    Unless `fill`, parameters are as their memory was: they are to come from another rank.
    """
    stage = recipe.stages[name]
    wanted = frozenset(built(recipe, name))
    # A tensor may be copied from a component that this stage does not build.
    lent = frozenset(
        modality
        for modality, entry in recipe.modalities.items()
        if {f"modalities.{modality}.projector", f"encoders.{entry.encoder}"} & set(stage.init.values())
    )
    if not fill:
        return build(recipe, wanted, fill=False)
    model = build(recipe, wanted | lent)
    inherit(model, ancestors(recipe, name, run))
    initialise(model, dict(stage.init), name)
    model.drop(lent - wanted)
    if (begun := run.beginning(name)) is not None:
        load_into(begun.folder, flat_tensors(model)[0])
    return model


def inherit(model: OmniModel, checkpoints: list[Checkpoint]) -> None:
    """Take each tensor from the newest checkpoint that has it; one that none has keeps its start."""
    remaining = flat_tensors(model)[0]
    for checkpoint in checkpoints:
        filled = load_into(checkpoint.folder, remaining)
        remaining = {name: tensor for name, tensor in remaining.items() if name not in filled}


def ancestors(recipe: Recipe, name: str | None, run: RunFolder) -> list[Checkpoint]:
    """What the stages before `name` (all stages when None) have saved last and first, newest first."""
    names = list(recipe.stages)
    before = names if name is None else names[: names.index(name)]
    found = [checkpoint for stage in before for checkpoint in (run.beginning(stage), run.latest(stage))]
    return list(dict.fromkeys(checkpoint for checkpoint in reversed(found) if checkpoint is not None))


def changing(model: OmniModel) -> dict[str, Tensor]:
    """The tensors that a stage changes: those that train, and the buffers of components of which something trains."""
    tensors, parameters = flat_tensors(model)[0], dict(model.named_parameters())
    moving = {path for path, component in components(model).items() if component.training}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if (parameters[name].requires_grad if name in parameters else any(within(name, path) for path in moving))
    }


def _unsaved(model: OmniModel, recipe: Recipe, name: str, run: RunFolder) -> list[str]:
    """The tensors that the stage leaves as they are and that nobody has saved as they are."""
    if run.beginning(name) is not None:
        return []
    saved: set[str] = set()
    for checkpoint in ancestors(recipe, name, run):
        saved |= names_in(checkpoint.folder)
    copied = recipe.stages[name].init
    lasting = flat_tensors(model)[0].keys() - changing(model).keys()
    return sorted(path for path in lasting if path not in saved or any(within(path, target) for target in copied))


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by the names of the parameters."""
    return {
        f"optim.state.{name}.{key}": value
        for name, parameter in trained(model).items()
        for key, value in optimizer.state[parameter].items()
    }


def _restore(model: OmniModel, optimizer: torch.optim.AdamW, checkpoint: Checkpoint) -> None:
    for parameter in trained(model).values():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    wanted = changing(model) | optimizer_tensors(model, optimizer)
    missing = set(wanted) - load_into(checkpoint.folder, wanted)
    if missing:
        raise ValueError(
            f"{checkpoint.folder}: lacks {len(missing)} tensors, such as {sorted(missing)[0]}; it belongs to another "
            "recipe or another version; give --out another folder"
        )
