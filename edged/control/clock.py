"""Wall-clock time for monotonic times, with a flag for trustworthy time.

Inside, time is CLOCK_MONOTONIC. A board without a real-time clock starts in 1970 and jumps when the network brings the
time. The difference of the two clocks is therefore measured by `refresh`: every few seconds, and at once after a change
of the clock, reported by `SetNotice`.

An era is the time between two jumps. A monotonic time is converted by the difference in its own era if the clock was
synchronised then, else by the first later synchronised era, else by the latest.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import time
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

log = logging.getLogger("edged.control")

REFRESH = 5.0
"""Seconds between refreshes."""

JUMP = 0.1
"""Least difference, in seconds, that counts as a jump: a slewing NTP client needs minutes for such a difference."""

MAX_ERAS = 16

_TIME_ERROR = 5
_TIMEX_BYTES = 512  # struct timex has at most 208 bytes; all zero, it changes nothing


def kernel_synchronised() -> bool:
    """Return whether the kernel considers the clock synchronised, by the result of adjtimex(2)."""
    state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return 0 <= state < _TIME_ERROR  # -1: the call is forbidden, and the state unknown


class Era(NamedTuple):
    """An era from `since`, in CLOCK_MONOTONIC seconds: the difference to Unix time, and whether to trust the result."""

    since: float
    offset: float
    synchronised: bool


class KernelClock:
    """Turns monotonic moments into Unix seconds. The event loop refreshes; any thread reads."""

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        ask: Callable[[], bool] = kernel_synchronised,
    ) -> None:
        self._wall, self._monotonic, self._ask = wall, monotonic, ask
        self._asked = ask()
        self._eras: tuple[Era, ...] = (Era(-math.inf, wall() - monotonic(), self._asked),)  # replaced whole

    @property
    def synchronised(self) -> bool:
        """Return whether the clock is synchronised, and was not set since the last refresh."""
        latest = self._eras[-1]
        return latest.synchronised and abs(self._wall() - self._monotonic() - latest.offset) < JUMP

    def at(self, monotonic: float) -> float:
        """Unix seconds at a CLOCK_MONOTONIC moment of this boot."""
        latest = self._eras[-1]
        return monotonic + (latest if monotonic >= latest.since else self._era(monotonic)).offset

    def knows(self, monotonic: float) -> bool:
        """Return whether `at` is trustworthy for this time; the clock may have lost the time since."""
        era = self._era(monotonic)
        return era.synchronised and (era.since < self._eras[-1].since or self.synchronised)

    def _era(self, monotonic: float) -> Era:
        """Return the era for the conversion of a time."""
        eras = self._eras
        if monotonic < eras[-1].since:
            known = (era for era, after in pairwise(eras) if monotonic < after.since and era.synchronised)
            return next(known, eras[-1])
        return eras[-1]

    def refresh(self) -> bool:
        """Measure again, and return whether the clock was set meanwhile.

        `synchronised` becomes true one refresh late, so that no reader combines it with the old time.
        """
        before, self._asked = self._asked, self._ask()
        now = self._monotonic()
        *earlier, latest = self._eras
        offset = self._wall() - now
        jumped = abs(offset - latest.offset) >= JUMP
        if jumped:
            era = Era(now, offset, synchronised=False)
            self._eras = (*earlier, latest, era)[-MAX_ERAS:]
            log.warning("the clock was set: jump by %+.1f s", offset - latest.offset)
        else:
            self._eras = (*earlier, Era(latest.since, offset, before and self._asked))
        return jumped


class SetNotice:
    """Descriptor that becomes readable when the wall clock is set: timerfd_create(2) with TFD_TIMER_CANCEL_ON_SET.

    `descriptor` is -1 if the kernel has no descriptors left.
    """

    def __init__(self) -> None:
        libc = ctypes.CDLL(None)
        self.descriptor: int = libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        never = (ctypes.c_long * 4)(0, 0, _NEVER, 0)  # struct itimerspec: no interval, and the end
        if self.descriptor >= 0 and libc.timerfd_settime(self.descriptor, _ABSTIME | _CANCEL_ON_SET, never, None) < 0:
            self.close()

    def take(self) -> None:
        """Reset, so that the descriptor becomes readable at the next change."""
        try:
            os.read(self.descriptor, 8)
        except OSError:
            pass  # ECANCELED is the expected report

    def close(self) -> None:
        """Let go of the descriptor. May be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


_ABSTIME = 1
_CANCEL_ON_SET = 2
_NEVER = 1 << 33 if ctypes.sizeof(ctypes.c_long) == 8 else (1 << 31) - 1
