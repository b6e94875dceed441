"""The first step of a stage, as training takes it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from omnikit.distributed import ALONE, World
from omnikit.model import OmniModel
from omnikit.recipe import Recipe
from omnikit.train import train
from omnikit.verification.observing import Quiet, gradients_of, observed


class Taken(NamedTuple):
    """The first step of a stage: its record, and what its optimizer was given."""

    loss: float
    norm: float
    labels: int
    tokens: int
    gradients: dict[str, np.ndarray]
    """Arrays travel between processes; tensors would want to be shared."""

    def tensors(self) -> dict[str, Tensor]:
        """The gradients as tensors."""
        return {name: torch.from_numpy(gradient) for name, gradient in self.gradients.items()}


def taken(recipe: Recipe, stage: str, folder: Path, micro: int, world: World = ALONE) -> Taken:
    """Train the stage alone for one step in float32, by so many packs at a time, with all dropout off."""
    entry = recipe.stages[stage]
    batch = entry.batch.model_copy(update={"micro": micro})
    stages = {stage: entry.model_copy(update={"steps": 1, "batch": batch})}
    run = recipe.run.model_copy(update={"precision": "fp32"})
    display, gradients = Quiet(), dict[str, Tensor]()

    def keep(model: OmniModel) -> None:
        gradients.update(gradients_of(model))

    with observed(lambda model: model.eval() and None, keep):
        train(recipe.model_copy(update={"stages": stages, "run": run}), folder, display, world)
    [record] = display.records
    arrays = {name: gradient.numpy() for name, gradient in gradients.items()}
    return Taken(record["loss"], record["norm"], record["labels"], record["tokens"], arrays)
