"""Features of frozen encoders in the cache folder, so that a stage decodes no medium and runs no such encoder.

What an encoder that nothing trains makes of a medium never changes. It is kept in safetensors files of some hundred
items (shards), named by what decides a feature (reader, encoder and its tensors, versions, precision) and by the items
in them. An item is named by the sha256 of the medium's bytes, by the seconds that are meant and by its grid. So stages
and runs share what is equal, and nothing stale is ever found. `omnikit.filling` makes them.
"""

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from omnikit import cache
from omnikit.component import Grid, Input, Item, Medium, ReaderConfig
from omnikit.media import MediaError
from omnikit.reading import Reading
from omnikit.recipe import Recipe
from omnikit.versions import versions

VERSION = 2
"""Raised whenever features, or how they are kept, change."""


class Shelf:
    """The features of one modality that are in the cache."""

    def __init__(self, key: str) -> None:
        """`key` stands for all that decides features besides the medium and its grid."""
        self.key = key
        self.shards: dict[str, safe_open] = {}
        """By item, the shard that holds it."""
        self.digests: dict[tuple[object, ...], str] = {}
        """Of members of files, which `cache.digest` does not remember."""
        self.files: set[Path] = set()
        self.look()

    def look(self) -> None:
        """Take in the shards that are in the cache now."""
        for path in sorted(set(cache.folder().glob(f"features-{self.key}-*.safetensors")) - self.files):
            self.add(path)

    def add(self, path: Path) -> None:
        """Take in a shard; one that is damaged is removed, to be made anew."""
        self.files.add(path)
        try:
            shard = safe_open(path, framework="pt")
            self.shards |= dict.fromkeys(shard.keys(), shard)
        except (SafetensorError, OSError) as error:
            warnings.warn(f"{path}: is damaged ({error}); its features are made anew", stacklevel=2)
            path.unlink(missing_ok=True)
            self.files.discard(path)

    def item(self, medium: Medium, grid: Grid) -> str:
        """The name of an item. A medium whose bytes cannot be read is an OSError or a ValueError."""
        parts = (self._content(medium), medium.start, medium.end, *grid)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]

    def get(self, medium: Medium, grid: Grid) -> Tensor | None:
        """The features of an item, (features, width) in memory of their own, where they are in the cache."""
        try:
            name = self.item(medium, grid)
        except (OSError, ValueError):
            return None
        shard = self.shards.get(name)
        # A copy, made in the thread that asks: a view of the file would be read from disk where the step uses it.
        return None if shard is None else shard.get_tensor(name).clone()

    def _content(self, medium: Medium) -> str:
        source, member = medium.source, medium.member
        if isinstance(source, bytes):
            part = source if member is None else source[member.offset : member.offset + member.length]
            return hashlib.sha256(part).hexdigest()
        if member is None:
            return cache.digest(Path(source))
        status = os.stat(source)
        seen = (source, *member, status.st_ino, status.st_size, status.st_mtime_ns)
        if seen not in self.digests:
            self.digests[seen] = _digest_of_part(source, member.offset, member.length)
        return self.digests[seen]


def _digest_of_part(path: str, offset: int, length: int) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(offset)
        while length > 0 and (block := file.read(min(length, 2**20))):
            found.update(block)
            length -= len(block)
    return found.hexdigest()


class Stored(Reading):
    """Gives features out of the cache where a reader would give what the encoder eats."""

    shelf: Shelf

    @classmethod
    def of(cls, live: Reading, shelf: Shelf) -> Self:
        """In the stead of `live`, which still says what grids there are."""
        stored = cls(*live)
        stored.shelf = shelf
        return stored

    def read(self, reader: ReaderConfig, medium: Medium, input: Input, grid: Grid) -> Item:
        """The medium's features as an Item. Of a medium that has none, what is wrong with it is a MediaError."""
        features = self.shelf.get(medium, grid)
        if features is not None:
            return Item(features, grid)
        item = super().read(reader, medium, input, grid)  # it says why, in the words of a stage without a cache
        if item.grid != grid:
            return item
        raise MediaError(
            f"{medium}: could not be read, or was another file, when the stage's features were made; give the same "
            "command again to make those of this one"
        )


def digest_of(module: nn.Module) -> str:
    """The sha256 of a module's tensors, whatever device they are on, with their names and shapes."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def key_of(recipe: Recipe, modality: str, weights: str, device: torch.device) -> str:
    """What decides the features of a modality besides media and grids, as a hash; `weights` is the encoder's digest."""
    entry = recipe.modalities[modality]
    encoder = recipe.encoders[entry.encoder]
    decides = {
        "version": VERSION,
        "versions": versions(),
        "parts": [entry.reader, encoder.input, encoder],
        "weights": weights,
        "precision": recipe.run.precision,
        "device": device.type,
        # A medium over a limit is bad: it must not be found where a stage with a higher one left it.
        "limits": recipe.limits.lasting(),
    }
    return cache.key(decides)
