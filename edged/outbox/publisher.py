"""The publisher: a thread that connects to the broker, sends, and reconnects after a lost connection.

The rest of the daemon uses `Publisher`; `_run` is the whole life of its thread. session.py holds the conversation over
one connection, link.py the connection itself, connector.py opens connections, retry.py computes the pauses between
attempts. Messages wait in spool.py, and each message is delivered; retained states wait in states.py, and only the
latest state is sent.

The modules of the connection, and paho with them, are imported by `Publisher.start`: the first result is earlier.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any

from edged.core.health import Status
from edged.core.record import WallClock
from edged.core.topics import Topics
from edged.core.types import Message
from edged.outbox.delivery_counts import DeliveryCounts
from edged.outbox.network import PROBE_SECONDS, Network, reachable
from edged.outbox.options import MqttOptions
from edged.outbox.retry import FIRST_RETRY, RetrySchedule, backoff
from edged.outbox.spool import Spool
from edged.outbox.states import RetainedStates
from edged.outbox.wake import Wake
from edged.system.later import import_paho

if TYPE_CHECKING:
    from edged.outbox.connector import Connector
    from edged.outbox.link import Link
    from edged.outbox.link_watch import LinkWatch
    from edged.outbox.session import Session
    from edged.outbox.subscriptions import Handler

log = logging.getLogger("edged.outbox")

STOP_SECONDS = 1.0
"""Longest wait of a clean stop for the acknowledgement of "stopped", and then for the connection to close."""


class Publisher:
    """Owns the connection to the broker. Without a host, messages are dropped.

    Any thread may call `put`, the methods for states and `subscribe` at any time; only `put` may wait, for the disk, if
    the pipeline's durability requires it. `broker` is host and port, `connected` is true while the broker accepts
    messages, `protocol` is the last version of MQTT in use. `reconnects` counts the connections after the first. With a
    `wall` clock, results made before the clock was synchronised are sent with corrected times. `chance()` in [0, 1)
    spreads devices apart.
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
        """`client` makes the client id differ between two boards of the same name."""
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
        self._session: Session | None = None
        self._contested_until = -math.inf
        self._states = RetainedStates()
        self._handlers: dict[str, Handler] = {}
        self._counts = DeliveryCounts()
        self._wake = Wake()
        self._network = Network()
        self._client_id = options.client_id or "-".join(filter(None, ("edged", topics.device, client)))
        self._address: Any = (options.host, options.real_port)
        self._opened = False
        self._stop_at = math.inf
        self._thread: Thread | None = None

    @property
    def sent(self) -> int:
        """Number of messages acknowledged by the broker."""
        return self._counts.sent

    @property
    def last_sent(self) -> float | None:
        """Time of the last acknowledgement, by `clock`; None before the first."""
        return self._counts.last_sent

    @property
    def refused(self) -> int:
        """Number of messages and states refused by the broker."""
        return self._counts.refused

    @property
    def replayed(self) -> int:
        """Number of messages sent later than made."""
        return self._counts.replayed

    @property
    def rate(self) -> float:
        """Messages acknowledged per second; 0 without a connection."""
        return self._counts.rate if self.connected else 0.0

    @property
    def seconds_to_empty(self) -> float | None:
        """Seconds until the spool is empty at the present rate; None if the spool does not shrink."""
        shrinking = self._counts.shrinking
        return self.spool.depth / shrinking if self.connected and shrinking > 0 else None

    def open(self) -> None:
        """Start the spool, so that messages are kept before `start`, which otherwise starts the spool itself."""
        if self._options.host and not self._opened:
            self._opened = True
            self.spool.start(self._wake.nudge)

    def start(self) -> None:
        """Start connecting."""
        if not self._options.host:
            self.status.set("stopped", "no broker is configured", "set host in [mqtt]")
            return
        self.open()
        import_paho()
        from edged.outbox.connector import Connector
        from edged.outbox.link_watch import LinkWatch
        from edged.outbox.session import Session

        connector = Connector(
            self._options,
            client_id=self._client_id,
            will=self._topics.availability,
            wake=self._wake,
            network=self._network,
            clock=self._clock,
        )
        begin = partial(
            Session,
            options=self._options,
            topics=self._topics,
            spool=self.spool,
            states=self._states,
            handlers=self._handlers,
            counts=self._counts,
            status=self.status,
            wake=self._wake,
            clock=self._clock,
            wall=self._wall,
        )
        watch = LinkWatch(self._options, self._clock)
        self._thread = Thread(target=self._run, args=(connector, begin, watch), name="mqtt", daemon=True)
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Send waiting messages for at most so many seconds, publish "stopped" and disconnect; `join` waits for the
        end.
        """
        self._stop_at = self._clock() + seconds
        self._wake.set()

    def join(self, timeout: float) -> bool:
        """Wait for the thread, and return True if the thread has ended."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def put(self, message: Message) -> None:
        """Send a message, now or after the next connection. Raises TypeError for a payload or properties of the wrong
        type.
        """
        if not isinstance(message.payload, bytes):  # it would end every connection, and be sent first on the next
            raise TypeError(f"payload is {type(message.payload).__name__}, not bytes")
        for key, value in message.properties:
            if not (isinstance(key, str) and isinstance(value, str)):
                raise TypeError("properties are not pairs of str")
        if not self._options.host:
            return
        session = self._session
        if session is None or not session.send_directly(message):
            self.spool.put(message)
            self._wake.nudge()

    def publish_state(self, topic: str, payload: bytes) -> None:
        """Publish a state, retained, now and on each later connection; the same state again is not sent."""
        self._states.put(topic, payload)
        self._wake.nudge()

    def repeat_state(self, topic: str) -> None:
        """Send an unchanged state again, for a subscriber that may have missed it."""
        self._states.repeat(topic)
        self._wake.nudge()

    def forget_state(self, topic: str) -> None:
        """Have the broker retain no message at a topic."""
        self.publish_state(topic, b"")

    def is_clear(self, topic: str) -> bool:
        """Return True if the broker has confirmed the deletion of the retained message at a topic."""
        return self._states.is_clear(topic)

    def subscribe(self, topic: str, handler: Handler) -> None:
        """Pass the messages of a topic or topic filter to a handler, on the present and each later connection."""
        self._handlers[topic] = handler
        self._wake.nudge()

    def unsubscribe(self, topic: str) -> None:
        """End a subscription."""
        self._handlers.pop(topic, None)
        self._wake.nudge()

    def degrade(self, reason: str, hint: str, seconds: float) -> None:
        """Be degraded for so many seconds; brief connections meanwhile are followed by longer pauses.

        Called by handlers, on the publisher's thread.
        """
        self._contested_until = self._clock() + seconds
        if self._session is not None:
            self._session.health.degrade(reason, hint, seconds)

    def repeat_states(self, seconds: float) -> None:
        """Publish all states again in so many seconds. Called by handlers, on the publisher's thread."""
        if self._session is not None:
            self._session.repeat_states(seconds)

    @property
    def _stopping(self) -> bool:
        return self._stop_at < math.inf

    def _run(self, connector: Connector, begin: Callable[[Link], Session], watch: LinkWatch) -> None:
        from edged.outbox.faults import LinkError

        retries = RetrySchedule()
        unreachable = False
        while True:
            last = self._stopping  # after a stop, make a final attempt for waiting messages and "stopped"
            since, sent = math.inf, self._counts.sent
            try:
                link = connector.connect()
                since = self._clock()
                self._converse(link, begin, watch)
                break
            except LinkError as error:
                self.status.set("failed", error.message, error.hint)
                now = self._clock()
                delivered = self._counts.sent > sent and not error.unwelcome
                retries.record(now - since, delivered=delivered, contested=now < self._contested_until)
                unreachable = error.unreachable
                if error.over and not last:
                    self._spread()
                    continue
            if last:
                break
            self._pause(backoff(retries.failures, self._chance()), probing=unreachable)
        if left := self.spool.depth:
            log.warning("stopped, with %d messages not yet delivered to the broker", left)
        self.status.set("stopped")

    def _converse(self, link: Link, begin: Callable[[Link], Session], watch: LinkWatch) -> None:
        """Run a session until all is sent after a stop; raise LinkError if the connection is lost."""
        from edged.outbox.faults import LinkError

        self.reconnects += bool(self.protocol)
        self.protocol = link.protocol
        self.connected = True
        self._address = link.peer
        session = self._session = begin(link)
        try:
            while not (self._stopping and session.finished) and (left := self._stop_at - self._clock()) > 0:
                session.turn(left)
                watch.check(link, session.unanswered)
            session.end(STOP_SECONDS)
        except LinkError as error:
            session.abandon(error)
            raise
        except Exception as error:  # a bug must not end the thread silently
            log.exception("the conversation with the broker failed")
            failure = LinkError(f"{type(error).__name__}: {error}", hint="report this")
            session.abandon(failure)
            raise failure from error
        finally:
            self.connected = False
            self._session = None

    def _pause(self, seconds: float, *, probing: bool) -> None:
        """Wait before the next attempt: less if the network changes, or if `probing` finds the broker."""
        self._network.changed()
        until = self._clock() + seconds
        while not self._stopping and (left := until - self._clock()) > 0:
            probe = probing and self.spool.depth > 0
            began = self._clock()
            until_probe = PROBE_SECONDS * (0.75 + self._chance() / 2)  # spread, or all boards would probe in step
            if self._wake.wait(min(left, until_probe) if probe else left, self._network.fileno()):
                left = FIRST_RETRY / 2 - (self._clock() - until + seconds)
                self._wake.wait(max(0.0, left))
                self._spread()
                return
            if probe and self._clock() - began >= PROBE_SECONDS / 2 and reachable(self._address, min(left, 2.0)):
                self._spread()
                return

    def _spread(self) -> None:
        """Wait a moment: other boards have noticed the return of the broker at the same time."""
        if not self._stopping:
            self._wake.wait(FIRST_RETRY / 2 * self._chance())
