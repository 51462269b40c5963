"""Wall-clock time for monotonic moments, and whether to believe it.

Inside, time is CLOCK_MONOTONIC. A board without a real-time clock starts in 1970 and jumps when the network brings
the time, so the difference of the two clocks is measured anew every few seconds by `refresh`, and whoever stamps
results reads two attributes and asks the system nothing.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

REFRESH = 5.0  # seconds between refreshes; a jump of the wall clock shows in results this late

_TIME_ERROR = 5
_TIMEX_BYTES = 512  # struct timex is 208 bytes at most; all zero, it asks and changes nothing


def kernel_synchronised() -> bool:
    """Whether the kernel holds the clock to be disciplined by a time source: what adjtimex(2) returns."""
    state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return 0 <= state < _TIME_ERROR  # -1: the call is forbidden here, and nobody knows


class KernelClock:
    """Turns monotonic moments into Unix seconds. The event loop refreshes; any thread reads."""

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        ask: Callable[[], bool] = kernel_synchronised,
    ) -> None:
        self._wall, self._monotonic, self._ask = wall, monotonic, ask
        self._asked = self.synchronised = ask()
        self._offset = wall() - monotonic()

    def at(self, monotonic: float) -> float:
        """Unix seconds at a CLOCK_MONOTONIC moment of this boot."""
        return monotonic + self._offset

    def refresh(self) -> None:
        """Measure again. `synchronised` turns true one refresh late, so that no reader sees it beside the old time."""
        before, self._asked = self._asked, self._ask()
        self._offset = self._wall() - self._monotonic()
        self.synchronised = before and self._asked
