"""C-Abstractor as an `nn.Module` (Honeybee, arXiv 2312.06742, section 3.3; blocks of RegNet, arXiv 2003.13678).

Letters: L features and M tokens of all items end to end, D feature width, H backbone width, V views of one shape,
h x w features of a view.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from omnikit.builtin.projector_configs import squeezed
from omnikit.builtin.projectors import end_rows
from omnikit.component import Grid, count


class Block(nn.Module):
    """RegNet's block at one width: 1 x 1, 3 x 3 by channel, squeeze and excitation, 1 x 1, around a shortcut.

    Each convolution is followed by a norm over the channels of a position, never over views: a view's tokens do not
    depend on what it is computed with.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # Channels come last, where a 1 x 1 convolution is a matrix
        self.conv_1 = nn.Linear(width, width, bias=False)
        self.norm_1 = nn.LayerNorm(width)
        self.conv_2 = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width, bias=False)
        self.norm_2 = nn.LayerNorm(width)
        self.squeeze = nn.Linear(width, squeezed(width))
        self.excite = nn.Linear(squeezed(width), width)
        self.conv_3 = nn.Linear(width, width, bias=False)
        self.norm_3 = nn.LayerNorm(width)

    def forward(self, views: Float[Tensor, "V h w D"]) -> Float[Tensor, "V h w D"]:
        """Views of the same shape."""
        hidden = F.silu(self.norm_1(self.conv_1(views)))
        # a view of channels-last memory: the permutations copy nothing
        hidden = self.conv_2(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        hidden = F.silu(self.norm_2(hidden))
        gates = self.excite(F.silu(self.squeeze(hidden.mean((1, 2), keepdim=True))))
        hidden = self.norm_3(self.conv_3(hidden * torch.sigmoid(gates)))
        return F.silu(hidden + views)


class CAbstractor(nn.Module):
    """`depth` blocks, the means of adaptive areas, `depth` blocks, then Linear, SiLU, Linear."""

    def __init__(self, d_in: int, d_out: int, depth: int, side: int | None, newline: bool) -> None:
        super().__init__()
        self.side = side
        self.before = nn.Sequential(*(Block(d_in) for _ in range(depth)))
        self.after = nn.Sequential(*(Block(d_in) for _ in range(depth)))
        self.linear_1 = nn.Linear(d_in, d_out)
        self.linear_2 = nn.Linear(d_out, d_out)
        self.newline = nn.Parameter(torch.randn(d_out) * d_out**-0.5) if newline else None

    def forward(self, features: Float[Tensor, "L D"], grids: Sequence[Grid]) -> Float[Tensor, "M H"]:
        """Tokens of all items end to end, each row by row; views of one shape go through together."""
        items = features.split([count(grid) for grid in grids])
        shapes: dict[tuple[int, int], list[int]] = {}
        for index, (_, h, w) in enumerate(grids):
            shapes.setdefault((h, w), []).append(index)
        hidden = list(items)
        for (h, w), members in shapes.items():
            views = torch.cat([items[i] for i in members]).unflatten(0, (-1, h, w))
            made = self._abstracted(views).split([grids[i][0] for i in members])
            for i, item in zip(members, made, strict=True):
                hidden[i] = item.flatten(0, 2)
        tokens = self.linear_2(F.silu(self.linear_1(torch.cat(hidden))))
        if self.newline is None:
            return tokens
        sides = [self._sides(h, w) for _, h, w in grids]
        return end_rows(tokens, [(t * r, c) for (t, _, _), (r, c) in zip(grids, sides, strict=True)], self.newline)

    def _sides(self, h: int, w: int) -> tuple[int, int]:
        return (self.side, self.side) if self.side else (h // 2, w // 2)

    def _abstracted(self, views: Float[Tensor, "V h w D"]) -> Float[Tensor, "V r c D"]:
        _, h, w, _ = views.shape
        channels_first = self.before(views).permute(0, 3, 1, 2)
        return self.after(F.adaptive_avg_pool2d(channels_first, self._sides(h, w)).permute(0, 2, 3, 1))
