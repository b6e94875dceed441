"""What makes several ranks one run: launching, agreeing, one sum a step; and two ranks that train as one does."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from omnikit.account import Account
from omnikit.checkpoint import RunFolder
from omnikit.cli.launching import launch
from omnikit.distributed import ALONE, Launched, attempt, launched
from omnikit.interrupts import TRY_AGAIN, Interrupted, Requests
from omnikit.loss import Loss
from omnikit.packing import collate
from omnikit.recipe import dump_recipe
from omnikit.saving import Saver
from omnikit.starting import _check_alike
from omnikit.tensorfiles import load_into, names_in
from omnikit.train import train
from omnikit.watchdog import STEPS, Beat, Pace, Watchdog, told_of

# --------------------------------------------------------------------------------------------------------------- launch


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, None),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Launched(3, 8, 1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Launched(0, 1, 0, 1)),
        (
            {
                **{"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"},
                "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
            },
            Launched(5, 8, 1, 4),
        ),
        # A batch script sees how many tasks it may start; it is none of them.
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
    ],
)
def test_a_process_knows_its_place_from_what_launched_it(environ, found):
    assert launched(environ) == found


AGENT = {"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "1"}


def test_ranks_that_are_started_again_do_not_meet_those_of_the_start_before():
    names = [attempt(AGENT | {"TORCHELASTIC_RESTART_COUNT": count}) for count in "012"]
    assert len(set(names)) == 3
    # Each machine counts its own restarts: they would meet under other names, or those that are gone.
    machines = AGENT | {"GROUP_WORLD_SIZE": "2"}
    assert attempt(machines | {"TORCHELASTIC_RESTART_COUNT": "0"}) == names[0]
    with pytest.raises(ValueError, match="export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun"):
        attempt(machines | {"TORCHELASTIC_RESTART_COUNT": "1"})
    own = {"TORCHELASTIC_USE_AGENT_STORE": "False", "GROUP_WORLD_SIZE": "2"}
    assert attempt(own | {"TORCHELASTIC_RESTART_COUNT": "1"}) == attempt(own | {"TORCHELASTIC_RESTART_COUNT": "0"})
    assert attempt({}) == attempt({"TORCHELASTIC_RESTART_COUNT": "0"})


def test_ranks_that_hold_a_copy_must_divide_all():
    world = ALONE._replace(size=6, locals=3)
    with pytest.raises(ValueError, match=r"^run\.shard: 4 does not divide the number of ranks, 6; give a divisor"):
        world.copies(4)
    assert ALONE.copies(None) == ALONE.copies(1) == ALONE
    with pytest.raises(ValueError, match=r"^run\.shard: 2 does not divide the number of ranks, 1;"):
        ALONE.copies(2)


# -------------------------------------------------------------------------------------------------------------- account


def loss_of(by_group, counts):
    by_group = torch.tensor(by_group)
    return Loss(by_group.sum(), by_group, torch.tensor(counts))


def test_a_steps_losses_are_divided_by_its_labels_whatever_its_micro_batches():
    account = Account(["image", "audio"], ALONE)
    assert list(account.groups) == ["text", "audio", "image", "audio+image"]
    batch = collate([()], [], 6)
    account.add(batch._replace(group_names=["image", "text"]), loss_of([2.0, 3.0], [4, 1]))
    account.add(batch._replace(group_names=["text"]), loss_of([5.0], [3]))
    account.add(batch, loss_of([], []))
    told = account.settle({"backbone": [torch.full((4,), 8.0), torch.zeros(2)]}, 2, True, (0.5, 0.25))
    assert told.means == {"text": 2.0, "image": 0.5} and told.num_labels == 8 and told.loss == 10 / 8
    assert told.norm == told.norms["backbone"] == 2.0, "of the mean: 16 / 8"
    assert (told.bad, told.asked, told.waits, told.busy, told.faulty) == (2, True, [0.5], [0.25], [])
    assert (told.places, told.tokens) == (18, 0) and told.is_finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_known_by_its_loss_or_its_gradient(value):
    account = Account([], ALONE)
    account.add(collate([()], [], 2)._replace(group_names=["text"]), loss_of([value], [1]))
    told = account.settle({"backbone": [torch.ones(1)]}, 0, False, (0.0, 0.0))
    assert not told.is_finite and told.faulty == [0]
    account = Account([], ALONE)
    told = account.settle({"backbone": [torch.tensor([value])]}, 0, False, (0.0, 0.0))
    assert not told.is_finite and told.faulty == []


# ------------------------------------------------------------------------------------------------------- saving, asking


class Folder:
    """Stands for a run's folder: saving takes as long as it is told, or fails."""

    def __init__(self, error=None):
        self.saved, self.error, self.go = [], error, threading.Event()

    def save(self, stage, step, tensors, state, keep, world):
        assert self.go.wait(10)
        if self.error:
            raise self.error
        self.saved.append((step, {name: tensor.clone() for name, tensor in tensors.items()}))


