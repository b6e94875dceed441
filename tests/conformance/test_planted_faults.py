"""Each check of the conformance kit fails on the fault that it is for, and no other check does."""

import planted
import pytest
from omnikit_good_encoder import GoodEncoderReaderConfig
from planted_with_torch import Hasty

from omnikit.component import Pixels
from omnikit.testing import (
    assert_conforms,
    check_backbone,
    check_benchmark,
    check_encoder,
    check_projector,
    check_reader,
    check_source,
)
from omnikit.testing.kinds import CHECKS

ORDER = "order_only_permutes"
ENCODERS = [
    ("example_is_a_valid_item", planted.DoubleExample(), "its value is float64"),
    ("features_match_grids", planted.Stacked(module="Drops"), "gives features of shape (6, 16) for grid (7, 1, 1)"),
    ("features_match_grids", planted.Stacked(module="Wide"), "it would be (7, 32)"),
    ("neighbours_do_not_matter", planted.Stacked(module="Centred"), "no statistics over the batch"),
    ("neighbours_do_not_matter", planted.Stacked(module="CentredBehindZeros"), "no statistics over the batch"),
    (ORDER, planted.Stacked(module="Sorted"), "do not come in the order of the inputs"),
    ("gradients_reach_every_parameter", planted.Stacked(module="Idle"), "pooling_head.weight, pooling_head.bias"),
    ("stand_in_adds_exactly_nothing", planted.Stacked(module="SkipsSilence"), "no gradient flows"),
    ("same_input_same_output", planted.Stacked(module="Diced"), "in training mode"),
    ("blocks_run_as_often_whatever_the_input", planted.Stacked(module="OneByOne"), "block 0 runs 1 times"),
    ("weights_in_bfloat16", planted.Stacked(module="Float32Only"), "BFloat16"),
    ("autocast_to_bfloat16", planted.Stacked(module="NoAutocast"), "BFloat16"),
    ("meta_built_is_the_same", planted.Stacked(module="FromWeights"), "buffer norm is computed from parameters"),
    ("meta_built_is_the_same", planted.Stacked(module="Asks"), "cannot be built on the meta device"),
    ("state_dict_round_trip", planted.Stacked(module="UntoldTie"), "are one tensor; tell it by tied()"),
    ("tiny_is_tiny", planted.HugeTiny(), "parameters; at most 2,000,000"),
    ("tiny_is_tiny", planted.OtherTiny(), "changes the option bias"),
    ("tiny_is_tiny", planted.DearTiny(), "smaller sizes"),
    ("cost_matches_flops", planted.Cheap(), "torch counts"),
    ("cost_matches_flops", planted.Shallow(), "with depth 8, torch counts"),
    ("travels_to_a_worker", planted.Pinned(), "holds an open file"),
    ("shards_on_two_ranks", planted.Stacked(module="Meddling"), "DTensor"),
    ("comes_back_from_json", planted.Rounded(), "gain changed on the way"),
    ("imports_without_torch", Hasty(), "imports torch"),
]
PROJECTORS = [
    ("tokens_equal_shrink", planted.Generous(), "gives tokens of shape (2, 40) for grid (3, 1, 1)"),
    ("shrink_gives_grids_or_refuses", planted.Vanishing(), "is (0, 1, 1)"),
    ("shrink_gives_grids_or_refuses", planted.Clumsy(), "AssertionError; make it a ValueError"),
]
READERS = [
    ("gives_the_promised_grids", planted.Stubborn(), "asked for (2, 4, 4), read gives (1, 4, 4)"),
    ("gives_the_promised_grids", planted.NumpyGrid(), "is no grid"),
    ("gives_the_promised_grids", planted.Misshapen(), "a value of shape (1, 3, 5, 5)"),
    ("values_are_float32_arrays", planted.Doubles(), "the value is float64"),
    ("reads_the_same_twice", planted.Shared(), "another value the second time"),
    ("offers_the_largest_grid_first", planted.SmallestFirst(), "[16, 32] features"),
    ("named_sizes_are_grids", planted.Misnamed(), "(1, 0, 3) is no grid"),
    ("named_sizes_are_grids", planted.LeavingReader(), "SystemExit: 0"),
    ("grids_decodes_nothing", planted.Decoding(), "look at the header alone"),
    ("takes_bytes_as_it_takes_paths", planted.Pathless(), "its bytes give another value"),
    ("refuses_what_it_cannot_read", planted.Crashing(), "raises KeyError"),
    ("refuses_what_it_cannot_read", planted.Nameless(), "does not name it"),
    ("travels_to_a_worker", planted.PinnedReader(), "holds an open file"),
]
SOURCES = [
    ("holds_samples", planted.Robots, "a turn of 'robot'"),
    ("same_sample_at_the_same_index", planted.ReadsOn, "other samples the second time"),
    ("same_sample_at_the_same_index", planted.Threadbound, "made in another thread"),
    ("names_the_place_of_a_broken_record", planted.Vague, "does not name it"),
    ("fingerprint_follows_the_data", planted.Blind, "changes the fingerprint"),
    ("tells_what_is_missing", planted.Confident, "says nothing when its data is gone"),
    ("travels_to_a_worker", planted.PinnedSource, "holds an open file"),
]
BACKBONES = [
    (["logits_match_positions"], planted.Decoder(module="Narrow"), "not (1, 23, 16)"),
    # Whoever sees other documents sees another order of them.
    (["neighbours_do_not_matter", ORDER], planted.Decoder(module="OneDocument"), "no attention"),
    (["padding_does_not_matter"], planted.Decoder(module="SeesPadding"), "segment 0 is seen by nobody"),
    # A cache holds nothing that is still to come.
    (["later_tokens_do_not_matter", "extend_equals_hidden"], planted.Decoder(module="SeesAhead"), "causal"),
    (["extend_equals_hidden"], planted.Decoder(module="Restarts"), "see to cache, mask and positions"),
    (["extend_equals_hidden"], planted.Decoder(module="Miscounts"), "see to cache, mask and positions"),
    (["texts_come_back"], planted.LowerCase(), "comes back as"),
    (["special_tokens_in_content_stay_text"], planted.Obedient(), "becomes the special token"),
]
BENCHMARKS = [
    ("asks_questions", planted.Answered(), "does not end in an empty assistant turn"),
    ("grades_whatever_is_answered", planted.Enthusiastic(), "is 2.0 right; it is 0 to 1"),
    ("misses_what_is_not_there", planted.Sure(), "says None of an empty folder"),
    ("is_known_by_its_hashes", planted.Fickle(), "fingerprint and definition are"),
]


