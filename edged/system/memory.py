"""Memory of the board."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return the memory available without swapping: MemAvailable of proc_meminfo(5), or no limit if hidden."""
    with suppress(OSError):  # ProcSubset=pid and a bare chroot have no such file
        for line in meminfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    return sys.maxsize
