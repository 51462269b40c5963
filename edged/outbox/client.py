"""paho's client with bounded reads, the reason for a lost connection, and messages past paho.

paho connects, subscribes, keeps the connection alive and parses; packets.py makes and reads the packets of every
message. paho's private attributes are used here only.
"""

from __future__ import annotations

import math
import time
from typing import Any, Literal, NamedTuple

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from edged.outbox import network
from edged.outbox.options import MqttOptions
from edged.outbox.packets import accepted
from edged.outbox.websocket import WebSocket

V5 = MQTTProtocolVersion.MQTTv5
V311 = MQTTProtocolVersion.MQTTv311

MAX_PACKET = 64 << 10
"""Largest packet accepted from a broker, in bytes."""

_READ_AHEAD = 4096  # bytes


class Acknowledgement(NamedTuple):
    """The broker's answer to a message or a subscription, and its reason."""

    mid: int
    reason: ReasonCode


class Client(mqtt.Client):
    """paho's client for one connection, to be used by one thread at a time. `fault` is the failure of the socket, None
    as long as it works. `accepted` collects the identifiers of accepted messages, `answers` all other acknowledgements.
    """

    fault: OSError | None = None
    _read_ahead = b""
    _position = 0

    def __init__(self, options: MqttOptions, client_id: str, version: MQTTProtocolVersion) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if version == V5 else True,
            protocol=version,
            reconnect_on_failure=False,
        )
        self.options = options
        self.connect_timeout = options.connect_timeout
        self.accepted: list[int] = []
        self.answers: list[Acknowledgement] = []

    @property
    def buffered(self) -> int:
        """So many bytes have been read from the socket and not been looked at."""
        return len(self._read_ahead) - self._position

    @property
    def is_amid_packet(self) -> bool:
        """True if paho has read the beginning of a packet."""
        return bool(self._in_packet["command"])

    @property
    def next_check(self) -> float:
        """Time, by CLOCK_MONOTONIC, by which `loop_misc` must be called to keep the connection alive."""
        since = min(self._last_msg_out, self._last_bytes_received, self._ping_t or math.inf)
        return since + self._keepalive if self._keepalive else math.inf

    def next_mid(self) -> int:
        """Return an identifier for a packet."""
        self._last_mid = self._last_mid % 0xFFFF + 1
        return self._last_mid

    def hear(self) -> bool:
        """Read the acknowledgements that have arrived, without waiting. Return False if anything but successes has
        come, or the connection has ended: `loop_read` takes this up.
        """
        if self._in_packet["command"]:
            return False
        if self._position == len(self._read_ahead):
            try:
                self._read_ahead, self._position = super()._sock_recv(_READ_AHEAD), 0
            except BlockingIOError:
                return True
            except OSError as error:
                self.fault = error
                return False
        mids, self._position = accepted(self._read_ahead, self._position, v5=self._protocol == V5)
        if not mids:
            return False
        self.accepted += mids
        self._last_bytes_received = time.monotonic()
        return self._position == len(self._read_ahead)

    def send(self, data: bytes) -> bool:
        """Write packets of messages, as far as the socket takes them, and return False if something is left for
        `loop_write`, or the connection has failed.
        """
        written = 0
        if not self._out_packet:
            try:
                written = super()._sock_send(data)
            except BlockingIOError:
                pass
            except OSError as error:
                self.fault = error
                return False
        self._last_msg_out = time.monotonic()
        if written == len(data):
            return True
        self._out_packet.append(
            {
                "command": mqtt.PUBLISH,
                "mid": 0,
                "qos": 1,
                "pos": written,
                "to_process": len(data) - written,
                "packet": data,
                "info": None,
            }
        )
        return False

    def _create_socket(self) -> Any:
        options = self.options
        sock = network.connect(self.host, self.port, self.connect_timeout)
        if self._ssl_context is not None:
            name = options.server_name or options.host
            sock = self._ssl_context.wrap_socket(sock, server_hostname=name)
        return WebSocket(sock, options) if options.transport == "websockets" else sock

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > MAX_PACKET:
            self.fault = ConnectionError(f"the broker announced a packet of {bufsize} bytes")
            raise self.fault
        if not self.buffered:
            try:
                self._read_ahead, self._position = super()._sock_recv(_READ_AHEAD), 0
            except BlockingIOError:
                raise
            except OSError as error:
                self.fault = error
                raise
        taken = self._read_ahead[self._position : self._position + bufsize]
        self._position += len(taken)
        return taken

    def _sock_send(self, buf: bytes | bytearray) -> int:
        try:
            return super()._sock_send(buf)
        except BlockingIOError:
            raise
        except OSError as error:
            self.fault = error
            raise

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        """Report an acknowledgement left by `hear`: a refusal, or one with properties."""
        packet = self._in_packet["packet"]
        if cmd != "PUBACK" or len(packet) < 2:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        code = packet[2] if len(packet) > 2 and self._protocol == V5 else 0
        reason = ReasonCode(PacketTypes.PUBACK, identifier=code)
        self.answers.append(Acknowledgement(int.from_bytes(packet[:2], "big"), reason))
        return MQTTErrorCode.MQTT_ERR_SUCCESS
