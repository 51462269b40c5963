"""Counters of the kernel about a process, and a trace of any counter."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import numpy as np


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of a process, by the clock that clock_getcpuclockid(3) derives of a pid."""
    return time.clock_gettime(~pid << 3 | 2)


def resident_bytes(pid: int, *, peak: bool = False) -> int:
    """Return the resident memory of a process, or its peak since the start or `forget_peak`."""
    return _field(Path(f"/proc/{pid}/status"), "VmHWM" if peak else "VmRSS") * 1024


def forget_peak(pid: int) -> None:
    """Reset the peak of the resident memory of a process."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def waits(pid: int) -> int:
    """Return how often the threads of a process have gone to sleep: their voluntary context switches."""
    return sum(_field(task / "status", "voluntary_ctxt_switches") for task in Path(f"/proc/{pid}/task").iterdir())


class Trace:
    """Growing number over time, as the CPU time of a process, read every millisecond until the end of the block."""

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read
        self._readings: list[tuple[float, float]] = []
        self._ended = Event()
        self._thread = Thread(target=self._follow)

    def at(self, when: float) -> float:
        """Return the number at a time, in Unix seconds."""
        times, numbers = zip(*self._readings, strict=True)
        return float(np.interp(when, times, numbers))

    def __enter__(self) -> Trace:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(0.001)
            number = self._read()
            self._readings.append((time.time(), number))


def _field(status: Path, name: str) -> int:
    """Return a number of a status file in proc(5)."""
    for line in status.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ProcessLookupError(f"{status.parent} is gone")
