"""A session over a scripted link: rules for sending, repetition and refusal."""

from __future__ import annotations

from typing import Any, cast

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from edged.core.health import Status
from edged.core.record import WallClock
from edged.core.topics import Topics
from edged.outbox.faults import LinkError
from edged.outbox.link import Acknowledgement, Link, Received, Wake
from edged.outbox.link_health import REFUSAL_SECONDS
from edged.outbox.options import MqttOptions, SpoolOptions
from edged.outbox.session import MAX_STRIKES, DeliveryCounts, Handler, Session
from edged.outbox.spool import MemorySpool
from edged.outbox.states import RetainedStates
from tests.contracts.spool import message

TOPICS = Topics("edged", "board")
ONLINE = TOPICS.availability


class FakeLink:
    """Link that records publications; `answers` are given to the next messages in order, then success.

    A `silent` link acknowledges no message, and a `poison` topic makes the link disconnect.
    """

    def __init__(self, *, window: int = 20, silent: bool = False, poison: str = "") -> None:
        self.window = window
        self.retain, self.qos, self.wildcards = True, 1, True
        self.silent = silent
        self.poison = poison
        self.answers: list[str] = []
        self.topics: list[str] = []
        self.payloads: list[bytes] = []
        self.closed = False
        self._pending: list[Acknowledgement] = []

    def publish(self, topic: str, payload: bytes, **_: Any) -> int:
        self.topics.append(topic)
        self.payloads.append(payload)
        answer = self.answers.pop(0) if self.answers else "Success"
        if not self.silent:
            self._pending.append(Acknowledgement(len(self.topics), ReasonCode(PacketTypes.PUBACK, answer)))
        return len(self.topics)

    def too_large(self, topic: str, payload: bytes, properties: bytes | None) -> bool:
        return len(payload) > 1000

    def wait(self, timeout: float, *, lazily: bool = False) -> None:
        if self.poison in self.topics:
            raise LinkError("the broker hung up", dropped=True)

    def take_acknowledged(self) -> list[Acknowledgement]:
        taken, self._pending = self._pending, []
        return taken

    def take_received(self) -> list[Received]:
        return []

    def close(self) -> None:
        self.closed = True


class Rig:
    """Successive sessions over the parts that outlive sessions."""

    def __init__(self) -> None:
        self.now = 60.0  # messages of time 0 have waited for long
        self.spool = MemorySpool(clock=lambda: self.now)
        self.states = RetainedStates()
        self.handlers: dict[str, Handler] = {}
        self.counts = DeliveryCounts()
        self.status = Status("mqtt", lambda: self.now, lambda name, health: None)

    def session(self, link: FakeLink, wall: WallClock | None = None) -> Session:
        return Session(
            cast(Link, link),
            MqttOptions(host="broker", keepalive=30),
            TOPICS,
            spool=self.spool,
            states=self.states,
            handlers=self.handlers,
            counts=self.counts,
            status=self.status,
            wake=Wake(),
            clock=lambda: self.now,
            wall=wall,
        )


class Wall:
    """Wall clock that becomes correct, or knows all times before `known_until`."""

    synchronised = False
    known_until = 0.0

    def at(self, monotonic: float) -> float:
        return monotonic + 1000.0 * self.knows(monotonic)

    def knows(self, monotonic: float) -> bool:
        return self.synchronised or monotonic < self.known_until


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_online_waits_until_every_state_is_acknowledged_and_results_wait_for_online(rig: Rig) -> None:
    rig.states.put("a", b"1")
    rig.states.put("b", b"1")
    rig.states.put("c", b"1")
    rig.spool.put(message(1, topic="result"))
    link = FakeLink(window=2)
    session = rig.session(link)

    session.turn(0)
    assert link.topics == ["a", "b"]
    session.turn(0)
    assert link.topics == ["a", "b", "c"]
    session.turn(0)
    assert link.topics == ["a", "b", "c", ONLINE, "result"]
    assert rig.status.health.state == "running"
    assert session.finished


def test_no_more_than_a_window_is_unacknowledged(rig: Rig) -> None:
    for seq in range(10):
        rig.spool.put(message(seq))
    link = FakeLink(window=4)
    session = rig.session(link)
    link.silent = True
    for _ in range(5):
        session.turn(0)

    assert len(link.topics) == 4
    assert not session.finished


def test_a_broker_that_acknowledges_nothing_is_left(rig: Rig) -> None:
    session = rig.session(FakeLink(silent=True))
    session.turn(0)
    rig.now += 61.0

    with pytest.raises(LinkError, match="has acknowledged nothing for 60 s"):
        session.turn(0)


def test_a_full_quota_is_a_reason_to_come_back_later_and_not_to_park(rig: Rig) -> None:
    rig.spool.put(message(1))
    link = FakeLink()
    link.answers = ["Success", "Quota exceeded"]
    session = rig.session(link)
    with pytest.raises(LinkError, match="Quota exceeded") as caught:
        session.turn(0)
    session.abandon(caught.value)

    assert link.closed
    assert (rig.spool.stats.depth, rig.spool.stats.in_flight, rig.spool.stats.parked) == (1, 0, 0)


