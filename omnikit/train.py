"""Training: `train` goes through the recipe's stages, `train_stage` is one of them from top to bottom.

The same call again resumes: a stage that is finished is left alone, one that was cut off goes on from its last
committed step, and ends with bitwise the weights of a run that was never cut.
"""

import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from omnikit.account import Account, Outcome
from omnikit.balancing import uneven_places
from omnikit.checking import check_data, check_recipe
from omnikit.checkpoint import BAD, RunFolder
from omnikit.compiling import check_compilers, compiler_fault
from omnikit.data import Step, layouter_of
from omnikit.distributed import World, alone, local, sum_replicas
from omnikit.heldout_loss import HeldOut
from omnikit.indexing import Note
from omnikit.interrupts import Interrupted, Requests
from omnikit.kernels import hold_frozen
from omnikit.mixing import seed_of
from omnikit.model import OmniModel
from omnikit.recipe import Recipe, built, within
from omnikit.sample import Layouter
from omnikit.saving import Saver
from omnikit.stages import components, rate_factor, trained, units_of
from omnikit.starting import Begun, begin
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

    def prepare() -> None:
        layouter = layouter_of(recipe)
        check_recipe(recipe)
        check_tracker(recipe)
        check_compilers(compilers)
        is_new = not run.holds_run
        data = run.check(recipe)
        with warnings.catch_warnings(action="ignore"):  # what is damaged is told as its stage begins
            saved = {name: checkpoint for name in recipe.stages if (checkpoint := run.latest(name))}
        begun = {name: checkpoint.state()["indexes"] for name, checkpoint in saved.items()}
        shapes = check_data(recipe, layouter, display.indexing, begun)
        held.enter_context(run.lock())
        if is_new and run.holds_run:  # meanwhile, by another process, which has ended
            run.check(recipe)
        run.begin(recipe, data)
        for source, shape in shapes.items():
            display.note(f"data.{source}: {shape}")

    with ExitStack() as held:
        requests = held.enter_context(Requests(world.is_first))
        compilers = world.union({world.rank: compiler_fault(recipe, world.device)})
        world.agree(prepare)
        layouter = layouter_of(recipe)
        for name in recipe.stages:
            requests.defer(False)
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
    begun = begin(recipe, name, run, layouter, display, world)
    if begun is None:
        return
    model, optimizer, stage, bf16 = begun.model, begun.optimizer, recipe.stages[name], recipe.run.precision == "bf16"
    if uneven := uneven_places(stage.batch.packs, world.size, stage.batch.micro):
        display.note(f"stage {name}: {uneven}")
    flops, peak, pace = flops_of(recipe, name, model), peak_of(world, bf16), Pace()
    heldout = HeldOut(recipe, name, layouter, world, run.metrics("heldout")) if recipe.run.eval else None
    tracker = recipe.run.tracker if world.is_first else None
    display.stage(name, begun.step, begun.steps)
    with (
        Saver(run, world) as saver,
        Tracking(tracker, Place(run.path, name, begun.step, recipe), display) as tracking,
        Watchdog(name, _watched(model, recipe), world, recipe.run.hang) as watchdog,
    ):
        requests.defer(True)
        if begun.lasting:
            saver.save(name, 0, begun.unchanged(), begun.state(), recipe.run.keep)
        if bf16:
            hold_frozen(model, torch.bfloat16)
        ended = time.perf_counter()
        watchdog.move(f"step {begun.step + 1}: reading")
        for work in begun.data.steps(begun.position, world.rank, world.size):
            began = time.perf_counter()
            step = begun.step = begun.step + 1
            begun.position = work.after
            watchdog.move(f"step {step}: model")
            # Chance is arithmetic too: a resumed step draws what it would have drawn.
            torch.manual_seed(seed_of(recipe.run.seed, name, step, world.rank))
            factor = rate_factor(stage.schedule, step, begun.steps)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor

            account = Account(built(recipe, name), world)
            for number, batch in enumerate(work.batches, 1):
                sum_replicas(model, number == len(work.batches))
                with torch.autocast(world.device.type, torch.bfloat16, enabled=bf16):
                    loss = model(batch.to(world.device))
                watchdog.move(f"step {step}: backward")
                loss.total.backward()
                account.add(batch, loss, flops(batch))
            gradients = _gradients(model, name)
            watchdog.move(f"step {step}: sums over ranks")
            times = began - ended, watchdog.take_busy()
            # A checkpoint that failed is told of at once, on every rank alike: by the one that is now due.
            asked = bool(requests.asked) or saver.has_failed
            told = account.settle(gradients, len(work.bad()), asked, times)

            _count_bad(begun, work, told, run, world)
            if _is_to_be_made(begun, work, told, run, display, world):
                # Sums were differentiated; one division by the label tokens of the whole step makes them a mean.
                scale = min(1.0, stage.clip / (told.norm + 1e-6)) / max(told.num_labels, 1)
                torch._foreach_mul_([local(gradient) for group in gradients.values() for gradient in group], scale)
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            gradients.clear()  # or the next step would hold two sets of them

            now = time.perf_counter()
            record: dict[str, Any] = {
                "stage": name,
                "step": step,
                **told.record(),
                "rate": factor,
                "seconds": now - began,
                "tokens_per_second": told.tokens / (now - ended),
                "mfu": told.flops / (now - ended) / peak,
                "memory": peak_memory(world.device),
            }
            # The metrics come first: a kill in between loses none, and lines without a checkpoint are forgotten.
            if world.is_first:
                run.log(record)
                tracking.log(record)
            last = step == begun.steps
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
                watchdog.move(f"step {step}: saving")
                saver.save(name, step, begun.tensors(), begun.state(), recipe.run.keep)
            display.step(record)
            if told.asked and not (last and name == list(recipe.stages)[-1]):
                saver.wait()
                raise Interrupted(f"stages.{name}: stopped and saved after step {step} of {begun.steps}")
            if last:
                return
            if slow := pace.add([sum(pair) for pair in zip(told.waits, told.busy, strict=True)], record["seconds"]):
                display.note(f"stage {name}: {slow}")
            ended = time.perf_counter()
            watchdog.move(f"step {step + 1}: reading")


