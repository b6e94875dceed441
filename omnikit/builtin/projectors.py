"""Projectors from features to tokens of the backbone's width.

Letters: L features and M tokens of all items end to end, D feature width, H backbone width, V views of one shape,
h x w features of a view, r x c tokens of a view.
"""

from collections.abc import Sequence

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from omnikit.component import Grid, count


class MLPProjector(nn.Module):
    """One token per feature: Linear, GELU, Linear."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(d_in, d_out)
        self.linear_2 = nn.Linear(d_out, d_out)

    def forward(self, features: Float[Tensor, "L D"], grids: Sequence[Grid]) -> Float[Tensor, "L H"]:
        """Each feature as a token."""
        return self.linear_2(F.gelu(self.linear_1(features)))


class PoolMLPProjector(nn.Module):
    """The mean of every 2 x 2 features of a view, then the MLP, then a learned token at the end of each row.

    A last odd row or column is not seen, as in `avg_pool2d`: 27 x 27 features make 13 x 13 tokens, 13 x 14 with the
    tokens at the ends of rows.
    """

    def __init__(self, d_in: int, d_out: int, newline: bool) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(d_in, d_out)
        self.linear_2 = nn.Linear(d_out, d_out)
        # As long as an average row of a freshly drawn embedding (LLaVA's start for its newline)
        self.newline = nn.Parameter(torch.randn(d_out) * d_out**-0.5) if newline else None

    def forward(self, features: Float[Tensor, "L D"], grids: Sequence[Grid]) -> Float[Tensor, "M H"]:
        """Tokens of all items end to end, each row by row; views of one shape go through together."""
        items = features.split([count(grid) for grid in grids])
        shapes: dict[tuple[int, int], list[int]] = {}
        for index, (_, h, w) in enumerate(grids):
            shapes.setdefault((h, w), []).append(index)
        tokens = list(items)
        for (h, w), members in shapes.items():
            views = torch.cat([items[i] for i in members]).unflatten(0, (-1, h, w))
            made = self._tokens(views).split([grids[i][0] for i in members])
            for i, item in zip(members, made, strict=True):
                tokens[i] = item.flatten(0, 2)
        return torch.cat(tokens)

    def _tokens(self, views: Float[Tensor, "V h w D"]) -> Float[Tensor, "V r c H"]:
        _, h, w, _ = views.shape
        even = views[:, : h // 2 * 2, : w // 2 * 2]
        pooled = reduce(even, "v (r two) (c too) d -> v r c d", "mean", two=2, too=2)
        tokens = self.linear_2(F.gelu(self.linear_1(pooled)))
        if self.newline is None:
            return tokens
        ends = self.newline.to(tokens.dtype).expand(*tokens.shape[:2], 1, -1)
        return torch.cat([tokens, ends], dim=2)
