"""When to try again and when to give up, by literal times."""

import pytest

from edged.core.retry_budget import RetryBudget, RetryLimits

MIB = 1 << 20
LIMITS = RetryLimits(stall=100, total=1000, traffic=3, pause=1, longest_pause=8, longest_wait=50)


def patience(position: int = 0) -> RetryBudget:
    """Return a budget at time 0, with pauses that are never shortened."""
    return RetryBudget(LIMITS, position, now=0, jitter=lambda: 1.0)


def test_pauses_double_and_stay_bounded():
    rest = patience()
    assert [rest.pause() for _ in range(6)] == [1, 2, 4, 8, 8, 8]


def test_progress_makes_the_next_pause_short():
    rest = patience()
    assert [rest.pause(), rest.pause()] == [1, 2]
    rest.reached(1, now=5)
    assert rest.pause() == 1


def test_bytes_that_were_here_before_are_no_progress():
    rest = patience(position=500)
    rest.pause()
    rest.reached(500, now=99)
    assert rest.pause() == 2
    assert rest.exhausted(0, 1000, now=100) == "there was no progress for 100 s"


def test_jitter_takes_at_most_half():
    rest = RetryBudget(LIMITS, 0, now=0, jitter=lambda: 0.0)
    assert [rest.pause(), rest.pause()] == [0.5, 1.0]


def test_any_number_of_failures_is_borne_with_progress():
    rest = patience()
    for attempt in range(1, 900):
        rest.pause()
        rest.reached(attempt, now=attempt)
    assert rest.exhausted(900, 1000, now=900) == ""


@pytest.mark.parametrize(
    ("moved", "total", "now", "why"),
    [
        (0, None, 99.9, ""),
        (0, None, 100, "there was no progress for 100 s"),
        (0, None, 1000, "the transfer has taken 1000 s"),
        (3 * MIB + MIB, MIB, 1, ""),
        (3 * MIB + MIB + 1, MIB, 1, f"{4 * MIB + 1} bytes were transferred for a file of {MIB}"),
        (MIB + 1, None, 1, f"{MIB + 1} bytes were transferred for a file of 0"),
    ],
)
def test_it_ends_when_time_or_traffic_is_used_up(moved, total, now, why):
    assert patience().exhausted(moved, total, now) == why


def test_a_file_of_unknown_size_is_as_big_as_it_has_ever_been():
    rest = patience()
    rest.reached(MIB, now=1)
    rest.start_again()
    rest.reached(10, now=2)
    assert rest.exhausted(4 * MIB, None, now=3) == ""
    assert rest.exhausted(4 * MIB + 1, None, now=3) == f"{4 * MIB + 1} bytes were transferred for a file of {MIB}"


def test_another_file_is_progress_from_its_first_byte():
    rest = patience(position=500)
    rest.start_again()
    rest.reached(1, now=90)
    assert rest.exhausted(1, 1000, now=189) == ""


def test_starting_again_and_again_is_no_progress():
    rest = patience()
    for now in (10, 20, 30, 40):
        rest.reached(30, now)
        rest.start_again()
    assert rest.exhausted(120, 1000, now=119) == ""
    assert rest.exhausted(120, 1000, now=120) == "there was no progress for 100 s"


def test_a_server_that_asks_for_time_is_given_it():
    rest = patience()
    assert rest.wait(50) == 51
    assert rest.exhausted(0, None, now=149) == ""
    assert rest.exhausted(0, None, now=150) == "there was no progress for 100 s"


def test_a_server_that_asks_for_too_much_is_not():
    assert patience().wait(51) is None


def test_a_server_that_always_says_at_once_is_asked_less_and_less():
    rest = patience()
    assert [rest.wait(0), rest.wait(0), rest.wait(0)] == [1, 2, 4]
