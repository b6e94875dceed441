"""`omnikit verify`: every law holds of the toy recipes, and fails where the fault is planted that it is for."""

import json
from pathlib import Path

import pytest
import torch

from omnikit.builtin.backbone import CausalLM
from omnikit.checking import check_recipe
from omnikit.cli import main
from omnikit.loss import label_loss
from omnikit.model import OmniModel
from omnikit.recipe import dump_recipe, load_recipe
from omnikit.stages import optimizer_of
from omnikit.verification import LAWS, Finding, Verdict, shrunk
from omnikit.verification.batches import absent_modalities_add_nothing, packing_changes_nothing
from omnikit.verification.laws import found
from omnikit.verification.observing import apart
from omnikit.verification.results import close, none_of
from omnikit.verification.runs import labels_are_counted, resuming_is_bitwise, rules_hold, stages_hand_over
from omnikit.verification.splits import micro_batches_change_nothing, the_plan_is_the_same_for_any_ranks
from omnikit.verification.trial import Trial

ON_RANKS = ("ranks_change_nothing", "ranks_may_lack_modalities")
"""Those are tried in tests/laws/test_verify_ranks.py, for starting two processes takes its time."""


@pytest.fixture(params=["fp32"])
def trial(request, recipe_of, parts, tmp_path):
    """A trial of two stages: text and pictures, of which the encoder is frozen; then sounds as well."""
    stages = {
        "first": parts.stage({"text": 1, "image": 1}, {"encoders": "frozen", "rest": 1e-3}),
        "second": parts.stage({"image": 1, "audio": 1}, {"backbone": "frozen", "rest": 1e-3}),
    }
    recipe = recipe_of(stages, run={"precision": request.param})
    return Trial(shrunk(recipe, list(stages), 3, full=True), tmp_path, lambda *_: None, 60.0)


def of(law, trial, stage="second"):
    finding = found(law, trial, stage)
    assert finding.passed is not None
    return finding


def fails(law, trial, word, stage="second"):
    finding = of(law, trial, stage)
    assert finding.passed is False and word in finding.told, finding
    return finding


# ------------------------------------------------------------------------------------------------------ the laws hold


@pytest.mark.parametrize("trial", ["fp32", "bf16"], indirect=True)
def test_the_laws_hold_of_a_recipe_whose_code_is_sound(trial):
    verdicts = {}
    for law in LAWS:
        if law.__name__ not in ON_RANKS:
            findings = {stage: found(law, trial, stage) for stage in trial.recipe.stages}
            verdicts[law.__name__] = Verdict(law.__name__, "", findings)
    assert all(verdict.passed is True for verdict in verdicts.values()), [str(one) for one in verdicts.values()]
    assert verdicts["stages_hand_over"].findings["first"].passed is None
    assert 0 < verdicts["packing_changes_nothing"].worst[1].figure < 1e-5
    assert 0 <= verdicts["micro_batches_change_nothing"].worst[1].figure < 1e-5
    assert [finding.figure for finding in verdicts["resuming_is_bitwise"].findings.values()] == [0.0, 0.0]
    assert trial.cut.resumed == {"first": 1, "second": 1} and trial.whole.resumed == {"first": 0, "second": 0}


def test_a_stage_of_text_alone_has_no_modality_to_lack(recipe_of, parts, tmp_path):
    recipe = shrunk(recipe_of({"only": parts.stage({"text": 1}, {"backbone": 1e-3})}), ["only"], 3, full=True)
    finding = found(absent_modalities_add_nothing, Trial(recipe, tmp_path, lambda *_: None, 60.0), "only")
    assert finding.passed is None and "text alone" in finding.told


def test_parameters_of_a_modality_that_no_sample_held_need_not_move(recipe_of, parts, tmp_path):
    mixture = {"text": 1e6, "image": 1e-6}
    recipe = shrunk(recipe_of({"only": parts.stage(mixture, {"rest": 1e-3})}), ["only"], 3, full=True)
    finding = found(rules_hold, Trial(recipe, tmp_path, lambda *_: None, 60.0), "only")
    assert finding.passed and "left out" in finding.told


