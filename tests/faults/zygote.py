"""Starts ranks at once: it imports torch and omnikit, and then forks a process for each rank it is asked for.

A fresh rank takes seconds to import what it needs, and a fault suite starts hundreds. Orders come as lines of JSON on
stdin; for each it answers with the ranks' process ids, and, when all have ended, with [exit code, seconds] of each.
"""

import json
import os
import signal
import sys
import time

import omnikit_whisper.module  # noqa: F401

sys.path.insert(0, os.path.dirname(__file__))
import start


def begin(order, rank):
    """In the child: become a rank. Never returns."""
    signal.alarm(order["limit"])  # whatever happens to the tests, no rank outlives this
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, end in ((1, "out"), (2, "err")):
        path = os.path.join(order["logs"], f"rank{rank}.{end}")
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.environ |= order["environ"]
    if order["ranks"] > 1:
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": order["ranks"], "LOCAL_WORLD_SIZE": order["ranks"]}
        os.environ |= {name: str(value) for name, value in told.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(order["port"])}
    code = 1
    try:
        start.main(order["call"], order["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main():
    """Orders until stdin ends."""
    assert len(os.listdir("/proc/self/task")) == 1, "forking with threads may hang"
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        began, pids = time.monotonic(), {}
        for rank in range(order["ranks"]):
            if not (pid := os.fork()):
                begin(order, rank)
            pids[pid] = rank
        print(json.dumps(list(pids)), flush=True)
        ends = [None] * order["ranks"]
        while pids:
            pid, status = os.waitpid(-1, 0)
            ends[pids.pop(pid)] = (os.waitstatus_to_exitcode(status), time.monotonic() - began)
        print(json.dumps(ends), flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)  # nothing of its own needs tidying, and torch takes long to
