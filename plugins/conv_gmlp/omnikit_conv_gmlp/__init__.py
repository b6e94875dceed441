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
            raise ValueError(f"conv_gmlp: {t} features are less than one token; rate {self.rate} needs {self.rate}")
        return t // self.rate, 1, 1

    def build(self, d_in: int, d_out: int) -> "ConvGMLP":
        """The module from feature width `d_in` to backbone width `d_out`."""
        from omnikit_conv_gmlp.module import ConvGMLP

        return ConvGMLP(d_in, d_out, self.rate)


@hookimpl
def omnikit_components() -> Sequence[type[Component]]:
    """What this package adds to omnikit."""
    return [ConvGMLPConfig]
