"""Tests 11 and 12: a rank that hangs ends the job and is named with step and module; a slow one is named."""

import signal
import time

import pytest
from harness import FULL, lines_of, metrics_of, wait_for

SECONDS = 20.0
"""run.hang of these tests: more than a machine with busy disks takes to open a few files, which 8 was not."""


@pytest.fixture(scope="module")
def recipe(toy, parts):
    stages = {
        "omni": parts.stage(
            {"text": 1, "image": 1, "audio": 1},
            {"encoders.vision": "frozen", "rest": 3e-3},
            steps=24,
            batch={"length": 48, "packs": 4, "micro": 1},
        )
    }
    return toy("hang", stages, run={"hang": SECONDS, "save": 4})


@pytest.mark.parametrize(
    ("rank", "module"),
    [
        (1, "modalities.audio.projector"),
        (0, "encoders.vision.tower.encoder.layers.0"),
        (0, ""),
        *[(1, "backbone.model.layers.1")] * FULL,
    ],
)
def test_a_rank_that_sleeps_for_ever_ends_the_job_and_is_named_with_step_and_module(
    ranks, recipe, tmp_path, rank, module
):
    fault = ("sleep", {"rank": rank, "step": 6, "seconds": 3600, "module": module})
    started = ranks.start("train", recipe, "--out", tmp_path / "run", faults=[fault])
    codes = started.wait()
    print(f"injected: rank {rank} sleeps in {module or 'the model'} at step 6: {codes}, {started.seconds}")
    print(started.told())
    assert 0 not in codes
    place = f"step 6: {module}" if module else "step 6: model"
    lines = [line for number in (0, 1) for line in started.err(number).splitlines() if "nothing has moved" in line]
    assert len(lines) == 1, "it is said once"
    assert f"rank {rank} at {place}" in lines[0]
    if module:  # before the first module both are in the same place: the other waits there for the weights
        assert f"rank {1 - rank} at" not in lines[0]
    assert lines_of(tmp_path / "run") == 5


def test_under_the_launcher_a_stopped_rank_is_named_all_are_ended_and_a_restart_goes_on(launch, recipe, tmp_path):
    """SIGSTOP: not even the rank's own watchdog runs any more."""
    folder = tmp_path / "run"
    fault = ("die", {"rank": 1, "step": 6, "mark": str(tmp_path / "stopped"), "number": int(signal.SIGSTOP)})
    job = launch("train", recipe, "--out", folder, "--nproc", 2, "--max-restarts", 1, faults=[fault])
    wait_for(lambda: lines_of(folder) == 5)
    began = time.monotonic()
    code = job.wait(300)
    print(
        f"injected: SIGSTOP of rank 1 at step 6; {time.monotonic() - began:.0f} s later the job had ended with {code}"
    )
    print(job.told())
    job.gone(30)
    assert code == 0, "the restart went through"
    assert f"nothing has moved for {SECONDS:g} s: rank 1 at " in job.told()
    assert [line["step"] for line in metrics_of(folder)] == list(range(1, 25))


def test_a_slow_rank_is_named_and_the_run_completes(ranks, recipe, tmp_path):
    """By much more than a step takes, also where other processes want the same cores."""
    fault = ("slow", {"rank": 1, "seconds": 0.5})
    started = ranks.run("train", recipe, "--out", tmp_path / "run", "--set", "stages.omni.steps=12", faults=[fault])
    told = started.told()
    print(told)
    assert lines_of(tmp_path / "run") == 12
    assert told.count("rank 1 is slow") == 1 and "rank 0 is slow" not in told


def test_ranks_that_are_alike_are_not_called_slow(ranks, toy, parts, tmp_path):
    """Both take long enough for a stutter of the machine to be little beside it."""
    stages = {"only": parts.stage({"text": 1}, {"rest": 3e-3}, steps=12)}
    faults = [("slow", {"rank": rank, "seconds": 0.3}) for rank in (0, 1)]
    started = ranks.run("train", toy("alike", stages), "--out", tmp_path / "run", faults=faults)
    print(started.told())
    assert "is slow" not in started.told() and "nothing has moved" not in started.told()
