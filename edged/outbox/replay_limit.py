"""The rate limit for old messages beside new ones."""

from __future__ import annotations

BURST_SECONDS = 0.05
"""A limited replay comes in bursts, each of the messages of so many seconds."""


class ReplayLimit:
    """Allows `rate` old messages a second; any number with rate 0."""

    def __init__(self, rate: int, now: float) -> None:
        self._rate = rate
        self._allowance = 0.0
        self._then = now

    def allowed(self, now: float) -> int | None:
        """Return the number of old messages allowed now; None if unlimited."""
        if not self._rate:
            return None
        most = max(1.0, self._rate * BURST_SECONDS)
        self._allowance = min(most, self._allowance + self._rate * (now - self._then))
        self._then = now
        return int(self._allowance)

    def spend(self, number: int) -> None:
        """Count old messages sent."""
        self._allowance -= number
