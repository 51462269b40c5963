"""A broker in the process of the test, with acknowledgements on demand."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from threading import Condition, Thread
from typing import BinaryIO, NamedTuple

from tests.patience import PATIENCE

CONNACK = bytes([0x20, 3, 0, 0, 0])


class Publication(NamedTuple):
    """A message received by the broker."""

    topic: str
    payload: bytes
    mid: int


def accept(publication: Publication) -> bytes:
    """Return the acknowledgement of success."""
    return b"\x40\x02" + publication.mid.to_bytes(2, "big")


class ScriptedBroker:
    """Serves one connection at a time. `received` holds all messages of QoS 1.

    `answer` makes the acknowledgement of each message. While `holding`, answers are kept until `release`; a
    deaf broker does not read. With a `context` the broker speaks TLS.
    """

    def __init__(self, *, connack: bytes = CONNACK, context: ssl.SSLContext | None = None) -> None:
        self.received: list[Publication] = []
        self.connections = 0
        self.answer: Callable[[Publication], bytes] = accept
        self._connack = connack
        self._context = context
        self._changed = Condition()
        self.holding = self._deaf = self._closed = False
        self._held: list[Publication] = []
        self._connection: socket.socket | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = Thread(target=self._serve, daemon=True)

    def __enter__(self) -> ScriptedBroker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed, self._deaf = True, False
            self._changed.notify_all()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.drop()
        self._listener.close()
        self._thread.join(PATIENCE)

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait for a condition on what the broker has received."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE)

    def payloads(self, topic: str) -> list[bytes]:
        """Return the payloads received at a topic."""
        return [each.payload for each in self.received if each.topic == topic]

    def hold(self) -> None:
        """Keep back the answers from now on."""
        with self._changed:
            self.holding = True

    def release(self, *, first: bytes = b"", last: bytes = b"") -> None:
        """Send the answers kept back in one segment, between two other packets."""
        with self._changed:
            self.holding, held, self._held = False, self._held, []
            self._write(first + b"".join(map(self.answer, held)) + last)

    def be_deaf(self) -> None:
        """Stop reading after the next packet."""
        with self._changed:
            self._deaf = True

    def listen(self) -> None:
        """Read again."""
        with self._changed:
            self._deaf = False
            self._changed.notify_all()

    def drop(self) -> None:
        """Close the connection."""
        with self._changed, suppress(OSError):
            if self._connection is not None:
                self._connection.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with suppress(OSError):
                    if self._context is not None:
                        connection = self._context.wrap_socket(connection, server_side=True)
                    with connection, connection.makefile("rb") as stream:
                        self._converse(connection, stream)

    def _converse(self, connection: socket.socket, stream: BinaryIO) -> None:
        with self._changed:
            self._connection, self._held = connection, []
            self.connections += 1
            self._changed.notify_all()
        try:
            while head := stream.read(1):
                size = _length(stream)
                body = stream.read(size)
                if len(body) < size:
                    break  # the connection ended within a packet
                self._handle(head[0], body)
                with self._changed:
                    self._changed.wait_for(lambda: not self._deaf)
        finally:
            with self._changed:
                self._connection = None

    def _handle(self, head: int, body: bytes) -> None:
        with self._changed:
            if head == 0x10:
                self._write(self._connack)
            if head == 0xC0:
                self._write(b"\xd0\x00")
            if head == 0x82:
                self._write(b"\x90\x04" + body[:2] + b"\x00\x01")
            if head & 0xF6 == 0x32:
                size = int.from_bytes(body[:2], "big")
                topic, mid, rest = body[2 : 2 + size], body[2 + size : 4 + size], body[4 + size :]
                publication = Publication(topic.decode(), rest[1 + rest[0] :], int.from_bytes(mid, "big"))
                self.received.append(publication)
                if self.holding:
                    self._held.append(publication)
                else:
                    self._write(self.answer(publication))
            self._changed.notify_all()

    def _write(self, data: bytes) -> None:
        if self._connection is not None:
            with suppress(OSError):
                self._connection.sendall(data)


def _length(stream: BinaryIO) -> int:
    value = shift = 0
    while byte := stream.read(1):
        value |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128:
            break
    return value
