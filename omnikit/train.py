"""Training: `train` goes through the recipe's stages, `train_stage` is one of them from top to bottom.

The same call again resumes: a stage that is finished is left alone, one that was cut off goes on from its last
committed step, and ends with bitwise the weights of a run that was never cut.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from omnikit.checking import check_data, check_recipe
from omnikit.checkpoint import BAD, Checkpoint, RunFolder, flat_tensors, load_into
from omnikit.data import Position, StageData, layouter_of
from omnikit.filling import use_features
from omnikit.indexing import Note
from omnikit.ledger import Ledger
from omnikit.loss import Loss
from omnikit.mixing import seed_of
from omnikit.model import OmniModel
from omnikit.packing import Batch
from omnikit.recipe import Recipe, built
from omnikit.sample import Layouter
from omnikit.stages import (
    apply_rules,
    build,
    initialise,
    optimizer_of,
    rate_factor,
    recompute_blocks,
    rules_by_parameter,
    trained,
)


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


def train(recipe: Recipe, folder: Path, display: Display) -> RunFolder:
    """Train every stage of the recipe into `folder`, or go on where it was cut off.

    What is wrong with any stage, its rules or its data, is said before anything is written or trained.
    """
    layouter = layouter_of(recipe)
    check_recipe(recipe)
    run = RunFolder(folder)
    data = run.check(recipe)
    check_data(recipe, layouter, display.indexing)
    run.begin(recipe, data)
    for name in recipe.stages:
        train_stage(recipe, name, run, layouter, display)
    return run


def train_stage(recipe: Recipe, name: str, run: RunFolder, layouter: Layouter, display: Display) -> None:
    """Train one stage to its last step."""
    stage = recipe.stages[name]
    resumed = run.latest(name)
    state = {} if resumed is None else resumed.state()
    if resumed is not None and resumed.step >= state["steps"]:
        return
    data = StageData(recipe, name, layouter, display.indexing, state.get("indexes", {}))
    steps = data.steps_planned
    digests = {key: index.digest for key, index in data.indexes.items()}

    # The model as the stages before left it, with this stage's rules.
    model = start_of(recipe, name, run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    rules = rules_by_parameter((parameter for parameter, _ in model.named_parameters()), recipe, name)
    apply_rules(model, rules)
    if recipe.run.recompute:
        recompute_blocks(model)
    optimizer = optimizer_of(model, rules)

    # Where it was cut off, if it was.
    step, position, counts = 0, Position(), {}
    if resumed is not None:
        step, position, counts = resumed.step, Position(*state["position"]), state["ledger"]
        _check_plan(state, digests, data.mark(position), resumed)
        _restore(model, optimizer, resumed)
    ledger = Ledger({key: recipe.data[key].max_bad for key in stage.data}, counts)
    run.forget_after(name, step)
    if step == 0:
        run.list_samples(name, 0, ((key, note) for key, index in data.indexes.items() for note in index.notes()))
    parents = [checkpoint.hash() for checkpoint in ancestors(recipe, name, run)[:1]]
    # A stage that began without features, since they were too large, goes on without them.
    cached = state.get("cached", stage.cache)
    if cached:
        begun = resumed is not None
        cached = use_features(recipe, name, model, data, position, steps - step, display, begun)
    display.stage(name, step, steps)

    ended = time.perf_counter()
    for work in data.steps(position):
        began = time.perf_counter()
        step += 1
        bad = [(sample.source, Note(sample.id, "bad", sample.bad)) for sample in work.samples if sample.bad]
        run.list_samples(name, step, bad)
        if (told := ledger.add(work.samples)) is not None:
            raise TrainingStopped(
                f"{told}. All are listed in {run.path / BAD}; replace their files, then give the same command again"
            )
        # Chance is arithmetic too: a resumed step draws what it would have drawn.
        torch.manual_seed(seed_of(recipe.run.seed, name, step))
        factor = rate_factor(stage.schedule, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor

        sums = _Sums()
        for batch in work.batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.run.precision == "bf16"):
                loss = model(batch.to(device))
            loss.total.backward()
            sums.add(batch, loss)

        # Sums were differentiated; one division by the label tokens of the whole step makes them a mean, however the
        # step was cut into micro-batches.
        labels = sum(len(batch.labels) for batch in work.batches)
        parameters = trained(model)
        idle = [path for path, parameter in parameters.items() if parameter.grad is None]
        if idle:
            raise ValueError(
                f"stages.{name}.train: {len(idle)} parameters have a rate but no gradient, such as {idle[0]}; "
                "their module does not use them: freeze them"
            )
        torch._foreach_mul_([parameter.grad for parameter in parameters.values()], 1 / max(labels, 1))
        norm = float(nn.utils.clip_grad_norm_(parameters.values(), stage.clip))
        totals, counts = sums.read()
        mean = sum(totals.values()) / max(labels, 1)
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise TrainingStopped(
                f"stages.{name}: step {step}: loss {mean}, gradient norm {norm}; the step was not made. "
                f"Its samples: {', '.join(sample.id for sample in work.samples)}. Lower the rates, or look at these"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        record = {
            "stage": name,
            "step": step,
            "loss": mean,
            "losses": {group: totals[group] / counts[group] for group in totals if counts[group]},
            "labels": labels,
            "tokens": sum(int((batch.segments > 0).sum()) for batch in work.batches),
            "places": sum(batch.segments.numel() for batch in work.batches),
            "norm": norm,
            "rate": factor,
            "bad": len(bad),
            "wait": began - ended,
            "seconds": time.perf_counter() - began,
        }
        # The metrics come first: a kill in between loses none, and lines without a checkpoint are forgotten.
        run.log(record)
        last = step == steps
        if last or step % recipe.run.save == 0:
            # The next stage begins with a fresh optimizer, so the last checkpoint needs no state of this one.
            tensors = flat_tensors(model)[0] | ({} if last else _optimizer_tensors(model, optimizer))
            state = {
                "stage": name,
                "step": step,
                "steps": steps,
                "position": list(work.after),
                "plan": data.mark(work.after),
                "indexes": digests,
                "ledger": ledger.counts,
                "cached": cached,
                "parents": parents,
                "ties": flat_tensors(model)[1],
            }
            run.save(name, step, tensors, state, recipe.run.keep)
        display.step(record)
        if last:
            return
        ended = time.perf_counter()


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


def start_of(recipe: Recipe, name: str, run: RunFolder) -> OmniModel:
    """The model with which a stage begins: what its recipe entry builds, as the stages before left it, after `init`."""
    stage = recipe.stages[name]
    wanted = frozenset(built(recipe, name))
    # A tensor may be copied from a component that this stage does not build.
    lent = frozenset(
        modality
        for modality, entry in recipe.modalities.items()
        if {f"modalities.{modality}.projector", f"encoders.{entry.encoder}"} & set(stage.init.values())
    )
    model = build(recipe, wanted | lent)
    inherit(model, ancestors(recipe, name, run))
    initialise(model, dict(stage.init), name)
    model.drop(lent - wanted)
    return model


def inherit(model: OmniModel, checkpoints: list[Checkpoint]) -> None:
    """Take each tensor from the newest checkpoint that has it; one that none has keeps its start."""
    remaining = flat_tensors(model)[0]
    for checkpoint in checkpoints:
        filled = load_into(checkpoint.folder, remaining)
        remaining = {name: tensor for name, tensor in remaining.items() if name not in filled}


def ancestors(recipe: Recipe, name: str | None, run: RunFolder) -> list[Checkpoint]:
    """The last checkpoints of the stages before `name` (of all stages when None), newest first."""
    names = list(recipe.stages)
    before = names if name is None else names[: names.index(name)]
    found = [run.latest(stage) for stage in before]
    return [checkpoint for checkpoint in reversed(found) if checkpoint is not None]


class _Sums:
    """Loss sums and label counts of a step, by group. Read only once the whole step is on its way: one host sync."""

    def __init__(self) -> None:
        self.parts: list[tuple[list[str], Tensor, Tensor]] = []

    def add(self, batch: Batch, loss: Loss) -> None:
        self.parts.append((batch.group_names, loss.by_group, loss.counts))

    def read(self) -> tuple[dict[str, float], dict[str, int]]:
        totals: dict[str, float] = {}
        counts: dict[str, int] = {}
        for names, sums, labels in self.parts:
            for group, total, number in zip(names, sums.tolist(), labels.tolist(), strict=True):
                totals[group] = totals.get(group, 0.0) + total
                counts[group] = counts.get(group, 0) + number
        return totals, counts


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
    wanted = flat_tensors(model)[0] | _optimizer_tensors(model, optimizer)
    missing = set(wanted) - load_into(checkpoint.folder, wanted)
    if missing:
        raise ValueError(
            f"{checkpoint.folder}: lacks {len(missing)} tensors, such as {sorted(missing)[0]}; it belongs to another "
            "recipe or another version; give --out another folder"
        )
