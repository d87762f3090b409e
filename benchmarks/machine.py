"""What every benchmark prints about the machine, its options, and how it measures."""

import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from opnorm._core.machine import about

__all__ = [
    "about",
    "add_options",
    "begin",
    "peak_memory",
    "resident",
    "seconds",
    "synchronize",
    "used_seconds",
]


def add_options(parser: ArgumentParser, threads: int | list[int] = 1, device: str = "cpu") -> None:
    """The options of every benchmark: --device, --threads (several where a list is the default) and --json."""
    several = {"nargs": "+"} if isinstance(threads, list) else {}
    parser.add_argument("--device", default=device, help="cpu, cuda or cuda:1")
    parser.add_argument("--threads", type=int, default=threads, help="of the CPU", **several)  # type: ignore[arg-type]
    parser.add_argument("--json", type=Path, help="write the figures here")


def begin(
    parser: ArgumentParser, args: Namespace, packages: Sequence[str] = (), *, cpu_only: bool = False
) -> dict[str, Any]:
    """Check the device, set the (first) number of threads, and print and return what decides the figures.

    Args:
        parser: refuses a device that is not there.
        args: of :func:`add_options`.
        packages: those that are measured beside opnorm, whose versions are told.
        cpu_only: refuse any other device.
    """
    if cpu_only and args.device != "cpu":
        parser.error(f"--device {args.device}: what this measures runs on the CPU; expected cpu")
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch sees no GPU here; expected cpu")
    torch.set_num_threads(args.threads if isinstance(args.threads, int) else args.threads[0])
    found = about(args.device) | {"threads": args.threads} | {name: _version(name) for name in packages}
    for name, value in found.items():
        print(f"{name:>28}  {value}", flush=True)
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def used_seconds(device: str = "cpu") -> float:
    """A clock: seconds of the processor, which other programs disturb least; on a GPU wall seconds, after its kernels."""
    synchronize(device)
    return time.process_time() if torch.device(device).type == "cpu" else time.perf_counter()


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
