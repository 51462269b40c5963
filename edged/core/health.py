"""The one vocabulary of states that sources, models, pipelines and the link to the broker share.

A status cell has one writer, and perhaps one who says that this hangs. `since` and `reason` change only with the state
or the reason, so that an operator sees how long a thing has been as it is, and a listener hears of changes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

State = Literal["starting", "running", "degraded", "failed", "stopped"]


class Health(msgspec.Struct, frozen=True):
    """What a part is doing and why; `hint` says what to do about it, `since` is CLOCK_MONOTONIC seconds."""

    state: State
    reason: str
    hint: str
    since: float


class Status:
    """A part's health as it changes. `listener` hears (name, health) on the thread that set it, and must not block."""

    def __init__(self, name: str, clock: Callable[[], float], listener: Callable[[str, Health], None]) -> None:
        self.name = name
        self._clock = clock
        self._listener = listener
        self.health = Health("starting", "", "", clock())

    def set(self, state: State, reason: str = "", hint: str = "") -> None:
        """Change the state; the same state for the same reason is no change."""
        now = self.health
        reason, hint = _whole(reason), _whole(hint)
        if (state, reason) == (now.state, now.reason):
            return
        self.health = Health(state, reason, hint, self._clock())
        self._listener(self.name, self.health)

    def silence(self) -> None:
        """Tell nobody of further changes: another part is there by that name."""
        self._listener = lambda _name, _health: None


def _whole(text: str) -> str:
    """Text without halves of characters, as in the name of a file that is not in UTF-8: JSON has no place for them."""
    return text if text.isascii() else text.encode(errors="replace").decode()
