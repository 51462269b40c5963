"""Tests of every spool: derive a class from `SpoolContract` and override the fixture `spool`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from edged.core.types import Message
from edged.outbox.backlog import REPLAYED_AFTER
from edged.outbox.options import Policy
from edged.outbox.spool import Spool


def message(seq: int, origin: str = "a", **fields: Any) -> Message:
    given = {"topic": f"edged/{origin}", "payload": b"%d" % seq, "created": 0.0}
    return Message(origin=origin, seq=seq, **{**given, **fields})


def numbers(entries: list[Any]) -> list[int]:
    return [entry.message.seq for entry in entries]


def replayed(entries: list[Any]) -> list[tuple[int, bool]]:
    return [(entry.message.seq, entry.replayed) for entry in entries]


class SpoolContract:
    """Contract of a spool with room for at least 1000 messages of a few bytes, and a clock at `now`."""

    @property
    def now(self) -> float:
        """Return the time of the spool's clock."""
        raise NotImplementedError

    @pytest.fixture
    def spool(self) -> Spool:
        """Return the spool under test, empty."""
        raise NotImplementedError

    @pytest.fixture
    def newest_first(self) -> Spool:
        """Return the spool under test, empty, with drain = "newest"."""
        raise NotImplementedError

    def test_messages_are_taken_in_the_order_they_were_put(self, spool: Spool) -> None:
        for seq, origin in enumerate("abacab"):
            spool.put(message(seq, origin))

        assert numbers(spool.take(4)) == [0, 1, 2, 3]
        assert numbers(spool.take(4)) == [4, 5]
        assert spool.take(4) == []

    def test_a_message_comes_out_as_it_went_in(self, spool: Spool) -> None:
        put = message(7, payload=b"\x00\xff", qos=0, expiry=0, properties=(("k", "v"),))
        spool.put(put)

        assert spool.take(1)[0].message == put

    def test_with_nothing_before_it_a_message_enters_flight_at_once_like_one_that_is_put_and_taken(
        self, spool: Spool
    ) -> None:
        assert spool.enter(message(1, created=self.now)) is None  # no connection
        spool.resume()
        entered = spool.enter(message(1, created=self.now))
        assert entered is not None
        assert (spool.stats.depth, spool.stats.in_flight) == (1, 1)
        spool.put(message(2, created=self.now))
        assert spool.enter(message(3, created=self.now)) is None  # 2 waits
        assert spool.stats.depth == 2
        spool.release()
        spool.resume()
        taken = spool.take(2)
        assert replayed(taken) == [(1, True), (2, False)]
        assert taken[0].id == entered
        spool.ack(each.id for each in taken)
        assert spool.depth == 0
        assert spool.stats.bytes == 0

    def test_what_is_acknowledged_is_gone(self, spool: Spool) -> None:
        for seq in range(3):
            spool.put(message(seq))
        entries = spool.take(3)
        spool.ack([entries[0].id, entries[2].id])
        spool.release()

        assert numbers(spool.take(3)) == [1]

    def test_what_is_released_is_taken_again_before_what_came_later_and_with_the_same_id(self, spool: Spool) -> None:
        for seq in range(3):
            spool.put(message(seq, "ab"[seq % 2]))
        first = spool.take(2)
        spool.put(message(3, "a"))
        spool.release()
        second = spool.take(10)

        assert numbers(second) == [0, 1, 2, 3]
        assert [entry.id for entry in second[:2]] == [entry.id for entry in first]

    def test_ids_only_go_up(self, spool: Spool) -> None:
        seen = []
        for seq in range(20):
            spool.put(message(seq))
            entry = spool.take(1)[0]
            spool.ack([entry.id])
            seen.append(entry.id)

        assert seen == sorted(set(seen))

    def test_an_id_that_is_not_in_flight_is_ignored(self, spool: Spool) -> None:
        spool.put(message(1))
        spool.ack([12345])
        spool.park(12345, "no such message")

        assert numbers(spool.take(1)) == [1]
        assert spool.parked() == []

    def test_what_is_parked_is_kept_with_its_reason_and_never_taken(self, spool: Spool) -> None:
        spool.put(message(1))
        spool.put(message(2))
        spool.park(spool.take(1)[0].id, "not authorised")
        spool.release()

        assert [(each.entry.message.seq, each.reason) for each in spool.parked()] == [(1, "not authorised")]
        assert numbers(spool.take(5)) == [2]
        assert spool.stats.parked == 1
        assert spool.stats.parks == {"a": {"not authorised": 1}}

    def test_what_is_parked_can_be_tried_again_by_its_number(self, spool: Spool) -> None:
        for seq in range(3):
            spool.put(message(seq))
        for entry in spool.take(2):
            spool.park(entry.id, "not authorised")
        second = spool.parked()[1].number

        assert spool.retry([second, 99]) == 1
        assert [each.entry.message.seq for each in spool.parked()] == [0]
        assert numbers(spool.take(5)) == [1, 2]

    def test_what_is_parked_can_be_dropped_and_is_counted(self, spool: Spool) -> None:
        for seq in range(2):
            spool.put(message(seq))
            spool.park(spool.take(1)[0].id, "not authorised")

        assert spool.drop() == 2
        assert spool.parked() == []
        assert spool.stats.drops == {"a": {"by hand": 2}}
        assert spool.stats.bytes == 0

    def test_what_waited_for_a_connection_is_said_to_be_replayed_unless_it_is_news(self, spool: Spool) -> None:
        spool.put(message(0, created=self.now - 2 * REPLAYED_AFTER))
        spool.put(message(1, created=self.now))
        spool.resume()
        spool.put(message(2, created=self.now - 2 * REPLAYED_AFTER))

        assert replayed(spool.take(3)) == [(0, True), (1, False), (2, False)]

    def test_what_may_have_been_sent_before_is_said_to_be_replayed(self, spool: Spool) -> None:
        spool.resume()
        spool.put(message(0, created=self.now))
        spool.put(message(1, created=self.now))
        assert replayed(spool.take(1)) == [(0, False)]
        spool.release()
        spool.resume()

        assert replayed(spool.take(2)) == [(0, True), (1, False)]

    def test_the_newest_can_go_first_message_by_message_and_new_ones_before_them_in_their_order(
        self, newest_first: Spool
    ) -> None:
        for seq in range(6):
            newest_first.put(message(seq))
        newest_first.resume()
        assert numbers(newest_first.take(2)) == [5, 4]
        newest_first.put(message(6))
        newest_first.put(message(7))
        assert numbers(newest_first.take(3)) == [6, 7, 3]
        newest_first.release()
        newest_first.put(message(8))

        assert numbers(newest_first.take(9)) == [8, 7, 6, 5, 4, 3, 2, 1, 0]

    def test_the_higher_priority_goes_first_and_each_origin_keeps_its_order(self, spool: Spool) -> None:
        spool.policies = {"alarm": Policy(priority=1)}
        for seq, origin in enumerate(["a", "alarm", "a", "alarm"]):
            spool.put(message(seq, origin))

        assert numbers(spool.take(4)) == [1, 3, 0, 2]

    def test_it_says_how_things_are(self, spool: Spool) -> None:
        assert (spool.stats.depth, spool.stats.bytes) == (0, 0)
        for seq in range(5):
            spool.put(message(seq))
        entries = spool.take(2)

        assert (spool.stats.depth, spool.stats.in_flight) == (5, 2)
        assert spool.stats.bytes > 0
        spool.ack([entry.id for entry in entries + spool.take(3)])
        assert (spool.stats.depth, spool.stats.in_flight, spool.stats.bytes) == (0, 0, 0)
        assert (spool.stats.dropped, spool.stats.parked) == (0, 0)

    def test_many_threads_put_while_one_takes(self, spool: Spool) -> None:
        def put_all(origin: str) -> None:
            for seq in range(200):
                spool.put(message(seq, origin))

        taken: dict[str, list[int]] = {origin: [] for origin in "abcd"}
        with ThreadPoolExecutor(4) as threads:
            for origin in taken:
                threads.submit(put_all, origin)
            while sum(map(len, taken.values())) < 800:
                entries = spool.take(20)
                for entry in entries:
                    taken[entry.message.origin].append(entry.message.seq)
                spool.ack([entry.id for entry in entries])

        assert taken == {origin: list(range(200)) for origin in "abcd"}
        assert spool.stats.depth == 0
