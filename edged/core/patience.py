"""When to try again, and when to give up: pure rules for whoever fetches over a bad link.

Attempts are never counted. As long as there is progress the next attempt follows soon, however many there have been;
without any the pauses grow, and after a while it is over. What bounds the whole is time, and bytes moved in vain.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

SLACK = 1 << 20
"""Bytes that may be moved beyond the multiple of the size, so that small files may fail a few times as well."""


class RetryLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long to bear what.

    `stall`: seconds without progress. `total`: seconds altogether. `traffic`: bytes received, as a multiple of the
    size. Pauses start at `pause` seconds and double up to `longest_pause`; a server may ask for `longest_wait`.
    """

    stall: float
    total: float
    traffic: float
    pause: float
    longest_pause: float
    longest_wait: float


class RetryBudget:
    """What is left of it, for a file of which `position` bytes are here.

    All times are of one monotonic clock, in seconds. `jitter()` gives numbers from 0 to 1.
    """

    def __init__(self, limits: RetryLimits, position: int, now: float, jitter: Callable[[], float]) -> None:
        self._limits = limits
        self._jitter = jitter
        self._end = now + limits.total
        self._stalled = now + limits.stall
        self._furthest = self._longest = position
        self._left = 0
        self._failures = 0

    def reached(self, position: int, now: float) -> None:
        """There are bytes up to `position`: progress, if that was never reached before."""
        if position > self._furthest:
            self._furthest = position
            self._longest = max(self._longest, position)
            self._stalled = now + self._limits.stall
            self._failures = 0

    def start_again(self) -> None:
        """It is another file from now on, and every byte of it is progress.

        That is so only if there has been progress beyond where the last one was left: a server that has everybody start
        again and again leads nowhere.
        """
        if self._furthest > self._left:
            self._left, self._furthest = self._furthest, 0

    def exhausted(self, moved: int, total: int | None, now: float) -> str:
        """Why there is none left after `moved` bytes for a file of `total`; "" while there is.

        A total nobody knows is taken for the most there has been of the file.
        """
        if now >= self._end:
            return f"it has taken {self._limits.total:g} s"
        if now >= self._stalled:
            return f"there was no progress for {self._limits.stall:g} s"
        size = self._longest if total is None else total
        if moved > size * self._limits.traffic + SLACK:
            return f"{moved} bytes were moved for a file of {size}"
        return ""

    def pause(self) -> float:
        """How many seconds to wait after a failure: more after each without progress, and never quite the same."""
        doubled = self._limits.pause * 2.0 ** min(self._failures, 50)
        self._failures += 1
        return min(doubled, self._limits.longest_pause) * (0.5 + 0.5 * self._jitter())

    def wait(self, asked: float) -> float | None:
        """How many seconds to wait for a server that asked for it, None if that is too long to.

        Such a wait is no lack of progress. A pause comes on top, for a fleet that was sent away together must not come
        back together, nor anybody for ever at once.
        """
        if asked > self._limits.longest_wait:
            return None
        self._stalled += asked
        return asked + self.pause()
