"""A conversation with the broker, in this order: states, "online", the messages of the spool; at last "stopped".

At most a window of messages awaits acknowledgement, so that little must be sent again after a lost connection. A
message acknowledged with success leaves the spool, a refused message is parked, and every other message is sent again
on the next connection: a subscriber may receive a message twice, with the same id. The payload is completed on sending:
the mark of a replay, and the time of creation by a synchronised clock.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from paho.mqtt.client import topic_matches_sub
from paho.mqtt.reasoncodes import ReasonCode

from edged.core.health import Status
from edged.core.record import WallClock, corrected
from edged.core.topics import ONLINE, STOPPED, Topics
from edged.outbox import faults
from edged.outbox.faults import LinkError
from edged.outbox.link import Link, Wake, pack
from edged.outbox.link_health import LinkHealth, is_filter, limitation
from edged.outbox.options import MqttOptions
from edged.outbox.origin_queue import Entry
from edged.outbox.replay_limit import BURST_SECONDS, ReplayLimit
from edged.outbox.spool import Spool
from edged.outbox.states import RetainedStates

log = logging.getLogger("edged.outbox")

MAX_STRIKES = 5
"""Number of connections in a row closed by the broker with the same message in flight, after which the message is
parked.
"""

Handler = Callable[[str, bytes, bool], None]
"""Called with (topic, payload, retained) on the publisher's thread; must not block."""


@dataclass
class DeliveryCounts:
    """Counts across connections.

    `last_sent` is the time of the last acknowledgement, None before the first. `rate` is the number of messages
    acknowledged per second, `shrinking` the decrease of the spool per second. `suspect` is the message in flight during
    the last `strikes` connections closed by the broker.
    """

    sent: int = 0
    last_sent: float | None = None
    replayed: int = 0
    refused: int = 0
    rate: float = 0.0
    shrinking: float = 0.0
    suspect: int = 0
    strikes: int = 0


class InFlight(NamedTuple):
    """A message awaiting acknowledgement; `entry` is its id in the spool, 0 for a state."""

    topic: str
    payload: bytes
    entry: int
    since: float


