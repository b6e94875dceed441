"""Helper processes: one that must stay without torch, a worker, and two that are the ranks of a group.

They are started when first needed, serve every further check (starting one costs seconds of importing torch), and end
with this process. They are told what to do through a pipe; nothing is read from elsewhere.
"""

import atexit
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from omnikit.testing.results import Fault, reason

__all__ = ["Helper", "ask_rank", "ask_ranks", "ask_worker", "clean_helper"]

START = "import sys; from omnikit.testing.processes import serve; serve(int(sys.argv[1]))"
STARTING = 300.0
"""Seconds that a helper may take to import torch, on a machine that does other things besides."""
SECONDS = 300.0
"""Seconds that a helper may take for a job, of which the first imports transformers. Collectives that wait for each
other in vain last as long."""

ALONG = 5.0
"""Seconds that a rank has to fail as well once another one has failed."""


class Helper:
    """A fresh Python that calls functions for us. What it imports is not imported here."""

    def __init__(self) -> None:
        ours, theirs = Pipe()
        self.connection = ours
        self.log = tempfile.TemporaryFile()
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the command line's JSON is not to be mixed with it
            stderr=self.log,
        )
        theirs.close()

    def send(self, function: Callable[..., object], *args: object) -> None:
        """Has the helper call a function, which it must be able to import. What cannot be pickled is a Fault."""
        try:
            job = ForkingPickler.dumps((function, args))
        except Exception as error:
            raise Fault(f"cannot be pickled ({reason(error)})") from error
        try:
            self.connection.send(sys.path)  # what can be imported here can be there, also what was added since
            self.connection.send_bytes(job)
        except OSError as error:
            raise Fault(f"the helper process has ended: {self._last_words()}") from error

    def receive(self, seconds: float) -> Any:  # noqa: ANN401  (whatever the function returns)
        """What the function returned; its exception is a Fault, and so is silence for so many seconds.

        A helper that is silent is ended: its answer would be taken for that to the next call.
        """
        if not self.connection.poll(seconds):
            self.close()
            raise Fault(f"no answer in {seconds:.0f} s")
        try:
            succeeded, answer = self.connection.recv()
        except (EOFError, OSError) as error:
            words = self._last_words()
            self.close()
            raise Fault(f"the helper process died: {words}") from error
        if not succeeded:
            raise Fault(answer)
        return answer

    def call(self, function: Callable[..., object], *args: object, seconds: float = SECONDS) -> Any:  # noqa: ANN401
        """`send`, then `receive`."""
        self.send(function, *args)
        return self.receive(seconds)

    @property
    def lives(self) -> bool:
        """Whether it can be called."""
        return not self.connection.closed and self.process.poll() is None

    def close(self) -> None:
        """Ends the process."""
        if self.connection.closed:
            return
        self.connection.close()
        self.process.kill()
        self.process.wait()
        self.log.close()

    def _last_words(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"


def serve(fd: int) -> None:
    """A helper's whole life: call what it is told to, answer, until the pipe is closed."""
    connection: Connection[Any, Any] = Connection(fd)
    while True:
        try:
            sys.path[:] = connection.recv()
            function, args = connection.recv()
        except EOFError:
            return
        except Exception as error:  # what was sent cannot be unpickled here
            connection.send((False, f"cannot be unpickled in another process ({reason(error)})"))
            continue
        try:
            answer = True, function(*args)
        except Exception as error:
            answer = False, str(error) if isinstance(error, Fault) else reason(error)
        try:
            connection.send(answer)
        except Exception as error:
            connection.send((False, f"its answer cannot be pickled ({reason(error)})"))


_started: dict[str, list[Helper]] = {}


def _helpers(role: str, number: int) -> list[Helper]:
    """So many helpers for a role: those that are there, or new ones where one of them has ended."""
    found = _started.get(role, [])
    if not found or not all(helper.lives for helper in found):
        for helper in found:
            helper.close()
        found = _started[role] = [Helper() for _ in range(number)]
        for helper in found:
            atexit.register(helper.close)
        if number > 1:
            # Left where it is until the end: the group may meet there again.
            folder = tempfile.TemporaryDirectory(prefix="omnikit-ranks-")
            atexit.register(folder.cleanup)
            try:
                for rank, helper in enumerate(found):
                    helper.send(join_group, rank, str(Path(folder.name, "meeting")))
                for helper in found:
                    helper.receive(STARTING)
            except Fault:  # what the others say of it would be taken for the answer to the next call
                for helper in found:
                    helper.close()
                raise
    return found


def clean_helper() -> Helper:
    """The helper that has not imported torch. Whoever makes it do so closes it."""
    return _helpers("clean", 1)[0]


def ask_worker(function: Callable[..., object], *args: object) -> Any:  # noqa: ANN401
    """What a function returns in a worker that has imported nothing yet, or what earlier calls needed."""
    return _helpers("worker", 1)[0].call(function, *args)


def ask_rank(function: Callable[..., object], *args: object) -> Any:  # noqa: ANN401
    """What a function returns on the first of the ranks, which serves as any worker with torch would."""
    return _helpers("ranks", 2)[0].call(function, *args)


def ask_ranks(function: Callable[..., object], *args: object, seconds: float = SECONDS) -> list[Any]:
    """What a function returns on each of two ranks of a gloo group. Where either fails, what both say is a Fault.

    After a failure both are ended: one of them may be waiting in a collective for ever.
    """
    helpers = _helpers("ranks", 2)
    try:
        for helper in helpers:
            helper.send(function, *args)
        deadline = time.monotonic() + seconds
        waiting, answers = list(helpers), {}
        while waiting:
            for helper in [one for one in waiting if one.connection.poll(0.01)]:
                waiting.remove(helper)
                try:
                    answers[helpers.index(helper)] = helper.receive(0)
                except Fault as fault:
                    raise _joint(helpers, helper, waiting, fault) from fault
            if waiting and time.monotonic() > deadline:
                raise Fault(f"rank {helpers.index(waiting[0])} gave no answer in {seconds:.0f} s")
    except Fault:
        for helper in helpers:
            helper.close()
        raise
    return [answers[rank] for rank in range(len(helpers))]


def _joint(helpers: list[Helper], failed: Helper, waiting: list[Helper], fault: Fault) -> Fault:
    """The failure of one rank, with what those say that it takes along: often its own is that another has gone."""
    told = [(helpers.index(failed), str(fault))]
    deadline = time.monotonic() + ALONG
    for helper in waiting:
        try:
            helper.receive(max(0.0, deadline - time.monotonic()))
        except Fault as other:
            told.append((helpers.index(helper), str(other)))
    return Fault("; ".join(f"rank {rank}: {words}" for rank, words in sorted(told)))


def join_group(rank: int, meeting: str) -> None:
    """In a helper: become a rank of a gloo group of two."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=STARTING)
    )
