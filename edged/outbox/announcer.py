"""Keeps Home Assistant told of the device: what there is, what there no longer is, and again whenever it restarts."""

from __future__ import annotations

from threading import Lock

import msgspec

from edged.core import discovery
from edged.core.description import Description
from edged.outbox.publisher import Publisher


class Announcer:
    """Announces on any thread, and hears on the publisher's. Make it before the publisher starts.

    What an earlier run of the daemon announced is learnt from the broker, which retained it: so a pipeline that was
    removed while the daemon was down goes from Home Assistant too.
    """

    def __init__(self, publisher: Publisher, discovery_prefix: str, device: str) -> None:
        self._publisher = publisher
        self._topic = discovery.topic(discovery_prefix, device)
        self._lock = Lock()
        self._description: Description | None = None
        self._previous: dict[str, str] = {}
        publisher.subscribe(discovery.status_topic(discovery_prefix), self._hear_home_assistant)
        publisher.subscribe(self._topic, self._hear_ourselves)

    def announce(self, description: Description) -> None:
        """This is what the device offers from now on."""
        with self._lock:
            self._description = description
            self._publish()

    def _hear_home_assistant(self, topic: str, payload: bytes, retained: bool) -> None:
        if payload == b"online":
            with self._lock:
                self._publish()
            self._publisher.repeat_state(self._topic)

    def _hear_ourselves(self, topic: str, payload: bytes, retained: bool) -> None:
        if retained:
            with self._lock:
                self._previous = discovery.announced(payload) | self._previous
                self._publish()

    def _publish(self) -> None:
        """Announce what there is, remove what there was, and remember only the former."""
        if self._description is None:
            return
        message = msgspec.json.encode(discovery.announcement(self._description, self._previous))
        self._previous = discovery.announced(message)
        self._publisher.publish_state(self._topic, message)
