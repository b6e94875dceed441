"""The plan: every sample once an epoch, shares as stated, full packs; the same whatever reads it, from wherever."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnikit.data import Position, StageData, layouter_of
from omnikit.mixing import mixture_of
from omnikit.packing import pack
from omnikit.recipe_schema import Stage

KINDS = ("text", "image", "audio", "video", "mixed")


def stage_of(sources, length=256, **settings):
    shares = {name: {"share": share} for name, share in sources.items()}
    batch = {"length": length, "packs": 4}
    return Stage.model_validate({"batch": batch, "data": shares, "train": {"rest": 1e-3}, **settings})


SIZES = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 700), min_size=1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SIZES, st.integers(1, 3), st.integers(0, 2**31))
def test_in_epochs_every_sample_comes_once_in_each(sizes, epochs, seed):
    stage = stage_of(dict.fromkeys(sizes, 1.0), epochs=epochs)
    mixture = mixture_of(stage, sizes, dict.fromkeys(sizes, 20.0), seed)
    seen = list(itertools.chain.from_iterable(mixture.of_window(window) for window in range(200)))
    total = sum(sizes.values())
    assert len(seen) == total * epochs
    every = Counter((name, place) for name, size in sizes.items() for place in range(size))
    orders = [seen[begin : begin + total] for begin in range(0, len(seen), total)]
    assert all(Counter(order) == every for order in orders)
    assert total < 12 or len(set(map(tuple, orders))) == epochs, "each epoch has an order of its own"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SIZES, st.integers(0, 2**31))
def test_by_shares_every_source_goes_through_its_own_epochs(sizes, seed):
    stage = stage_of({name: 1.0 + index for index, name in enumerate(sizes)}, steps=1)
    mixture = mixture_of(stage, sizes, dict.fromkeys(sizes, 20.0), seed)
    places = {name: [] for name in sizes}
    for position in range(3000):
        name, place = mixture.at(position)
        places[name].append(place)
    for name, size in sizes.items():
        for begin in range(0, len(places[name]) - size + 1, size):
            assert sorted(places[name][begin : begin + size]) == list(range(size))


@pytest.mark.parametrize("mix", ["samples", "tokens"])
def test_shares_are_of_samples_or_of_tokens(mix):
    means = {"long": 300.0, "short": 10.0}
    stage = stage_of({"long": 1.0, "short": 3.0}, length=4096, steps=1, mix=mix)
    mixture = mixture_of(stage, {"long": 900, "short": 9000}, means, 0)
    counts = Counter(name for name, _ in mixture.of_window(0))
    tokens = {name: counts[name] * means[name] for name in counts}
    share = counts["short"] / sum(counts.values()) if mix == "samples" else tokens["short"] / sum(tokens.values())
    assert share == pytest.approx(0.75, abs=0.01)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 512), min_size=1, max_size=300), st.integers(512, 4096))
def test_packs_hold_every_sample_once_and_none_is_over_full(lengths, capacity):
    packs = pack(lengths, capacity)
    assert sorted(itertools.chain.from_iterable(packs)) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in one) <= capacity for one in packs)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
def test_packs_of_log_normal_lengths_are_full(sigma):
    """At least 97 % of the places; batches of 8 padded to their longest hold a third to two thirds."""
    chance = np.random.default_rng(0)
    lengths = np.clip(chance.lognormal(5.5, sigma, 200_000), 8, 4096).astype(int)
    sizes, means = {"a": len(lengths)}, {"a": float(lengths.mean())}
    mixture = mixture_of(stage_of({"a": 1.0}, length=4096, steps=1), sizes, means, 0)
    taken = places = 0
    for window in range(4):
        of_window = [int(lengths[place]) for _, place in mixture.of_window(window)]
        taken += sum(of_window)
        places += 4096 * len(pack(of_window, 4096))
    assert taken / places >= 0.97
    padded = lengths.reshape(-1, 8)
    assert padded.sum() / (8 * padded.max(1).sum()) < 0.75


# ------------------------------------------------------------------------------------------------------------ resuming


def taken(steps, number):
    found = list(itertools.islice(steps, number))
    steps.close()
    return found


def same(first, second):
    """Whether two steps have the same samples, tokens, segments, labels and media, to the last bit."""

    def parts(batch):
        yield from (batch.ids, batch.segments, batch.label_at, batch.labels, batch.groups)
        for name in sorted(batch.media):
            yield batch.media[name].places
            yield from (item.value for item in batch.media[name].items)

    return (
        first.samples == second.samples
        and first.after == second.after
        and len(first.batches) == len(second.batches)
        and all(
            a.media.keys() == b.media.keys() and all(torch.equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))
            for a, b in zip(first.batches, second.batches, strict=True)
        )
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_goes_on_from_any_step_as_if_it_had_never_stopped(
    recipe_of, parts, small_windows, kind, packed, workers
):
    """At five places: after the first step, in the middle, at the edges of a window and of an epoch, before the end."""
    probe = recipe_of({"one": parts.stage({kind: 1}, {"rest": 1e-3}, batch={"length": 96, "packs": 1})})
    longest = int(StageData(probe, "one", layouter_of(probe)).indexes[kind].lengths.max())
    batch = {"length": 3 * longest if packed else longest, "packs": 3, "micro": 1}
    stage = parts.stage({kind: 1}, {"rest": 1e-3}, steps=None, epochs=2, batch=batch)
    del stage["steps"]
    recipes = [recipe_of({"one": stage}, run={"workers": number}) for number in (0, workers)]
    whole_data, data = (StageData(recipe, "one", layouter_of(recipe)) for recipe in recipes)
    whole = taken(whole_data.steps(Position()), 10_000)
    assert len(whole) == whole_data.steps_planned == data.steps_planned
    seen = Counter(sample.id for step in whole for sample in step.samples)
    assert set(seen.values()) == {2} and len(seen) == 160
    edges = [number for number, step in enumerate(whole, 1) if step.after.offset == 0]
    done = list(itertools.accumulate(len(step.samples) for step in whole))
    epoch = next(number for number, samples in enumerate(done, 1) if samples >= 160)
    for cut in {1, len(whole) // 2, edges[0] if edges else 2, epoch, len(whole) - 1}:
        [step] = taken(data.steps(whole[cut - 1].after), 1)
        assert same(step, whole[cut]), f"after step {cut} of {len(whole)}"
    assert taken(data.steps(whole[-1].after), 1) == [], "after the last there is none"


def test_the_last_step_of_an_epoch_may_have_fewer_packs_and_the_run_ends_with_it(
    recipe_of, parts, tmp_path, quiet, small_windows
):
    from omnikit.train import train

    stage = parts.stage({"text": 1, "image": 1}, {"rest": 1e-3}, epochs=1, batch={"length": 40, "packs": 16})
    del stage["steps"]
    recipe = recipe_of({"one": stage})
    data = StageData(recipe, "one", layouter_of(recipe))
    steps = taken(data.steps(Position()), 1000)
    assert sum(len(step.samples) for step in steps) == 320
    assert sum(map(len, (batch.ids for batch in steps[-1].batches))) < 16, "another length, please"
    run = train(recipe, tmp_path / "run", quiet)
    lines = list(run.metrics())
    assert len(lines) == len(steps) == data.steps_planned and run.latest("one").step == len(steps)
    assert json.loads((run.latest("one").folder / "state.json").read_text())["steps"] == len(steps)
