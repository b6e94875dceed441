"""Test 3: SIGTERM and SIGUSR1, to a rank, to the launcher, to all: a checkpoint at the step's end, and exit code 75."""

import os
import re
import signal
import time

import pytest
from harness import FULL, lines_of, metrics_of, wait_for

from omnikit.checkpoint import RunFolder
from omnikit.interrupts import SAME, TRY_AGAIN


@pytest.fixture(scope="module")
def recipe(toy, parts):
    """No checkpoint of its own accord until the last step: what is found comes from the signal."""
    stages = {
        "omni": parts.stage(
            {"text": 1, "image": 1, "audio": 1},
            {"encoders.vision": "frozen", "rest": 3e-3},
            steps=16,
            batch={"length": 48, "packs": 4, "micro": 1},
        )
    }
    return toy("asked", stages, run={"save": 1000})


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def world_of(request, ranks, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    ranks.run("train", recipe, "--out", folder, ranks=request.param)
    return request.param, folder


def check_end(recipe, folder, whole, ranks, size):
    """It saved the step at which it left, and goes on to the same end."""
    committed = [found.step for found in RunFolder(folder).committed("omni") if found.step]
    assert committed == [lines_of(folder)], "a checkpoint of the last step that was made, and no other"
    ranks.run("train", recipe, "--out", folder, ranks=size)
    last = RunFolder(folder).latest("omni")
    assert last.hash() == RunFolder(whole).latest("omni").hash()
    assert metrics_of(folder) == metrics_of(whole)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_rank_that_is_asked_to_stop_stops_all_after_a_checkpoint(ranks, recipe, world_of, tmp_path, name):
    size, whole = world_of
    folder = tmp_path / "run"
    target = size - 1
    fault = {"rank": target, "step": 4, "mark": str(tmp_path / "asked"), "number": int(getattr(signal, name))}
    started = ranks.start("train", recipe, "--out", folder, ranks=size, faults=[("die", fault)])
    codes = started.wait()
    print(f"injected: {name} to rank {target} of {size}: exit codes {codes} at step {lines_of(folder)}")
    assert codes == [TRY_AGAIN] * size and lines_of(folder) == 4
    assert "stopped and saved after step" in started.err(0) and "Traceback" not in started.told()
    check_end(recipe, folder, whole, ranks, size)


def test_a_second_signal_ends_a_rank_at_once(ranks, recipe, tmp_path):
    folder = tmp_path / "run"
    fault = ("sleep", {"rank": 0, "step": 4, "seconds": 100})
    started = ranks.start("train", recipe, "--out", folder, ranks=1, faults=[fault])
    wait_for(lambda: "of sleep" in started.err(0))
    started.kill(number=signal.SIGTERM)
    time.sleep(SAME + 1)
    began = time.monotonic()
    started.kill(number=signal.SIGTERM)
    assert started.wait(30) == [TRY_AGAIN]
    taken = time.monotonic() - began
    print(f"injected: SIGTERM twice, {SAME + 1:g} s apart, in a step of 100 s: gone {taken:.2f} s after the second")
    assert lines_of(folder) == 3


def test_while_the_report_is_made_it_leaves_at_once_and_the_same_command_makes_it(ranks, recipe, tmp_path):
    folder = tmp_path / "run"
    fault = ("asked_in_report", {"number": int(signal.SIGTERM)})
    started = ranks.start("train", recipe, "--out", folder, ranks=1, faults=[fault])
    assert started.wait() == [TRY_AGAIN]
    print("injected: SIGTERM as the report is made:", started.err(0).strip().splitlines()[-1])
    assert "SIGTERM: stopped between steps" in started.err(0) and "Traceback" not in started.told()
    assert RunFolder(folder).latest("omni").step == 16 and not (folder / "report.html").exists()
    ranks.run("train", recipe, "--out", folder, ranks=1)
    assert (folder / "report.html").exists() and lines_of(folder) == 16


WAYS = [("SIGTERM", "launcher"), ("SIGUSR1", "a rank"), ("SIGTERM", "all"), ("SIGUSR1", "all")]
MORE_WAYS = [("SIGUSR1", "launcher"), ("SIGTERM", "a rank")]


@pytest.mark.parametrize(("name", "to"), WAYS + MORE_WAYS * FULL)
def test_under_the_launcher_too(ranks, launch, recipe, tmp_path, whole_of_two, name, to):
    """`all` is what a scheduler does: the launcher passes on what each rank has got already."""
    folder = tmp_path / "run"
    # A step longer than the time in which a signal comes by both ways: rank 0 sleeps before each of its two batches.
    fault = ("sleep", {"rank": 0, "step": 4, "seconds": 2})
    job = launch("train", recipe, "--out", folder, "--nproc", 2, faults=[fault])
    wait_for(lambda: "of sleep" in job.told())
    pids = {"launcher": [job.process.pid], "a rank": [job.rank(1)], "all": [job.rank(0), job.rank(1), job.process.pid]}
    for pid in pids[to]:
        os.kill(pid, getattr(signal, name))
    code = job.wait()
    job.gone(30)
    print(f"injected: {name} to {to}: exit code {code} at step {lines_of(folder)}\n{job.told()}")
    assert code == TRY_AGAIN
    assert "stopped and saved after step 4" in job.told() and "Traceback" not in job.told()
    assert not re.search(r"^\[?W\d{4} ", job.told(), re.M), "a warning of torch's C++"
    check_end(recipe, folder, whole_of_two, ranks, 2)


@pytest.fixture(scope="module")
def whole_of_two(ranks, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    ranks.run("train", recipe, "--out", folder, ranks=2)
    return folder
