"""Test 22: numbers that are not finite, on one rank: all ranks decide alike, weights stay finite, ids are written."""

import json

import pytest
import torch
from harness import metrics_of
from safetensors import safe_open

from omnikit.checkpoint import RunFolder

PLACES = ("loss", "gradient", "encoders.audio", "input")


@pytest.fixture(scope="module")
def recipes(toy, parts):
    """By what `on_nonfinite` says."""
    train = {"encoders.vision": "frozen", "rest": 3e-3}
    batch = {"length": 48, "packs": 4, "micro": 1}
    stages = {"omni": parts.stage({"mixed": 1}, train, steps=8, batch=batch)}
    return {what: toy(what, stages, run={"on_nonfinite": what, "save": 2}) for what in ("stop", "skip")}


@pytest.fixture
def told_of(ranks, recipes, tmp_path):
    """told_of(policy, what, rank, steps, value) -> exit codes, the folder, traces by rank, what was said."""

    def make(policy, also=(), **fault):
        (tmp_path / "traces").mkdir(exist_ok=True)
        folder = tmp_path / "run"
        faults = [("trace", {"folder": str(tmp_path / "traces")}), ("nonfinite", fault), *also]
        started = ranks.start("train", recipes[policy], "--out", folder, faults=faults)
        codes = started.wait()
        traces = [
            [json.loads(line) for line in (tmp_path / "traces" / f"trace-{rank}.jsonl").read_text().splitlines()]
            for rank in (0, 1)
        ]
        print(f"injected: {fault}, {policy}: exit codes {codes}\n{started.told()}")
        assert "injected on rank" in started.told(), "the fault came"
        return codes, folder, traces, started.told()

    return make


def stepped(trace):
    """The steps that a rank's optimizer made."""
    return [line["step"] for line in trace if line["what"] == "stepped"]


def read_at(trace, step):
    """The ids that a rank read for a step: the last that it read before it began."""
    ids = []
    for line in trace:
        if line["what"] == "read":
            ids = line["ids"]
        elif line["what"] == "step" and line["step"] == step:
            return ids
    raise AssertionError(f"no step {step}")


def listed(folder):
    path = folder / "bad_samples.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def all_finite(folder):
    for checkpoint in RunFolder(folder).committed("omni"):
        for path in checkpoint.folder.glob("*.safetensors"):
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():
                    assert torch.isfinite(opened.get_tensor(name)).all(), f"{path}: {name}"


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("what", PLACES)
def test_stop_stops_all_ranks_before_the_step_and_lists_its_samples(told_of, what, value):
    codes, folder, traces, told = told_of("stop", what=what, rank=1, steps=[5], value=value)
    assert codes[0] == 1 and 0 not in codes
    assert stepped(traces[0]) == stepped(traces[1]) == [1, 2, 3, 4]
    assert "stages.omni: step 5: loss" in told and "the step was not made" in told and "Traceback" not in told
    bad = [line for line in listed(folder) if line["what"] == "nonfinite"]
    assert {(line["stage"], line["step"], line["source"]) for line in bad} == {("omni", 5, "mixed")}
    ids = sorted(line["id"] for line in bad)
    both = sorted(read_at(traces[0], 5) + read_at(traces[1], 5))
    own = sorted(read_at(traces[1], 5))
    # A gradient is summed over the ranks before anybody looks at it: then all samples of the step are listed.
    assert ids == (both if what == "gradient" else own) and own
    assert all(name in told for name in ids)
    all_finite(folder)


@pytest.mark.parametrize("what", PLACES)
def test_skip_leaves_the_step_out_on_all_ranks_and_goes_on(told_of, what, ranks, recipes, tmp_path):
    codes, folder, traces, told = told_of("skip", what=what, rank=1, steps=[3, 6], value="nan")
    assert codes == [0, 0]
    assert stepped(traces[0]) == stepped(traces[1]) == [1, 2, 4, 5, 7, 8]
    assert told.count("the step was skipped") == 2
    lines = metrics_of(folder)
    assert [line["step"] for line in lines if line["loss"] is None] == [3, 6]
    assert {line["step"] for line in listed(folder) if line["what"] == "nonfinite"} == {3, 6}
    all_finite(folder)
    assert RunFolder(folder).latest("omni").state()["skips"] == [0, 2]


def test_skips_are_bounded_three_in_a_row_stop_also_over_a_restart(told_of, tmp_path):
    # A run that stops itself does not wait for what it is writing.
    written = ("wait_for_file", {"rank": 0, "step": 6, "path": str(tmp_path / "run/omni/step-000004/COMMIT")})
    codes, folder, traces, told = told_of("skip", also=[written], what="loss", rank=1, steps=[4, 5, 6, 7], value="inf")
    assert codes[0] == 1 and 0 not in codes
    assert "3 steps in a row could not be made" in told
    assert stepped(traces[0]) == stepped(traces[1]) == [1, 2, 3]
    assert [found.step for found in RunFolder(folder).committed("omni")] == [0, 2, 4]
    # Step 4, a skipped one, is saved with its count; the same steps again stop at the same place.
    codes, folder, traces, told = told_of("skip", what="loss", rank=1, steps=[4, 5, 6, 7], value="inf")
    assert codes[0] == 1 and "stages.omni: step 6" in told and "3 steps in a row could not be made" in told
    all_finite(folder)


def test_an_encoder_that_overflows_on_its_stand_in_alone_disturbs_nobody(ranks, toy, parts, tmp_path):
    """Text alone on a rank: what the encoder makes of its example is not used, whatever it is."""
    stages = {
        "omni": parts.stage(
            {"text": 1, "audio": 1},
            {"backbone": 3e-3, "rest": "frozen"},
            steps=6,
            batch={"length": 24, "packs": 2, "micro": 1},
        )
    }
    recipe = toy("stand-in", stages)
    (tmp_path / "traces").mkdir()
    faults = [("stand_in", {"module": "encoders.audio", "value": "inf"})]
    ranks.run("train", recipe, "--out", tmp_path / "whole")
    started = ranks.run("train", recipe, "--out", tmp_path / "run", faults=faults)
    print(started.told())
    assert "injected on rank" in started.told()
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
