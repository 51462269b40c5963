"""Bytes written to disk by a thread within a day: SD cards wear out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edged.outbox.segment_file import BytesWritten

DAY = 86_400.0


class DiskWear:
    """Bytes written by the keeper's thread within a day, as counted by the kernel; None without such a count.

    `measure` must run on the keeper's thread. A day begins with the first byte and ends 24 hours later. The day of an
    earlier boot goes on as if no time had passed between the boots, which may overstate the wear but never understates
    it.
    """

    def __init__(self, boot: str, clock: Callable[[], float], daily_bytes: int) -> None:
        self.written: int | None = 0
        self._daily_bytes = daily_bytes
        self._boot = boot
        self._clock = clock
        self._since = self._saved_at = clock()
        self._before = 0
        self._base: int | None = None

    @property
    def is_spent(self) -> bool:
        """True if the daily allowance of bytes is used up; an allowance of 0 is unlimited."""
        return 0 < self._daily_bytes <= (self.written or 0)

    def measure(self) -> None:
        """Read the kernel's count."""
        now = _written_by_this_thread()
        if now is None:
            self.written = None
            return
        if self._base is None or self._clock() - self._since > DAY:
            renewed = self._base is not None
            self._base = now
            if renewed:
                self._before, self._since = 0, self._clock()
        self.written = self._before + now - self._base

    def take_over(self, wear: BytesWritten | None) -> None:
        """Add the bytes written by an earlier process on the same day."""
        if wear is not None and self._before == 0:
            self._before = wear.bytes
            self._since = wear.since if wear.boot == self._boot else self._clock()

    @property
    def unsaved_for(self) -> float:
        """Seconds since the count was last saved."""
        return self._clock() - self._saved_at

    def save(self) -> BytesWritten:
        """Return the count, to be written to the file."""
        self._saved_at = self._clock()
        return BytesWritten(self._boot, self._since, self.written or 0)


def _written_by_this_thread() -> int | None:
    try:
        lines = Path("/proc/thread-self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("write_bytes")), None)
