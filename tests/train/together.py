"""Several runs of the command line, one after another, in processes that torchrun starts once: starting them
is what is slow.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from torch.distributed.fsdp import FSDPModule

NEEDS_SHARDS = pytest.mark.skipif(
    not hasattr(FSDPModule, "set_reduce_scatter_unused_params"), reason="models in shards need torch 2.13"
)
COMMAND = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def torchrun(*words: str, processes: int = 2, cwd: Path) -> subprocess.CompletedProcess:
    """`preftune WORDS` under torchrun."""
    command = [*COMMAND, str(processes), "-m", "preftune"]
    return subprocess.run(
        [*command, *words], capture_output=True, text=True, cwd=cwd, timeout=300, env=environment()
    )


def run_all(
    jobs: Sequence[Sequence[str]], cwd: Path, processes: int = 2, *how: str
) -> subprocess.CompletedProcess:
    """Each job is the words after `preftune`; an error if one does not end well in all processes."""
    (cwd / "jobs.json").write_text(json.dumps(list(jobs)))
    done = subprocess.run(
        [*COMMAND, str(processes), __file__, "jobs.json", *how],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done


def all_fail(jobs: Sequence[Sequence[str]], cwd: Path, processes: int = 2) -> list[list[tuple[int, str]]]:
    """Of each job (status, standard error) of each process; none ends the processes."""
    run_all(jobs, cwd, processes, "--fail")
    return [[_told(cwd / _errors(index, rank)) for rank in range(processes)] for index in range(len(jobs))]


def _errors(index: int, rank: int) -> str:
    return f"errors-{index}-{rank}.txt"


def _told(path: Path) -> tuple[int, str]:
    found = re.fullmatch(r"(.*)status (\d+)\n", path.read_text(), re.DOTALL)
    assert found is not None, path
    return int(found[2]), found[1]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def _run_jobs(path: str, may_fail: bool) -> int:
    from torch.distributed import TCPStore

    from preftune.cli.main import main

    # Each run meets anew, which torchrun's own store is not made for: that store only carries the ports. The
    # first process chooses a port right before its use, as another program may take one that was free earlier.
    ports = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    rank = int(os.environ["RANK"])
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    for index, words in enumerate(json.loads(Path(path).read_text())):
        if rank == 0:
            ports.set(f"port-{index}", str(free_port()))
        os.environ["MASTER_PORT"] = ports.get(f"port-{index}").decode()
        if may_fail:
            with open(_errors(index, rank), "w") as file, redirect_stderr(file):
                print(f"status {main(words)}", file=file)
            continue
        status = main(words)
        if status:
            print(f"status {status}: {' '.join(words)}", file=sys.stderr)
            return status
    return 0


if __name__ == "__main__":
    ended = _run_jobs(sys.argv[1], may_fail="--fail" in sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended)  # as preftune.__main__ does
