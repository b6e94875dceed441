"""Where media are surveyed and read: in worker processes, so that a decoder that crashes takes only itself with it.

A worker does one thing at a time for the one thread that has borrowed it. If it dies or does not answer in time, that
one medium is a `MediaError` and another worker takes its place: nothing else is lost. (grain and torch's DataLoader
end the whole run when a worker dies, `concurrent.futures` fails everything that is pending.) Workers are forked by
multiprocessing's server, which has imported the readers once; all of a process share them, and they end with it.

What a worker says is JSON and plain numbers, never a pickle: whoever takes over a decoder cannot have the run unpickle
anything. It is no sandbox, though: a worker may do what the run's user may.
"""

import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, NamedTuple

from omnikit.component import Grid, Input, Item, Medium, ReaderConfig
from omnikit.media import MediaError, MediaLimits, limited, too_slow

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import numpy as np

GRACE = 1.0
"""Seconds that a worker may be late with its own "takes too long" before it is killed, and that its end may take."""
START = 120.0
"""Seconds that a new worker may take to say that it is there: its server imports the readers first."""


class Reading(NamedTuple):
    """How media are read: within these limits, in so many workers (0: in this process, where a crash ends the run).

    What comes out is the same for any number of workers. Whatever a reader raises becomes one line, a ValueError.
    """

    limits: MediaLimits = MediaLimits()
    workers: int = 0

    def grids(self, reader: ReaderConfig, medium: Medium, input: Input) -> list[Grid]:
        """The grids that the reader can give for this medium, largest first."""
        if not self.workers:
            return _called(self.limits, reader, "grids", medium, input)
        with _borrowed(self.workers) as worker:
            return [_grid(found) for found in worker.ask(self.limits, reader, "grids", medium, input)]

    def read(self, reader: ReaderConfig, medium: Medium, input: Input, grid: Grid) -> Item:
        """The medium as an Item; its value is an array."""
        if not self.workers:
            return _called(self.limits, reader, "read", medium, input, grid)
        with _borrowed(self.workers) as worker:
            value, found = worker.ask(self.limits, reader, "read", medium, input, grid)
            return Item(value, _grid(found))


def prepare(readers: Iterable[ReaderConfig]) -> None:
    """Let the workers' server start and import these readers, while this process goes on."""
    modules = sorted({type(reader).__module__ for reader in readers})
    # By convention a plugin's decoding stands in its `reader.py`, imported late; where there is none, nothing happens.
    _context.set_forkserver_preload(["__main__", __name__, *modules, *(f"{module}.reader" for module in modules)])
    with suppress(ChildProcessError):  # in a process that was forked from one with a server: workers will say so
        forkserver.ensure_running()


def _grid(found: Any) -> Grid:  # noqa: ANN401
    t, h, w = map(int, found)
    return t, h, w


def _called(limits: MediaLimits, reader: ReaderConfig, method: str, medium: Medium, *rest: Any) -> Any:  # noqa: ANN401
    """What the reader says. Whatever it raises is a MediaError of one line that names the medium."""
    try:
        with limited(limits):
            found = getattr(reader, method)(medium, *rest)
        return _plain(found, reader, method, medium)
    except (KeyboardInterrupt, SystemExit):  # in the run's own process: what a signal's handler means is the run
        raise
    except MemoryError as error:
        told = f"{medium}: needs more memory than the limit of {limits.memory_bytes:,} bytes to read; make it smaller"
        cause: BaseException = error
    except ValueError as error:
        told = str(error) if str(medium) in str(error) else f"{medium}: {_reason(error)}"
        cause = error
    except BaseException as error:
        told, cause = _failure(reader, medium, error), error
    raise _media_error(told) from cause


def _failure(reader: ReaderConfig, medium: Medium, error: BaseException) -> str:
    what = f"{type(error).__name__}: {_reason(error)}"
    return f"{medium}: the reader {type(reader).type} failed ({what}); replace the file, or mend the reader"


def _plain(found: Any, reader: ReaderConfig, method: str, medium: Medium) -> list[Grid] | Item:  # noqa: ANN401
    """The grids or the Item that the reader gave, in plain numbers, which is what workers can say."""
    import numpy as np

    with suppress(TypeError, ValueError):
        if method == "grids" and (grids := [_grid(one) for one in found]):
            return grids
        if method == "read":
            value, grid = found
            if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
                return Item(np.ascontiguousarray(value), _grid(grid))
    wanted = "grids (t, h, w)" if method == "grids" else "array of numbers and its grid"
    raise MediaError(f"{medium}: the reader {type(reader).type} gave no {wanted}; mend the reader")


