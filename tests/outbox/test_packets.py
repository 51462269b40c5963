"""Packets made here against paho's own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edged.outbox.faults import MessageError
from edged.outbox.packets import accepted, pack, publish

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=99)


@given(st.integers(0, 2**32 - 1), st.lists(st.tuples(TEXT, TEXT), max_size=4))
def test_packed_properties_are_what_paho_unpacks(expiry: int, user: list[tuple[str, str]]) -> None:
    properties = Properties(PacketTypes.PUBLISH)
    properties.unpack(pack(expiry, tuple(user)))

    assert properties.ContentType == "application/json"
    assert getattr(properties, "MessageExpiryInterval", 0) == expiry
    assert getattr(properties, "UserProperty", []) == user


class RecordingPaho(mqtt.Client):
    """paho without a socket; `written` are its packets."""

    def __init__(self, version: MQTTProtocolVersion) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, protocol=version)
        self.written: list[bytes] = []
        self._sock: Any = True

    def _packet_queue(self, command: int, packet: Any, mid: int, qos: int, info: Any = None) -> Any:
        self.written.append(bytes(packet))
        return 0

    def __del__(self) -> None:
        self._sock = None


@pytest.mark.parametrize("version", [MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311])
@given(
    mid=st.integers(1, 65535),
    topic=st.text(st.characters(exclude_characters="+#\0", exclude_categories=["Cs"]), min_size=1),
    payload=st.binary(max_size=300) | st.integers(0, 20_000).map(bytes),
    qos=st.integers(0, 1),
    retain=st.booleans(),
    user=st.lists(st.tuples(TEXT | st.just("id"), TEXT), max_size=4),
)
def test_a_packet_is_the_one_that_paho_makes(
    version: MQTTProtocolVersion,
    mid: int,
    topic: str,
    payload: bytes,
    qos: int,
    retain: bool,
    user: list[tuple[str, str]],
) -> None:
    properties = Properties(PacketTypes.PUBLISH)
    packed = b""
    if version == MQTTProtocolVersion.MQTTv5:
        properties.ContentType = "application/json"
        properties.UserProperty = user
        packed = pack(0, tuple(user))
    paho = RecordingPaho(version)
    paho._send_publish(mid, topic.encode(), payload, qos, retain, properties=properties if packed else None)

    ours = publish(topic, payload, qos=qos, retain=retain, properties=packed)
    assert [ours.packet(mid)] == paho.written
    assert ours.size == len(paho.written[0])


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "a" * 65536, "a\udc80"])
def test_a_topic_that_mqtt_cannot_carry_is_an_error(topic: str) -> None:
    with pytest.raises(MessageError):
        publish(topic, b"", qos=1, retain=False, properties=b"")


def test_a_property_that_mqtt_cannot_carry_is_an_error() -> None:
    with pytest.raises(MessageError, match="has 65536 bytes, and MQTT can carry 65535"):
        pack(0, (("name", "x" * 65536),))


@pytest.mark.parametrize(
    ("data", "mids", "left"),
    [
        ("4002 0001", [1], ""),
        ("4002 0001 4003 0002 00 4003 ffff 10", [1, 2, 65535], ""),
        ("4002 0001 4003 0002 87", [1], "4003 0002 87"),  # refused
        ("4002 0001 4004 0002 00 00", [1], "4004 0002 00 00"),  # with properties
        ("4002 0001 d000 4002 0002", [1], "d000 4002 0002"),  # PINGRESP
        ("4002 0001 4002 00", [1], "4002 00"),
        ("4002 0001 4003 0002", [1], "4003 0002"),
        ("40", [], "40"),
        ("4001 00", [], "4001 00"),
        ("", [], ""),
    ],
)
def test_whole_acknowledgements_of_success_are_read_up_to_anything_else(data: str, mids: list[int], left: str) -> None:
    stream = b"\xd0\x00" + bytes.fromhex(data)
    found, at = accepted(stream, 2, v5=True)

    assert (found, stream[at:]) == (mids, bytes.fromhex(left))


def test_mqtt_3_1_1_has_no_reasons() -> None:
    assert accepted(bytes.fromhex("4002 0001 4003 0002 00"), 0, v5=False) == ([1], 4)
