"""What holds of every packing and every batch."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnikit.component import Item, Medium
from omnikit.mixing import WINDOW
from omnikit.packing import collate, pack, positions_of
from omnikit.sample import Layout, Place

quick = settings(max_examples=80, deadline=None, derandomize=True)
CAPACITY = 40


@quick
@given(st.lists(st.integers(1, CAPACITY), max_size=60))
def test_every_index_is_in_one_pack_and_no_pack_is_too_full(lengths):
    packs = pack(lengths, CAPACITY)
    assert sorted(index for one in packs for index in one) == list(range(len(lengths)))
    sums = [sum(lengths[index] for index in one) for one in packs]
    assert all(0 < total <= CAPACITY for total in sums)
    assert pack(lengths, CAPACITY) == packs
    # No two packs would fit into one, so that all but the last are more than half full on average.
    assert all(first + second > CAPACITY for i, first in enumerate(sums) for second in sums[i + 1 :])


@quick
@given(st.lists(st.integers(CAPACITY // 8, CAPACITY), min_size=1, max_size=60), st.permutations(range(60)))
def test_of_long_samples_the_number_of_packs_does_not_depend_on_the_order(lengths, order):
    shuffled = [lengths[index] for index in order if index < len(lengths)]
    assert len(pack(lengths, CAPACITY)) == len(pack(shuffled, CAPACITY))


@quick
@given(st.lists(st.integers(1, CAPACITY // 8), min_size=1, max_size=200))
def test_of_short_samples_all_packs_but_one_are_seven_eighths_full(lengths):
    sums = sorted(sum(lengths[index] for index in one) for one in pack(lengths, CAPACITY))
    assert all(total > CAPACITY - CAPACITY // 8 for total in sums[1:])


@pytest.mark.parametrize("seed", range(5))
def test_packs_are_as_mixed_as_the_samples(seed):
    """Of two kinds that differ in length nearly every pack holds both; sorted by length, most would hold one."""
    chance = random.Random(seed)
    lengths = [chance.choice((18, 28)) for _ in range(WINDOW)]
    shares = [sum(lengths[index] == 28 for index in one) / len(one) for one in pack(lengths, 512)]
    assert sum(0.1 < share < 0.9 for share in shares) >= 0.9 * len(shares), shares


@pytest.mark.parametrize("seed", range(5))
def test_little_is_padding(seed):
    """A window of samples of one to a hundred positions fills rows of 256 to 97 % at least."""
    chance = random.Random(seed)
    lengths = [chance.randint(1, 100) for _ in range(WINDOW)]
    assert sum(lengths) / (256 * len(pack(lengths, 256))) > 0.97


SEGMENTS = st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=1, max_size=4).map(torch.tensor)


@quick
@given(SEGMENTS)
def test_positions_count_from_the_last_change(segments):
    expected = []
    for row in segments.tolist():
        counts = []
        for column, number in enumerate(row):
            counts.append(counts[-1] + 1 if column and row[column - 1] == number else 0)
        expected.append(counts)
    assert positions_of(segments).tolist() == expected


@st.composite
def layouts(draw):
    """A layout of up to three media between texts; token ids are all different, so that nothing can be mixed up."""
    ids, learned, places = [], [], []
    for _ in range(draw(st.integers(1, 4))):
        words = draw(st.integers(0, 4))
        ids += [draw(st.integers(1, 10**9)) for _ in range(words)]
        learned += [draw(st.booleans()) for _ in range(words)]
        if draw(st.booleans()):
            tokens = draw(st.integers(1, 3))
            places.append(
                Place(draw(st.sampled_from(["image", "audio"])), Medium("m"), (tokens, 1, 1), len(ids), tokens)
            )
            ids += [0] * tokens
            learned += [False] * tokens
    return Layout(f"s{draw(st.integers(0, 99))}", ids or [7], learned or [False], tuple(places))


@quick
@given(st.lists(layouts(), max_size=8))
def test_a_batch_is_its_packs(samples):
    length = 64
    packs = [tuple(samples[index] for index in one) for one in pack([len(sample.ids) for sample in samples], length)]
    flat = [place for one in packs for sample in one for place in sample.places]
    items = [Item(torch.tensor(number), place.grid) for number, place in enumerate(flat)]
    batch = collate(packs, items, length)
    assert batch.ids.shape == batch.segments.shape == (len(packs), length)

    labels, counts, numbers = {}, {}, iter(range(len(items)))
    for row, one in enumerate(packs):
        column = 0
        for number, sample in enumerate(one, 1):
            assert batch.ids[row, column : column + len(sample.ids)].tolist() == sample.ids
            assert (batch.segments[row, column : column + len(sample.ids)] == number).all()
            for place in sample.places:
                media, index = batch.media[place.modality], next(numbers)
                where = [int(one.value) for one in media.items].index(index)
                begin = sum(one.grid[0] for one in media.items[:where])
                start = row * length + column + place.start
                assert media.places[begin : begin + place.tokens].tolist() == list(range(start, start + place.tokens))
                assert media.owners[where] == (sample.id, place.tokens)
            for i, learned in enumerate(sample.learned):
                if learned and i:
                    labels[row * length + column + i - 1] = (sample.ids[i], sample.group)
                    counts[sample.group] = counts.get(sample.group, 0) + 1
            column += len(sample.ids)
        assert not batch.ids[row, column:].any() and not batch.segments[row, column:].any()
    found = zip(batch.label_at.tolist(), batch.labels.tolist(), batch.groups.tolist(), strict=True)
    assert {at: (label, batch.group_names[group]) for at, label, group in found} == labels
    assert len(batch.labels) == len(labels) == sum(counts.values())
    assert sum(len(media.items) for media in batch.media.values()) == len(items)
