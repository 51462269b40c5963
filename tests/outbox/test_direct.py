"""Messages sent on the calling thread, beside messages from the spool, to a scripted broker."""

from __future__ import annotations

import json
import os
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from edged.core.health import Health, Status
from edged.core.topics import Topics
from edged.core.types import Message
from edged.outbox.options import MqttOptions, Policy, SpoolOptions
from edged.outbox.publisher import Publisher
from edged.outbox.spool import MemorySpool
from tests.broker import make_certificates
from tests.patience import PATIENCE
from tests.scripted_broker import ScriptedBroker, accept

TOPICS = Topics("edged", "board")
RESULT = TOPICS.result("motion")
SOAK = bool(os.environ.get("EDGED_SOAK"))


class CountingSpool(MemorySpool):
    """Spool that notes the numbers of messages entered, and of messages put."""

    def __init__(self) -> None:
        super().__init__(SpoolOptions(), {"motion": Policy()})
        self.entered: list[int] = []
        self.put_here: list[int] = []

    def put(self, message: Message) -> None:
        super().put(message)
        self.put_here.append(message.seq)

    def enter(self, message: Message) -> int | None:
        entry_id = super().enter(message)
        if entry_id is not None:
            self.entered.append(message.seq)
        return entry_id


class Rig:
    """Publisher connected to a broker."""

    def __init__(self, broker: ScriptedBroker, **options: Any) -> None:
        self.broker = broker
        self.spool = CountingSpool()
        self.healths: list[Health] = []
        status = Status("mqtt", time.monotonic, lambda _name, health: self.healths.append(health))
        given = MqttOptions(**{"host": "127.0.0.1", "port": broker.port, **options})
        self.publisher = Publisher(given, TOPICS, self.spool, status, chance=lambda: 0.0)
        self.seq = 0

    def __enter__(self) -> Rig:
        self.publisher.start()
        self.wait_for(lambda: self.healths and self.healths[-1].state == "running")
        return self

    def __exit__(self, *_: object) -> None:
        self.publisher.stop(0)
        assert self.publisher.join(PATIENCE)

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def put(self, **fields: Any) -> int:
        """Put the next message, and return the number."""
        self.publisher.put(message(self.seq, **fields))
        self.seq += 1
        return self.seq - 1

    def put_directly(self, **fields: Any) -> int:
        """Put messages until a message is sent directly, and return its number; all others are acknowledged."""
        while (seq := self.put(**fields)) not in self.spool.entered:
            holding = self.broker.holding
            self.broker.release()
            self.wait_for(lambda: self.spool.depth == 0)
            if holding:
                self.broker.hold()
        return seq

    def arrived(self) -> list[int]:
        return [json.loads(payload)["seq"] for payload in self.broker.payloads(RESULT)]


def message(seq: int, *, size: int = 0, origin: str = "motion", **fields: Any) -> Message:
    payload = json.dumps({"seq": seq, "id": f"{origin}:{seq}", "fill": "x" * size}).encode()
    given = {"topic": TOPICS.result(origin), "payload": payload, "created": time.monotonic()}
    return Message(origin=origin, seq=seq, **{**given, **fields})


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    with ScriptedBroker() as running:
        yield running


def test_a_broker_that_delays_twenty_acknowledgements_holds_up_nobody(broker: ScriptedBroker) -> None:
    """The acknowledgements are heard before the window is judged to be full."""
    with Rig(broker, in_flight=20) as rig:
        rig.put_directly()
        rig.wait_for(lambda: rig.spool.depth == 0)
        broker.hold()
        while rig.spool.stats.in_flight < 20:
            rig.put()
        broker.wait_for(lambda: len(set(rig.arrived())) >= rig.publisher.sent + 20)
        broker.release()
        rig.wait_for(lambda: rig.spool.depth == 0)
        rig.put_directly()
        broker.wait_for(lambda: rig.arrived() == list(range(rig.seq)))


def test_a_refusal_is_handled_by_the_publishers_thread(broker: ScriptedBroker) -> None:
    with Rig(broker) as rig:
        broker.hold()
        refused = rig.put_directly()
        broker.wait_for(lambda: refused in rig.arrived())
        broker.answer = lambda publication: b"\x40\x03" + publication.mid.to_bytes(2, "big") + b"\x87"
        broker.release()
        broker.answer = accept
        rig.wait_for(lambda: rig.publisher.refused)
        rig.put()
        rig.wait_for(lambda: rig.spool.depth == 0)

        assert [each.entry.message.seq for each in rig.spool.parked()] == [refused]
        assert rig.healths[-1].reason == f"the broker refuses {RESULT}: Not authorized"


