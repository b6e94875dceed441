"""The laws of `omnikit verify` that need two ranks: they hold, and each fails where its fault is planted."""

import sys

import pytest

from omnikit.testing import processes
from omnikit.verification import shrunk
from omnikit.verification.laws import found
from omnikit.verification.splits import ranks_change_nothing, ranks_may_lack_modalities
from omnikit.verification.trial import Trial

PLANT = """
from omnikit.model import OmniModel

encode = OmniModel.encode


def only_what_is_there(self, encoder, media):
    held = [name for name, branch in self.branches.items() if branch.encoder == encoder and name in media]
    return encode(self, encoder, media) if held else {}


def skip_stand_ins():
    OmniModel.encode = only_what_is_there


def sum_the_mean():
    import omnikit.starting
    shard = omnikit.starting.shard

    def meaning(model, units, world, bf16):
        shard(model, units, world, bf16)
        for module in model.modules():
            if hasattr(module, "set_gradient_divide_factor"):
                module.set_gradient_divide_factor(2.0)
    omnikit.starting.shard = meaning
"""


@pytest.fixture
def trial(recipe_of, parts, tmp_path):
    """trial(seconds) -> a trial of a stage with every modality, where ranks may take so long."""
    data = {"text": 1, "image": 1, "video": 1, "audio": 1, "mixed": 1}
    recipe = recipe_of({"omni": parts.stage(data, {"encoders.vision": "frozen", "rest": 1e-3})})
    return lambda seconds: Trial(shrunk(recipe, ["omni"], 3, full=True), tmp_path, lambda *_: None, seconds)


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """plant(name) calls one of the functions above in both ranks, which end with the test."""
    (tmp_path / "plant_in_ranks.py").write_text(PLANT, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plant_in_ranks", raising=False)

    def call(name):
        processes.ask_ranks(getattr(__import__("plant_in_ranks"), name))

    yield call
    for helper in processes._started.get("ranks", ()):
        helper.close()


def test_two_ranks_come_to_what_one_does_whatever_they_lack(trial):
    sound = trial(300.0)
    for law in (ranks_change_nothing, ranks_may_lack_modalities):
        finding = found(law, sound, "omni")
        assert finding.passed and finding.figure < 1e-5, finding
    assert "10 batches with and without image, video, audio" in finding.told


def test_a_stage_of_text_alone_lacks_nothing(recipe_of, parts, tmp_path):
    recipe = shrunk(recipe_of({"only": parts.stage({"text": 1}, {"backbone": 1e-3})}), ["only"], 3, full=True)
    finding = found(ranks_may_lack_modalities, Trial(recipe, tmp_path, lambda *_: None, 60.0), "only")
    assert finding.passed is None and "text alone" in finding.told


def test_stand_ins_that_are_not_run_leave_ranks_waiting(trial, plant):
    # A rank that lacks a modality does not gather its blocks, and the other one waits for it.
    plant("skip_stand_ins")
    finding = found(ranks_may_lack_modalities, trial(20.0), "omni")
    assert finding.passed is False, finding
    assert "two ranks hang" in finding.told or "no gradient" in finding.told or "died" in finding.told, finding


def test_gradients_that_are_means_over_ranks_are_found(trial, plant):
    plant("sum_the_mean")
    finding = found(ranks_change_nothing, trial(300.0), "omni")
    assert finding.passed is False and finding.figure > 0.1 and "two ranks" not in finding.told, finding
