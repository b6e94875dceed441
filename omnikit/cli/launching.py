"""`omnikit train --nproc`: several processes on one machine, by what torchrun is made of."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from omnikit.interrupts import SIGNALS, TRY_AGAIN

PARTING = 45
"""Seconds that processes have to save and leave once they are asked to."""


def launch(nproc: int, max_restarts: int, arguments: Sequence[str]) -> int:
    """Run `omnikit` with these arguments in `nproc` processes that know of each other; the exit code of them all.

    Where one dies the others are ended, and all are started again up to `max_restarts` times.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):  # each has a level of its own
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # their own account of what is told here
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings tell of a lost rank in a page of C++ frames
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        monitor_interval=0.2,
        shutdown_timeout=PARTING,
        signals_to_handle=",".join((*SIGNALS, "SIGINT", "SIGHUP", "SIGQUIT")),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "omnikit", *arguments)
    except SignalException as error:
        asked = signal.Signals(error.sigval).name in SIGNALS
        return TRY_AGAIN if asked else 128 + error.sigval
    except ChildFailedError as error:
        # Who is killed takes the others along, and within one look of the launcher it may seem to be the later one.
        killed = [(rank, failure) for rank, failure in error.failures.items() if failure.exitcode < 0]
        rank, failure = killed[0] if killed else error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(
                f"rank {rank}: was ended by {name}; the same command again goes on from the last checkpoint",
                file=sys.stderr,
            )
            return 1
        return failure.exitcode
    return 0
