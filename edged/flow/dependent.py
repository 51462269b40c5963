"""Status of a pipeline, dependent on a source.

A pipeline with a dead source gets no windows, so no event of the pipeline would change the state: the pipeline would
claim to run, with the last answer. The source's thread therefore sets the status.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from edged.core.health import Health, HealthState, Status

LIVE = ("running", "degraded")
"""States of a part at work, well or badly."""


class DependentStatus(Status):
    """Status that shows the failure of another part while the failure lasts; `set` has one writer, `depend` another.

    When the other part recovers, a part that ran before is `starting` until set again. A part that failed or stopped by
    itself reports so regardless of the other part.
    """

    def __init__(self, name: str, clock: Callable[[], float], listener: Callable[[str, Health], None]) -> None:
        super().__init__(name, clock, listener)
        self._lock = Lock()
        self._own = self.health
        self._cause: Health | None = None

    @property
    def live(self) -> bool:
        """Return whether the part is at work, well or badly."""
        return self.health.state in LIVE

    def set(self, state: HealthState, reason: str = "", hint: str = "") -> None:
        """Change the part's own state; the same state for the same reason is no change."""
        own = self._own
        if state == own.state and reason == own.reason:  # once per prediction: without the lock
            return
        with self._lock:
            self._own = Health(state, reason, hint, self._clock())
            self._show()

    def depend(self, cause: Health | None) -> None:
        """Show `cause`, the failure of a part required by this part; None after the recovery."""
        with self._lock:
            if cause is None and self._cause is not None and self._own.state in LIVE:
                self._own = Health("starting", "", "", self._clock())
            self._cause = cause
            self._show()

    def _show(self) -> None:
        own = self._own
        shown = own if self._cause is None or own.state in ("failed", "stopped") else self._cause
        super().set(shown.state, shown.reason, shown.hint)
