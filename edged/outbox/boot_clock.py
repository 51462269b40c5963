"""Conversion of times from an earlier boot: CLOCK_MONOTONIC starts anew with each boot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from edged.core.record import WallClock
from edged.outbox.segment_file import Segment, Stamp


class BootClock:
    """The clock of the current boot. `wall` gives Unix time if the board has a source of time."""

    def __init__(self, boot: str | None, clock: Callable[[], float], wall: WallClock | None) -> None:
        self.boot = boot or _kernel_boot()
        self._clock = clock
        self._wall = wall
        self._started = clock()

    def stamp(self) -> Stamp:
        """Return the stamp for a segment written now."""
        now = self._clock()
        known = self._wall is not None and self._wall.synchronised
        return Stamp(self.boot, now, self._wall.at(now) if known and self._wall else None)

    def translate(self, segment: Segment) -> Segment:
        """Return a segment with the times of its messages converted to the current boot."""
        seconds, estimated = self._shift(segment.stamp)
        if not seconds:
            return segment
        messages = [
            msgspec.structs.replace(each, created=each.created + seconds, estimated=estimated)
            for each in segment.messages
        ]
        return segment._replace(messages=messages)

    def _shift(self, stamp: Stamp) -> tuple[float, bool]:
        """Return the seconds to add to times of the stamp's boot, and True if this number is only an estimate.

        Without a clock trusted in both boots, the time between them is unknown and counts as zero.
        """
        if stamp.boot == self.boot:
            return 0.0, False
        now = self._clock()
        if stamp.wall is not None and self._wall is not None and self._wall.synchronised:
            return now - max(0.0, self._wall.at(now) - stamp.wall) - stamp.monotonic, False
        return self._started - stamp.monotonic, True


def _kernel_boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
