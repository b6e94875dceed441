"""SigLIP: the vision encoder of Baichuan-Omni (arXiv 2410.08565), and readers that make its views of a picture."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from omnikit.component import (
    Component,
    EncoderConfig,
    Grid,
    Item,
    Medium,
    Pixels,
    ReaderConfig,
    hookimpl,
    tensors_in,
    to_pixels,
)

if TYPE_CHECKING:
    import torch

    from omnikit_siglip.module import SiglipEncoder


class SiglipConfig(EncoderConfig):
    """SigLIP's vision tower: one feature of `width` per patch, from its last layer after the final norm.

    `weights` is a transformers folder of the whole model or of its vision tower. The pooling head is never built: no
    gradient would ever reach its 15 million parameters.
    """

    type: ClassVar[str] = "siglip"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        tomllib.loads(Path(__file__).with_name("presets.toml").read_text(encoding="utf-8"))
    )

    preset: str | None = None
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    mlp_width: PositiveInt
    image_size: PositiveInt
    patch_size: PositiveInt
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.5, 0.5)
    layer_norm_eps: PositiveFloat = 1e-6

    @model_validator(mode="after")
    def _fits(self) -> "SiglipConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads; change one of them")
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is below patch_size {self.patch_size}; make it larger")
        return self

    @property
    def input(self) -> Pixels:
        """Square RGB views of `image_size`."""
        return Pixels(size=self.image_size, patch=self.patch_size, mean=self.mean, std=self.std)

    def example(self) -> Item:
        """One view of zeros: grey, for the usual mean."""
        import numpy as np

        side = self.input.side
        return Item(np.zeros((1, 3, self.image_size, self.image_size), np.float32), (1, side, side))

    def build(self) -> "SiglipEncoder":
        """The module, with random weights."""
        from omnikit_siglip.module import SiglipEncoder

        return SiglipEncoder(
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            mlp_width=self.mlp_width,
            image_size=self.image_size,
            patch_size=self.patch_size,
            layer_norm_eps=self.layer_norm_eps,
        )

    def pretrained(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """The vision tower's tensors, without the pooling head, out of a whole model's or its own folder."""
        if self.weights is None:
            raise ValueError("siglip: no weights to read; give a folder or a hub id")
        for name, tensor in tensors_in(self.weights):
            own = name.removeprefix("vision_model.")
            # position_ids: a buffer that older versions of transformers wrote, always 0, 1, 2, ...
            if own.startswith(("embeddings.", "encoder.", "post_layernorm.")) and not own.endswith("position_ids"):
                yield f"tower.{own}", tensor


class SquareConfig(ReaderConfig):
    """The whole picture, squeezed to one square view as SigLIP was trained."""

    type: ClassVar[str] = "square"
    makes = Pixels

    def sizes(self, input: Pixels) -> dict[str, Grid]:
        """The one grid there is."""
        return {"picture": (1, input.side, input.side)}

    def grids(self, medium: Medium, input: Pixels) -> list[Grid]:
        """One view; a file that is no picture is a ValueError."""
        from omnikit.media import image_size

        image_size(medium)
        return [(1, input.side, input.side)]

    def read(self, medium: Medium, input: Pixels, grid: Grid) -> Item:
        """The picture as float32 (1, 3, size, size)."""
        from omnikit_siglip.reader import views

        return Item(to_pixels(views(medium, input.size, max_tiles=1, num_views=grid[0]), input), grid)


class AnyresConfig(ReaderConfig):
    """A down-sampled view of the whole picture, then tiles that show it larger, row by row (section 1.2's AnyRes).

    The paper gives neither the list of tilings nor their limit. Here the rows and columns are those that enlarge the
    picture most, at most `max_tiles` of them and never beyond its own pixels; a picture that fits one view is one view.
    """

    type: ClassVar[str] = "anyres"
    makes = Pixels
    max_tiles: int = Field(9, ge=1, le=64)

    def sizes(self, input: Pixels) -> dict[str, Grid]:
        """The grids of a picture that fits one view and of one that needs every tile."""
        largest = 1 + self.max_tiles if self.max_tiles > 1 else 1
        return {"tile": (1, input.side, input.side), "largest image": (largest, input.side, input.side)}

    def grids(self, medium: Medium, input: Pixels) -> list[Grid]:
        """(1 + tiles, side, side) for every tiling that shows more than a smaller one; last (1, side, side)."""
        from omnikit.media import image_size
        from omnikit_siglip.reader import tilings

        found = tilings(*image_size(medium), input.size, self.max_tiles)
        return [(num_views, input.side, input.side) for num_views in found]

    def read(self, medium: Medium, input: Pixels, grid: Grid) -> Item:
        """The views as float32 (views, 3, size, size), the whole picture first."""
        from omnikit_siglip.reader import views

        return Item(to_pixels(views(medium, input.size, self.max_tiles, num_views=grid[0]), input), grid)


@hookimpl
def omnikit_components() -> Sequence[type[Component]]:
    """What this package adds to omnikit."""
    return [SiglipConfig, SquareConfig, AnyresConfig]