def test_a_checkpoint_holds_the_tensors_as_they_were_when_its_step_ended():
    folder, tensor = Folder(), torch.ones(3)
    with Saver(folder, ALONE) as saver:
        saver.save("one", 1, {"a": tensor}, {}, 2)
        assert folder.saved == [], "the step goes on"
        tensor += 1
        folder.go.set()
        saver.save("one", 2, {"a": tensor}, {}, 2)
        assert [step for step, _ in folder.saved] == [1], "one at a time"
    assert [step for step, _ in folder.saved] == [1, 2], "and the last one is waited for"
    assert folder.saved[0][1]["a"].tolist() == [1, 1, 1] and folder.saved[1][1]["a"].tolist() == [2, 2, 2]


def test_what_goes_wrong_beside_the_training_ends_it():
    folder = Folder(ValueError("no room"))
    folder.go.set()
    with pytest.raises(ValueError, match="no room"), Saver(folder, ALONE) as saver:
        saver.save("one", 1, {}, {}, 2)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_bitwise(recipe_of, parts, tmp_path, quiet, name):
    recipe = recipe_of({"one": parts.stage({"text": 1}, {"rest": 1e-3}, steps=5)}, run={"save": 100})
    whole = train(recipe, tmp_path / "whole", quiet)

    class Asking(type(quiet)):
        def step(self, record):
            if record["step"] == 2:
                signal.raise_signal(getattr(signal, name))

    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(Interrupted, match=r"^stages\.one: stopped and saved after step 3 of 5$"):
        train(recipe, tmp_path / "cut", Asking())
    assert signal.getsignal(getattr(signal, name)) is before
    run = train(recipe, tmp_path / "cut", quiet)
    assert run.latest("one").hash() == whole.latest("one").hash()


def test_who_is_asked_to_stop_in_the_last_step_of_a_stage_does_not_begin_the_next(recipe_of, parts, tmp_path, quiet):
    """Nor does a rank that the signal has not reached: all know of it from the step's sums."""
    entry = parts.stage({"text": 1}, {"rest": 1e-3}, steps=3)
    recipe = recipe_of({"one": entry, "two": entry}, run={"save": 100})

    class Asking(type(quiet)):
        def step(self, record):
            if record["step"] == 2:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match=r"^stages\.one: stopped and saved after step 3 of 3$"):
        train(recipe, tmp_path / "run", Asking())
    assert RunFolder(tmp_path / "run").latest("two") is None
    train(recipe, tmp_path / "run", Asking())  # the run's very last step: nothing is left to go on with
    assert [line["step"] for line in RunFolder(tmp_path / "run").metrics()] == [1, 2, 3, 1, 2, 3]


def test_a_second_signal_ends_the_process_at_once():
    code = (
        "import signal, time; from omnikit.interrupts import Requests\n"
        "with Requests() as asked:\n"
        "    asked.defer(True); signal.raise_signal(signal.SIGTERM); print('still here', asked.asked, flush=True)\n"
        "    signal.raise_signal(signal.SIGUSR1); time.sleep(60)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (TRY_AGAIN, "still here SIGTERM\n", "")


def test_a_signal_between_steps_ends_the_process_at_once():
    code = (
        "import signal, time; from omnikit.interrupts import Requests\n"
        "with Requests() as asked:\n"
        "    {}\n"
        "    time.sleep(60)"
    )
    for lines in (
        "signal.raise_signal(signal.SIGUSR1)",
        "asked.defer(True); signal.raise_signal(signal.SIGUSR1); asked.defer(False)",
    ):
        ended = subprocess.run([sys.executable, "-c", code.format(lines)], capture_output=True, text=True, timeout=120)
        told = "SIGUSR1: stopped between steps; the same command goes on\n"
        assert (ended.returncode, ended.stdout, ended.stderr) == (TRY_AGAIN, "", told)


@pytest.mark.parametrize("moment", ["indexing", "features of one", "the end of a stage"])
def test_a_run_that_is_asked_to_stop_between_steps_goes_on(recipe_of, parts, tmp_path, moment):
    """Not killed: a scheduler's script looks at the exit code."""
    stages = {
        "one": parts.stage({"image": 1}, {"modalities": 1e-2, "rest": "frozen"}, cache=True),
        "two": parts.stage({"text": 1}, {"rest": 1e-3}),
    }
    path, out = tmp_path / "toy.yaml", tmp_path / "run"
    path.write_text(dump_recipe(recipe_of(stages)))
    code = (
        "import signal, sys; from omnikit.cli import main; from omnikit.cli.watching import Lines\n"
        "asked = sys.argv.pop()\n"
        "def ask(moment):\n"
        "    if moment == asked: signal.raise_signal(signal.SIGTERM)\n"
        "Lines.indexing = lambda self, *_: ask('indexing')\n"
        "Lines.caching = lambda self, what, *_: ask(what)\n"
        "step = Lines.step\n"
        "def made(self, record):\n"
        "    step(self, record)\n"
        "    if record['stage'] == 'one' and record['step'] == self.steps: ask('the end of a stage')\n"
        "Lines.step = made\n"
        "main(['train', *sys.argv[1:]])\n"
    )
    command = [sys.executable, "-c", code, str(path), "--out", str(out), moment]
    environ = {**os.environ, "OMNIKIT_CACHE": str(tmp_path / "cache")}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environ)
    assert (ended.returncode, "Traceback" in ended.stderr) == (TRY_AGAIN, False), ended.stderr
    assert "SIGTERM: stopped between steps; the same command goes on" in ended.stderr
    assert RunFolder(out).latest("two") is None
    again = subprocess.run([*command[:-1], "never"], capture_output=True, text=True, timeout=240, env=environ)
    assert again.returncode == 0, again.stderr
    assert RunFolder(out).latest("two") is not None


