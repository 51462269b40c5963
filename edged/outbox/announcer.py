"""Keeps Home Assistant told of this device, and of no part of it that is gone.

Components that were announced and are gone must be taken back by name. The names are those that somebody has kept
since the last run; a board that kept none, since its card is new, learns them from the broker, which retains the last
announcement.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import Protocol

import msgspec

from edged.core import discovery
from edged.core.description import Description
from edged.outbox.session import Handler


class StatePublisher(Protocol):
    """What is needed of a publisher."""

    def publish_state(self, topic: str, payload: bytes) -> None:
        """Have a payload retained."""

    def repeat_state(self, topic: str) -> None:
        """Send it again."""

    def subscribe(self, topic: str, handler: Handler) -> None:
        """Hear what is said."""


class Announcer:
    """Announces one device under one discovery prefix. Any thread may call.

    `before` are the components that may have been announced, platform by id; `known` those that may still be there.
    """

    def __init__(self, discovery_prefix: str, device: str, states: StatePublisher, before: Mapping[str, str]) -> None:
        self.topic = discovery.topic(discovery_prefix, device)
        self._states = states
        self._lock = Lock()
        self.known = dict(before)
        self._description: Description | None = None
        states.subscribe(self.topic, self._hear_ours)
        states.subscribe(discovery.status_topic(discovery_prefix), self._hear_theirs)

    def announce(self, description: Description) -> None:
        """Say what there is now."""
        with self._lock:
            self._description = description
            self._say(description)

    def _hear_ours(self, topic: str, message: bytes, retained: bool) -> None:
        with self._lock:
            if not retained:  # the echo of what was just said: what it takes back is gone
                self.known = discovery.announced(message) or self.known
                return
            self.known = self.known | discovery.announced(message)
            if self._description is not None:
                self._say(self._description)

    def _hear_theirs(self, topic: str, message: bytes, retained: bool) -> None:
        if message == b"online":
            self._states.repeat_state(self.topic)

    def _say(self, description: Description) -> None:
        self._states.publish_state(self.topic, msgspec.json.encode(discovery.announcement(description, self.known)))
        now = discovery.components(description)
        self.known = self.known | {name: component["p"] for name, component in now.items()}