def _media_error(told: str) -> MediaError:
    """An error of one line, whatever there is in a file's name."""
    return MediaError("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in told))


def _reason(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())[:300]
    except Exception:  # a __str__ that fails
        return "it does not say why"


# ------------------------------------------------------------------------------------------------ in the run's process

_context = multiprocessing.get_context("forkserver")


class _Worker:
    """One worker process and the line to it."""

    def __init__(self) -> None:
        self.line, theirs = _context.Pipe()
        self.process = _context.Process(target=_serve, args=(theirs,), daemon=True)
        try:
            self.process.start()
            theirs.close()
            if not self.line.poll(START) or self.line.recv_bytes() != b"ready":
                raise EOFError
        except (EOFError, OSError) as error:
            if self.process.pid is not None:
                self.process.kill()
            self.line.close()
            raise ValueError(
                "run.workers: no worker can be started to read media (the output above may say why); "
                "try run.workers: 0, which reads in the run's own process"
            ) from error

    def ask(self, limits: MediaLimits, reader: ReaderConfig, method: str, medium: Medium, *rest: Any) -> Any:  # noqa: ANN401
        """What the reader's method says of the medium, as JSON has it; of an item, (array, grid).

        A medium that cannot be read, or at which the worker dies or is late, is a MediaError.
        """
        try:
            request = pickle.dumps((limits, reader, method, medium, *rest))
        except Exception as error:  # whatever the reader's own pickling raises
            raise ValueError(f"reader {type(reader).type}: cannot travel to a worker ({_reason(error)})") from error
        try:
            self.line.send_bytes(request)
            if not self.line.poll(limits.read_seconds + GRACE):
                raise _media_error(too_slow(medium, limits))
            answer = json.loads(self.line.recv_bytes())
            if "shape" in answer:
                answer["value"] = self._array(answer["shape"], answer["dtype"]), answer["grid"]
        except (EOFError, OSError) as error:
            self.end(patience=5.0)  # for the exit code of its own death
            raise _media_error(
                f"{medium}: the decoder died of it ({_death(self.process.exitcode)}); replace the file"
            ) from error
        except BaseException:  # what it may yet say would be taken for the answer to the next question
            self.end()
            raise
        if "error" in answer:
            raise MediaError(str(answer["error"]))
        return answer["value"]

    def _array(self, shape: list[int], dtype: str) -> "np.ndarray":
        import numpy as np

        value = np.empty(shape, np.dtype(dtype))
        self.line.recv_bytes_into(value.reshape(-1).view(np.uint8).data)
        return value

    def end(self, patience: float = 0.0) -> None:
        """Kill it, if it does not die within so many seconds."""
        with _changing:  # join and start of processes must not meet
            self.process.join(patience)
            self.process.kill()
            self.process.join(GRACE)  # not for ever: a file on a dead network disk holds even who is killed
            self.line.close()


def _death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = {known.value: known.name for known in signal.Signals}.get(-code, f"signal {-code}")
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name


_idle: list[_Worker] = []
_busy: set[_Worker] = set()
_changing = threading.Condition()


@contextmanager
def _borrowed(workers: int) -> Iterator[_Worker]:
    """A worker that nobody else has meanwhile: an idle one, a new one while there are fewer, or the next one free."""
    with _changing:
        while True:
            while _idle and not _idle[-1].process.is_alive():
                _idle.pop()
            if _idle or len(_busy) < workers:
                worker = _idle.pop() if _idle else _Worker()
                _busy.add(worker)
                break
            _changing.wait()
    try:
        yield worker
    finally:
        with _changing:
            _busy.discard(worker)
            if not worker.line.closed:
                _idle.append(worker)
            _changing.notify()


def _forget() -> None:
    """A forked process has no workers: those of its parent must not hear two voices."""
    global _changing
    _idle.clear()
    _busy.clear()
    _changing = threading.Condition()


os.register_at_fork(after_in_child=_forget)


# -------------------------------------------------------------------------------------------------------- in a worker


def _serve(line: "Connection") -> None:
    """A worker's life: to answer, until nobody is there any more to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's business
    os.dup2(2, 1)  # what a decoder prints is no result of the command
    os.environ["OMP_NUM_THREADS"] = "1"  # for what is imported from here on
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    line.send_bytes(b"ready")
    with suppress(EOFError, ConnectionError):
        while True:
            request, array = line.recv_bytes(), None
            try:
                question = ForkingPickler.loads(request)
            except Exception as error:  # a module that is not there, or anything else that importing raises
                answer: dict[str, Any] = {"error": f"the reader cannot be loaded in a worker ({_reason(error)})"}
            else:
                answer, array = _answer(*question)
            line.send_bytes(json.dumps(answer).encode())
            if array is not None:
                line.send_bytes(array)
            signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(
    limits: MediaLimits,
    reader: ReaderConfig,
    method: str,
    medium: Medium,
    *rest: Any,  # noqa: ANN401
) -> "tuple[dict[str, Any], memoryview | None]":
    import numpy as np

    # Should the run be killed while this hangs, nobody else would end it: an alarm is the kernel's.
    signal.setitimer(signal.ITIMER_REAL, limits.read_seconds + 2 * GRACE)
    _cap_memory(limits.memory_bytes)
    try:
        found = _called(limits, reader, method, medium, *rest)
    except ValueError as error:
        return {"error": str(error)}, None
    except SystemExit as error:
        return {"error": str(_media_error(_failure(reader, medium, error)))}, None
    if method == "grids":
        return {"value": found}, None
    array, grid = found
    return {"shape": array.shape, "dtype": array.dtype.str, "grid": grid}, array.reshape(-1).view(np.uint8).data


def _cap_memory(most: int) -> None:
    """Let this process grow by so many bytes and no more; what is beyond fails as if there were no memory."""
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[5]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = used + most if hard == resource.RLIM_INFINITY else min(used + most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
