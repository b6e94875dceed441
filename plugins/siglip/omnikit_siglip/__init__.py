"""SigLIP: the vision encoder of Baichuan-Omni (arXiv 2410.08565), and readers that make its views of a picture."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

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
    to_pixels,
)

if TYPE_CHECKING:
    import torch

    from omnikit_siglip.module import SiglipEncoder


class SiglipConfig(EncoderConfig):
    """The vision tower of SigLIP (arXiv 2303.15343) and of SigLIP 2 at a fixed resolution: one feature for each patch.

    `weights` is a folder or hub id[@revision] of transformers (the whole model or its vision tower) or of open_clip, or
    `open_clip:<model>/<tag>` by open_clip's own names, as in `open_clip:ViT-B-16-SigLIP/webli`. All give the same
    module; files other than safetensors are not read. One preset fits both generations: `so400m-patch14-384` is the
    tower of google/siglip-so400m-patch14-384 and of google/siglip2-so400m-patch14-384.

    `layer` is the layer that features come from, counted from the end. None: the last, after the final norm. -1: the
    last, without that norm; -2: the one before, as LLaVA takes it (arXiv 2304.08485). What comes later is not built.
    Nor is the pooling head ever: no gradient would reach its 15 million parameters.

    `gelu`: SigLIP was trained with the tanh approximation in every size (big_vision, whose `nn.gelu` is that), and
    transformers computes it so. timm, and open_clip by it, takes the exact function, `erf`, for most of the same
    weights: choose it to repeat open_clip's numbers, or for weights that were tuned there.
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
    gelu: Literal["tanh", "erf"] = "tanh"
    layer: int | None = Field(None, le=-1)

    @model_validator(mode="after")
    def _fits(self) -> "SiglipConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads; change one of them")
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is below patch_size {self.patch_size}; make it larger")
        if self.layer is not None and -self.layer > self.layers:
            raise ValueError(f"layer {self.layer} is before the first of {self.layers}; give -{self.layers} to -1")
        return self

    @property
    def depth(self) -> int:
        """Layers that are built, of the `layers` that the weights have."""
        return self.layers if self.layer is None else self.layers + 1 + self.layer

    @property
    def input(self) -> Pixels:
        """Square RGB views of `image_size`."""
        return Pixels(size=self.image_size, patch=self.patch_size, mean=self.mean, std=self.std)

    def example(self) -> Item:
        """One view of zeros: grey, for the usual mean."""
        import numpy as np

        side = self.input.side
        return Item(np.zeros((1, 3, self.image_size, self.image_size), np.float32), (1, side, side))

    def cost(self, grid: Grid) -> float:
        """FLOPs of one item: the patches' convolution, then the layers; every view attends to itself alone."""
        views, height, width = grid
        patches = height * width
        embedding = 2 * patches * 3 * self.patch_size**2 * self.width
        layer = 2 * patches * self.width * (4 * self.width + 2 * patches + 2 * self.mlp_width)
        return float(views * (embedding + self.depth * layer))

    def tiny(self) -> Self:
        """Two layers of width 16 on 4 x 4 patches of the same size, and what of a view its patches leave out."""
        patch = self.patch_size
        sizes = {"width": 16, "heads": 2, "mlp_width": 24, "image_size": 4 * patch + self.image_size % patch}
        layers = 2 if self.layer is None else 1 - self.layer  # of which two are built
        return self.model_copy(update={**sizes, "layers": layers, "preset": None, "weights": None})

    def build(self) -> "SiglipEncoder":
        """The module, with random weights."""
        from omnikit_siglip.module import SiglipEncoder

        return SiglipEncoder(
            width=self.width,
            layers=self.depth,
            heads=self.heads,
            mlp_width=self.mlp_width,
            image_size=self.image_size,
            patch_size=self.patch_size,
            layer_norm_eps=self.layer_norm_eps,
            gelu=self.gelu,
            post_norm=self.layer is None,
        )

    def pretrained(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """The vision tower's tensors out of any of the formats, without those that `layer` has no use for."""
        from omnikit_siglip.weights import vision_tensors

        if self.weights is None:
            raise ValueError("siglip: no weights to read; give a folder or a hub id")
        unused = tuple(f"encoder.layers.{index}." for index in range(self.depth, self.layers))
        if self.layer is not None:
            unused += ("post_layernorm.",)
        for name, tensor in vision_tensors(self.weights, self.heads, self.layer_norm_eps, self.gelu):
            if not name.startswith(unused):
                yield f"tower.{name}", tensor


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

    def specimens(self, folder: Path, input: Pixels) -> list[Medium]:
        """Pictures of odd shapes and kinds."""
        from omnikit.testing import pictures

        return pictures(folder)


class AnyresConfig(ReaderConfig):
    """A down-sampled view of the whole picture, then tiles that show it larger, row by row (section 1.2's AnyRes).

    The paper gives neither the list of tilings nor their limit. Here the rows and columns are those that enlarge the
    picture most, at most `max_tiles` of them (the whole picture comes on top) and never beyond its own pixels; a
    picture that fits one view is one view. Tiles cover the picture exactly: it is stretched to rows x columns of them,
    as the whole is to its square, and nothing is padded. `grids` lists tilings of fewer tiles too, down to the whole
    picture alone, for a planner that has no room for all of them.

    With `pool_mlp` a view of 384 pixels and patches of 14 becomes the paper's 182 tokens
    (`docs/decisions/0007-182-tokens.md`).
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

    def specimens(self, folder: Path, input: Pixels) -> list[Medium]:
        """Pictures of odd shapes and kinds."""
        from omnikit.testing import pictures

        return pictures(folder)


@hookimpl
def omnikit_components() -> Sequence[type[Component]]:
    """What this package adds to omnikit."""
    return [SiglipConfig, SquareConfig, AnyresConfig]
