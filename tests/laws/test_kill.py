"""kill -9 at random moments: the same command again, until it is done, ends bitwise as a run that nobody killed.

Importing torch takes longer than the whole training, so one process imports it and forks a child for each start; the
child is the command line itself. The last start is a `python -m omnikit` of its own.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from omnikit.checkpoint import MEASURED, RunFolder, verify
from omnikit.recipe import dump_recipe

KILLS = 9
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Threads do not outlive a fork."""
PATIENCE = 240
"""Seconds until a start that does nothing is called hung."""

FORKING = """
import itertools, os, sys, time
import omnikit.cli, omnikit.report, omnikit.train, omnikit.builtin.backbone, omnikit_siglip.module, torch._dynamo
import transformers.models.llama.modeling_llama
def hold(steps, more, mark):  # a fast machine would be done before it is killed
    factor, counted = omnikit.train.rate_factor, itertools.count()
    def rate_factor(*given):  # called as a step begins
        made = next(counted)
        if made == steps:
            open(mark, "x").close()
        elif made == steps + more:
            time.sleep(300)
        return factor(*given)
    omnikit.train.rate_factor = rate_factor
assert len(os.listdir("/proc/self/task")) == 1 or sys.platform != "linux", "forking with threads may hang"
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        held, mark, *arguments = line.rstrip("\\n").split("\\t")
        if held:
            hold(int(held), 2, mark)
        sys.argv = ["omnikit", *arguments]
        try:
            omnikit.cli.main()
        except SystemExit as end:
            os._exit(end.code or 0)
        os._exit(1)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Starter:
    """Starts the command line in a fresh child, and kills it."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=ONE_THREAD,
        )

    def start(self, *arguments, held="", mark=""):
        """The process id. After `held` steps of its own it makes the file `mark`, two steps, and no others."""
        self.process.stdin.write("\t".join(map(str, (held, mark, *arguments))) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self):
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=PATIENCE)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def starter():
    made = Starter()
    yield made
    made.close()


@pytest.fixture(scope="module")
def command(recipe_of, parts, tmp_path_factory):
    """command(folder) -> the arguments that train a recipe of two stages, 48 steps, a checkpoint every two."""
    stages = {
        "language": parts.stage({"text": 1}, {"backbone": 1e-2}, steps=8),
        "image": parts.stage({"image": 2, "text": 1}, {"encoders": "frozen", "rest": 1e-2}, steps=40),
    }
    path = tmp_path_factory.mktemp("recipe") / "kill.yaml"
    path.write_text(dump_recipe(recipe_of(stages, run={"save": 2, "keep": 2, "precision": "bf16"})))
    return lambda folder: ("train", path, "--out", folder)


def lines_of(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def wait_for(path):
    until = time.monotonic() + PATIENCE
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.002)
    return path.exists()


def metrics_of(folder):
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in RunFolder(folder).metrics()]


def checkpoints_of(folder):
    """The bytes of every file of the last checkpoint of each stage."""
    run = RunFolder(folder)
    return {
        (stage, path.name): path.read_bytes()
        for stage in ("language", "image")
        for path in run.latest(stage).folder.iterdir()
    }


def test_a_run_killed_at_random_moments_ends_bitwise_as_one_that_was_not(starter, command, tmp_path):
    starter.start(*command(tmp_path / "whole"))
    assert starter.wait() == 0
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    chance, interrupted = random.Random(20250), 0
    for number in range(KILLS):
        # A third of the kills come while it starts, the others around a step or its checkpoint.
        steps, mark = chance.randint(2, 5) if number % 3 else 1, tmp_path / f"mark-{number}"
        child = starter.start(*command(killed), held=steps, mark=mark)
        if number % 3 == 0:
            moment = f"{(delay := chance.uniform(0, 0.4)):.3f} s after its start"
        else:
            assert wait_for(mark), "it hangs, or was done before it could be killed"
            moment = f"{(delay := chance.uniform(0, 0.08)):.3f} s after {steps} new steps"
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        code = starter.wait()
        interrupted += code == -signal.SIGKILL
        print(f"kill {number}: {moment}; exit code {code}, {lines_of(killed)} lines of metrics")
        assert code == -signal.SIGKILL, "it was done before it could be killed: give it more steps"
        for stage in ("language", "image"):
            for found in RunFolder(killed).committed(stage):
                assert verify(found.folder) is None, f"{found.folder}: committed but bad"
    assert interrupted == KILLS
    assert not (killed / "report.json").exists()

    subprocess.run(
        [sys.executable, "-m", "omnikit", *map(str, command(killed))],
        check=True,
        timeout=PATIENCE,
        capture_output=True,
        env=ONE_THREAD,
    )
    expected, found = checkpoints_of(whole), checkpoints_of(killed)
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        assert found[name] == content, f"{name} differs"
    assert metrics_of(killed) == metrics_of(whole) and len(metrics_of(whole)) == 48
    assert not any(path.suffix == ".tmp" for path in killed.iterdir())
