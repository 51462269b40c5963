import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edged.core.boxes import corners, is_inside, overlap, without_duplicates
from edged.core.tracker import Tracker

Corners = tuple[float, float, float, float]
SQUARE = ((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75))


@pytest.mark.parametrize(
    ("order", "numbers"),
    [
        ("yxyx", [0.25, 0.125, 0.75, 0.5]),
        ("xyxy", [0.125, 0.25, 0.5, 0.75]),
        ("cxcywh", [0.3125, 0.5, 0.375, 0.5]),
        ("cycxhw", [0.5, 0.3125, 0.5, 0.375]),
    ],
)
def test_a_box_in_every_order(order: str, numbers: list[float]) -> None:
    assert corners(np.array([numbers], np.float32), order, 320, 160).tolist() == [[40.0, 40.0, 160.0, 120.0]]


def test_overlap_is_intersection_over_union() -> None:
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 2, 2), (2, 0, 4, 2)) == 0.0
    assert overlap((1, 1, 1, 1), (1, 1, 1, 1)) == 0.0


def quadratic(boxes: list[list[int]], classes: list[int], most: float) -> list[int]:
    """Suppression as in every textbook: each box against all kept before."""
    kept: list[int] = []
    for index, box in enumerate(boxes):
        rivals = [boxes[other] for other in kept if classes[other] == classes[index]]
        if all(overlap(rival, box) <= most for rival in rivals):
            kept.append(index)
    return kept


SIDES = st.integers(0, 12)
BOXES = st.lists(st.tuples(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2)), max_size=40)


@given(BOXES, st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_suppression_equals_the_quadratic_reference(found: list[tuple[int, ...]], most: float) -> None:
    boxes = [[x, y, x + width, y + height] for x, y, width, height, _ in found]
    classes = [each[4] for each in found]
    array: NDArray[np.float32] = np.array(boxes, np.float32).reshape(-1, 4)
    assert without_duplicates(array, np.array(classes, np.intp), most) == quadratic(boxes, classes, most)


@pytest.mark.parametrize(
    ("x", "y", "inside"),
    [(0.5, 0.5, True), (0.26, 0.74, True), (0.2, 0.5, False), (0.5, 0.8, False), (0.9, 0.1, False)],
)
def test_a_point_and_a_square(x: float, y: float, inside: bool) -> None:
    assert is_inside(x, y, SQUARE) is inside


def test_a_point_in_the_bay_of_a_polygon_is_outside() -> None:
    horseshoe = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.75, 1.0), (0.75, 0.25), (0.25, 0.25), (0.25, 1.0), (0.0, 1.0))
    assert is_inside(0.1, 0.9, horseshoe)
    assert not is_inside(0.5, 0.9, horseshoe)


def moved(by: float) -> Corners:
    return (by, 0.0, by + 10.0, 10.0)


def test_an_object_keeps_its_number_while_it_moves() -> None:
    tracker = Tracker(2, 0.3)
    assert tracker.numbers(["cat"], [moved(0)]) == [1]
    assert tracker.numbers(["cat", "cat"], [moved(40), moved(2)]) == [2, 1]
    assert tracker.numbers(["cat", "dog"], [moved(4), moved(40)]) == [1, 3]  # a dog is no cat


def test_an_object_out_of_sight_is_forgotten_in_time() -> None:
    tracker = Tracker(2, 0.3)
    assert tracker.numbers(["cat"], [moved(0)]) == [1]
    assert tracker.numbers([], []) == tracker.numbers([], []) == []
    assert tracker.numbers(["cat"], [moved(1)]) == [1]
    for _ in range(3):
        tracker.numbers([], [])
    assert tracker.numbers(["cat"], [moved(1)]) == [2]


def test_two_boxes_never_share_a_number() -> None:
    tracker = Tracker(1, 0.1)
    tracker.numbers(["cat"], [moved(0)])
    assert tracker.numbers(["cat", "cat"], [moved(1), moved(0)]) == [2, 1]


def test_a_tracker_forgets_the_oldest_of_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.core.tracker.MAX_OBJECTS", 2)
    tracker = Tracker(1000, 0.3)
    for place in (0, 20, 40):
        tracker.numbers(["cat"], [moved(place)])
    assert tracker.numbers(["cat"], [moved(40)]) == [3]
    assert tracker.numbers(["cat"], [moved(0)]) == [4]
