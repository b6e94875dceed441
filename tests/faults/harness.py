"""What the fault tests share: ranks that start at once, ranks under the launcher, and who is left when they end."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

from omnikit.checkpoint import MEASURED, RunFolder, verify

HERE = Path(__file__).parent
FULL = os.environ.get("FAULTS_FULL") == "1"
"""Whether counts are those of `make faults-full`."""
ENVIRON = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PATIENCE = 240
"""Seconds until ranks that do not end are called hung."""


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def alive(pid):
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Started:
    """Ranks that run."""

    def __init__(self, zygote, pids, logs):
        self.zygote, self.pids, self.logs = zygote, pids, logs
        self.codes, self.seconds = None, None

    def wait(self, timeout=PATIENCE):
        """The exit codes, by rank (a signal is negative). Ranks that do not end in time are killed: a failure."""
        if self.codes is None:
            line = self.zygote.line(timeout)
            late = line is None
            if late:
                self.kill()
                line = self.zygote.line(30)
            ends = json.loads(line)
            self.codes, self.seconds = [code for code, _ in ends], [taken for _, taken in ends]
            assert not late, f"after {timeout} s the ranks had not ended; {self.told()}"
        return self.codes

    def kill(self, *ranks, number=signal.SIGKILL):
        """Send a signal to these ranks, by default all."""
        for rank in ranks or range(len(self.pids)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pids[rank], number)

    def err(self, rank):
        """What a rank wrote to stderr."""
        path = self.logs / f"rank{rank}.err"
        return path.read_text(errors="replace") if path.is_file() else ""

    def told(self):
        """What all ranks wrote to stderr."""
        return "\n".join(f"--- rank {rank}\n{self.err(rank)}" for rank in range(len(self.pids)))


class Zygote:
    """Starts ranks, one world at a time."""

    def __init__(self, logs):
        self.logs, self.number, self.started = logs, 0, None
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ENVIRON, "TORCH_CPP_LOG_LEVEL": "ERROR"},  # as the launcher has it
        )
        self.rest = b""
        assert self.line(PATIENCE) == "ready"

    def line(self, timeout):
        """Its next line; None when there is none in time."""
        until = time.monotonic() + timeout
        while b"\n" not in self.rest:
            if not select.select([self.process.stdout], [], [], max(0, until - time.monotonic()))[0]:
                return None
            part = os.read(self.process.stdout.fileno(), 65536)
            assert part, "the zygote is gone"
            self.rest += part
        line, _, self.rest = self.rest.partition(b"\n")
        return line.decode()

    def start(self, *arguments, ranks=2, call="omnikit", faults=(), limit=300, **environ):
        """Start ranks with `omnikit ARGUMENTS`, or a function of this folder. `faults` are (name, arguments)."""
        if self.started and self.started.codes is None:  # of a test that failed
            self.started.kill()
            self.started.wait(30)
        self.number += 1
        logs = self.logs / str(self.number)
        logs.mkdir()
        told = [("small_windows", {}), *faults]
        order = {
            "ranks": ranks,
            "call": call,
            "arguments": [str(a) if isinstance(a, Path) else a for a in arguments],
            "logs": str(logs),
            "port": free_port(),
            "limit": limit,
            "environ": {"FAULTS": json.dumps(told), "OMNIKIT_CACHE": os.environ["OMNIKIT_CACHE"], **environ},
        }
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        self.started = Started(self, json.loads(self.line(30)), logs)
        return self.started

    def run(self, *arguments, timeout=PATIENCE, codes=(0,), **named):
        """Start ranks and wait: they must all end well, or as `codes` say."""
        started = self.start(*arguments, **named)
        assert set(started.wait(timeout)) == set(codes), started.told()
        return started

    def close(self):
        if self.started and self.started.codes is None:
            self.started.kill()
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


class Launcher:
    """`omnikit train ... --nproc N` in a session of its own; all its processes carry a mark by which they are found."""

    def __init__(self, folder, arguments, faults=(), **environ):
        self.mark = f"OMNIKIT_FAULTS_MARK={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        # torchrun starts ranks with sys.executable and `-m omnikit`: here with what puts the faults in.
        shim = folder / f"{value[:8]}.sh"
        shim.write_text(f'#!/bin/sh\nshift 2\nexec "{sys.executable}" "{HERE / "start.py"}" "$@"\n')
        shim.chmod(0o755)
        code = f"import sys; sys.executable = {str(shim)!r}; import omnikit.cli; omnikit.cli.main()"
        told = [("small_windows", {}), *faults]
        self.log = folder / f"{value[:8]}.err"
        with self.log.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
                env={**os.environ, **ENVIRON, "FAULTS": json.dumps(told), name: value, **environ},
            )

    def left(self):
        """Process ids of what lives of it, the launcher too."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in path.read_bytes().split(b"\0") and alive(int(path.parent.name)):
                    found.append(int(path.parent.name))
        return found

    def rank(self, number):
        """The process id of a rank; None where it is not there."""
        for pid in self.left():
            with contextlib.suppress(OSError):
                if f"RANK={number}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    # readers' workers are its children and have its environment
                    if b"start.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        return pid
        return None

    def wait(self, timeout=PATIENCE):
        """The exit code; a launcher that does not end in time is killed with all it started: a failure."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"after {timeout} s it had not ended; {self.told()}") from None

    def gone(self, timeout):
        """Seconds until nothing of it lives; a failure, and killed, where that takes too long."""
        began = time.monotonic()
        while left := self.left():
            if time.monotonic() - began > timeout:
                self.kill()
                raise AssertionError(f"{len(left)} processes still live after {timeout} s; {self.told()}")
            time.sleep(0.05)
        return time.monotonic() - began

    def kill(self):
        """kill -9 to all of it, by process id."""
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=30)

    def told(self):
        return self.log.read_text(errors="replace")


# ------------------------------------------------------------------------------------------------------ runs and files


def lines_of(folder):
    """How many lines of metrics a run has."""
    path = Path(folder) / "metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def wait_for(happened, timeout=PATIENCE):
    """Until happened() is true."""
    until = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < until, f"it has not come in {timeout} s"
        time.sleep(0.01)


def metrics_of(folder):
    """The lines of metrics.jsonl without what is measured."""
    return [
        {key: value for key, value in line.items() if key not in MEASURED} for line in RunFolder(Path(folder)).metrics()
    ]


def checkpoints_of(folder, stages):
    """The bytes of every file of every committed checkpoint: of the last of a stage, and of one with an optimizer."""
    run = RunFolder(Path(folder))
    return {
        (stage, found.step, path.name): path.read_bytes()
        for stage in stages
        for found in run.committed(stage)
        for path in sorted(found.folder.iterdir())
    }


def check_same(whole, other, stages):
    """Two runs ended bitwise alike: weights, optimizer states, and every line of metrics."""
    expected, found = checkpoints_of(whole, stages), checkpoints_of(other, stages)
    assert found.keys() == expected.keys()
    differ = [name for name, content in expected.items() if found[name] != content]
    assert not differ, f"other bytes: {differ}"
    assert metrics_of(other) == metrics_of(whole)


def check_committed(folder, stages):
    """Nothing that is committed is bad."""
    for stage in stages:
        for found in RunFolder(Path(folder)).committed(stage):
            assert verify(found.folder) is None, f"{found.folder}: committed but bad"
