"""What is said on one connection, in this order: states, "online", then whatever is in the spool; at last "stopped".

At most a window of messages awaits its acknowledgement, so that little has to be sent again when the connection dies.
A message leaves the spool when the broker has acknowledged it with success, is parked when the broker refuses it,
and in every other case is sent again on the next connection: a subscriber may see it twice, with the same id. What it
says of time is what is known when it is sent: whether it is replayed, and when it was made by a clock that is right.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
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
from edged.outbox.options import MqttOptions
from edged.outbox.origin_queue import Entry
from edged.outbox.spool import Spool
from edged.outbox.states import RetainedStates

log = logging.getLogger("edged.outbox")

BURST_SECONDS = 0.05
"""A limited replay comes in bursts of so many seconds' worth."""

REFUSAL_SECONDS = 60.0
"""How long a refusal shows as `degraded` after the last one."""

MAX_STRIKES = 5
"""So many times in a row may the broker hang up on the same message before it is parked."""

Handler = Callable[[str, bytes, bool], None]
"""Hears (topic, payload, whether it was retained) on the publisher's thread, and must not block."""


@dataclass
class DeliveryCounts:
    """What outlives a connection: counts, and the message during which the broker hung up, so many times in a row.

    `last_sent` is when a message was acknowledged last, None before the first. `rate` is how many messages a second the
    broker takes, and `shrinking` by how many a second fewer wait.
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
        tally: DeliveryCounts,
        status: Status,
        wake: Wake,
        clock: Callable[[], float],
        wall: WallClock | None = None,
    ) -> None:
        self._link = link
        self._options = options
        self._availability = topics.availability
        self._own_state = topics.state
        self._spool = spool
        self._states = states
        self._handlers = handlers
        self._tally = tally
        self._status = status
        self._wake = wake
        self._clock = clock
        self._wall = wall
        self._flights: dict[int, InFlight] = {}
        self._asked: dict[int, str] = {}
        self._subscribed: set[str] = set()
        self._unknown = states.restart()  # states that the broker must have before we are online
        self._online = False
        self._allowance = 0.0
        self._sampled = (clock(), tally.sent, spool.depth)
        self._spoken = clock()
        spool.resume()
        self._anew_at = math.inf
        self._degraded_until = math.inf
        self._lack = _lack(link, handlers)

    def turn(self, timeout: float) -> None:
        """Send what may be sent, wait until something happens or so many seconds are over, and deal with it.

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
        self._link.wait(timeout, lazily=self._online and 0 < len(self._flights) <= self._link.window // 2)
        self._settle()
        self._hand_out()
        self._look_at_the_time()

    @property
    def finished(self) -> bool:
        """Whether all there was to say is said and acknowledged."""
        return self._online and not self._flights and not self._states.changed and not self._spool.depth

    @property
    def unanswered(self) -> float:
        """For how many seconds the broker has owed us an acknowledgement."""
        oldest = next(iter(self._flights.values()), None)
        return 0.0 if oldest is None else self._clock() - oldest.since

    def end(self, seconds: float) -> None:
        """Say "stopped", wait so long at most for the broker to take it, and disconnect."""
        deadline = self._clock() + seconds
        try:
            last = self._fly(self._availability, STOPPED)
            while last in self._flights and self._clock() < deadline:
                self._link.wait(deadline - self._clock())
                self._settle()
        finally:
            self._spool.release()
            self._link.disconnect(seconds)

    def abandon(self, error: LinkError) -> None:
        """The connection is gone: what was under way waits again, unless the broker keeps hanging up on it."""
        head = next((flight.entry for flight in self._flights.values() if flight.entry), 0)
        if head and error.dropped:
            self._strike(head, error)
        self._spool.release()
        self._link.close()

    def _strike(self, entry: int, error: LinkError) -> None:
        tally = self._tally
        tally.strikes = tally.strikes + 1 if entry == tally.suspect else 1
        tally.suspect = entry
        if tally.strikes == MAX_STRIKES:
            self._park(entry, f"each time it is sent: {error.message}", error.hint)
            tally.strikes = 0

    # -- out ---------------------------------------------------------------------------------------------------------

    @property
    def _room(self) -> int:
        window = 1 if self._tally.strikes else self._link.window  # one at a time tells which one is the culprit
        return window - len(self._flights)

    def _subscribe(self) -> None:
        wanted = {topic for topic in list(self._handlers) if self._link.wildcards or not _is_filter(topic)}
        for topic in self._subscribed - wanted:
            self._link.unsubscribe(topic)
        for topic in wanted - self._subscribed:
            self._asked[self._link.subscribe(topic) or 0] = topic
        self._subscribed = wanted

    def _send(self) -> None:
        for topic, payload in self._states.take(self._room):
            self._fly_state(topic, payload)
        if not self._unknown and not self._online and self._room > 0:
            self._fly(self._availability, ONLINE)
            self._online = True
        if self._online and (room := self._room) > 0:
            for entry in self._spool.take(room, self._replays()):
                self._allowance -= entry.replayed
                self._fly_entry(entry)

    def _replays(self) -> int | None:
        """How many old messages may be sent now; None for any number."""
        rate = self._spool.options.replay_rate
        if not rate:
            return None
        now = self._clock()
        self._allowance = min(max(1.0, rate * BURST_SECONDS), self._allowance + rate * (now - self._spoken))
        self._spoken = now
        return int(self._allowance)

    def _fly_state(self, topic: str, payload: bytes) -> None:
        if self._link.too_large(topic, payload, None):
            reason = f"the state at {topic} has {len(payload)} bytes, which are more than the broker takes"
            self._refuse_state(topic, reason, "raise the broker's limit")
        else:
            self._fly(topic, payload)

    def _fly(self, topic: str, payload: bytes) -> int:
        mid = self._link.publish(topic, payload, qos=self._link.qos, retain=self._link.retain)
        self._flights[mid] = InFlight(topic, payload, 0, self._clock())
        return mid

    def _fly_entry(self, entry: Entry) -> None:
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
        self._tally.replayed += entry.replayed
        self._flights[mid] = InFlight(message.topic, b"", entry.id, now)

    # -- in ----------------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        taken: list[int] = []
        quota: LinkError | None = None
        for mid, reason in self._link.take_acknowledged():
            flight = self._flights.pop(mid, None)
            if flight is None:
                self._check_subscription(mid, reason)
            elif reason.value == faults.QUOTA_EXCEEDED:
                self._flights[mid] = flight  # not now, but later
                quota = faults.over_quota(reason, self._options)
            elif reason.is_failure:
                self._refuse(flight, reason)
            elif flight.entry:
                taken.append(flight.entry)
            else:
                self._confirm(flight)
        if taken:
            self._spool.ack(taken)
            self._tally.sent += len(taken)
            self._tally.last_sent = self._clock()
            self._tally.strikes = 0
        if quota is not None:
            raise quota

    def _confirm(self, flight: InFlight) -> None:
        self._states.confirm(flight.topic, flight.payload)
        self._unknown.discard(flight.topic)
        if flight.topic == self._availability and flight.payload == ONLINE and not self._degraded:
            self._be_well()

    def _refuse(self, flight: InFlight, reason: ReasonCode) -> None:
        said = f"the broker refuses {flight.topic}: {reason}"
        if flight.entry:
            self._park(flight.entry, said, faults.remedy(reason))
        elif not flight.payload:  # a name of former times, to which this board has no right any more
            log.warning("%s, so what it retains there stays; clear it: mosquitto_pub -r -n -t %s", said, flight.topic)
            self._confirm(flight)
        else:
            self._refuse_state(flight.topic, said, faults.remedy(reason))

    def _refuse_state(self, topic: str, reason: str, hint: str) -> None:
        self._unknown.discard(topic)
        self._tally.refused += 1
        self._complain(reason, hint)

    def _park(self, entry: int, reason: str, hint: str) -> None:
        self._spool.park(entry, reason)
        self._tally.refused += 1
        self._complain(reason, hint)

    def _check_subscription(self, mid: int, reason: ReasonCode) -> None:
        topic = self._asked.pop(mid, None)
        ours = (self._own_state, self._availability)  # a namesake is worth no right to read there
        if topic not in (None, *ours) and reason.is_failure:
            self._complain(f"the broker refuses the subscription to {topic}: {reason}", faults.remedy(reason))

    def begin_anew(self, seconds: float) -> None:
        """Say all states again in so many seconds, and then that we are online."""
        self._anew_at = self._clock() + seconds

    def complain(self, reason: str, hint: str, seconds: float) -> None:
        """Be degraded for a while. The first reason stays, so that two refused topics do not take turns for ever."""
        until = self._clock() + seconds
        if not self._degraded:
            self._status.set("degraded", reason, hint)
            self._degraded_until = until
        self._degraded_until = max(self._degraded_until, until)

    def _complain(self, reason: str, hint: str) -> None:
        self.complain(reason, hint, REFUSAL_SECONDS)

    def _be_well(self) -> None:
        """Be as well as the broker allows."""
        if self._lack:
            self._status.set("degraded", *self._lack)
        else:
            self._status.set("running")

    @property
    def _degraded(self) -> bool:
        return self._degraded_until < math.inf

    def _hand_out(self) -> None:
        for topic, payload, retained in self._link.take_received():
            for pattern, handler in list(self._handlers.items()):
                if topic_matches_sub(pattern, topic):
                    try:
                        handler(topic, payload, retained)
                    except Exception:  # a handler's own bug must not end the connection
                        log.exception("the handler of %s failed", pattern)

    def _look_at_the_time(self) -> None:
        now = self._clock()
        if now >= self._anew_at:
            self._anew_at = math.inf
            self._unknown = self._states.restart()
            self._online = False
        if now > self._degraded_until:
            self._degraded_until = math.inf
            self._be_well()
        then, sent, depth = self._sampled
        if now - then >= 1.0:
            self._sampled = (now, self._tally.sent, self._spool.depth)
            self._tally.rate = (self._tally.sent - sent) / (now - then)
            self._tally.shrinking = (depth - self._spool.depth) / (now - then)
        patience = 2 * self._options.keepalive
        if self.unanswered > patience:
            raise faults.stalled(patience, self._options)


def _is_filter(topic: str) -> bool:
    return "+" in topic or "#" in topic


def _lack(link: Link, handlers: Collection[str]) -> tuple[str, str] | None:
    """What the broker has said it does not do, and what that costs; None if it does all that is needed."""
    lacks = []
    if not link.retain:
        lacks.append("keeps no retained messages: a subscriber hears of a state only when it changes")
    if not link.qos:
        lacks.append("takes QoS 0 only: messages under way are lost when the connection breaks")
    if not link.wildcards and (unheard := sorted(filter(_is_filter, handlers))):
        lacks.append(f"takes no wildcards in subscriptions: {', '.join(unheard)} is not heard")
    return (f"the broker {'; it '.join(lacks)}", "allow it in the broker's configuration") if lacks else None


REPLAYED = ("replayed", "1")


def _replayed(payload: bytes) -> bytes:
    """A JSON object that says it is replayed; what is no object with anything in it stays as it is."""
    fits = payload.startswith(b"{") and payload.endswith(b"}") and len(payload) > 2
    return payload[:-1] + b',"replayed":true}' if fits else payload
