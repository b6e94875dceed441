"""What a run does to its weights: each stage moves what its rules train; a run cut short ends as one that was not."""

import itertools
import math

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from omnikit.checkpoint import MEASURED, RunFolder
from omnikit.data import Position, StageData, layouter_of
from omnikit.kernels import hold_frozen
from omnikit.packing import Batch
from omnikit.stages import apply_rules, rules_by_parameter, trained
from omnikit.starting import start_of
from omnikit.train import TrainingStopped, train

pytestmark = pytest.mark.usefixtures("small_windows")


class Killed(BaseException):
    """Stands for kill -9 where a test needs to say when."""


class Observed:
    """A display that keeps what it is shown, and dies where it is told."""

    def __init__(self, die_at=None):
        self.stages, self.records, self.die_at = [], [], die_at

    def indexing(self, source, done, records):
        pass

    def note(self, text):
        pass

    def stage(self, name, done, steps):
        self.stages.append((name, done, steps))

    def step(self, record):
        self.records.append(record)
        if self.die_at == (record["stage"], record["step"]):
            raise Killed


# -------------------------------------------------------------------------------------------- what moves, what does not


STAGES = ("language", "image", "video_images", "audio", "omni")


@pytest.fixture(scope="module")
def finished(recipe_of, watched, tmp_path_factory):
    """The five stages, trained."""
    done = watched(recipe_of(run={"save": 2}), tmp_path_factory.mktemp("run"), window=16)
    assert tuple(done.recipe.stages) == STAGES
    return done


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_moves_what_its_rules_train_and_nothing_else(finished, tensors_of, name):
    finished.check_stage(name, tensors_of(finished.run.latest(name).folder))


def test_a_stage_begins_where_the_one_before_it_ended(finished):
    recipe = finished.recipe
    ends = {name: finished.end(name) for name in recipe.stages}
    image = finished.start("image")
    assert all(torch.equal(image[path], tensor) for path, tensor in ends["language"].items())
    video = finished.start("video_images")
    for tensor in ("linear_1.weight", "linear_2.bias", "newline"):
        copied = video[f"modalities.video.projector.{tensor}"]
        assert torch.equal(copied, ends["image"][f"modalities.image.projector.{tensor}"]), "after init"
    omni = finished.start("omni")
    for stage, prefix in (
        ("audio", "backbone."),
        ("audio", "modalities.audio."),
        ("image", "modalities.image."),
        ("video_images", "modalities.video."),
    ):
        found = {path for path in omni if path.startswith(prefix)}
        assert found
        assert all(torch.equal(omni[path], ends[stage][path]) for path in found), f"{prefix} comes from {stage}"


def test_what_a_stage_does_not_build_it_does_not_save_and_later_stages_find_it_earlier(finished, tensors_of):
    run = finished.run
    assert not any(path.startswith(("encoders", "modalities")) for path in tensors_of(run.latest("language").folder))
    held = {path.split(".")[1] for path in tensors_of(run.latest("audio").folder) if path.startswith("modalities")}
    assert held == {"audio"}
    held = {path.split(".")[1] for path in tensors_of(run.latest("omni").folder) if path.startswith("modalities")}
    assert held == {"image", "video", "audio"}


def test_each_stage_names_its_parent(finished):
    recipe, run = finished.recipe, finished.run
    names = list(recipe.stages)
    assert run.latest(names[0]).state()["parents"] == []
    for parent, child in itertools.pairwise(names):
        assert run.latest(child).state()["parents"] == [run.latest(parent).hash()]


