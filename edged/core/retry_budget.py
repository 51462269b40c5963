"""Rules for retries over a bad link: when to try again, and when to give up.

Attempts are not counted. While there is progress the next attempt follows soon; without progress the pauses grow, until
a limit ends the transfer. Two limits bound the whole: time, and bytes transferred in vain.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

SLACK = 1 << 20
"""Bytes that may be transferred beyond the multiple of the size, so that small files may fail a few times as well."""


class RetryLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a transfer.

    `stall` is in seconds without progress, `total` in seconds altogether, `traffic` in bytes received, as a multiple of
    the size. Pauses start at `pause` seconds and double up to `longest_pause`; a server may request `longest_wait`.
    """

    stall: float
    total: float
    traffic: float
    pause: float
    longest_pause: float
    longest_wait: float


class RetryBudget:
    """Remaining time and traffic of the transfer of a file, `position` bytes of which have arrived.

    Times are seconds of one monotonic clock. `jitter()` returns a number from 0 to 1.
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
        """Record that the bytes up to `position` have arrived; a new maximum is progress."""
        if position > self._furthest:
            self._furthest = position
            self._longest = max(self._longest, position)
            self._stalled = now + self._limits.stall
            self._failures = 0

    def start_again(self) -> None:
        """Record that another file begins, so that its first bytes count as progress again.

        The restart has no effect unless more arrived of the last file than of the file before: a server that replaces
        the file again and again must not keep the transfer alive.
        """
        if self._furthest > self._left:
            self._left, self._furthest = self._furthest, 0

    def exhausted(self, moved: int, total: int | None, now: float) -> str:
        """Return the limit reached after `moved` bytes of a file of `total` bytes, or "".

        An unknown total is replaced by the most bytes seen so far.
        """
        if now >= self._end:
            return f"the transfer has taken {self._limits.total:g} s"
        if now >= self._stalled:
            return f"there was no progress for {self._limits.stall:g} s"
        size = self._longest if total is None else total
        if moved > size * self._limits.traffic + SLACK:
            return f"{moved} bytes were transferred for a file of {size}"
        return ""

    def pause(self) -> float:
        """Return the seconds to wait after a failure; doubled by each failure without progress, with jitter."""
        doubled = self._limits.pause * 2.0 ** min(self._failures, 50)
        self._failures += 1
        return min(doubled, self._limits.longest_pause) * (0.5 + 0.5 * self._jitter())

    def wait(self, asked: float) -> float | None:
        """Return the seconds to wait if a server asks for `asked`, or None if the request exceeds the limit.

        The wait does not count as a stall. A pause is added so that boards sent away together do not return together,
        and a request for 0 s does not cause a busy loop.
        """
        if asked > self._limits.longest_wait:
            return None
        self._stalled += asked
        return asked + self.pause()
