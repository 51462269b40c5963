"""A session over a scripted link: rules for sending, repetition and refusal."""

from __future__ import annotations

from collections.abc import Container
from threading import Event, RLock, Thread
from typing import Any, cast

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from edged.core.health import Status
from edged.core.record import WallClock
from edged.core.topics import Topics
from edged.core.types import Message
from edged.outbox.client import Acknowledgement
from edged.outbox.delivery_counts import DeliveryCounts
from edged.outbox.faults import LinkError, MessageError
from edged.outbox.link import Link, Received
from edged.outbox.link_health import REFUSAL_SECONDS
from edged.outbox.options import MqttOptions, SpoolOptions
from edged.outbox.packets import Publish
from edged.outbox.session import MAX_STRIKES, Session
from edged.outbox.spool import MemorySpool
from edged.outbox.states import RetainedStates
from edged.outbox.subscriptions import Handler
from edged.outbox.wake import Wake
from tests.contracts.spool import message
from tests.patience import PATIENCE

TOPICS = Topics("edged", "board")
ONLINE = TOPICS.availability


class FakeLink:
    """Link that records publications; `reasons` answer the next messages in order, then success.

    A `silent` link acknowledges no message, and a `poison` topic makes the link disconnect.
    """

    def __init__(self, *, window: int = 20, silent: bool = False, poison: str = "") -> None:
        self.window = window
        self.retain, self.qos, self.wildcards = True, 1, True
        self.silent = silent
        self.poison = poison
        self.reasons: list[str] = []
        self.topics: list[str] = []
        self.payloads: list[bytes] = []
        self.closed = False
        self.accepted: list[int] = []
        self.answers: list[Acknowledgement] = []
        self.unheard: list[int] = []
        self.surprised = False
        self.waits: list[tuple[float, bool]] = []
        self.wire = RLock()
        self.is_writable = True

    def encode(self, topic: str, payload: bytes, **_: Any) -> Publish:
        if len(payload) > 1000:
            raise MessageError(f"{len(payload)} bytes are more than the broker takes")
        return Publish(topic.encode(), b"", payload, 1)

    def send(self, packet: Publish, awaited: Container[int]) -> int:
        self.topics.append(packet.head.decode())
        self.payloads.append(packet.payload)
        if not self.silent:
            if self.reasons and (reason := self.reasons.pop(0)) != "Success":
                self.answers.append(answer(len(self.topics), reason))
            else:
                self.accepted.append(len(self.topics))
        return len(self.topics)

    def flush(self) -> None:
        pass

    def hear(self) -> bool:
        """Read all that was kept `unheard`."""
        self.accepted += self.unheard
        self.unheard.clear()
        return not self.surprised

    def wait(self, timeout: float, *, lazily: bool = False) -> None:
        self.waits.append((timeout, lazily))
        if self.poison in self.topics:
            raise LinkError("the broker hung up", dropped=True)

    def take_received(self) -> list[Received]:
        return []

    def close(self) -> None:
        self.closed = True


def answer(mid: int, reason: str) -> Acknowledgement:
    return Acknowledgement(mid, ReasonCode(PacketTypes.PUBACK, reason))


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
    link.reasons = ["Success", "Quota exceeded"]
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
    link.reasons = ["Success", answer]
    rig.session(link).turn(0)

    assert [each.reason for each in rig.spool.parked()] == [f"the broker refuses result: {answer}"]
    assert (rig.counts.sent, rig.counts.refused) == (0, 1)
    assert rig.status.health.state == "degraded"


def test_nobody_listening_is_no_refusal(rig: Rig) -> None:
    rig.spool.put(message(1))
    link = FakeLink()
    link.reasons = ["Success", "No matching subscribers"]
    rig.session(link).turn(0)

    assert (rig.counts.sent, rig.counts.refused) == (1, 0)


def test_a_refusal_is_forgiven_after_a_while_without_another(rig: Rig) -> None:
    rig.spool.put(message(1))
    link = FakeLink()
    link.reasons = ["Success", "Not authorized"]
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


def online(rig: Rig, link: FakeLink, wall: WallClock | None = None) -> Session:
    """Return a session online and finished."""
    session = rig.session(link, wall)
    session.turn(0)
    assert session.finished
    link.topics.clear()
    link.payloads.clear()
    return session


