"""The metrics page: served while the configuration names a port."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edged.acceleration.placement import Accelerators
from edged.api import ControlError
from edged.app.state import ServiceState
from edged.app.status import overall

if TYPE_CHECKING:  # imported with the first page: few boards have one
    from edged.control.web import Web


class MetricsPage:
    """The page of a service, from `open` to `close`. A port in use is shown in the state."""

    def __init__(self, state: ServiceState, accelerators: Accelerators) -> None:
        self._state = state
        self._accelerators = accelerators
        self._page: Web | None = None

    async def open(self) -> None:
        """Serve the page, if a port is configured."""
        state, accelerators = self._state, self._accelerators
        if not state.config.metrics.port:
            if state.metrics_page.health.state == "failed":
                state.metrics_page.set("stopped")
            return
        from edged.app.metrics import families
        from edged.control.web import Web
        from edged.core.metrics import render

        page = Web(
            state.config.metrics.port,
            lambda: render(families(state, accelerators)),
            lambda: overall(state, accelerators).reason,
        )
        try:
            await page.start()
        except ControlError as error:
            state.metrics_page.set("failed", error.message, error.hint)
        else:
            self._page = page
            state.metrics_page.set("running")

    async def close(self) -> None:
        """Serve the page no longer. May be called without an open page."""
        if self._page is not None:
            await self._page.stop()
            self._page = None
            self._state.metrics_page.set("stopped")