def test_metrics_are_finite_complete_and_fall(finished):
    recipe, run = finished.recipe, finished.run
    lines = list(run.metrics())
    assert lines == finished.records
    assert [(line["stage"], line["step"]) for line in lines] == [
        (n, k) for n, s in recipe.stages.items() for k in range(1, s.steps + 1)
    ]
    for line in lines:
        assert (
            math.isfinite(line["loss"]) and line["norm"] > 0 and 0 < line["labels"] <= line["tokens"] <= line["places"]
        )
        assert line["seconds"] > 0 and line["wait"] > 0
        assert line["loss"] == pytest.approx(mean_of(line), rel=1e-5) or len(line["losses"]) > 1
    for name in STAGES:
        losses = [line["loss"] for line in lines if line["stage"] == name]
        assert losses[-1] < 1.05 * losses[0], f"{name}: {losses}"  # three steps of other samples: it may waver
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    groups = {group for line in lines if line["stage"] == "video_images" for group in line["losses"]}
    assert groups == {"video"}, "still images count as what they pass as"


def mean_of(line):
    return sum(line["losses"].values()) / len(line["losses"])


def test_the_last_checkpoint_holds_no_optimizer_and_the_one_before_does(finished, tensors_of):
    middle, last = finished.run.committed("omni")
    assert (middle.step, last.step) == (2, 3)
    states = {path for path in tensors_of(middle.folder) if path.startswith("optim.")}
    rates = {path for path in states if path.endswith(".exp_avg_sq")}
    assert len(states) == 3 * len(rates) and not any(
        ".backbone.model.layers.0." in path or ".encoders.vision." in path for path in states
    )
    assert not any(path.startswith("optim.") for path in tensors_of(last.folder))


# ------------------------------------------------------------------------------------------------------ micro-batches


def test_loss_and_gradients_do_not_depend_on_how_packs_are_cut(recipe_of, parts, tmp_path):
    """Four packs by one, by two, by four: groups of different label counts, one modality in one micro-batch only."""
    found = []
    for micro in (1, 2, 4):
        data = {"text": 1, "image": 1, "audio": 1, "video": 1}
        recipe = recipe_of(
            {"only": parts.stage(data, {"rest": 1e-3}, batch={"length": 48, "packs": 4, "micro": micro})}
        )
        model = start_of(recipe, "only", RunFolder(tmp_path))
        apply_rules(model, rules_by_parameter(dict(model.named_parameters()), recipe, "only"))
        [step] = take(StageData(recipe, "only", layouter_of(recipe)).steps(Position()), 1)
        assert len(step.batches) == 4 // micro
        losses = [model(batch) for batch in step.batches]
        for loss in losses:
            loss.total.backward()
        gradients = {name: parameter.grad for name, parameter in trained(model).items()}
        found.append((sum(loss.total.item() for loss in losses), gradients, step.samples))
    total, gradients, ids = found[0]
    for other_total, other_gradients, other_ids in found[1:]:
        assert other_ids == ids
        assert other_total == pytest.approx(total, rel=1e-5)
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        for name, gradient in gradients.items():
            # Sums in another order: some, as those of keys' biases, are sums of terms that cancel to nothing.
            atol = 1e-6 * largest
            torch.testing.assert_close(
                other_gradients[name], gradient, rtol=1e-4, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
            )


def take(steps, number):
    found = [step for step, _ in zip(steps, range(number), strict=False)]
    steps.close()
    return found


def test_a_run_is_the_same_however_its_packs_are_cut(recipe_of, parts, tmp_path, tensors_of):
    ends = []
    for micro in (1, 4):
        entry = parts.stage({"text": 3, "mixed": 1}, {"rest": 1e-3}, batch={"length": 48, "packs": 4, "micro": micro})
        run = train(recipe_of({"only": entry}), tmp_path / str(micro), Observed())
        ends.append((tensors_of(run.latest("only").folder), list(run.metrics())))
    for key in ("loss", "norm", "labels", "tokens"):
        assert [line[key] for line in ends[0][1]] == pytest.approx([line[key] for line in ends[1][1]], rel=1e-3), key
    # Adam divides by the gradient's own size: rounding of a gradient near zero shows in the weight
    for name, tensor in ends[0][0].items():
        torch.testing.assert_close(ends[1][0][name], tensor, rtol=0, atol=2e-3)


