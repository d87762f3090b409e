"""How much memory there is, so that what cannot fit is refused before it is begun."""

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["available_memory", "gigabytes"]


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
