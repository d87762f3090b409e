"""What every benchmark prints about the machine, and how every benchmark measures."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from opnorm._core.machine import about

__all__ = ["about", "peak_memory", "resident", "seconds", "synchronize"]


def synchronize(device: str) -> None:
    """Wait for the kernels of a GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(ways: dict[str, Callable[[], Any]], device: str = "cpu", turns: int = 5) -> dict[str, float]:
    """The median wall seconds of each of several functions, which run in turns; one more turn, the first, warms up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            synchronize(device)
            started = time.perf_counter()
            way()
            synchronize(device)
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(work: Callable[[], Any], device: str = "cpu") -> float | None:
    """MiB by which the memory grows at its peak while a function runs; None where the system does not count it."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now
    except OSError:
        return None
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """MiB of this process as Linux counts them: VmRSS is the resident memory now, VmHWM at its peak."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(field))
