"""Keeps Home Assistant told of this device, and of no part of it that is gone.

What was announced before this daemon started is learnt from the broker, which retains the last announcement: with it
come the names of components that must be taken back. So nothing has to be remembered on disk.
"""

from __future__ import annotations

from threading import Lock
from typing import Protocol

import msgspec

from edged.core import discovery
from edged.core.description import Description
from edged.outbox.session import Handler


class States(Protocol):
    """What is needed of a publisher."""

    def publish_state(self, topic: str, payload: bytes) -> None:
        """Have a payload retained."""

    def repeat_state(self, topic: str) -> None:
        """Send it again."""

    def forget_state(self, topic: str) -> None:
        """Have nothing retained."""

    def subscribe(self, topic: str, handler: Handler) -> None:
        """Hear what is said."""


class Announcer:
    """Announces one device under one discovery prefix. Any thread may call."""

    def __init__(self, discovery_prefix: str, device: str, states: States) -> None:
        self.topic = discovery.topic(discovery_prefix, device)
        self._states = states
        self._lock = Lock()
        self._before: dict[str, str] = {}
        self._description: Description | None = None
        states.subscribe(self.topic, self._hear_ours)
        states.subscribe(discovery.status_topic(discovery_prefix), self._hear_theirs)

    def announce(self, description: Description) -> None:
        """Say what there is now."""
        with self._lock:
            self._description = description
            self._say(description)

    def withdraw(self) -> None:
        """Have Home Assistant forget the device."""
        with self._lock:
            self._description = None
            self._states.forget_state(self.topic)

    def _hear_ours(self, topic: str, message: bytes, retained: bool) -> None:
        if not retained:
            return  # the echo of what was just said
        with self._lock:
            self._before |= discovery.announced(message)
            if self._description is not None:
                self._say(self._description)

    def _hear_theirs(self, topic: str, message: bytes, retained: bool) -> None:
        if message == b"online":
            self._states.repeat_state(self.topic)

    def _say(self, description: Description) -> None:
        self._states.publish_state(self.topic, msgspec.json.encode(discovery.announcement(description, self._before)))
        self._before |= {name: component["p"] for name, component in discovery.components(description).items()}
