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

from paho.mqtt.enums import MQTTProtocolVersion

from edged.core.health import Status
from edged.core.topics import Topics
from edged.core.types import Message
from edged.outbox.faults import LinkError, VersionError
from edged.outbox.link import V5, V311, Link, Wake
from edged.outbox.options import MqttOptions
from edged.outbox.session import Handler, Session, Tally
from edged.outbox.spool import Spool
from edged.outbox.states import States

log = logging.getLogger("edged.outbox")

FIRST_RETRY = 0.6
LONGEST_RETRY = 30.0

STEADY_SECONDS = 10.0
"""A connection that lived so long was a good one: the next retry comes quickly again."""

LAST_WORD_SECONDS = 1.0
"""How long a clean stop waits for the broker to take "stopped", and then for the connection to close."""


def backoff(failures: int, chance: float) -> float:
    """Seconds to wait after so many failures in a row; `chance` in [0, 1) spreads devices apart."""
    return min(LONGEST_RETRY, FIRST_RETRY * 2.0 ** min(failures - 1, 16)) * (0.5 + chance / 2)


class Publisher:
    """Owns the connection to the broker. Without a host it has none and drops what it is given.

    Any thread may call `put`, the states' methods and `subscribe` at any time; none of them waits. `broker` is where
    the broker is, `connected` whether it has accepted us, `protocol` with which version of MQTT it last did.
    `reconnects` counts the connections after the first.
    """

    def __init__(
        self,
        options: MqttOptions,
        topics: Topics,
        spool: Spool,
        status: Status,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.broker = options.broker
        self.spool = spool
        self.status = status
        self.connected = False
        self.protocol = ""
        self.reconnects = 0
        self._options = options
        self._topics = topics
        self._clock = clock
        self._versions = {"auto": (V5, V311), "5": (V5,), "3.1.1": (V311,)}[options.protocol]
        self._states = States()
        self._handlers: dict[str, Handler] = {}
        self._tally = Tally()
        self._wake = Wake()
        self._stop_at = math.inf
        self._thread = Thread(target=self._run, name="mqtt", daemon=True)

    @property
    def sent(self) -> int:
        """Messages that the broker has acknowledged."""
        return self._tally.sent

    @property
    def refused(self) -> int:
        """Messages and states that the broker would not have."""
        return self._tally.refused

    def start(self) -> None:
        """Start connecting."""
        if self._options.host:
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
        """Send a message, now or as soon as there is a broker."""
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

    def subscribe(self, topic: str, handler: Handler) -> None:
        """Hear the messages of a topic or topic filter, now and on each connection from now on."""
        self._handlers[topic] = handler
        self._wake.nudge()

    @property
    def _stopping(self) -> bool:
        return self._stop_at < math.inf

    def _run(self) -> None:
        failures = 0
        while True:
            last = self._stopping  # a stop leaves one more attempt, for what waits and for the last word
            since = math.inf
            try:
                link = self._connect()
                since = self._clock()
                self._converse(link)
                break
            except LinkError as error:
                self.status.set("failed", error.message, error.hint)
                failures = 1 if self._clock() - since > STEADY_SECONDS else failures + 1
            if last:
                break
            self._pause(backoff(failures, random.random()))
        if left := self.spool.stats.depth:
            log.warning("stopped, with %d messages that the broker never got", left)
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
        return Link(
            self._options,
            version=version,
            client_id=self._options.client_id or f"edged-{self._topics.device}",
            will=self._topics.availability,
            wake=self._wake,
            clock=self._clock,
        )

    def _converse(self, link: Link) -> None:
        """Talk until the connection is lost, which raises LinkError, or all is said after a stop."""
        self.reconnects += bool(self.protocol)
        self.protocol = "5" if link.version == V5 else "3.1.1"
        self.connected = True
        session = Session(
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
        )
        try:
            while not (self._stopping and session.finished) and (left := self._stop_at - self._clock()) > 0:
                session.turn(min(left, 1.0))
            session.end(LAST_WORD_SECONDS)
        except LinkError as error:
            session.abandon(error)
            raise
        finally:
            self.connected = False

    def _pause(self, seconds: float) -> None:
        until = self._clock() + seconds
        while not self._stopping and (left := until - self._clock()) > 0:
            self._wake.wait(left)