def test_ranks_whose_data_differ_are_refused():
    _check_alike({0: {"a": "1", "b": "2"}, 1: {"a": "1", "b": "2"}})
    with pytest.raises(ValueError, match=r"^data\.b: has other lengths on rank 1 than on rank 0; .*: make them alike$"):
        _check_alike({0: {"a": "1", "b": "2"}, 1: {"a": "1", "b": "3"}})


def test_a_signal_that_comes_late_does_not_kill_who_is_leaving(recipe_of, parts, tmp_path):
    """The launcher passes on what a rank has got already; it may come when the training has let go of its handlers."""
    code = (
        "import signal, sys; import omnikit.train; from omnikit.cli import main\n"
        "from omnikit.interrupts import Interrupted\n"
        "def stopped(*_): raise Interrupted('saved')\n"
        "omnikit.train.train = stopped\n"
        "from omnikit.cli.watching import Lines\n"
        "Lines.note = lambda self, text: (signal.raise_signal(signal.SIGTERM), print(text))\n"
        "main(['train', sys.argv[1]])\n"
    )
    path = tmp_path / "toy.yaml"
    path.write_text(dump_recipe(recipe_of({"one": parts.stage({"text": 1}, {"rest": 1e-3})})))
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == TRY_AGAIN, ended.stderr
    assert ended.stdout.startswith("saved; the same command again goes on")


def test_nobody_is_asked_outside_the_main_thread():
    before = signal.getsignal(signal.SIGTERM)
    with Requests():
        assert signal.getsignal(signal.SIGTERM) is not before
    seen = []
    thread = threading.Thread(target=lambda: [Requests().__enter__(), seen.append(signal.getsignal(signal.SIGTERM))])
    thread.start()
    thread.join()
    assert seen == [before]


# ------------------------------------------------------------------------------------------------------------- watchdog


def test_the_rank_with_fewest_moves_is_the_one_that_others_wait_for():
    beats = {0: Beat(9, 17, "step 3: sums over ranks"), 1: Beat(9, 12, "step 3: encoders.audio"), 2: Beat(9, 17, "x")}
    assert told_of(beats, set(), 30) == (
        "nothing has moved for 30 s: rank 1 at step 3: encoders.audio; the others wait for it"
    )
    assert "rank 2 at x; the others" in told_of(beats, {2}, 30), "one whose process does nothing at all comes first"
    assert "others" not in told_of({0: beats[0]}, set(), 30)


