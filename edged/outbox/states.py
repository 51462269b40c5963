"""Retained states: the latest of each topic, and which of them the broker does not have yet."""

from __future__ import annotations

from threading import Lock


class RetainedStates:
    """A table of topics and payloads whose changed rows wait to be sent. Any thread puts; one takes and confirms."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._payloads: dict[str, bytes] = {}
        self._changed: dict[str, None] = {}  # an ordered set

    def put(self, topic: str, payload: bytes) -> None:
        """The state is this now. An empty payload takes it back. What is the same already is no change."""
        with self._lock:
            if self._payloads.get(topic) != payload:
                self._payloads[topic] = payload
                self._changed[topic] = None

    def repeat(self, topic: str) -> None:
        """Send a state again as if it had changed."""
        with self._lock:
            if topic in self._payloads:
                self._changed[topic] = None

    def restart(self) -> set[str]:
        """A broker that may have none of them: everything is to be sent. Returns all topics."""
        with self._lock:
            self._changed = dict.fromkeys(self._payloads)
            return set(self._payloads)

    def take(self, count: int) -> list[tuple[str, bytes]]:
        """Up to `count` changed states, to be sent."""
        with self._lock:
            topics = list(self._changed)[: max(count, 0)]
            for topic in topics:
                del self._changed[topic]
            return [(topic, self._payloads[topic]) for topic in topics]

    def confirm(self, topic: str, payload: bytes) -> None:
        """The broker has this one: a state that was taken back can be forgotten."""
        with self._lock:
            if not payload and self._payloads.get(topic) == payload:
                del self._payloads[topic]
                self._changed.pop(topic, None)

    def is_clear(self, topic: str) -> bool:
        """Whether the broker retains nothing there, as far as it has been told: a state that was taken back is gone."""
        return topic not in self._payloads

    @property
    def changed(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self._changed)
