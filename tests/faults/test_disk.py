"""Tests 2, 4 and 5: a full disk, a quota, a disk gone read-only, a folder that vanishes: one line, nothing lost."""

import errno
import os
import shutil

import pytest
from harness import check_committed, check_same, metrics_of

from omnikit.checkpoint import RunFolder

STAGES = ("omni",)
STEPS = 8


@pytest.fixture(scope="module")
def recipe(toy, parts):
    stages = {
        "omni": parts.stage(
            {"text": 1, "image": 1},
            {"rest": 3e-3},
            steps=STEPS,
            batch={"length": 48, "packs": 2, "micro": 1},
        )
    }
    return toy("disk", stages, run={"save": 2})


@pytest.fixture(scope="module")
def whole(ranks, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    ranks.run("train", recipe, "--out", folder)
    return folder


PARTED = ("another rank is gone", "the first rank, or what started it, is gone")
"""What the rank says to which nothing happened, or its watchdog where that looks first."""


def one_line(started, *parts):
    """What went wrong is one line, said by one rank, with all of `parts` in it; no rank shows a traceback."""
    told = started.told()
    assert "Traceback" not in told, told
    lines = [
        line
        for line in told.splitlines()
        if line
        and not line.startswith(("---", "data.", "stage ", "omni ", "injected", "indexed "))
        and "warning" not in line
        and not any(part in line for part in PARTED)
    ]
    assert len(lines) == 1, told
    assert all(part in lines[0] for part in parts), lines[0]
    return lines[0]


FULL = {
    "the first rank's file is too long": ("limit_files", {"rank": 0, "step": 4, "size": 4096}),
    "the last rank's file is too long": ("limit_files", {"rank": 1, "step": 4, "size": 4096}),
}
SYNC = {
    "quota": ("fail_sync", {"rank": 0, "step": 4, "code": errno.EDQUOT}),
    "no space": ("fail_sync", {"rank": 0, "step": 4, "code": errno.ENOSPC}),
    "read-only": ("fail_sync", {"rank": 0, "step": 4, "code": errno.EROFS}),
    "input/output error": ("fail_sync", {"rank": 0, "step": 4, "code": errno.EIO}),
}


@pytest.mark.parametrize("name", FULL | SYNC)
def test_a_disk_that_takes_no_more_stops_the_run_in_one_line_and_freed_it_goes_on_exactly(
    ranks, recipe, whole, tmp_path, name
):
    folder = tmp_path / "run"
    started = ranks.start("train", recipe, "--out", folder, faults=[(FULL | SYNC)[name]])
    codes = started.wait()
    print(f"injected: {name}: {codes}\n{started.told()}")
    assert 0 not in codes
    line = one_line(started, str(folder / "omni/step-000004"))
    assert name in FULL or os.strerror((FULL | SYNC)[name][1]["code"]) in line
    if name in FULL:
        assert "make room" in line and "bytes" in line
    kept = [found.step for found in RunFolder(folder).committed("omni")]
    assert kept == [2], "what was there stays, nothing half is committed"
    check_committed(folder, STAGES)
    ranks.run("train", recipe, "--out", folder)
    check_same(whole, folder, STAGES)


def test_a_checkpoint_that_cannot_be_written_stops_the_run_long_before_the_next(ranks, toy, parts, tmp_path):
    batch = {"length": 48, "packs": 2, "micro": 1}
    stages = {"omni": parts.stage({"text": 1}, {"rest": 3e-3}, steps=80, batch=batch)}
    recipe = toy("seldom", stages, run={"save": 40})
    faults = [("fail_sync", {"rank": 0, "step": 40, "code": errno.ENOSPC})]
    faults += [("slow", {"rank": rank, "seconds": 0.1}) for rank in (0, 1)]
    steps = {}
    for size in (1, 2):
        folder = tmp_path / f"{size} ranks"
        started = ranks.start("train", recipe, "--out", folder, ranks=size, faults=faults)
        assert 0 not in started.wait()
        one_line(started, str(folder / "omni/step-000040"), os.strerror(errno.ENOSPC))
        steps[size] = len(metrics_of(folder))
        assert 40 <= steps[size] < 80, steps
    print(f"injected: the write of step 40 fails; the next is of step 80, 4 s later: stopped after {steps}")


def test_a_full_disk_that_takes_no_line_of_metrics_stops_the_run_in_one_line(ranks, recipe, whole, tmp_path):
    """/dev/full: every write to it is ENOSPC, from the kernel."""
    folder = tmp_path / "run"
    ranks.run("train", recipe, "--out", folder, faults=[("stop_after", {"stage": "omni", "step": 3})], codes={75})
    kept = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").symlink_to("/dev/full")
    started = ranks.start("train", recipe, "--out", folder)
    codes = started.wait()
    print(f"injected: metrics.jsonl is /dev/full: {codes}\n{started.told()}")
    assert 0 not in codes
    one_line(started, str(folder / "metrics.jsonl"), os.strerror(errno.ENOSPC))
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").write_bytes(kept)
    ranks.run("train", recipe, "--out", folder)
    check_same(whole, folder, STAGES)


@pytest.mark.parametrize("step", [5, 6, 7])
def test_a_folder_that_vanishes_stops_the_run_before_its_next_step(ranks, recipe, whole, tmp_path, step):
    """As when a disk is unmounted: what is written then goes into the folder in its place, and is lost."""
    folder = tmp_path / "run"
    started = ranks.start(
        "train", recipe, "--out", folder, faults=[("vanish", {"rank": 0, "step": step, "folder": str(folder)})]
    )
    codes = started.wait()
    print(f"injected: the folder is gone at step {step}: {codes}\n{started.told()}")
    assert 0 not in codes
    one_line(started, str(folder))
    shutil.rmtree(folder, ignore_errors=True)  # what was being written may have come into its empty place
    os.rename(f"{folder}.away", folder)
    check_committed(folder, STAGES)
    ranks.run("train", recipe, "--out", folder)
    check_same(whole, folder, STAGES)


@pytest.mark.parametrize("where", ["below a file", "on a disk that takes nothing"])
def test_a_place_where_nothing_can_be_written_is_one_line_before_anything_is_trained(ranks, recipe, tmp_path, where):
    """The superuser may write whatever permissions say, so a folder that is none and /proc, which takes no folder."""
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file/run" if where == "below a file" else "/proc/omnikit-run"
    started = ranks.start("train", recipe, "--out", folder)
    codes = started.wait()
    print(f"injected: a run {where}: {codes}\n{started.told()}")
    assert codes[0] == 2 and 0 not in codes
    one_line(started, str(folder))


@pytest.mark.parametrize(
    ("rank", "name", "number"),
    [
        (0, "dcp.save", 1),
        (1, "dcp.save", 1),
        *((0, "write_atomically", number) for number in (1, 2)),
        *((0, "sync", number) for number in (2, 5)),
        (0, "_sha256", 2),
        *((0, "_remove", number) for number in (1, 2)),
    ],
)
def test_a_rank_killed_at_a_point_of_a_checkpoint_leaves_the_one_before(
    ranks, recipe, whole, tmp_path, rank, name, number
):
    folder = tmp_path / "run"
    mark = str(tmp_path / "mark")
    fault = {"rank": rank, "name": name, "number": number, "step": 5, "mark": mark}
    started = ranks.start("train", recipe, "--out", folder, faults=[("die_at_call", fault)])
    codes = started.wait()
    print(
        f"injected: SIGKILL of rank {rank} before call {number} of {name}: {codes}, then "
        f"{[found.step for found in RunFolder(folder).committed('omni')]}"
    )
    assert codes[rank] == -9 and 0 not in codes
    check_committed(folder, STAGES)
    assert RunFolder(folder).latest("omni").step in (2, 4, 6), "the one that was being written, or the one before"
    ranks.run("train", recipe, "--out", folder)
    check_same(whole, folder, STAGES)
    assert [line["step"] for line in metrics_of(folder)] == list(range(1, STEPS + 1))
