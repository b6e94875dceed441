"""Trackers: what they are given, that a missing one is refused, and that a failing one does no harm."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from omnikit import tracking
from omnikit.checkpoint import MEASURED
from omnikit.cli import main
from omnikit.recipe import dump_recipe
from omnikit.tracking import Place, Tracking, check_tracker, numbers
from omnikit.train import train


class Killed(Exception):
    pass


class Display:
    """Keeps the notes that are not of the data; dies after a step."""

    def __init__(self, die_at=None):
        self.die_at, self.notes = die_at, []

    def indexing(self, source, done, records):
        pass

    def stage(self, name, done, steps):
        pass

    def note(self, text):
        self.notes += [] if text.startswith("data.") else [text]

    def step(self, record):
        if record["step"] == self.die_at:
            raise Killed

    def heldout(self, record):
        pass


@pytest.fixture(scope="module")
def recipe(recipe_of, parts, world):
    """A stage of six steps, saved every second one."""

    def make(**run):
        held = {"text": {"data": {"type": "jsonl", "path": str(world / "text.jsonl")}, "metric": "exact"}}
        stages = {"only": parts.stage({"text": 1}, {"backbone": 1e-2}, steps=6)}
        return recipe_of(stages, modalities={}, encoders={}, heldout=held, run={"save": 2, **run})

    return make


# ---------------------------------------------------------------------------------------------------------- tensorboard


def shown(folder):
    """{tag: [(step, value)]} as TensorBoard reads a folder."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_every_step_once_also_of_a_run_that_was_cut_off(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("omnikit.heldout_loss.SAMPLES", 4)
    chosen = recipe(tracker="tensorboard", eval=2, save=3)
    with pytest.raises(Killed):
        train(chosen, tmp_path, Display(die_at=5))  # steps 4 and 5 are made again
    display = Display()
    run = train(chosen, tmp_path, display)
    found, lines = shown(tmp_path / "tensorboard" / "only"), list(run.metrics())
    assert not display.notes
    for tag in ("loss", "losses/text", "norms/backbone", "tokens_per_second", "mfu", "memory", "wait"):
        assert [step for step, _ in found[tag]] == [1, 2, 3, 4, 5, 6], tag
    assert [value for _, value in found["loss"]] == pytest.approx([line["loss"] for line in lines])
    assert [step for step, _ in found["heldout/loss"]] == [2, 4, 6]


# ------------------------------------------------------------------------------------------------------------- failures


class Broken:
    """Fails whenever it is called."""

    calls = 0

    def log(self, record):
        Broken.calls += 1
        raise ConnectionError("the network\nis gone")

    def close(self):
        raise RuntimeError("closing fails, too")


def never(place):
    raise OSError("cannot be opened")


@pytest.mark.parametrize("kind", [lambda place: Broken(), never], ids=["every-call", "opening"])
def test_a_tracker_that_fails_is_told_of_once_and_changes_nothing(recipe, tmp_path, tensors_of, monkeypatch, kind):
    monkeypatch.setitem(tracking.KINDS, "tensorboard", kind)
    Broken.calls, ends = 0, []
    for name, chosen in (("plain", recipe()), ("broken", recipe(tracker="tensorboard"))):
        display = Display()
        run = train(chosen, tmp_path / name, display)
        lines = [{key: value for key, value in line.items() if key not in MEASURED} for line in run.metrics()]
        ends.append((tensors_of(run.latest("only").folder), lines))
    (told,) = display.notes
    assert told.startswith("run.tracker: tensorboard fails (") and "\n" not in told
    assert Broken.calls == (0 if kind is never else 6), "it may come back"
    assert ends[0][1] == ends[1][1] and len(ends[0][1]) == 6
    assert all(torch.equal(ends[1][0][name], tensor) for name, tensor in ends[0][0].items())


