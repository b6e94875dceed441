"""The projectors of the core: a two-layer MLP, alone or behind a 2 x 2 mean (arXiv 2410.08565, the image branch)."""

from typing import TYPE_CHECKING, ClassVar

from omnikit.component import Grid, ProjectorConfig

if TYPE_CHECKING:
    from omnikit.builtin.projectors import MLPProjector, PoolMLPProjector


class Mlp(ProjectorConfig):
    """One token per feature: Linear, GELU, Linear."""

    type: ClassVar[str] = "mlp"

    def shrink(self, grid: Grid) -> Grid:
        """The same grid."""
        return grid

    def build(self, d_in: int, d_out: int) -> "MLPProjector":
        """The module from feature width `d_in` to backbone width `d_out`."""
        from omnikit.builtin.projectors import MLPProjector

        return MLPProjector(d_in, d_out)


class PoolMlp(ProjectorConfig):
    """The mean of every 2 x 2 features, then the MLP; `newline` adds a learned token at the end of each row.

    27 x 27 features become 13 rows of 13 + 1 tokens: the 182 that the paper states.
    """

    type: ClassVar[str] = "pool_mlp"
    newline: bool = True

    def shrink(self, grid: Grid) -> Grid:
        """(t, h, w) becomes (t, h // 2, w // 2 + 1), without `newline` (t, h // 2, w // 2).

        A grid narrower or lower than 2 is a ValueError.
        """
        t, h, w = grid
        if h < 2 or w < 2:
            raise ValueError(f"pool_mlp: grid {grid} holds no 2 x 2 features; give larger views, or take mlp")
        return t, h // 2, w // 2 + self.newline

    def build(self, d_in: int, d_out: int) -> "PoolMLPProjector":
        """The module from feature width `d_in` to backbone width `d_out`."""
        from omnikit.builtin.projectors import PoolMLPProjector

        return PoolMLPProjector(d_in, d_out, self.newline)