@pytest.mark.parametrize("answer", ["Not authorized", "Topic name invalid", "Payload format invalid"])
def test_a_refused_message_is_parked_with_the_reason(rig: Rig, answer: str) -> None:
    rig.spool.put(message(1, topic="result"))
    link = FakeLink()
    link.answers = ["Success", answer]
    rig.session(link).turn(0)

    assert [each.reason for each in rig.spool.parked()] == [f"the broker refuses result: {answer}"]
    assert (rig.counts.sent, rig.counts.refused) == (0, 1)
    assert rig.status.health.state == "degraded"


def test_nobody_listening_is_no_refusal(rig: Rig) -> None:
    rig.spool.put(message(1))
    link = FakeLink()
    link.answers = ["Success", "No matching subscribers"]
    rig.session(link).turn(0)

    assert (rig.counts.sent, rig.counts.refused) == (1, 0)


def test_a_refusal_is_forgiven_after_a_while_without_another(rig: Rig) -> None:
    rig.spool.put(message(1))
    link = FakeLink()
    link.answers = ["Success", "Not authorized"]
    session = rig.session(link)
    session.turn(0)
    rig.now += REFUSAL_SECONDS
    session.turn(0)
    assert rig.status.health.state == "degraded"
    rig.now += 1
    session.turn(0)

    assert rig.status.health.state == "running"


def test_a_state_that_is_too_large_is_refused_without_being_sent(rig: Rig) -> None:
    rig.states.put("a", b"x" * 1001)
    link = FakeLink()
    rig.session(link).turn(0)

    assert link.topics == [ONLINE]
    assert "1001 bytes" in rig.status.health.reason


def test_a_message_on_which_the_broker_keeps_hanging_up_is_found_and_parked(rig: Rig) -> None:
    for seq in range(4):
        rig.spool.put(message(seq, topic=f"result/{seq}"))
    connections = 0
    while rig.spool.stats.depth:
        connections += 1
        assert connections < 20
        session = rig.session(FakeLink(poison="result/1"))
        try:
            while not session.finished:
                session.turn(0)
        except LinkError as error:
            session.abandon(error)

    [(_, (_, parked, _), reason)] = rig.spool.parked()
    assert parked.topic == "result/1"
    assert reason == "after each attempt to send this message: the broker hung up"
    assert rig.counts.sent == 3


def test_a_network_that_keeps_failing_parks_nothing(rig: Rig) -> None:
    rig.spool.put(message(1))
    for _ in range(2 * MAX_STRIKES):
        session = rig.session(FakeLink(silent=True))
        session.turn(0)
        session.abandon(LinkError("no longer answers"))

    assert (rig.spool.stats.depth, rig.spool.stats.parked) == (1, 0)


def test_what_waited_for_the_connection_is_replayed_at_the_rate_that_is_set_and_new_results_go_at_once(
    rig: Rig,
) -> None:
    rig.spool = MemorySpool(SpoolOptions(replay_rate=10), clock=lambda: rig.now)
    for seq in range(5):
        rig.spool.put(message(seq, topic=f"old/{seq}"))
    link = FakeLink()
    session = rig.session(link)
    session.turn(0)
    rig.spool.put(message(9, topic="new"))
    session.turn(0)
    assert link.topics == [ONLINE, "new"]
    for _ in range(3):
        rig.now += 0.1
        session.turn(0)

    assert link.topics == [ONLINE, "new", "old/0", "old/1", "old/2"]
    assert rig.counts.replayed == 3


def test_a_replayed_message_says_so_in_its_payload_if_that_is_an_object(rig: Rig) -> None:
    link = FakeLink()
    rig.spool.put(message(1, payload=b'{"seq":1}'))
    rig.spool.put(message(2, payload=b"[1]"))
    session = rig.session(link)
    session.turn(0)
    rig.spool.put(message(3, payload=b'{"seq":3}'))
    session.turn(0)

    assert link.payloads[1:] == [b'{"seq":1,"replayed":true}', b"[1]", b'{"seq":3}']


def test_what_was_made_before_the_clock_was_right_leaves_with_the_right_time_unless_that_is_a_guess(rig: Rig) -> None:
    payload = b'{"time":41.0,"start":40.0,"synchronised":false,"latency":1.0}'
    link = FakeLink()
    wall = Wall()
    session = rig.session(link, wall)
    rig.spool.put(message(1, payload=payload, created=42.0))
    session.turn(0)
    wall.synchronised = True
    rig.spool.put(message(2, payload=payload, created=42.0))
    rig.spool.put(message(3, payload=payload, created=42.0, estimated=True))
    session.turn(0)

    assert link.payloads[1:] == [payload, b'{"time":1041.0,"start":1040.0,"synchronised":true,"latency":1.0}', payload]


def test_what_was_made_before_a_time_that_is_lost_again_leaves_with_the_right_time(rig: Rig) -> None:
    payload = b'{"time":41.0,"synchronised":false,"latency":1.0}'
    link = FakeLink()
    wall = Wall()
    wall.known_until = 50.0
    session = rig.session(link, wall)
    rig.spool.put(message(1, payload=payload, created=42.0))
    rig.spool.put(message(2, payload=payload, created=52.0))
    session.turn(0)

    assert link.payloads[1:] == [b'{"time":1041.0,"synchronised":true,"latency":1.0}', payload]
