"""Ranks: how a run joins them, what they agree on, and how the model is cut up among them.

A run of one process is a world of one rank and uses nothing of torch.distributed. Ranks are started by torchrun (which
`omnikit train --nproc N` runs) or by SLURM's srun; the same code then runs on every rank, and every rank does the same.

Weights are sharded by FSDP2: each block of a component is a unit of its own, and all that remains (embeddings, norms,
heads, projectors) belongs to the root. `run.shard` says how many ranks hold one copy of the weights between them; with
fewer than all there are replicas (hybrid sharding), whose gradients are summed once a step.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")

WAITING = timedelta(days=1)
"""How long ranks wait for one another before torch gives up: the first one may index a large data set meanwhile. That
a step hangs is noticed by `omnikit.watchdog`."""

MEETING = timedelta(minutes=5)
"""How long they wait until all are there and connected."""
PARTED = ("Connection reset by peer", "Connection closed by peer", "remote process exited", "gloo/transport")
"""By which an error of torch's tells that another rank is gone: of gloo, of NCCL, of the store."""


class World(NamedTuple):
    """The ranks of a run, and which of them this process is."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """The number of this rank on its machine."""
    locals: int = 1
    """Ranks on this machine."""
    device: torch.device = torch.device("cpu")
    mesh: DeviceMesh | None = None
    """(replicas, ranks that hold one copy of the weights); None for a single rank."""
    side: "dist.ProcessGroup | None" = None
    """All ranks once more, for what a thread beside the training does."""
    store: "dist.Store | None" = None
    """Small texts that every rank can read and write without waiting for another."""

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that speaks and writes."""
        return self.rank == 0

    @property
    def replicas(self) -> int:
        """Copies of the weights."""
        return 1 if self.mesh is None else self.mesh.size(0)

    def agree(self, function: Callable[[], T], group: "dist.ProcessGroup | None" = None) -> T:
        """What the function gives on the first rank, on every rank; an error there ends all ranks.

        The first rank raises it; the others leave without a word of their own. Not called on them: the function.
        """
        if self.size == 1:
            return function()
        answer: list[Any] = [None]
        error: BaseException | None = None
        try:
            answer = [function()] if self.is_first else [None]
        except BaseException as caught:  # whatever it is: the others must not wait for ever
            error = caught
        answer.append(error is None)
        dist.broadcast_object_list(answer, src=0, group=group)
        if error is not None:
            raise error
        if not answer[1]:
            raise SystemExit(2)
        return answer[0]

    def union(self, own: Mapping[Any, T]) -> dict[Any, T]:
        """The mappings of all ranks in one."""
        if self.size == 1:
            return dict(own)
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, dict(own))
        return {key: value for part in found for key, value in part.items()}

    def add(self, sums: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(sums)
        return sums

    def copies(self, held: int | None) -> "World":
        """The world in which so many ranks hold one copy of the weights between them, by default those of a machine.

        Where their number does not divide that of all, it is a ValueError.
        """
        held = held or min(self.size, self.locals)
        if self.size % held:
            told = f"run.shard: {held} does not divide the number of ranks, {self.size}"
            raise ValueError(f"{told}; give a divisor of it, remove it, or start other ranks")
        if self.size == 1:
            return self
        shape = (self.size // held, held)
        return self._replace(mesh=init_device_mesh(self.device.type, shape, mesh_dim_names=("replicate", "shard")))

    def meet(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()


ALONE = World()
"""A single rank, on the CPU."""


def alone() -> World:
    """A single rank, on the GPU where there is one."""
    return ALONE._replace(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))


class Launched(NamedTuple):
    """What a launcher says of this process."""

    rank: int
    size: int
    local: int
    locals: int


def launched(environ: Mapping[str, str]) -> Launched | None:
    """What torchrun or a step of SLURM says of this process; None where nothing launched several."""
    if "WORLD_SIZE" in environ and "RANK" in environ:
        keys = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        defaults = ("0", "1", "0", "1")
    elif int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # set by srun alone, not by a batch script
        keys = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
        defaults = ("0", "1", "0", "1")
    else:
        return None
    # SLURM's "4(x2),3" are nodes of four, four and three tasks; ours is rarely another than the first.
    told = (environ.get(key, given) for key, given in zip(keys, defaults, strict=True))
    return Launched(*(int(re.split(r"\D", text)[0]) for text in told))


@contextmanager
def joined() -> Iterator[World]:
    """The world that this process belongs to, for as long as it lasts; `copies` says later how weights are shared."""
    place = launched(os.environ)
    if place is None or place.size == 1:
        yield alone()
        return
    cuda = torch.cuda.is_available()
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"], port = _slurm_master(os.environ)
        os.environ.setdefault("MASTER_PORT", port)
    device = torch.device("cuda", place.local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    meeting, _, _ = next(rendezvous("env://", place.rank, place.size, timeout=MEETING))
    meeting = dist.PrefixStore(attempt(os.environ), meeting)
    dist.init_process_group(backend, store=meeting, rank=place.rank, world_size=place.size, timeout=MEETING)
    store = dist.PrefixStore("omnikit", dist.distributed_c10d._get_default_store())
    try:
        side = dist.new_group(backend="gloo", timeout=MEETING)
        for group in (dist.group.WORLD, side):
            dist.set_timeout(WAITING, group)
        yield World(*place, device=device, side=side, store=store)
    except RuntimeError as error:
        sign = next((sign for sign in PARTED if sign in str(error)), None)
        if sign is None:
            raise
        remedy = "the same command again goes on from the last checkpoint"
        raise ConnectionError(f"another rank is gone ({sign}); {remedy}") from error
    # Only where all is well: after an error others may be gone, and to part from them would wait for them.
    dist.destroy_process_group()


def attempt(environ: Mapping[str, str]) -> str:
    """The name under which the ranks of this start leave one another their addresses.

    torchrun's store outlives a restart, and with it the addresses of ranks that are gone: whoever reads those waits in
    vain. On one machine its restarts are counted. On several each machine counts its own, so there the store must be
    one of the ranks' own: where it is not, a restart is a ValueError.
    """
    count = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    outlives = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if outlives and count != "0" and environ.get("GROUP_WORLD_SIZE", "1") != "1":
        told = "torchrun: ranks on several machines that were started again would meet those of the start before"
        raise ValueError(f"{told}; export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun, on every machine")
    return f"start {count}" if outlives else "start"


def _slurm_master(environ: Mapping[str, str]) -> tuple[str, str]:
    """Address and port at which the ranks of a SLURM step meet: its first node, and a port made from its job."""
    nodes = environ.get("SLURM_STEP_NODELIST", environ.get("SLURM_NODELIST", "localhost"))
    try:
        names = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(
            f"SLURM: the first of the nodes {nodes} cannot be found out ({error}); export MASTER_ADDR and MASTER_PORT"
        ) from error
    return names.stdout.split()[0], str(20_000 + int(environ.get("SLURM_JOB_ID", "0")) % 20_000)


def shard(model: nn.Module, units: Iterable[nn.Module], world: World, bf16: bool) -> None:
    """Cut the model's parameters up among the ranks; the model of a single rank goes whole to its device.

    `units` are the modules that are gathered for themselves, inner ones first.

    Parameters stay float32; with `bf16` they are gathered in bfloat16 and gradients are summed in float32. Gradients
    are sums over ranks, not means: what they are divided by is known only when the whole step's labels are counted.
    """
    if world.mesh is None:
        model.to(world.device)
        return
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for unit in units:
        fully_shard(unit, mesh=world.mesh, mp_policy=policy)
    # The root is used at both ends of a step: it stays gathered in between.
    fully_shard(model, mesh=world.mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply while it sums


def sum_replicas(model: nn.Module, now: bool) -> None:
    """Whether the next backward pass sums gradients over the replicas: once a step is enough."""
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(now)


@torch.no_grad()
def spread(tensors: Mapping[str, Tensor], whole: Mapping[str, Tensor], world: World) -> None:
    """Fill every rank's `tensors` with the values that the first rank has in `whole`, one tensor after another."""
    if world.size == 1:
        return
    for name, tensor in tensors.items():
        full = whole[name].to(world.device) if world.is_first else torch.empty(tensor.shape, dtype=tensor.dtype)
        full = full.to(world.device)
        if isinstance(tensor, DTensor):
            # The first rank of each copy sends every other its part, then the copies are made.
            part = distribute_tensor(full, tensor.device_mesh, tensor.placements)
            tensor.to_local().copy_(part.to_local())
        else:
            dist.broadcast(full, src=0)
            tensor.copy_(full)


def local(tensor: Tensor) -> Tensor:
    """What of a tensor this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
