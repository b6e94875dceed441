"""Readers that misbehave, in a module of their own: workers must be able to import them."""

import ctypes
import os
import signal
import time

import numpy as np

from omnikit.component import Item, Pixels, ReaderConfig

GRID = (1, 1, 1)


class Mute(Exception):
    """Neither pickles nor tells what it is about."""

    def __init__(self, one, two):
        super().__init__()
        self.lock = open(os.devnull)

    def __str__(self):
        raise RuntimeError("no words")


def spin():
    while True:
        pass


def sleep_with_the_lock():
    """Hangs in C and keeps the interpreter's lock, so that no thread of the worker can do anything about it."""
    ctypes.PyDLL(None).sleep(60)


def take(number):
    """So many bytes, and use them."""
    return len(bytearray(number))


def take_in_c(number):
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    place = libc.malloc(number)
    if not place:
        raise OSError("cannot allocate memory")
    ctypes.memset(place, 1, number)


def run(code):
    raise code


WAYS = {
    "abort": os.abort,
    "segfault": lambda: ctypes.string_at(0),
    "exit at once": lambda: os._exit(3),
    "killed": lambda: os.kill(os.getpid(), 9),
    "spin": spin,
    "sleep with the lock": sleep_with_the_lock,
    "too much memory": lambda: take(2**32),
    "too much memory in C": lambda: take_in_c(2**32),
    "SystemExit": lambda: run(SystemExit(0)),
    "RuntimeError": lambda: run(RuntimeError("two\nlines")),
    "ValueError without a name": lambda: run(ValueError("axes do not match")),
    "an exception that does not pickle": lambda: run(Mute(1, 2)),
    "a BaseException": lambda: run(GeneratorExit("out")),
    "KeyboardInterrupt": lambda: run(KeyboardInterrupt()),
}


class Bad(ReaderConfig):
    """Reads a medium whose source is one of WAYS in that way; of any other it gives how it was read."""

    type = "bad"
    makes = Pixels
    surveys: bool = False
    """Misbehave when surveying already."""
    alarm: float = 0.0
    """Seconds until the worker's own alarm, in place of those that it was given."""

    def grids(self, medium, input):
        self.put_off()
        if self.surveys:
            WAYS[medium.source]()
        return [GRID]

    def put_off(self):
        if self.alarm:
            signal.setitimer(signal.ITIMER_REAL, self.alarm)

    def read(self, medium, input, grid):
        source = medium.source
        self.put_off()
        if source in WAYS:
            WAYS[source]()
        if source == "prints":
            print("printed", flush=True)
            os.write(1, b"written\n")
        if source == "threads":
            import torch

            return Item(np.full(grid, torch.get_num_threads(), np.float32), grid)
        if source == "list":
            return Item([1.0], grid)
        if source == "no item":
            return None
        if source == "numpy's numbers":
            return Item(np.zeros(grid), tuple(np.array(grid)))
        if source == "objects":
            return Item(np.array([[[print]]]), grid)
        if source == "slow":
            time.sleep(0.3)
        if source == "strided":
            return Item(np.arange(8, dtype=np.int16).reshape(2, 4).T, grid)
        return Item(np.full(grid, os.getpid(), np.float64), grid)


class Offering(Bad):
    """Offers what its media are called."""

    def grids(self, medium, input):
        return {"nothing": [], "None": None, "a side": [(3, 3)], "numpy's numbers": [tuple(np.array(GRID))]}[
            medium.source
        ]


class Crashing(ReaderConfig):
    """Surveys every picture as one view, and dies of reading it."""

    type = "crashing"
    makes = Pixels

    def grids(self, medium, input):
        return [(1, input.side, input.side)]

    def read(self, medium, input, grid):
        os.abort()
