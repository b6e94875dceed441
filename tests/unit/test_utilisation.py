"""Model FLOPs against torch's own count, what is not counted, and the measured peak."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from omnikit import utilisation
from omnikit.balancing import CACHED, FORWARD, THROUGH, TRAINED, passes
from omnikit.data import branches_of, layouter_of
from omnikit.distributed import ALONE
from omnikit.packing import collate, read_items
from omnikit.stages import apply_rules, build, rules_by_parameter
from omnikit.train import train
from omnikit.utilisation import flops_of, peak_memory, peak_of

FACTOR = 2.0
"""By which the conformance kit lets a component's `cost` be off."""
DATA = {"text": 1, "image": 1, "video": 1, "audio": 1, "mixed": 1}
RULES = {
    "all": {"rest": 1e-3},
    "projector": {"modalities.image.projector": 1e-3, "rest": "frozen"},
    "encoder": {"encoders.audio": 1e-3, "rest": "frozen"},
    "backbone": {"backbone": 1e-3, "rest": "frozen"},
}


@pytest.fixture(scope="module")
def made(recipe_of, parts):
    """made(rules, **run) -> recipe, model and a batch of all kinds, nearly without padding."""

    def make(train, rows=(("image", "text"), ("video",), ("audio", "mixed")), length=24, **run):
        recipe = recipe_of({"only": parts.stage(DATA, train)}, run=run)
        model = build(recipe, frozenset(recipe.modalities))
        apply_rules(model, rules_by_parameter((name for name, _ in model.named_parameters()), recipe, "only"))
        layouter = layouter_of(recipe)
        packs = [tuple(layouter(recipe.data[name].open()[place]) for place, name in enumerate(row)) for row in rows]
        items = [item for pack in packs for item in read_items(pack, branches_of(recipe))]
        length = max(length, *(sum(len(layout.ids) for layout in pack) for pack in packs))
        return recipe, model, collate(packs, items, length)

    return make


@pytest.mark.parametrize("rules", RULES)
def test_forward_and_backward_are_within_the_kits_factor_of_what_torch_counts(made, rules):
    recipe, model, batch = made(RULES[rules])
    with FlopCounterMode(display=False) as counter:
        model(batch).total.backward()
    ratio = flops_of(recipe, "only", model)(batch) / counter.get_total_flops()
    assert 1 / FACTOR < ratio < FACTOR


def test_each_part_counts_with_the_passes_of_its_rule(made):
    found = {rules: passes(made(train)[0], "only", cached=False) for rules, train in RULES.items()}
    parts = (
        "backbone",
        "encoders.vision",
        "encoders.audio",
        "modalities.image.projector",
        "modalities.audio.projector",
    )
    assert {rules: tuple(table[part] for part in parts) for rules, table in found.items()} == {
        "all": (TRAINED, TRAINED, TRAINED, TRAINED, TRAINED),
        "projector": (THROUGH, FORWARD, FORWARD, TRAINED, FORWARD),
        "encoder": (THROUGH, FORWARD, TRAINED, FORWARD, THROUGH),
        "backbone": (TRAINED, FORWARD, FORWARD, FORWARD, FORWARD),
    }
    frozen = made(RULES["encoder"])[0]
    assert passes(frozen, "only", cached=True)["encoders.vision"] == CACHED
    assert passes(frozen, "only", cached=True)["encoders.audio"] == TRAINED


def test_encoders_projectors_and_the_head_are_counted_by_their_cost(made):
    recipe, model, batch = made(RULES["projector"], rows=(("image",),))
    (item,) = batch.media["image"].items
    length = int((batch.segments > 0).sum())
    text = recipe.backbone.cost(length, len(batch.labels))
    encoded = recipe.encoders["vision"].cost(item.grid)
    projected = recipe.modalities["image"].projector.cost(item.grid, 16, 32)
    assert min(encoded, projected, text - recipe.backbone.cost(length, 0)) > 0
    expected = 2 * text + encoded + 3 * projected
    assert flops_of(recipe, "only", model)(batch) == pytest.approx(expected)
    model.stored = {"vision": item}
    assert flops_of(recipe, "only", model)(batch) == pytest.approx(2 * text + 3 * projected), "its features are kept"


def test_padding_neighbours_stand_ins_and_recomputing_cost_nothing(made):
    flops = []
    for rows, length, run in (
        ((("text", "text"),), 24, {}),
        ((("text", "text"),), 96, {}),
        ((("text", "text"), ()), 24, {}),
        ((("text", "text"),), 24, {"recompute": True}),
    ):
        recipe, model, batch = made(RULES["all"], rows=rows, length=length, **run)
        flops.append(flops_of(recipe, "only", model)(batch))
    assert flops[0] == pytest.approx(3 * 2 * recipe.backbone.cost(int((batch.segments > 0).sum()) // 2, 2))
    assert flops == [flops[0]] * 4


def test_a_step_of_a_run_says_what_it_cost_and_what_share_of_the_peak_that_is(recipe_of, parts, quiet, tmp_path):
    recipe = recipe_of({"only": parts.stage({"text": 1}, {"backbone": 1e-2})}, modalities={}, encoders={})
    lines = list(train(recipe, tmp_path, quiet).metrics())
    peak = peak_of(ALONE, bf16=False)
    for line in lines:
        elapsed = line["tokens"] / line["tokens_per_second"]
        assert elapsed == pytest.approx(line["seconds"] + line["wait"], rel=0.1, abs=1e-3)
        assert line["mfu"] == pytest.approx(line["flops"] / elapsed / peak)
        assert 6 * 5000 * line["tokens"] < line["flops"] < 6 * 60000 * line["tokens"]
        assert 50e6 < line["memory"] <= peak_memory(ALONE.device)


@pytest.fixture
def unmeasured():
    utilisation._measured.cache_clear()
    yield
    utilisation._measured.cache_clear()


def test_the_peak_is_that_of_the_fastest_product_and_larger_ones_are_not_waited_for(unmeasured, monkeypatch):
    tried = []

    def seconds(one):
        tried.append((len(one), one.dtype))
        return {8: 1e-3, 16: 1e-3, 32: 0.03, 64: 0.0}[len(one)] * (1 + len(tried) % 2)

    monkeypatch.setattr(utilisation, "SIDES", (8, 16, 32, 64))
    monkeypatch.setattr(utilisation, "_seconds", seconds)
    before = torch.get_rng_state()
    assert peak_of(ALONE, bf16=True) == pytest.approx(2 * 16**3 / 1e-3)
    assert {side for side, _ in tried} == {8, 16, 32} and {dtype for _, dtype in tried} == {torch.bfloat16}
    assert torch.equal(torch.get_rng_state(), before), "chance is the training's"
    count = len(tried)
    assert peak_of(ALONE, bf16=True) == pytest.approx(2 * 16**3 / 1e-3) and len(tried) == count, "once in a process"
    peak_of(ALONE, bf16=False)
    assert tried[-1][1] == torch.float32


def test_ranks_add_their_peaks(unmeasured, monkeypatch):
    monkeypatch.setattr(utilisation, "SIDES", (64,))
    met = []

    class Two:
        device = torch.device("cpu")

        def meet(self):
            met.append(1)

        def add(self, own):
            assert met, "all measure at the same time"
            return 2 * own

    assert peak_of(Two(), bf16=False) == 2 * peak_of(ALONE, bf16=False) > 0
