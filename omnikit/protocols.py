"""The modules that component Configs build, with their shapes.

Letters: L features of all items end to end, M tokens after projection, D feature width, H backbone width,
B rows (packs) of T positions.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from omnikit.component import Grid, Item


@runtime_checkable
class EncoderModule(Protocol):
    """Features of items. Items never influence each other."""

    width: int

    def __call__(self, items: Sequence[Item]) -> Float[Tensor, "L D"]:
        """Features of all items end to end, each row by row as its grid says (values are tensors here)."""
        ...


@runtime_checkable
class ProjectorModule(Protocol):
    """Tokens of features. Items never influence each other."""

    def __call__(self, features: Float[Tensor, "L D"], grids: Sequence[Grid]) -> Float[Tensor, "M H"]:
        """Tokens of all items end to end; item i gives exactly count(shrink(grids[i])) of them."""
        ...


@runtime_checkable
class BackboneModule(Protocol):
    """A causal decoder in steps, so that the loss can look at label positions only."""

    width: int

    def embed(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T H"]:
        """Embeddings of token ids."""
        ...

    def hidden(
        self, embeds: Float[Tensor, "B T H"], segments: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T H"]:
        """Final hidden states. Equal positive segments see each other, causally; 0 is padding."""
        ...

    def head(self, hidden: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """Logits of chosen hidden states."""
        ...

    def extend(
        self,
        embeds: Float[Tensor, "B T H"],
        mask: Int[Tensor, "B S"],
        cache: Any,  # noqa: ANN401  (the backbone's own)
    ) -> tuple[Float[Tensor, "B T H"], Any]:
        """For generation: final hidden states of T further positions after a cache (None at first), and the new cache.

        `mask` is 0 on left padding, over all S positions so far.
        """
        ...


def blocks(module: nn.Module) -> Iterable[nn.Module]:
    """The module's repeated layers (its optional `blocks`), the units of checkpointing and sharding."""
    return getattr(module, "blocks", ())
