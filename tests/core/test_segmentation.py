from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edged.core.errors import BundleError, ModelError
from edged.core.manifest_outcomes import SegmentPicture, check_segmentation
from edged.core.manifest_parts import Decision
from edged.core.masks import NONE
from edged.core.pictures import PictureForm, PictureSpec, Placement, place
from edged.core.segmentation import SegmentRule
from edged.core.types import Score, Segmentation, TensorSpec

LABELS = ("background", "cat", "dog")
CLASSES = TensorSpec(name="classes", shape=(1, 4, 4), dtype="int64")
SPEC = PictureSpec(width=8, height=8, fit="letterbox")


def rule(output: TensorSpec = CLASSES, labels: tuple[str, ...] = LABELS, **keys: Any) -> SegmentRule:
    segment = SegmentPicture(**keys)
    check_segmentation(segment, (output,), labels, (8, 8, 3))
    return SegmentRule(segment, (output,), labels, segment.decision)


def segmented(
    rule: SegmentRule, values: Any, placement: Placement | None = None, output: TensorSpec = CLASSES
) -> Segmentation:
    return rule([np.array(values, output.numpy_dtype).reshape(output.shape)], None, 0.0, placement)


HALF = [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 2]]


def test_shares_are_in_percent_greatest_first() -> None:
    outcome = segmented(rule(), HALF)
    assert outcome.shares == (Score("background", 50.0), Score("cat", 43.75), Score("dog", 6.25))
    assert (outcome.decisions, outcome.changed) == ((), False)
    assert outcome.mask.classes.tolist() == HALF
    assert outcome.mask.labels == LABELS


def test_classes_are_decided_by_their_shares() -> None:
    decision = Decision(threshold=40.0, thresholds={"dog": 5.0}, background=("background",))
    outcome = segmented(rule(decision=decision), HALF)
    assert (outcome.decisions, outcome.changed) == (("cat", "dog"), True)


def test_numbers_beyond_the_labels_belong_to_no_class() -> None:
    outcome = segmented(rule(), [[-1, 255, 1, 3], [1, 1, 1, 1]] * 2)
    assert outcome.shares == (Score("cat", 62.5),)
    assert outcome.mask.classes[0].tolist() == [NONE, NONE, 1, NONE]


def test_padding_is_left_out_of_shares_and_mask() -> None:
    placement = place(PictureForm(SPEC), 80, 40)  # two rows of four show the picture
    outcome = segmented(rule(), [[2] * 4, [1] * 4, [0] * 4, [2] * 4], placement)
    assert outcome.shares == (Score("background", 50.0), Score("cat", 50.0))
    assert outcome.mask.classes.tolist() == [[1] * 4, [0] * 4]
    assert (outcome.mask.box, outcome.mask.picture) == ((0.0, 0.0, 80.0, 40.0), (80, 40))


def test_the_mask_of_a_region_has_its_place() -> None:
    spec = PictureSpec(width=8, height=8)
    outcome = segmented(rule(), HALF, place(PictureForm(spec, region=(0.5, 0.0, 1.0, 0.5)), 80, 40))
    assert outcome.mask.box == (40.0, 0.0, 80.0, 20.0)


def test_masked_parts_are_left_out() -> None:
    left_half = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
    outcome = segmented(rule(), HALF, place(PictureForm(SPEC, mask=(left_half,)), 80, 80))
    assert outcome.shares == (Score("cat", 87.5), Score("dog", 12.5))
    assert outcome.mask.classes[0].tolist() == [NONE, NONE, 1, 1]


def test_a_picture_masked_as_a_whole_has_no_shares() -> None:
    all_of_it = ((-0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
    assert segmented(rule(), HALF, place(PictureForm(SPEC, mask=(all_of_it,)), 80, 80)).shares == ()


def test_the_best_score_decides_the_class() -> None:
    last = TensorSpec(name="scores", shape=(1, 1, 2, 3), dtype="int8", scale=0.1)
    first = TensorSpec(name="scores", shape=(1, 3, 1, 2), dtype="int8", scale=0.1)
    for output, keys, values in (
        (last, {}, [[1, 2, 3], [5, 4, 4]]),
        (first, {"layout": "nchw"}, [[1, 5], [2, 4], [3, 4]]),
    ):
        outcome = segmented(rule(output, form="scores", **keys), values, output=output)
        assert outcome.mask.classes.tolist() == [[2, 0]]


def test_a_single_score_tells_two_classes_apart() -> None:
    output = TensorSpec(name="scores", shape=(1, 1, 4, 1), dtype="uint8", scale=1 / 256)
    outcome = segmented(rule(output, ("nobody", "person"), form="scores"), [0, 127, 128, 255], output=output)
    assert outcome.mask.classes.tolist() == [[0, 0, 1, 1]]


def test_what_is_not_finite_is_an_error() -> None:
    output = TensorSpec(name="scores", shape=(1, 1, 1, 3), dtype="float32")
    with pytest.raises(ModelError, match="NaN"):
        segmented(rule(output, form="scores"), [0, np.nan, 0], output=output)


@given(
    arrays(np.int64, (1, 4, 4), elements=st.integers(-1, 3)),
    st.sampled_from(["stretch", "letterbox", "crop"]),
    st.integers(1, 300),
    st.integers(1, 300),
)
def test_shares_and_mask_agree(classes: NDArray[np.int64], fit: Any, width: int, height: int) -> None:
    placement = place(PictureForm(PictureSpec(width=8, height=8, fit=fit)), width, height)
    outcome = rule()([classes], None, 0.0, placement)
    mask = outcome.mask.classes
    for share in outcome.shares:
        pixels = int((mask == LABELS.index(share.label)).sum())
        assert share.score == pytest.approx(100 * pixels / mask.size, rel=1e-5)
    assert sum(share.score for share in outcome.shares) <= 100.001


@pytest.mark.parametrize(
    ("segment", "shape", "dtype", "problem"),
    [
        (SegmentPicture(), (1, 4), "int64", "holds no classes by row and column"),
        (SegmentPicture(form="scores"), (1, 4, 4), "float32", "holds no scores by row and column"),
        (SegmentPicture(form="scores"), (1, 4, 4, 2), "float32", "3 labels for the scores of 2 classes"),
        (SegmentPicture(form="scores"), (1, 4, 4, 1), "float32", "3 labels for the scores of 2 classes"),
        (SegmentPicture(), (1, 4, 4), "bool", "the output holds bool"),
        (SegmentPicture(decision=Decision(threshold=101)), (1, 4, 4), "int64", "from 0 to 100 percent, not 101"),
        (SegmentPicture(decision=Decision(thresholds={"cow": 1})), (1, 4, 4), "int64", "no label 'cow' exists"),
    ],
)
def test_contradictions_are_refused(segment: SegmentPicture, shape: tuple[int, ...], dtype: str, problem: str) -> None:
    with pytest.raises(BundleError, match=problem):
        check_segmentation(segment, (TensorSpec(name="classes", shape=shape, dtype=dtype),), LABELS, (8, 8, 3))


def test_only_pictures_are_segmented_and_into_few_classes() -> None:
    with pytest.raises(BundleError, match="pictures are segmented"):
        check_segmentation(SegmentPicture(), (CLASSES,), LABELS, ())
    with pytest.raises(BundleError, match="256 classes, and 255 are allowed"):
        check_segmentation(SegmentPicture(), (CLASSES,), tuple(map(str, range(256))), (8, 8, 3))
