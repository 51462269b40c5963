"""Pauses between attempts to reach the broker."""

from __future__ import annotations

import math

FIRST_RETRY = 0.6
LONGEST_RETRY = 30.0

STEADY_SECONDS = 10.0
"""Duration of a good connection: after it, the next retry comes quickly again.

A shorter connection with delivered messages counts as good too, but not if the broker asked for fewer connections, or
after several in a row: two boards with the same client id disconnect each other for ever, each after a few messages.
"""

BRIEF_SESSIONS = 3
"""Number of brief connections in a row, with delivered messages, followed by a retry at once."""

BRIEF_FAILURES = 4
"""Further brief connections count as failures, but as so many at most: a bad link must still be used."""


def backoff(failures: int, chance: float) -> float:
    """Return the seconds to wait after so many failures in a row; `chance` in [0, 1) spreads devices apart."""
    return min(LONGEST_RETRY, FIRST_RETRY * 2.0 ** min(failures - 1, 16)) * (0.5 + chance / 2)


class RetrySchedule:
    """Counts `failures` in a row; `backoff` turns the number into a pause."""

    def __init__(self) -> None:
        self.failures = 0
        self._brief = 0

    def record(self, lasted: float, *, delivered: bool, contested: bool) -> None:
        """Count an attempt that ended after `lasted` seconds connected, negative if there was no connection.

        `delivered`: messages were acknowledged, and the broker does not object to another connection. `contested`:
        another client uses the same name, so brief connections count without bound.
        """
        steady = lasted > STEADY_SECONDS
        self._brief = self._brief + 1 if delivered and not steady else 0
        self.failures = 1 if steady else self.failures + 1
        if self._brief:
            most = math.inf if contested else BRIEF_FAILURES
            self.failures = int(max(1, min(self._brief - BRIEF_SESSIONS, most)))
