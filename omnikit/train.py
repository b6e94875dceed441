"""Training: `train` goes through the recipe's stages, `train_stage` is one of them from top to bottom.

The same call again resumes: a stage that is finished is left alone, one that was cut off goes on from its last
committed step, and ends with bitwise the weights of a run that was never cut.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from omnikit.account import Account
from omnikit.checking import check_data, check_recipe
from omnikit.checkpoint import BAD, Checkpoint, RunFolder, flat_tensors, load_into, names_in
from omnikit.data import Position, StageData, layouter_of
from omnikit.distributed import World, alone, local, shard, spread, sum_replicas
from omnikit.filling import use_features
from omnikit.heldout_loss import HeldOut
from omnikit.indexing import Note
from omnikit.interrupts import Interrupted, Requests
from omnikit.ledger import Ledger, Skips
from omnikit.mixing import seed_of
from omnikit.model import OmniModel
from omnikit.recipe import Recipe, built, within
from omnikit.sample import Layouter
from omnikit.saving import Saver
from omnikit.stages import (
    apply_rules,
    build,
    compile_in_place,
    components,
    initialise,
    optimizer_of,
    rate_factor,
    recompute,
    rules_by_parameter,
    trained,
    units_of,
)
from omnikit.tracking import Place, Tracking, check_tracker
from omnikit.utilisation import flops_of, peak_memory, peak_of
from omnikit.watchdog import Pace, Watchdog


class TrainingStopped(RuntimeError):
    """The run stopped itself; everything up to its last checkpoint is kept."""


class Display(Protocol):
    """Who watches a run."""

    def indexing(self, source: str, done: int, records: int) -> None:
        """So many of a source's records are indexed. Not called where the index is in the cache."""
        ...

    def caching(self, what: str, done: int, total: int) -> None:
        """So many media of a stage are found, or features made, for its cache."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...

    def stage(self, name: str, done: int, steps: int) -> None:
        """A stage begins, or goes on after `done` steps."""
        ...

    def step(self, record: Mapping[str, Any]) -> None:
        """A step was made; `record` is its line of metrics.jsonl."""
        ...

    def heldout(self, record: Mapping[str, Any]) -> None:
        """Held-out samples were measured; `record` is their line of metrics.jsonl. Called where `run.eval` is set."""
        ...


def train(recipe: Recipe, folder: Path, display: Display, world: World | None = None) -> RunFolder:
    """Train every stage of the recipe into `folder`, or go on where it was cut off. Every rank calls it alike.

    What is wrong with any stage, its rules or its data, is said before anything is written or trained. A run that is
    asked to stop (`omnikit.interrupts`) saves, and raises Interrupted.
    """
    world = (world or alone()).copies(recipe.run.shard)
    run = RunFolder(folder)

    def begin() -> None:
        layouter = layouter_of(recipe)
        check_recipe(recipe)
        check_tracker(recipe)
        data = run.check(recipe)
        check_data(recipe, layouter, display.indexing)
        held.enter_context(run.lock())
        run.begin(recipe, data)

    with ExitStack() as held:
        world.agree(begin)
        layouter = layouter_of(recipe)
        requests = held.enter_context(Requests())
        for name in recipe.stages:
            train_stage(recipe, name, run, layouter, display, world, requests)
    return run


def train_stage(
    recipe: Recipe,
    name: str,
    run: RunFolder,
    layouter: Layouter,
    display: Display,
    world: World,
    requests: Requests,
) -> None:
    """Train one stage to its last step."""
    stage = recipe.stages[name]
    resumed = world.agree(lambda: run.latest(name))
    state = {} if resumed is None else resumed.state()
    if resumed is not None and resumed.step >= state["steps"]:
        return
    data = StageData(recipe, name, layouter, display.indexing, state.get("indexes", {}))
    steps = data.steps_planned
    digests = {key: index.digest for key, index in data.indexes.items()}

    # The model as the stages before left it, on the first rank; elsewhere as its memory was.
    model = start_of(recipe, name, run, fill=world.is_first)
    rules = rules_by_parameter((parameter for parameter, _ in model.named_parameters()), recipe, name)
    apply_rules(model, rules)
    step, position = 0, Position()
    if resumed is not None:
        step, position = resumed.step, Position(*state["position"])
        _check_plan(state, digests, data.mark(position), resumed)
    # A stage that began without features, since they were too large, goes on without them.
    cached = state.get("cached", stage.cache)
    if cached:
        cached = use_features(recipe, name, model, data, position, steps - step, display, resumed is not None, world)

    # Cut up among the ranks.
    units = units_of(model)
    if recipe.run.recompute:
        recompute(units)
    if recipe.run.compile:
        compile_in_place(units)
    whole = flat_tensors(model)[0]
    shard(model, units, world, recipe.run.precision == "bf16")
    spread(flat_tensors(model)[0], whole, world)
    del whole
    optimizer = optimizer_of(model, rules)
    if resumed is not None:
        _restore(model, optimizer, resumed)

    ledger = Ledger({key: recipe.data[key].max_bad for key in stage.data}, state.get("ledger", {}))
    skips = Skips(recipe.run.on_nonfinite == "skip", *state.get("skips", ()))
    parents = world.agree(lambda: [checkpoint.hash() for checkpoint in ancestors(recipe, name, run)[:1]])
    if world.is_first:
        run.forget_after(name, step)
        if step == 0:
            run.list_samples(name, 0, ((key, note) for key, index in data.indexes.items() for note in index.notes()))

    def state_at(step: int, position: Position) -> dict[str, Any]:
        return {
            "stage": name,
            "step": step,
            "steps": steps,
            "position": list(position),
            "plan": data.mark(position),
            "indexes": digests,
            "ledger": dict(ledger.counts),  # as it is now: what is written is written later
            "skips": skips.counts,
            "cached": cached,
            "parents": parents,
            "ties": flat_tensors(model)[1],
        }

    flops, peak = flops_of(recipe, name, model), peak_of(world, recipe.run.precision == "bf16")
    heldout = HeldOut(recipe, name, layouter, world, run.metrics("heldout")) if recipe.run.eval else None
    tracker = recipe.run.tracker if world.is_first else None
    display.stage(name, step, steps)
    pace = Pace()
    with (
        Saver(run, world) as saver,
        Tracking(tracker, Place(run.path, name, step, recipe), display) as tracking,
        Watchdog(name, _watched(model, recipe), world, recipe.run.hang) as watchdog,
    ):
        lasting = world.agree(lambda: _unsaved(model, recipe, name, run)) if step == 0 else []
        if lasting:
            tensors = flat_tensors(model)[0]
            saver.save(name, 0, {path: tensors[path] for path in lasting}, state_at(0, position), recipe.run.keep)
        ended = time.perf_counter()
        watchdog.move(f"step {step + 1}: reading")
        for work in data.steps(position, world.rank, world.size):
            began = time.perf_counter()
            step += 1
            watchdog.move(f"step {step}: model")
            # Chance is arithmetic too: a resumed step draws what it would have drawn.
            torch.manual_seed(seed_of(recipe.run.seed, name, step, world.rank))
            factor = rate_factor(stage.schedule, step, steps)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor

            account = Account(built(recipe, name), world)
            for number, batch in enumerate(work.batches, 1):
                sum_replicas(model, number == len(work.batches))
                with torch.autocast(world.device.type, torch.bfloat16, enabled=recipe.run.precision == "bf16"):
                    loss = model(batch.to(world.device))
                watchdog.move(f"step {step}: backward")
                loss.total.backward()
                account.add(batch, loss, flops(batch))
            gradients = _gradients(model, name)
            bad = work.bad()
            watchdog.move(f"step {step}: sums over ranks")
            told = account.settle(gradients, len(bad), bool(requests.asked), (began - ended, watchdog.take_busy()))

            # What is bad, and whether to go on, every rank finds alike.
            bad = world.union(bad) if told.bad else {}
            if world.is_first:
                told_bad = [(one.source, Note(one.id, "bad", one.bad)) for _, one in sorted(bad.items())]
                run.list_samples(name, step, told_bad)
            if (verdict := ledger.add(work.seen(bad))) is not None:
                raise TrainingStopped(
                    f"{verdict}. All are listed in {run.path / BAD}; replace their files, then give the same command "
                    "again"
                )
            verdict = skips.add(not told.is_finite)
            if told.is_finite:
                # Sums were differentiated; one division by the label tokens of the whole step makes them a mean.
                scale = min(1.0, stage.clip / (told.norm + 1e-6)) / max(told.num_labels, 1)
                torch._foreach_mul_([local(gradient) for group in gradients.values() for gradient in group], scale)
                optimizer.step()
            else:
                fault = f"stages.{name}: step {step}: loss {told.loss}, gradient norm {told.norm}"
                ids = data.ids(work, told.faulty, world.size)
                if world.is_first:
                    run.list_samples(name, step, [(source, Note(id, "nonfinite", fault)) for source, id in ids])
                if verdict is not None:
                    listed = ", ".join(id for _, id in ids)
                    raise TrainingStopped(
                        f"{fault}; {verdict}. Its samples: {listed}. Lower the rates, or look at these"
                    )
                display.note(f"{fault}; the step was skipped")
            optimizer.zero_grad(set_to_none=True)
            gradients.clear()  # or the next step would hold two sets of them

            now = time.perf_counter()
            record: dict[str, Any] = {
                "stage": name,
                "step": step,
                "loss": told.loss if told.is_finite else None,
                "losses": told.means if told.is_finite else {},
                "labels": told.num_labels,
                "tokens": told.tokens,
                "places": told.places,
                "norm": told.norm if told.is_finite else None,
                "norms": told.norms if told.is_finite else {},
                "rate": factor,
                "bad": told.bad,
                "flops": told.flops,
                "wait": max(told.waits),
                "seconds": now - began,
                "tokens_per_second": told.tokens / (now - ended),
                "mfu": told.flops / (now - ended) / peak,
                "memory": peak_memory(world.device),
            }
            # The metrics come first: a kill in between loses none, and lines without a checkpoint are forgotten.
            if world.is_first:
                run.log(record)
                tracking.log(record)
            last = step == steps
            # Who is asked to leave has no time for it; but with the first stage's end all later ones are compared.
            if heldout and (last or (heldout.is_due(step) and not told.asked)):
                watchdog.move(f"step {step}: held-out samples")
                line = heldout.measure(model, step)
                watchdog.take_busy()  # no part of the training's pace
                if line and world.is_first:
                    run.log(line)
                    display.heldout(line)
                    tracking.log(line)
            if last or told.asked or step % recipe.run.save == 0:
                # The next stage begins with a fresh optimizer, so the last checkpoint needs no state of this one.
                watchdog.move(f"step {step}: saving")
                tensors = _changing(model) | ({} if last else _optimizer_tensors(model, optimizer))
                saver.save(name, step, tensors, state_at(step, work.after), recipe.run.keep)
            display.step(record)
            if told.asked and not last:
                saver.wait()
                raise Interrupted(f"stages.{name}: stopped and saved after step {step} of {steps}")
            if last:
                return
            if slow := pace.add([sum(pair) for pair in zip(told.waits, told.busy, strict=True)], record["seconds"]):
                display.note(f"stage {name}: {slow}")
            ended = time.perf_counter()
            watchdog.move(f"step {step + 1}: reading")


def _watched(model: OmniModel, recipe: Recipe) -> dict[str, nn.Module]:
    """The modules by which a place in the model is named: blocks, what has none, and projectors."""
    units = set() if recipe.run.compile else {id(unit) for unit in units_of(model)}  # a compiled block takes hooks in
    found = {path: module for path, module in model.named_modules() if id(module) in units}
    whole = {path: module for path, module in components(model).items() if path != "backbone"}
    return found | {path: module for path, module in whole.items() if not any(within(unit, path) for unit in found)}


def _gradients(model: OmniModel, stage: str) -> dict[str, list[Tensor]]:
    """The gradients of all that trains, by component. A parameter that has none is a ValueError."""
    found: dict[str, list[Tensor]] = {}
    idle = []
    for path, component in components(model).items():
        for name, parameter in trained(component).items():
            if parameter.grad is None:
                idle.append(f"{path}.{name}")
            else:
                found.setdefault(path, []).append(parameter.grad)
    if idle:
        raise ValueError(
            f"stages.{stage}.train: {len(idle)} parameters have a rate but no gradient, such as {idle[0]}; "
            "their module does not use them: freeze them"
        )
    return found


def _check_plan(state: Mapping[str, Any], digests: Mapping[str, str], mark: str, checkpoint: Checkpoint) -> None:
    """Refuse to go on with a plan other than the one that was begun."""
    changed = [name for name, digest in digests.items() if state["indexes"].get(name) != digest]
    if changed:
        raise ValueError(
            f"{checkpoint.folder}: data.{changed[0]} has other lengths now than when this was saved; its media, or the "
            "versions of what reads them, have changed: restore them, or give --out another folder"
        )
    if mark != state["plan"]:
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


def _changing(model: OmniModel) -> dict[str, Tensor]:
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
    lasting = flat_tensors(model)[0].keys() - _changing(model).keys()
    return sorted(path for path in lasting if path not in saved or any(within(path, target) for target in copied))


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
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
    wanted = _changing(model) | _optimizer_tensors(model, optimizer)
    missing = set(wanted) - load_into(checkpoint.folder, wanted)
    if missing:
        raise ValueError(
            f"{checkpoint.folder}: lacks {len(missing)} tensors, such as {sorted(missing)[0]}; it belongs to another "
            "recipe or another version; give --out another folder"
        )