def test_a_quota_ends_the_connection_and_not_the_pipeline(broker: ScriptedBroker) -> None:
    with Rig(broker) as rig:
        broker.hold()
        seq = rig.put_directly()
        broker.wait_for(lambda: seq in rig.arrived())
        broker.answer = lambda publication: b"\x40\x03" + publication.mid.to_bytes(2, "big") + b"\x97"
        broker.release()
        broker.answer = accept
        rig.put()
        broker.wait_for(lambda: broker.connections == 2)
        rig.wait_for(lambda: rig.spool.depth == 0)

        assert any("Quota exceeded" in health.reason for health in rig.healths)
        assert rig.publisher.refused == 0


@pytest.mark.parametrize(
    "noise", [b"\x40\x01\x00", b"\x40\x82\x80\x80\x80\x01", b"\x40\x04\x00\x01\x77\x00", b"\x00\x00"]
)
def test_malformed_bytes_among_acknowledgements_end_the_connection_and_nothing_is_lost(
    broker: ScriptedBroker, noise: bytes
) -> None:
    with Rig(broker, keepalive=2) as rig:
        broker.hold()
        seq = rig.put_directly()
        broker.wait_for(lambda: seq in rig.arrived())
        broker.release(last=noise)
        while broker.connections < 2:
            rig.put()
            time.sleep(0.01)
        rig.wait_for(lambda: rig.spool.depth == 0)

        assert list(dict.fromkeys(rig.arrived())) == list(range(rig.seq))


def test_a_command_in_the_same_segment_as_acknowledgements_is_handled(broker: ScriptedBroker) -> None:
    called: list[bytes] = []
    with Rig(broker) as rig:
        rig.publisher.subscribe("command", lambda _topic, payload, _retained: called.append(payload))
        rig.put_directly()
        broker.hold()
        seqs = [rig.put_directly()]
        seqs += [rig.put() for _ in range(3)]
        broker.wait_for(lambda: set(seqs) <= set(rig.arrived()))
        command = b"\x30\x0e\x00\x07command\x00do i"
        broker.release(last=command)
        rig.wait_for(lambda: called)
        rig.wait_for(lambda: rig.spool.depth == 0)

        assert called == [b"do i"]
        assert rig.arrived() == list(range(rig.seq))


def test_acknowledgements_that_arrive_in_pieces_are_put_together(broker: ScriptedBroker) -> None:
    with Rig(broker) as rig:
        broker.hold()
        seq = rig.put_directly()
        broker.wait_for(lambda: seq in rig.arrived())
        mid = broker.received[-1].mid.to_bytes(2, "big")
        broker.answer = lambda publication: b""
        for byte in b"\x40", b"\x02", mid[:1], mid[1:]:
            broker.release(first=byte)
            rig.put()
        broker.answer = accept
        broker.drop()
        rig.wait_for(lambda: rig.spool.depth == 0)

        assert list(dict.fromkeys(rig.arrived())) == list(range(rig.seq))


def test_with_a_receive_maximum_of_1_one_message_at_a_time_is_sent() -> None:
    with ScriptedBroker(connack=bytes([0x20, 6, 0, 0, 3, 0x21, 0, 1])) as broker, Rig(broker) as rig:
        rig.put_directly()
        rig.wait_for(lambda: rig.spool.depth == 0)
        broker.hold()
        first = rig.put()
        second = rig.put()
        broker.wait_for(lambda: first in rig.arrived())
        assert second in rig.spool.put_here
        assert second not in rig.arrived()
        broker.release()
        broker.wait_for(lambda: second in rig.arrived())


def test_a_message_beyond_the_announced_limit_is_parked_and_never_sent() -> None:
    with ScriptedBroker(connack=bytes([0x20, 8, 0, 0, 5, 0x27, 0, 0, 0x03, 0xE8])) as broker, Rig(broker) as rig:
        rig.put_directly()
        too_large = rig.put(size=1000)
        rig.put()
        rig.wait_for(lambda: rig.spool.depth == 0)

        assert [each.entry.message.seq for each in rig.spool.parked()] == [too_large]
        assert rig.arrived() == [seq for seq in range(rig.seq) if seq != too_large]


@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
def test_half_a_packet_is_completed_before_anything_else_is_sent(tmp_path: Path, secure: bool) -> None:
    context, options = None, {}
    if secure:
        certificates = make_certificates(tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server, certificates.server_key)
        options = {"tls": True, "ca_file": str(certificates.ca), "host": "localhost"}
    with ScriptedBroker(context=context) as broker, Rig(broker, in_flight=1000, **options) as rig:
        rig.put_directly()
        broker.be_deaf()
        while rig.publisher._session is None or rig.publisher._session._link.is_writable:
            rig.put(size=50_000)
        for _ in range(20):
            rig.put()
        rig.publisher.publish_state(TOPICS.state, b"{}")
        broker.listen()
        rig.wait_for(lambda: rig.spool.depth == 0)
        broker.wait_for(lambda: TOPICS.state in [each.topic for each in broker.received])

        assert rig.arrived() == list(range(rig.seq))
        assert rig.publisher.reconnects == 0


