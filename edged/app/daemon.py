"""The daemon's whole life: lock, configure, serve, and only then import and run the control plane.

Sensors are served before anything that can wait: the first result comes before asyncio, the updates and the verbs of
the control socket are imported. The control socket is locked and listens from the beginning: early clients wait in the
kernel, and see no daemon that is half started.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event

from edged.api import Prediction
from edged.app.data_plane import DataPlane
from edged.app.state import ServiceState
from edged.app.state_lock import StateLock
from edged.config.load import load
from edged.control.control_socket import ControlSocket
from edged.control.systemd import Notifier
from edged.core.protocol import SOCKET
from edged.models.store import Store
from edged.system.later import asyncio, import_asyncio
from edged.system.log import set_up

log = logging.getLogger("edged.daemon")

FIRST_RESULT_SECONDS = 0.25
"""Time for the first result before the control plane is imported: enough where a sensor's samples wait to be read."""


def run(files: Sequence[Path], runtime_dir: Path, lock: StateLock, store: Store) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reloads. The caller has locked the state folder.

    Raises:
        EdgedError: the configuration is wrong, or another daemon has the control socket.
    """
    signals = EarlySignals()
    config = load(files)
    set_up(config.log.level)
    notifier = Notifier()
    with ControlSocket(runtime_dir / SOCKET, group=config.control.group) as listening:
        plane = DataPlane(files, config, store, lock.folder)
        try:
            first = _FirstResult(plane.state)
            unproven = plane.start(signals.stop_arrived)
            first.wait(FIRST_RESULT_SECONDS if any(part.flow for part in plane.state.pipelines.values()) else 0.0)
            plane.connect()
        except BaseException:
            _stop(plane, notifier)
            raise
        import_asyncio()
        from edged.app import control_plane

        asyncio.run(control_plane.run(plane, unproven, notifier, listening, lock, signals.hand_over))


def _stop(plane: DataPlane, notifier: Notifier) -> None:
    """Take down a data plane that has failed to start."""
    import_asyncio()
    from edged.app.control_plane import compose

    asyncio.run(compose(plane, notifier).lifecycle.stop())


class EarlySignals:
    """Signals that arrive before the event loop runs, kept for the handlers of the loop."""

    def __init__(self) -> None:
        self._arrived: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda arrived, _frame: self._arrived.append(arrived))

    def stop_arrived(self) -> bool:
        """Return whether the daemon is to stop."""
        return not {signal.SIGTERM, signal.SIGINT}.isdisjoint(self._arrived)

    def hand_over(self, handlers: Mapping[int, Callable[[], None]]) -> None:
        """Have the running event loop call a handler for each signal, also for signals that have arrived."""
        loop = asyncio.get_running_loop()
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        for number in self._arrived:
            handlers[number]()


class _FirstResult:
    """Waits for the first result of any pipeline."""

    def __init__(self, state: ServiceState) -> None:
        self._watchers = state.watchers
        self._watchers.taps = (self,)
        self._arrived = Event()

    def send(self, prediction: Prediction) -> None:
        """Take a result. Called on a pipeline's thread."""
        self._arrived.set()

    def wait(self, seconds: float) -> None:
        """Wait for at most so many seconds."""
        self._arrived.wait(seconds)
        self._watchers.taps = ()
