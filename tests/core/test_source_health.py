import random
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.health import Health
from edged.core.source_health import Backoff, FlatLine, HealthVerdict, SourceHealth, Supervision, failure


def sensor(rate: float | None = 100.0, **supervision: float) -> SourceHealth:
    """Return a source opened at second 0."""
    return SourceHealth(Supervision(**supervision), rate, 0.0)


def beat(health: SourceHealth, start: int, stop: int, *, samples: int = 100, lost: int = 0, flat: bool = False) -> None:
    """Record a read per second."""
    for second in range(start, stop):
        health.observe(samples, lost, 0, flat, float(second))


def test_starting_until_the_first_sample() -> None:
    health = sensor()
    assert health.verdict(1.0) == HealthVerdict("starting")
    health.observe(1, 0, 0, False, 1.5)
    assert health.verdict(1.5) == HealthVerdict("running")


@pytest.mark.parametrize(
    ("rate", "supervision", "patience"),
    [
        (100.0, {}, 2.0),
        (1.0, {}, 20.0),
        (None, {}, 30.0),
        (100.0, {"stall_after": 7.0}, 7.0),
    ],
)
def test_silence_is_a_stall_once_it_is_long_for_its_rate(
    rate: float | None, supervision: dict[str, float], patience: float
) -> None:
    health = sensor(rate, **supervision)
    health.observe(1, 0, 0, False, 5.0)
    assert health.verdict(5.0 + patience - 0.1).state == "running"
    assert health.verdict(5.0 + patience).reason == f"stalled: no sample for {patience:g} s"


def test_a_sensor_that_never_speaks_has_stalled() -> None:
    assert sensor().verdict(2.0).reason == "stalled: no sample for 2 s"


def test_a_stall_ends_with_the_next_sample() -> None:
    health = sensor()
    beat(health, 0, 10)
    assert health.verdict(60.0).state == "degraded"
    health.observe(1, 0, 0, False, 60.0)
    assert health.verdict(60.0) == HealthVerdict("running")
    beat(health, 61, 75)
    assert health.verdict(75.0) == HealthVerdict("running")


def test_only_garbage_is_called_garbage_not_silence() -> None:
    health = sensor()
    health.observe(0, 0, 50, False, 2.5)
    assert health.verdict(2.5).reason == "stalled: only garbage arrives"


def test_more_garbage_than_samples() -> None:
    health = sensor()
    health.observe(10, 0, 0, False, 0.0)
    health.observe(10, 0, 10, False, 0.5)
    assert health.verdict(0.5) == HealthVerdict("running")
    health.observe(10, 0, 31, False, 1.0)
    assert health.verdict(1.0).reason == "mostly garbage"


def test_garbage_is_forgiven_once_it_is_long_ago() -> None:
    health = sensor()
    health.observe(0, 0, 5000, False, 0.0)
    for second in range(30):
        health.observe(100, 0, 5000, False, float(second))
    assert health.verdict(30.0) == HealthVerdict("running")


def test_a_flat_line() -> None:
    health = sensor()
    beat(health, 0, 5)
    beat(health, 5, 34, flat=True)
    assert health.verdict(33.0).state == "running"
    beat(health, 34, 36, flat=True)
    assert health.verdict(35.0).reason == "flat-lined: identical samples for 30 s"
    beat(health, 36, 37)
    assert health.verdict(37.0).state == "running"


def test_a_constant_source_may_be_meant() -> None:
    health = sensor(flat_after=0.0)
    beat(health, 0, 1000, flat=True)
    assert health.verdict(1000.0) == HealthVerdict("running")


def test_lost_samples() -> None:
    health = sensor()
    beat(health, 0, 11, samples=99, lost=1)
    assert health.verdict(10.0) == HealthVerdict("running")
    beat(health, 11, 22, samples=98, lost=2)
    assert health.verdict(21.0).reason == "more than 1 % of the samples are lost"


@pytest.mark.parametrize(
    ("samples", "says"),
    [(100, ""), (105, ""), (95, ""), (120, "faster than the stated 100 per second"), (80, "slower")],
)
def test_drift(samples: int, says: str) -> None:
    health = sensor()
    beat(health, 0, 20, samples=samples)
    assert health.measured_rate == samples
    assert says in health.verdict(19.0).reason
    assert (health.verdict(19.0).state == "degraded") == bool(says)


def test_what_had_piled_up_before_the_first_read_is_no_drift() -> None:
    health = sensor()
    health.observe(4000, 0, 0, False, 0.0)
    beat(health, 1, 12)
    assert health.verdict(11.0) == HealthVerdict("running")


def test_drift_takes_a_while_to_be_sure_of() -> None:
    health = sensor()
    beat(health, 0, 8, samples=50)
    assert health.verdict(7.0) == HealthVerdict("running")


def read_late(arrivals: list[float], held_up: list[tuple[float, float]], block: int) -> list[HealthVerdict]:
    """Return verdicts on a port that is read after the samples, except during delays, `block` at a time."""
    health = SourceHealth(Supervision(), 10.0, arrivals[0] - 0.1)
    verdicts, now, waiting = [], arrivals[0], list(arrivals)
    while waiting:
        now = max(now, waiting[0])
        now = next((end for begin, end in held_up if begin <= now < end), now)
        count = min(block, sum(arrival <= now for arrival in waiting))
        del waiting[:count]
        health.observe(count, 0, 0, False, now, now)
        verdicts.append(health.verdict(now))
    return verdicts


