"""Times of an earlier boot in terms of this one: CLOCK_MONOTONIC begins anew with each boot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from edged.core.record import WallClock
from edged.outbox.segment_file import Segment, Stamp


class BootClock:
    """The clock of this boot. `wall` gives Unix time, if there is a source of it."""

    def __init__(self, boot: str | None, clock: Callable[[], float], wall: WallClock | None) -> None:
        self.boot = boot or _kernel_boot()
        self._clock = clock
        self._wall = wall
        self._started = clock()

    def stamp(self) -> Stamp:
        """Return the stamp of a segment that is written now."""
        now = self._clock()
        known = self._wall is not None and self._wall.synchronised
        return Stamp(self.boot, now, self._wall.at(now) if known and self._wall else None)

    def translate(self, segment: Segment) -> Segment:
        """Return a segment with the times of its messages in terms of this boot."""
        seconds, estimated = self._shift(segment.stamp)
        if not seconds:
            return segment
        messages = [
            msgspec.structs.replace(each, created=each.created + seconds, estimated=estimated)
            for each in segment.messages
        ]
        return segment._replace(messages=messages)

    def _shift(self, stamp: Stamp) -> tuple[float, bool]:
        """Return the seconds to add to a time of a stamp's boot, and whether they are only an estimate.

        Without a clock that both boots trust, the time between them is unknown, and taken to be none.
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