def test_the_gradient_is_that_of_the_mean_over_the_labels_of_the_step(recipe_of, parts, tmp_path):
    entry = parts.stage({"text": 1, "image": 1}, {"rest": 1e-3}, steps=1, batch={"length": 48, "packs": 4, "micro": 1})
    recipe = recipe_of({"only": entry})
    model = start_of(recipe, "only", RunFolder(tmp_path / "none"))
    [step] = take(StageData(recipe, "only", layouter_of(recipe)).steps(Position()), 1)
    labels = sum(len(batch.labels) for batch in step.batches)
    total = sum(model(batch).total for batch in step.batches)
    (total / labels).backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item()
    [line] = train(recipe, tmp_path / "run", Observed()).metrics()
    assert (line["labels"], line["loss"]) == (labels, pytest.approx(total.item() / labels, rel=1e-5))
    assert line["norm"] == pytest.approx(norm, rel=1e-4) and norm > 1, "what is logged is the norm before clipping"


def test_rates_follow_the_schedule(recipe_of, parts, tmp_path, monkeypatch):
    """Two rules, five steps of warm-up and decline: what the optimizer is given at each step."""
    given, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda optimizer: (given.append({group["lr"] for group in optimizer.param_groups}), step(optimizer))[1],
    )
    train_rules = {"backbone.model.layers": 1e-3, "rest": 4e-3}
    schedule = {"shape": "linear", "warmup": 0.4, "floor": 0.1}
    recipe = recipe_of({"only": parts.stage({"text": 1}, train_rules, steps=5, schedule=schedule)})
    run = train(recipe, tmp_path, Observed())
    factors = [0.5, 1.0, 1.0, 0.7, 0.4]  # the floor would come at a sixth step
    assert [line["rate"] for line in run.metrics()] == pytest.approx(factors)
    for rates, factor in zip(given, factors, strict=True):
        assert sorted(rates) == pytest.approx([1e-3 * factor, 4e-3 * factor])


@pytest.mark.parametrize("clip", [1e-6, 1e6])
def test_gradients_are_clipped_at_the_stages_own_norm(recipe_of, parts, tmp_path, monkeypatch, clip):
    """Adam is blind to one common factor, but not to one that pushes gradients below its epsilon."""
    norms, step = [], torch.optim.AdamW.step

    def seen(optimizer):
        gradients = [parameter.grad.flatten() for group in optimizer.param_groups for parameter in group["params"]]
        norms.append(torch.cat(gradients).norm().item())
        return step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", seen)
    run = train(recipe_of({"only": parts.stage({"text": 1}, {"rest": 1e-3}, steps=2, clip=clip)}), tmp_path, Observed())
    logged = [line["norm"] for line in run.metrics()]
    assert norms == pytest.approx([min(clip, norm) for norm in logged], rel=1e-3) and min(logged) > 0.1


# --------------------------------------------------------------------------------------------------------------- resume


def final(run, name, tensors_of):
    return tensors_of(run.latest(name).folder), run.latest(name).hash()


