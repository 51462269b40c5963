"""A link to brokers that refuse, stay silent, talk nonsense or lie: tiny scripted servers."""

from __future__ import annotations

import gc
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.outbox.client import V5, V311
from edged.outbox.faults import LinkError, MessageError, VersionError
from edged.outbox.link import Link
from edged.outbox.network import Network
from edged.outbox.options import MqttOptions
from edged.outbox.packets import NO_PROPERTIES
from edged.outbox.wake import Wake
from tests.broker import Script, free_port, server

CONNACK_V5 = bytes([0x20, 3, 0, 0, 0])
CONNACK_V311 = bytes([0x20, 2, 0, 0])
SHUTTING_DOWN = bytes([0xE0, 2, 0x8B, 0])
SESSION_TAKEN_OVER = bytes([0xE0, 2, 0x8E, 0])


def says(*packets: bytes) -> Script:
    """Answer CONNECT with these packets, then wait for the client to leave."""

    def script(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"".join(packets))
        while connection.recv(4096):
            pass

    return script


def connect(port: int, version: Any = V5, **options: Any) -> Link:
    given = MqttOptions(**{"host": "127.0.0.1", "port": port, "connect_timeout": 5.0, **options})
    return Link(
        given, version=version, client_id="test", will="edged/board/availability", wake=Wake(), network=Network()
    )


def send(link: Link, payload: bytes) -> int:
    with link.wire:
        mid = link.send(link.encode("t", payload, qos=1, retain=False, properties=NO_PROPERTIES), ())
        link.flush()
    return mid


def lose(link: Link) -> LinkError:
    """Drive a link to its loss."""
    try:
        while True:
            link.wait(5)
    except LinkError as error:
        return error
    finally:
        link.close()


def test_nobody_listens() -> None:
    with pytest.raises(LinkError, match="nothing listens at 127") as caught:
        connect(free_port())
    assert caught.value.hint == "check that the broker runs, and the port"


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(LinkError, match="cannot be resolved") as caught:
        connect(1883, host="broker.invalid")
    assert "spelling" in caught.value.hint


@pytest.mark.parametrize("host", ["ü" * 60, "\0"])
def test_a_name_that_cannot_exist(host: str) -> None:
    with pytest.raises(LinkError):
        connect(1883, host=host)


def test_a_broker_that_never_answers() -> None:
    with server(says()) as port, pytest.raises(VersionError, match="does not answer as a broker") as caught:
        connect(port, connect_timeout=0.1)
    assert not caught.value.certain


def test_a_broker_that_closes_at_once() -> None:
    with server(lambda connection: None) as port, pytest.raises(VersionError, match="closed the connection"):
        connect(port)


def test_a_broker_that_is_silent_in_the_tls_handshake() -> None:
    with server(says()) as port, pytest.raises(LinkError, match="did not answer within") as caught:
        connect(port, tls=True, connect_timeout=0.1)
    assert "with tls, that the port speaks TLS" in caught.value.hint


def test_a_broker_that_closes_in_the_tls_handshake() -> None:
    with server(lambda connection: None) as port, pytest.raises(LinkError, match="TLS") as caught:
        connect(port, tls=True)
    assert caught.value.hint


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\xff\xff\xff\xff\xff", b"\x20\x00"])
def test_an_answer_that_is_not_mqtt(answer: bytes) -> None:
    def script(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(answer)

    with server(script) as port, pytest.raises(VersionError, match=r"not MQTT|closed the connection"):
        connect(port)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([V5, V311]))
