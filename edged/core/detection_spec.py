"""The manifest's part for objects in pictures: decoder, label map, and the rules for reported boxes and decisions.

`edged.core.detection` follows these rules.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edged.core import anchors
from edged.core.labels import GAP
from edged.core.manifest_parts import (
    Decision,
    FileName,
    Label,
    Name,
    Positive,
    Real,
    Share,
    Strict,
    check_decision,
    check_unique,
    output_of,
    refuse,
)
from edged.core.pictures import Polygon
from edged.core.types import TensorSpec

WHOLE = "picture"
"""Name of the only zone where the configuration has none."""

MAX_ANCHORS = 100_000
MAX_ZONES = 16

Index = Annotated[int, Meta(ge=0, le=255)]
BoxOrder = Literal["yxyx", "xyxy", "cxcywh", "cycxhw"]
BoxUnits = Literal["fractions", "pixels"]
Overlap = Annotated[float, Meta(gt=0, le=1)]


class SsdPostprocess(Strict, frozen=True, kw_only=True, tag="ssd_postprocess", tag_field="decoder"):
    """Decoder "ssd_postprocess": the outputs of the op TFLite_Detection_PostProcess, decoded boxes without duplicates.

    Keys:
        boxes: Index of the output tensor with the boxes.
        classes: Index of the output tensor with the class numbers.
        scores: Index of the output tensor with the scores.
        count: Index of the output tensor with the number of boxes; null for a model that fills up with scores of 0.
        order: Order of the numbers of a box.
        units: Unit of the numbers: fractions of the model's picture, or its pixels.
    """

    boxes: Index = 0
    classes: Index = 1
    scores: Index = 2
    count: Index | None = 3
    order: BoxOrder = "yxyx"
    units: BoxUnits = "fractions"

    @property
    def outputs(self) -> tuple[int, ...]:
        """Indices of the output tensors."""
        return (self.boxes, self.classes, self.scores, *(() if self.count is None else (self.count,)))


class AnchorGrid(Strict, frozen=True, kw_only=True, tag="grid", tag_field="from"):
    """Anchors made from parameters, as in TensorFlow's SSD and in MediaPipe.

    A layer is a grid of cells; consecutive layers of the same stride share a grid. The scale of the boxes grows evenly
    from `min_scale` in the first layer to `max_scale` in the last.

    Keys:
        strides (pixels): Size of a cell of each layer.
        min_scale (share): Size of the boxes of the first layer, as a share of the picture.
        max_scale (share): Size of the boxes of the last layer.
        aspect_ratios: Width to height of the boxes of a cell.
        interpolated: True for one more box of each cell: square, of a size between this layer's and the next.
        reduced: True for only three boxes in each cell of the first layer.
        offset (share): Centre of the boxes within the cell.
        fixed_size: True for boxes with width and height of the whole picture, scaled by the model alone.
    """

    strides: Annotated[tuple[Annotated[float, Meta(ge=1, le=16_384)], ...], Meta(min_length=1, max_length=32)]
    min_scale: Share = 0.2
    max_scale: Share = 0.95
    aspect_ratios: Annotated[tuple[Annotated[float, Meta(ge=0.01, le=100)], ...], Meta(max_length=32)] = (
        *(1.0, 2.0, 0.5, 3.0),
        0.3333,
    )
    interpolated: bool = True
    reduced: bool = True
    offset: Share = 0.5
    fixed_size: bool = False


class AnchorFile(Strict, frozen=True, kw_only=True, tag="file", tag_field="from"):
    """Anchors in a file of the bundle: .npy, a row of four numbers for each anchor, in fractions of the picture.

    Keys:
        file: Name of the file in the bundle.
        order: Order of the numbers of an anchor.
    """

    file: FileName
    order: BoxOrder = "cycxhw"


class AnchorTable(Strict, frozen=True, kw_only=True, tag="table", tag_field="from"):
    """Anchors in the manifest itself.

    Keys:
        rows: Four numbers for each anchor, in fractions of the picture.
        order: Order of the numbers of an anchor.
    """

    rows: Annotated[tuple[tuple[Real, Real, Real, Real], ...], Meta(min_length=1, max_length=MAX_ANCHORS)]
    order: BoxOrder = "cycxhw"


class SsdAnchors(Strict, frozen=True, kw_only=True, tag="ssd_anchors", tag_field="decoder"):
    """Decoder "ssd_anchors": the raw heads of an SSD, offsets from anchors and scores by class.

    Keys:
        boxes: Index of the output tensor with a row for each anchor; numbers after the first four are ignored.
        scores: Index of the output tensor with the scores of each anchor.
        anchors: Origin of the anchors.
        activation: Function from logits to probabilities.
        order: Order of the numbers of a box: centre and size.
        scales: Divisors of the four numbers, in their order.
        exponential: True if the size of a box is a power of e, times the anchor; false for a plain factor.
        overlap (share): Intersection over union from which the weaker of two boxes of a label is dropped.
    """

    boxes: Index = 0
    scores: Index = 1
    anchors: AnchorGrid | AnchorFile | AnchorTable
    activation: Literal["none", "sigmoid", "softmax"] = "sigmoid"
    order: Literal["cxcywh", "cycxhw"] = "cycxhw"
    scales: tuple[Positive, Positive, Positive, Positive] = (10.0, 10.0, 5.0, 5.0)
    exponential: bool = True
    overlap: Overlap = 0.5


class Yolov5(Strict, frozen=True, kw_only=True, tag="yolov5", tag_field="decoder"):
    """Decoder "yolov5": a row for each box with four numbers, the probability of an object, and scores by class.

    Keys:
        output: Index of the output tensor.
        order: Order of the first four numbers.
        units: Unit of these numbers: fractions of the model's picture, or its pixels.
        overlap (share): Intersection over union from which the weaker of two boxes of a label is dropped.
    """

    output: Index = 0
    order: BoxOrder = "cxcywh"
    units: BoxUnits = "fractions"
    overlap: Overlap = 0.45


class Yolov8(Strict, frozen=True, kw_only=True, tag="yolov8", tag_field="decoder"):
    """Decoder "yolov8": for each box four numbers and scores by class; boxes may be on the last axis or the one before.

    Keys:
        output: Index of the output tensor.
        order: Order of the first four numbers.
        units: Unit of these numbers: fractions of the model's picture, or its pixels.
        overlap (share): Intersection over union from which the weaker of two boxes of a label is dropped.
    """

    output: Index = 0
    order: BoxOrder = "cxcywh"
    units: BoxUnits = "fractions"
    overlap: Overlap = 0.45


class Fomo(Strict, frozen=True, kw_only=True, tag="fomo", tag_field="decoder"):
    """Decoder "fomo": a grid of cells, each with the score of the background and scores by class.

    Neighbouring cells of a label are an object.

    Keys:
        output: Index of the output tensor.
    """

    output: Index = 0


BoxDecoder = SsdPostprocess | SsdAnchors | Yolov5 | Yolov8 | Fomo


class ObjectDecision(Decision, frozen=True, kw_only=True):
    """Rules for decisions from scores and, with the keys from `labels` on, from objects in pictures.

    A label is a candidate while the score is high enough, in `k` of the last `n` windows. Of several candidates, the
    candidate with the best score is decided. A detection of objects decides each label in each zone by itself: a label
    is a candidate while an object of this label is there. `threshold` is then also the least score of a reported box;
    boxes less than `hysteresis` below the threshold are reported, and keep a decision without beginning one.

    Keys:
        labels: Labels of objects that count. Other objects, and those of `background`, are dropped. Default: all.
        min_size (share): Least width and height of a box, as a share of the picture's.
        max_boxes: Most boxes in a result; the best count.
        zones: Polygons by name, in fractions of the source's picture, each of points [x, y] from the top left. Default:
            a single zone "picture", the whole picture.
        zone_point: Point of a box that must be in a zone: the middle of the lower edge, on which people and cars
            stand, or the centre.
        track (windows): Number of windows for which an object that is not seen keeps its number. 0: objects have no
            numbers.
        track_overlap (share): Least intersection over union of two boxes of one object in consecutive windows.
    """

    labels: Annotated[tuple[Label, ...], Meta(max_length=1000)] = ()
    min_size: Share = 0.0
    max_boxes: Annotated[int, Meta(ge=1, le=1000)] = 100
    zones: Annotated[dict[Name, Polygon], Meta(max_length=MAX_ZONES)] = msgspec.field(default_factory=dict)
    zone_point: Literal["bottom", "centre"] = "bottom"
    track: Annotated[int, Meta(ge=0, le=1000)] = 0
    track_overlap: Overlap = 0.3


class DetectObjects(Strict, frozen=True, kw_only=True, tag="detection", tag_field="kind"):
    """Postprocessing "detection": boxes of objects in a picture, with labels.

    Boxes are in pixels of the source's picture. In `labels`, "???" stands for a number without a label; boxes of this
    number are dropped.

    Keys:
        decoder: Meaning of the output tensors.
        label_offset: Position in `labels` of class 0.
        decision: Rules for reported boxes and decisions.
    """

    decoder: BoxDecoder
    label_offset: Annotated[int, Meta(ge=0, le=100_000)] = 0
    decision: ObjectDecision


def counted_labels(labels: tuple[str, ...], decision: ObjectDecision) -> tuple[str, ...]:
    """Return the labels of objects that count."""
    dropped = {GAP, *decision.background}
    return tuple(label for label in labels if label not in dropped and label in (decision.labels or labels))


def check_detection(
    detect: DetectObjects,
    labels: tuple[str, ...],
    outputs: tuple[TensorSpec, ...],
    picture: tuple[int, ...],
    files: Container[str],
) -> None:
    """Check a detection of a model with these labels, outputs, shape of the picture (() for none) and files.

    Raises:
        BundleError: two parts of the manifest contradict each other.
    """
    if not picture:
        refuse("window", "a detection needs a window of one picture: length 1 and a sample_shape of height and width")
    check_unique("labels", [label for label in labels if label != GAP])
    decision = detect.decision
    check_decision(decision)
    if not decision.threshold or not all(decision.thresholds.values()):
        refuse("postprocess.decision.threshold", "a detection needs a threshold other than 0")
    if decision.hysteresis >= min([decision.threshold, *decision.thresholds.values()]):
        refuse("postprocess.decision.hysteresis", "must be less than each threshold")
    unknown = {*decision.thresholds, *decision.background, *decision.labels} - set(labels)
    if labels and unknown:
        refuse("postprocess.decision", f"no label {min(unknown)!r} exists")
    classes = _check_outputs(detect.decoder, outputs, picture, len(labels) - detect.label_offset if labels else None)
    match detect.decoder:
        case SsdAnchors(anchors=AnchorFile(file=file)) if file not in files:
            refuse("postprocess.decoder.anchors", f"{file} is not in files")
    if labels and detect.label_offset >= len(labels):
        refuse("postprocess.label_offset", f"is {detect.label_offset}, and there are {len(labels)} labels")
    if labels and classes + detect.label_offset > len(labels):
        refuse(
            "labels",
            f"{len(labels)} labels with offset {detect.label_offset} are too few for {classes} classes",
        )


def _check_outputs(
    decoder: BoxDecoder, outputs: tuple[TensorSpec, ...], picture: tuple[int, ...], classes: int | None
) -> int:
    """Return the number of classes by the shapes of the outputs; 0 if unknown before the model runs."""
    match decoder:
        case SsdPostprocess():
            _check_ssd_postprocess(decoder, outputs)
            return 0
        case SsdAnchors():
            return _check_ssd_anchors(decoder, outputs, picture)
        case Yolov5():
            shape = output_of(outputs, decoder.output).shape
            if len(shape) != 3 or shape[0] != 1 or shape[2] < 6:
                refuse("postprocess.decoder", f"yolov5 has an output of [1, boxes, 5 + classes], not {list(shape)}")
            return shape[2] - 5
        case Yolov8():
            shape = output_of(outputs, decoder.output).shape
            if yolov8_axis(shape, classes) is None:
                expected = f"with 4 + {classes} values for each box" if classes else "with 4 values and more a box"
                refuse("postprocess.decoder", f"yolov8 has an output of three axes {expected}, not {list(shape)}")
            return 0 if classes is None else classes
        case Fomo():
            shape = output_of(outputs, decoder.output).shape
            if len(shape) != 4 or shape[0] != 1 or shape[3] < 2:
                refuse("postprocess.decoder", f"fomo has an output of [1, rows, columns, classes], not {list(shape)}")
            return shape[3] - 1


def yolov8_axis(shape: tuple[int, ...], classes: int | None) -> int | None:
    """Return the axis, 1 or 2, of the values of a box in an output of yolov8; None if neither fits."""
    if len(shape) != 3 or shape[0] != 1 or min(shape) < 1:
        return None
    if classes is None:  # the labels are in the model file
        return 1 if shape[1] <= shape[2] else 2
    return next((axis for axis in (1, 2) if shape[axis] == 4 + classes), None)


def _check_ssd_postprocess(decoder: SsdPostprocess, outputs: tuple[TensorSpec, ...]) -> None:
    boxes = output_of(outputs, decoder.boxes).shape
    if not boxes:  # a size known to the runtime only
        return
    if boxes[-1] != 4:
        refuse("postprocess.decoder.boxes", f"the output of shape {list(boxes)} holds no boxes of four numbers")
    count = _size(boxes) // 4
    for role, index in (("classes", decoder.classes), ("scores", decoder.scores)):
        shape = output_of(outputs, index).shape
        if _size(shape) != count:
            refuse(f"postprocess.decoder.{role}", f"the output of shape {list(shape)} does not fit {count} boxes")
    if decoder.count is not None and _size(output_of(outputs, decoder.count).shape) != 1:
        refuse("postprocess.decoder.count", "the output is not a single number")


def _check_ssd_anchors(decoder: SsdAnchors, outputs: tuple[TensorSpec, ...], picture: tuple[int, ...]) -> int:
    boxes, scores = (output_of(outputs, index).shape for index in (decoder.boxes, decoder.scores))
    if len(boxes) < 2 or boxes[-1] < 4:
        refuse("postprocess.decoder.boxes", f"the output of shape {list(boxes)} holds no rows of four numbers and more")
    rows = _size(boxes[:-1])
    if len(scores) < 2 or _size(scores[:-1]) != rows:
        refuse("postprocess.decoder.scores", f"the output of shape {list(scores)} does not fit {rows} boxes")
    if (count := anchor_count(decoder.anchors, picture)) not in (None, rows):
        refuse("postprocess.decoder.anchors", f"{count} anchors do not fit the {rows} boxes of the model")
    return scores[-1]


def anchor_count(origin: AnchorGrid | AnchorFile | AnchorTable, picture: tuple[int, ...]) -> int | None:
    """Return the number of anchors; None for a file, which is not read yet."""
    match origin:
        case AnchorGrid():
            return anchors.count(grid_layers(origin), picture[0], picture[1])
        case AnchorTable(rows=rows):
            return len(rows)
        case AnchorFile():
            return None


def grid_layers(grid: AnchorGrid) -> list[anchors.Layer]:
    """Return the layers of a grid."""
    return anchors.layers(
        grid.strides,
        grid.min_scale,
        grid.max_scale,
        grid.aspect_ratios,
        interpolated=grid.interpolated,
        reduced=grid.reduced,
        fixed_size=grid.fixed_size,
    )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for each in shape:
        size *= each
    return size
