"""The loss on held-out samples: what it is, that it changes nothing, and the alarm where language is forgotten."""

import json

import pytest
import torch

from omnikit.checkpoint import MEASURED
from omnikit.data import branches_of, layouter_of
from omnikit.distributed import ALONE
from omnikit.heldout_loss import Forgetting, HeldOut
from omnikit.packing import collate, read_items
from omnikit.recipe import RecipeError, load_recipe
from omnikit.report.results import summary
from omnikit.stages import apply_rules, build, rules_by_parameter
from omnikit.train import train


class Killed(Exception):
    pass


class Display:
    """Keeps the held-out lines and notes; dies after a step."""

    def __init__(self, die_at=None):
        self.die_at, self.lines, self.notes = die_at, [], []

    def indexing(self, source, done, records):
        pass

    def caching(self, what, done, total):
        pass

    def stage(self, name, done, steps):
        pass

    def note(self, text):
        self.notes.append(text)

    def step(self, record):
        if (record["stage"], record["step"]) == self.die_at:
            raise Killed

    def heldout(self, record):
        self.lines.append(record)


SAMPLES = 12


@pytest.fixture(scope="module", autouse=True)
def few():
    """Of each set fewer than a run takes, for time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omnikit.heldout_loss.SAMPLES", SAMPLES)
        yield


@pytest.fixture(scope="module")
def heldout(world):
    """The recipe's table of three sets."""
    holds = {"text": [], "image": ["image"], "mixed": ["image", "audio"]}
    return {
        name: {"data": {"type": "jsonl", "path": str(world / f"{name}.jsonl"), "modalities": held}, "metric": "exact"}
        for name, held in holds.items()
    }


@pytest.fixture(scope="module")
def recipe(recipe_of, parts, heldout):
    """Two stages that drop activations; the second one's encoder of pictures is frozen and its features are kept."""

    def make(**run):
        stages = {
            "language": parts.stage({"text": 1}, {"backbone": 1e-2}),
            "look": parts.stage({"text": 1, "image": 1}, {"encoders": "frozen", "rest": 1e-2}, cache=True),
        }
        return recipe_of(stages, config={"attention_dropout": 0.3}, heldout=heldout, run={"save": 2, **run})

    return make


@pytest.fixture(scope="module")
def measured(recipe, tmp_path_factory):
    """A run that measures after every step, and its held-out lines."""
    display = Display()
    run = train(recipe(eval=1), tmp_path_factory.mktemp("measured"), display)
    return run, display.lines


def built(recipe, stage):
    model = build(recipe, frozenset({"text", "image", "audio"} & set(recipe.modalities)))
    apply_rules(model, rules_by_parameter((name for name, _ in model.named_parameters()), recipe, stage))
    return model


@pytest.fixture(scope="module")
def all_three(recipe_of, parts, heldout):
    """A recipe whose only stage has the modalities of all sets."""
    stages = {
        "only": parts.stage({"text": 1, "mixed": 1}, {"rest": 1e-2}, batch={"length": 48, "packs": 2, "micro": 2})
    }
    return recipe_of(stages, config={"attention_dropout": 0.3}, heldout=heldout, run={"eval": 1})


