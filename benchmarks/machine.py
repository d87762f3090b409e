"""What every benchmark prints about the machine, and how every benchmark measures."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import opnorm

FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "amx_bf16",
)  # instruction sets that decide the speed of a network on a CPU


def about(device: str = "cpu") -> dict[str, Any]:
    """The versions, the instruction sets (those that torch uses, after any restriction), the threads, the device."""
    found: dict[str, Any] = {
        "opnorm": opnorm.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "instruction sets": " ".join(flag for flag in FLAGS if flag in _cpu_flags()) or "not known",
        "used by torch": torch.backends.cpu.get_cpu_capability(),
        "ONEDNN_MAX_CPU_ISA": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "threads": torch.get_num_threads(),
        "device": device,
    }
    if torch.device(device).type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def _cpu_flags() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return []
    return next((line.split() for line in text.splitlines() if line.startswith("flags")), [])


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
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    """MiB, of this process, as Linux counts them."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(field))
