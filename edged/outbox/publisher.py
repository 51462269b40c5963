"""The way to the broker: one thread that connects, talks, and starts again when the connection is lost.

`Publisher` is what the rest of the daemon sees, and its `_run` the whole life of the thread. What is said on a
connection is in session.py, the connection itself in link.py, and what waits for one in spool.py (messages, each to be
delivered) and states.py (retained states, of which only the latest matters).
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from threading import Thread
from typing import Any

from paho.mqtt.enums import MQTTProtocolVersion

from edged.core.health import Status
from edged.core.record import WallClock
from edged.core.topics import Topics
from edged.core.types import Message
from edged.outbox import faults
from edged.outbox.faults import CapabilityError, LinkError, VersionError
from edged.outbox.link import V5, V311, Link, Wake
from edged.outbox.network import Network, reachable
from edged.outbox.options import MqttOptions
from edged.outbox.session import DeliveryCounts, Handler, Session
from edged.outbox.spool import Spool
from edged.outbox.states import RetainedStates

log = logging.getLogger("edged.outbox")

FIRST_RETRY = 0.6
LONGEST_RETRY = 30.0

STEADY_SECONDS = 10.0
"""A connection that lived so long was a good one: the next retry comes quickly again.

So was a shorter one over which messages went, unless the broker has asked for peace, or there were several in a row:
two boards with the same client id throw each other out for ever, each after a few messages.
"""

BRIEF_SESSIONS = 3
"""So many short connections in a row, over which messages went, are each followed by the next one at once."""

BRIEF_FAILURES = 4
"""Further ones are paused after as if they were failures, but as so many at most: a bad link has to be used."""

PROBE_SECONDS = 0.5
"""How often it is tried, while messages wait and nobody listens, whether somebody does by now."""

DOUBT_SECONDS = 1.5
"""After so long without an acknowledgement it is tried likewise whether the broker can be reached at all."""

LAST_WORD_SECONDS = 1.0
"""How long a clean stop waits for the broker to take "stopped", and then for the connection to close."""


def backoff(failures: int, chance: float) -> float:
    """Seconds to wait after so many failures in a row; `chance` in [0, 1) spreads devices apart."""
    return min(LONGEST_RETRY, FIRST_RETRY * 2.0 ** min(failures - 1, 16)) * (0.5 + chance / 2)


def _check(message: Message) -> None:
    """A sink's mistake is the sink's: it would end each conversation in which it is sent, and be sent first again."""
    if not isinstance(message.payload, bytes):
        raise TypeError(f"payload is {type(message.payload).__name__}, not bytes")
    if not all(isinstance(text, str) for pair in message.properties for text in pair):
        raise TypeError("properties are not pairs of str")


class Publisher:
    """Owns the connection to the broker. Without a host it has none and drops what it is given.

    Any thread may call `put`, the states' methods and `subscribe` at any time; only `put` may wait, for the disk, where
    a pipeline wants that. `broker` is where the broker is, `connected` whether it has accepted us, `protocol` with
    which version of MQTT it last did. `reconnects` counts the connections after the first. With a `wall` clock, results
    that waited for it to be synchronised leave with the right times. `chance()` in [0, 1) spreads devices apart.
    """

    def __init__(
        self,
        options: MqttOptions,
        topics: Topics,
        spool: Spool,
        status: Status,
        clock: Callable[[], float] = time.monotonic,
        wall: WallClock | None = None,
        chance: Callable[[], float] = random.random,
        client: str = "",
    ) -> None:
        """`client` makes the client id unlike that of another board with the same name."""
        self.broker = options.broker
        self.spool = spool
        self.status = status
        self.connected = False
        self.protocol = ""
        self.reconnects = 0
        self._options = options
        self._topics = topics
        self._clock = clock
        self._wall = wall
        self._chance = chance
        self._client_id = options.client_id or "-".join(filter(None, ("edged", topics.device, client)))
        self._session: Session | None = None
        self._contested_until = -math.inf
        self._versions = {"auto": (V5, V311), "5": (V5,), "3.1.1": (V311,)}[options.protocol]
        self._states = RetainedStates()
        self._handlers: dict[str, Handler] = {}
        self._tally = DeliveryCounts()
        self._wake = Wake()
        self._network = Network()
        self._address: Any = (options.host, options.real_port)
        self._opened = False
        self._next_look = 0.0
        self._out_of_reach = False
        self._stop_at = math.inf
        self._thread = Thread(target=self._run, name="mqtt", daemon=True)

    @property
    def sent(self) -> int:
        """Messages that the broker has acknowledged."""
        return self._tally.sent

    @property
    def last_sent(self) -> float | None:
        """When it last acknowledged one, by our clock; None before the first."""
        return self._tally.last_sent

    @property
    def refused(self) -> int:
        """Messages and states that the broker would not have."""
        return self._tally.refused

    @property
    def replayed(self) -> int:
        """Messages that were sent later than they were made."""
        return self._tally.replayed

    @property
    def rate(self) -> float:
        """Messages a second that the broker takes; 0 while there is none."""
        return self._tally.rate if self.connected else 0.0

    @property
    def seconds_to_empty(self) -> float | None:
        """When nothing will wait any more if all goes on like this; None if it does not become less."""
        shrinking = self._tally.shrinking
        return self.spool.depth / shrinking if self.connected and shrinking > 0 else None

    def open(self) -> None:
        """Start the spool, so that what is put is kept as its pipeline wants; `start` does it if nobody has before."""
        if self._options.host and not self._opened:
            self._opened = True
            self.spool.start(self._wake.nudge)

    def start(self) -> None:
        """Start connecting."""
        if self._options.host:
            self.open()
            self._thread.start()
        else:
            self.status.set("stopped", "no broker is configured", "set host in [mqtt]")

    def stop(self, seconds: float) -> None:
        """Send what waits, for at most so many seconds, say "stopped" and disconnect. `join` waits for that."""
        self._stop_at = self._clock() + seconds
        self._wake.set()

    def join(self, timeout: float) -> bool:
        """Wait for the end; whether it came."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def put(self, message: Message) -> None:
        """Send a message, now or as soon as there is a broker. Raises TypeError if it is made of other types."""
        _check(message)
        if self._options.host:
            self.spool.put(message)
            self._wake.nudge()

    def publish_state(self, topic: str, payload: bytes) -> None:
        """Make a state known, retained, now and on each connection from now on; sent only if it has changed."""
        self._states.put(topic, payload)
        self._wake.nudge()

    def repeat_state(self, topic: str) -> None:
        """Send a state again though it has not changed, for a listener that may have missed it."""
        self._states.repeat(topic)
        self._wake.nudge()

    def forget_state(self, topic: str) -> None:
        """Have the broker retain nothing there."""
        self.publish_state(topic, b"")

    def is_clear(self, topic: str) -> bool:
        """Whether the broker has been told to retain nothing there, and has agreed."""
        return self._states.is_clear(topic)

    def subscribe(self, topic: str, handler: Handler) -> None:
        """Hear the messages of a topic or topic filter, now and on each connection from now on."""
        self._handlers[topic] = handler
        self._wake.nudge()

    def unsubscribe(self, topic: str) -> None:
        """Hear them no more."""
        self._handlers.pop(topic, None)
        self._wake.nudge()

    def complain(self, reason: str, hint: str, seconds: float) -> None:
        """Be degraded for so many seconds, and pause for longer after each short connection that ends in them.

        For a handler, on whose thread alone it may be called.
        """
        self._contested_until = self._clock() + seconds
        if self._session is not None:
            self._session.complain(reason, hint, seconds)

    def begin_anew(self, seconds: float) -> None:
        """Say all states again in so many seconds. For a handler, on whose thread alone it may be called."""
        if self._session is not None:
            self._session.begin_anew(seconds)

    @property
    def _stopping(self) -> bool:
        return self._stop_at < math.inf

    def _run(self) -> None:
        failures = brief = 0
        unreachable = False
        while True:
            last = self._stopping  # a stop leaves one more attempt, for what waits and for the last word
            since, sent = math.inf, self._tally.sent
            try:
                link = self._connect()
                since = self._clock()
                self._converse(link)
                break
            except LinkError as error:
                self.status.set("failed", error.message, error.hint)
                steady = self._clock() - since > STEADY_SECONDS
                delivered = self._tally.sent > sent and not error.unwelcome
                brief = brief + 1 if delivered and not steady else 0
                failures = 1 if steady else failures + 1
                if brief:
                    most = math.inf if self._clock() < self._contested_until else BRIEF_FAILURES
                    failures = int(max(1, min(brief - BRIEF_SESSIONS, most)))
                unreachable = error.unreachable
                if error.over and not last:
                    self._hold_back()
                    continue
            if last:
                break
            self._pause(backoff(failures, self._chance()), probing=unreachable)
        if left := self.spool.depth:
            log.warning("stopped, with %d messages that the broker does not have", left)
        self.status.set("stopped")

    def _connect(self) -> Link:
        """Connect with the newest version of MQTT that both sides speak."""
        first, *older = self._versions
        try:
            return self._open(first)
        except VersionError as error:
            if not older:
                raise
            if error.certain:
                self._versions = tuple(older)
        return self._open(older[0])

    def _open(self, version: MQTTProtocolVersion) -> Link:
        """Connect with as much as the broker takes: some refuse a last will that is retained, or sent with QoS 1."""
        retain, qos = True, 1
        while True:
            try:
                return Link(
                    self._options,
                    version=version,
                    client_id=self._client_id,
                    will=self._topics.availability,
                    wake=self._wake,
                    clock=self._clock,
                    retain=retain,
                    qos=qos,
                )
            except CapabilityError as error:
                if error.code == faults.RETAIN_NOT_SUPPORTED and retain:
                    retain = False
                elif error.code == faults.QOS_NOT_SUPPORTED and qos:
                    qos = 0
                else:
                    raise

    def _converse(self, link: Link) -> None:
        """Talk until the connection is lost, which raises LinkError, or all is said after a stop."""
        self.reconnects += bool(self.protocol)
        self.protocol = "5" if link.version == V5 else "3.1.1"
        self.connected = True
        self._address = link.peer
        session = self._session = Session(
            link,
            self._options,
            self._topics,
            spool=self.spool,
            states=self._states,
            handlers=self._handlers,
            tally=self._tally,
            status=self.status,
            wake=self._wake,
            clock=self._clock,
            wall=self._wall,
        )
        try:
            while not (self._stopping and session.finished) and (left := self._stop_at - self._clock()) > 0:
                session.turn(min(left, PROBE_SECONDS if session.unanswered else 1.0))
                self._look(link, session)
            session.end(LAST_WORD_SECONDS)
        except LinkError as error:
            session.abandon(error)
            raise
        except Exception as error:  # a bug of ours must not end the thread, and with it all that is said, in silence
            log.exception("the conversation with the broker failed")
            failure = LinkError(f"{type(error).__name__}: {error}", hint="report this")
            session.abandon(failure)
            raise failure from error
        finally:
            self.connected = False
            self._session = None

    def _look(self, link: Link, session: Session) -> None:
        """Every so often: raises LinkError where a connection is of no use, though it has not noticed.

        One over which nothing went for a while may live on, but goes on late: the kernel's pauses grow and grow.
        """
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + PROBE_SECONDS
        if self._network.changed():
            link.check_address()
        if session.unanswered < DOUBT_SECONDS:
            self._out_of_reach = False
        elif not reachable(link.peer, PROBE_SECONDS):
            self._out_of_reach = True
        elif self._out_of_reach:
            self._out_of_reach = False
            raise faults.interrupted(self._options)

    def _pause(self, seconds: float, *, probing: bool) -> None:
        """Wait before the next attempt: less if the network changes, or if a broker that was not there is."""
        self._network.changed()
        until = self._clock() + seconds
        while not self._stopping and (left := until - self._clock()) > 0:
            probe = probing and self.spool.depth > 0
            began = self._clock()
            until_probe = PROBE_SECONDS * (0.75 + self._chance() / 2)  # or all boards would knock in step
            if self._wake.wait(min(left, until_probe) if probe else left, self._network.fileno()):
                left = FIRST_RETRY / 2 - (self._clock() - until + seconds)
                self._wake.wait(max(0.0, left))
                self._hold_back()
                return
            if probe and self._clock() - began >= PROBE_SECONDS / 2 and reachable(self._address, min(left, 2.0)):
                self._hold_back()
                return

    def _hold_back(self) -> None:
        """Wait a moment: other boards have learned just now, too, that the broker can be reached again."""
        if not self._stopping:
            self._wake.wait(FIRST_RETRY / 2 * self._chance())
