"""How much of the machine a run uses: what a step costs the model, what the machine can, and the memory it takes.

Model FLOPs utilisation (arXiv 2204.02311, appendix B) counts what the model needs for what it is given, once: documents
and not padding, label positions in the head, each medium's encoder and projector, with the passes that gradients take;
never what is computed again to save memory, nor the stand-ins of absent modalities. What it is a share of is measured,
for data sheets tell of clocks and threads that a run does not have.
"""

import resource
import sys
import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from omnikit.balancing import passes
from omnikit.component import Grid
from omnikit.distributed import World
from omnikit.model import OmniModel
from omnikit.packing import Batch
from omnikit.recipe import Recipe

SIDES = (512, 1024, 2048, 4096, 8192, 16384)
"""Sides of the square matrices that are multiplied: the larger, the nearer to the peak."""
LONG = 0.02
"""Seconds that one product must take at least: what is around it no longer counts then."""
TIMES = 6
"""Products of each size, the first to warm up; the fastest counts."""


def flops_of(recipe: Recipe, stage: str, model: OmniModel) -> Callable[[Batch], float]:
    """flops(batch): FLOPs (two for each multiply-add) of the forward and backward passes that a micro-batch needs.

    The Configs' `cost`, times the passes of each component (`omnikit.balancing.passes`); a component of which anything
    trains counts as trained.
    """
    number = passes(recipe, stage, cached=bool(model.stored))
    head = recipe.backbone.cost(1, 1) - recipe.backbone.cost(1, 0)

    @cache
    def document(length: int) -> float:
        return recipe.backbone.cost(length, 0)

    @cache
    def medium(modality: str, grid: Grid) -> float:
        entry = recipe.modalities[modality]
        projected = entry.projector.cost(grid, model.encoders[entry.encoder].width, model.backbone.width)
        encoded = recipe.encoders[entry.encoder].cost(grid)
        return number[f"encoders.{entry.encoder}"] * encoded + number[f"modalities.{modality}.projector"] * projected

    def flops(batch: Batch) -> float:
        text = sum(map(document, _documents(batch.segments))) + head * len(batch.labels)
        return number["backbone"] * text + sum(
            medium(name, item.grid) for name, media in batch.media.items() for item in media.items
        )

    return flops


def _documents(segments: Tensor) -> list[int]:
    """The lengths of the documents in a batch's rows."""
    rows = torch.arange(len(segments))[:, None] * (segments.shape[1] + 1)
    return torch.unique_consecutive((rows + segments)[segments > 0], return_counts=True)[1].tolist()


def peak_of(world: World, bf16: bool) -> float:
    """FLOP/s that all ranks together reach in matrix products of the type that the run computes in.

    All measure at the same time, since they may share cores. Measured once in a process.
    """
    world.meet()
    own = _measured(world.device, torch.bfloat16 if bf16 else torch.float32, torch.get_num_threads())
    return float(world.add(torch.tensor(own, dtype=torch.float64, device=world.device)))


@cache
def _measured(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of the fastest of some square matrix products. On a CPU with so many threads, which are not set here."""
    chance = torch.Generator(device).manual_seed(0)  # nobody else's; and zeros would be multiplied faster
    best = 0.0
    for side in SIDES:
        one = torch.randn(side, side, dtype=dtype, device=device, generator=chance)
        fastest = min(_seconds(one) for _ in range(TIMES))
        best = max(best, 2 * side**3 / fastest)
        if fastest > LONG:
            break
    return best


def _seconds(one: Tensor) -> float:
    def settle() -> None:
        if one.is_cuda:
            torch.cuda.synchronize(one.device)

    settle()
    began = time.perf_counter()
    one @ one
    settle()
    return time.perf_counter() - began


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has had at most: allocated on its GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # bytes there, kilobytes elsewhere
