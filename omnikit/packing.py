"""Layouts to packs, packs to the batch.

Letters: B packs of T positions, N label positions, M tokens of media.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from omnikit.component import Item
from omnikit.sample import Branch, Layout

Pack = tuple[Layout, ...]


class Media(NamedTuple):
    """All items of one modality in a batch, in the order of their places."""

    items: list[Item]
    """Values are tensors."""
    places: Int[Tensor, " M"]
    """Flat positions (row * T + column) that the items' tokens take, item after item."""
    owners: list[tuple[str, int]]
    """For each item the sample it belongs to and the places that the layout gave it."""


class Batch(NamedTuple):
    """What one call of the model gets."""

    ids: Int[Tensor, "B T"]
    segments: Int[Tensor, "B T"]
    """0 is padding; equal positive numbers in a row are one sample."""
    label_at: Int[Tensor, " N"]
    """Flat positions whose hidden state predicts a learned token."""
    labels: Int[Tensor, " N"]
    groups: Int[Tensor, " N"]
    """Which of `group_names` each label counts for."""
    group_names: list[str]
    media: dict[str, Media]

    def to(self, device: torch.device) -> "Batch":
        """The batch with every tensor on `device`."""
        media = {
            name: Media([Item(item.value.to(device), item.grid) for item in m.items], m.places.to(device), m.owners)
            for name, m in self.media.items()
        }
        tensors = {name: value.to(device) for name, value in self._asdict().items() if isinstance(value, Tensor)}
        return self._replace(media=media, **tensors)


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices in packs of at most `capacity`: longest first, each into the fullest pack that still takes it."""
    packs: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        fitting = [(free, number) for number, free in enumerate(room) if free >= length]
        if fitting:
            free, number = min(fitting)
            packs[number].append(index)
            room[number] = free - length
        else:
            packs.append([index])
            room.append(capacity - length)
    return packs


def positions_of(segments: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Positions that restart at 0 with every segment."""
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts = torch.zeros_like(segments)
    starts[:, 1:] = torch.where(segments[:, 1:] != segments[:, :-1], index[:, 1:], 0)
    return index - starts.cummax(1).values


def read_items(pack: Pack, branches: Mapping[str, Branch]) -> list[Item]:
    """The pack's media in layout order, decoded. A medium that cannot be read is a ValueError naming the sample."""
    items = []
    for layout in pack:
        for place in layout.places:
            branch = branches[place.modality]
            try:
                item = branch.reading.read(branch.reader, place.medium, branch.input, place.grid)
            except ValueError as error:
                raise ValueError(f"sample {layout.id}: {place.modality}: {error}") from error
            if item.grid != place.grid:
                raise ValueError(
                    f"sample {layout.id}: {place.modality}: reader {type(branch.reader).type} was asked for grid "
                    f"{place.grid} and gave {item.grid}; it must give exactly what it was asked for"
                )
            items.append(Item(torch.from_numpy(item.value), item.grid))
    return items


def collate(packs: Sequence[Pack], items: Iterable[Item], length: int) -> Batch:
    """The batch of packs, each padded to `length`; `items` are the media of all packs in layout order."""
    ids = np.zeros((len(packs), length), np.int64)
    segments = np.zeros((len(packs), length), np.int64)
    label_at: list[int] = []
    labels: list[int] = []
    groups: list[int] = []
    names: dict[str, int] = {}
    media: dict[str, tuple[list[Item], list[int], list[tuple[str, int]]]] = {}
    stream = iter(items)
    for row, layouts in enumerate(packs):
        column = 0
        for number, layout in enumerate(layouts, 1):
            end = column + len(layout.ids)
            ids[row, column:end] = layout.ids
            segments[row, column:end] = number
            base = row * length + column
            # The first position has nothing before it to be predicted from.
            at = [i for i, learned in enumerate(layout.learned) if learned and i > 0]
            label_at.extend(base + i - 1 for i in at)
            labels.extend(layout.ids[i] for i in at)
            groups.extend([names.setdefault(layout.group, len(names))] * len(at))
            for place in layout.places:
                found = media.setdefault(place.modality, ([], [], []))
                found[0].append(next(stream))
                found[1].extend(range(base + place.start, base + place.start + place.tokens))
                found[2].append((layout.id, place.tokens))
            column = end
    return Batch(
        ids=torch.from_numpy(ids),
        segments=torch.from_numpy(segments),
        label_at=torch.tensor(label_at, dtype=torch.long),
        labels=torch.tensor(labels, dtype=torch.long),
        groups=torch.tensor(groups, dtype=torch.long),
        group_names=list(names),
        media={name: Media(m[0], torch.tensor(m[1], dtype=torch.long), m[2]) for name, m in media.items()},
    )
