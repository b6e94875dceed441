"""Named tensors in the safetensors files of a folder, whole or in parts: written by all ranks, read by any number."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from omnikit.distributed import World, local

FILE = 256 * 2**20
"""Bytes of a file of tensors, at most where no tensor is larger: writing one takes twice as much memory besides."""


def write(folder: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    """Write what each rank holds of the tensors. Every rank calls it; where a file cannot be written, a ValueError."""
    _expect_one_process()
    alone = world.size == 1
    writer = HuggingFaceStorageWriter(str(folder), _files_of(tensors), save_distributed=not alone)
    try:
        dcp.save(dict(tensors), storage_writer=writer, process_group=world.side, no_dist=alone)
    except CheckpointException as error:  # no Exception, and a page of traces
        reason, _ = next(iter(error.failures.values()))
        needed = sum(tensor.nbytes for tensor in tensors.values())
        remedy = f"make room ({needed:,} bytes), then give the same command again"
        raise ValueError(f"{folder}: cannot be written ({reason}); {remedy}") from error


def _files_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """In which file each tensor goes, from 1: the writer makes all of a file in memory before it writes any of it."""
    number, size, found = 1, 0, dict[str, int]()
    for name, tensor in tensors.items():
        own = local(tensor).nbytes
        if size and size + own > FILE:
            number, size = number + 1, 0
        found[name], size = number, size + own
    return found


def load_into(folder: Path, tensors: Mapping[str, Tensor]) -> set[str]:
    """Fill those of `tensors` that the folder holds, in place; the names filled. Other shapes are a ValueError."""
    stored = _shapes_in(folder)
    wanted = {name: tensor for name, tensor in tensors.items() if name in stored}
    for name, tensor in wanted.items():
        if stored[name] != tuple(tensor.shape):
            raise ValueError(
                f"{folder}: {name} is {stored[name]} there and {tuple(tensor.shape)} in the recipe; it belongs to "
                "another recipe; give --out another folder"
            )
    if wanted:
        _expect_one_process()
        dcp.load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return set(wanted)


def _expect_one_process() -> None:
    # Without a process group the checkpoint library warns that it assumes one process; that is what is meant. For good
    # and not around its calls: they are also made in a thread, and filters are the process's.
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def names_in(folder: Path) -> set[str]:
    """The names of the tensors in a checkpoint folder."""
    return set(_shapes_in(folder))


def _shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    # A tensor may lie in parts, in the files of several ranks.
    stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: tuple(tensor.size) for name, tensor in stored.items()}