def fresh(rig: Rig, seq: int, **fields: Any) -> Message:
    return message(seq, **{"created": rig.now, "topic": f"result/{seq}", **fields})


def test_a_message_with_nothing_before_it_is_sent_directly_and_counts_like_any_other(rig: Rig) -> None:
    link = FakeLink()
    session = online(rig, link)
    assert session.send_directly(fresh(rig, 1))
    assert link.topics == ["result/1"]
    assert rig.spool.stats.in_flight == 1
    session.turn(0)

    assert (rig.counts.sent, rig.counts.last_sent) == (1, rig.now)
    assert session.finished


def test_before_online_no_message_is_sent_directly(rig: Rig) -> None:
    rig.states.put("a", b"1")
    link = FakeLink()
    assert not rig.session(link).send_directly(fresh(rig, 1))
    assert link.topics == []


def test_a_changed_state_goes_before_a_message(rig: Rig) -> None:
    link = FakeLink()
    session = online(rig, link)
    rig.states.put("a", b"1")
    assert not session.send_directly(fresh(rig, 1))
    session.turn(0)
    assert session.send_directly(fresh(rig, 2))
    assert link.topics == ["a", "result/2"]


def test_a_waiting_message_goes_first(rig: Rig) -> None:
    link = FakeLink()
    session = online(rig, link)
    rig.spool.put(fresh(rig, 1))
    assert not session.send_directly(fresh(rig, 2))
    assert link.topics == []


def test_acknowledgements_are_heard_before_the_window_is_judged_to_be_full(rig: Rig) -> None:
    link = FakeLink(window=3)
    session = online(rig, link)
    answers = []
    for seq in range(3):
        assert session.send_directly(fresh(rig, seq))
        answers.append(link.accepted.pop())
    assert not session.send_directly(fresh(rig, 3))
    link.unheard = answers
    assert session.send_directly(fresh(rig, 3))
    assert rig.counts.sent == 3


def test_acknowledgements_are_read_once_a_quarter_of_the_window_is_in_flight(rig: Rig) -> None:
    link = FakeLink(window=20)
    session = online(rig, link)
    sent = []
    for seq in range(6):
        assert session.send_directly(fresh(rig, seq))
        link.unheard.append(link.accepted.pop())
        sent.append(rig.counts.sent)
    assert sent == [0, 0, 0, 0, 0, 5]


def test_anything_but_success_is_left_to_the_publishers_thread(rig: Rig) -> None:
    link = FakeLink(window=4)
    session = online(rig, link)
    assert session.send_directly(fresh(rig, 1))
    link.surprised = True
    assert not session.send_directly(fresh(rig, 2))
    assert link.topics == ["result/1"]


@pytest.mark.parametrize("reason", ["Quota exceeded", "Not authorized"])
def test_a_refusal_read_by_the_publishers_thread_is_left_to_it(rig: Rig, reason: str) -> None:
    link = FakeLink(window=4)
    session = online(rig, link)
    link.silent = True
    assert session.send_directly(fresh(rig, 1))
    link.answers = [answer(1, reason)]
    assert not session.send_directly(fresh(rig, 2))
    assert rig.counts.refused == 0


def test_the_acknowledgement_of_a_state_is_left_to_the_publishers_thread(rig: Rig) -> None:
    link = FakeLink(window=4, silent=True)
    session = rig.session(link)
    session.turn(0)
    link.unheard = [1]
    assert not session.send_directly(fresh(rig, 1))
    assert rig.status.health.state == "starting"
    session.turn(0)
    assert rig.status.health.state == "running"
    assert session.send_directly(fresh(rig, 1))


def test_while_something_is_half_written_no_message_is_sent_directly(rig: Rig) -> None:
    link = FakeLink()
    session = online(rig, link)
    link.is_writable = False
    assert not session.send_directly(fresh(rig, 1))
    assert rig.spool.depth == 0


def test_while_another_thread_has_the_wire_no_message_is_sent_directly(rig: Rig) -> None:
    session = online(rig, link := FakeLink())
    has_wire, may_go = Event(), Event()

    def work() -> None:
        with link.wire:
            has_wire.set()
            may_go.wait(PATIENCE)

    thread = Thread(target=work)
    thread.start()
    has_wire.wait(PATIENCE)
    assert not session.send_directly(fresh(rig, 1))
    may_go.set()
    thread.join(PATIENCE)
    assert session.send_directly(fresh(rig, 1))


