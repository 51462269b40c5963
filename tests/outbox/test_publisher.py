"""The publisher with a real mosquitto: messages, order, and no loss."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from edged.core.health import Health, Status
from edged.core.topics import Topics
from edged.core.types import Message
from edged.outbox.options import MqttOptions
from edged.outbox.publisher import Publisher
from edged.outbox.retry import LONGEST_RETRY
from edged.outbox.spool import MemorySpool
from tests.broker import Broker, Script, Subscriber, free_port, make_certificates, old_broker, server
from tests.flaky_proxy import FlakyProxy
from tests.patience import PATIENCE

TOPICS = Topics("edged", "board")
RESULT = TOPICS.result("motion")


class Rig:
    """Publisher with events for its health."""

    def __init__(self, port: int, **options: Any) -> None:
        self._healths: Queue[Health] = Queue()
        status = Status("mqtt", time.monotonic, lambda _name, health: self._healths.put(health))
        self.spool = MemorySpool()
        given = MqttOptions(**{"host": "127.0.0.1", "port": port, **options})
        self.publisher = Publisher(given, TOPICS, self.spool, status)

    def wait_for(self, state: str) -> Health:
        while True:
            health = self._healths.get(timeout=PATIENCE)
            if health.state == state:
                return health

    def __enter__(self) -> Rig:
        self.publisher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.publisher.stop(0)
        assert self.publisher.join(PATIENCE)


def message(seq: int, *, topic: str = RESULT, **fields: Any) -> Message:
    given = {"payload": json.dumps({"seq": seq}).encode(), "origin": "motion", "created": time.monotonic()}
    return Message(topic=topic, seq=seq, **{**given, **fields})


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


def test_a_bug_in_a_conversation_is_said_and_another_is_begun(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a bug")

    with Subscriber(broker.port, RESULT) as subscriber, Rig(broker.port) as rig:
        rig.wait_for("running")
        monkeypatch.setattr(rig.spool, "take", fail)
        rig.publisher.put(message(1))
        assert "a bug" in rig.wait_for("failed").reason
        monkeypatch.undo()

        assert json.loads(subscriber.wait_for(RESULT).payload)["seq"] == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"payload": '{"seq": 1}'}, "payload is str, not bytes"),
        ({"properties": (("count", 1),)}, "properties are not pairs of str"),
    ],
)
def test_a_message_of_wrong_types_is_its_sinks_fault_and_stands_in_nobodys_way(
    broker: Broker, wrong: dict[str, Any], said: str
) -> None:
    with Subscriber(broker.port, RESULT) as subscriber, Rig(broker.port) as rig:
        with pytest.raises(TypeError, match=said):
            rig.publisher.put(message(1, created=time.monotonic() - 60, **wrong))
        rig.publisher.put(message(2))

        assert json.loads(subscriber.wait_for(RESULT).payload)["seq"] == 2


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_message_reaches_a_subscriber(broker: Broker, protocol: str) -> None:
    with Subscriber(broker.port, RESULT) as subscriber, Rig(broker.port, protocol=protocol) as rig:
        rig.wait_for("running")
        rig.publisher.put(message(1))

        arrived = subscriber.wait_for(RESULT)

        assert json.loads(arrived.payload) == {"seq": 1}
        assert (arrived.qos, arrived.retain) == (1, False)
        assert rig.publisher.protocol == protocol


def test_states_are_known_before_online_and_results_come_after(broker: Broker) -> None:
    with Subscriber(broker.port, "edged/#") as subscriber, Rig(broker.port) as rig:
        rig.publisher.put(message(1))
        rig.wait_for("running")
        subscriber.wait_for(RESULT)
    with Subscriber(broker.port, "edged/#") as subscriber:
        rig = Rig(broker.port)
        rig.publisher.publish_state(TOPICS.state, b'{"state":"running"}')
        rig.publisher.put(message(2))
        with rig:
            seen = [subscriber.next(lambda message: not message.retain) for _ in range(3)]

    assert [(each.topic, each.payload) for each in seen] == [
        (TOPICS.state, b'{"state":"running"}'),
        (TOPICS.availability, b"online"),
        (RESULT, b'{"seq": 2}'),
    ]


def test_only_states_are_retained(broker: Broker) -> None:
    with Rig(broker.port) as rig, Subscriber(broker.port, RESULT) as witness:
        rig.publisher.publish_state(TOPICS.state, b"{}")
        rig.publisher.put(message(1))
        witness.wait_for(RESULT)
        rig.wait_for("running")

        with Subscriber(broker.port, "edged/#") as latecomer:
            retained = {latecomer.next().topic for _ in range(2)}

            assert retained == {TOPICS.state, TOPICS.availability}
            assert latecomer.nothing_more()


def test_a_state_is_sent_when_it_changes_and_when_asked_and_not_otherwise(broker: Broker) -> None:
    with Subscriber(broker.port, "edged/#") as subscriber, Rig(broker.port) as rig:
        rig.wait_for("running")
        rig.publisher.publish_state("edged/x", b"1")
        rig.publisher.publish_state("edged/x", b"1")
        rig.publisher.publish_state("edged/y", b"1")
        rig.publisher.repeat_state("edged/y")
        subscriber.wait_for("edged/y", b"1")
        rig.publisher.publish_state("edged/x", b"2")

        assert subscriber.wait_for("edged/x").payload == b"2"


def test_a_forgotten_state_is_no_longer_retained(broker: Broker) -> None:
    with Subscriber(broker.port, "edged/x") as witness, Rig(broker.port) as rig:
        rig.publisher.publish_state("edged/x", b"1")
        witness.wait_for("edged/x", b"1")
        rig.publisher.forget_state("edged/x")
        witness.wait_for("edged/x", b"")

        with Subscriber(broker.port, "edged/x", TOPICS.availability) as latecomer:
            assert latecomer.next().topic == TOPICS.availability


def test_the_last_will_says_offline_and_a_clean_stop_says_stopped(broker: Broker) -> None:
    with Subscriber(broker.port, TOPICS.availability) as subscriber:
        with Rig(broker.port) as first:
            subscriber.wait_for(TOPICS.availability, b"online")
            with Rig(broker.port) as second:  # the same client id: the broker disconnects the first
                subscriber.wait_for(TOPICS.availability, b"offline")
                # Newer brokers state the reason of a disconnection; for older brokers the reason is a guess.
                assert "the same client_id" in first.wait_for("failed").hint
                first.publisher.stop(0)
                first.publisher.join(PATIENCE)
                second.publisher.stop(1)
                second.publisher.join(PATIENCE)
        assert subscriber.wait_for(TOPICS.availability, b"stopped").payload == b"stopped"


def test_a_clean_stop_sends_what_waits_first(broker: Broker) -> None:
    with Subscriber(broker.port, "edged/#") as subscriber, Rig(broker.port) as rig:
        began = time.monotonic()
        assert rig.publisher.last_sent is None
        for seq in range(200):
            rig.publisher.put(message(seq))
        rig.publisher.stop(PATIENCE)

        assert rig.publisher.join(PATIENCE)
        assert [json.loads(subscriber.wait_for(RESULT).payload)["seq"] for _ in range(200)] == list(range(200))
        assert subscriber.next().payload == b"stopped"
        assert rig.spool.stats.depth == 0
        assert rig.publisher.sent == 200
        assert began <= (rig.publisher.last_sent or 0.0) <= time.monotonic()


def test_a_result_carries_content_type_expiry_and_properties(broker: Broker) -> None:
    with Subscriber(broker.port, RESULT) as subscriber, Rig(broker.port) as rig:
        rig.wait_for("running")
        rig.publisher.put(message(1, expiry=60, properties=(("schema", "edged.result/1"), ("model", "motion"))))

        properties = subscriber.wait_for(RESULT).properties

        assert properties.ContentType == "application/json"
        assert 50 <= properties.MessageExpiryInterval <= 60
        assert properties.UserProperty == [("schema", "edged.result/1"), ("model", "motion")]


def test_qos_0_is_sent_once_and_counted(broker: Broker) -> None:
    with Subscriber(broker.port, RESULT) as subscriber, Rig(broker.port) as rig:
        rig.publisher.put(message(1, qos=0))
        rig.publisher.put(message(2, qos=0))

        assert [subscriber.wait_for(RESULT).qos for _ in range(2)] == [0, 0]
        rig.publisher.stop(PATIENCE)
        rig.publisher.join(PATIENCE)
        assert (rig.publisher.sent, rig.spool.stats.depth) == (2, 0)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_nothing_is_lost_when_the_broker_is_killed_and_restarted(broker: Broker, protocol: str) -> None:
    with Rig(broker.port, protocol=protocol) as rig:
        rig.publisher.publish_state(TOPICS.state, b"{}")
        rig.wait_for("running")
        broker.stop(kill=True)
        rig.wait_for("failed")
        for seq in range(300):
            rig.publisher.put(message(seq))
        broker.start()
        with Subscriber(broker.port, "edged/#") as subscriber:
            seen = []
            while 299 not in seen:
                seen.append(json.loads(subscriber.wait_for(RESULT).payload)["seq"])

        rig.wait_for("running")
        assert rig.publisher.reconnects == 1
        assert seen == list(range(seen[0], 300))
        with Subscriber(broker.port, TOPICS.state) as latecomer:
            assert latecomer.next().payload == b"{}"


def test_a_publish_that_the_broker_forbids_is_parked_and_others_go_on(tmp_path: Path) -> None:
    acl = "topic readwrite edged/board/#\ntopic read #\n"
    with Broker(tmp_path, acl=acl) as broker, Rig(broker.port) as rig:
        rig.publisher.put(message(1, topic="elsewhere/result"))
        rig.publisher.put(message(2))
        health = rig.wait_for("degraded")
        rig.publisher.stop(PATIENCE)
        rig.publisher.join(PATIENCE)

        [(_, (_, parked, _), reason)] = rig.spool.parked()
        assert parked.seq == 1
        assert reason == "the broker refuses elsewhere/result: Not authorized"
        assert health.reason == reason
        assert "what the broker lets this client do" in health.hint
        assert (rig.publisher.sent, rig.publisher.refused) == (1, 1)


def test_a_state_that_the_broker_forbids_does_not_keep_us_from_being_online(tmp_path: Path) -> None:
    acl = "topic readwrite edged/#\n"
    with Broker(tmp_path, acl=acl) as broker, Subscriber(broker.port, "edged/#") as subscriber:
        rig = Rig(broker.port)
        rig.publisher.publish_state("homeassistant/device/x/config", b"{}")
        with rig:
            assert "homeassistant/device/x/config" in rig.wait_for("degraded").reason
            assert subscriber.wait_for(TOPICS.availability).payload == b"online"


def test_a_message_larger_than_the_broker_takes_is_parked_without_being_sent(tmp_path: Path) -> None:
    with Broker(tmp_path, lines=["max_packet_size 1000"]) as broker, Rig(broker.port) as rig:
        rig.publisher.put(message(1, payload=b"x" * 2000))
        rig.publisher.put(message(2))

        assert "2000 bytes are more than the broker takes" in rig.wait_for("degraded").reason
        rig.publisher.stop(PATIENCE)
        rig.publisher.join(PATIENCE)
        assert [each.entry.message.seq for each in rig.spool.parked()] == [1]
        assert rig.publisher.sent == 1


def test_a_topic_that_mqtt_cannot_carry_is_parked(broker: Broker) -> None:
    with Rig(broker.port) as rig:
        rig.publisher.put(message(1, topic="edged/+/result"))

        rig.wait_for("degraded")
        assert [each.reason for each in rig.spool.parked()] == [
            "'edged/+/result' is empty or has wildcards, so is no topic to publish at"
        ]


def test_a_wrong_password_is_a_reason_with_a_remedy_and_never_shown(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("wrong-horse\n")
    with (
        Broker(tmp_path, passwords={"board": "right-horse"}) as broker,
        Rig(broker.port, username="board", password_file=str(secret)) as rig,
    ):
        health = rig.wait_for("failed")
        assert "refused the connection: Not authorized" in health.reason
        assert "password_file" in health.hint
        assert "wrong-horse" not in health.reason + health.hint

        secret.write_text("right-horse\n")  # read anew for each connection
        rig.wait_for("running")


def test_a_password_can_be_a_credential_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mqtt").write_text("right-horse\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with (
        Broker(tmp_path, passwords={"board": "right-horse"}) as broker,
        Rig(broker.port, username="board", password_file="mqtt") as rig,
    ):
        rig.wait_for("running")


def test_a_password_file_that_is_not_there_is_a_reason(broker: Broker, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with Rig(broker.port, username="board", password_file=missing) as rig:
        assert rig.wait_for("failed").reason == f"password_file {missing!r} cannot be used: No such file or directory"


def test_tls_with_a_client_certificate(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    files = {"ca_file": certificates.ca, "cert_file": certificates.client, "key_file": certificates.client_key}
    options = {"host": "localhost", "tls": True, **{name: str(file) for name, file in files.items()}}
    with (
        Broker(tmp_path, certificates=certificates, client_certificates=True) as broker,
        Rig(broker.port, **options) as rig,
    ):
        for seq in range(100):
            rig.publisher.put(message(seq))
        rig.wait_for("running")
        rig.publisher.stop(PATIENCE)
        rig.publisher.join(PATIENCE)
        assert rig.publisher.sent == 100


def test_an_address_is_enough_where_the_name_in_the_certificate_is_given(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path, "broker.example")
    tls = {"tls": True, "ca_file": str(certificates.ca)}
    with Broker(tmp_path, certificates=certificates) as broker:
        with Rig(broker.port, **tls) as rig:
            assert "or server_name to that name" in rig.wait_for("failed").hint
        with Rig(broker.port, server_name="broker.example", **tls) as rig:
            rig.wait_for("running")


def test_a_bad_certificate_is_a_reason_with_a_remedy(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    good = {"host": "localhost", "tls": True, "ca_file": str(certificates.ca)}
    cases = [
        ({**good, "ca_file": str(certificates.stranger)}, "is not good", "ca_file"),
        ({**good, "host": "127.0.0.1"}, "IP address mismatch", "set host to a name or address in the certificate"),
        ({**good, "tls": False, "ca_file": ""}, "closed the connection", "TLS"),
    ]
    with Broker(tmp_path, certificates=certificates) as broker:
        for options, reason, hint in cases:
            with Rig(broker.port, **options) as rig:
                health = rig.wait_for("failed")
                assert reason in health.reason
                assert hint in health.hint


def test_a_missing_client_certificate_is_a_reason_with_a_remedy(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    options = {"host": "localhost", "tls": True, "ca_file": str(certificates.ca)}
    with (
        Broker(tmp_path, certificates=certificates, client_certificates=True) as broker,
        Rig(broker.port, **options) as rig,
    ):
        assert "cert_file" in rig.wait_for("failed").hint


def test_tls_to_a_port_that_does_not_speak_it(broker: Broker) -> None:
    with Rig(broker.port, tls=True) as rig:
        assert "TLS" in rig.wait_for("failed").hint


def test_messages_for_us_reach_the_handler_with_their_retained_flag(broker: Broker) -> None:
    heard: Queue[tuple[str, bytes, bool]] = Queue()
    with Subscriber(broker.port, "unused") as other, Rig(broker.port) as rig:
        other.client.publish("homeassistant/status", "old", qos=1, retain=True).wait_for_publish(PATIENCE)
        rig.publisher.subscribe("homeassistant/+", lambda *arguments: heard.put(arguments))
        assert heard.get(timeout=PATIENCE) == ("homeassistant/status", b"old", True)
        other.client.publish("homeassistant/status", "online", qos=1)

        assert heard.get(timeout=PATIENCE) == ("homeassistant/status", b"online", False)


def test_a_handler_that_fails_does_not_end_the_connection(broker: Broker) -> None:
    with Subscriber(broker.port, RESULT) as other, Rig(broker.port) as rig:
        called: Queue[bytes] = Queue()

        def fail(topic: str, payload: bytes, retained: bool) -> None:
            called.put(payload)
            raise RuntimeError("a bug")

        rig.publisher.subscribe("command", fail)
        rig.wait_for("running")
        other.client.publish("command", "1", qos=1, retain=True)
        called.get(timeout=PATIENCE)
        rig.publisher.put(message(1))

        other.wait_for(RESULT)
        assert rig.publisher.reconnects == 0


@pytest.mark.parametrize(
    "refuse",
    [
        pytest.param(lambda connection: connection.sendall(bytes([0x20, 2, 0, 1])), id="says so"),
        pytest.param(lambda connection: None, id="closes"),
        pytest.param(lambda connection: connection.recv(1), id="is silent"),
    ],
)
def test_a_broker_that_does_not_know_mqtt_5_is_spoken_to_in_3_1_1(refuse: Script) -> None:
    with server(old_broker(refuse)) as port, Rig(port, connect_timeout=0.2) as rig:
        rig.publisher.put(message(1))
        rig.wait_for("running")
        rig.publisher.stop(PATIENCE)
        rig.publisher.join(PATIENCE)

        assert rig.publisher.protocol == "3.1.1"
        assert rig.publisher.sent == 1


def test_with_the_version_fixed_there_is_no_falling_back() -> None:
    refuse: Script = lambda connection: connection.sendall(bytes([0x20, 2, 0, 1]))  # noqa: E731
    with server(old_broker(refuse)) as port, Rig(port, protocol="5") as rig:
        assert rig.wait_for("failed").hint == 'set protocol = "3.1.1"'


@pytest.mark.parametrize("protocol", ["5", "auto"])
def test_a_broker_that_keeps_no_retained_messages_is_told_states_all_the_same(tmp_path: Path, protocol: str) -> None:
    with Broker(tmp_path, lines=["retain_available false"]) as broker, Subscriber(broker.port, "edged/#") as subscriber:
        rig = Rig(broker.port, protocol=protocol)
        rig.publisher.publish_state(TOPICS.state, b"{}")
        with rig:
            rig.publisher.put(message(1))
            assert "the broker keeps no retained messages" in rig.wait_for("degraded").reason
            assert [subscriber.next().topic for _ in range(3)] == [TOPICS.state, TOPICS.availability, RESULT]
        assert subscriber.wait_for(TOPICS.availability).payload == b"stopped"


def test_a_broker_that_takes_qos_0_only_gets_that(tmp_path: Path) -> None:
    with Broker(tmp_path, lines=["max_qos 0"]) as broker, Subscriber(broker.port, "edged/#") as subscriber:
        rig = Rig(broker.port)
        rig.publisher.publish_state(TOPICS.state, b"{}")
        with rig:
            rig.publisher.put(message(1))
            assert "takes QoS 0 only" in rig.wait_for("degraded").reason
            assert [subscriber.next().topic for _ in range(3)] == [TOPICS.state, TOPICS.availability, RESULT]
        assert (rig.publisher.sent, rig.spool.depth) == (1, 0)


def test_a_broker_that_takes_no_wildcards_is_asked_for_none() -> None:
    """After a CONNACK with Wildcard Subscription Available = 0, a publish and a subscription
    without wildcards follow.
    """
    asked: list[bytes] = []

    def script(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(bytes([0x20, 5, 0, 0, 2, 0x28, 0]))
        while data := connection.recv(4096):
            asked.append(data)
            connection.sendall(bytes([0x40, 2, 0, 1, 0x40, 2, 0, 2, 0x40, 2, 0, 3]))

    with server(script) as port:
        rig = Rig(port)
        rig.publisher.subscribe("edged/board/models/+/desired", lambda *_: None)
        rig.publisher.subscribe("edged/board/state", lambda *_: None)
        with rig:
            reason = rig.wait_for("degraded").reason
    assert reason == "the broker takes no wildcards in subscriptions: edged/board/models/+/desired is not received"
    assert b"edged/board/state" in b"".join(asked)
    assert b"models/+/desired" not in b"".join(asked)


def test_what_is_no_longer_heard_is_unsubscribed(broker: Broker) -> None:
    heard: Queue[bytes] = Queue()
    with Rig(broker.port) as rig, Subscriber(broker.port, "x/#") as other:
        rig.publisher.subscribe("x/a", lambda _topic, payload, _retained: heard.put(payload))
        rig.publisher.subscribe("x/b", lambda _topic, payload, _retained: heard.put(payload))
        rig.publisher.publish_state("x/a", b"1")
        assert heard.get(timeout=PATIENCE) == b"1"
        rig.publisher.unsubscribe("x/a")
        rig.publisher.publish_state("x/a", b"2")
        rig.publisher.publish_state("x/b", b"3")
        assert heard.get(timeout=PATIENCE) == b"3"
        other.wait_for("x/b", b"3")


def test_connections_that_end_within_seconds_are_paused_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two boards with one client id at a broker of MQTT 3.1.1 disconnect each other after each message."""
    paused: Queue[int] = Queue()
    monkeypatch.setattr("edged.outbox.publisher.backoff", lambda failures, _chance: paused.put(failures) or 0.0)

    def script(connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            while head := stream.read(2):  # packets in these tests are shorter than 128 bytes
                body = stream.read(head[1])
                if head[0] == 0x10:
                    connection.sendall(b"\x20\x02\x00\x00")
                if head[0] & 0xF6 == 0x32:  # the packet id stands after the topic
                    topic_end = 2 + int.from_bytes(body[:2], "big")
                    connection.sendall(b"\x40\x02" + body[topic_end : topic_end + 2])
                    if b"result" in body[:topic_end]:
                        connection.shutdown(socket.SHUT_WR)

    with server(script) as port, Rig(port, protocol="3.1.1") as rig:
        for seq in range(10):
            rig.publisher.put(message(seq))
        failures = [paused.get(timeout=PATIENCE) for _ in range(9)]
    assert failures[:4] == [1, 1, 1, 1]  # a link with a short failure is used again at once
    assert failures[-3:] == [3, 4, 4] or failures[-3:] == [4, 4, 4]


def test_a_client_id_is_unlike_that_of_another_board() -> None:
    ids: Queue[bytes] = Queue()

    def script(connection: socket.socket) -> None:
        ids.put(connection.recv(4096))

    status = Status("mqtt", time.monotonic, lambda *_: None)
    with server(script) as port:
        publisher = Publisher(MqttOptions(host="127.0.0.1", port=port), TOPICS, MemorySpool(), status, client="a1b2c3")
        publisher.start()
        assert b"edged-board-a1b2c3" in ids.get(timeout=PATIENCE)
        publisher.stop(0)
        assert publisher.join(PATIENCE)


def test_it_starts_with_the_broker_down_and_stops_at_once(tmp_path: Path) -> None:
    rig = Rig(free_port())
    with rig:
        rig.publisher.put(message(1))
        assert "nothing listens" in rig.wait_for("failed").reason
    assert rig.spool.stats.depth == 1
    assert rig.publisher.status.health.state == "stopped"


def test_without_a_host_messages_are_dropped_and_the_status_says_so() -> None:
    with Rig(1883, host="") as rig:
        rig.publisher.put(message(1))

        assert rig.wait_for("stopped").hint == "set host in [mqtt]"
        assert rig.spool.stats.depth == 0


def test_after_many_short_connections_that_were_good_the_next_one_comes_as_soon(broker: Broker) -> None:
    with FlakyProxy(broker.port) as link, Subscriber(broker.port, RESULT) as subscriber, Rig(link.port) as rig:
        for seq in range(8):
            began = time.monotonic()
            rig.publisher.put(message(seq))
            while json.loads(subscriber.wait_for(RESULT).payload)["seq"] != seq:
                pass
            rig.wait_for("running")
            while rig.publisher.sent <= seq:
                time.sleep(0.001)
            link.drop()

    assert time.monotonic() - began < LONGEST_RETRY / 3  # at least half of LONGEST_RETRY otherwise


class VirtualTime:
    """Clock and waits: time passes during a wait."""

    def __init__(self) -> None:
        self.now = 0.0
        self.changes_at = math.inf
        """When the network changes."""

    def clock(self) -> float:
        return self.now

    def wait(self, timeout: float, other: int | None = None) -> bool:
        changed = other is not None and self.now <= self.changes_at <= self.now + timeout
        self.now = self.changes_at if changed else self.now + timeout
        return changed


@pytest.mark.parametrize(
    ("chance", "changes_at", "seconds"),
    [(0.0, math.inf, 0.375), (0.5, math.inf, 0.65), (1.0, math.inf, 0.925), (0.0, 0.1, 0.3), (1.0, 0.1, 0.6)],
)
def test_boards_that_learn_at_one_moment_that_the_broker_is_back_do_not_come_at_one(
    chance: float, changes_at: float, seconds: float
) -> None:
    time = VirtualTime()
    time.changes_at = changes_at
    with server(lambda connection: None) as port:
        options = MqttOptions(host="127.0.0.1", port=port)
        quiet = Status("mqtt", time.clock, lambda _name, _health: None)
        publisher = Publisher(options, TOPICS, MemorySpool(), quiet, clock=time.clock, chance=lambda: chance)
        publisher.put(message(1))
        publisher._wake = time  # type: ignore[assignment]
        publisher._pause(30.0, probing=True)
    assert time.now == pytest.approx(seconds)
