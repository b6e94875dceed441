"""Cross-entropy on label positions only, in chunks.

The logits of a large vocabulary are the largest tensor of a training step; most positions need none (context, media,
padding), and those that do are taken a chunk at a time and recomputed in the backward pass.

Letters: N label positions, H width, V vocabulary, G groups.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

CHUNK = 4096
"""Label positions at a time: with 152,064 words in float32 that is 2.5 GB of logits."""


class Loss(NamedTuple):
    """Sums, not means: they are divided by the label tokens of the whole step, over all micro-batches and ranks."""

    total: Float[Tensor, ""]
    by_group: Float[Tensor, " G"]
    """Detached."""
    counts: Int[Tensor, " G"]


def label_loss(
    hidden: Float[Tensor, "N H"],
    labels: Int[Tensor, " N"],
    groups: Int[Tensor, " N"],
    num_groups: int,
    head: Callable[[Tensor], Tensor],
) -> Loss:
    """Summed cross-entropy of `labels` given the hidden states that predict them, in float32, in all and by group."""

    def losses_of(states: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(head(states).float(), targets, reduction="none")

    losses = [
        # One chunk is kept as it is: recomputing it would save nothing.
        losses_of(states, targets)
        if len(labels) <= CHUNK
        else checkpoint(losses_of, states, targets, use_reentrant=False)
        for states, targets in zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True)
    ]
    each = torch.cat(losses)
    by_group = each.new_zeros(num_groups).index_add(0, groups, each.detach())
    counts = torch.bincount(groups, minlength=num_groups)
    return Loss(each.sum(), by_group, counts)
