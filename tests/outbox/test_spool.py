from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.outbox.backlog import MAX_PARKED, Backlog
from edged.outbox.options import Policy, SpoolOptions
from edged.outbox.origin_queue import OVERHEAD
from edged.outbox.spool import MemorySpool
from tests.contracts.spool import SpoolContract, message, numbers


def make(clock: Any = lambda: 0.0, policies: Any = None, **options: Any) -> MemorySpool:
    return MemorySpool(SpoolOptions(**{"messages": 1000, "memory_bytes": 1 << 20, **options}), policies, clock=clock)


def waiting(spool: MemorySpool) -> list[tuple[str, int]]:
    return [(entry.message.origin, entry.message.seq) for entry in spool.take(1000)]


class TestMemorySpool(SpoolContract):
    @pytest.fixture
    def spool(self) -> MemorySpool:
        return make()

    @pytest.fixture
    def newest_first(self) -> MemorySpool:
        return make(drain="newest")

    now = 0.0


def test_when_it_is_full_the_oldest_goes_and_is_counted() -> None:
    spool = make(messages=3)
    for seq in range(5):
        spool.put(message(seq))

    assert spool.stats.drops == {"a": {"full": 2}}
    assert waiting(spool) == [("a", 2), ("a", 3), ("a", 4)]


def test_or_the_newest_for_a_pipeline_that_is_set_so() -> None:
    spool = make(messages=3, policies={"a": Policy(drop="newest")})
    for seq in range(5):
        spool.put(message(seq))

    assert waiting(spool) == [("a", 0), ("a", 1), ("a", 2)]


def test_a_busy_pipeline_does_not_push_out_a_quiet_one() -> None:
    spool = make(messages=4)
    spool.put(message(0, "quiet"))
    for seq in range(100):
        spool.put(message(seq, "busy"))
    spool.put(message(1, "quiet"))

    assert waiting(spool) == [("quiet", 0), ("busy", 98), ("busy", 99), ("quiet", 1)]
    assert spool.stats.drops == {"busy": {"full": 98}}


def test_bytes_are_bounded_too() -> None:
    spool = make(memory_bytes=3 * (OVERHEAD + 100))
    for seq in range(5):
        spool.put(message(seq, topic="", payload=b"x" * 100))

    assert numbers(spool.take(9)) == [2, 3, 4]


def test_a_message_that_can_never_fit_pushes_nobody_out() -> None:
    spool = make(memory_bytes=10_000)
    spool.put(message(0))
    spool.put(message(1, payload=b"x" * 10_000))

    assert spool.stats.drops == {"a": {"too large": 1}}
    assert waiting(spool) == [("a", 0)]


def test_what_is_in_flight_is_never_dropped() -> None:
    spool = make(messages=2)
    spool.put(message(0))
    spool.put(message(1))
    spool.take(2)
    spool.put(message(2))
    spool.release()

    assert waiting(spool) == [("a", 0), ("a", 1)]


def test_parked_messages_are_the_first_to_go() -> None:
    spool = make(messages=2)
    spool.put(message(0))
    spool.park(spool.take(1)[0].id, "refused")
    spool.put(message(1))
    spool.put(message(2))

    assert spool.parked() == []
    assert spool.stats.parks == {"a": {"refused": 1}}
    assert waiting(spool) == [("a", 1), ("a", 2)]


def test_not_many_parked_messages_are_kept() -> None:
    spool = make()
    for seq in range(MAX_PARKED + 5):
        spool.put(message(seq))
        spool.park(spool.take(1)[0].id, "refused")

    assert [parked.entry.message.seq for parked in spool.parked()] == list(range(5, MAX_PARKED + 5))
    assert spool.stats.parked == MAX_PARKED + 5


@pytest.mark.parametrize(("limits", "expiry"), [({}, 10), ({"seconds": 10}, 0), ({"seconds": 10}, 99)])
def test_what_is_too_old_is_not_sent_any_more(limits: dict[str, Any], expiry: int) -> None:
    now = 0.0
    spool = make(clock=lambda: now, **limits)
    spool.put(message(0, created=0.0, expiry=expiry))
    spool.put(message(1, created=5.0, expiry=expiry))
    now = 11.0

    assert waiting(spool) == [("a", 1)]
    assert spool.stats.drops == {"a": {"expired": 1}}


@given(st.lists(st.sampled_from(["put", "put large", "take", "ack", "release", "park"]), max_size=60))
def test_whatever_happens_it_stays_within_its_bounds_and_loses_count_of_nothing(steps: list[str]) -> None:
    spool = make(messages=8, memory_bytes=8000)
    flying: list[int] = []
    put = acknowledged = 0
    for step in steps:
        match step:
            case "put" | "put large":
                spool.put(message(put, "ab"[put % 2], payload=b"x" * (2000 if step == "put large" else 1)))
                put += 1
            case "take":
                flying += [entry.id for entry in spool.take(2)]
            case "ack" if flying:
                spool.ack([flying.pop()])
                acknowledged += 1
            case "release":
                spool.release()
                flying.clear()
            case "park" if flying:
                spool.park(flying.pop(0), "refused")
        stats = spool.stats
        assert stats.depth + len(spool.parked()) <= 8
        assert stats.bytes <= 8000
        assert stats.in_flight == len(flying)
        assert put == stats.depth + stats.dropped + stats.parked + acknowledged


def test_no_message_enters_flight_past_one_on_disk_only_of_another_pipeline() -> None:
    backlog = Backlog(SpoolOptions(), {})
    backlog.resume()
    backlog.queue("other").on_disk = 1
    assert backlog.enter(message(1, created=0.0), 0.0) is None
    backlog.queue("other").on_disk = 0
    assert backlog.enter(message(1, created=0.0), 0.0) == 1
