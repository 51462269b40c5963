import pytest

from edged.core.acceleration import MISSING, AcceleratorStatus
from edged.core.manifest import Probation
from edged.core.probation import AnsweredTime, Observed, Watch, delegate_fault, judge, label_shift

USUAL = {"walking": 1.0}
LIMITS = Probation(seconds=60, windows=20, max_error_share=0.1)
FINE = Observed(seconds=60, windows=100)


@pytest.mark.parametrize(
    ("limits", "seen", "state"),
    [
        (LIMITS, Observed(), "watching"),
        (LIMITS, Observed(seconds=59, windows=100), "watching"),
        (LIMITS, Observed(seconds=999, windows=19), "watching"),
        (LIMITS, FINE, "good"),
        (LIMITS, Observed(seconds=60, windows=100, errors=10), "good"),
        (LIMITS, Observed(seconds=1, windows=2, errors=2), "watching"),
        (Probation(seconds=0, windows=0), Observed(), "good"),
        (Probation(seconds=0, windows=0, max_latency_p99=0.1), Observed(latency_p99=0.1), "good"),
        (Probation(seconds=60, windows=20, max_latency_p99=0.1), Observed(windows=19, latency_p99=9), "watching"),
        (Probation(seconds=60, windows=20, constant_windows=5), Observed(windows=9, constant=4), "watching"),
        (Probation(seconds=60, windows=20, max_decisions_per_hour=60), Observed(seconds=1, decisions=1), "watching"),
        (Probation(seconds=60, windows=20, min_decisions_per_hour=60), Observed(seconds=59), "watching"),
        (Probation(seconds=60, windows=20, min_decisions_per_hour=59), FINE, "good"),
    ],
)
def test_within_its_limits(limits, seen, state):
    assert judge(limits, seen) == Watch(state)


@pytest.mark.parametrize(
    ("limits", "seen", "reason"),
    [
        (LIMITS, Observed(seconds=1, windows=3, errors=3), "3 of 3 windows ended in an error or in NaN"),
        (LIMITS, Observed(seconds=60, windows=100, errors=11), "11 of 100 windows ended in an error or in NaN"),
        (Probation(seconds=60, windows=20, max_latency_p99=0.1), Observed(windows=20, latency_p99=0.25),
         "the latency is 0.25 s (p99), and 0.1 s are allowed"),
        (Probation(seconds=60, windows=20, constant_windows=5), Observed(windows=9, constant=5),
         "the output was the same for 5 windows in a row"),
        (Probation(seconds=60, windows=20, max_decisions_per_hour=60), Observed(seconds=5, decisions=2),
         "2 decisions were made in 5 s, and 60 an hour are allowed"),
        (Probation(seconds=60, windows=20, min_decisions_per_hour=60), FINE,
         "0 decisions were made in 60 s, and 60 an hour are expected"),
        (Probation(seconds=60, windows=20, max_label_shift=0.2),
         Observed(seconds=60, windows=100, labels={"walking": 30, "falling": 70}),
         "the labels are 70% off their usual shares, and 20% are allowed"),
        (LIMITS, Observed(delegate_fault="the accelerator is gone"), "the accelerator is gone"),
    ],
)  # fmt: skip
def test_beyond_a_limit(limits, seen, reason):
    assert judge(limits, seen, USUAL) == Watch("failed", reason)


def test_a_window_that_ended_in_an_error_is_no_answer():
    limits = Probation(seconds=60, windows=20, max_error_share=0.5)
    assert judge(limits, Observed(seconds=60, windows=20, errors=1)) == Watch("watching")
    assert judge(limits, Observed(seconds=60, windows=21, errors=1)) == Watch("good")


def answered(*moments: float, period: float | None = None) -> float:
    """Return the counted seconds for windows answered at these moments."""
    time = AnsweredTime(period)
    for moment in moments:
        time.add(moment)
    return round(time.seconds, 4)


def every(period: float, begin: float, end: float) -> list[float]:
    return [begin + period * number for number in range(round((end - begin) / period) + 1)]


@pytest.mark.parametrize(
    ("moments", "period", "seconds"),
    [
        ([], 1.0, 0.0),
        ([5.0], 1.0, 0.0),
        (every(1.0, 0, 20), 1.0, 20.0),
        (every(1.25, 0, 20), 1.0, 20.0),  # somewhat late
        ([*every(1.0, 0, 10), *every(1.0, 80, 90)], 1.0, 23.0),  # stopped for 70 s
        ([*every(0.0625, 0, 1), *every(0.0625, 71, 72)], 0.0625, 2.1875),  # a fast rate
        ([*every(1.0, 0, 10), *[80.0] * 70, *every(1.0, 81, 90)], 1.0, 23.0),  # a backlog arrives at once
        ([moment for second in range(11) for moment in [float(second)] * 10], 0.1, 10.0),  # ten at a time
        ([0.0, 3600.0, 7200.0], 3600.0, 7200.0),
        ([0.0, 3600.0], 1.0, 3.0),
    ],
)
def test_time_counts_in_which_windows_were_answered(moments, period, seconds):
    assert answered(*moments, period=period) == seconds


@pytest.mark.parametrize(
    ("moments", "seconds"),
    [
        (every(1.0, 0, 20), 19.0),  # the first gap cannot be compared with others
        ([*every(1.0, 0, 10), *every(1.0, 80, 90)], 22.0),
        ([0.0, *every(1.0, 70, 80)], 10.0),
        (every(600.0, 0, 6000), 9 * 180.0),  # the median counts for 60 s at most
    ],
)
def test_without_a_stated_rate_the_usual_gap_is_the_period(moments, seconds):
    assert answered(*moments) == seconds


@pytest.mark.parametrize(
    ("usual", "labels", "shift"),
    [
        ({"a": 0.5, "b": 0.5}, {"a": 5, "b": 5}, 0.0),
        ({"a": 0.5, "b": 0.5}, {"a": 10}, 0.5),
        ({"a": 1.0}, {"b": 3}, 1.0),
        ({"a": 1.0}, {}, 0.0),
    ],
)
def test_how_far_labels_are_off(usual, labels, shift):
    assert label_shift(usual, labels) == pytest.approx(shift)


def test_labels_are_judged_in_the_end_only():
    limits = Probation(seconds=60, windows=20, max_label_shift=0.2)
    assert judge(limits, Observed(seconds=59, windows=100, labels={"falling": 100}), USUAL) == Watch("watching")
    assert judge(limits, Observed(seconds=60, windows=100, labels={"walking": 100}), USUAL) == Watch("good")


@pytest.mark.parametrize(
    ("standing", "heard"),
    [
        (AcceleratorStatus("accelerated", "", "", 500.0), ""),
        (AcceleratorStatus("cpu", "the accelerator is being loaded", "", 500.0), ""),
        (AcceleratorStatus("quarantined", "5 faults within 600 s", "", 559.0), "5 faults within 600 s"),
        (AcceleratorStatus("quarantined", "5 faults within 600 s", "", 99.0), ""),
        (AcceleratorStatus("degraded", "it hung", "", 500.0), "it hung"),
        (AcceleratorStatus("degraded", "it hung", "", 501.0), ""),
        (AcceleratorStatus("degraded", "it hung", "", 99.0), ""),
        (AcceleratorStatus("degraded", MISSING, "", 500.0), ""),
    ],
)
def test_an_accelerator_accuses_a_version_of_lasting_trouble_that_began_with_it(standing, heard):
    assert delegate_fault(standing, began=100.0, now=560.0) == heard
