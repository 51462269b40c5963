"""MQTT over WebSockets: with a real broker, through TLS, and with other web servers."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from iotcore import Broker as WebBroker

from edged.outbox.client import V5, V311
from edged.outbox.faults import LinkError
from edged.outbox.link import Link
from edged.outbox.network import Network
from edged.outbox.options import MqttOptions
from edged.outbox.wake import Wake
from edged.outbox.websocket import WebSocket
from tests.broker import Subscriber, free_port, server
from tests.outbox.test_publisher import RESULT, Rig, message

CONFIG = """
id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[v4.1]
name = "plain"
listen = "127.0.0.1:{plain}"
next_connection_delay_ms = 1
[v4.1.connections]
connection_timeout_ms = 60000
max_payload_size = 100000
max_inflight_count = 100
[ws.1]
name = "web"
listen = "127.0.0.1:{web}"
next_connection_delay_ms = 1
[ws.1.connections]
connection_timeout_ms = 60000
max_payload_size = 100000
max_inflight_count = 100
"""


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Return a broker's plain port and the port for WebSockets."""
    plain, web = free_port(), free_port()
    (tmp_path / "broker.toml").write_text(CONFIG.format(plain=plain, web=web))
    with WebBroker(config_path=str(tmp_path / "broker.toml")):
        yield plain, web


def test_messages_of_all_sizes_go_through_a_websocket(ports: tuple[int, int]) -> None:
    plain, web = ports
    with Subscriber(plain, RESULT, version=V311) as subscriber, Rig(web, transport="websockets") as rig:
        rig.wait_for("running")
        sizes = [10, 125, 126, 5000, 65535, 65536, 90_000]
        for seq, size in enumerate(sizes):
            rig.publisher.put(message(seq, payload=json.dumps({"pad": "x" * size}).encode()))
        assert [len(json.loads(subscriber.wait_for(RESULT).payload)["pad"]) for _ in sizes] == sizes


def test_what_the_broker_says_comes_through_too(ports: tuple[int, int]) -> None:
    with Rig(ports[1], transport="websockets", protocol="3.1.1") as rig:
        rig.wait_for("running")
        rig.publisher.subscribe("x/y", lambda _topic, payload, _retained: rig.publisher.publish_state("seen", payload))
        with Subscriber(ports[0], "seen", version=V311) as subscriber:
            for size in (1, 5000, 40_000):
                subscriber.client.publish("x/y", b"y" * size, qos=1, retain=True)
                assert len(subscriber.wait_for("seen").payload) == size


def connect(port: int, **options: Any) -> Link:
    given = MqttOptions(host="127.0.0.1", port=port, transport="websockets", **options)
    return Link(given, version=V5, client_id="x", will="x", wake=Wake(), network=Network())


def answers(text: bytes) -> tuple[str, str]:
    """Return the error and the remedy for a web server with this answer."""

    def script(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(text)

    with server(script) as port, pytest.raises(LinkError) as caught:
        connect(port)
    return caught.value.message.partition(": ")[2], caught.value.hint


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "the answer is '404 Not Found'"),
        (b"HTTP/1.1 101 Switching\r\nSec-WebSocket-Accept: wrong\r\n\r\n", "the answer violates RFC 6455"),
        (b"\x20\x03\x00\x00\x00\r\n\r\n", "the answer is not HTTP"),
        (b"", "the server closed the connection"),
        (b"HTTP/1.1 101 " + b"x" * 20_000, "the answer has more than 16384 bytes"),
    ],
)
def test_a_server_that_offers_no_websocket(text: bytes, reason: str) -> None:
    assert answers(text) == (reason, 'check path and port, or set transport = "tcp" for a broker without web server')


def test_a_server_that_trickles_its_answer_is_left_in_time() -> None:
    def script(connection: socket.socket) -> None:
        connection.recv(4096)
        while True:
            connection.sendall(b"x")

    with server(script) as port, pytest.raises(LinkError, match=r"did not answer within|more than"):
        connect(port, connect_timeout=0.2)


def test_what_is_asked_of_the_web_server() -> None:
    asked: list[bytes] = []

    def script(connection: socket.socket) -> None:
        asked.append(connection.recv(4096))

    with server(script) as port, pytest.raises(LinkError):
        connect(port, path="/broker?x=1")
    assert asked[0].startswith(f"GET /broker?x=1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode())
    assert b"\r\nSec-WebSocket-Protocol: mqtt\r\n" in asked[0]


class Upgraded(WebSocket):
    """WebSocket whose server has agreed already."""

    def _do_handshake(self, extra_headers: Any) -> None:
        self.connected = True


def test_a_frame_too_long_for_the_socket_is_to_be_sent_again_and_not_taken_for_sent() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        web, packet, received = Upgraded(ours, MqttOptions(host="broker")), b"x" * 1_000_000, 0
        with pytest.raises(BlockingIOError):  # paho forgets a packet of which the socket takes nothing
            web.send(packet)
        sent = 0
        while not sent:
            received += len(theirs.recv(100_000))
            try:
                sent = web.send(packet)
            except BlockingIOError:
                continue
        assert sent == len(packet)
        header = 14
        assert received + len(theirs.recv(1_000_000)) == header + len(packet)
