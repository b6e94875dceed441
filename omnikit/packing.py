"""Layouts to packs, packs to the batch.

Letters: B packs of T positions, N label positions, M tokens of media.
"""

import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from omnikit.component import Item
from omnikit.media import MediaError
from omnikit.sample import BadSample, Branch, Layout, blamed

Pack = tuple[Layout, ...]
LONG = 8
"""A sample of more than this part of a pack is long. Sorting shorter ones fills packs no better (`docs/log.md`)."""


class Media(NamedTuple):
    """All items of one modality in a batch, in the order of their places."""

    items: list[Item]
    """Values are tensors: what the encoder eats or, of an encoder in `OmniModel.stored`, its features."""
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
    """Indices in packs of at most `capacity`, each in the fullest one that still takes it.

    What is long for a pack comes first, longest first: it would find no room later. The rest comes as it is mixed, so
    that a pack holds samples of all sources: sorted by length, one would hold a single kind.
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free, number) of every pack, the fullest first
    long = capacity // LONG
    for index in sorted(range(len(lengths)), key=lambda i: (min(-lengths[i], -long), i)):
        at = bisect.bisect_left(room, (lengths[index], 0))
        if at == len(room):
            packs.append([])
            room.append((capacity, len(packs) - 1))
        free, number = room.pop(at)
        packs[number].append(index)
        bisect.insort(room, (free - lengths[index], number))
    return packs


def positions_of(segments: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Positions that restart at 0 with every segment."""
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts = torch.zeros_like(segments)
    starts[:, 1:] = torch.where(segments[:, 1:] != segments[:, :-1], index[:, 1:], 0)
    return index - starts.cummax(1).values


def read_items(pack: Pack, branches: Mapping[str, Branch]) -> list[Item]:
    """The pack's media in layout order, decoded. A medium that cannot be read is a BadSample."""
    items = []
    for layout in pack:
        for place in layout.places:
            branch = branches[place.modality]
            with blamed(layout.id, place.modality, MediaError):
                item = branch.reading.read(branch.reader, place.medium, branch.input, place.grid)
            if item.grid != place.grid:
                raise BadSample(
                    f"sample {layout.id}: {place.modality}: reader {type(branch.reader).type} was asked for grid "
                    f"{place.grid} and gave {item.grid}; it must give exactly what it was asked for"
                )
            items.append(Item(torch.as_tensor(item.value), item.grid))
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
            segments[row, column:end] = 0 if layout.bad else number
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
