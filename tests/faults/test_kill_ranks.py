"""Tests 1 and 10: kill -9 of ranks at random moments, of all and of one; what is left of the job, and how it ends."""

import os
import random
import signal
import time

import pytest
from harness import check_committed, check_same, lines_of, metrics_of, wait_for

from omnikit.checkpoint import RunFolder

STAGES = ("language", "omni")


@pytest.fixture(scope="module")
def recipe(toy, parts, count):
    """Two stages, mixed media, accumulation, a checkpoint every two of its steps."""
    batch = {"length": 48, "packs": 4, "micro": 1}
    stages = {
        "language": parts.stage({"text": 1}, {"backbone": 1e-2}, steps=count(8, 20), batch=batch),
        "omni": parts.stage(
            {"text": 1, "image": 1, "audio": 1, "mixed": 1},
            {"encoders.vision": "frozen", "rest": 3e-3},
            steps=count(36, 140),
            batch=batch,
        ),
    }
    return toy("kill", stages, run={"save": 2})


@pytest.fixture(scope="module")
def whole(ranks, recipe, tmp_path_factory):
    """The run of two ranks that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    began = time.monotonic()
    ranks.run("train", recipe, "--out", folder)
    last = RunFolder(folder).latest("omni").state()["steps"]
    held = [found.step for found in RunFolder(folder).committed("omni")]
    assert held == [0, last - 2, last], "the last but one has the optimizer's state"
    print(f"undisturbed: {time.monotonic() - began:.1f} s for {len(metrics_of(folder))} steps")
    return folder


def test_a_run_of_two_ranks_killed_at_random_moments_ends_bitwise_as_one_that_was_not(
    ranks, recipe, whole, tmp_path, count
):
    folder, chance, kills = tmp_path / "run", random.Random(20251), count(8, 26)
    for number in range(kills):
        if number % 4 == 0:
            target = ()  # one that is alone as ranks meet waits for the other, which a launcher would start again
            started = ranks.start("train", recipe, "--out", folder, faults=[held(0, 1)])
            time.sleep(delay := chance.uniform(0, 1.5))
            moment = f"{delay:.2f} s after the start"
        else:
            target, steps = chance.choice([(), (0,), (1,)]), chance.randint(2, 6)
            rank = target[0] if target else 0
            started = ranks.start("train", recipe, "--out", folder, faults=[held(rank, steps)])
            wait_for(lambda started=started, rank=rank: "steps are made" in started.err(rank))
            time.sleep(delay := chance.uniform(0, 0.2))  # over a step and its checkpoint
            moment = f"{delay:.3f} s after {steps} new steps"
        started.kill(*target)
        codes = started.wait(30) if not target else leave(started, target[0])
        whom = f"rank {target[0]}" if target else "all ranks"
        print(f"injected: SIGKILL of {whom}, {moment}: exit codes {codes}, {lines_of(folder)} lines")
        assert -signal.SIGKILL in codes, "it was done before it could be killed: give it more steps"
        check_committed(folder, STAGES)
    ranks.run("train", recipe, "--out", folder)
    check_same(whole, folder, STAGES)


def held(rank, steps):
    """What is put into a rank that is to be killed after so many steps: it makes two more, with a checkpoint, and then
    waits, for a fast machine would be done before it is killed.
    """
    return "hold", {"rank": rank, "steps": steps, "more": 2}


def leave(started, dead):
    """The other rank ends by itself, as its partner is gone: without a launcher nobody else would end it."""
    codes = started.wait(120)
    assert codes[1 - dead] not in (0, None), codes
    return codes


@pytest.mark.parametrize("target", [0, 1, "launcher and ranks"])
def test_under_the_launcher_a_killed_rank_ends_the_job_and_the_same_command_goes_on(
    launch, recipe, whole, tmp_path, target, ranks
):
    folder = tmp_path / "run"
    chance = random.Random(str(target))
    fault = held(target if isinstance(target, int) else 0, chance.randint(3, 9))
    job = launch("train", recipe, "--out", folder, "--nproc", 2, faults=[fault])
    wait_for(lambda: "steps are made" in job.told())
    time.sleep(delay := chance.uniform(0, 0.2))
    if isinstance(target, int):
        os.kill(job.rank(target), signal.SIGKILL)
    else:
        job.kill()
    code, taken = job.wait(120), job.gone(60)
    print(
        f"injected: SIGKILL of {target}, {delay:.3f} s after a step: exit code {code}, all gone in {taken:.1f} s more"
    )
    assert code != 0
    if isinstance(target, int):
        assert f"rank {target}: was ended by SIGKILL; the same command again goes on" in job.told()
        assert "Traceback" not in job.told()
    check_committed(folder, STAGES)
    ranks.run("train", recipe, "--out", folder)
    check_same(whole, folder, STAGES)


def test_with_restarts_a_run_whose_ranks_die_three_times_ends_by_itself_and_bitwise_the_same(
    launch, recipe, whole, tmp_path
):
    folder = tmp_path / "run"
    deaths = [(1, 5), (0, 8), (1, 25)]  # the last in the second stage
    faults = [("die", {"rank": rank, "step": step, "mark": str(tmp_path / f"{rank}-{step}")}) for rank, step in deaths]
    job = launch("train", recipe, "--out", folder, "--nproc", 2, "--max-restarts", 3, faults=faults)
    assert job.wait(480) == 0, job.told()
    print(f"injected: SIGKILL of (rank, step) {deaths}\n{job.told()}")
    assert all((tmp_path / f"{rank}-{step}").exists() for rank, step in deaths), "every fault came"
    job.gone(30)
    check_same(whole, folder, STAGES)
