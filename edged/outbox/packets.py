"""Packets of every message: PUBLISH is written, PUBACK is read. No lock, no clock, no socket.

paho takes ten times as long for both. All other packets are paho's.
"""

from __future__ import annotations

import functools

import msgspec

from edged.outbox.faults import MessageError

MAX_LENGTH = 268_435_455
"""Most bytes of a packet behind its first two fields."""

_HINT = "report this to the sink's author"
_JSON = b"\x03\x00\x10application/json"  # the property "content type"
_PNG = b"\x03\x00\x09image/png"


class Publish(msgspec.Struct, frozen=True, gc=False):
    """A PUBLISH packet but for its identifier, which follows the topic; a message of QoS 0 has none."""

    head: bytes
    properties: bytes
    payload: bytes
    qos: int

    @property
    def size(self) -> int:
        """Number of bytes of the packet."""
        return len(self.head) + 2 * self.qos + len(self.properties) + len(self.payload)

    def packet(self, mid: int) -> bytes:
        """Return the packet with this identifier."""
        identifier = mid.to_bytes(2, "big") if self.qos else b""
        return b"".join((self.head, identifier, self.properties, self.payload))


def publish(topic: str, payload: bytes, *, qos: int, retain: bool, properties: bytes) -> Publish:
    """Return a packet. `properties` is the result of `pack`, and empty before MQTT 5.

    Raises:
        MessageError: topic or payload exceed the limits of MQTT.
    """
    name = _topic(topic)
    length = len(name) + 2 * qos + len(properties) + len(payload)
    if length > MAX_LENGTH:
        raise MessageError(f"{len(payload)} bytes are more than MQTT can carry", hint=_HINT)
    return Publish(bytes((0x30 | qos << 1 | retain,)) + _length(length) + name, properties, payload, qos)


def pack(expiry: int, user: tuple[tuple[str, str], ...], *, png: bool = False) -> bytes:
    """Return the MQTT 5 properties of a message in JSON or PNG: content type, expiry in seconds unless 0, and user
    properties.

    Raises:
        MessageError: a property exceeds the limits of MQTT.
    """
    body = _PNG if png else _JSON
    if expiry:
        body += b"\x02" + expiry.to_bytes(4, "big")
    for pair in user:  # only the id changes with each message
        body += b"\x26\x00\x02id" + _string(pair[1]) if pair[0] == "id" else _user_property(pair)
    return _length(len(body)) + body


NO_PROPERTIES = b"\x00"


def accepted(data: bytes, at: int, *, v5: bool) -> tuple[list[int], int]:
    """Return the identifiers of the whole PUBACK packets from `at` on that report success, and the position behind.

    The list ends before any other packet, and before a refusal.
    """
    mids = []
    while at + 4 <= len(data) and data[at] == 0x40:
        size = data[at + 1] + 2
        if size != 4 and not (size == 5 and v5 and data[at + 4 : at + 5] in _SUCCESS):
            break
        mids.append(data[at + 2] << 8 | data[at + 3])
        at += size
    return mids, at


_SUCCESS = (b"\x00", b"\x10")  # 0x10: nobody has subscribed


@functools.lru_cache(256)
def _topic(topic: str) -> bytes:
    if not topic or "+" in topic or "#" in topic:
        raise MessageError(f"{topic!r} is empty or has wildcards, so is no topic to publish at", hint=_HINT)
    return _string(topic)


@functools.lru_cache(256)
def _user_property(pair: tuple[str, str]) -> bytes:
    """Return a user property."""
    return b"\x26" + _string(pair[0]) + _string(pair[1])


def _string(text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise MessageError(f"{text!a} has unpaired surrogates, so cannot be sent", hint=_HINT) from None
    if len(data) > 0xFFFF:
        raise MessageError(f"{text[:20]!r}... has {len(data)} bytes, and MQTT can carry 65535", hint=_HINT)
    return len(data).to_bytes(2, "big") + data


@functools.lru_cache(256)
def _length(value: int) -> bytes:
    """Return a variable byte integer."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
