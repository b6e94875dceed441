"""Test 13: all 15 non-empty subsets of {text, image, audio, video} against different ones on the other ranks."""

import itertools
import json

import pytest
from harness import PATIENCE, metrics_of

KINDS = ("text", "image", "audio", "video")
SUBSETS = [found for size in range(1, 5) for found in itertools.combinations(KINDS, size)]
ENDS = {"image": "png", "audio": "wav", "video": "mp4"}
WANTED = {
    "image": ("encoders.vision", "modalities.image"),
    "video": ("encoders.vision", "modalities.video"),
    "audio": ("encoders.audio", "modalities.audio"),
}


@pytest.fixture(scope="module")
def recipe(toy, parts, world, tmp_path_factory):
    """A sample for every subset; everything trains."""
    path = tmp_path_factory.mktemp("subsets") / "subsets.jsonl"
    with path.open("w") as file:
        for number, kinds in enumerate(SUBSETS):
            content = [{"text": "red?"} if kind == "text" else {kind: f"{number % 8}.{ENDS[kind]}"} for kind in kinds]
            turns = [
                {"role": "user", "content": content},
                {"role": "assistant", "content": ["red", "blue"][number % 2]},
            ]
            file.write(json.dumps({"id": "+".join(kinds), "turns": turns}) + "\n")
    data = {"all": {"type": "jsonl", "path": str(path), "media": str(world), "modalities": list(ENDS)}}
    batch = {"length": 64, "packs": 2, "micro": 1}
    stages = {"omni": parts.stage({"all": 1}, {"rest": 1e-3}, steps=15, batch=batch)}
    return toy("subsets", stages, data=data)


def check(out, cases, size):
    """Losses and gradients are those of one process; what nobody used has a gradient of exactly zero."""
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["case"] for line in lines] == cases
    for line in lines:
        assert line["loss"] == pytest.approx(line["expected"], rel=1e-6), line
        assert line["worst"] < 1e-5, line
        used = {kind for numbers in _flat(line["case"]) for number in numbers for kind in SUBSETS[number]}
        wanted = {part for kind in used & ENDS.keys() for part in WANTED[kind]}
        for part, gradient in line["gradient"].items():
            if not part.startswith("backbone"):
                assert (gradient > 0) == (part in wanted), f"{part}: {gradient} in {line['case']}"
    worst = max(abs(line["loss"] / line["expected"] - 1) for line in lines)
    print(
        f"injected: {len(lines)} pairs of subsets on {size} ranks: losses at most {worst:.1e} off, gradients at most "
        f"{max(line['worst'] for line in lines):.1e} of the largest"
    )


def _flat(case):
    return [numbers for slot in case for numbers in slot]


def test_every_subset_against_every_other_on_two_ranks(ranks, recipe, tmp_path, count):
    numbers = range(len(SUBSETS))
    pairs = [[[[a], [(a + shift) % 15]]] for shift in count((1, 7), range(15)) for a in numbers]
    _run(ranks, recipe, pairs, 2, tmp_path)


def _run(ranks, recipe, cases, size, folder, held=None):
    out = folder / f"{size}-{held}.jsonl"
    patience = PATIENCE + 2 * len(cases)
    told = (recipe, json.dumps(cases), str(out), held)
    ranks.run(*told, ranks=size, call="cases:subsets", timeout=patience, limit=patience + 60)
    check(out, cases, size)


def test_with_accumulation_a_rank_may_lack_a_modality_in_each_micro_batch(ranks, recipe, tmp_path):
    cases = [[[[a], [(a + 4) % 15]], [[(a + 9) % 15, a], []], [[(a + 2) % 15], [(a + 11) % 15]]] for a in range(15)]
    _run(ranks, recipe, cases, 2, tmp_path)


@pytest.mark.parametrize("held", [None, 2])
def test_with_fewer_packs_than_ranks_the_others_take_part_with_padding(ranks, recipe, tmp_path, held):
    cases = [[[[a], [(a + 7) % 15], [], []]] for a in range(15)] + [[[[], [], [], [14]]], [[[], [], [], [0]]]]
    _run(ranks, recipe, cases, 4, tmp_path, held)


def test_training_with_two_packs_on_four_ranks_is_training_on_one(ranks, recipe, tmp_path):
    """The whole loop: rates, clipping, optimizer; 15 steps with all subsets in whatever order the plan has them."""
    for size in (1, 4):
        started = ranks.run("train", recipe, "--out", tmp_path / str(size), ranks=size)
        told = "2 packs a step are no multiple of 4 ranks times micro 1: 50% is padding"
        assert (told in started.err(0)) is (size == 4)
    one, four = (metrics_of(tmp_path / str(size)) for size in (1, 4))
    assert len(one) == 15
    for alone, together in zip(one, four, strict=True):
        assert alone["labels"] == together["labels"] and alone["tokens"] == together["tokens"]
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert four[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-6)
    print(
        f"injected: two packs on four ranks: {max(abs(a['loss'] - b['loss']) for a, b in zip(one, four, strict=True))}"
    )
