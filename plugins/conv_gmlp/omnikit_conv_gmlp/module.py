"""Conv-GMLP as an `nn.Module` (arXiv 2410.08565, audio branch).

Letters: L features and M tokens of all items end to end; T features that fill whole windows; n the rate, d the feature
width, so that n d is the inner width.
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
        # The residual has no parameters: it is the window's own n features, one after the other.
        residual = rearrange(sequence, "(window n) d -> window (n d)", n=self.rate)
        return self.out(self.norm(self._gated(sequence) + residual))

    def _gated(self, sequence: Float[Tensor, "T d_in"]) -> Float[Tensor, "M inner"]:
        if len(sequence) == 0:
            return sequence.new_zeros(0, self.mix.in_features)  # torch refuses to convolve less than one kernel
        channels_first = rearrange(sequence, "time d -> 1 d time")
        gated = F.silu(self.gate(channels_first)) * self.value(channels_first)
        return self.mix(rearrange(gated, "1 inner window -> window inner"))