def test_what_was_in_flight_as_the_broker_died_is_sent_again_before_what_came_later(broker: ScriptedBroker) -> None:
    with Rig(broker) as rig:
        rig.put_directly()
        broker.hold()
        rig.put_directly()
        for _ in range(5):
            rig.put()
        broker.drop()
        for _ in range(5):
            rig.put()
        broker.wait_for(lambda: broker.connections == 2)
        broker.release()
        rig.wait_for(lambda: rig.spool.depth == 0)

        assert list(dict.fromkeys(rig.arrived())) == list(range(rig.seq))


def test_two_pipelines_that_send_at_once_keep_each_their_order(broker: ScriptedBroker) -> None:
    count = 300
    together = Barrier(2)

    def work(origin: str) -> None:
        together.wait(PATIENCE)
        for seq in range(count):
            rig.publisher.put(message(seq, origin=origin))

    with Rig(broker) as rig:
        threads = [Thread(target=work, args=(origin,)) for origin in ("left", "right")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        rig.wait_for(lambda: rig.spool.depth == 0)

        for origin in ("left", "right"):
            seqs = [json.loads(payload)["seq"] for payload in broker.payloads(TOPICS.result(origin))]
            assert seqs == list(range(count))


def test_stopped_goes_last_while_a_pipeline_still_sends(broker: ScriptedBroker) -> None:
    with Rig(broker) as rig:
        rig.put_directly()
        ended: list[bool] = []

        def work() -> None:
            while not ended:
                rig.put()

        thread = Thread(target=work)
        thread.start()
        rig.publisher.stop(0.05)
        assert rig.publisher.join(PATIENCE)
        ended.append(True)
        thread.join(PATIENCE)

        broker.wait_for(lambda: broker.received[-1][:2] == (TOPICS.availability, b"stopped"))
        kept = [each.seq for each in rig.spool.close(0)]
        assert set(range(rig.seq)) == {*rig.arrived(), *kept}


class Machine(RuleBasedStateMachine):
    """Pipelines "a" and "b" send while the broker is slow, deaf, gone or sends commands."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = ScriptedBroker().__enter__()
        self.rig = Rig(self.broker).__enter__()
        self.counts = {"a": 0, "b": 0}
        self.commands: list[bytes] = []
        self.rig.publisher.subscribe("command", lambda _topic, payload, _retained: self.commands.append(payload))

    @rule(origin=st.sampled_from("ab"), count=st.integers(1, 30), size=st.sampled_from([0, 0, 0, 20_000]))
    def put(self, origin: str, count: int, size: int) -> None:
        for _ in range(count):
            self.rig.publisher.put(message(self.counts[origin], origin=origin, size=size))
            self.counts[origin] += 1

    @rule()
    def wait_until_all_is_acknowledged(self) -> None:
        self.broker.listen()
        self.broker.release()
        self.rig.wait_for(lambda: self.rig.spool.depth == 0)

    @rule()
    def publish_a_state(self) -> None:
        self.rig.publisher.publish_state(TOPICS.state, b"%d" % self.rig.publisher.sent)

    @rule()
    def hold(self) -> None:
        self.broker.hold()

    @rule()
    def release(self) -> None:
        self.broker.release()

    @rule()
    def command(self) -> None:
        self.broker.release(last=b"\x30\x0b\x00\x07command\x00!")

    @rule()
    def be_deaf(self) -> None:
        self.broker.be_deaf()

    @rule()
    def listen(self) -> None:
        self.broker.listen()

    @rule()
    def drop(self) -> None:
        self.broker.drop()

    def teardown(self) -> None:
        try:
            self.wait_until_all_is_acknowledged()
            for origin, count in self.counts.items():
                records = [json.loads(payload) for payload in self.broker.payloads(TOPICS.result(origin))]
                assert list(dict.fromkeys(record["seq"] for record in records)) == list(range(count))
                assert all(record["id"] == f"{origin}:{record['seq']}" for record in records)
            assert self.rig.spool.stats.dropped == 0
        finally:
            self.rig.__exit__()
            self.broker.__exit__()


class TestSwitchingBetweenBothWays(Machine.TestCase):
    """`EDGED_SOAK=1` tries a hundred times as many sequences (`make soak`)."""

    settings = settings(max_examples=500 if SOAK else 5, stateful_step_count=30, deadline=None)
