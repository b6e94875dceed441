"""What the processes compute that are the ranks of a group."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from omnikit.checkpoint import RunFolder
from omnikit.data import Entry, StageData, layouter_of
from omnikit.distributed import World, sum_replicas
from omnikit.recipe import Recipe
from omnikit.stages import apply_rules, rules_by_parameter
from omnikit.starting import cut_up, start_of
from omnikit.verification.batches import batch_of, fitting
from omnikit.verification.observing import gradients_of
from omnikit.verification.taking import Taken, taken

HANGING = 0.7
"""The part of the time that ranks have after which a step in which nothing moves is ended."""


def ready() -> None:
    """Import all that is needed, which may take as long as it likes."""


def taken_by_rank(recipe: Recipe, stage: str, folder: Path, token: str, seconds: float) -> Taken | None:
    """`taken` one pack at a time by all ranks together, which have so many seconds; the first tells."""
    world = _world(token)
    # The run's own watchdog is sooner, and names the rank and the module that the others wait for.
    run = recipe.run.model_copy(update={"hang": HANGING * seconds})
    found = taken(recipe.model_copy(update={"run": run}), stage, folder, 1, world)
    return found if world.is_first else None


def lacking(
    recipe: Recipe, stage: str, run: Path, slots: Sequence[Sequence[Sequence[Entry]]], token: str
) -> tuple[float, dict[str, Any]]:
    """The summed loss of these micro-batches, of which this rank computes its own, and the gradients of the sum."""
    world = _world(token).copies(None)
    model = start_of(recipe, stage, RunFolder(run), fill=world.is_first)
    apply_rules(model, rules_by_parameter((name for name, _ in model.named_parameters()), recipe, stage))
    model.eval()
    exact = recipe.run.model_copy(update={"precision": "fp32"})
    cut_up(model, recipe.model_copy(update={"run": exact}), world)

    data, length = StageData(recipe, stage, layouter_of(recipe)), recipe.stages[stage].batch.length
    total = torch.zeros((), dtype=torch.float64)
    for number, slot in enumerate(slots, 1):
        batch = batch_of([fitting(map(data.read, slot[world.rank]), length)], length)
        sum_replicas(model, number == len(slots))
        loss = model(batch).total
        loss.backward()
        total += loss.detach().double()
    gradients = gradients_of(model)
    arrays = {name: gradient.numpy() for name, gradient in gradients.items()} if world.is_first else {}
    return float(world.add(total)), arrays


def _world(token: str) -> World:
    """This process among those of its group, for work that is called so. It computes on the CPU."""
    rank, size = dist.get_rank(), dist.get_world_size()
    store = dist.PrefixStore(token, dist.distributed_c10d._get_default_store())
    return World(rank, size, rank, size, side=dist.new_group(backend="gloo"), store=store)
