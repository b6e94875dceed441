"""Workers: what becomes of a decoder that crashes, hangs, takes all memory or says odd things; and of the workers."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from pathlib import Path

import bad_readers
import numpy as np
import psutil
import pytest
from bad_readers import GRID, Bad

from omnikit import reading
from omnikit.component import Medium, Pixels
from omnikit.media import MediaError, MediaLimits
from omnikit.reading import Reading

INPUT = Pixels(size=4, patch=2)
LIMITS = MediaLimits(read_seconds=100.0, memory_bytes=2**28)
SHORT = MediaLimits(read_seconds=0.5)
PUT_OFF = 50.0
"""Seconds until a worker's own alarm, where the run is to be first: on a busy machine it may be seconds late."""
SAID = {
    "abort": r"the decoder died of it \(SIGABRT\); replace the file",
    "segfault": r"the decoder died of it \(SIGSEGV\); replace the file",
    "exit at once": r"the decoder died of it \(exit code 3\); replace the file",
    "killed": r"the decoder died of it \(SIGKILL, as when memory runs out\); replace the file",
    "spin": r"takes longer to read than the limit of 0.5 s; replace the file, or raise limits.read_seconds",
    "sleep with the lock": r"takes longer to read than the limit of 0.5 s; replace the file, or raise limits.*",
    "too much memory": r"needs more memory than the limit of 268,435,456 bytes to read; make it smaller",
    "too much memory in C": r"the reader bad failed \(OSError: cannot allocate memory\); replace the file, or mend .*",
    "SystemExit": r"the reader bad failed \(SystemExit: 0\); replace the file, or mend the reader",
    "RuntimeError": r"the reader bad failed \(RuntimeError: two lines\); replace the file, or mend the reader",
    "ValueError without a name": r"axes do not match",
    "an exception that does not pickle": r"the reader bad failed \(Mute: it does not say why\); replace .*",
    "a BaseException": r"the reader bad failed \(GeneratorExit: out\); replace the file, or mend the reader",
    "KeyboardInterrupt": r"the decoder died of it \(exit code 1\); replace the file",
}


def read(source, workers=1, reader=None, limits=LIMITS):
    return Reading(limits, workers).read(reader or Bad(), Medium(source), INPUT, GRID).value


def pid_of(value):
    return int(value.item())


@pytest.mark.parametrize("way", bad_readers.WAYS)
def test_a_reader_that_misbehaves_is_one_line_and_the_next_medium_is_read(way):
    limits = SHORT if "limit of 0.5 s" in SAID[way] else LIMITS
    late = PUT_OFF if limits is SHORT else 0.0
    began = time.monotonic()
    for call in (
        lambda: read(way, reader=Bad(alarm=late), limits=limits),
        lambda: Reading(limits, 1).grids(Bad(surveys=True, alarm=late), Medium(way), INPUT),
    ):
        with pytest.raises(MediaError) as caught:
            call()
        message = str(caught.value)
        assert message.startswith(f"{way}: "), "it names the medium"
        assert re.fullmatch(f"{way}: {SAID[way]}", message), message
    assert time.monotonic() - began < LIMITS.read_seconds, "nobody waits for a dead worker"
    assert pid_of(read("good")) not in (0, os.getpid())
    assert len(reading._idle) == 1 and not reading._busy


def test_what_is_misread_in_the_process_itself_is_told_in_the_same_words():
    for way in ("RuntimeError", "ValueError without a name", "an exception that does not pickle"):
        told = []
        for workers in (0, 1):
            with pytest.raises(MediaError) as caught:
                read(way, workers)
            told.append(str(caught.value))
        assert told[0] == told[1]
    for way, error in {"KeyboardInterrupt": KeyboardInterrupt, "SystemExit": SystemExit}.items():
        with pytest.raises(error):  # a signal's handler means the run, not the medium
            read(way, workers=0)
    assert pid_of(read("good", workers=0)) == os.getpid()


