"""Test 26: two runs in one folder; a lock whose holder was killed; a file system that knows no locks."""

import errno
import fcntl
import os
import signal
import socket

import pytest
from harness import check_same, wait_for

from omnikit.checkpoint import RunFolder
from omnikit.recipe import load_recipe
from omnikit.train import train

STAGES = ("omni",)


@pytest.fixture(scope="module")
def recipe(toy, parts):
    return toy("lock", {"omni": parts.stage({"text": 1}, {"rest": 3e-3}, steps=6)})


@pytest.fixture(scope="module")
def whole(ranks, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    ranks.run("train", recipe, "--out", folder)
    return folder


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("size", [1, 2])
def test_the_second_run_in_a_folder_is_refused_and_told_who_has_it_and_one_killed_is_no_obstacle(
    ranks, recipe, whole, registry, quiet, tmp_path, size
):
    folder = tmp_path / "run"
    fault = ("sleep", {"rank": size - 1, "step": 5, "seconds": 200})
    started = ranks.start("train", recipe, "--out", folder, ranks=size, faults=[fault])
    wait_for(lambda: (folder / "omni/step-000004/COMMIT").is_file() and "of sleep" in started.err(size - 1))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError) as caught:
        train(load_recipe(recipe, registry), folder, quiet)
    print(f"injected: a second run beside one of {size} ranks: {caught.value}")
    assert str(caught.value) == (
        f"{folder}: process {started.pids[0]} on {socket.gethostname()} is training into it; wait for it or stop it, "
        "or give --out another folder"
    )
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, "nothing was touched"

    started.kill(number=signal.SIGKILL)
    started.wait(30)
    assert (folder / "lock").is_file(), "what a kill leaves"
    if size == 2:
        ranks.run("train", recipe, "--out", folder)
        check_same(whole, folder, STAGES)
    else:
        train(load_recipe(recipe, registry), folder, quiet)
        assert RunFolder(folder).latest("omni").step == 6


def test_a_second_run_of_two_ranks_is_refused_in_one_line(ranks, recipe, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with RunFolder(folder).lock():
        started = ranks.start("train", recipe, "--out", folder)
        codes = started.wait()
    print(f"injected: two ranks in a folder that this process holds: {codes}\n{started.told()}")
    assert codes[0] == 2 and 0 not in codes
    [line] = [line for line in started.err(0).splitlines() if not line.startswith("indexed ")]
    assert f"process {os.getpid()} on" in line
    assert [path.name for path in folder.iterdir()] == ["lock"]
    ranks.run("train", recipe, "--out", folder)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_the_file_system_knows_no_locks_a_run_goes_on_with_a_warning(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    print(f"injected: flock fails with {os.strerror(code)}")
    with pytest.warns(UserWarning, match=r"lock: cannot be locked here \(.*\); see to it that no other run uses"):
        with RunFolder(tmp_path / "run").lock():
            pass


def test_a_lock_goes_with_its_context_and_not_before(tmp_path):
    run = RunFolder(tmp_path / "run")
    with run.lock():
        with pytest.raises(ValueError, match="is training into it"), RunFolder(tmp_path / "run").lock():
            pass
    with run.lock():
        pass
