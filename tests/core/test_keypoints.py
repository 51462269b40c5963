from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.errors import BundleError, ConfigError, ModelError
from edged.core.keypoints import KeypointRule
from edged.core.manifest_outcomes import PRESETS, FindKeypoints, check_keypoints
from edged.core.manifest_parts import Decision
from edged.core.pictures import PictureForm, PictureSpec, Placement, place
from edged.core.types import Arrays, Keypoint, Keypoints, TensorSpec

PICTURE = (100, 200, 3)
ROWS = TensorSpec(name="points", shape=(1, 1, 2, 3), dtype="float32")
FLAT = TensorSpec(name="points", shape=(1, 4), dtype="float32")
SCORES = TensorSpec(name="scores", shape=(1, 2), dtype="float32")
HAND = ("thumb", "wrist")


def rule(*outputs: TensorSpec, decision: Decision | None = None, **keys: Any) -> KeypointRule:
    find = FindKeypoints(names=HAND, **keys)
    check_keypoints(find, outputs, PICTURE)
    return KeypointRule(find, outputs, (200, 100), decision or find.decision)


def found(rule: KeypointRule, *values: list[Any], placement: Placement | None = None) -> Keypoints:
    outputs: Arrays = [np.array(each, np.float32) for each in values]
    return rule(outputs, None, 0.0, placement)


def test_shares_become_pixels_of_the_models_picture() -> None:
    outcome = found(rule(ROWS), [[[[0.5, 0.25, 0.75], [1, 1, 0.5]]]])
    points = (Keypoint("thumb", 50.0, 50.0, 0.75), Keypoint("wrist", 200.0, 100.0, 0.5))
    assert outcome == Keypoints(0.625, 0.3, visible=True, changed=True, points=points)


def test_points_below_the_threshold_are_left_out_and_count_in_the_mean() -> None:
    outcome = found(rule(ROWS), [[[[0.5, 0.25, 0.75], [1, 1, 0.125]]]])
    assert [point.name for point in outcome.points] == ["thumb"]
    assert outcome.score == 0.4375


def test_columns_may_stand_in_any_order_and_scores_in_an_output_of_their_own() -> None:
    pixels = rule(FLAT, SCORES, columns=("x", "y"), units="pixels", scores=1)
    outcome = found(pixels, [[10, 20, 30, 40]], [[0.5, 0.25]])
    assert outcome.points == (Keypoint("thumb", 10.0, 20.0, 0.5), Keypoint("wrist", 30.0, 40.0, 0.25))


def test_a_single_score_holds_for_all() -> None:
    one = TensorSpec(name="scores", shape=(1, 1), dtype="float32")
    outcome = found(rule(FLAT, one, columns=("x", "y"), scores=1, activation="sigmoid"), [[0, 0, 0, 0]], [[0]])
    assert [point.score for point in outcome.points] == [0.5, 0.5]


def test_points_without_scores_are_certain() -> None:
    outcome = found(rule(FLAT, columns=("x", "y")), [[0, 0, 0, 0]])
    assert (outcome.score, [point.score for point in outcome.points]) == (1.0, [1.0, 1.0])


def test_a_letterbox_is_undone_and_points_in_the_padding_come_to_the_edge() -> None:
    form = PictureForm(PictureSpec(width=200, height=100, fit="letterbox"))
    outcome = found(rule(ROWS), [[[[0.5, 0.5, 1], [0.5, 0.1, 1]]]], placement=place(form, 400, 400))
    assert [(point.x, point.y) for point in outcome.points] == [(200.0, 200.0), (0.0, 200.0)]
    assert outcome.picture == (400, 400)


def test_presence_is_decided_over_several_windows() -> None:
    seen = rule(ROWS, decision=Decision(threshold=0.3, k=2, n=2))
    present = [[[[0, 0, 1], [0, 0, 1]]]]
    assert [found(seen, present).visible for _ in range(2)] == [False, True]


@pytest.mark.parametrize("values", [[np.nan, 0, 0], [0, np.inf, 0], [0, 0, np.nan]])
def test_what_is_not_finite_is_an_error(values: list[float]) -> None:
    with pytest.raises(ModelError):
        found(rule(ROWS), [[[values, [0, 0, 0]]]])


@given(
    st.lists(st.floats(-10, 10, width=32), min_size=6, max_size=6), st.sampled_from(["stretch", "letterbox", "crop"])
)
def test_points_are_within_the_picture(values: list[float], fit: Any) -> None:
    placement = place(PictureForm(PictureSpec(width=200, height=100, fit=fit)), 640, 480)
    outcome = found(rule(ROWS, threshold=-10), values, placement=placement)
    assert all(0 <= point.x <= 640 and 0 <= point.y <= 480 for point in outcome.points)


def test_the_skeleton_joins_keypoints_of_the_preset() -> None:
    preset = PRESETS["coco17"]
    assert len(preset.names) == len(set(preset.names)) == 17
    assert (preset.names[0], preset.names[1], preset.names[16]) == ("nose", "left_eye", "right_ankle")
    assert {name for edge in preset.skeleton for name in edge} == set(preset.names)


@pytest.mark.parametrize(
    ("find", "problem"),
    [
        (FindKeypoints(), "either preset or names"),
        (FindKeypoints(preset="coco17", names=HAND), "either preset or names"),
        (FindKeypoints(preset="coco17"), "6 values for 17 keypoints of 3 columns"),
        (FindKeypoints(names=("a", "a")), "'a' occurs twice"),
        (FindKeypoints(names=HAND, columns=("x", "score")), "needs x and y"),
        (FindKeypoints(names=HAND, columns=("x", "y", "x")), "'x' occurs twice"),
        (FindKeypoints(names=HAND, scores=0), "have a score already"),
        (FindKeypoints(names=HAND, columns=("x", "y", "none"), scores=0), "6 scores for 2 keypoints"),
        (FindKeypoints(names=HAND, decision=Decision()), "need a threshold other than 0"),
        (FindKeypoints(names=HAND, decision=Decision(threshold=1, background=("a",))), "no labels, only a threshold"),
        (FindKeypoints(names=HAND, output=1), "no output 1 exists"),
    ],
)
def test_contradictions_are_refused(find: FindKeypoints, problem: str) -> None:
    with pytest.raises(BundleError, match=problem):
        check_keypoints(find, (ROWS,), PICTURE)


def test_keypoints_are_not_found_in_rows_of_channels() -> None:
    with pytest.raises(BundleError, match="keypoints are found in pictures"):
        check_keypoints(FindKeypoints(names=HAND), (ROWS,), ())


def test_a_decision_by_labels_is_refused() -> None:
    with pytest.raises(ConfigError):
        rule(ROWS, decision=Decision(threshold=0.5, thresholds={"nose": 0.5}))
