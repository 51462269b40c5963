"""A conversation with the broker, in this order: states, "online", the messages of the spool; at last "stopped".

At most a window of messages awaits acknowledgement, so that little must be sent again after a lost connection. A
message acknowledged with success leaves the spool, a refused message is parked, and every other message is sent again
on the next connection: a subscriber may receive a message twice, with the same id. The payload is completed on sending:
the mark of a replay, and the time of creation by a synchronised clock.

The publisher's thread runs the conversation. A message with nothing before it is sent by the thread that made it, with
`send_directly`: this spares two threads a hand-off. Whoever sends or settles holds the link's wire; within the wire the
lock of the spool may be taken, never the other way round. The publisher's thread meanwhile sleeps, and reads
acknowledgements only if the sending threads have not.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import msgspec
from paho.mqtt.reasoncodes import ReasonCode

from edged.core.health import Status
from edged.core.record import WallClock, corrected
from edged.core.topics import ONLINE, STOPPED, Topics
from edged.core.types import Message
from edged.outbox import faults
from edged.outbox.delivery_counts import DeliveryCounts
from edged.outbox.faults import LinkError, MessageError
from edged.outbox.link import Link
from edged.outbox.link_health import LinkHealth, limitation
from edged.outbox.network import PROBE_SECONDS
from edged.outbox.options import MqttOptions
from edged.outbox.origin_queue import Entry
from edged.outbox.packets import NO_PROPERTIES, Publish, pack
from edged.outbox.replay_limit import BURST_SECONDS, ReplayLimit
from edged.outbox.spool import Spool
from edged.outbox.states import RetainedStates
from edged.outbox.subscriptions import Handler, Subscriptions
from edged.outbox.wake import Wake

log = logging.getLogger("edged.outbox")

MAX_STRIKES = 5
"""Number of connections in a row closed by the broker with the same message in flight, after which the message is
parked.
"""

_RATE_SECONDS = 1.0
"""Time over which rates are measured, and longest sleep while messages are sent."""

_UNHEARD = 4
"""Divisor of the window. With fewer messages in flight than this part of it, threads that send directly leave
acknowledgements unread: several at a time cost little more than one.
"""

_LAZY = 0.02  # longest wait of an unread acknowledgement, in seconds
_LAZY_BESIDE_SENDERS = 0.25  # the same while threads send directly, and read acknowledgements at times


class InFlight(msgspec.Struct, frozen=True, gc=False):
    """A message awaiting acknowledgement; `entry` is its id in the spool, 0 for a state."""

    topic: str
    payload: bytes
    entry: int
    since: float


class Session:
    """A conversation with the broker over a link.

    Any thread may call `send_directly`; all else is the publisher's thread's.
    """

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
        self._spool = spool
        self._states = states
        self._subscriptions = Subscriptions(link, handlers, quiet=(topics.state, topics.availability))
        self._counts = counts
        self._wake = wake
        self._clock = clock
        self._wall = wall
        self._in_flight: dict[int, InFlight] = {}
        self._missing = states.restart()  # states to be acknowledged before "online"
        self._online = False
        self._is_over = False
        self._is_resting = False  # the publisher's thread sleeps, and does not watch for acknowledgements
        self._sent_directly = (-math.inf, -math.inf)  # times of the last two messages
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
        with self._link.wire:
            self._subscriptions.update()
            self._send()
            if self._room <= 0:
                self._wake.disarm()
            lazy = self._laziness
            pause = min(timeout, self._pause, lazy or math.inf)
            self._is_resting = pause > _RATE_SECONDS
        self._link.wait(pause, lazily=lazy > 0)
        with self._link.wire:
            self._is_resting = False
            self._handle_acknowledgements()
        self._subscriptions.deliver()
        with self._link.wire:
            self._handle_time()

    def send_directly(self, message: Message) -> bool:
        """Send a message at once, on the calling thread, if no other message or state is to be sent before it and the
        connection is free. Return False, and do nothing, otherwise: the message must be put into the spool.
        """
        wire = self._link.wire
        if not wire.acquire(blocking=False):
            return False
        try:
            if self._is_over or not self._online or not message.qos or not self._link.qos:
                return False
            if len(self._in_flight) * _UNHEARD >= self._link.window and not self._hear():
                self._wake.set()
                return False
            if self._missing or self._states.changed or self._counts.strikes:
                return False
            if len(self._in_flight) >= self._link.window or not self._link.is_writable:
                return False
            try:
                packet = _encode(message, self._link, self._wall, self._clock(), replayed=False)
            except MessageError:
                return False  # to be parked by the publisher's thread, as it changes the health
            if (entry_id := self._spool.enter(message)) is None:
                return False
            self._send_message(message, entry_id, packet)
            self._link.flush()
            self._sent_directly = (self._sent_directly[1], self._clock())
            if self._is_resting:
                self._is_resting = False
                self._wake.set()
            return True
        finally:
            wire.release()

    @property
    def finished(self) -> bool:
        """True if every state and message was sent and acknowledged."""
        return self._online and not self._in_flight and not self._states.changed and not self._spool.depth

    @property
    def unanswered(self) -> float:
        """Seconds since the oldest unacknowledged message was sent."""
        with self._link.wire:
            oldest = next(iter(self._in_flight.values()), None)
        return 0.0 if oldest is None else self._clock() - oldest.since

    def end(self, seconds: float) -> None:
        """Publish "stopped", wait at most so long for the acknowledgement, and disconnect."""
        deadline = self._clock() + seconds
        try:
            with self._link.wire:
                self._is_over = True
                last = self._publish(self._availability, STOPPED)
                self._link.flush()
            while last in self._in_flight and self._clock() < deadline:
                self._link.wait(deadline - self._clock())
                with self._link.wire:
                    self._handle_acknowledgements()
        finally:
            self._spool.release()
            self._link.disconnect(seconds)

    def abandon(self, error: LinkError) -> None:
        """Release the messages in flight after a lost connection; park a message with too many strikes."""
        with self._link.wire:
            self._is_over = True
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

    # -- waiting -----------------------------------------------------------------------------------------------------

    @property
    def _laziness(self) -> float:
        """Seconds for which acknowledgements may go unread; 0 if they are awaited.

        Threads that send directly read them once a quarter of the window is in flight. Beyond half of a window nobody
        may be lazy: a broker slow to acknowledge would hold up all messages.
        """
        if not self._online or len(self._in_flight) > self._link.window // 2:
            return 0.0
        if self._clock() - self._sent_directly[0] < _LAZY_BESIDE_SENDERS:
            return _LAZY_BESIDE_SENDERS
        return _LAZY if self._in_flight else 0.0

    @property
    def _pause(self) -> float:
        """Seconds until something is to be done even if nothing happens."""
        depth = self._spool.depth
        if depth and self._spool.options.replay_rate:
            return BURST_SECONDS
        if self._in_flight:
            return PROBE_SECONDS
        if depth:
            return _RATE_SECONDS
        then, *before = self._sampled
        changing = self._counts.rate or self._counts.shrinking or before != [self._counts.sent, depth]
        due = min(self._repeat_at, self.health.until, then + _RATE_SECONDS if changing else math.inf)
        return max(0.0, due - self._clock())

    # -- sending -----------------------------------------------------------------------------------------------------

    @property
    def _room(self) -> int:
        if not self._link.is_writable:
            return 0
        window = 1 if self._counts.strikes else self._link.window  # sent one at a time, the culprit shows
        return window - len(self._in_flight)

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
        self._link.flush()

    def _publish_state(self, topic: str, payload: bytes) -> None:
        try:
            self._publish(topic, payload)
        except MessageError as error:
            self._refuse_state(topic, f"the state at {topic} cannot be sent: {error.message}", error.hint)

    def _publish(self, topic: str, payload: bytes) -> int:
        link = self._link
        packet = link.encode(topic, payload, qos=link.qos, retain=link.retain, properties=NO_PROPERTIES)
        mid = link.send(packet, self._in_flight)
        self._in_flight[mid] = InFlight(topic, payload, 0, self._clock())
        return mid

    def _publish_entry(self, entry: Entry) -> None:
        try:
            packet = _encode(entry.message, self._link, self._wall, self._clock(), replayed=entry.replayed)
        except MessageError as error:
            self._park(entry.id, error.message, error.hint)
            return
        self._counts.replayed += entry.replayed
        self._send_message(entry.message, entry.id, packet)

    def _send_message(self, message: Message, entry_id: int, packet: Publish) -> None:
        mid = self._link.send(packet, self._in_flight)
        self._in_flight[mid] = InFlight(message.topic, b"", entry_id, self._clock())

    # -- receiving ---------------------------------------------------------------------------------------------------

    def _hear(self) -> bool:
        """Settle the messages acknowledged by now. Return False if the broker has sent anything else, which the
        publisher's thread must handle; it may have read a refusal a moment ago.
        """
        link, in_flight = self._link, self._in_flight
        if not link.hear() or link.answers:
            return False
        if link.accepted:
            for mid in link.accepted:
                if mid not in in_flight or not in_flight[mid].entry:
                    return False
            self._settle_accepted()
            self._wake.arm()  # there is room again, of which the publisher's thread does not know
        return True

    def _handle_acknowledgements(self) -> None:
        quota: LinkError | None = None
        for mid, reason in self._link.answers:
            if mid not in self._in_flight:
                if topic := self._subscriptions.refused(mid, reason):
                    message = f"the broker refuses the subscription to {topic}: {reason}"
                    self.health.degrade(message, faults.remedy(reason))
            elif reason.value == faults.QUOTA_EXCEEDED:  # to be accepted later
                quota = faults.over_quota(reason, self._options)
            elif reason.is_failure:
                self._refuse(self._in_flight.pop(mid), reason)
            else:
                self._link.accepted.append(mid)
        self._link.answers.clear()
        self._settle_accepted()
        if quota is not None:
            raise quota

    def _settle_accepted(self) -> None:
        entries = []
        for mid in self._link.accepted:
            accepted = self._in_flight.pop(mid, None)
            if accepted is None:
                continue
            if accepted.entry:
                entries.append(accepted.entry)
            else:
                self._confirm(accepted)
        self._link.accepted.clear()
        if entries:
            self._spool.ack(entries)
            self._counts.sent += len(entries)
            self._counts.last_sent = self._clock()
            self._counts.strikes = 0

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

    def _handle_time(self) -> None:
        now = self._clock()
        if now >= self._repeat_at:
            self._repeat_at = math.inf
            self._missing = self._states.restart()
            self._online = False
        self.health.check_time()
        then, sent, depth = self._sampled
        if now - then >= _RATE_SECONDS:
            self._sampled = (now, self._counts.sent, self._spool.depth)
            self._counts.rate = (self._counts.sent - sent) / (now - then)
            self._counts.shrinking = (depth - self._spool.depth) / (now - then)
        limit = 2 * self._options.keepalive
        if self.unanswered > limit:
            raise faults.stalled(limit, self._options)


def _encode(message: Message, link: Link, wall: WallClock | None, now: float, *, replayed: bool) -> Publish:
    """Return the packet of a message sent now. Raises MessageError."""
    expiry = max(1, math.ceil(message.created + message.expiry - now)) if message.expiry else 0
    payload = message.payload
    if wall is not None and not message.estimated:
        payload = corrected(payload, message.created, wall)
    if replayed:
        payload = _replayed(payload)
    user = (*message.properties, REPLAYED) if replayed else message.properties
    properties = pack(expiry, user, png=payload.startswith(_PNG))
    return link.encode(message.topic, payload, qos=min(message.qos, link.qos), retain=False, properties=properties)


REPLAYED = ("replayed", "1")
_PNG = b"\x89PNG"


def _replayed(payload: bytes) -> bytes:
    """Return a JSON object with "replayed": true; other payloads and an empty object are unchanged."""
    fits = payload.startswith(b"{") and payload.endswith(b"}") and len(payload) > 2
    return payload[:-1] + b',"replayed":true}' if fits else payload
