"""Cross-entropy on label positions only, in chunks.

The logits of a large vocabulary are the largest tensor of a training step; most positions need none (context, media,
padding), and those that do are taken a chunk at a time and recomputed in the backward pass.

Letters: N label positions, H width, V vocabulary, G groups.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from omnikit.kernels import in_parts

CHUNK = 4096
"""Label positions at a time: with 152,064 words in float32 that is 2.5 GB of logits."""
IN_CACHE = 2**20
"""Logits that a CPU takes from the first pass over them to the last, so that they stay in its cache."""


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
        return _CrossEntropy.apply(head(states), targets)

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


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy in float32, of which the logits' gradient alone is kept, in their own type.

    It is known as soon as the loss is (arXiv 2410.10989, section 3.2); autograd would keep the logits twice in float32.
    """

    @staticmethod
    def forward(ctx: Any, logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"]) -> Float[Tensor, " N"]:  # noqa: ANN401
        differentiate, parts = ctx.needs_input_grad[0], list(in_parts(logits, IN_CACHE))
        if len(parts) == 1:
            losses, gradient = _losses(logits, targets, differentiate)
        else:
            losses = torch.empty(len(targets), device=logits.device)
            gradient = torch.empty_like(logits) if differentiate else None
            for part in parts:
                losses[part], own = _losses(logits[part], targets[part], differentiate)
                if gradient is not None:
                    gradient[part] = own
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, " N"]) -> tuple[Tensor, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        # In place: it is the largest tensor of a step, and nobody else's. (torch refuses a second backward pass then.)
        return gradient.mul_(grad[:, None].to(gradient.dtype)), None


def _losses(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], differentiate: bool
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N V"] | None]:
    """Each row's loss, and its gradient in the logits' type."""
    logs = torch.log_softmax(logits, -1, dtype=torch.float32)
    losses = -logs.gather(1, targets[:, None]).squeeze(1)
    if not differentiate:
        return losses, None
    gradient = logs.exp_()
    gradient[torch.arange(len(targets), device=targets.device), targets] -= 1
    return losses, gradient.to(logits.dtype)
