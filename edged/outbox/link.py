"""A connection to a broker, from its first packet to its last.

A `Link` wraps a paho client made for this connection alone, so that paho's queues and records end with the socket;
messages to be kept are in the spool. A link belongs to one thread, which runs it with `wait`. Acknowledgements and
messages are collected meanwhile and taken after `wait` has returned, so that no code of edged runs inside a callback of
paho. Every failure is raised as LinkError.
"""

from __future__ import annotations

import functools
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edged.core.topics import OFFLINE
from edged.outbox import faults, network
from edged.outbox.credentials import read_secret, tls_context
from edged.outbox.faults import LinkError, VersionError
from edged.outbox.options import MqttOptions
from edged.outbox.websocket import WebSocket

V5 = MQTTProtocolVersion.MQTTv5
V311 = MQTTProtocolVersion.MQTTv311

MAX_PACKET = 64 << 10
"""Largest packet accepted from a broker, in bytes."""

_READ_AHEAD = 4096  # bytes
_TICK = 1.0  # seconds between looks at the keepalive
_LAZY = 0.02  # longest wait of an unread acknowledgement, in seconds
_JSON = b"\x03\x00\x10application/json"  # the property "content type"


class Wake:
    """Ends another thread's `wait`: an eventfd, to be polled together with a socket.

    `nudge` announces new work, and costs nothing while the other thread is busy or has no use for more: the other
    thread must arm before looking for work. `set` always ends the wait.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._armed = False

    def fileno(self) -> int:
        """Return the descriptor to poll for reading."""
        return self._fd

    def set(self) -> None:
        """End the wait, or the next wait."""
        os.eventfd_write(self._fd, 1)

    def arm(self) -> None:
        """Let the next nudge end the wait."""
        self._armed = True

    def disarm(self) -> None:
        """Ignore nudges."""
        self._armed = False

    def nudge(self) -> None:
        """End the wait, or the next wait, of an armed thread."""
        if self._armed:
            self._armed = False
            self.set()

    def wait(self, timeout: float, other: int | None = None) -> bool:
        """Wait at most `timeout` seconds for `set` or for `other` to be readable; return True for `other`."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if other is not None:
            poll.register(other, select.POLLIN)
        ready = dict(poll.poll(timeout * 1000))
        if self._fd in ready:
            self.clear()
        return other in ready

    def clear(self) -> None:
        """Reset after the wait has ended."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            pass

    def __del__(self) -> None:
        os.close(self._fd)


class Acknowledgement(NamedTuple):
    """The broker's answer to a message or a subscription."""

    mid: int
    reason: ReasonCode


class Received(NamedTuple):
    """A message from the broker. `retained`: sent on subscription, and not news."""

    topic: str
    payload: bytes
    retained: bool