def test_a_message_sent_directly_is_completed_like_any_other(rig: Rig) -> None:
    wall = Wall()
    link = FakeLink()
    session = online(rig, link, wall)
    payload = b'{"time":41.0,"synchronised":false,"latency":1.0}'
    wall.synchronised = True
    assert session.send_directly(fresh(rig, 1, payload=payload, created=42.0, expiry=100))
    assert link.payloads == [b'{"time":1041.0,"synchronised":true,"latency":1.0}']


def test_an_expired_message_is_not_sent_directly(rig: Rig) -> None:
    session = online(rig, FakeLink())
    assert not session.send_directly(fresh(rig, 1, expiry=1, created=rig.now - 2))


@pytest.mark.parametrize("fields", [{"payload": b"x" * 1001}, {"qos": 0}])
def test_a_message_too_large_or_of_qos_0_is_not_sent_directly(rig: Rig, fields: dict[str, Any]) -> None:
    session = online(rig, link := FakeLink())
    assert not session.send_directly(fresh(rig, 1, **fields))
    assert (link.topics, rig.spool.depth) == ([], 0)


def test_a_suspect_is_not_looked_for_directly(rig: Rig) -> None:
    session = online(rig, FakeLink())
    rig.counts.strikes = 1
    assert not session.send_directly(fresh(rig, 1))


def test_after_the_end_of_the_connection_nothing_is_sent_directly(rig: Rig) -> None:
    session = online(rig, link := FakeLink())
    assert session.send_directly(fresh(rig, 1))
    session.abandon(LinkError("lost"))
    assert not session.send_directly(fresh(rig, 2))
    assert link.topics == ["result/1"]
    assert (rig.spool.depth, rig.spool.stats.in_flight) == (1, 0)


def test_the_time_of_a_flight_is_the_time_of_sending(rig: Rig) -> None:
    session = online(rig, link := FakeLink())
    link.silent = True
    rig.now += 1000.0
    assert session.send_directly(fresh(rig, 1, created=rig.now - 500.0))
    assert session.unanswered == 0.0
    rig.now += 30.0
    assert session.unanswered == 30.0
    session.turn(0)


@pytest.mark.parametrize(
    ("ages", "pause", "lazily"),
    [
        ((), 3600.0, False),
        ((0.2,), 0.02, True),
        ((0.3, 0.2), 0.02, True),
        ((0.2, 0.1), 0.25, True),
    ],
)
def test_the_publishers_thread_sleeps_while_others_send(
    rig: Rig, ages: tuple[float, ...], pause: float, lazily: bool
) -> None:
    session = online(rig, link := FakeLink())
    rig.now += 10.0
    session.turn(0)
    rig.now += 10.0
    session.turn(0)
    began = rig.now
    for age in ages:
        rig.now = began + 1.0 - age
        assert session.send_directly(fresh(rig, 1))
        link.unheard, link.accepted = link.accepted, []
    rig.now = began + 1.0
    session.turn(3600.0)

    assert link.waits[-1] == (pause, lazily)


def test_beyond_half_of_a_window_the_publishers_thread_awaits_acknowledgements(rig: Rig) -> None:
    session = online(rig, link := FakeLink(window=4))
    link.silent = True
    for seq in range(2):
        assert session.send_directly(fresh(rig, seq))
    session.turn(3600.0)
    assert link.waits[-1] == (0.25, True)
    assert session.send_directly(fresh(rig, 2))
    session.turn(3600.0)
    assert link.waits[-1] == (0.5, False)


def test_a_sleep_ends_in_time_for_rates_to_fall_and_for_a_degradation_to_end(rig: Rig) -> None:
    session = online(rig, link := FakeLink())
    assert session.send_directly(fresh(rig, 1))
    rig.now += 1.0
    session.turn(3600.0)
    assert rig.counts.rate == 1.0
    session.health.degrade("a reason", "", 2.5)
    waits = []
    for _ in range(3):
        session.turn(3600.0)
        waits.append(link.waits[-1][0])
        rig.now += waits[-1] + 0.01
        session.turn(0)
    assert waits == pytest.approx([1.0, 1.49, 3600.0])
    assert rig.counts.rate == 0.0
