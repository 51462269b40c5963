"""A connection to a broker, from its first packet to its last.

A `Link` wraps a paho client made for this connection alone, so that paho's queues and records end with the socket;
messages to be kept are in the spool. One thread runs a link with `wait`. Acknowledgements and messages are collected
meanwhile and taken after `wait` has returned, so that no code of edged runs inside a callback of paho. Every failure is
raised as LinkError.

`wire` guards the client: any thread that holds it may also send, and hear acknowledgements. `wait` holds the wire to
read and to write, but not as it waits for an event.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Container
from threading import RLock
from typing import Any, NamedTuple, cast

from paho.mqtt import client as mqtt
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edged.core.topics import OFFLINE
from edged.outbox import faults
from edged.outbox.client import MAX_PACKET, V5, Acknowledgement, Client
from edged.outbox.credentials import read_secret, tls_context
from edged.outbox.faults import LinkError, MessageError, VersionError
from edged.outbox.network import Network, is_own_address
from edged.outbox.options import MqttOptions
from edged.outbox.packets import Publish, publish
from edged.outbox.wake import Wake

_LONGEST = 3600.0  # seconds without a look at the connection


class Received(NamedTuple):
    """A message from the broker. `retained`: sent on subscription, and not news."""

    topic: str
    payload: bytes
    retained: bool


class Link:
    """An open connection to `peer` in version `protocol` of MQTT, "5" or "3.1.1".

    `window` is the highest number of unacknowledged messages. `retain`, `qos` and `wildcards` are the broker's
    abilities: retained messages, highest quality of service, topic filters. `accepted` holds the numbers of accepted
    messages, and `answers` all other acknowledgements; the user empties both.
    """

    def __init__(
        self,
        options: MqttOptions,
        *,
        version: MQTTProtocolVersion,
        client_id: str,
        will: str,
        wake: Wake,
        network: Network,
        clock: Callable[[], float] = time.monotonic,
        retain: bool = True,
        qos: int = 1,
    ) -> None:
        """Connect; `will` is the topic for the broker's "offline" after the connection has died.

        `retain` and `qos` apply to the will, and limit all messages.

        Raises:
            LinkError: the connection failed.
        """
        self.version = version
        self.protocol = "5" if version == V5 else "3.1.1"
        self.wire = RLock()
        self._unsent: list[bytes] = []
        self._received: list[Received] = []
        self.window = options.in_flight
        self.max_packet = 0
        self.retain = retain
        self.qos = qos
        self.wildcards = True
        self._options = options
        self._wake = wake
        self._network = network
        self._clock = clock
        self._answer: ReasonCode | None = None
        self._end: LinkError | None = None
        self._client = self._make_client(client_id, will)
        self.accepted, self.answers = self._client.accepted, self._client.answers
        self._poll = select.poll()
        try:
            self._connect()
            self._await_answer()
        except LinkError:
            self.close()
            raise

    def encode(self, topic: str, payload: bytes, *, qos: int, retain: bool, properties: bytes) -> Publish:
        """Return a message for `send`. `properties` is the result of `pack`; MQTT 3.1.1 has none.

        Raises:
            MessageError: the message exceeds the limits of MQTT or of the broker.
        """
        packet = publish(topic, payload, qos=qos, retain=retain, properties=properties if self.version == V5 else b"")
        if 0 < self.max_packet < packet.size:
            reason = f"{len(payload)} bytes are more than the broker takes"
            raise MessageError(reason, hint="raise the broker's limit")
        return packet

    def send(self, message: Publish, awaited: Container[int]) -> int:
        """Send a message with the next `flush`, and return the number of its acknowledgement, none of `awaited`."""
        mid = self._client.next_mid()
        while mid in awaited:
            mid = self._client.next_mid()
        self._unsent.append(message.packet(mid))
        if not message.qos:
            self._client.accepted.append(mid)
        return mid

    def flush(self) -> None:
        """Write the messages of `send`, as far as the socket takes them; `wait` writes the rest."""
        if self._unsent:
            packets = b"".join(self._unsent)
            self._unsent.clear()
            if not self._client.send(packets):
                self._wake.set()

    def hear(self) -> bool:
        """Read the acknowledgements that have arrived, without waiting. Return False if anything but successes has
        come, or the connection has ended: `wait` takes this up.
        """
        return self._client.hear()

    @property
    def is_writable(self) -> bool:
        """True if everything sent so far has been written to the socket."""
        return self._client.fault is None and not self._client.want_write()

    def subscribe(self, topic: str) -> int | None:
        """Subscribe to a topic, and return the number of the acknowledgement."""
        return self._client.subscribe(topic, qos=1)[1]

    def unsubscribe(self, topic: str) -> None:
        """End a subscription."""
        self._client.unsubscribe(topic)

    def take_received(self) -> list[Received]:
        """Return the broker's messages since the last call."""
        taken, self._received = self._received, []
        return taken

    def wait(self, timeout: float, *, lazily: bool = False) -> None:
        """Read and write until an event, or for `timeout` seconds.

        `lazily`: do not wake up for packets of the broker, but read them after `timeout`. At a thousand messages a
        second this saves half of all awakenings.

        Raises:
            LinkError: the connection is lost.
        """
        with self.wire:
            sock = self._client.socket()
            if sock is None:
                raise self._loss()
            buffered = self._client.buffered > 0 or (hasattr(sock, "pending") and sock.pending() > 0)
            writing = self._client.want_write()
            lazily = lazily and not writing and not self._client.is_amid_packet
            if buffered or self._client.accepted or self._client.answers or self._client.fault:
                timeout = 0
        timeout = max(0.0, min(timeout, self._client.next_check - time.monotonic(), _LONGEST))
        self._poll.modify(sock, 0 if lazily else select.POLLIN | select.POLLOUT if writing else select.POLLIN)
        ready = dict(self._poll.poll(timeout * 1000))
        if ready.pop(self._wake.fileno(), 0):
            self._wake.clear()
        if self._network.fileno() in ready and self._network.changed():
            self._check_address()
        events = ready.get(sock.fileno(), 0)
        with self.wire:
            reading = lazily or buffered or bool(events & ~select.POLLOUT)
            self._drive(reading=reading, writing=bool(events & select.POLLOUT))
            if self._client.socket() is None or self._client.fault:
                raise self._loss()

    def _check_address(self) -> None:
        """Raise LinkError if this machine has lost the connection's own address."""
        sock = cast(socket.socket, self._client.socket())
        if not is_own_address(sock.getsockname(), sock.family):
            raise faults.moved(self._options)

    def disconnect(self, timeout: float) -> None:
        """Send DISCONNECT, so that the broker drops the will, and close."""
        self._client.disconnect()
        deadline = self._clock() + timeout
        try:
            while self._client.socket() is not None and (left := deadline - self._clock()) > 0:
                self.wait(left)
        except LinkError:
            pass
        self.close()

    def close(self) -> None:
        """Close the socket at once, and break reference cycles with paho instead of leaving them to the garbage
        collector.
        """
        client = self._client
        client.on_connect = client.on_disconnect = client.on_subscribe = None
        client.on_message = client.on_socket_open = None
        client.fault = self._end = None  # their tracebacks refer to this object
        if (sock := client.socket()) is not None:
            sock.close()

    def _make_client(self, client_id: str, will: str) -> Client:
        client = Client(self._options, client_id, self.version)
        client.will_set(will, OFFLINE, qos=self.qos, retain=self.retain)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_socket_open = self._tune
        return client

    def _connect(self) -> None:
        options = self._options
        if options.username:
            password = read_secret(options.password_file) if options.password_file else None
            self._client.username_pw_set(options.username, password)
        if options.tls:
            self._client.tls_set_context(tls_context(options))
        properties = None
        if self.version == V5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.MaximumPacketSize = MAX_PACKET
        try:
            self._client.connect(options.host, options.real_port, options.keepalive, properties=properties)
        except (OSError, ValueError) as error:
            # The traceback would keep paho's half-open socket alive, and the broker waiting.
            raise faults.unreachable(error, options) from error.with_traceback(None)
        sock = self._client.socket()
        if sock is None:
            raise self._loss()
        self._poll.register(sock, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        if (changes := self._network.fileno()) is not None:
            self._poll.register(changes, select.POLLIN)

    def _await_answer(self) -> None:
        options = self._options
        deadline = self._clock() + options.connect_timeout
        while self._answer is None:
            left = deadline - self._clock()
            if left <= 0:
                reason = f"{options.broker} does not answer as a broker within {options.connect_timeout:g} s"
                hint = "check that the port belongs to an MQTT broker, and set tls if the broker requires TLS"
                raise VersionError(reason, hint=hint, certain=False)
            try:
                self.wait(left)
            except LinkError as error:
                if self._answer is None:
                    raise VersionError(error.message, hint=error.hint, certain=False) from error
        if self._answer.is_failure:
            raise faults.refused(self._answer, options)
        try:
            self.peer = cast(socket.socket, self._client.socket()).getpeername()
        except OSError as error:
            raise faults.lost(error, options) from error

    def _drive(self, *, reading: bool, writing: bool) -> None:
        try:
            if reading and not self._client.hear():
                self._client.loop_read()
            if writing:
                self._client.loop_write()
            if time.monotonic() >= self._client.next_check:
                self._client.loop_misc()
        except Exception as error:  # paho's decoder is not robust against other protocols
            raise faults.not_mqtt(self._options) from error

    def _loss(self) -> LinkError:
        return self._end or faults.lost(self._client.fault, self._options)

    def _tune(self, client: Any, data: Any, sock: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # otherwise a message waits for the previous answer
        sock.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._options.keepalive * 1000
        )  # or the peer is gone

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        self._answer = reason
        self.max_packet = getattr(properties, "MaximumPacketSize", 0)
        self.retain = self.retain and bool(getattr(properties, "RetainAvailable", 1))
        self.qos = min(self.qos, getattr(properties, "MaximumQoS", 2))
        self.wildcards = bool(getattr(properties, "WildcardSubscriptionAvailable", 1))
        allowed = getattr(properties, "ReceiveMaximum", 65535)
        self.window = max(1, min(self.window, allowed - 1))  # the last place is kept for "stopped"

    def _on_disconnect(self, client: Any, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if flags.is_disconnect_packet_from_server:
            self._end = faults.dismissed(reason, self._options)
        elif reason.getName() == "Keep alive timeout":
            self._end = faults.silent(self._options)
        elif reason.getName() == "Protocol error":
            self._end = faults.not_mqtt(self._options)

    def _on_subscribe(self, client: Any, data: Any, mid: int, reasons: list[ReasonCode], properties: Any) -> None:
        self._client.answers.extend(Acknowledgement(mid, reason) for reason in reasons)

    def _on_message(self, client: Any, data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            self._received.append(Received(message.topic, bytes(message.payload), message.retain))
        except UnicodeDecodeError:
            pass  # not UTF-8, so not a topic of a subscription
