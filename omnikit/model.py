"""The model: embed, encode, project, place, decode.

`OmniModel.forward` is the only way in for training. Parameter names are recipe paths: `backbone...`,
`encoders.vision...`, `modalities.image.projector...`.

Letters: B packs of T positions, H backbone width, L features, M tokens of media.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omnikit.component import Item, count
from omnikit.loss import Loss, label_loss
from omnikit.packing import Batch, Media, positions_of

if TYPE_CHECKING:
    from omnikit.export.parts import Parts
    from omnikit.recipe import Recipe


class OmniModel(nn.Module):
    """The backbone, and the encoders and projectors of the modalities that are built.

    `seeded(path)` is entered around the building of each component.
    """

    def __init__(
        self,
        recipe: "Recipe | Parts",
        modalities: frozenset[str],
        seeded: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        super().__init__()
        self.branches = {name: recipe.modalities[name] for name in recipe.modalities if name in modalities}
        """Recipe entries by modality, in recipe order."""
        wanted = {branch.encoder for branch in self.branches.values()}
        self.configs = {name: config for name, config in recipe.encoders.items() if name in wanted}
        self.stored: dict[str, Item] = {}
        """Encoders that are not run, since the items of all their modalities hold features; of each, as an item, the
        features of its `example()`. Of the stage, not of a batch: all ranks leave out the same."""
        with seeded("backbone"):
            self.backbone = recipe.backbone.build()
        self.encoders = nn.ModuleDict()
        for name, config in self.configs.items():
            _check_name(f"encoders.{name}", name)
            with seeded(f"encoders.{name}"):
                self.encoders[name] = config.build()
        self.modalities = nn.ModuleDict()
        for name, branch in self.branches.items():
            _check_name(f"modalities.{name}", name)
            with seeded(f"modalities.{name}.projector"):
                projector = branch.projector.build(self.encoders[branch.encoder].width, self.backbone.width)
            self.modalities[name] = nn.ModuleDict({"projector": projector})

    def drop(self, modalities: Iterable[str]) -> None:
        """Forget modalities, and encoders that no other modality uses."""
        for name in modalities:
            del self.branches[name], self.modalities[name]
        for name in set(self.configs) - {branch.encoder for branch in self.branches.values()}:
            del self.configs[name], self.encoders[name]

    def forward(self, batch: Batch) -> Loss:
        """The summed loss on the batch's labels."""
        embeds = self.embed(batch)
        hidden = self.backbone.hidden(embeds, batch.segments, positions_of(batch.segments))
        chosen = hidden.flatten(0, 1).index_select(0, batch.label_at)
        return label_loss(chosen, batch.labels, batch.groups, len(batch.group_names), self.backbone.head)

    def embed(self, batch: Batch) -> Float[Tensor, "B T H"]:
        """Token embeddings with every medium's tokens in their places.

        Every encoder (unless `stored`) and projector that is built runs exactly once, whatever the batch holds: where a
        modality is absent its `example()` runs and an empty slice of the result is added. So all ranks run the same
        modules, and every trained parameter has a gradient, zero if nothing used it. (Adding `0 * out` would turn an
        overflow into NaN; an empty slice cannot.)
        """
        embeds = self.backbone.embed(batch.ids)
        rows, length, width = embeds.shape
        flat = embeds.flatten(0, 1)
        for encoder in self.configs:
            for name, tokens in self.encode(encoder, batch.media).items():
                media = batch.media.get(name)
                if media is None:
                    flat = flat + tokens[:0].sum()
                else:
                    _check_count(name, tokens, media)
                    flat = flat.index_copy(0, media.places, tokens.to(flat.dtype))
        return flat.view(rows, length, width)

    def encode(self, encoder: str, media: Mapping[str, Media]) -> dict[str, Float[Tensor, "M H"]]:
        """Tokens by modality of all items that go through one encoder, in one call of it."""
        branches = [name for name, branch in self.branches.items() if branch.encoder == encoder]
        items = {name: media[name].items if name in media else [self.example(name)] for name in branches}
        given = [item for name in branches for item in items[name]]
        if encoder in self.stored:
            features = torch.cat([item.value for item in given])
        else:
            features = self.encoders[encoder](given)
        sizes = [sum(count(item.grid) for item in items[name]) for name in branches]
        if sum(sizes) != len(features):
            raise ValueError(
                f"encoders.{encoder}: gave {len(features)} features for items of {sum(sizes)}; an encoder gives "
                "exactly as many features as the grids of its items hold"
            )
        return {
            name: self.modalities[name]["projector"](part, [item.grid for item in items[name]])
            for name, part in zip(branches, features.split(sizes), strict=True)
        }

    def example(self, modality: str) -> Item:
        """The modality's stand-in where a batch has none, on the model's device."""
        if (stored := self.stored.get(self.branches[modality].encoder)) is not None:
            return stored
        item = self.configs[self.branches[modality].encoder].example()
        device = next(self.backbone.parameters()).device
        return Item(torch.from_numpy(item.value).to(device), item.grid)


def _check_name(path: str, name: str) -> None:
    """A recipe's name becomes an attribute of a torch module (law 1), so it must not be one already."""
    if hasattr(nn.ModuleDict, name):
        raise ValueError(f"{path}: torch's modules have a `{name}` of their own; give it another name")


def _check_count(name: str, tokens: Tensor, media: Media) -> None:
    if len(tokens) != len(media.places):
        listing = ", ".join(
            f"{owner} (grid {item.grid}, {places} places)"
            for item, (owner, places) in list(zip(media.items, media.owners, strict=True))[:8]
        )
        raise ValueError(
            f"modalities.{name}.projector: gave {len(tokens)} tokens for {len(media.places)} places; its module and "
            f"its shrink() disagree. Samples: {listing}"
        )