@pytest.fixture(scope="module")
def resumable(recipe_of, parts, tmp_path_factory, tensors_of):
    """Two stages with dropout, warm-up, decay and a window's edge in between: recipe, final tensors, metrics."""
    stages = {
        "language": parts.stage({"text": 1}, {"backbone": {"lr": 1e-2, "weight_decay": 0.1}}, steps=4),
        "omni": parts.stage(
            {"text": 1, "mixed": 2, "video": 1},
            {"encoders.vision": "frozen", "rest": {"lr": 5e-3, "weight_decay": 0.1}},
            steps=7,
            schedule={"shape": "cosine", "warmup": 0.3},
        ),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omnikit.mixing.WINDOW", 16)
        patch.setattr("omnikit.mixing.PACKS", 0)
        torch.set_num_threads(1)
        recipe = recipe_of(stages, run={"save": 1, "keep": 100}, config={"attention_dropout": 0.2})
        run = train(recipe, tmp_path_factory.mktemp("whole"), Observed())
        windows = [found.state()["position"][0] for found in run.committed("omni")]
        assert windows[0] == 0 and windows[-1] >= 1, "it goes over a window's edge"
        return recipe, run, [without_time(line) for line in run.metrics()]


def without_time(line):
    return {key: value for key, value in line.items() if key not in MEASURED}


@pytest.mark.parametrize(
    "at",
    [*(("language", n) for n in range(1, 5)), *(("omni", n) for n in range(1, 8))],
    ids=lambda at: f"{at[0]}-{at[1]}",
)
def test_a_run_stopped_after_any_checkpoint_ends_bitwise_the_same(resumable, tmp_path, tensors_of, at):
    recipe, whole, metrics = resumable
    with pytest.raises(Killed):
        train(recipe, tmp_path, Observed(die_at=at))
    torch.rand(3)  # what was drawn in between changes nothing
    display = Observed()
    run = train(recipe, tmp_path, display)
    if at != ("omni", 7):
        name, done, _ = display.stages[0]
        assert (name, done) == (at if at[0] == "omni" or at[1] < 4 else ("omni", 0)), "it goes on where it was cut off"
    for name in recipe.stages:
        expected, found = final(whole, name, tensors_of), final(run, name, tensors_of)
        assert all(torch.equal(found[0][path], tensor) for path, tensor in expected[0].items())
        assert found[1] == expected[1], "every file of the checkpoint is the same"
    assert [without_time(line) for line in run.metrics()] == metrics


def test_a_run_killed_between_checkpoints_ends_bitwise_the_same_with_each_metric_once(
    resumable, recipe_of, tmp_path, tensors_of
):
    recipe, whole, metrics = resumable
    recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update={"save": 3})})
    for at in (("language", 2), ("language", 4), ("omni", 2), ("omni", 5)):
        with pytest.raises(Killed):
            train(recipe, tmp_path, Observed(die_at=at))
    run = train(recipe, tmp_path, Observed())
    assert final(run, "omni", tensors_of)[1] == final(whole, "omni", tensors_of)[1]
    assert [without_time(line) for line in run.metrics()] == metrics


def test_a_finished_run_is_left_alone(resumable, tensors_of):
    recipe, run, _ = resumable
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*.safetensors")}
    display = Observed()
    train(recipe, run.path, display)
    assert not display.records
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*.safetensors")} == before


def test_a_damaged_last_checkpoint_is_trained_again_to_the_same(resumable, tmp_path, tensors_of):
    recipe, whole, metrics = resumable
    run = train(recipe, tmp_path, Observed())
    for name, step in (("language", 4), ("omni", 7), ("omni", 6)):
        path = next((tmp_path / name / f"step-{step:06d}").glob("*.safetensors"))
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="has changed since it was saved"):
        display = Observed()
        run = train(recipe, tmp_path, display)
    assert [(line["stage"], line["step"]) for line in display.records] == [("language", 4), ("omni", 6), ("omni", 7)]
    assert final(run, "omni", tensors_of)[1] == final(whole, "omni", tensors_of)[1]
    assert sorted((line["stage"], line["step"]) for line in run.metrics()) == sorted(
        (line["stage"], line["step"]) for line in metrics
    )


# ----------------------------------------------------------------------------------------------------- refused, stopped


def test_a_fault_of_the_last_stage_is_told_before_the_first_one_trains(recipe_of, parts, tmp_path):
    stages = dict(parts.stages)
    stages["omni"] = stages["omni"] | {"train": {"backbone.lm_hed": 1e-3, "rest": "frozen"}}
    display = Observed()
    with pytest.raises(ExceptionGroup) as caught:
        train(recipe_of(stages), tmp_path / "run", display)
    assert "stages.omni.train.backbone.lm_hed: matches no parameter" in str(caught.value.exceptions[0])
    assert not display.stages and not (tmp_path / "run").exists()