def test_ctrl_c_is_no_failure_of_a_tracker(recipe, tmp_path, monkeypatch):
    class Interrupted(Broken):
        def log(self, record):
            raise KeyboardInterrupt

    monkeypatch.setitem(tracking.KINDS, "wandb", lambda place: Interrupted())
    with pytest.raises(KeyboardInterrupt), Tracking("wandb", Place(tmp_path, "only", 0, recipe()), Display()) as one:
        one.log({"step": 1})


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_by_name(recipe, monkeypatch, name):
    for module in (tracking.NEEDS[name], name):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"^run\.tracker: {name} cannot be used \(.*`pip install omnikit\[{name}\]`"):
        check_tracker(recipe(tracker=name))


def test_it_is_refused_in_one_line_before_anything_is_written(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trackio", None)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe(tracker="trackio")))
    with pytest.raises(SystemExit) as left:
        main(["train", str(path), "--out", str(tmp_path / "run")])
    assert left.value.code == 2 and not (tmp_path / "run").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert "run.tracker: trackio cannot be used" in line


# ------------------------------------------------------------------------------------------------------------ stand-ins


class StandIn:
    """Stands for a run of wandb or trackio."""

    def __init__(self, **options):
        self.options, self.logged, self.metrics, self.finished = options, [], [], False

    def define_metric(self, *args, **options):
        self.metrics.append((args, options))

    def log(self, values, step=None):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture(params=["wandb", "trackio"])
def stand_in(request, monkeypatch):
    """The tracker's name, and the runs that it has been asked for."""
    runs = []

    def init(**options):
        runs.append(StandIn(**options))
        return runs[-1]

    module = ModuleType(request.param)
    module.init = init
    monkeypatch.setitem(sys.modules, request.param, module)
    return SimpleNamespace(name=request.param, runs=runs)


def test_a_stage_that_goes_on_goes_on_in_the_same_run_and_others_have_their_own(stand_in, recipe, tmp_path):
    chosen = recipe(tracker=stand_in.name)
    display, folders = Display(), {name: tmp_path / name for name in ("a", "b")}
    for folder, stage, step in (("a", "one", 0), ("a", "one", 4), ("a", "two", 0), ("b", "one", 0)):
        folders[folder].mkdir(exist_ok=True)
        with Tracking(stand_in.name, Place(folders[folder], stage, step, chosen), display) as one:
            one.log({"stage": stage, "step": step + 1, "loss": 2.5, "losses": {"text": 1.5}, "alarm": None})
    assert not display.notes
    key = {"wandb": "id", "trackio": "name"}[stand_in.name]
    first, again, other, elsewhere = (run.options[key] for run in stand_in.runs)
    assert first == again and len({first, other, elsewhere}) == 3
    for run in stand_in.runs:
        assert run.options["resume"] == "allow" and run.options["config"]["stages"] and run.finished
        assert run.options["group"] in ("a", "b")
    ((step, values),) = stand_in.runs[1].logged
    assert {"loss": 2.5, "losses/text": 1.5}.items() <= values.items()
    if stand_in.name == "wandb":
        assert step is None and values["step"] == 5
        assert stand_in.runs[0].metrics == [(("*",), {"step_metric": "step"})]
    else:
        assert step == 5


def test_a_line_becomes_its_numbers():
    line = {"stage": "omni", "step": 3, "loss": None, "losses": {"text": 1, "image": 2.0}, "tokens": 7}
    assert numbers(line) == {"losses/text": 1.0, "losses/image": 2.0, "tokens": 7.0}
    assert numbers({"kind": "heldout", "step": 3, "loss": 1.5, "sets": {"a": 2.5}, "alarm": "x"}) == {
        "heldout/loss": 1.5,
        "heldout/sets/a": 2.5,
    }


def test_without_a_tracker_nothing_is_made(recipe, tmp_path):
    with Tracking(None, Place(tmp_path, "only", 0, recipe()), Display()) as one:
        one.log({"step": 1, "loss": 1.0})
    assert not list(tmp_path.iterdir())
