"""The projectors of the core.

All but one join `rate` features into one, without overlap, and end in the same MLP (Linear, GELU, Linear), so that
comparing them compares the joining alone; `c_abstractor` mixes neighbours with convolutions first. What is joined
follows from the grid: of a sequence (t, 1, 1), as audio encoders make, `rate` features one after the other; of
pictures (t, h, w) squares of sqrt(rate) x sqrt(rate) features of a view. A rest too small to join is dropped.
"""

from math import isqrt
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, PositiveInt

from omnikit.component import Grid, ProjectorConfig, count

if TYPE_CHECKING:
    from omnikit.builtin.c_abstractor import CAbstractor
    from omnikit.builtin.projectors import JoinMLP


class Mlp(ProjectorConfig):
    """One token per feature: Linear, GELU, Linear."""

    type: ClassVar[str] = "mlp"

    def shrink(self, grid: Grid) -> Grid:
        """The same grid."""
        return grid

    def cost(self, grid: Grid, d_in: int, d_out: int) -> float:
        """FLOPs of one item's forward pass: the two matrices."""
        return _mlp_cost(count(grid), d_in, d_out)

    def build(self, d_in: int, d_out: int) -> "JoinMLP":
        """The module from feature width `d_in` to backbone width `d_out`."""
        from omnikit.builtin.projectors import JoinMLP

        return JoinMLP(d_in, d_out, "concat", rate=1)


