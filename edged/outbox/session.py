"""One conversation with the broker, in this order: states, "online", the messages of the spool; at last "stopped".

At most a window of messages awaits acknowledgement, so that little has to be sent again when the connection dies. A
message leaves the spool when the broker has acknowledged it with success, is parked when the broker refuses it, and in
every other case is sent again on the next connection: a subscriber may see it twice, with the same id. The payload is
completed as it is sent: whether the message is replayed, and when it was made by a synchronised clock.
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
"""A message is parked if the broker has closed the connection so many times in a row while it was in flight."""

Handler = Callable[[str, bytes, bool], None]
"""Called with (topic, payload, retained) on the publisher's thread; must not block."""


@dataclass
class DeliveryCounts:
    """Counts that outlive a connection.

    `last_sent` is the time of the last acknowledgement, None before the first. `rate` is the number of messages a
    second that the broker acknowledges, `shrinking` the number a second by which the spool becomes shorter. `suspect`
    is the message during which the broker closed the connection, `strikes` times in a row.
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
    """A message that awaits its acknowledgement; `entry` is its id in the spool, 0 for a state."""

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
        self.health = LinkHealth(status, clock, limitation(link, handlers))
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
        self._missing = states.restart()  # states that the broker must have before "online" is sent
        self._online = False
        self._replays = ReplayLimit(spool.options.replay_rate, clock())
        self._sampled = (clock(), counts.sent, spool.depth)
        spool.resume()
        self._repeat_at = math.inf

    def turn(self, timeout: float) -> None:
        """Send what may be sent, wait for an event or so many seconds, and handle what has come.

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
        """Whether every state and message was sent and acknowledged."""
        return self._online and not self._in_flight and not self._states.changed and not self._spool.depth

    @property
    def unanswered(self) -> float:
        """Seconds for which the broker has owed an acknowledgement."""
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
        """Release the messages in flight after the connection was lost; park one that repeatedly ended it."""
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
            self._park(entry, f"each time it is sent: {error.message}", error.hint)
            counts.strikes = 0

    # -- sending -----------------------------------------------------------------------------------------------------

    @property
    def _room(self) -> int:
        window = 1 if self._counts.strikes else self._link.window  # one at a time shows which one is at fault
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
            reason = f"the state at {topic} has {len(payload)} bytes, which are more than the broker takes"
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
            reason = f"its {len(payload)} bytes are more than the broker takes"
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
                self._in_flight[mid] = answered  # the broker will accept it later
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
        elif not refused.payload:  # the topic of an earlier device name, where this board may not publish any more
            log.warning(
                "%s, so what it retains there stays; clear it: mosquitto_pub -r -n -t %s", message, refused.topic
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
        own = (self._own_state, self._availability)  # a second board of this name shows there; not worth a complaint
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
    """Return a JSON object with "replayed": true; a payload that is no object, or an empty one, is unchanged."""
    fits = payload.startswith(b"{") and payload.endswith(b"}") and len(payload) > 2
    return payload[:-1] + b',"replayed":true}' if fits else payload