def names(cases):
    """check-Fault for each case."""
    checks = [[check] if isinstance(check, str) else check for check, _, _ in cases]
    faults = [getattr(one, "module", None) or getattr(one, "__name__", type(one).__name__) for _, one, _ in cases]
    plain = ("Stack", "Decoder")  # a good module, of a Config that is not
    faults = [type(case[1]).__name__ if fault in plain else fault for fault, case in zip(faults, cases, strict=True)]
    return [f"{check[0]}-{fault}" for check, fault in zip(checks, faults, strict=True)]


def assert_fails(results, checks, words):
    """Exactly these checks failed, the first for the reason that was planted."""
    failed = {result.check: result.detail for result in results if not result.passed}
    assert list(failed) == checks, failed
    assert words in failed[checks[0]]


@pytest.mark.parametrize(("check", "config", "words"), ENCODERS, ids=names(ENCODERS))
def test_a_fault_of_an_encoder(check, config, words):
    assert_fails(check_encoder(config, GoodEncoderReaderConfig()), [check], words)


@pytest.mark.parametrize(("check", "config", "words"), PROJECTORS, ids=names(PROJECTORS))
def test_a_fault_of_a_projector(check, config, words):
    assert_fails(check_projector(config), [check], words)


@pytest.mark.parametrize(("check", "config", "words"), READERS, ids=names(READERS))
def test_a_fault_of_a_reader(check, config, words):
    assert_fails(check_reader(config, Pixels(size=16, patch=4)), [check], words)


@pytest.mark.parametrize(("check", "made", "words"), SOURCES, ids=names(SOURCES))
def test_a_fault_of_a_source(check, made, words, tmp_path):
    assert_fails(check_source(made.specimen(tmp_path)), [check], words)


@pytest.mark.parametrize(("check", "config", "words"), BENCHMARKS, ids=names(BENCHMARKS))
def test_a_fault_of_a_benchmark(check, config, words):
    assert_fails(check_benchmark(config), [check], words)


@pytest.mark.parametrize(("checks", "config", "words"), BACKBONES, ids=names(BACKBONES))
def test_a_fault_of_a_backbone(checks, config, words):
    assert_fails(check_backbone(config), checks, words)


def test_every_check_has_its_planted_fault():
    proven = {case[0] for case in (*ENCODERS, *PROJECTORS, *READERS, *SOURCES, *BENCHMARKS)} | {
        c for case in BACKBONES for c in case[0]
    }
    assert {check.__name__ for checks in CHECKS.values() for check in checks} == proven


def test_without_a_fault_nothing_fails(tmp_path):
    """The very components that the faults are planted in."""
    assert_conforms(planted.Stacked(), reader=GoodEncoderReaderConfig())
    assert_conforms(planted.GoodProjectorConfig())
    assert_conforms(planted.TwoViews(), input=Pixels(size=16, patch=4))
    assert_conforms(planted.GoodSourceConfig.specimen(tmp_path))
    assert_conforms(planted.Decoder())


@pytest.mark.parametrize(
    ("module", "words"),
    [("Drawn", "keep no values outside parameters and buffers"), ("FalseTie", "but they are two tensors")],
)
def test_what_is_wrong_in_more_ways_than_one(module, words):
    """Values drawn outside the state dict, and a tie that is none, spoil building on meta as well as loading."""
    results = check_encoder(planted.Stacked(module=module), GoodEncoderReaderConfig())
    failed = {result.check: result.detail for result in results if not result.passed}
    assert set(failed) == {"meta_built_is_the_same", "state_dict_round_trip"}
    assert any(words in detail for detail in failed.values())


def test_what_cannot_be_tried_says_what_is_missing():
    (result,) = check_encoder(planted.WithoutExample())
    assert str(result).startswith("FAIL  can_be_tried: NotImplementedError: example() is missing")


def test_the_assertion_lists_every_failing_line():
    words = r"fails 1 of 18 checks:\n  FAIL  gradients_reach_every_parameter: .*pooling"
    with pytest.raises(AssertionError, match=words):
        assert_conforms(planted.Stacked(module="Idle"))
