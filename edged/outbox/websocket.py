"""MQTT over a WebSocket (RFC 6455): paho's framing, with a bounded handshake and clear errors."""

from __future__ import annotations

import base64
import os
import socket
import time
from typing import Any

from paho.mqtt import client as mqtt

from edged.outbox.options import MqttOptions
from edged.system.later import hashlib

MAX_HEAD = 16 << 10
MAX_FRAME = 1 << 20
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class HandshakeError(ConnectionError):
    """The web server does not lead to a broker."""


class WebSocket(mqtt._WebsocketWrapper):
    """A connection through a web server, used like the socket underneath."""

    def __init__(self, sock: socket.socket, options: MqttOptions) -> None:
        """Raises HandshakeError if the server refuses the upgrade, and OSError."""
        self._options = options
        super().__init__(sock, options.host, options.real_port, options.tls, options.path, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def _do_handshake(self, extra_headers: Any) -> None:
        options = self._options
        host, _, port = options.broker.rpartition(":")
        key = base64.b64encode(os.urandom(16))
        request = (
            f"GET {options.path} HTTP/1.1\r\nHost: {options.server_name or host}:{port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Key: {key.decode()}\r\n\r\n"
        )
        self._socket.sendall(request.encode())
        status, headers = self._read_head(time.monotonic() + options.connect_timeout)
        if status[9:12] != "101":
            raise HandshakeError(
                f"the answer is {status[9:80]!r}" if status.startswith("HTTP/") else "the answer is not HTTP"
            )
        if headers.get("sec-websocket-accept") != base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode():
            raise HandshakeError("the answer violates RFC 6455")
        self.connected = True

    def _read_head(self, deadline: float) -> tuple[str, dict[str, str]]:
        """Return the status line, and the header fields by lower-case name."""
        head = bytearray()
        while not head.endswith(b"\r\n\r\n"):
            if len(head) > MAX_HEAD:
                raise HandshakeError(f"the answer has more than {MAX_HEAD} bytes")
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            byte = self._socket.recv(1)  # bytes behind the head belong to the next frame
            if not byte:
                raise HandshakeError("the server closed the connection")
            head += byte
        status, *lines = head.decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines)
        return status, {name.strip().lower(): value.strip() for name, _, value in fields}

    def _send_impl(self, data: bytes | bytearray) -> int:
        """Raise BlockingIOError while a frame is half sent: paho forgets a packet of which 0 bytes are sent."""
        if written := super()._send_impl(data):
            return written
        raise BlockingIOError

    def _buffered_read(self, length: int) -> bytearray:
        if length > MAX_FRAME:
            raise ConnectionError(f"a frame has more than {MAX_FRAME} bytes")
        return super()._buffered_read(length)
