"""Two ways to do a thing, timed side by side."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

REPEATS = 5


def compare(ours: Callable[[], None], theirs: Callable[[], None], device: str) -> tuple[float, float]:
    """Median seconds of each, interleaved after a round of warm-up."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(REPEATS + 1):
        for call, kept in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first round warms up
                kept.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def reset_peak() -> None:
    """Forgets the peak memory of this process so far."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> float:
    """Peak resident memory of this process since `reset_peak`."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def in_own_process(measure: Callable[..., Any], *arguments: Any) -> Any:
    """What `measure(*arguments)` returns in a new process, whose memory no earlier row has used."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()
