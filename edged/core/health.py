"""States shared by sources, models, pipelines and the link to the broker.

A status has one writer, and perhaps a second thread to report a hang. `since` changes only with the state or the
reason: an operator sees the duration of a state, and a listener is called for changes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

HealthState = Literal["starting", "running", "degraded", "failed", "stopped"]


class Health(msgspec.Struct, frozen=True):
    """State of a part and the reason; `hint` is the remedy, `since` a time in CLOCK_MONOTONIC seconds."""

    state: HealthState
    reason: str
    hint: str
    since: float


class Status:
    """Health of a part. `listener` gets (name, health) on the thread that sets the health, and must not block."""

    def __init__(self, name: str, clock: Callable[[], float], listener: Callable[[str, Health], None]) -> None:
        self.name = name
        self._clock = clock
        self._listener = listener
        self.health = Health("starting", "", "", clock())

    def set(self, state: HealthState, reason: str = "", hint: str = "") -> None:
        """Change the state; the same state for the same reason is no change."""
        now = self.health
        if state == now.state and (reason == now.reason or _whole(reason) == now.reason):
            return
        self.health = Health(state, _whole(reason), _whole(hint), self._clock())
        self._listener(self.name, self.health)

    def silence(self) -> None:
        """Stop calling the listener: another part has taken over the name."""
        self._listener = lambda _name, _health: None


def _whole(text: str) -> str:
    """Replace unpaired surrogates, as in a file name that is not UTF-8: JSON cannot hold surrogates."""
    return text if text.isascii() else text.encode(errors="replace").decode()
