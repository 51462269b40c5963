"""Retained states: the latest payload of each topic, and the topics still to be sent to the broker."""

from __future__ import annotations

from threading import Lock


class RetainedStates:
    """A table of topics and payloads, with changed rows to be sent. Any thread puts; one thread takes and confirms."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._payloads: dict[str, bytes] = {}
        self._changed: dict[str, None] = {}  # an ordered set

    def put(self, topic: str, payload: bytes) -> None:
        """Set a state; an unchanged state is not sent again. An empty payload deletes the retained message."""
        with self._lock:
            if self._payloads.get(topic) != payload:
                self._payloads[topic] = payload
                self._changed[topic] = None

    def repeat(self, topic: str) -> None:
        """Send an unchanged state again."""
        with self._lock:
            if topic in self._payloads:
                self._changed[topic] = None

    def restart(self) -> set[str]:
        """Mark all states as changed, for a new connection, and return their topics."""
        with self._lock:
            self._changed = dict.fromkeys(self._payloads)
            return set(self._payloads)

    def take(self, count: int) -> list[tuple[str, bytes]]:
        """Remove up to `count` states from the changed ones, and return them for sending."""
        with self._lock:
            topics = list(self._changed)[: max(count, 0)]
            for topic in topics:
                del self._changed[topic]
            return [(topic, self._payloads[topic]) for topic in topics]

    def confirm(self, topic: str, payload: bytes) -> None:
        """Record a state as acknowledged, and forget a deleted state."""
        with self._lock:
            if not payload and self._payloads.get(topic) == payload:
                del self._payloads[topic]
                self._changed.pop(topic, None)

    def is_clear(self, topic: str) -> bool:
        """Return True if the deletion of a state has been acknowledged, or no state was ever put."""
        return topic not in self._payloads

    @property
    def changed(self) -> bool:
        """True if any state is to be sent."""
        return bool(self._changed)
