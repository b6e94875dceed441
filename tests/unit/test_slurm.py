"""Two processes as `srun` starts them meet without a launcher: by SLURM's variables, and a `scontrol` of the test's."""

import os
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import os
from omnikit.distributed import joined
with joined() as world:
    met = world.union({world.rank: (world.size, os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])})
    print(sorted(met.items()))
"""
LAUNCHED = ("MASTER_", "SLURM_", "RANK", "WORLD_", "LOCAL_", "TORCHELASTIC_")
"""What names of variables begin with that say how a process was launched."""


def free_port():
    """A port that nobody has, of those that are made of a job's number."""
    for port in range(20_000 + os.getpid() % 10_000, 40_000):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("every port is taken")


@pytest.mark.parametrize("said", ["job", "port"])
def test_the_tasks_of_a_step_meet_at_its_first_node(tmp_path, said):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] && printf "127.0.0.1\\nnode2\\n"\n')
    scontrol.chmod(0o755)
    port = free_port()
    environ = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHED)}
    environ |= {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_LOCALID": "0",
        # Two jobs on one machine would have one port, so a job may say its own.
        **({"MASTER_PORT": str(port), "SLURM_JOB_ID": "7"} if said == "port" else {"SLURM_JOB_ID": str(port - 20_000)}),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=environ | {"SLURM_PROCID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    here = (2, "127.0.0.1", str(port))
    assert [out.strip() for out, _ in told] == [str([(0, here), (1, here)])] * 2, told