def test_data_too_long_for_the_last_stage_is_told_before_the_first_one_trains(recipe_of, parts, tmp_path):
    stages = dict(parts.stages)
    stages["omni"] = stages["omni"] | {"batch": {"length": 10, "packs": 2, "micro": 1}}
    message = r"^data\.\w+: none of its \d+ records can be used; the first: sample \w+: has \d+ tokens.*a pack of 10;"
    with pytest.raises(ValueError, match=message):
        train(recipe_of(stages), tmp_path / "run", Observed())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_no_number_is_not_made_and_its_samples_are_named(
    recipe_of, parts, tmp_path, monkeypatch, tensors_of, bad
):
    recipe = recipe_of({"language": parts.stage({"text": 1}, {"rest": 1e-3}, steps=6)})
    first = next(iter(StageData(recipe, "language", layouter_of(recipe)).steps(Position())))
    forward, calls = torch.nn.Embedding.forward, []

    def poisoned(self, ids):
        calls.append(1)
        return forward(self, ids) * (bad if len(calls) == 7 else 1.0)

    monkeypatch.setattr(torch.nn.Embedding, "forward", poisoned)  # two micro-batches a step: the fourth step
    with pytest.raises(
        TrainingStopped, match=r"^stages\.language: step 4: loss (nan|inf).*; the step was not made\. Its samples: t\d"
    ) as caught:
        train(recipe, tmp_path, Observed())
    assert "\n" not in str(caught.value) and len(first.samples) > 2
    monkeypatch.undo()
    run = RunFolder(tmp_path)
    assert run.latest("language").step == 2
    assert all(tensor.isfinite().all() for tensor in tensors_of(run.latest("language").folder).values())
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]


def test_a_trained_parameter_that_nothing_uses_is_an_error(recipe_of, parts, tmp_path, monkeypatch):
    """Its optimizer would have no state of it, and the run could not be resumed."""
    from omnikit.builtin.projectors import JoinMLP

    init = JoinMLP.__init__
    monkeypatch.setattr(
        JoinMLP,
        "__init__",
        lambda self, *given, **named: (
            init(self, *given, **named),
            self.register_parameter("spare", torch.nn.Parameter(torch.ones(2))),
        )[0],
    )
    modalities = {"image": parts.modalities["image"] | {"projector": "mlp"}}
    encoders = {"vision": parts.encoders["vision"]}
    recipe = recipe_of({"image": parts.stage({"image": 1}, {"rest": 1e-3})}, modalities=modalities, encoders=encoders)
    with pytest.raises(
        ValueError,
        match=r"^stages\.image\.train: 1 parameters have a rate but no gradient, "
        r"such as modalities\.image\.projector\.spare;",
    ):
        train(recipe, tmp_path, Observed())


def test_init_from_an_encoder_that_the_stage_does_not_build(recipe_of, parts, tmp_path, tensors_of):
    encoders = parts.encoders | {"film": parts.encoders["vision"]}
    modalities = parts.modalities | {"video": parts.modalities["video"] | {"encoder": "film"}}
    stages = {
        "image": parts.stage({"image": 1}, {"encoders.vision": 1e-2, "rest": "frozen"}, steps=1),
        "video": parts.stage(
            {"video": 1}, {"modalities": 1e-2, "rest": "frozen"}, steps=1, init={"encoders.film": "encoders.vision"}
        ),
    }
    run = train(recipe_of(stages, encoders=encoders, modalities=modalities), tmp_path, Observed())
    image, video = (tensors_of(run.latest("image").folder), tensors_of(run.beginning("video").folder))
    copied = [path for path in video if path.startswith("encoders.film.")]
    assert copied and not any(path.startswith("encoders.vision.") for path in video)
    assert all(torch.equal(video[path], image[path.replace("film", "vision")]) for path in copied)


def test_init_of_what_the_stage_does_not_build_is_an_error(recipe_of, parts, tmp_path):
    entry = parts.stage({"image": 1}, {"rest": 1e-3}, init={"modalities.video.projector": "modalities.image.projector"})
    with pytest.raises(ExceptionGroup) as told:
        train(recipe_of({"image": entry}), tmp_path / "run", Observed())
    [fault] = told.value.exceptions
    assert "stages.image.init.modalities.video.projector: no sample of the stage reaches it" in str(fault)
    assert not (tmp_path / "run").exists(), "said before anything is written"


# ------------------------------------------------------------------------------------------------------------ precision


