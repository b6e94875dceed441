"""A scheduler that wants its machines back sends SIGTERM or SIGUSR1: the run saves at its step's end, and leaves.

Where no step is being made (data are indexed, features made, a stage begins) it leaves at once: what is done is kept.
"""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

TRY_AGAIN = 75
"""The exit code of a run that stopped because it was asked to (EX_TEMPFAIL of sysexits.h): the same command goes on."""
SIGNALS = ("SIGTERM", "SIGUSR1")
SAME = 5.0
"""Seconds in which a signal that comes again is the same one: a scheduler sends it to all processes of a job, and the
launcher, which is one of them, passes it on to the ranks."""


class Interrupted(Exception):
    """The run was asked to stop, and has saved."""


def leave() -> None:
    """From here on the process only leaves: a signal that comes late does not kill it before it has said why."""
    for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
        signal.signal(number, signal.SIG_IGN)


class Requests:
    """While entered, one of these signals ends the process at once, with `TRY_AGAIN`. While it is told to `defer`, the
    first is remembered in `asked` instead; of the same kind and within `SAME` seconds another is no second one.
    """

    def __init__(self, speaks: bool = True) -> None:
        """`speaks`: it says why it ends the process between steps; one of several ranks is enough."""
        self._speaks, self._defers = speaks, False
        self.asked = ""
        """The name of the signal that came; empty as long as none has."""
        self._since = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python lets no one listen
            numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
            self._before = {number: signal.signal(number, self._come) for number in numbers}
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]

    def defer(self, does: bool) -> None:
        """Whether a signal is remembered, for whoever makes steps to look at, or ends the process."""
        self._defers = does
        if self.asked and not does:
            self._leave()

    def _leave(self) -> None:
        if self._speaks:  # not by print: this may be a handler that interrupted one
            shown = "\x1b[?25h\n" if os.isatty(2) else ""  # bars of progress hide the cursor
            os.write(2, f"{shown}{self.asked}: stopped between steps; the same command goes on\n".encode())
        os._exit(TRY_AGAIN)

    def _come(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self.asked:
            self.asked, self._since = name, time.monotonic()
            if not self._defers:
                self._leave()
        elif name != self.asked or time.monotonic() - self._since > SAME:
            os._exit(TRY_AGAIN)
