"""Home Assistant discovery: announcements of this device, and of the removal of its components.

Home Assistant keeps a removed component until an announcement takes back its name. The caller passes the names
announced in earlier runs; a board without such a record, after a change of its card, learns the names from the last
announcement, retained by the broker.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import msgspec

from edged.core import discovery
from edged.core.description import Description

if TYPE_CHECKING:
    from edged.outbox.subscriptions import Handler


class StatePublisher(Protocol):
    """A publisher, as used by the announcer."""

    def publish_state(self, topic: str, payload: bytes) -> None:
        """Publish a retained payload."""

    def repeat_state(self, topic: str) -> None:
        """Publish the payload again."""

    def subscribe(self, topic: str, handler: Handler) -> None:
        """Pass the messages of a topic to a handler."""


class Announcer:
    """Announces one device under one discovery prefix. Any thread may call.

    `before`: components perhaps announced in earlier runs, platform by id; `known`: components perhaps still announced.
    """

    def __init__(self, discovery_prefix: str, device: str, states: StatePublisher, before: Mapping[str, str]) -> None:
        self.topic = discovery.topic(discovery_prefix, device)
        self._states = states
        self._lock = Lock()
        self.known = dict(before)
        self._description: Description | None = None
        states.subscribe(self.topic, self._handle_own)
        states.subscribe(discovery.status_topic(discovery_prefix), self._handle_status)

    def announce(self, description: Description) -> None:
        """Announce the components of a description, and the removal of others."""
        with self._lock:
            self._description = description
            self._publish(description)

    def _handle_own(self, topic: str, message: bytes, retained: bool) -> None:
        with self._lock:
            if not retained:  # the echo of the last announcement: removals are done
                self.known = discovery.announced(message) or self.known
                return
            self.known = self.known | discovery.announced(message)
            if self._description is not None:
                self._publish(self._description)

    def _handle_status(self, topic: str, message: bytes, retained: bool) -> None:
        if message == b"online":
            self._states.repeat_state(self.topic)

    def _publish(self, description: Description) -> None:
        self._states.publish_state(self.topic, msgspec.json.encode(discovery.announcement(description, self.known)))
        now = discovery.components(description)
        self.known = self.known | {name: component["p"] for name, component in now.items()}
