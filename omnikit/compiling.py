"""Compiled blocks, where the recipe asks for them (`run.compile`)."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from omnikit.recipe import Recipe

GRAPHS = 128
"""Graphs of one piece of code. All blocks share that of `nn.Module`; beyond torch's 8 they would run uncompiled."""


def compiler_fault(recipe: Recipe, device: torch.device) -> str:
    """What keeps this machine from compiling; empty where nothing does, or nothing is to be compiled."""
    if recipe.run.compile:
        try:
            torch.compile(torch.neg)(torch.ones(2, device=device))
        except RuntimeError as error:
            return str(error).splitlines()[0]
    return ""


def check_compilers(faults: Mapping[int, str]) -> None:
    """Refuse ranks that cannot compile, and so would end in their first step."""
    for rank, fault in faults.items():
        if fault:
            raise ValueError(
                f"run.compile: nothing can be compiled on the machine of rank {rank} ({fault}); install a C++ compiler "
                "such as g++ (on a GPU also what Triton needs), or remove the line"
            )


def compile_in_place(units: Iterable[nn.Module]) -> None:
    """Compile every block where it stands: no name changes, and equal blocks are compiled once."""
    for unit in units:
        # With sizes that are open from the first call on: another number of pictures is no other graph. Torch (2.14, on
        # a CPU) besides makes NaN of siglip's states, whose channels come first, where their sizes are fixed.
        unit.compile(dynamic=True, recompile_limit=GRAPHS)
