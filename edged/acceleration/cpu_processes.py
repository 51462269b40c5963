"""Models on the CPU in separate processes: for `isolate` in the configuration, and for measurements."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakSet

from edged.api import Backend, DeviceError, Runner
from edged.core.acceleration import Rules
from edged.models.bundle import Bundle
from edged.system.child import ResourceLimits

if TYPE_CHECKING:  # imported with the first process: few boards have one
    from edged.backends.isolated import Host, IsolatedRunner

RESPAWN_SECONDS = 20.0
"""Time in which a model with `isolate` must load: windows, and the service's watchdog, wait for a second load."""


class CpuProcesses:
    """Processes for one runner each. Any thread may call."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rules = Rules()
        self._lock = threading.Lock()
        self._hosts: WeakSet[Host] = WeakSet()
        self._closed = False

    def configure(self, rules: Rules) -> None:
        """Apply other limits to processes started from now on."""
        self._rules = rules

    def isolate(self, model: str, bundle: Bundle, backend: Backend) -> Runner:
        """Return a runner in a separate process, which is started again after every death.

        The golden samples are left to the caller, since a window may wait for the next process.

        Raises:
            EdgedError: the model does not load.
        """
        from edged.backends.respawned import RespawnedRunner

        load = partial(self.load, f"the model {model}", bundle, backend)
        return RespawnedRunner(load, self._rules, self._clock)

    def load(self, name: str, bundle: Bundle, backend: Backend) -> IsolatedRunner:
        """Return a runner in a process named `name` in messages. The process ends with the runner.

        Raises:
            EdgedError: the model does not load.
        """
        from edged.backends.isolated import Host

        rules = self._rules
        host = Host(name, ResourceLimits(memory=rules.memory, niceness=rules.niceness))
        with self._lock:
            if self._closed:
                raise stopped()
            self._hosts.add(host)
        return host.load(
            backend,
            bundle.model,
            signature=bundle.manifest.signature,
            deadline=rules.deadline,
            load_seconds=min(rules.load_seconds, RESPAWN_SECONDS),
        )

    def close(self) -> None:
        """End all processes, and start no more. The runners raise DeviceError from now on."""
        with self._lock:
            self._closed = True
            hosts = list(self._hosts)
        for host in hosts:
            host.close()


def stopped() -> DeviceError:
    """Return the error for a request during the stop of the daemon."""
    return DeviceError("no process is started while edged stops", hint="ask again when edged is back", retryable=True)