# ------------------------------------------------------------------------------------------------------ planted faults


def test_an_optimizer_that_is_forgotten_is_found(trial, monkeypatch):
    monkeypatch.setattr("omnikit.starting.optimizer_tensors", lambda model, optimizer: {})
    fails(resuming_is_bitwise, trial, "in memory")


def test_a_run_that_begins_anew_instead_of_resuming_is_found(trial, monkeypatch):
    monkeypatch.setattr("omnikit.checkpoint.RunFolder.latest", lambda run, stage: None)
    fails(resuming_is_bitwise, trial, "", "first")


def test_documents_that_see_their_neighbours_are_found(trial, monkeypatch):
    hidden = CausalLM.hidden
    monkeypatch.setattr(
        CausalLM, "hidden", lambda self, embeds, segments, places: hidden(self, embeds, (segments > 0).long(), places)
    )
    assert fails(packing_changes_nothing, trial, "gradient of").figure > 1e-3


def test_positions_that_do_not_restart_are_no_fault_of_relative_ones_but_labels_at_the_wrong_places_are(
    trial, monkeypatch
):
    def moved(hidden, labels, groups, number, head):
        return label_loss(hidden.roll(1, 0), labels, groups, number, head)

    monkeypatch.setattr("omnikit.model.label_loss", moved)
    fails(packing_changes_nothing, trial, "")


def test_a_frozen_parameter_that_moves_is_found(trial, monkeypatch):
    def moving(model, rules):
        optimizer = optimizer_of(model, rules)
        frozen = next(parameter for parameter in model.parameters() if not parameter.requires_grad)
        optimizer.register_step_post_hook(lambda *_: frozen.data.view(-1)[:1].add_(1e-3))
        return optimizer

    monkeypatch.setattr("omnikit.starting.optimizer_of", moving)
    assert fails(rules_hold, trial, "is frozen and moved").figure == 1


def test_a_trained_parameter_that_stays_is_found(trial, monkeypatch):
    def forgetting(model, rules):
        optimizer = optimizer_of(model, rules)
        optimizer.param_groups[0]["params"].pop()
        return optimizer

    monkeypatch.setattr("omnikit.starting.optimizer_of", forgetting)
    assert fails(rules_hold, trial, "has a rate and did not move").figure == 1


def test_a_stage_that_does_not_begin_with_what_was_left_is_found(trial, monkeypatch):
    monkeypatch.setattr("omnikit.starting.inherit", lambda model, checkpoints: None)
    fails(stages_hand_over, trial, "is not as it was left")


def test_a_tensor_that_init_does_not_copy_is_found(recipe_of, parts, tmp_path, monkeypatch):
    train = {"modalities": 1e-3, "rest": "frozen"}
    stages = {
        "first": parts.stage({"image": 1}, train),
        "second": parts.stage({"video": 1}, train, init={"modalities.video.projector": "modalities.image.projector"}),
    }
    recipe = shrunk(recipe_of(stages), list(stages), 3, full=True)
    sound = of(stages_hand_over, Trial(recipe, tmp_path / "a", lambda *_: None, 60.0))
    assert sound.passed, sound
    monkeypatch.setattr("omnikit.starting.initialise", lambda model, init, stage: [])
    fails(stages_hand_over, Trial(recipe, tmp_path / "b", lambda *_: None, 60.0), "modalities.video.projector")


def test_a_loss_that_is_a_mean_of_each_micro_batch_is_found(trial, monkeypatch):
    def mean(hidden, labels, *rest):
        loss = label_loss(hidden, labels, *rest)
        return loss._replace(total=loss.total / max(len(labels), 1))

    monkeypatch.setattr("omnikit.model.label_loss", mean)
    fails(micro_batches_change_nothing, trial, "gradient", "first")


def test_a_stand_in_that_is_not_run_is_found(trial, monkeypatch):
    encode = OmniModel.encode

    def only_what_is_there(self, encoder, media):
        held = [name for name, branch in self.branches.items() if branch.encoder == encoder and name in media]
        return encode(self, encoder, media) if held else {}

    monkeypatch.setattr(OmniModel, "encode", only_what_is_there)
    fails(absent_modalities_add_nothing, trial, "no gradient at all")