class PoolMlp(ProjectorConfig):
    """Every 2 x 2 features of a picture as one, then the MLP: the image branch of Baichuan-Omni (arXiv 2410.08565).

    `pool` is `mean`, or `conv`: a convolution of kernel and stride 2 that starts as the mean (the paper uses both words
    for it). `newline` adds a learned token at the end of each row: 27 x 27 features become 13 rows of 13 + 1 tokens,
    the 182 that the paper states.
    """

    type: ClassVar[str] = "pool_mlp"
    pool: Literal["mean", "conv"] = "mean"
    newline: bool = True

    def shrink(self, grid: Grid) -> Grid:
        """(t, h, w) becomes (t, h // 2, w // 2 + 1), without `newline` (t, h // 2, w // 2).

        A grid narrower or lower than 2 is a ValueError.
        """
        t, h, w = grid
        if h < 2 or w < 2:
            raise _too_small(self.type, grid, 2)
        return t, h // 2, w // 2 + self.newline

    def cost(self, grid: Grid, d_in: int, d_out: int) -> float:
        """FLOPs of one item's forward pass: the matrices. Sums, 4 d_in a token, are not counted."""
        t, h, w = grid
        return _join_cost(self.pool, 4, t * (h // 2) * (w // 2), d_in, d_out)

    def build(self, d_in: int, d_out: int) -> "JoinMLP":
        """The module from feature width `d_in` to backbone width `d_out`."""
        from omnikit.builtin.projectors import JoinMLP

        return JoinMLP(d_in, d_out, self.pool, rate=4, newline=self.newline)


class JoinConfig(ProjectorConfig):
    """What `mean_pool`, `concat` and `strided_conv` share: how many features make a token, and the ends of rows.

    `rate` features make one token: 2, 4 and 8 give 25, 12.5 and 6.25 tokens a second of Whisper's 50 features. Of
    pictures it is a square. `newline` adds a learned token at the end of each row of a picture; sequences have no rows.
    """

    join: ClassVar[Literal["mean", "concat", "conv"]]
    rate: int = Field(4, ge=2)
    newline: bool = False

    def shrink(self, grid: Grid) -> Grid:
        """(t, 1, 1) becomes (t // rate, 1, 1); (t, h, w) becomes (t, h // s, w // s), s the root of `rate`.

        With `newline` there is one more of each row. A grid of less than one token is a ValueError.
        """
        return _joined_grid(self.type, grid, self.rate, self.newline)

    def cost(self, grid: Grid, d_in: int, d_out: int) -> float:
        """FLOPs of one item's forward pass: the matrices. Sums, rate x d_in a token, are not counted."""
        return _join_cost(self.join, self.rate, count(_joined_grid(self.type, grid, self.rate, False)), d_in, d_out)

    def build(self, d_in: int, d_out: int) -> "JoinMLP":
        """The module from feature width `d_in` to backbone width `d_out`."""
        from omnikit.builtin.projectors import JoinMLP

        return JoinMLP(d_in, d_out, self.join, self.rate, self.newline)


class MeanPool(JoinConfig):
    """The mean of every `rate` features, then the MLP. The stride-n pooling that Conv-GMLP replaced (section 1.4)."""

    type: ClassVar[str] = "mean_pool"
    join: ClassVar[Literal["mean"]] = "mean"


class Concat(JoinConfig):
    """Every `rate` features end to end, as one of `rate` times the width, then the MLP (space-to-depth of pictures)."""

    type: ClassVar[str] = "concat"
    join: ClassVar[Literal["concat"]] = "concat"


class StridedConv(JoinConfig):
    """A convolution of kernel and stride `rate` (of pictures sqrt(rate) each way), then the MLP; starts as the mean."""

    type: ClassVar[str] = "strided_conv"
    join: ClassVar[Literal["conv"]] = "conv"


class CAbstractorConfig(ProjectorConfig):
    """C-Abstractor of Honeybee (arXiv 2312.06742): residual convolutions, adaptive pooling, and convolutions again.

    `depth` blocks stand before and after the pooling; `side` rows and columns of tokens come out of a view whatever its
    grid; None is half the view's own, as many tokens as of `pool_mlp` and as the 144 of the paper's 24 x 24 features.
    Like the released code it works at the encoder's width and ends in Linear, SiLU, Linear. Its table of positions is
    left out: it would hold one size of view only, and features and zero padding tell positions already.
    """

    type: ClassVar[str] = "c_abstractor"
    depth: PositiveInt = 3
    side: PositiveInt | None = None
    newline: bool = True

    def tiny(self) -> Self:
        """The same with one block before the pooling and one after."""
        return self.model_copy(update={"depth": 1})

    def shrink(self, grid: Grid) -> Grid:
        """(t, h, w) becomes (t, side, side + 1), without `newline` (t, side, side); see `side`.

        A view of fewer rows or columns of features than of tokens is a ValueError.
        """
        t, h, w = grid
        rows, columns = (self.side, self.side) if self.side else (h // 2, w // 2)
        if min(rows, columns) < 1:
            raise _too_small(self.type, grid, 2)
        if rows > h or columns > w:
            most = min(h, w)
            raise ValueError(
                f"{self.type}: grid {grid} is less than side {self.side}; give larger views, or side {most}"
            )
        return t, rows, columns + self.newline

    def cost(self, grid: Grid, d_in: int, d_out: int) -> float:
        """FLOPs of one item's forward pass: the convolutions and matrices."""
        tokens = count(self.model_copy(update={"newline": False}).shrink(grid))
        per_position = 2 * (2 * d_in**2 + 9 * d_in)
        per_view = 2 * 2 * d_in * squeezed(d_in)
        blocks = self.depth * ((count(grid) + tokens) * per_position + 2 * grid[0] * per_view)
        return blocks + _mlp_cost(tokens, d_in, d_out)

    def build(self, d_in: int, d_out: int) -> "CAbstractor":
        """The module from feature width `d_in` to backbone width `d_out`."""
        from omnikit.builtin.c_abstractor import CAbstractor

        return CAbstractor(d_in, d_out, self.depth, self.side, self.newline)


def squeezed(width: int) -> int:
    """The inner width of a squeeze-and-excitation of RegNet: a quarter."""
    return max(1, round(width / 4))


def _joined_grid(name: str, grid: Grid, rate: int, newline: bool) -> Grid:
    t, h, w = grid
    if (h, w) == (1, 1):
        if newline:
            raise ValueError(f"{name}: grid {grid} is a sequence, which has no rows to end; set newline: false")
        if t < rate:
            raise ValueError(f"{name}: grid {grid} is less than one token; give at least {rate} features, or less rate")
        return t // rate, 1, 1
    side = isqrt(rate)
    if side**2 != rate:
        raise ValueError(
            f"{name}: grid {grid} is of pictures, which rate {rate} cannot cut into squares; take 4, 9 or 16"
        )
    if h < side or w < side:
        raise _too_small(name, grid, side)
    return t, h // side, w // side + newline


def _too_small(name: str, grid: Grid, side: int) -> ValueError:
    better = "for a sequence take mean_pool" if grid[1:] == (1, 1) else "give larger views, or take mlp"
    return ValueError(f"{name}: grid {grid} holds no {side} x {side} features; {better}")


def _mlp_cost(tokens: int, d_in: int, d_out: int) -> float:
    return 2.0 * tokens * (d_in * d_out + d_out**2)


def _join_cost(join: Literal["mean", "concat", "conv"], rate: int, tokens: int, d_in: int, d_out: int) -> float:
    convolution = 2.0 * tokens * rate * d_in**2 if join == "conv" else 0.0
    return convolution + _mlp_cost(tokens, d_in * rate if join == "concat" else d_in, d_out)