@pytest.mark.parametrize("recompute", [False, True])
def test_in_bf16_weights_stay_float32_and_the_loss_falls(recipe_of, parts, tmp_path, tensors_of, recompute):
    entry = parts.stage({"mixed": 1, "video": 1}, {"rest": 5e-3}, steps=6)
    run = train(recipe_of({"only": entry}, run={"precision": "bf16", "recompute": recompute}), tmp_path, Observed())
    assert {tensor.dtype for tensor in tensors_of(run.latest("only").folder).values()} == {torch.float32}
    losses = [line["loss"] for line in run.metrics()]
    assert losses[-1] < losses[0]


def test_frozen_weights_held_in_bf16_change_no_bit_and_come_back_whole(
    recipe_of, parts, tmp_path, tensors_of, monkeypatch
):
    """The second stage trains what the first held in 16 bits."""
    first = parts.stage({"mixed": 1}, {"modalities": 1e-2, "rest": "frozen"}, steps=3)
    second = parts.stage({"mixed": 1}, {"rest": 5e-3}, steps=2)
    recipe = recipe_of({"first": first, "second": second}, run={"precision": "bf16"})
    held = train(recipe, tmp_path / "held", Observed())
    monkeypatch.setattr("omnikit.train.hold_frozen", lambda model, dtype: None)
    plain = train(recipe, tmp_path / "plain", Observed())
    for stage in recipe.stages:
        assert [found.step for found in held.committed(stage)] == [found.step for found in plain.committed(stage)]
        for ours, theirs in zip(held.committed(stage), plain.committed(stage), strict=True):
            assert ours.hash() == theirs.hash(), ours.folder
    assert [line["loss"] for line in held.metrics()] == [line["loss"] for line in plain.metrics()]
    whole = tensors_of(held.beginning("first").folder)["encoders.vision.tower.encoder.layers.0.mlp.fc1.weight"]
    assert whole.dtype == torch.float32 and not torch.equal(whole, whole.bfloat16().float())


def test_what_frozen_weights_were_held_in_before_is_given_back(recipe_of, parts, tmp_path, monkeypatch):
    stores, lost = [], []

    def holding(model, dtype):
        before = [(one, StorageWeakRef(one.untyped_storage())) for one in model.parameters()]
        hold_frozen(model, dtype)
        stores.extend(store for one, store in before if one.dtype == dtype)

    class Counting(Observed):
        def step(self, record):
            lost.append(sum(store.expired() for store in stores))

    monkeypatch.setattr("omnikit.train.hold_frozen", holding)
    entry = parts.stage({"mixed": 1}, {"modalities": 1e-2, "rest": "frozen"}, steps=2)
    train(recipe_of({"only": entry}, run={"precision": "bf16"}), tmp_path, Counting())
    assert lost[-1] == len(stores) > 10, "once step 0 is written, which the checkpoint of step 2 waits for"


def test_recomputing_changes_no_weight(recipe_of, parts, tmp_path, tensors_of):
    ends = []
    for recompute in (False, True):
        run = train(
            recipe_of({"only": parts.stage({"mixed": 1}, {"rest": 1e-3})}, run={"recompute": recompute}),
            tmp_path / str(recompute),
            Observed(),
        )
        ends.append(tensors_of(run.latest("only").folder))
    assert all(torch.equal(ends[0][name], tensor) for name, tensor in ends[1].items())


def test_a_step_is_one_call_of_the_model_per_micro_batch(recipe_of, parts, tmp_path, monkeypatch):
    from omnikit.model import OmniModel

    forward, seen = OmniModel.forward, []
    monkeypatch.setattr(OmniModel, "forward", lambda self, batch: (seen.append(batch), forward(self, batch))[1])
    entry = parts.stage({"text": 1}, {"rest": 1e-3}, steps=2, batch={"length": 48, "packs": 6, "micro": 2})
    train(recipe_of({"only": entry}), tmp_path, Observed())
    assert len(seen) == 6 and all(isinstance(batch, Batch) and batch.ids.shape == (2, 48) for batch in seen)
