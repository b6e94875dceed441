"""Packs and batches against what one would write down by hand."""

import numpy as np
import pytest
import torch

from omnikit.component import Item, Medium, Pixels, ReaderConfig
from omnikit.packing import collate, pack, positions_of, read_items
from omnikit.sample import Branch, Layout, Place


def layout(name, ids, learned, *places):
    """`learned` as a string: "x" where a position is predicted."""
    assert len(ids) == len(learned)
    return Layout(name, list(ids), [mark == "x" for mark in learned], tuple(places))


def place(modality, start, tokens):
    return Place(modality, Medium(f"{modality}.file"), (tokens, 1, 1), start, tokens)


def item(number, tokens):
    return Item(torch.full((tokens,), float(number)), (tokens, 1, 1))


# ---------------------------------------------------------------------------------------------------------------- packs


@pytest.mark.parametrize(
    ("lengths", "packs"),
    [
        ([], []),
        ([4], [[0]]),
        ([10], [[0]]),
        ([3, 7, 5, 5], [[1, 0], [2, 3]]),
        ([5, 5, 5], [[0, 1], [2]]),  # of equals the first comes first
        ([2, 6, 7], [[2, 0], [1]]),  # into the fullest that still takes it
    ],
)
def test_packs_by_hand(lengths, packs):
    assert pack(lengths, 10) == packs


def test_positions_restart_with_every_segment():
    segments = torch.tensor([[1, 1, 1, 2, 2, 0, 0], [0, 3, 3, 3, 1, 1, 1], [5, 5, 5, 5, 5, 5, 5]])
    assert positions_of(segments).tolist() == [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6]]


# -------------------------------------------------------------------------------------------------------------- batches


def test_a_batch_by_hand():
    first = layout("a", [11, 12, 13, 14], "--xx")
    second = layout("b", [21, 0, 0, 22], "---x", place("image", 1, 2))
    third = layout("c", [31, 0, 0, 0, 0, 32, 33], "------x", place("audio", 1, 3), place("image", 4, 1))
    batch = collate([(first, second), (third,)], [item(1, 2), item(2, 3), item(3, 1)], length=9)
    assert batch.ids.tolist() == [[11, 12, 13, 14, 21, 0, 0, 22, 0], [31, 0, 0, 0, 0, 32, 33, 0, 0]]
    assert batch.segments.tolist() == [[1, 1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1, 0, 0]]
    # the hidden state before a learned token predicts it
    assert batch.label_at.tolist() == [1, 2, 6, 9 + 5]
    assert batch.labels.tolist() == [13, 14, 22, 33]
    assert batch.group_names == ["text", "image", "audio+image"]
    assert batch.groups.tolist() == [0, 0, 1, 2]
    assert set(batch.media) == {"image", "audio"}
    assert batch.media["image"].places.tolist() == [5, 6, 9 + 4]
    assert batch.media["audio"].places.tolist() == [9 + 1, 9 + 2, 9 + 3]
    assert [one.value[0].item() for one in batch.media["image"].items] == [1, 3]
    assert [one.value[0].item() for one in batch.media["audio"].items] == [2]
    assert batch.media["image"].owners == [("b", 2), ("c", 1)]


def test_a_first_position_is_never_a_label():
    """Nothing stands before it: in the middle of a row it would be predicted from another sample."""
    batch = collate([(layout("a", [1, 2], "xx"), layout("b", [3, 4], "xx"))], [], 4)
    assert batch.labels.tolist() == [2, 4] and batch.label_at.tolist() == [0, 2]


def test_a_batch_without_labels_or_samples():
    batch = collate([(layout("a", [1, 2], "--"),), ()], [], 3)
    assert batch.ids.tolist() == [[1, 2, 0], [0, 0, 0]] and batch.segments.tolist() == [[1, 1, 0], [0, 0, 0]]
    assert batch.labels.shape == batch.label_at.shape == batch.groups.shape == (0,)
    assert batch.labels.dtype == batch.label_at.dtype == torch.long and batch.media == {}


def test_to_moves_every_tensor():
    batch = collate([(layout("a", [0, 0, 3], "--x", place("image", 0, 2)),)], [item(1, 2)], 4)
    moved = batch.to(torch.device("meta"))
    tensors = [moved.ids, moved.segments, moved.label_at, moved.labels, moved.groups, moved.media["image"].places]
    assert all(tensor.is_meta for tensor in [*tensors, moved.media["image"].items[0].value])
    assert moved.group_names == batch.group_names and moved.media["image"].owners == [("a", 2)]


# -------------------------------------------------------------------------------------------------------------- reading


class Reader(ReaderConfig):
    """Reads a medium's path as its grid's first number; "broken" is no medium."""

    type = "test"
    makes = Pixels
    lies: bool = False

    def read(self, medium, input, grid):
        if medium.source == "broken":
            raise ValueError("broken: is no picture; give one")
        return Item(np.zeros(grid, np.float32), (grid[0] + self.lies, *grid[1:]))


def branch(**options):
    return {"image": Branch(Reader(**options), Pixels(size=4, patch=2), None)}


def test_media_are_read_in_layout_order_as_tensors():
    pack = (
        layout("a", [0, 0, 0], "---", place("image", 0, 1), place("image", 1, 2)),
        layout("b", [0] * 3, "---", place("image", 0, 3)),
    )
    items = read_items(pack, branch())
    assert [one.grid for one in items] == [(1, 1, 1), (2, 1, 1), (3, 1, 1)]
    assert all(isinstance(one.value, torch.Tensor) for one in items)


def test_a_medium_that_cannot_be_read_names_the_sample():
    bad = Place("image", Medium("broken"), (1, 1, 1), 0, 1)
    with pytest.raises(ValueError, match=r"^sample s9: image: broken: is no picture; give one$"):
        read_items((layout("s9", [0], "-", bad),), branch())


def test_a_reader_that_gives_another_grid_is_named_with_the_sample():
    with pytest.raises(
        ValueError, match=r"^sample s9: image: reader test was asked for grid \(2, 1, 1\) and gave \(3, 1, 1\);"
    ):
        read_items((layout("s9", [0, 0], "--", place("image", 0, 2)),), branch(lies=True))
