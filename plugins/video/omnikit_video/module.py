"""The video projector: a 2 x 2 convolution, then a two-layer MLP.

Letters: L features and M tokens of all items end to end, D feature width, H backbone width, V views of one shape,
h x w features of a view, r x c tokens of a view.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class VideoConv(nn.Module):
    """One token of every 2 x 2 features of a view, and a learned token at the end of each row.

    All tensors but `conv` are named as pool_mlp's. A last odd row or column is not seen.
    """

    def __init__(self, d_in: int, d_out: int, newline: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(d_in, d_in, kernel_size=2, stride=2)
        with torch.no_grad():  # the mean of the four
            self.conv.weight.copy_(torch.eye(d_in)[:, :, None, None] / 4)
            self.conv.bias.zero_()
        self.linear_1 = nn.Linear(d_in, d_out)
        self.linear_2 = nn.Linear(d_out, d_out)
        self.newline = nn.Parameter(torch.randn(d_out) * d_out**-0.5) if newline else None

    def forward(self, features: Float[Tensor, "L D"], grids: Sequence[tuple[int, int, int]]) -> Float[Tensor, "M H"]:
        """Tokens of all items end to end, each row by row; views of one shape go through together."""
        items = features.split([t * h * w for t, h, w in grids])
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
        # a view of channels-last memory: the permutations copy nothing
        pooled = self.conv(views.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        tokens = self.linear_2(F.gelu(self.linear_1(pooled)))
        if self.newline is None:
            return tokens
        ends = self.newline.to(tokens.dtype).expand(*tokens.shape[:2], 1, -1)
        return torch.cat([tokens, ends], dim=2)
