"""What this machine is, as far as it decides results and speed."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from opnorm import __version__

__all__ = ["about"]

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Instruction sets that decide the speed of a network on a CPU."""


def about(device: str = "cpu") -> dict[str, Any]:
    """The versions, the instruction sets (those that torch uses, after any restriction), the threads, the device."""
    flags = _cpu_flags()
    found: dict[str, Any] = {
        "opnorm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "instruction sets": " ".join(flag for flag in FLAGS if flag in flags) or "not known",
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
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return []
    return next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
