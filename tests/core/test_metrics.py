import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.metrics import BOUNDS, Family, LatencyHistogram, Sample, render


def test_a_page_for_prometheus():
    page = render(
        [
            Family("edged_info", "gauge", "The daemon.", [Sample(1, {"version": "0.1.0"})]),
            Family("edged_source_rate_hertz", "gauge", "Rate.", [Sample(99.5, {"source": "imu", "unit": "g"})]),
            Family("edged_up_seconds", "counter", "Uptime.", [Sample(1e6)]),
            Family("edged_nothing_total", "counter", "Nothing yet.", []),
        ]
    )
    assert page == (
        "# HELP edged_info The daemon.\n"
        "# TYPE edged_info gauge\n"
        'edged_info{version="0.1.0"} 1\n'
        "# HELP edged_source_rate_hertz Rate.\n"
        "# TYPE edged_source_rate_hertz gauge\n"
        'edged_source_rate_hertz{source="imu",unit="g"} 99.5\n'
        "# HELP edged_up_seconds Uptime.\n"
        "# TYPE edged_up_seconds counter\n"
        "edged_up_seconds 1000000\n"
        "# HELP edged_nothing_total Nothing yet.\n"
        "# TYPE edged_nothing_total counter\n"
    )


def test_labels_and_help_are_escaped():
    page = render([Family("edged_x", "gauge", 'a\\b\n"c"', [Sample(1, {"reason": 'no "x"\nin C:\\'})])])
    assert page.splitlines() == [
        r'# HELP edged_x a\\b\n"c"',
        "# TYPE edged_x gauge",
        r'edged_x{reason="no \"x\"\nin C:\\"} 1',
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(math.nan, "NaN"), (math.inf, "+Inf"), (-math.inf, "-Inf"), (True, "1"), (0.1, "0.1"), (3.0, "3"), (-0.5, "-0.5")],
)
def test_numbers_as_prometheus_spells_them(value, text):
    assert render([Family("edged_x", "gauge", "X.", [Sample(value)])]).splitlines()[-1] == f"edged_x {text}"


def test_no_percentiles_before_the_first():
    assert LatencyHistogram().percentiles() == {"p50": None, "p90": None, "p99": None}


def test_percentiles_are_the_nearest_rank():
    latency = LatencyHistogram()
    for milliseconds in range(1, 101):
        latency.add(milliseconds / 1000)
    assert latency.percentiles() == {"p50": 0.05, "p90": 0.09, "p99": 0.099}


def test_percentiles_are_of_the_last_1024():
    latency = LatencyHistogram()
    for seconds in [9.0] * 1024 + [1.0] * 1024:
        latency.add(seconds)
    assert latency.percentiles() == {"p50": 1.0, "p90": 1.0, "p99": 1.0}


def test_a_histogram_counts_upwards():
    latency = LatencyHistogram()
    for seconds in (0.00005, 0.0001, 0.003, 60.0):
        latency.add(seconds)
    samples = latency.histogram({"pipeline": "door"})
    buckets = {sample.labels["le"]: sample.value for sample in samples if sample.suffix == "_bucket"}
    assert (buckets["0.0001"], buckets["0.0025"], buckets["0.005"], buckets["10"], buckets["+Inf"]) == (2, 2, 3, 3, 4)
    assert samples[-2:] == [
        Sample(pytest.approx(60.00315), {"pipeline": "door"}, "_sum"),
        Sample(4, {"pipeline": "door"}, "_count"),
    ]


@given(st.lists(st.floats(0, 100), max_size=50))
def test_every_bucket_counts_what_is_at_most_its_bound(times):
    latency = LatencyHistogram()
    for seconds in times:
        latency.add(seconds)
    buckets = [sample.value for sample in latency.histogram({}) if sample.suffix == "_bucket"]
    assert buckets == [sum(seconds <= bound for seconds in times) for bound in (*BOUNDS, math.inf)]
