"""Detection of objects: decoders, thresholds, zones, decisions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edged.core.detection_decoders import MAX_CANDIDATES, decoder
from edged.core.detection_spec import (
    AnchorFile,
    AnchorGrid,
    AnchorTable,
    BoxDecoder,
    DetectObjects,
    Fomo,
    ObjectDecision,
    SsdAnchors,
    SsdPostprocess,
    Yolov5,
    Yolov8,
)
from edged.core.errors import BundleError, ConfigError, ModelError
from edged.core.manifest import SCHEMA, File, Input, Manifest, WindowSpec, check
from edged.core.pictures import Placement
from edged.core.postprocess import Postprocessor
from edged.core.tensors import dequantise
from edged.core.types import Detections, FoundObject, TensorSpec

LABELS = ("person", "car", "???", "dog")
SIZE = 100


def floats(*shape: int, name: str = "out") -> TensorSpec:
    return TensorSpec(name=name, shape=shape, dtype="float32")


def manifest(
    decoder: BoxDecoder,
    outputs: tuple[TensorSpec, ...],
    names: tuple[str, ...] = LABELS,
    offset: int = 0,
    **rules: Any,
) -> Manifest:
    made = Manifest(
        schema=SCHEMA,
        name="m",
        version="1",
        files={"model.tflite": File(bytes=1, sha256="0" * 64)},
        window=WindowSpec(length=1, hop=1, sample_shape=(SIZE, SIZE, 3), dtype="uint8"),
        inputs=(Input(tensor=TensorSpec(name="x", shape=(1, SIZE, SIZE, 3), dtype="uint8")),),
        outputs=outputs,
        labels=names,
        postprocess=DetectObjects(
            decoder=decoder, label_offset=offset, decision=ObjectDecision(**{"threshold": 0.5, **rules})
        ),
    )
    check(made)
    return made


SSD_OUTPUTS = (floats(1, 3, 4), floats(1, 3, name="c"), floats(1, 3, name="s"), floats(1, name="n"))


def ssd(
    *found: tuple[float, int, tuple[float, float, float, float]], count: float | None = None
) -> list[NDArray[np.float32]]:
    """Outputs of the op: score, class, and box as left, top, right and bottom of 0 to 100."""
    boxes, classes, scores = np.zeros((1, 3, 4), np.float32), np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32)
    for index, (score, kind, (left, top, right, bottom)) in enumerate(found):
        boxes[0, index] = np.array((top, left, bottom, right), np.float32) / SIZE
        classes[0, index], scores[0, index] = kind, score
    return [boxes, classes, scores, np.array([len(found) if count is None else count], np.float32)]


def detector(**rules: Any) -> Postprocessor:
    return Postprocessor(manifest(SsdPostprocess(), SSD_OUTPUTS, **rules), None)


def run(rule: Postprocessor, outputs: Any, time: float = 0.0, placement: Placement | None = None) -> Detections:
    outcome = rule(outputs, None, time, placement)
    assert isinstance(outcome, Detections)
    return outcome


PERSON = (0.75, 0, (10.0, 20.0, 30.0, 40.0))
CAR = (0.625, 1, (50.0, 50.0, 90.0, 70.0))


def found(outcome: Detections) -> list[tuple[str, float, tuple[int, ...]]]:
    return [(each.label, each.score, tuple(map(round, each.box))) for each in outcome.objects]


def test_objects_of_the_postprocessing_op() -> None:
    outcome = run(detector(), ssd(CAR, PERSON))
    assert found(outcome) == [("person", 0.75, (10, 20, 30, 40)), ("car", 0.625, (50, 50, 90, 70))]
    assert outcome.counts == {"picture": {"person": 1, "car": 1}}
    assert outcome.present == {"picture": ("person", "car")}
    assert (outcome.changed, outcome.picture) == (True, (100, 100))


def test_boxes_are_in_pixels_of_the_source_with_the_letterbox_undone_and_clipped() -> None:
    """A picture of 400 x 200 in a model of 100 x 100: padded by 25 above and below."""
    placement = Placement(400, 200, 0.0, -100.0, 4.0, 4.0)
    outcome = run(detector(), ssd((0.75, 0, (10, 20, 30, 50))), placement=placement)
    assert found(outcome) == [("person", 0.75, (40, 0, 120, 100))]
    assert outcome.picture == (400, 200)


def test_a_box_outside_the_source_is_no_object() -> None:
    placement = Placement(400, 200, 0.0, -100.0, 4.0, 4.0)
    assert run(detector(), ssd((0.75, 0, (10, 0, 30, 20))), placement=placement).objects == ()


def test_boxes_beyond_the_count_are_ignored_even_nan() -> None:
    outputs = ssd(PERSON, CAR, count=1)
    outputs[0][0, 2] = outputs[2][0, 1] = np.nan
    assert [each.label for each in run(detector(), outputs).objects] == ["person"]


def test_gaps_of_the_label_map_and_labels_that_do_not_count_are_dropped() -> None:
    gap, dog = (0.875, 2, (0.0, 0.0, 50.0, 50.0)), (0.75, 3, (0.0, 0.0, 40.0, 40.0))
    assert [each.label for each in run(detector(), ssd(gap, dog, CAR)).objects] == ["dog", "car"]
    assert [each.label for each in run(detector(labels=("car",)), ssd(gap, dog, CAR)).objects] == ["car"]
    assert [each.label for each in run(detector(background=("car",)), ssd(gap, dog, CAR)).objects] == ["dog"]


def test_the_label_map_may_begin_before_class_0() -> None:
    model = manifest(SsdPostprocess(), SSD_OUTPUTS, ("background", *LABELS), offset=1)
    assert [each.label for each in run(Postprocessor(model, None), ssd(PERSON)).objects] == ["person"]


@pytest.mark.parametrize("kind", [4, 95, -1])
def test_a_class_without_a_label_is_an_error_that_names_it(kind: int) -> None:
    with pytest.raises(ModelError, match=f"found class {kind}, and its label map has 4 classes") as error:
        run(detector(), ssd((0.75, kind, (0, 0, 9, 9))))
    assert "label_offset" in error.value.hint


@pytest.mark.parametrize("output", range(4))
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_in_an_output_are_errors(output: int, value: float) -> None:
    outputs = ssd(PERSON, CAR)
    outputs[output].reshape(-1)[0] = value
    with pytest.raises(ModelError, match=r"the model's output is (NaN|infinite)"):
        run(detector(), outputs)


def test_a_threshold_of_each_label() -> None:
    assert [each.label for each in run(detector(thresholds={"person": 0.8}), ssd(PERSON, CAR)).objects] == ["car"]


def test_a_small_box_is_dropped_by_either_side() -> None:
    assert [each.label for each in run(detector(min_size=0.21), ssd(PERSON, CAR)).objects] == []
    assert [each.label for each in run(detector(min_size=0.2), ssd(PERSON, CAR)).objects] == ["person", "car"]


def test_only_the_best_boxes_are_reported() -> None:
    assert [each.label for each in run(detector(max_boxes=1), ssd(CAR, PERSON)).objects] == ["person"]


LEFT = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
BOTTOM = ((0.0, 0.6), (1.0, 0.6), (1.0, 1.0), (0.0, 1.0))


def test_an_object_stands_in_a_zone_with_its_lower_edge() -> None:
    outcome = run(detector(zones={"left": LEFT, "bottom": BOTTOM}), ssd(PERSON, CAR))
    assert [each.zones for each in outcome.objects] == [("left",), ("bottom",)]
    assert outcome.counts == {"left": {"person": 1}, "bottom": {"car": 1}}
    assert outcome.present == {"left": ("person",), "bottom": ("car",)}


def test_an_object_may_be_held_against_zones_by_its_centre() -> None:
    outcome = run(detector(zones={"bottom": BOTTOM}, zone_point="centre"), ssd((0.75, 0, (0, 10, 20, 100))))
    assert outcome.counts == {"bottom": {}}


def test_a_box_to_the_edge_of_the_picture_is_in_a_zone_to_the_edge() -> None:
    outcome = run(detector(zones={"bottom": BOTTOM}), ssd((0.75, 0, (0, 10, 20, 100))))
    assert outcome.counts == {"bottom": {"person": 1}}


def test_a_decision_takes_k_of_n_windows_for_each_zone_and_label() -> None:
    rule = detector(k=2, n=3)
    seen = [ssd(PERSON), ssd(CAR), ssd(PERSON), ssd(), ssd()]
    decided = [run(rule, outputs, time) for time, outputs in enumerate(seen)]
    assert [each.present["picture"] for each in decided] == [(), (), ("person",), (), ()]
    assert [each.changed for each in decided] == [False, False, True, True, False]


def test_a_weaker_object_keeps_a_decision_but_begins_none() -> None:
    rule = detector(hysteresis=0.25)
    weak, strong, weaker = (ssd((score, 0, (0, 0, 50, 50))) for score in (0.375, 0.5, 0.125))
    decided = [run(rule, outputs) for outputs in (weak, strong, weak, weaker, weak)]
    assert [bool(each.present["picture"]) for each in decided] == [False, True, True, False, False]
    assert [len(each.objects) for each in decided] == [1, 1, 1, 0, 1]


def test_tracked_objects_have_numbers() -> None:
    rule = detector(track=1)
    first = run(rule, ssd(PERSON, CAR))
    assert [(each.label, each.number) for each in first.objects] == [("person", 1), ("car", 2)]
    assert [each.number for each in run(rule, ssd(CAR)).objects] == [2]
    assert run(detector(), ssd(CAR)).objects[0].number is None


def test_after_a_reset_no_decision_is_left() -> None:
    rule = detector(k=2, n=2)
    run(rule, ssd(PERSON))
    rule.reset()
    assert run(rule, ssd(PERSON)).present == {"picture": ()}


def test_what_a_model_says_over_nothing_is_never_constant() -> None:
    rule = detector()
    assert run(rule, ssd(PERSON)).said == run(rule, ssd(PERSON)).said
    assert run(rule, ssd()).said != run(rule, ssd()).said


# The other decoders

TABLE = AnchorTable(rows=((0.5, 0.5, 0.25, 0.25), (0.25, 0.25, 0.5, 0.5)))
HEADS = (floats(1, 2, 4, name="boxes"), floats(1, 2, 3, name="scores"))
THREE = ("person", "car", "dog")


def test_offsets_from_anchors() -> None:
    model = manifest(SsdAnchors(anchors=TABLE), HEADS, THREE)
    boxes = np.array([[[0, 0, 0, 0], [2.0, -1.0, 0, 5 * np.log(0.5)]]], np.float32)
    logits = np.array([[[-9, 2, -9], [3, -9, -9]]], np.float32)
    outcome = run(Postprocessor(model, None), [boxes, logits])
    assert found(outcome) == [
        ("person", pytest.approx(1 / (1 + np.exp(-3))), (8, 10, 32, 60)),
        ("car", pytest.approx(1 / (1 + np.exp(-2))), (38, 38, 62, 62)),
    ]


def test_softmax_over_the_classes_of_an_anchor() -> None:
    model = manifest(SsdAnchors(anchors=TABLE, activation="softmax"), HEADS, THREE)
    logits = np.array([[[0, 0, 0], [2, 0, 0]]], np.float32)
    outcome = run(Postprocessor(model, None), [np.zeros((1, 2, 4), np.float32), logits])
    assert [(each.label, each.score) for each in outcome.objects] == [
        ("person", pytest.approx(np.exp(2) / (np.exp(2) + 2)))
    ]


def yolo_rows(*found: tuple[float, int, tuple[float, float, float, float]], rows: int = 20) -> NDArray[np.float32]:
    """Rows of four numbers and three scores: centre, width and height in fractions."""
    out = np.zeros((rows, 7), np.float32)
    for index, (score, kind, (left, top, right, bottom)) in enumerate(found):
        centre = (left + right) / 2, (top + bottom) / 2
        out[index, :4] = np.array((*centre, right - left, bottom - top), np.float32) / SIZE
        out[index, 4 + kind] = score
    return out


TWICE = (PERSON, (0.7, 0, (11.0, 20.0, 31.0, 40.0)), CAR, (0.55, 0, (50.0, 50.0, 90.0, 70.0)))
DISTINCT = [
    ("person", 0.75, (10, 20, 30, 40)),
    ("car", 0.625, (50, 50, 90, 70)),
    ("person", pytest.approx(0.55), (50, 50, 90, 70)),
]


@pytest.mark.parametrize("boxes_first", [True, False])
def test_yolov8_with_boxes_on_either_axis(boxes_first: bool) -> None:
    rows = yolo_rows(*TWICE)
    output = rows[None] if boxes_first else rows.T[None].copy()
    model = manifest(Yolov8(), (floats(*output.shape),), THREE)
    assert found(run(Postprocessor(model, None), [output])) == DISTINCT


def test_yolov5_multiplies_by_the_probability_of_an_object() -> None:
    rows = yolo_rows(*TWICE)
    output = np.insert(rows, 4, 0.8, axis=1)[None]
    model = manifest(Yolov5(), (floats(*output.shape),), THREE)
    assert found(run(Postprocessor(model, None), [output])) == [
        ("person", pytest.approx(0.6), (10, 20, 30, 40)),
        ("car", 0.5, (50, 50, 90, 70)),
    ]


def test_a_box_has_the_best_label_that_counts() -> None:
    rows = yolo_rows(PERSON)
    rows[0, 5] = 0.875
    model = manifest(Yolov8(), (floats(1, 20, 7),), THREE, thresholds={"car": 0.9})
    assert found(run(Postprocessor(model, None), [rows[None]])) == [("person", 0.75, (10, 20, 30, 40))]


def test_pixels_need_no_scaling() -> None:
    rows = yolo_rows(PERSON)
    rows[:, :4] *= SIZE
    model = manifest(Yolov8(units="pixels"), (floats(1, 20, 7),), THREE)
    assert found(run(Postprocessor(model, None), [rows[None]])) == [("person", 0.75, (10, 20, 30, 40))]


def test_neighbouring_cells_are_one_object() -> None:
    grid = np.zeros((1, 5, 10, 4), np.float32)
    grid[..., 0] = 1.0
    for row, column, kind, score in ((0, 0, 1, 0.6), (1, 1, 1, 0.75), (1, 2, 2, 0.625), (4, 9, 1, 0.5)):
        grid[0, row, column, kind] = score
    model = manifest(Fomo(), (floats(1, 5, 10, 4),), THREE)
    assert found(run(Postprocessor(model, None), [grid])) == [
        ("person", 0.75, (0, 0, 20, 40)),
        ("car", 0.625, (20, 20, 30, 40)),
        ("person", 0.5, (90, 80, 100, 100)),
    ]


@pytest.mark.parametrize("rule", [Yolov8(), Yolov5()])
def test_ten_thousand_boxes_are_few_in_the_end(rule: BoxDecoder) -> None:
    """Bounded in time and memory: the best are compared, and at most `max_boxes` reported."""
    random = np.random.default_rng(0)
    rows = random.random((10_000, 8), np.float32) * 0.5 + 0.5
    rows = rows[:, :7] if isinstance(rule, Yolov8) else rows
    model = manifest(rule, (floats(1, *rows.shape),), THREE, threshold=0.25, max_boxes=1000)
    outcome = run(Postprocessor(model, None), [rows[None]])
    assert 0 < len(outcome.objects) <= MAX_CANDIDATES


@pytest.mark.parametrize(
    ("rule", "shapes"),
    [(Yolov8(), [(1, 20, 7)]), (Yolov5(), [(1, 20, 8)]), (SsdAnchors(anchors=TABLE), [(1, 2, 4), (1, 2, 3)])],
)
def test_nan_boxes_and_scores_are_errors(rule: BoxDecoder, shapes: list[tuple[int, ...]]) -> None:
    model = manifest(rule, tuple(floats(*shape, name=str(shape)) for shape in shapes), THREE)
    for output, element in [(0, 0), (len(shapes) - 1, -1)]:
        outputs = [np.full(shape, 0.9, np.float32) for shape in shapes]
        outputs[output].reshape(-1)[element] = np.nan
        with pytest.raises(ModelError, match="NaN"):
            run(Postprocessor(model, None), outputs)


def quantised(shape: tuple[int, ...], dtype: str, scale: float, zero_point: int) -> TensorSpec:
    return TensorSpec(name="out", shape=shape, dtype=dtype, scale=scale, zero_point=zero_point)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1 << 30),
    dtype=st.sampled_from(["int8", "uint8", "int16"]),
    least=st.lists(st.floats(0.05, 1.2), min_size=3, max_size=3),
    kind=st.sampled_from(["yolov8", "yolov8 turned", "yolov5", "ssd", "ssd logits", "fomo"]),
)
def test_the_integer_domain_equals_dequantised_values(seed: int, dtype: str, least: list[float], kind: str) -> None:
    random = np.random.default_rng(seed)
    limits = np.iinfo(dtype)
    shapes: dict[str, list[tuple[int, ...]]] = {
        "yolov8": [(1, 30, 7)],
        "yolov8 turned": [(1, 7, 30)],
        "yolov5": [(1, 30, 8)],
        "ssd": [(1, 2, 4), (1, 2, 3)],
        "ssd logits": [(1, 2, 4), (1, 2, 3)],
        "fomo": [(1, 4, 4, 4)],
    }
    rule: BoxDecoder = {
        "yolov8": Yolov8(),
        "yolov8 turned": Yolov8(),
        "yolov5": Yolov5(),
        "ssd": SsdAnchors(anchors=TABLE, activation="none"),
        "ssd logits": SsdAnchors(anchors=TABLE),
        "fomo": Fomo(),
    }[kind]
    reach = {"ssd logits": 8.0, "yolov5": 1.0}.get(kind, 1.2)
    scale = reach / (int(limits.max) - int(limits.min))
    zero_point = 0 if kind == "ssd logits" and dtype != "uint8" else int(limits.min)
    specs = tuple(quantised(shape, dtype, scale, zero_point) for shape in shapes[kind])
    stored = [random.integers(limits.min, limits.max, spec.shape, dtype, endpoint=True) for spec in specs]
    real = tuple(floats(*spec.shape) for spec in specs)
    bounds = np.array(least, np.float32)
    fast = decoder(rule, specs, bounds, SIZE, SIZE)(stored)
    general = decoder(rule, real, bounds, SIZE, SIZE)([dequantise(s, a) for s, a in zip(specs, stored, strict=True)])
    assert fast.classes.tolist() == general.classes.tolist()
    assert fast.scores == pytest.approx(general.scores, abs=1e-6)
    assert fast.boxes == pytest.approx(general.boxes, abs=1e-3)


# Manifests that contradict themselves


@pytest.mark.parametrize(
    ("rule", "outputs", "message"),
    [
        (SsdAnchors(anchors=AnchorGrid(strides=(50,))), HEADS, "12 anchors do not fit the 2 boxes of the model"),
        (SsdAnchors(anchors=TABLE), (floats(1, 3, 4), floats(1, 3, 3, name="s")), "2 anchors do not fit the 3 boxes"),
        (SsdAnchors(anchors=TABLE), (floats(1, 2, 4), floats(1, 2, 9, name="s")), "3 labels with offset 0 are too few"),
        (SsdAnchors(anchors=TABLE), (floats(1, 2, 4), floats(1, 3, 3, name="s")), r"\[1, 3, 3\] does not fit 2 boxes"),
        (SsdAnchors(anchors=TABLE), (floats(2, 3), floats(2, 3, name="s")), r"\[2, 3\] holds no rows of four numbers"),
        (SsdAnchors(anchors=AnchorFile(file="anchors.npy")), HEADS, "anchors.npy is not in files"),
        (SsdAnchors(anchors=TABLE), HEADS[:1], "no output 1 exists"),
        (SsdPostprocess(), (floats(1, 3, 5), *SSD_OUTPUTS[1:]), r"\[1, 3, 5\] holds no boxes of four numbers"),
        (SsdPostprocess(), (floats(1, 4, 4), *SSD_OUTPUTS[1:]), r"classes: the output of shape \[1, 3\] does not"),
        (Yolov8(), (floats(1, 20, 9),), r"with 4 \+ 3 values for each box, not \[1, 20, 9\]"),
        (Yolov5(), (floats(1, 20, 9),), "3 labels with offset 0 are too few for 4 classes"),
        (Yolov5(), (floats(1, 20),), r"\[1, boxes, 5 \+ classes\], not \[1, 20\]"),
        (Fomo(), (floats(1, 4, 4),), r"\[1, rows, columns, classes\], not \[1, 4, 4\]"),
        (Fomo(), (floats(1, 4, 4, 5),), "3 labels with offset 0 are too few for 4 classes"),
    ],
)  # fmt: skip
def test_outputs_that_do_not_fit_the_decoder(rule: BoxDecoder, outputs: tuple[TensorSpec, ...], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        manifest(rule, outputs, THREE)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"threshold": 0.0}, "a detection needs a threshold other than 0"),
        ({"thresholds": {"car": 0.0}}, "a detection needs a threshold other than 0"),
        ({"hysteresis": 0.5}, "hysteresis: must be less than each threshold"),
        ({"labels": ("cat",)}, "no label 'cat' exists"),
        ({"k": 3, "n": 2}, r"k \(3\) is more than n \(2\)"),
    ],
)
def test_rules_of_a_manifest_that_are_impossible(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        manifest(SsdPostprocess(), SSD_OUTPUTS, **rules)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"threshold": 0.0}, "any part of a picture would be an object"),
        ({"thresholds": {"car": 0.25}, "hysteresis": 0.3}, "hysteresis of 0.3 leaves nothing of a threshold"),
        ({"labels": ("cat",)}, "names the label 'cat'"),
        ({"thresholds": {"cat": 0.5}}, "names the label 'cat'"),
        ({"background": ("person", "car", "dog")}, "drops every label"),
        ({"k": 3, "n": 2}, "needs 3 of the last 2 windows"),
    ],
)
def test_rules_of_the_configuration_that_are_impossible(rules: dict[str, Any], message: str) -> None:
    model = manifest(SsdPostprocess(), SSD_OUTPUTS)
    with pytest.raises(ConfigError, match=message):
        Postprocessor(model, ObjectDecision(**{"threshold": 0.5, **rules}))


def test_a_model_of_rows_detects_no_objects() -> None:
    model = manifest(SsdPostprocess(), SSD_OUTPUTS)
    rows = WindowSpec(length=SIZE, hop=1, sample_shape=(SIZE, 3), dtype="uint8")
    with pytest.raises(BundleError, match="a detection needs a window of one picture"):
        check(type(model)(**{name: getattr(model, name) for name in model.__struct_fields__} | {"window": rows}))


def test_an_object_of_a_result() -> None:
    (person,) = run(detector(zones={"left": LEFT}, track=1), ssd(PERSON)).objects
    assert person == FoundObject("person", 0.75, person.box, ("left",), 1)
