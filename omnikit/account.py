"""What a step comes to over all ranks: one sum of one small tensor, read by the host once.

Losses and gradients are sums until then. Only now are the label tokens of the whole step known, and with them what to
divide by; so the result is the same however a step was cut into ranks and micro-batches.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from omnikit.distributed import World, local
from omnikit.loss import Loss
from omnikit.packing import Batch


class Outcome(NamedTuple):
    """What every rank knows of a step."""

    losses: dict[str, float]
    """Summed loss by group of samples (the modalities they hold)."""
    labels: dict[str, int]
    tokens: int
    places: int
    flops: float
    """What the model costs for what it was given (`omnikit.utilisation`)."""
    norms: dict[str, float]
    """The length of the gradient of the mean loss, by component."""
    bad: int
    """Samples that could not be read."""
    asked: bool
    """Whether a rank was asked to stop."""
    waits: list[float]
    """Seconds that each rank waited for its data."""
    busy: list[float]
    """Seconds that each rank computed, as far as it is measured: not where it waits for others."""
    faulty: list[int]
    """Ranks whose own loss is no finite number."""

    @property
    def loss(self) -> float:
        """Mean over the label tokens of the step; 0 where there are none."""
        return sum(self.losses.values()) / max(self.num_labels, 1)

    @property
    def num_labels(self) -> int:
        """Label tokens of the step."""
        return sum(self.labels.values())

    @property
    def means(self) -> dict[str, float]:
        """Mean loss by group."""
        return {name: total / self.labels[name] for name, total in self.losses.items()}

    def record(self) -> dict[str, Any]:
        """What of it is logged. Of a step that could not be made there is no loss."""
        finite = self.is_finite
        return {
            "loss": self.loss if finite else None,
            "losses": self.means if finite else {},
            "labels": self.num_labels,
            "tokens": self.tokens,
            "places": self.places,
            "norm": self.norm if finite else None,
            "norms": self.norms if finite else {},
            "bad": self.bad,
            "flops": self.flops,
            "wait": max(self.waits),
        }

    @property
    def norm(self) -> float:
        """The length of the whole gradient."""
        return math.sqrt(sum(norm * norm for norm in self.norms.values()))

    @property
    def is_finite(self) -> bool:
        """Whether the step can be made."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def groups_of(modalities: Iterable[str]) -> dict[str, int]:
    """The groups of samples that can hold these modalities, one for each combination of them, numbered."""
    names = sorted(modalities)
    sets = itertools.chain.from_iterable(itertools.combinations(names, size) for size in range(len(names) + 1))
    return {"+".join(chosen) or "text": number for number, chosen in enumerate(sets)}


class Account:
    """Gathers what a rank's micro-batches come to."""

    def __init__(self, modalities: Iterable[str], world: World) -> None:
        """`modalities` are those that samples of the stage can hold: their combinations are the groups."""
        self.groups = groups_of(modalities)
        self.world = world
        self.sums = torch.zeros(2, len(self.groups), dtype=torch.float64, device=world.device)
        self.tokens = self.places = 0
        self.flops = 0.0

    def add(self, batch: Batch, loss: Loss, flops: float = 0.0) -> None:
        """Count a micro-batch, given as it was read. Nothing is fetched from the device."""
        where = torch.tensor([self.groups[name] for name in batch.group_names], device=self.world.device)
        if len(where):
            self.sums[0].index_add_(0, where, loss.by_group.double())
            self.sums[1].index_add_(0, where, loss.counts.double())
        self.tokens += int((batch.segments > 0).sum())
        self.places += batch.segments.numel()
        self.flops += flops

    def settle(
        self, gradients: Mapping[str, Sequence[Tensor]], bad: int, asked: bool, times: tuple[float, float]
    ) -> Outcome:
        """Sum over the ranks. `gradients` are those of each component, of the summed loss.

        `times` are the seconds that this rank waited for its data, and computed.
        """
        world, device = self.world, self.world.device
        squares = [
            torch.stack(torch._foreach_norm([local(gradient) for gradient in group])).double().square().sum()
            for group in gradients.values()
        ]
        own = torch.zeros(3, world.size, dtype=torch.float64, device=device)
        own[0, world.rank], own[1, world.rank] = times
        own[2, world.rank] = (~self.sums[0].isfinite().all()).double()
        numbers = [self.tokens, self.places, bad, asked, self.flops]
        numbers = torch.tensor(numbers, dtype=torch.float64, device=device)
        # Every replica holds the same gradients: each counts for its part.
        parts = [self.sums.flatten(), numbers, torch.stack(squares) / world.replicas, own.flatten()]
        told = world.add(torch.cat(parts)).tolist()

        stream = iter(told)
        losses, labels = ([next(stream) for _ in self.groups] for _ in range(2))
        tokens, places, bad_, asked_ = (int(next(stream)) for _ in range(4))
        flops = next(stream)
        total = max(sum(labels), 1)
        norms = {name: math.sqrt(next(stream)) / total for name in gradients}
        waits, busy, faulty = ([next(stream) for _ in range(world.size)] for _ in range(3))
        seen = {name: number for name, number in self.groups.items() if labels[number]}
        return Outcome(
            losses={name: losses[number] for name, number in seen.items()},
            labels={name: int(labels[number]) for name, number in seen.items()},
            tokens=tokens,
            places=places,
            flops=flops,
            norms=norms,
            bad=bad_,
            asked=asked_ > 0,
            waits=waits,
            busy=busy,
            faulty=[rank for rank, flag in enumerate(faulty) if flag],
        )
