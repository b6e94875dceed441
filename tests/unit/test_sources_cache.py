"""The cache of indexes and converted files: made once, whole or not at all, and never in the way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from omnikit import cache
from omnikit.builtin.sources import Jsonl

LINE = '{"text": "a cat", "image": "a.png"}\n'


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("OMNIKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def old(path):
    """The file as if it had been there for an hour."""
    hour = time.time() - 3600
    os.utime(path, (hour, hour))
    return path


@pytest.fixture
def settled(monkeypatch):
    """Files that were just written count as left alone."""
    monkeypatch.setattr(cache, "RACY", -1.0)


def test_the_folder_is_chosen_by_the_environment(tmp_path, monkeypatch):
    assert cache.folder() == Path(os.environ["OMNIKIT_CACHE"])
    monkeypatch.delenv("OMNIKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "omnikit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache.folder() == tmp_path / "me/.cache/omnikit" and not (tmp_path / "me").exists()


def test_an_entry_is_made_once_and_nothing_is_left_beside_it(fresh):
    calls = []

    def make(path):
        calls.append(path)
        path.write_text("whole")

    assert [cache.made("a", make).read_text() for _ in range(3)] == ["whole"] * 3
    assert len(calls) == 1 and [path.name for path in fresh.iterdir()] == ["a"]


def test_an_entry_that_fails_is_not_there(fresh):
    def make(path):
        path.write_text("half")
        raise ValueError("broken data")

    for _ in range(2):
        with pytest.raises(ValueError, match="broken data"):
            cache.made("a", make)
    assert list(fresh.iterdir()) == []


KILLED = """
import sys, time
from pathlib import Path
from omnikit import cache
def make(path):
    with path.open("w") as file:
        file.write("half"); file.flush(); print("writing", flush=True); time.sleep(60)
cache.made("a", make)
"""


def test_what_a_killed_process_leaves_is_not_taken_for_whole(fresh):
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (fresh / "a").exists() and {path.name for path in fresh.iterdir()} == {"a.part", "a.lock"}
    assert cache.made("a", lambda path: path.write_text("whole")).read_text() == "whole"
    assert [path.name for path in fresh.iterdir()] == ["a"]


TOGETHER = """
import os, time
from omnikit import cache
def make(path):
    with open(os.environ["OMNIKIT_CACHE"] + "-made", "a") as log:
        log.write("x")
    with path.open("w") as file:
        for _ in range(20):
            file.write("line\\n"); file.flush(); time.sleep(0.01)
print(cache.made("a", make).read_text().count("line"))
"""


def test_of_several_processes_one_makes_it_and_all_get_the_whole(fresh):
    command = [sys.executable, "-c", TOGETHER]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0] for process in processes] == ["20\n"] * 4
    assert Path(f"{fresh}-made").read_text() == "x" and [path.name for path in fresh.iterdir()] == ["a"]


EXCHANGED = """
import os, time
from omnikit import cache
def make(path):
    with open(os.environ["OMNIKIT_CACHE"] + "-made", "a") as log:
        log.write("x")
    other = path.with_name(f"other {os.getpid()}")
    other.write_text("whole")
    os.replace(other, path)
    print("exchanged", flush=True)
    time.sleep(1.5)
print(cache.made("a", make).read_text())
"""


def test_a_file_that_its_writer_exchanges_is_still_his_alone(fresh):
    """As safetensors writes: into another file, which it then gives the name."""
    command = [sys.executable, "-c", EXCHANGED]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "exchanged\n"
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (first.communicate()[0], second.stdout, second.stderr) == ("whole\n", "whole\n", "")
    assert Path(f"{fresh}-made").read_text() == "x" and [path.name for path in fresh.iterdir()] == ["a"]


def test_processes_whose_files_cannot_be_locked_still_get_the_whole(fresh, monkeypatch):
    monkeypatch.setattr(cache, "_lock", lambda file: False)
    assert cache.made("a", lambda path: path.write_text("whole")).read_text() == "whole"
    assert (fresh / "a").exists()


@pytest.mark.parametrize("kind", ["a file in its place", "a full disk"])
def test_a_cache_that_cannot_be_written_fails_no_run(tmp_path, fresh, monkeypatch, kind):
    path = tmp_path / "a.jsonl"
    path.write_text(LINE * 3)
    if kind == "a full disk":
        fresh.mkdir()
        sync = cache.sync
        monkeypatch.setattr(cache, "sync", lambda path: _full() if fresh in path.parents else sync(path))
    else:
        fresh.write_text("in the way")
    data = Jsonl(path=str(path), modalities=("image",)).open()
    assert len(data) == 3 and data[2].turns and (kind == "a file in its place" or not list(fresh.iterdir()))
    assert isinstance(data.rows._places[0].table, np.memmap), "in a folder that ends with the process"
    monkeypatch.setattr(cache, "_temporary", lambda: tmp_path / "a.jsonl" / "no folder")
    again = Jsonl(path=str(path), modalities=("image",)).open()
    assert [one.turns for one in again] == [one.turns for one in data], "in memory, where nothing can be written at all"


def _full():
    raise OSError(28, "No space left on device")


def test_a_damaged_entry_costs_time_alone(tmp_path, fresh):
    path = tmp_path / "a.jsonl"
    path.write_text(LINE * 3)
    source = Jsonl(path=str(path), modalities=("image",))
    assert len(source.open()) == 3
    [entry] = fresh.glob("lines-*")
    entry.write_bytes(entry.read_bytes()[:-8])
    assert len(source.open()) == 3 and source.open()[2]


def test_the_index_is_kept_and_mapped(tmp_path, fresh):
    path = tmp_path / "a.jsonl"
    path.write_text(LINE * 3)
    for _ in range(2):
        data = Jsonl(path=str(path), modalities=("image",)).open()
        assert len(data) == 3 and isinstance(data.rows._places[0].table, np.memmap)
    assert len(list(fresh.glob("lines-*.npy"))) == 1


def test_a_digest_is_remembered_and_follows_the_file(tmp_path, fresh, settled, monkeypatch):
    path = tmp_path / "a"
    path.write_text("one")
    first = cache.digest(path)
    import hashlib

    assert first == hashlib.sha256(b"one").hexdigest()
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("was hashed again"))
    assert cache.digest(path) == first
    monkeypatch.undo()
    monkeypatch.setenv("OMNIKIT_CACHE", str(fresh))
    stamp = path.stat()
    path.write_text("two")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # of the same size and, it claims, of the same time
    assert cache.digest(path) == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_was_just_written_is_hashed_again(tmp_path, fresh):
    path = tmp_path / "a"
    path.write_text("one")
    cache.digest(path)
    assert not fresh.exists(), "its time stamp may not tell of a change right after"
