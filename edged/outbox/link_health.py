"""The health of a connection: running, or degraded by a refusal or a limitation of the broker."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from edged.core.health import Status
from edged.outbox.link import Link

REFUSAL_SECONDS = 60.0
"""Duration of the status `degraded` after a refusal."""


class LinkHealth:
    """Sets `status` for one connection. `limitation`: reason and hint for a broker without all features of MQTT."""

    def __init__(self, status: Status, clock: Callable[[], float], limitation: tuple[str, str] | None) -> None:
        self._status = status
        self._clock = clock
        self._limitation = limitation
        self._degraded_until = math.inf

    def degrade(self, reason: str, hint: str, seconds: float = REFUSAL_SECONDS) -> None:
        """Be degraded for a while. The first reason stays, otherwise two refused topics would alternate for ever."""
        until = self._clock() + seconds
        if not self._is_degraded:
            self._status.set("degraded", reason, hint)
            self._degraded_until = until
        self._degraded_until = max(self._degraded_until, until)

    def go_online(self) -> None:
        """Set the status after the broker has accepted "online"."""
        if not self._is_degraded:
            self._recover()

    def check_time(self) -> None:
        """End a degradation in time."""
        if self._clock() > self._degraded_until:
            self._degraded_until = math.inf
            self._recover()

    @property
    def until(self) -> float:
        """Time at which a degradation ends; infinite without one."""
        return self._degraded_until

    @property
    def _is_degraded(self) -> bool:
        return self._degraded_until < math.inf

    def _recover(self) -> None:
        if self._limitation:
            self._status.set("degraded", *self._limitation)
        else:
            self._status.set("running")


def limitation(link: Link, subscriptions: Collection[str]) -> tuple[str, str] | None:
    """Return reason and hint for the features missing at the broker, or None."""
    lacks = []
    if not link.retain:
        lacks.append("keeps no retained messages: a subscriber gets a state only when the state changes")
    if not link.qos:
        lacks.append("takes QoS 0 only: messages under way are lost when the connection breaks")
    if not link.wildcards and (unheard := sorted(filter(is_filter, subscriptions))):
        lacks.append(f"takes no wildcards in subscriptions: {', '.join(unheard)} is not received")
    return (f"the broker {'; it '.join(lacks)}", "allow it in the broker's configuration") if lacks else None


def is_filter(topic: str) -> bool:
    """Return True for a topic with wildcards."""
    return "+" in topic or "#" in topic