def test_any_bytes_whatever_end_as_a_link_error(noise: bytes, version: Any) -> None:
    def script(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall((CONNACK_V5 if version == V5 else CONNACK_V311) + noise)

    with server(script) as port:
        assert lose(connect(port, version)).message


def test_a_packet_of_256_megabytes_is_not_even_begun() -> None:
    with server(says(CONNACK_V5, b"\x30\xff\xff\xff\x7f")) as port:
        assert "announced a packet of 268435455 bytes" in lose(connect(port)).message


@pytest.mark.parametrize(
    ("version", "connack", "reason", "hint"),
    [
        (V5, [0x20, 3, 0, 0x86, 0], "Bad user name or password", "check username and password_file"),
        (V5, [0x20, 3, 0, 0x85, 0], "Client identifier not valid", "set client_id"),
        (V5, [0x20, 3, 0, 0x88, 0], "Server unavailable", "the broker is up but not ready"),
        (V5, [0x20, 3, 0, 0x9A, 0], "Retain not supported", "states need them"),
        (V311, [0x20, 2, 0, 2], "Client identifier not valid", "set client_id"),
        (V311, [0x20, 2, 0, 3], "Server unavailable", "the broker is up but not ready"),
        (V311, [0x20, 2, 0, 4], "Bad user name or password", "check username and password_file"),
        (V311, [0x20, 2, 0, 5], "Not authorized", "check username and password_file"),
    ],
)
def test_a_refusal_says_why_and_what_to_do(version: Any, connack: list[int], reason: str, hint: str) -> None:
    with server(says(bytes(connack))) as port, pytest.raises(LinkError, match=f"refused.*{reason}") as caught:
        connect(port, version)
    assert hint in caught.value.hint


@pytest.mark.parametrize("connack", [[0x20, 2, 0, 1], [0x20, 3, 0, 0x84, 0]])
def test_a_broker_that_says_it_does_not_speak_version_5(connack: list[int]) -> None:
    with server(says(bytes(connack))) as port, pytest.raises(VersionError) as caught:
        connect(port)
    assert caught.value.certain


def test_a_good_bye_with_a_reason() -> None:
    with server(says(CONNACK_V5, SESSION_TAKEN_OVER)) as port:
        error = lose(connect(port))
    assert "disconnected this client: Session taken over" in error.message
    assert "give each device a name of its own" in error.hint
    assert (error.dropped, error.unwelcome) == (False, True)


def test_a_good_bye_of_a_broker_that_will_be_back() -> None:
    with server(says(CONNACK_V5, SHUTTING_DOWN)) as port:
        error = lose(connect(port))
    assert (error.dropped, error.unwelcome) == (False, False)


def test_a_connection_that_died_without_a_word_is_noticed() -> None:
    with server(says(CONNACK_V5)) as port:
        error = lose(connect(port, keepalive=1))
    assert "no longer answers" in error.message
    assert not error.dropped


@pytest.mark.parametrize("reason", [[], [0], [0x10], [0x87], [0x87, 0]], ids=str)
def test_acknowledgements_that_arrive_together_are_all_read(reason: list[int]) -> None:
    def script(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(CONNACK_V5)
        received = b""
        while received.count(b"payload") < 3:
            received += connection.recv(4096)
        connection.sendall(b"".join(bytes([0x40, 2 + len(reason), 0, mid, *reason]) for mid in (1, 2, 3, 99)))
        while connection.recv(4096):
            pass

    with server(script) as port:
        link = connect(port)
        mids = [send(link, b"payload") for _ in range(3)]
        while len(link.accepted) + len(link.answers) < 4:
            link.wait(60)
        link.close()
    if reason in ([], [0], [0x10]):
        assert (link.accepted, link.answers) == ([*mids, 99], [])
    else:
        assert [(each.mid, each.reason.value) for each in link.answers] == [(mid, reason[0]) for mid in [*mids, 99]]


def test_what_the_broker_allows_is_kept() -> None:
    receive_maximum_10_and_maximum_packet_size_1000 = bytes([0x21, 0, 10, 0x27, 0, 0, 0x03, 0xE8])
    with server(says(bytes([0x20, 11, 0, 0, 8]) + receive_maximum_10_and_maximum_packet_size_1000)) as port:
        link = connect(port)
        assert link.window == 9
        assert link.encode("t", b"x" * 991, qos=1, retain=False, properties=NO_PROPERTIES).size == 1000
        with pytest.raises(MessageError, match="992 bytes are more than the broker takes"):
            link.encode("t", b"x" * 992, qos=1, retain=False, properties=NO_PROPERTIES)
        link.close()


def test_failed_attempts_leave_no_descriptor_behind() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with server(lambda connection: None) as port:
        with suppress(LinkError):
            connect(port)
        gc.collect()
        gc.disable()
        try:
            before = descriptors()
            for _ in range(10):
                with suppress(LinkError):
                    connect(port)
            assert descriptors() <= before + 1  # the server may close its last descriptor later
        finally:
            gc.enable()
