"""Golden outputs of detections: boxes have counterparts, wherever they stand."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edged.core.detection_spec import SsdPostprocess, Yolov8
from edged.core.manifest import Golden
from edged.core.sample_agreement import SampleAgreement
from tests.core.test_detection import CAR, PERSON, SSD_OUTPUTS, floats, manifest, ssd

RULE = SampleAgreement(manifest(SsdPostprocess(), SSD_OUTPUTS))


def problem(got: list[NDArray[Any]], expected: list[NDArray[Any]]) -> str:
    return RULE.problem(Golden(), got, expected)


def test_boxes_may_change_places() -> None:
    assert problem(ssd(CAR, PERSON), ssd(PERSON, CAR)) == ""
    assert RULE.worst(ssd(CAR, PERSON), ssd(PERSON, CAR)) == 0.0
    assert RULE.decides_otherwise(Golden(), ssd(CAR, PERSON), ssd(PERSON, CAR)) is False


def test_a_box_may_move_a_little_and_a_score_too() -> None:
    assert problem(ssd((0.7, 0, (12.0, 20.0, 32.0, 40.0))), ssd(PERSON)) == ""


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (ssd(CAR), "the object 'person' of score 0.750 is missing"),
        (ssd(CAR, PERSON, (0.875, 3, (0, 0, 9, 9))), "the object 'dog' of score 0.875 is not expected"),
        (ssd(CAR, (0.75, 3, PERSON[2])), "the object 'person' of score 0.750 is missing"),
        (ssd(CAR, (0.75, 0, (40.0, 20.0, 60.0, 40.0))), "the object 'person' of score 0.750 is missing"),
        (ssd(CAR, (0.875, 0, PERSON[2])), "the object 'person' of score 0.750 is missing"),
    ],
)
def test_a_clear_object_without_a_counterpart_is_a_disagreement_on_either_side(
    got: list[NDArray[Any]], words: str
) -> None:
    assert problem(got, ssd(PERSON, CAR)) == words
    assert RULE.decides_otherwise(Golden(), got, ssd(PERSON, CAR)) is True


def test_an_object_near_the_threshold_may_be_missing() -> None:
    assert problem(ssd(PERSON), ssd(PERSON, (0.55, 1, CAR[2]))) == ""


def test_raw_heads_are_compared_by_element() -> None:
    rule = SampleAgreement(manifest(Yolov8(), (floats(1, 20, 7),), ("person", "car", "dog")))
    some = np.linspace(0, 1, 140, dtype=np.float32).reshape(1, 20, 7)
    assert rule.problem(Golden(), [some], [some]) == ""
    assert "is off by 0.5 absolute" in rule.problem(Golden(), [some / 2], [some])
    assert rule.decides_otherwise(Golden(), [some / 2], [some]) is None