def test_a_stand_in_that_adds_something_is_found(trial, monkeypatch):
    embed = OmniModel.embed

    def adding(self, batch):
        missing = [name for name in self.branches if name not in batch.media]
        tokens = [self.encode(self.branches[name].encoder, {})[name] for name in missing]
        return embed(self, batch) + sum(1e-3 * one.sum() for one in tokens)

    monkeypatch.setattr(OmniModel, "embed", adding)
    told = fails(absent_modalities_add_nothing, trial, "has a gradient of").told
    assert "modalities.image.projector" in told or "encoders" in told


def test_a_pack_that_no_rank_computes_is_found(trial, monkeypatch):
    from omnikit.balancing import in_order

    monkeypatch.setattr("omnikit.data.dealt", lambda costs, ranks, micro: in_order(len(costs) - 1, ranks, micro))
    fails(the_plan_is_the_same_for_any_ranks, trial, "ranks compute")


def test_labels_that_are_counted_twice_are_found(trial, monkeypatch):
    from omnikit.account import Account

    add = Account.add
    monkeypatch.setattr(Account, "add", lambda self, *rest: add(self, *rest) or add(self, *rest))
    fails(labels_are_counted, trial, "labels")


def test_a_law_under_which_anything_goes_wrong_fails_and_says_what(trial, monkeypatch):
    monkeypatch.setattr("omnikit.starting.optimizer_of", lambda model, rules: 1 / 0)
    fails(rules_hold, trial, "ZeroDivisionError")
    fails(micro_batches_change_nothing, trial, "ZeroDivisionError")


# ------------------------------------------------------------------------------------------------- figures and verdicts


def test_a_difference_is_a_part_of_the_largest_gradient_of_its_component():
    one = {"backbone.a": torch.tensor([100.0]), "backbone.b": torch.tensor([1e-6]), "encoders.x.w": torch.tensor([2.0])}
    assert apart(one, one) == (0.0, "all equal")
    assert apart({**one, "backbone.b": torch.tensor([0.0])}, one)[0] == pytest.approx(1e-8)
    assert apart({**one, "encoders.x.w": torch.tensor([1.0])}, one) == (0.5, "encoders.x.w")


def test_nan_is_no_small_difference():
    one = {"backbone.a": torch.tensor([1.0])}
    difference, where = apart({"backbone.a": torch.tensor([float("nan")])}, one)
    assert close(difference, where).passed is False
    assert Verdict("law", "", {"s": close(difference, where)}).as_data()["figure"] is None


def test_a_verdict_names_what_fails_or_the_worst_that_passes():
    good, better, bad = close(1e-6, "x"), close(1e-8, "y"), none_of(["w moved"], 3, "tensors")
    beside = Finding(None, "text alone")
    passing = Verdict("law", "", {"a": better, "b": good, "c": beside})
    assert (passing.passed, passing.worst[0]) == (True, "b") and "2 of 3 stages, worst in b" in str(passing)
    failing = Verdict("law", "", {"a": good, "b": bad})
    assert failing.passed is False and str(failing) == "FAIL  law: 1 of 3 tensors: w moved  [stage b]"
    nothing = Verdict("law", "", {"a": beside})
    assert nothing.passed is None and str(nothing) == "n/a   law: text alone  [1 stages]"


# ------------------------------------------------------------------------------------------------------- the shrinking