class Session:
    """A conversation with the broker over a link. Used by the publisher's thread alone."""

    def __init__(
        self,
        link: Link,
        options: MqttOptions,
        topics: Topics,
        *,
        spool: Spool,
        states: RetainedStates,
        handlers: dict[str, Handler],
        counts: DeliveryCounts,
        status: Status,
        wake: Wake,
        clock: Callable[[], float],
        wall: WallClock | None = None,
    ) -> None:
        self.health = LinkHealth(status, clock, limitation(link, list(handlers)))
        self._link = link
        self._options = options
        self._availability = topics.availability
        self._own_state = topics.state
        self._spool = spool
        self._states = states
        self._handlers = handlers
        self._counts = counts
        self._wake = wake
        self._clock = clock
        self._wall = wall
        self._in_flight: dict[int, InFlight] = {}
        self._subscribing: dict[int, str] = {}
        self._subscribed: set[str] = set()
        self._missing = states.restart()  # states to be acknowledged before "online"
        self._online = False
        self._replays = ReplayLimit(spool.options.replay_rate, clock())
        self._sampled = (clock(), counts.sent, spool.depth)
        spool.resume()
        self._repeat_at = math.inf

    def turn(self, timeout: float) -> None:
        """Send as much as allowed, wait for an event or so many seconds, and handle incoming packets.

        Raises:
            LinkError: the connection is over.
        """
        self._wake.arm()
        self._subscribe()
        self._send()
        if self._room <= 0:
            self._wake.disarm()
        if self._spool.options.replay_rate and self._spool.depth:
            timeout = min(timeout, BURST_SECONDS)
        self._link.wait(timeout, lazily=self._online and 0 < len(self._in_flight) <= self._link.window // 2)
        self._handle_acknowledgements()
        self._handle_received()
        self._handle_time()

    @property
    def finished(self) -> bool:
        """True if every state and message was sent and acknowledged."""
        return self._online and not self._in_flight and not self._states.changed and not self._spool.depth

    @property
    def unanswered(self) -> float:
        """Seconds since the oldest unacknowledged message was sent."""
        oldest = next(iter(self._in_flight.values()), None)
        return 0.0 if oldest is None else self._clock() - oldest.since

    def end(self, seconds: float) -> None:
        """Publish "stopped", wait at most so long for the acknowledgement, and disconnect."""
        deadline = self._clock() + seconds
        try:
            last = self._publish(self._availability, STOPPED)
            while last in self._in_flight and self._clock() < deadline:
                self._link.wait(deadline - self._clock())
                self._handle_acknowledgements()
        finally:
            self._spool.release()
            self._link.disconnect(seconds)

    def abandon(self, error: LinkError) -> None:
        """Release the messages in flight after a lost connection; park a message with too many strikes."""
        first = next((each.entry for each in self._in_flight.values() if each.entry), 0)
        if first and error.dropped:
            self._strike(first, error)
        self._spool.release()
        self._link.close()

    def repeat_states(self, seconds: float) -> None:
        """Publish all states again in so many seconds, and then "online"."""
        self._repeat_at = self._clock() + seconds

    def _strike(self, entry: int, error: LinkError) -> None:
        counts = self._counts
        counts.strikes = counts.strikes + 1 if entry == counts.suspect else 1
        counts.suspect = entry
        if counts.strikes == MAX_STRIKES:
            self._park(entry, f"after each attempt to send this message: {error.message}", error.hint)
            counts.strikes = 0

    # -- sending -----------------------------------------------------------------------------------------------------

    @property
    def _room(self) -> int:
        window = 1 if self._counts.strikes else self._link.window  # sent one at a time, the culprit shows
        return window - len(self._in_flight)

    def _subscribe(self) -> None:
        wanted = {topic for topic in list(self._handlers) if self._link.wildcards or not is_filter(topic)}
        for topic in self._subscribed - wanted:
            self._link.unsubscribe(topic)
        for topic in wanted - self._subscribed:
            self._subscribing[self._link.subscribe(topic) or 0] = topic
        self._subscribed = wanted

    def _send(self) -> None:
        for topic, payload in self._states.take(self._room):
            self._publish_state(topic, payload)
        if not self._missing and not self._online and self._room > 0:
            self._publish(self._availability, ONLINE)
            self._online = True
        if self._online and (room := self._room) > 0:
            for entry in self._spool.take(room, self._replays.allowed(self._clock())):
                self._replays.spend(entry.replayed)
                self._publish_entry(entry)

    def _publish_state(self, topic: str, payload: bytes) -> None:
        if self._link.too_large(topic, payload, None):
            reason = f"the state at {topic} has {len(payload)} bytes, more than the broker takes"
            self._refuse_state(topic, reason, "raise the broker's limit")
        else:
            self._publish(topic, payload)

    def _publish(self, topic: str, payload: bytes) -> int:
        mid = self._link.publish(topic, payload, qos=self._link.qos, retain=self._link.retain)
        self._in_flight[mid] = InFlight(topic, payload, 0, self._clock())
        return mid

    def _publish_entry(self, entry: Entry) -> None:
        message = entry.message
        now = self._clock()
        left = max(1, math.ceil(message.created + message.expiry - now)) if message.expiry else 0
        payload = message.payload
        if self._wall is not None and not message.estimated:
            payload = corrected(payload, message.created, self._wall)
        if entry.replayed:
            payload = _replayed(payload)
        properties = pack(left, (*message.properties, REPLAYED) if entry.replayed else message.properties)
        if self._link.too_large(message.topic, payload, properties):
            reason = f"{len(payload)} bytes are more than the broker takes"
            self._park(entry.id, reason, "raise the broker's limit")
            return
        try:
            qos = min(message.qos, self._link.qos)
            mid = self._link.publish(message.topic, payload, qos=qos, retain=False, properties=properties)
        except ValueError as error:
            self._park(entry.id, str(error), "report this to the sink's author")
            return
        self._counts.replayed += entry.replayed
        self._in_flight[mid] = InFlight(message.topic, b"", entry.id, now)

    # -- receiving ---------------------------------------------------------------------------------------------------

    def _handle_acknowledgements(self) -> None:
        accepted: list[int] = []
        quota: LinkError | None = None
        for mid, reason in self._link.take_acknowledged():
            answered = self._in_flight.pop(mid, None)
            if answered is None:
                self._check_subscription(mid, reason)
            elif reason.value == faults.QUOTA_EXCEEDED:
                self._in_flight[mid] = answered  # to be accepted later
                quota = faults.over_quota(reason, self._options)
            elif reason.is_failure:
                self._refuse(answered, reason)
            elif answered.entry:
                accepted.append(answered.entry)
            else:
                self._confirm(answered)
        if accepted:
            self._spool.ack(accepted)
            self._counts.sent += len(accepted)
            self._counts.last_sent = self._clock()
            self._counts.strikes = 0
        if quota is not None:
            raise quota

    def _confirm(self, state: InFlight) -> None:
        self._states.confirm(state.topic, state.payload)
        self._missing.discard(state.topic)
        if state.topic == self._availability and state.payload == ONLINE:
            self.health.go_online()

    def _refuse(self, refused: InFlight, reason: ReasonCode) -> None:
        message = f"the broker refuses {refused.topic}: {reason}"
        if refused.entry:
            self._park(refused.entry, message, faults.remedy(reason))
        elif not refused.payload:  # topic of an earlier device name, now forbidden
            log.warning(
                "%s, so its retained message stays; clear it: mosquitto_pub -r -n -t %s", message, refused.topic
            )
            self._confirm(refused)
        else:
            self._refuse_state(refused.topic, message, faults.remedy(reason))

    def _refuse_state(self, topic: str, reason: str, hint: str) -> None:
        self._missing.discard(topic)
        self._counts.refused += 1
        self.health.degrade(reason, hint)

    def _park(self, entry: int, reason: str, hint: str) -> None:
        self._spool.park(entry, reason)
        self._counts.refused += 1
        self.health.degrade(reason, hint)

    def _check_subscription(self, mid: int, reason: ReasonCode) -> None:
        topic = self._subscribing.pop(mid, None)
        own = (self._own_state, self._availability)  # used only to detect a second board of the same name
        if topic not in (None, *own) and reason.is_failure:
            self.health.degrade(f"the broker refuses the subscription to {topic}: {reason}", faults.remedy(reason))

    def _handle_received(self) -> None:
        for topic, payload, retained in self._link.take_received():
            for pattern, handler in list(self._handlers.items()):
                if topic_matches_sub(pattern, topic):
                    try:
                        handler(topic, payload, retained)
                    except Exception:  # a bug in a handler must not end the connection
                        log.exception("the handler of %s failed", pattern)

    def _handle_time(self) -> None:
        now = self._clock()
        if now >= self._repeat_at:
            self._repeat_at = math.inf
            self._missing = self._states.restart()
            self._online = False
        self.health.check_time()
        then, sent, depth = self._sampled
        if now - then >= 1.0:
            self._sampled = (now, self._counts.sent, self._spool.depth)
            self._counts.rate = (self._counts.sent - sent) / (now - then)
            self._counts.shrinking = (depth - self._spool.depth) / (now - then)
        limit = 2 * self._options.keepalive
        if self.unanswered > limit:
            raise faults.stalled(limit, self._options)


REPLAYED = ("replayed", "1")


def _replayed(payload: bytes) -> bytes:
    """Return a JSON object with "replayed": true; other payloads and an empty object are unchanged."""
    fits = payload.startswith(b"{") and payload.endswith(b"}") and len(payload) > 2
    return payload[:-1] + b',"replayed":true}' if fits else payload
