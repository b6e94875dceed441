"""The video projector: a 2 x 2 convolution, then a two-layer MLP.

Letters: L features and M tokens of all items end to end, D feature width, H backbone width.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class VideoConv(nn.Module):
    """One token of every 2 x 2 features of a view, and a learned token at the end of each row.

    Tensors are named and shaped as pool_mlp's. A last odd row or column is not seen.
    """

    def __init__(self, d_in: int, d_out: int, newline: bool) -> None:
        super().__init__()
        # Kernel and stride are equal: the convolution is a matrix on the four features of a square, row by row.
        self.conv = nn.Linear(4 * d_in, d_in)
        with torch.no_grad():  # starts as the mean of the four
            self.conv.weight.copy_(torch.eye(d_in).repeat(1, 4) / 4)
            self.conv.bias.zero_()
        self.linear_1 = nn.Linear(d_in, d_out)
        self.linear_2 = nn.Linear(d_out, d_out)
        self.newline = nn.Parameter(torch.randn(d_out) * d_out**-0.5) if newline else None

    def forward(self, features: Float[Tensor, "L D"], grids: Sequence[tuple[int, int, int]]) -> Float[Tensor, "M H"]:
        """Tokens of all items end to end, each row by row."""
        squares = []
        for item, (t, h, w) in zip(features.split([t * h * w for t, h, w in grids]), grids, strict=True):
            even = item.unflatten(0, (t, h, w))[:, : h // 2 * 2, : w // 2 * 2]
            squares.append(rearrange(even, "t (r y) (c x) d -> (t r c) (y x d)", y=2, x=2))
        tokens = self.linear_2(F.gelu(self.linear_1(self.conv(torch.cat(squares)))))
        if self.newline is None:
            return tokens
        rows, end = [], self.newline.to(tokens.dtype)
        for item, (t, h, w) in zip(tokens.split([len(square) for square in squares]), grids, strict=True):
            ended = torch.cat([item.unflatten(0, (t * (h // 2), w // 2)), end.expand(t * (h // 2), 1, -1)], dim=1)
            rows.append(ended.flatten(0, 1))
        return torch.cat(rows)
