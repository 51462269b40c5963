"""Counts of a version in service."""

import pytest

from edged.api import Anomaly, Classification, Detections, Outcome, Regression
from edged.core.types import FoundObject
from edged.flow.slot import RunCounts

NOBODY = Detections((), {"door": {}}, {"door": ()}, False, (640, 480))
SOMEBODY = Detections(
    (FoundObject("person", 0.75, (0, 0, 9, 9)),), {"door": {"person": 1}}, {"door": ("person",)}, True, (640, 480)
)


@pytest.mark.parametrize(
    ("outcomes", "decisions", "constant"),
    [
        ([Classification("a", 0.5, (), "a", True), Classification("a", 0.5, (), "a", False)], 1, 2),
        ([Anomaly(0.5, 1.0, False, False), Anomaly(1.5, 1.0, True, True)], 1, 1),
        ([Regression({"x": 1.0}), Regression({"x": 1.0})], 0, 2),
        ([SOMEBODY, SOMEBODY, SOMEBODY], 3, 3),
        ([SOMEBODY, NOBODY, NOBODY, NOBODY], 1, 1),  # an empty picture says nothing about the model
    ],
)
def test_decisions_and_equal_outputs_are_counted(outcomes: list[Outcome], decisions: int, constant: int) -> None:
    counts = RunCounts()
    for number, outcome in enumerate(outcomes):
        counts.add(outcome, 0.001, float(number))
    assert (counts.windows, counts.decisions, counts.constant) == (len(outcomes), decisions, constant)