def test_a_recipe_is_shrunk_to_the_chosen_stages_and_a_few_packs(recipe_of, parts):
    entry = parts.stage({"image": 1}, {"rest": 1e-3}, batch={"length": 4096, "packs": 256, "micro": 8})
    recipe = recipe_of({"one": entry, "two": parts.stage({"text": 1}, {"backbone": 1e-3})})
    small = shrunk(recipe, ["one"], 5, full=False)
    batch = small.stages["one"].batch
    assert list(small.stages) == ["one"] and list(small.data) == ["image"] and small.stages["one"].steps == 5
    assert (batch.length, batch.packs, batch.micro, batch.cut) == (1024, 4, 4, True)
    assert small.encoders["vision"] == recipe.encoders["vision"].tiny()
    full = shrunk(recipe, ["one"], 5, full=True)
    assert full.stages["one"].batch.length == 4096 and full.encoders == recipe.encoders
    assert "type: excerpt" in dump_recipe(small) and "path:" in dump_recipe(small)


@pytest.mark.parametrize("name", ["tiny_omni", "smol_omni", "baichuan_omni"])
def test_the_shapes_of_every_recipe_can_be_shrunk(name, registry):
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.yaml", registry)
    small = check_recipe(shrunk(recipe, list(recipe.stages), 3, full=False))
    sizes = [part["params"] for stage in small["stages"].values() for part in stage["components"].values()]
    assert list(small["stages"]) == list(recipe.stages) and max(sizes) < 2_000_000


def test_an_excerpt_is_evenly_spaced_records(recipe_of, parts, monkeypatch):
    recipe = recipe_of({"one": parts.stage({"text": 1}, {"backbone": 1e-3})})
    whole = recipe.data["text"].open()
    monkeypatch.setattr("omnikit.verification.shrinking.RECORDS", 50)
    some = shrunk(recipe, ["one"], 3, full=True).data["text"].open()
    assert len(some) == 40 and [one.id for one in some] == [whole[4 * number].id for number in range(40)]


# ---------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def omnikit(capsys):
    def call(*args):
        with pytest.raises(SystemExit) as left:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err.splitlines()

    return call


@pytest.fixture
def recipe_file(recipe_of, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe_of()), encoding="utf-8")
    return tmp_path / "recipe.yaml"


def test_the_exit_code_says_whether_all_laws_hold(omnikit, recipe_file, monkeypatch):
    asked = []

    def verify(recipe, progress):
        asked.append(recipe)
        yield Verdict("first_law", "It holds.", {name: close(1e-7, "x") for name in recipe.stages})
        yield Verdict("second_law", "Or not.", {name: finding for name in recipe.stages})

    monkeypatch.setattr("omnikit.verification.verify", verify)
    finding = none_of([], 3, "tensors")
    code, out, _ = omnikit("verify", recipe_file, "--stage", "omni", "--stage", "image", "--steps", "4")
    assert (code, out.splitlines()[-1]) == (0, "2 laws hold") and "ok    second_law: 3 tensors" in out
    assert list(asked[0].stages) == ["image", "omni"] and asked[0].stages["omni"].steps == 4
    finding = none_of(["w moved"], 3, "tensors")
    code, out, _ = omnikit("verify", recipe_file, "--stage", "omni")
    assert (code, out.splitlines()[-1]) == (1, "1 of 2 laws fail")
    code, out, _ = omnikit("verify", recipe_file, "--json", "--stage", "omni", "--full")
    told = json.loads(out)
    assert code == 1 and told["passed"] is False and told["full"] is True
    law = told["laws"][1]
    assert (law["law"], law["passed"], law["figure"], law["stage"]) == ("second_law", False, 1.0, "omni")
    assert law["stages"]["omni"]["told"] == "1 of 3 tensors: w moved"


def test_what_is_typed_wrong_is_one_line(omnikit, recipe_file, tmp_path):
    code, out, err = omnikit("verify", recipe_file, "--stage", "omnii")
    assert (code, out) == (2, "") and err == [
        "--stage omnii: no stage is called 'omnii'; did you mean `omni`? stages: language, image, video_images, audio, "
        "omni"
    ]
    code, out, err = omnikit("verify", recipe_file, "--set", f"data.text.path={tmp_path / 'gone.jsonl'}")
    assert (code, out, len(err)) == (2, "", 1) and "data.text: " in err[0] and "is not there" in err[0]
    code, out, err = omnikit("verify", recipe_file, "--steps", "2")
    assert (code, out, len(err)) == (2, "", 1) and "--steps" in err[0]
