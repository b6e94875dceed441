"""Conv-GMLP: a convolutional gated MLP that makes one token of every `rate` audio features.

Baichuan-Omni (arXiv 2410.08565) puts it between Whisper and the language model, in place of pooling.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from omnikit.component import Component, Grid, ProjectorConfig, hookimpl

if TYPE_CHECKING:
    from omnikit_conv_gmlp.module import ConvGMLP


class ConvGMLPConfig(ProjectorConfig):
    """One token per `rate` features: 2, 4 and 8 give 25, 12.5 and 6.25 tokens a second of Whisper's 50 features."""

    type: ClassVar[str] = "conv_gmlp"
    rate: Literal[2, 4, 8] = 4

    def shrink(self, grid: Grid) -> Grid:
        """(t, 1, 1) becomes (t // rate, 1, 1). Another shape, or less than one token of sound, is a ValueError."""
        t, h, w = grid
        if (h, w) != (1, 1):
            raise ValueError(f"conv_gmlp: grid {grid} is not a sequence; it takes (t, 1, 1), as audio encoders make")
        if t < self.rate:
            needed = f"give at least {self.rate} features, or less rate"
            raise ValueError(f"conv_gmlp: grid {grid} is less than one token; {needed}")
        return t // self.rate, 1, 1

    def cost(self, grid: Grid, d_in: int, d_out: int) -> float:
        """FLOPs of one item's forward pass: the two convolutions, the mixing map and the map to the backbone."""
        tokens, inner = self.shrink(grid)[0], self.rate * d_in
        return 2.0 * tokens * (3 * inner**2 + inner * d_out)

    def build(self, d_in: int, d_out: int) -> "ConvGMLP":
        """The module from feature width `d_in` to backbone width `d_out`."""
        from omnikit_conv_gmlp.module import ConvGMLP

        return ConvGMLP(d_in, d_out, self.rate)


@hookimpl
def omnikit_components() -> Sequence[type[Component]]:
    """What this package adds to omnikit."""
    return [ConvGMLPConfig]
