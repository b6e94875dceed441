"""The projectors that join features, and end in a two-layer MLP.

Letters: L features and M tokens of all items end to end, D feature width, H backbone width, W windows of n features
that are joined.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from omnikit.component import Grid, count


class JoinMLP(nn.Module):
    """Every `rate` features as one (their mean, all of them end to end, or a convolution), then Linear, GELU, Linear.

    Windows do not overlap, so that those of all items go through together. A rest too small to join is not seen, as in
    `avg_pool2d`.
    """

    def __init__(
        self, d_in: int, d_out: int, join: Literal["mean", "concat", "conv"], rate: int, newline: bool = False
    ) -> None:
        super().__init__()
        self.rate = rate
        self.mean = join == "mean"
        # Kernel and stride are equal: the convolution is a matrix on the features of a window.
        self.conv = nn.Linear(rate * d_in, d_in) if join == "conv" else None
        if self.conv is not None:
            with torch.no_grad():  # starts as the mean
                self.conv.weight.copy_(torch.eye(d_in).repeat(1, rate) / rate)
                self.conv.bias.zero_()
        self.linear_1 = nn.Linear(rate * d_in if join == "concat" else d_in, d_out)
        self.linear_2 = nn.Linear(d_out, d_out)
        # As long as an average row of a freshly drawn embedding (LLaVA's start for its newline)
        self.newline = nn.Parameter(torch.randn(d_out) * d_out**-0.5) if newline else None

    def forward(self, features: Float[Tensor, "L D"], grids: Sequence[Grid]) -> Float[Tensor, "M H"]:
        """Tokens of all items end to end, each row by row, with a learned token after each row where there is one."""
        items = features.split([count(grid) for grid in grids])
        windows = [_windows(item, grid, self.rate) for item, grid in zip(items, grids, strict=True)]
        together = torch.cat(windows)
        joined = together.mean(1) if self.mean else together.flatten(1)
        if self.conv is not None:
            joined = self.conv(joined)
        tokens = self.linear_2(F.gelu(self.linear_1(joined)))
        if self.newline is None:
            return tokens
        rows = [(t * (h // isqrt(self.rate)), w // isqrt(self.rate)) for t, h, w in grids]
        return end_rows(tokens, rows, self.newline)


def end_rows(
    tokens: Float[Tensor, "W H"], rows: Sequence[tuple[int, int]], newline: Float[Tensor, " H"]
) -> Float[Tensor, "M H"]:
    """The tokens with `newline` after each row; `rows` is how many rows each item has, and of how many tokens."""
    pictures = tokens.split([number * length for number, length in rows])
    end = newline.to(tokens.dtype)
    ended = [
        torch.cat([picture.unflatten(0, shape), end.expand(shape[0], 1, -1)], dim=1).flatten(0, 1)
        for picture, shape in zip(pictures, rows, strict=True)
    ]
    return torch.cat(ended)


def _windows(item: Float[Tensor, "F D"], grid: Grid, rate: int) -> Float[Tensor, "W n D"]:
    t, h, w = grid
    if (h, w) == (1, 1):
        return rearrange(item[: t // rate * rate], "(window n) d -> window n d", n=rate)
    side = isqrt(rate)
    whole = item.unflatten(0, grid)[:, : h // side * side, : w // side * side]
    return rearrange(whole, "t (r y) (c x) d -> (t r c) (y x) d", y=side, x=side)
