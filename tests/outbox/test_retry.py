from __future__ import annotations

import pytest

from edged.outbox.retry import RetrySchedule, backoff


def test_the_first_retry_comes_within_a_second_and_none_later_than_half_a_minute() -> None:
    assert [backoff(1, chance) for chance in (0.0, 0.5, 1.0)] == pytest.approx([0.3, 0.45, 0.6])
    assert [backoff(failures, 0.0) for failures in (2, 3, 4)] == pytest.approx([0.6, 1.2, 2.4])
    assert backoff(1_000_000, 1.0) == 30.0


def failures(*attempts: tuple[float, bool], contested: bool = False) -> list[int]:
    """The failures counted after each attempt: how long it lasted, and whether it delivered messages."""
    schedule = RetrySchedule()
    counted = []
    for lasted, delivered in attempts:
        schedule.record(lasted, delivered=delivered, contested=contested)
        counted.append(schedule.failures)
    return counted


def test_each_failure_in_a_row_counts_and_a_steady_connection_ends_the_row() -> None:
    assert failures((-1, False), (-1, False), (11, False), (-1, False)) == [1, 2, 1, 2]


def test_brief_connections_that_deliver_are_followed_at_once_and_then_by_longer_pauses_up_to_a_bound() -> None:
    assert failures(*[(1, True)] * 9) == [1, 1, 1, 1, 2, 3, 4, 4, 4]


def test_without_a_bound_where_another_client_has_the_same_name() -> None:
    assert failures(*[(1, True)] * 9, contested=True) == [1, 1, 1, 1, 2, 3, 4, 5, 6]