def test_it_is_the_mean_loss_of_a_label_token_of_the_samples_alone(all_three):
    model, layouter = built(all_three, "only"), layouter_of(all_three)
    line = HeldOut(all_three, "only", layouter, ALONE, ()).measure(model, 7)
    model.eval()
    sums = {}
    for name, entry in all_three.heldout.items():
        source = entry.data.open()
        for number in (i * (len(source) - 1) // (SAMPLES - 1) for i in range(SAMPLES)):
            one = (layouter(source[number]),)
            with torch.no_grad():
                loss = model(collate([one], read_items(one, branches_of(all_three)), 48))
            total, labels = sums.get(name, (0.0, 0))
            sums[name] = (total + float(loss.total), labels + int(loss.counts.sum()))
    means = {name: total / labels for name, (total, labels) in sums.items()}
    assert line["sets"] == pytest.approx(means, rel=1e-5)
    assert line["losses"] == pytest.approx(
        {"text": means["text"], "image": means["image"], "audio+image": means["mixed"]}, rel=1e-5
    )
    total, labels = (sum(part) for part in zip(*sums.values(), strict=True))
    assert line["loss"] == pytest.approx(total / labels, rel=1e-5) and line["labels"] == labels
    assert (line["kind"], line["stage"], line["step"], line["alarm"]) == ("heldout", "only", 7, None)


def test_training_is_bitwise_the_same_with_and_without_it(recipe, measured, tmp_path, tensors_of):
    run, lines = measured
    plain = train(recipe(), tmp_path, Display())
    for stage in ("language", "look"):
        found, expected = (tensors_of(one.latest(stage).folder) for one in (run, plain))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    steps = [[{k: v for k, v in line.items() if k not in MEASURED} for line in one.metrics()] for one in (run, plain)]
    assert steps[0] == steps[1] and len(steps[0]) == 6
    assert len(lines) == 6 and not list(plain.metrics("heldout"))


def test_a_stage_is_measured_on_the_sets_whose_modalities_it_has(measured):
    run, lines = measured
    assert lines == list(run.metrics("heldout"))
    assert [(line["stage"], line["step"], list(line["sets"])) for line in lines] == [
        *(("language", step, ["text"]) for step in (1, 2, 3)),
        *(("look", step, ["text", "image"]) for step in (1, 2, 3)),
    ]
    assert lines[2]["loss"] < lines[0]["loss"], "the language is learned"


def test_every_so_many_steps_and_at_the_end_of_a_stage(recipe, tmp_path):
    display = Display()
    train(recipe(eval=2), tmp_path, display)
    assert [(line["stage"], line["step"]) for line in display.lines] == [
        *(("language", step) for step in (2, 3)),
        *(("look", step) for step in (2, 3)),
    ]


def test_a_run_that_was_cut_off_has_each_line_once_and_the_same(recipe, measured, tmp_path):
    _, lines = measured
    for at in (("language", 3), ("look", 1)):
        with pytest.raises(Killed):
            train(recipe(eval=1), tmp_path, Display(die_at=at))
    again = train(recipe(eval=1), tmp_path, Display()).metrics("heldout")
    found, expected = ([{k: v for k, v in line.items() if k != "seconds"} for line in one] for one in (again, lines))
    assert found == expected


def test_ranks_make_as_many_passes_and_together_measure_the_same(all_three):
    model, layouter = built(all_three, "only"), layouter_of(all_three)
    whole = HeldOut(all_three, "only", layouter, ALONE, ())
    whole.parts = whole.parts[-5:]
    expected = whole.measure(model, 1)
    calls, sums = [], []
    model.register_forward_hook(lambda *_: calls.append(rank))

    class Two:
        size, device = 2, torch.device("cpu")

        def add(self, own):
            sums.append(own.clone())
            return torch.stack(sums).sum(0)

    assert len(whole.parts) % 2, "one rank has a pass of padding"
    for rank in range(2):
        whole.world = Two()
        whole.world.rank = rank
        line = whole.measure(model, 1)
    assert calls.count(0) == calls.count(1) == (len(whole.parts) + 1) // 2
    assert line["losses"] == pytest.approx(expected["losses"], rel=1e-6) and line["labels"] == expected["labels"]


def test_the_model_is_left_as_it_was(all_three):
    model = built(all_three, "only")
    model.encoders["vision"].eval()
    modes = [module.training for module in model.modules()]
    model.stored = {"kept": "as it is"}
    HeldOut(all_three, "only", layouter_of(all_three), ALONE, ()).measure(model, 1)
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2
    assert model.stored == {"kept": "as it is"}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_broken_medium_is_left_out(all_three, world, heldout, tmp_path):
    rows = [json.loads(line) for line in (world / "image.jsonl").read_text().splitlines()[:4]]
    for row in rows:
        row["turns"][0]["content"][0]["image"] = str(world / row["turns"][0]["content"][0]["image"])
    picture = tmp_path / "cut.png"
    picture.write_bytes((world / "0.png").read_bytes()[:60])  # its header is whole
    rows[1]["turns"][0]["content"][0]["image"] = str(picture)
    rows[2] = {"id": "no turns"}
    path = tmp_path / "image.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = all_three.heldout["image"].data.model_copy(update={"path": str(path)})
    only = {"image": all_three.heldout["image"].model_copy(update={"data": data})}
    changed = all_three.model_copy(update={"heldout": only})
    line = HeldOut(changed, "only", layouter_of(changed), ALONE, ()).measure(built(changed, "only"), 1)
    assert line["labels"] == 2 * 2, "a word and its end, of two samples"


def test_reports_are_made_of_the_steps_alone(recipe, measured):
    run, _ = measured
    made = summary("run", recipe(eval=1), list(run.metrics()), {})
    assert made["stages"]["look"]["steps"] == 3


def test_measuring_nothing_is_refused(recipe_of, parts, tmp_path):
    from omnikit.recipe import dump_recipe
    from omnikit.registry import Registry

    path = tmp_path / "r.yaml"
    path.write_text(dump_recipe(recipe_of({"only": parts.stage({"text": 1}, {"backbone": 1e-2})}, run={"eval": 5})))
    with pytest.raises(RecipeError, match=r"run\.eval: there is no held-out data to measure; add `heldout`"):
        load_recipe(path, Registry.load())


# ----------------------------------------------------------------------------------------------------------- forgetting


def line(stage, step, text):
    return {"stage": stage, "step": step, "text": text}


def test_a_rise_above_the_first_stages_end_is_told_once():
    alarm = Forgetting("language", 0.1, ())
    assert [alarm.add(line("language", step, loss)) for step, loss in ((1, 3.0), (2, 1.0), (3, 1.5))] == [None] * 3
    assert alarm.add(line("audio", 1, 1.6)) is None, "within what is allowed"
    assert alarm.add(line("audio", 2, None)) is None
    told = alarm.add(line("audio", 3, 1.61))
    assert told.startswith("stages.audio: step 3: the loss on held-out text is 1.610, and was 1.500 at the end of lang")
    assert alarm.add(line("omni", 1, 9.0)) is None


def test_a_run_that_goes_on_knows_what_was_measured_and_told():
    before = [line("language", 3, 1.5), line("audio", 1, 1.5)]
    assert Forgetting("language", 0.1, before).add(line("audio", 2, 1.7))
    assert Forgetting("language", 0.1, [*before, line("audio", 2, 1.7)]).add(line("audio", 3, 1.8)) is None
    assert Forgetting("language", 0.1, ()).add(line("audio", 3, 9.0)) is None, "there is nothing to compare with"


def test_the_alarm_compares_the_same_samples_in_every_stage(recipe_of, parts, world, tmp_path):
    """A set that only later stages measure may hold text alone; and a later stage may have room for longer samples."""
    rows = [json.loads(line) for line in (world / "text.jsonl").read_text().splitlines()[:4]]
    long = {"id": "long", "turns": [{"role": "user", "content": "a " * 24}, {"role": "assistant", "content": "red"}]}
    paths = {"text": tmp_path / "text.jsonl", "mixed": tmp_path / "mixed.jsonl", "alike": tmp_path / "alike.jsonl"}
    for name, own in (("text", [*rows, long]), ("mixed", rows[2:]), ("alike", rows)):
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in own))

    def line_of(stage, **sets):
        heldout = {
            name: {"data": {"type": "jsonl", "path": str(paths[file]), "modalities": holds}, "metric": "exact"}
            for name, (file, holds) in sets.items()
        }
        stages = {
            "first": parts.stage({"text": 1}, {"rest": 1e-2}, batch={"length": 32, "packs": 2, "micro": 2}),
            "later": parts.stage({"image": 1}, {"rest": 1e-2}, batch={"length": 64, "packs": 2, "micro": 2}),
        }
        recipe = recipe_of(stages, heldout=heldout, run={"eval": 1})
        torch.manual_seed(0)
        return HeldOut(recipe, stage, layouter_of(recipe), ALONE, ()).measure(built(recipe, stage), 1)

    alike = line_of("later", text=("alike", []))
    found = line_of("later", text=("text", []), mixed=("mixed", ["image"]))
    assert found["text"] == pytest.approx(alike["text"], rel=1e-5) and alike["text"] == alike["losses"]["text"]
    assert found["losses"]["text"] != pytest.approx(found["text"], rel=1e-5), "the other set's text counts here alone"
    assert line_of("first", text=("text", []))["labels"] == alike["labels"]


def test_the_alarm_is_in_the_metrics(recipe_of, parts, heldout, tmp_path):
    stages = {
        "language": parts.stage({"text": 1}, {"backbone": 1e-2}),
        "spoil": parts.stage({"image": 1}, {"rest": 0.3}, steps=4),
    }
    display = Display()
    run = train(recipe_of(stages, heldout=heldout, run={"eval": 1}), tmp_path, display)
    told = [(one["stage"], one["alarm"]) for one in run.metrics("heldout") if one["alarm"]]
    assert len(told) == 1 and told[0][0] == "spoil" and "the model forgets" in told[0][1]