@pytest.mark.parametrize("begin", [0.0, 0.3, 1.0, 4.9, 9.8, 10.0, 14.9])
@pytest.mark.parametrize("seconds", [0.9, 1.5, 3.0, 8.0])
@pytest.mark.parametrize("block", [3, 5, 1000])
def test_a_busy_board_is_no_drift(begin: float, seconds: float, block: int) -> None:
    arrivals = [100 + n / 10 for n in range(400)]
    start = 100 + begin
    held_up = [(start, start + seconds), (start + 13, start + 13 + seconds)]
    assert set(read_late(arrivals, held_up, block)) == {HealthVerdict("running")}


@given(st.lists(st.floats(0, 30), max_size=100), st.integers(1, 20))
def test_a_source_that_says_when_samples_came_never_drifts_for_being_read_late(pauses: list[float], chunk: int) -> None:
    health = SourceHealth(Supervision(), 10.0, 0.0)
    now = 0.0
    for number, pause in enumerate(pauses, start=1):
        now = max(now, number * chunk / 10) + pause
        health.observe(chunk, 0, 0, False, now, number * chunk / 10)
        assert health.verdict(now) == HealthVerdict("running")


@pytest.mark.parametrize("actual", [8.0, 12.0])
@pytest.mark.parametrize("begin", [1.0, 9.0])
def test_a_drift_shows_on_a_busy_board_too(actual: float, begin: float) -> None:
    arrivals = [100 + n / actual for n in range(300)]
    says = "slower" if actual < 10 else "faster"
    assert says in read_late(arrivals, [(100 + begin, 101.5 + begin)], 1000)[-1].reason


def test_any_rate_is_right_where_none_is_stated() -> None:
    health = sensor(None)
    beat(health, 0, 20)
    assert health.verdict(19.0) == HealthVerdict("running")
    assert health.measured_rate == 100.0


def test_the_measured_rate_is_of_late() -> None:
    health = sensor()
    assert health.measured_rate is None
    beat(health, 0, 20, samples=10)
    beat(health, 20, 40, samples=100)
    assert health.measured_rate == 100.0


def test_flat_lines_are_told_from_what_only_seems_so() -> None:
    line = FlatLine()
    ones = np.ones((3, 2), np.float32)
    assert not line.same(ones)  # no previous sample
    assert line.same(ones)
    wave = ones.copy()
    wave[0, 1] = 2.0
    assert not line.same(wave)  # equal again at the end of the chunk
    assert line.same(ones)


@given(st.lists(st.lists(st.sampled_from([0.0, -0.0, 1.0]), min_size=1, max_size=4), max_size=6))
def test_a_line_is_flat_if_each_sample_has_the_bits_of_the_one_before(chunks: list[list[float]]) -> None:
    line = FlatLine()
    before: bytes | None = None
    for chunk in chunks:
        bits = [struct.pack("f", sample) for sample in chunk]
        assert line.same(np.array(chunk, np.float32).reshape(-1, 1)) == (set(bits) == {before})
        before = bits[-1]


def test_retries_double_up_to_the_longest() -> None:
    backoff = Backoff(Supervision(retry_min=0.5, retry_max=3.0))
    assert [backoff.delay(0.0, 0.999999) for _ in range(5)] == pytest.approx([0.5, 1.0, 2.0, 3.0, 3.0], rel=1e-4)


def test_luck_spreads_retries_by_half() -> None:
    assert Backoff(Supervision(retry_min=2.0)).delay(0.0, 0.0) == 1.0


def test_a_source_that_had_worked_is_retried_quickly() -> None:
    backoff = Backoff(Supervision())
    delays = [backoff.delay(0.0, 0.0) for _ in range(6)]
    assert all(later > earlier for earlier, later in pairwise(delays))
    assert backoff.delay(10.0, 0.0) == delays[0]


@pytest.mark.parametrize(
    ("health", "state"),
    [
        (Health("starting", "", "", 0.0), None),
        (Health("running", "", "", 0.0), None),
        (Health("degraded", "mostly garbage", "", 0.0), None),
        (Health(*SourceHealth(Supervision(), 100.0, 0.0).verdict(5.0), 0.0), "failed"),  # stalled
        (Health("failed", "it is not there", "", 0.0), "failed"),
        (Health("stopped", "the recording has ended", "", 0.0), "stopped"),
    ],
)
def test_what_the_health_of_a_source_means_for_its_pipelines(health: Health, state: str | None) -> None:
    meant = failure("wrist", health)
    assert (meant and (meant.state, meant.reason)) == (state and (state, f"source 'wrist': {health.reason}"))


def changes_of_state(share: float) -> int:
    """Return how often the state changes within 20 minutes at 10 Hz, if this share of the samples is lost by chance."""
    health, chance = SourceHealth(Supervision(), 10.0, 0.0), random.Random(0)
    states, lost = [], 0
    for tick in range(1, 12_001):
        if chance.random() < share:
            lost += 1
            continue
        health.observe(1, lost, 0, False, tick / 10)
        lost = 0
        states.append(health.verdict(tick / 10).state)
    return sum(before != after for before, after in pairwise(states))


def test_a_share_of_losses_below_the_tolerance_never_degrades_a_source_by_chance() -> None:
    assert changes_of_state(0.007) == 0


def test_a_share_above_the_tolerance_degrades_a_source_for_good() -> None:
    assert changes_of_state(0.05) == 1


def test_a_rate_near_the_tolerance_does_not_let_the_state_come_and_go() -> None:
    health, chance = SourceHealth(Supervision(), 10.0, 0.0), random.Random(0)
    states, now = [], 0.0
    for _ in range(12_000):
        now += chance.uniform(0.5, 1.5) / 9.0
        health.observe(1, 0, 0, False, now)
        states.append(health.verdict(now).state)
    assert sum(before != after for before, after in pairwise(states)) <= 3