def test_a_dying_worker_takes_nothing_else_with_it():
    """Four threads at once, every third medium deadly: all others are read, each by the thread that asked."""
    outcomes = {}

    def thread(number):
        for turn in range(6):
            source = "abort" if (number + turn) % 3 == 0 else "slow"
            try:
                outcomes[number, turn] = pid_of(read(source, workers=3))
            except MediaError as error:
                outcomes[number, turn] = str(error)

    threads = [threading.Thread(target=thread, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(120)
    assert len(outcomes) == 24
    for (number, turn), outcome in outcomes.items():
        if (number + turn) % 3 == 0:
            assert outcome == "abort: the decoder died of it (SIGABRT); replace the file"
        else:
            assert isinstance(outcome, int) and outcome != os.getpid(), outcome
    assert len(reading._idle) <= 3 and not reading._busy


def test_workers_are_kept_and_there_are_no_more_than_asked_for():
    assert {pid_of(read("good", workers=3)) for _ in range(5)} == {pid_of(read("good"))}
    seen = set()
    threads = [threading.Thread(target=lambda: seen.add(pid_of(read("slow", workers=2)))) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert len(seen) == 2 == len(reading._idle)


def test_a_worker_that_died_idle_is_replaced_and_no_medium_blamed():
    first = pid_of(read("good"))
    os.kill(first, signal.SIGKILL)
    reading._idle[0].process.join(60)  # a zombie is gone, but its server may not have told of it yet
    assert pid_of(read("good")) != first


def test_an_interrupted_question_gets_nobody_elses_answer():
    class Interrupting:
        """A line on which Ctrl-C comes just when the answer does."""

        def __init__(self, line):
            self.line = line

        def __getattr__(self, name):
            return getattr(self.line, name)

        def recv_bytes(self):
            raise KeyboardInterrupt

    first = pid_of(read("good"))
    reading._idle[0].line = Interrupting(reading._idle[0].line)
    with pytest.raises(KeyboardInterrupt):
        read("strided")
    gone(first)
    assert read("good").shape == GRID


def test_arrays_come_back_as_they_were():
    value = read("strided")
    np.testing.assert_array_equal(value, np.arange(8, dtype=np.int16).reshape(2, 4).T)
    assert value.dtype == np.int16 and value.flags.writeable and value.flags.c_contiguous


@pytest.mark.parametrize("workers", [0, 1])
def test_only_plain_numbers_leave_a_reader(workers):
    for source in ("list", "objects", "no item"):
        line = f"{source}: the reader bad gave no array of numbers and its grid; mend the reader"
        with pytest.raises(MediaError, match=line):
            read(source, workers)
    offers = bad_readers.Offering()
    for source in ("nothing", "None", "a side"):
        with pytest.raises(MediaError, match=rf"{source}: the reader bad gave no grids \(t, h, w\); mend the reader"):
            Reading(LIMITS, workers).grids(offers, Medium(source), INPUT)
    grids = Reading(LIMITS, workers).grids(offers, Medium("numpy's numbers"), INPUT)
    item = Reading(LIMITS, workers).read(Bad(), Medium("numpy's numbers"), INPUT, GRID)
    assert grids == [item.grid] == [GRID] and {type(n) for n in item.grid} == {int}


def test_nobody_waits_for_ever_for_a_worker_that_cannot_even_be_killed():
    """As one whose file is on a dead network disk: the kernel holds it."""
    patience = []

    class Held:
        def __init__(self, process):
            self.process = process

        def __getattr__(self, name):
            return getattr(self.process, name)

        def kill(self):
            pass

        def join(self, timeout=None):
            patience.append(timeout)

    first = pid_of(read("good"))
    reading._idle[0].process = Held(reading._idle[0].process)
    with pytest.raises(MediaError, match="takes longer to read than the limit"):
        read("spin", reader=Bad(alarm=PUT_OFF), limits=SHORT)
    assert patience and None not in patience
    os.kill(first, signal.SIGKILL)
    gone(first)


def test_limits_that_nothing_can_enforce_are_refused():
    most = {"pixels": 178_956_970, "read_seconds": 7 * 86400, "memory_bytes": 2**50}
    assert read("good", limits=MediaLimits(**most)).shape == GRID
    for name, value in most.items():
        with pytest.raises(ValueError, match=f"{name}\n.*less than or equal to"):
            MediaLimits(**{name: value + 1})


def test_a_limit_of_the_machines_own_is_kept():
    body = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (3 * 2**30,) * 2); print(read('good').size)"
    out, err = program(body).communicate(timeout=300)
    assert out == "1\n", err


def test_a_reader_that_cannot_travel_says_so():
    class Local(Bad):
        pass

    with pytest.raises(ValueError, match="reader bad: cannot travel to a worker"):
        read("good", reader=Local())
    assert read("good").shape == GRID


def test_a_reader_that_workers_cannot_load_says_so(monkeypatch):
    """As when a package is on the run's path by a trick that other processes do not know."""
    made = types.ModuleType("known_here_only")
    made.Lost = type("Lost", (Bad,), {"__module__": "known_here_only", "__qualname__": "Lost"})
    monkeypatch.setitem(sys.modules, "known_here_only", made)
    with pytest.raises(MediaError, match=r"cannot be loaded in a worker \(No module named 'known_here_only'\)"):
        read("good", reader=made.Lost())
    assert read("good").shape == GRID and len(reading._idle) == 1


def test_a_name_with_control_characters_is_one_line():
    for workers in (0, 1):
        with pytest.raises(MediaError) as caught:
            Reading(workers=workers).read(_square(), Medium("a\n\x1b[31m\udcff.png"), INPUT, (1, 2, 2))
        assert str(caught.value).startswith(r"a\n\x1b[31m\udcff.png: cannot be opened")


def _square():
    from omnikit_siglip import SquareConfig

    return SquareConfig()


# ------------------------------------------------------------------------------------------------------- their own ends

PROGRAM = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background of a shell
sys.path.insert(0, {folder!r})
from bad_readers import GRID, Bad
from omnikit import reading
from omnikit.component import Medium, Pixels
from omnikit.media import MediaLimits
from omnikit.reading import Reading

def read(source):
    limits = MediaLimits(read_seconds={seconds})
    return Reading(limits, 2).read(Bad(), Medium(source), Pixels(size=4, patch=2), GRID).value

def pids():
    from multiprocessing import forkserver
    workers = [worker.process.pid for worker in [*reading._idle, *reading._busy]]
    return [forkserver._forkserver._forkserver_pid, *workers]

if __name__ == "__main__":
    {body}
"""


def program(body, seconds=60, **options):
    text = PROGRAM.format(
        folder=str(Path(__file__).parent), seconds=seconds, body=textwrap.indent(textwrap.dedent(body), "    ").strip()
    )
    return subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def gone(*pids, within=60.0):
    """Wait until none of these processes runs."""
    until = time.monotonic() + within
    left = set(pids)
    while left and time.monotonic() < until:
        left = {pid for pid in left if runs(pid)}
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"still there: {left}"


def runs(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


BUSY = """
while len(reading._idle) < 2:
    both = [threading.Thread(target=read, args=("slow",)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
threading.Thread(target=read, args=("{hang}",), daemon=True).start()
while not reading._busy:
    time.sleep(0.01)
time.sleep(0.2)
print(*pids(), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("hang", ["spin", "sleep with the lock"])
def test_when_the_run_is_killed_its_workers_go_even_one_that_hangs(hang):
    run = program(BUSY.format(hang=hang), seconds=6)
    pids = [int(pid) for pid in run.stdout.readline().split()]
    assert len(pids) == 3 and all(map(runs, pids))
    run.kill()
    run.wait()  # not communicate: a worker that stays would hold the other end
    gone(*pids, within=30)


def test_ctrl_c_is_the_runs_own_business():
    """The terminal sends it to every process: the run stops, its workers neither complain nor stay."""
    run = program(
        """
        read("good")
        try:
            print(*pids(), flush=True)
            while True:
                read("good")
        except KeyboardInterrupt:
            print("stopped", flush=True)
        """,
        start_new_session=True,
    )
    pids = [int(pid) for pid in run.stdout.readline().split()]
    time.sleep(0.3)
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=300)
    assert (out, err, run.returncode) == ("stopped\n", "", 0)
    gone(*pids)


def test_an_end_like_any_other_leaves_nothing_and_says_nothing():
    run = program('read("prints"); print(*pids(), flush=True)')
    out, err = run.communicate(timeout=300)
    pids = [int(pid) for pid in out.split()]
    assert len(pids) == 2, "what a decoder prints is not among the results"
    assert err == "printed\nwritten\n" and run.returncode == 0
    gone(*pids)


@pytest.mark.parametrize("preload", ["torch", "math"])
def test_torch_has_one_thread_in_a_worker(preload):
    """Whether its server has imported torch already, or the reader does."""
    body = f'reading._context.set_forkserver_preload(["{preload}"]); print(int(read("threads").item()))'
    out, err = program(body, env={**os.environ, "OMP_NUM_THREADS": "4"}).communicate(timeout=300)
    assert out == "1\n", err


def test_a_fork_of_the_run_does_not_talk_to_its_workers():
    """Two voices on one line would hear each other's answers. multiprocessing's server serves no forked process."""
    run = program(
        """
        first = read("good").item()
        child = os.fork()
        if not child:
            try:
                read("good")
            except ValueError as error:
                os._exit(7 if str(error).startswith("run.workers: no worker can be started") else 1)
            os._exit(2)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, read("good").item() == first)
        """
    )
    out, err = run.communicate(timeout=300)
    assert out == "7 True\n", err


def test_a_server_that_cannot_start_is_one_line(monkeypatch):
    monkeypatch.setattr(reading, "_serve", print)  # a worker that never says that it is there
    with pytest.raises(ValueError, match=r"^run.workers: no worker can be started to read media"):
        read("good")


# ---------------------------------------------------------------------------------------------------------- in a recipe


def recipe_with(recipe_of, parts, reader=None, limits=None, **run):
    recipe = recipe_of({"one": parts.stage({"image": 1, "audio": 1, "text": 1}, {"rest": 1e-3})}, run=run)
    if reader is not None:
        image = recipe.modalities["image"].model_copy(update={"reader": reader})
        recipe = recipe.model_copy(update={"modalities": {**recipe.modalities, "image": image}})
    return recipe.model_copy(update={"limits": limits}) if limits else recipe


@pytest.mark.parametrize("workers", [0, 2])
def test_the_limits_of_a_recipe_reach_its_readers(recipe_of, parts, small_windows, workers):
    from omnikit.data import StageData, layouter_of

    recipe = recipe_with(recipe_of, parts, limits=MediaLimits(pixels=255), workers=workers)
    message = r"^data\.image: none of its \d+ records can be used; the first: sample i.* 16 x 16 pixels, over the limit"
    with pytest.raises(ValueError, match=message):
        StageData(recipe, "one", layouter_of(recipe))
    recipe = recipe_with(recipe_of, parts, workers=workers)
    assert StageData(recipe, "one", layouter_of(recipe)).unreadable() == []


def test_a_decoder_that_crashes_at_all_media_stops_a_run_before_it_begins(
    recipe_of, parts, small_windows, tmp_path, quiet
):
    from omnikit.train import train

    recipe = recipe_with(recipe_of, parts, reader=bad_readers.Crashing(), workers=2)
    with pytest.raises(ValueError) as caught:
        train(recipe, tmp_path / "run", quiet)
    [line] = str(caught.value).splitlines()
    assert line.startswith("sample i") and ".png: the decoder died of it (SIGABRT); replace the file" in line, line
    assert not (tmp_path / "run").exists()


def test_batches_are_the_same_for_any_number_of_workers(recipe_of, parts, small_windows):
    import itertools

    import torch

    from omnikit.data import Position, StageData, layouter_of

    seen = []
    for workers in (0, 1, 3):
        recipe = recipe_with(recipe_of, parts, workers=workers)
        steps = StageData(recipe, "one", layouter_of(recipe)).steps(Position())
        seen.append(list(itertools.islice(steps, 6)))
        steps.close()
    media = 0
    for here, one, three in zip(*seen, strict=True):
        for other in (one, three):
            assert other.samples == here.samples and other.after == here.after
            for a, b in zip(here.batches, other.batches, strict=True):
                assert torch.equal(a.ids, b.ids) and a.media.keys() == b.media.keys()
                for name in a.media:
                    for x, y in zip(a.media[name].items, b.media[name].items, strict=True):
                        media += 1
                        assert torch.equal(x.value, y.value) and x.value.dtype == y.value.dtype and x.grid == y.grid
    assert media > 20
