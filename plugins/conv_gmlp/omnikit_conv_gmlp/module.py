"""Conv-GMLP as an `nn.Module` (arXiv 2410.08565, audio branch).

Letters: L features and M tokens of all items end to end; n the rate, d the feature width, so that n d is the inner
width.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class ConvGMLP(nn.Module):
    """A gated MLP whose first layers are convolutions: n times fewer positions, n times wider.

    It has 3 n^2 d^2 weights, a norm of 2 n d, and the map to the backbone.
    """

    def __init__(self, d_in: int, d_out: int, rate: int) -> None:
        super().__init__()
        self.rate = rate
        inner = rate * d_in
        self.gate = nn.Conv1d(d_in, inner, kernel_size=rate, stride=rate, bias=False)
        self.value = nn.Conv1d(d_in, inner, kernel_size=rate, stride=rate, bias=False)
        self.mix = nn.Linear(inner, inner, bias=False)
        self.norm = nn.LayerNorm(inner)
        self.out = nn.Linear(inner, d_out)

    def forward(
        self, features: Float[Tensor, "L d_in"], grids: Sequence[tuple[int, int, int]]
    ) -> Float[Tensor, "M d_out"]:
        """The floor(t / n) tokens of each item, end to end."""
        # The released code pads t to a multiple of n, then drops the token that holds padding. Leaving the rest
        # features out beforehand is the same, and lets all items share one convolution: kernel and stride are equal,
        # so that no window reaches into the next item.
        lengths = [t for t, _, _ in grids]
        whole = [item[: len(item) // self.rate * self.rate] for item in features.split(lengths)]
        sequence = torch.cat(whole) if whole else features
        windows = rearrange(sequence, "(window n) d -> window (n d)", n=self.rate)
        gated = F.silu(_convolved(self.gate, windows)) * _convolved(self.value, windows)
        # The residual has no parameters: it is the window's own n features, one after the other.
        return self.out(self.norm(self.mix(gated) + windows))


def _convolved(conv: nn.Conv1d, windows: Float[Tensor, "M inner"]) -> Float[Tensor, "M inner"]:
    """The convolution of windows that do not overlap: a matrix product, several times as fast in the backward pass."""
    return F.linear(windows, rearrange(conv.weight, "out d n -> out (n d)"))
