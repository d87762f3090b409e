"""How much memory there is, so that what cannot fit is refused before it is begun; and memory that is used again at once.

The C library of Linux gives a freed tensor of some megabytes back to the system, and the next one of its size costs a fault
for each page of 4 kB: a fifth of a training step of ResNet-18. :func:`freed_memory_kept` is the remedy for long work,
:func:`small_frees_kept` for short work.
"""

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

__all__ = ["available_memory", "freed_memory_kept", "gigabytes", "small_frees_kept"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of malloc.h, glibc
_KEPT = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}
_USUAL = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 * 2**20, M_TRIM_THRESHOLD: 64 * 2**20}
"""What glibc sets by itself once a block of 32 MiB has been freed."""
_users, _lock = 0, threading.Lock()


def available_memory() -> int | None:
    """Bytes that this process can still take without swapping, in its container too; None where it is not known."""
    found: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # "max" where there is no limit
        limit, used = (
            int((group / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current")
        )
        rows = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        caches = (int(row.split()[1]) for row in rows if row.startswith(("active_file ", "inactive_file ")))
        found.append(max(0, limit - used + sum(caches)))  # caches of files give way
    if not found:
        with suppress(OSError, ValueError, AttributeError):  # no such name on Windows
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def gigabytes(count: float) -> str:
    """Bytes, in words."""
    return f"{count / 1e9:.3g} GB"


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within it, memory that tensors free stays with this process for the next ones; at its end the system gets it back.

    For work of seconds: at its end all free memory goes back, which small work that is done again and again would miss. No
    result depends on it. For the CPU: elsewhere than on Linux with glibc, or with another allocator, nothing changes.
    May be nested and used in several threads.
    """
    global _users
    library = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    with _lock:
        _users += 1
        if _users == 1:
            _set_malloc(library, _KEPT)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _set_malloc(library, _USUAL)
                if library:
                    library.malloc_trim(0)


def _set_malloc(library: ctypes.CDLL | None, options: dict[int, int]) -> None:
    for option, value in options.items():
        if library:
            library.mallopt(option, value)


@cache
def small_frees_kept() -> None:
    """From now on up to 64 MB of freed memory stay with this process for its next tensors.

    Without a change of settings: once a block of nearly 32 MiB has been freed, glibc gives memory back only where more than
    twice as much is free. The block is never written to, so it takes no memory. Elsewhere nothing changes.
    """
    import torch  # not needed by `opnorm doctor`

    torch.empty(31 * 2**20, dtype=torch.uint8)