class Link:
    """An open connection to `peer`. `window` is the highest number of unacknowledged messages.

    `retain`, `qos` and `wildcards` are the broker's abilities: retained messages, highest quality of service, topic
    filters.
    """

    def __init__(
        self,
        options: MqttOptions,
        *,
        version: MQTTProtocolVersion,
        client_id: str,
        will: str,
        wake: Wake,
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
        self._acknowledged: list[Acknowledgement] = []
        self._received: list[Received] = []
        self.window = options.in_flight
        self.max_packet = 0
        self.retain = retain
        self.qos = qos
        self.wildcards = True
        self._options = options
        self._wake = wake
        self._clock = clock
        self._next_tick = 0.0
        self._answer: ReasonCode | None = None
        self._end: LinkError | None = None
        self._client = self._make_client(client_id, will)
        self._poll = select.poll()
        try:
            self._connect()
            self._await_answer()
        except LinkError:
            self.close()
            raise

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool, properties: bytes | None = None) -> int:
        """Send a message, and return the number of its acknowledgement. `properties` is the result of `pack`.

        Raises:
            ValueError: topic or payload exceed the limits of MQTT.
        """
        packed = cast(Properties, _Packed(properties)) if properties and self.version == V5 else None
        return self._client.publish(topic, payload, qos, retain, packed).mid

    def too_large(self, topic: str, payload: bytes, properties: bytes | None) -> bool:
        """Return True if the broker has announced a lower limit for packets than this message needs."""
        size = 9 + len(topic.encode()) + len(properties or b"") + len(payload)
        return 0 < self.max_packet < size

    def subscribe(self, topic: str) -> int | None:
        """Subscribe to a topic, and return the number of the acknowledgement."""
        return self._client.subscribe(topic, qos=1)[1]

    def unsubscribe(self, topic: str) -> None:
        """End a subscription."""
        self._client.unsubscribe(topic)

    def take_acknowledged(self) -> list[Acknowledgement]:
        """Return the broker's acknowledgements since the last call."""
        taken, self._acknowledged = self._acknowledged, []
        return taken

    def take_received(self) -> list[Received]:
        """Return the broker's messages since the last call."""
        taken, self._received = self._received, []
        return taken

    def wait(self, timeout: float, *, lazily: bool = False) -> None:
        """Read and write until an event, or for `timeout` seconds.

        `lazily`: do not wake up for packets of the broker, but read them with the next write, or a few milliseconds
        later. At a thousand messages a second this saves half of all awakenings.

        Raises:
            LinkError: the connection is lost.
        """
        sock = self._client.socket()
        if sock is None:
            raise self._loss()
        buffered = self._client.buffered > 0 or (hasattr(sock, "pending") and sock.pending() > 0)
        writing = self._client.want_write()
        lazily = lazily and not writing
        timeout = 0 if buffered or self._acknowledged else min(timeout, _LAZY if lazily else _TICK)
        self._poll.modify(sock, 0 if lazily else select.POLLIN | select.POLLOUT if writing else select.POLLIN)
        ready = dict(self._poll.poll(timeout * 1000))
        if ready.pop(self._wake.fileno(), 0):
            self._wake.clear()
        events = next(iter(ready.values()), 0)
        reading = lazily or buffered or bool(events & ~select.POLLOUT)
        self._drive(reading=reading, writing=bool(events & select.POLLOUT))
        if self._client.socket() is None:
            raise self._loss()

    def check_address(self) -> None:
        """Raise LinkError if this machine has lost the connection's own address."""
        sock = cast(socket.socket | None, self._client.socket())
        if sock is not None and not network.is_own_address(sock.getsockname(), sock.family):
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
        client.on_connect = client.on_disconnect = client.on_publish = None
        client.on_subscribe = client.on_message = client.on_socket_open = None
        client.fault = self._end = None  # their tracebacks refer to this object
        if (sock := client.socket()) is not None:
            sock.close()

    def _make_client(self, client_id: str, will: str) -> _Client:
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if self.version == V5 else True,
            protocol=self.version,
            reconnect_on_failure=False,
        )
        client.options = self._options
        client.connect_timeout = self._options.connect_timeout
        client.max_inflight_messages_set(0)  # the session keeps the window
        client.will_set(will, OFFLINE, qos=self.qos, retain=self.retain)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
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
        now = self._clock()
        try:
            if reading:
                self._client.loop_read()
            if writing:
                self._client.loop_write()
            if now >= self._next_tick:
                self._next_tick = now + _TICK
                self._client.loop_misc()
        except Exception as error:  # paho's decoder is not robust against other protocols
            raise faults.not_mqtt(self._options) from error

    def _loss(self) -> LinkError:
        if self._client.fault is not None or self._end is None:
            return faults.lost(self._client.fault, self._options)
        return self._end

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

    def _on_publish(self, client: Any, data: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        self._acknowledged.append(Acknowledgement(mid, reason))

    def _on_subscribe(self, client: Any, data: Any, mid: int, reasons: list[ReasonCode], properties: Any) -> None:
        self._acknowledged.extend(Acknowledgement(mid, reason) for reason in reasons)

    def _on_message(self, client: Any, data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            self._received.append(Received(message.topic, bytes(message.payload), message.retain))
        except UnicodeDecodeError:
            pass  # not UTF-8, so not a topic of a subscription


class _Client(mqtt.Client):
    """paho's client with bounded reads and the reason for a lost connection.

    It is cheaper as well: paho asks the kernel three times for an acknowledgement of five bytes, and builds tables of
    absent properties, together a third of the cost of a message.
    """

    options = MqttOptions()
    fault: OSError | None = None
    _read_ahead = b""
    _position = 0

    @property
    def buffered(self) -> int:
        """So many bytes have been read from the socket and not been looked at."""
        return len(self._read_ahead) - self._position

    def _create_socket(self) -> Any:
        options = self.options
        sock = network.connect(self.host, self.port, self.connect_timeout)
        if self._ssl_context is not None:
            name = options.server_name or options.host
            sock = self._ssl_context.wrap_socket(sock, server_hostname=name)
        return WebSocket(sock, options) if options.transport == "websockets" else sock

    def _sock_recv(self, bufsize: int) -> bytes:
        try:
            if bufsize > MAX_PACKET:
                raise ConnectionError(f"the broker announced a packet of {bufsize} bytes")
            if not self.buffered:
                self._read_ahead, self._position = super()._sock_recv(_READ_AHEAD), 0
            taken = self._read_ahead[self._position : self._position + bufsize]
            self._position += len(taken)
            return taken
        except BlockingIOError:
            raise
        except OSError as error:
            self.fault = error
            raise

    def _sock_send(self, buf: bytes | bytearray) -> int:
        try:
            return super()._sock_send(buf)
        except BlockingIOError:
            raise
        except OSError as error:
            self.fault = error
            raise

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        packet = self._in_packet["packet"]
        mid = int.from_bytes(packet[:2], "big")
        if cmd == "PUBACK" and len(packet) == 3 and self._protocol == V5 and mid in self._out_messages:
            return self._do_on_publish(mid, _reason(packet[2]), _NONE)
        return super()._handle_pubackcomp(cmd)


@functools.cache
def _reason(value: int) -> ReasonCode:
    return ReasonCode(PacketTypes.PUBACK, identifier=value)


_NONE = Properties(PacketTypes.PUBACK)  # type: ignore[no-untyped-call]


class _Packed:
    """Packed properties in place of paho's own, which take twenty times as long to pack."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    def pack(self) -> bytes:
        return self._packed


def pack(expiry: int, user: tuple[tuple[str, str], ...]) -> bytes:
    """Return the MQTT 5 properties of a JSON message: content type, expiry in seconds unless 0, and user properties."""
    parts = [_JSON]
    if expiry:
        parts.append(b"\x02" + expiry.to_bytes(4, "big"))
    for name, value in user:
        parts.append(b"\x26" + _string(name) + _string(value))
    body = b"".join(parts)
    return _length(len(body)) + body


def _string(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2, "big") + data


def _length(value: int) -> bytes:
    """Return a variable byte integer."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
