"""The status of a pipeline, which cannot work without its source.

A pipeline whose source is dead gets no windows, so nothing of its own would ever change its state: it would go on
claiming to run, with its last answer. The source's thread therefore says so in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from edged.core.health import Health, State, Status

LIVE = ("running", "degraded")
"""The states of a part that does its work, well or badly."""


class DependentStatus(Status):
    """A status that shows another part's failure for as long as that lasts; `set` has one writer, `depend` another.

    When the other part is back, what ran before is `starting` until it is set again. A part that has failed or stopped
    by itself says so whatever the other part does.
    """

    def __init__(self, name: str, clock: Callable[[], float], listener: Callable[[str, Health], None]) -> None:
        super().__init__(name, clock, listener)
        self._lock = Lock()
        self._own = self.health
        self._cause: Health | None = None

    @property
    def live(self) -> bool:
        """Whether the part does its work now, well or badly."""
        return self.health.state in LIVE

    def set(self, state: State, reason: str = "", hint: str = "") -> None:
        """Change the part's own state; the same state for the same reason is no change."""
        own = self._own
        if state == own.state and reason == own.reason:  # once per prediction: without the lock
            return
        with self._lock:
            self._own = Health(state, reason, hint, self._clock())
            self._show()

    def depend(self, cause: Health | None) -> None:
        """Show `cause`, the failure of a part without which this one cannot work; None when it works again."""
        with self._lock:
            if cause is None and self._cause is not None and self._own.state in LIVE:
                self._own = Health("starting", "", "", self._clock())
            self._cause = cause
            self._show()

    def _show(self) -> None:
        own = self._own
        shown = own if self._cause is None or own.state in ("failed", "stopped") else self._cause
        super().set(shown.state, shown.reason, shown.hint)
