"""Subscriptions of one connection, and the messages received."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping

from paho.mqtt.client import topic_matches_sub
from paho.mqtt.reasoncodes import ReasonCode

from edged.outbox.link import Link
from edged.outbox.link_health import is_filter

log = logging.getLogger("edged.outbox")

Handler = Callable[[str, bytes, bool], None]
"""Called with (topic, payload, retained) on the publisher's thread; must not block."""


class Subscriptions:
    """Keeps the subscriptions at the broker equal to the keys of `handlers`, which may change at any time.

    Refusals of topics in `quiet`, subscribed to only to detect a second board of the same name, are ignored.
    """

    def __init__(self, link: Link, handlers: Mapping[str, Handler], quiet: Collection[str]) -> None:
        self._link = link
        self._handlers = handlers
        self._quiet = quiet
        self._pending: dict[int, str] = {}
        self._subscribed: set[str] = set()

    def update(self) -> None:
        """Subscribe to new topics, and end other subscriptions. With the wire held."""
        wanted = {topic for topic in list(self._handlers) if self._link.wildcards or not is_filter(topic)}
        for topic in self._subscribed - wanted:
            self._link.unsubscribe(topic)
        for topic in wanted - self._subscribed:
            self._pending[self._link.subscribe(topic) or 0] = topic
        self._subscribed = wanted

    def refused(self, mid: int, reason: ReasonCode) -> str | None:
        """Return the topic of a subscription refused with this acknowledgement, or None."""
        topic = self._pending.pop(mid, None)
        return topic if reason.is_failure and topic not in self._quiet else None

    def deliver(self) -> None:
        """Pass the messages received to their handlers. Without the wire: a handler may take its time."""
        for topic, payload, retained in self._link.take_received():
            for pattern, handler in list(self._handlers.items()):
                if topic_matches_sub(pattern, topic):
                    try:
                        handler(topic, payload, retained)
                    except Exception:  # a bug in a handler must not end the connection
                        log.exception("the handler of %s failed", pattern)