def test_a_rank_that_hangs_ends_its_run_within_seconds_and_is_named():
    code = (
        "import time, torch\n"
        "from omnikit.distributed import ALONE\n"
        "from omnikit.watchdog import Watchdog\n"
        "class Slow(torch.nn.Module):\n"
        "    def forward(self, x): time.sleep(x); return x\n"
        "slow = Slow()\n"
        "with Watchdog('one', {'encoders.slow': slow}, ALONE, 2.0) as dog:\n"
        "    for step in range(8):\n"
        "        dog.move(f'step {step}: model'); slow(0.25)\n"
        "    assert 1.9 < dog.take_busy() < 8 and dog.take_busy() == 0\n"
        "    print('alive', flush=True); slow(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout) == (1, "alive\n")
    assert ended.stderr == (
        "nothing has moved for 2 s: rank 0 at step 7: encoders.slow; the run is ended: the same command again goes on "
        "from the last checkpoint\n"
    )


def test_a_rank_that_was_never_heard_is_named():
    """It stopped within the first second of the stage, before its thread had published anything."""
    code = (
        "import time, torch\n"
        "from omnikit.distributed import ALONE\n"
        "from omnikit.watchdog import Watchdog\n"
        "world = ALONE._replace(size=2, store=torch.distributed.HashStore())\n"
        "with Watchdog('one', {}, world, 1.0) as dog:\n"
        "    dog.move('step 1: sums over ranks'); time.sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    told = "nothing has moved for 1 s: rank 1 at the stage's beginning; the others wait for it;"
    assert ended.returncode == 1 and ended.stderr.startswith(told), ended.stderr


def test_of_two_ranks_that_wait_the_one_behind_is_named_and_by_one_of_them_alone():
    """Both find out at the same time, and neither takes the other for stopped."""
    code = (
        "import time, torch\n"
        "from omnikit.distributed import ALONE\n"
        "from omnikit.watchdog import Watchdog\n"
        "store = torch.distributed.HashStore()\n"
        "worlds = [ALONE._replace(rank=rank, size=2, store=store) for rank in (0, 1)]\n"
        "with Watchdog('one', {}, worlds[1], 2.0) as waits, Watchdog('one', {}, worlds[0], 2.0) as behind:\n"
        "    waits.move('step 1: reading'), waits.move('step 1: model'), behind.move('step 1: reading')\n"
        "    time.sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith("nothing has moved for 2 s: rank 0 at step 1: reading; the others wait for it;")


def test_a_watchdog_leaves_nothing_behind():
    module, threads = torch.nn.Linear(1, 1), threading.active_count()
    with Watchdog("one", {"a": module}, ALONE, 1000):
        assert module._forward_hooks and threading.active_count() == threads + 1
    assert not module._forward_hooks and not module._forward_pre_hooks and threading.active_count() == threads


def test_a_slow_rank_is_told_once_and_no_other():
    pace = Pace()
    told = [pace.add([1.0, 1.1, 3.0 if step > 4 else 1.0], 3.0) for step in range(60)]
    assert [text for text in told if text] == [next(text for text in told if text)]
    assert next(text for text in told if text).startswith("rank 2 is slow: ") and not any(told[: STEPS - 1])
    assert not any(Pace().add([1.0], 1.0) for _ in range(30))
    few = Pace()
    assert not any(few.add([0.001, 0.09], 0.1) for _ in range(30)), "of a step of a second milliseconds are nothing"


# ----------------------------------------------------------------------------------------------------------- two as one


def test_two_ranks_train_as_one_does(recipe_of, parts, tmp_path, quiet, tensors_of):
    """Both through the command, with a rank that lacks modalities, an uneven number of packs, and accumulation."""
    stages = {
        name: parts.stages[name] | {"steps": 2, "batch": {"length": 48, "packs": 3, "micro": 1}}
        for name in ("language", "omni")
    }
    recipe = recipe_of(stages)
    path = tmp_path / "two.yaml"
    path.write_text(dump_recipe(recipe))
    one = train(recipe, tmp_path / "one", quiet)
    command = [sys.executable, "-m", "omnikit", "train", str(path), "--nproc", "2", "--out", str(tmp_path / "two")]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("stage 1 of 2, language: 2 steps") == 1, "the first rank speaks for all"
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    for ours, theirs in zip(lines, one.metrics(), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["norm"] == pytest.approx(theirs["norm"], rel=1e-5)
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-6)
        assert [ours[key] for key in ("labels", "tokens")] == [theirs[key] for key in ("labels", "tokens")]
    # What two ranks have saved one rank goes on with: nothing is left to do.
    again = train(recipe, tmp_path / "two", quiet)
    ends = []
    for run in (one, again):
        tensors = {name: torch.zeros_like(tensor) for name, tensor in tensors_of(one.latest("omni").folder).items()}
        assert names_in(run.latest("omni").folder) == tensors.keys() == load_into(run.latest("omni").folder, tensors)
        ends.append(tensors)
    for name, tensor in ends[0].items():
        # Where a gradient is next to nothing its sign is rounding, and AdamW's first steps know signs alone.
        assert (ends[1][name] - tensor).abs().mean() < 1e-5, name


def test_of_ranks_that_fall_together_the_killed_one_is_named(monkeypatch, capsys):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
    from torch.distributed.launcher import api

    def fail(*_):
        # Rank 0 was found first: it ended by itself, since rank 1 was gone.
        failures = {0: ProcessFailure(0, 11, 1, ""), 1: ProcessFailure(1, 12, -signal.SIGKILL, "")}
        failures[1].timestamp = failures[0].timestamp + 1
        raise ChildFailedError("omnikit", failures)

    for name in ("OMP_NUM_THREADS", "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.setenv(name, "1")  # it sets what is not there
    monkeypatch.setattr(api, "elastic_launch", lambda *_: fail)
    assert launch(2, 0, ["train"]) == 1
    assert capsys.readouterr().err.startswith("rank 1: was ended by SIGKILL")
