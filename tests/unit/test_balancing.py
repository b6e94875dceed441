"""Dealing the packs of a step to ranks: every pack once, alike in every slot, and what that saves."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnikit.balancing import costing, dealt, idle_share, in_order, uneven_places

COSTS = st.lists(st.floats(0, 1e15, allow_subnormal=False), max_size=60)
SOME = settings(max_examples=150, deadline=None, derandomize=True)


def numbers(assignment):
    return sorted(number for slot in assignment for batch in slot for number in batch)


# ------------------------------------------------------------------------------------------------------------ the deal


@SOME
@given(COSTS, st.integers(1, 9), st.integers(1, 5))
def test_every_pack_is_computed_once_and_every_rank_takes_part_in_every_slot(costs, ranks, micro):
    for assignment in (dealt(costs, ranks, micro), in_order(len(costs), ranks, micro)):
        assert numbers(assignment) == list(range(len(costs)))
        assert len(assignment) == -(-len(costs) // (ranks * micro))
        assert all(len(slot) == ranks and max(map(len, slot)) <= micro for slot in assignment)


@SOME
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.data())
def test_all_ranks_have_equally_many_packs_where_the_step_can_be_shared_equally(ranks, slots, micro, data):
    size = ranks * slots * micro
    costs = data.draw(st.lists(st.floats(0.1, 100), min_size=size, max_size=size))
    assert all(len(batch) == micro for slot in dealt(costs, ranks, micro) for batch in slot)


@SOME
@given(COSTS, st.integers(1, 9), st.integers(1, 5))
def test_it_is_a_function_of_the_costs_and_never_worse_than_the_order_of_the_plan(costs, ranks, micro):
    found = dealt(costs, ranks, micro)
    assert found == dealt([*costs], ranks, micro)
    share = idle_share(costs, found)
    assert 0 <= share + 1e-9 and share <= idle_share(costs, in_order(len(costs), ranks, micro))


@SOME
@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(1, 3))
def test_with_one_pack_in_a_micro_batch_no_deal_is_better(costs, ranks):
    slots = -(-len(costs) // ranks)
    padded = [*range(len(costs)), *([None] * (slots * ranks - len(costs)))]
    best = min(
        idle_share(costs, [[[] if n is None else [n] for n in order[s * ranks :][:ranks]] for s in range(slots)])
        for order in itertools.permutations(padded)
    )
    assert idle_share(costs, dealt(costs, ranks, 1)) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_it_saves_most_of_the_idle_time_of_random_steps(ranks, micro):
    chance = np.random.default_rng(0)
    steps = [chance.lognormal(0, 0.3, 8 * ranks * micro).tolist() for _ in range(50)]
    before = np.mean([idle_share(costs, in_order(len(costs), ranks, micro)) for costs in steps])
    after = np.mean([idle_share(costs, dealt(costs, ranks, micro)) for costs in steps])
    assert after < 0.4 * before


@pytest.mark.parametrize(
    ("costs", "ranks", "micro", "order", "deal", "shares"),
    [
        ([8, 1, 7, 2], 2, 1, [[[0], [1]], [[2], [3]]], [[[0], [2]], [[3], [1]]], (1 - 18 / 30, 1 - 18 / 20)),
        ([4, 3, 2, 1], 2, 2, [[[0, 1], [2, 3]]], [[[0, 3], [1, 2]]], (1 - 10 / 14, 0)),
        ([5, 5, 1], 2, 1, [[[0], [1]], [[2], []]], [[[0], [1]], [[2], []]], (1 - 11 / 12, 1 - 11 / 12)),
        ([1, 9, 9], 2, 1, [[[0], [1]], [[2], []]], [[[1], [2]], [[0], []]], (1 - 19 / 36, 1 - 19 / 20)),
        ([3, 3, 3, 3, 3], 2, 2, [[[0, 1], [2, 3]], [[4], []]], [[[0, 4], [1]], [[2], [3]]], (1 / 6, 1 / 6)),
        ([2], 4, 3, [[[0], [], [], []]], [[[0], [], [], []]], (0.75, 0.75)),
        ([], 4, 1, [], [], (0, 0)),
    ],
    ids=str,
)
def test_cases_worked_by_hand(costs, ranks, micro, order, deal, shares):
    assert in_order(len(costs), ranks, micro) == order
    assert dealt(costs, ranks, micro) == deal
    assert (idle_share(costs, order), idle_share(costs, deal)) == pytest.approx(shares)


# ----------------------------------------------------------------------------------------------------------- its costs


@pytest.mark.parametrize(
    ("train", "backbone", "vision", "audio"),
    [
        ({"rest": 1e-3}, 3, 3, 3),
        ({"modalities.image.projector": 1e-3, "rest": "frozen"}, 2, 1, 1),
        ({"encoders.audio": 1e-3, "rest": "frozen"}, 2, 1, 3),
        ({"encoders.vision": "frozen", "rest": 1e-3}, 3, 1, 3),
        ({"backbone.model.layers.0": "frozen", "encoders": "frozen", "backbone": 1e-3, "rest": "frozen"}, 3, 1, 1),
        ({"backbone.lm_head": 1e-3, "rest": "frozen"}, 3, 1, 1),
    ],
    ids=str,
)
def test_a_part_costs_as_many_forward_passes_as_its_rule_makes_of_it(recipe_of, parts, train, backbone, vision, audio):
    shares = {"text": 1, "image": {"share": 1, "as": {"image": "video"}}, "audio": 1, "mixed": 1}
    recipe = recipe_of({"one": parts.stage(shares, train)})
    cost = costing(recipe, "one")
    forward = recipe.backbone.cost(40, 0)
    assert cost("text", 40, 0.0) == pytest.approx(backbone * forward) and forward > 0
    assert cost("image", 40, 1e6) == pytest.approx(backbone * forward + vision * 1e6)
    assert cost("audio", 40, 1e6) == pytest.approx(backbone * forward + audio * 1e6)
    assert cost("mixed", 40, 1e6) == pytest.approx(backbone * forward + (vision + audio) / 2 * 1e6)


def test_features_cost_nothing_unless_the_stage_runs_without_them(recipe_of, parts):
    train = {"modalities.image.projector": 1e-3, "rest": "frozen"}
    recipe = recipe_of({"one": parts.stage({"image": 1}, train, cache=True)})
    forward = recipe.backbone.cost(40, 0)
    assert costing(recipe, "one")("image", 40, 1e6) == pytest.approx(2 * forward)
    assert costing(recipe, "one", cached=False)("image", 40, 1e6) == pytest.approx(2 * forward + 1e6)


def test_recomputing_costs_one_pass_more_wherever_gradients_pass(recipe_of, parts):
    train = {"encoders.audio": 1e-3, "rest": "frozen"}
    recipe = recipe_of({"one": parts.stage({"image": 1, "audio": 1}, train)}, run={"recompute": True})
    cost, forward = costing(recipe, "one"), recipe.backbone.cost(40, 0)
    assert cost("image", 40, 1e6) == pytest.approx(3 * forward + 1e6)
    assert cost("audio", 40, 1e6) == pytest.approx(3 * forward + 4e6)
    recipe = recipe_of({"one": parts.stage({"image": 1, "audio": 1}, train)}, run={"recompute": ["encoders.audio"]})
    assert costing(recipe, "one")("audio", 40, 1e6) == pytest.approx(2 * forward + 4e6), "of one component alone"


@pytest.mark.parametrize(
    ("packs", "ranks", "micro", "told"),
    [
        (32, 8, 1, None),
        (32, 8, 4, None),
        (32, 64, 1, "32 packs a step are no multiple of 64 ranks times micro 1: 50% is padding"),
        (6, 4, 1, "6 packs a step are no multiple of 4 ranks times micro 1: 25% is padding"),
    ],
)
def test_packs_that_do_not_fill_all_ranks_are_told(packs, ranks, micro, told):
    assert uneven_places(packs, ranks, micro) == told
