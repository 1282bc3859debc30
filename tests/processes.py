"""Several processes: two forks of a test that share a process group, and a trainer under torchrun."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent


def launch(module: str, arguments: list[str], processes: int) -> None:
    """Runs `python -m module` under torchrun, on the CPU."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", module]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *launcher, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def in_two(work: Callable[[int], Any], timeout: float) -> list[Any]:
    """What `work(rank)` returns in two processes joined by gloo, in no order; plain Python, as it is pickled."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_join, args=(work, rank, port, queue), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=timeout) for _ in processes]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return results


def _join(work, rank, port, queue):
    store = torch.distributed.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    queue.put(work(rank))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