def _count_bad(begun: Begun, work: Step, told: Outcome, run: RunFolder, world: World) -> None:
    """List a step's bad samples and count them, on every rank alike. Too many of them stop the run."""
    bad = world.union(work.bad()) if told.bad else {}
    if world.is_first:
        notes = [(sample.source, Note(sample.id, "bad", sample.bad)) for _, sample in sorted(bad.items())]
        run.list_samples(begun.name, begun.step, notes)
    if (verdict := begun.ledger.add(work.seen(bad))) is not None:
        raise TrainingStopped(
            f"{verdict}. All are listed in {run.path / BAD}; replace their files, then give the same command again"
        )


def _is_to_be_made(begun: Begun, work: Step, told: Outcome, run: RunFolder, display: Display, world: World) -> bool:
    """Whether a step's loss and gradient are finite numbers; every rank finds the same. Where not, its samples are
    listed, and the run stops unless the recipe lets it go on.
    """
    verdict = begun.skips.add(not told.is_finite, begun.step)
    if told.is_finite:
        return True
    fault = f"stages.{begun.name}: step {begun.step}: loss {told.loss}, gradient norm {told.norm}"
    ids = begun.data.ids(work, told.faulty, world.size)
    if world.is_first:
        run.list_samples(begun.name, begun.step, [(source, Note(id, "nonfinite", fault)) for source, id in ids])
    if verdict is not None:
        listed = ", ".join(id for _, id in ids)
        raise TrainingStopped(f"{fault}; {verdict}. Its samples: {listed}. Lower the rates, or look at these")
    display.note(f"{fault}; the step was skipped, {begun.skips.total} of this stage so far")
    return False


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
