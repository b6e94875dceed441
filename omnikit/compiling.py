"""Compiled blocks, where the recipe asks for them (`run.compile`)."""

from collections.abc import Iterable

import torch
from torch import nn

from omnikit.recipe import Recipe

GRAPHS = 128
"""Graphs of one piece of code. All blocks of transformers share some; beyond torch's 8 they would run uncompiled."""


def check_compiler(recipe: Recipe, device: torch.device) -> None:
    """Refuse to compile on a machine that cannot: better before the first step than within it."""
    if not recipe.run.compile:
        return
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        raise ValueError(
            f"run.compile: nothing can be compiled on this machine ({said}); install a C++ compiler such as g++, or "
            "remove the line"
        ) from error


def compile_in_place(units: Iterable[nn.Module]) -> None:
    """Compile every block where it stands: no name changes, and equal blocks are compiled once."""
    torch.compiler.config.recompile_limit = GRAPHS
    for unit in units:
        # With sizes that are open from the first call on: else a run that goes on, which sees other packs first, would
        # have other kernels than one that was never cut, and other last bits. Torch (2.14, on a CPU) besides makes NaN
        # of siglip's states, whose channels come first, where their sizes are fixed.
        unit.compile(dynamic=True)
