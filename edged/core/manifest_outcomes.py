"""Kinds of `postprocess` beside the classic ones: several labels, embeddings, keypoints, segments and raw tensors."""

from __future__ import annotations

from collections.abc import Collection
from math import prod
from typing import Annotated, Literal

from msgspec import Meta

from edged.core.manifest_parts import (
    MAX_VALUES,
    Decision,
    FileName,
    Label,
    Real,
    Strict,
    check_decision,
    check_unique,
    output_of,
    refuse,
)
from edged.core.types import TensorSpec

MAX_EMBEDDING = 16_384
MAX_KEYPOINTS = 1000
MAX_CLASSES = 255

OutputIndex = Annotated[int, Meta(ge=0, le=255)]
Shown = Annotated[int, Meta(ge=1, le=100)]
Outputs = tuple[TensorSpec, ...]
LabelNames = tuple[str, ...]


class ClassifyMany(Strict, frozen=True, kw_only=True, tag="multilabel", tag_field="kind"):
    """Postprocessing "multilabel": scores of `labels`, of which any number may apply at once.

    Keys:
        output: Index of the output tensor with the scores.
        activation: Function from logits to probabilities.
        top_k: Largest number of labels over their threshold that count in a window, the best ones.
        decision: Rules for the decision, which hold for each label by itself. Each label needs a threshold.
    """

    output: OutputIndex = 0
    activation: Literal["none", "sigmoid"] = "none"
    top_k: Shown = 10
    decision: Decision


def check_multilabel(many: ClassifyMany, outputs: Outputs, labels: LabelNames) -> None:
    """Raise BundleError if the kind contradicts outputs or labels."""
    scores = prod(output_of(outputs, many.output).shape)
    if labels and len(labels) != scores:
        refuse("labels", f"{len(labels)} labels for {scores} scores")
    check_unique("labels", list(labels))
    check_label_decision(many.decision, labels)
    if not many.decision.threshold:
        refuse("postprocess.decision.threshold", "labels that are decided each by itself need a threshold other than 0")


def check_label_decision(decision: Decision, labels: LabelNames) -> None:
    """Raise BundleError for a contradictory decision, or one that names a label unknown to the model."""
    check_decision(decision)
    unknown = {*decision.thresholds, *decision.background} - set(labels)
    if labels and unknown:
        refuse("postprocess.decision", f"no label {min(unknown)!r} exists")


class Embed(Strict, frozen=True, kw_only=True, tag="embedding", tag_field="kind"):
    """Postprocessing "embedding": an output as a vector, and the nearest of stored reference vectors.

    Keys:
        output: Index of the output tensor with the vector.
        normalise: Scale the vector to length 1.
        vector: Form of the vector in a result: "base64" for the bytes of float32 numbers, little-endian; "array" for
            numbers; or "none".
        references: Name of a file in the bundle with named vectors: .npz, with an array for each name, or .json, an
            object with an array for each name. An array is a vector, or several vectors as rows.
        metric: Distance of two vectors: "cosine", 1 less the cosine of their angle, or "euclidean".
        decision: Rules for the decision. The nearest reference is decided; with a `threshold`, a vector farther from
            all references is anomalous.
    """

    output: OutputIndex = 0
    normalise: bool = False
    vector: Literal["base64", "array", "none"] = "base64"
    references: FileName | None = None
    metric: Literal["cosine", "euclidean"] = "cosine"
    decision: Decision = Decision()


def check_embedding(embed: Embed, outputs: Outputs, files: Collection[str]) -> None:
    """Raise BundleError if the kind contradicts outputs or files."""
    size = prod(output_of(outputs, embed.output).shape)
    if size > MAX_EMBEDDING:
        refuse("postprocess.output", f"has {size} elements, and a vector of {MAX_EMBEDDING} is allowed")
    check_decision(embed.decision)
    if embed.decision.thresholds or embed.decision.background:
        refuse("postprocess.decision", "an embedding has no labels, only a threshold")
    if embed.decision.threshold < 0:
        refuse("postprocess.decision.threshold", "a distance is never below 0")
    if embed.references is None:
        if embed.decision != Decision():
            refuse("postprocess.decision", "an embedding without references decides nothing")
        if embed.vector == "none":
            refuse("postprocess.vector", "an embedding without references has no result but the vector")
        return
    if embed.references not in files:
        refuse("postprocess.references", f"{embed.references} is not in files")
    if not embed.references.endswith((".npz", ".json")):
        refuse("postprocess.references", f"{embed.references} is neither .npz nor .json")


class FindKeypoints(Strict, frozen=True, kw_only=True, tag="keypoints", tag_field="kind"):
    """Postprocessing "keypoints": named points in the picture, with scores.

    Keys:
        output: Index of the output tensor, with a row of `columns` for each keypoint.
        columns: Meaning of the values of a row; "none" for a value without use.
        units: Units of x and y: "share", of the width and height of the model's picture, or "pixels" of this picture.
        activation: Function from logits to scores.
        scores: Index of an output with a score for each keypoint, or one for all. Without this key and without a column
            "score", all scores are 1.
        preset: Known names and skeleton: "coco17", 17 points of a person.
        names: Names of the keypoints, in place of a preset.
        threshold: Least score of a keypoint in a result.
        decision: Rules for the decision that the whole is in the picture; the score is the mean of the keypoints'
            scores.
    """

    output: OutputIndex = 0
    columns: Annotated[tuple[Literal["x", "y", "score", "none"], ...], Meta(min_length=2, max_length=8)] = (
        "y",
        "x",
        "score",
    )
    units: Literal["share", "pixels"] = "share"
    activation: Literal["none", "sigmoid"] = "none"
    scores: OutputIndex | None = None
    preset: Literal["coco17"] | None = None
    names: Annotated[tuple[Label, ...], Meta(max_length=MAX_KEYPOINTS)] = ()
    threshold: Real = 0.2
    decision: Decision = Decision(threshold=0.3)

    @property
    def points(self) -> LabelNames:
        """Names of the keypoints."""
        return PRESETS[self.preset].names if self.preset else self.names


class Preset(Strict, frozen=True):
    """Names of keypoints, and the lines of the skeleton between them."""

    names: LabelNames
    skeleton: tuple[tuple[str, str], ...]


_SIDES = ("left", "right")
PRESETS = {
    "coco17": Preset(
        names=(
            "nose",
            *(
                f"{side}_{part}"
                for part in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
                for side in _SIDES
            ),
        ),
        skeleton=(
            ("left_shoulder", "right_shoulder"),
            ("left_hip", "right_hip"),
            *(("nose", f"{side}_eye") for side in _SIDES),
            *(
                (f"{side}_{one}", f"{side}_{other}")
                for side in _SIDES
                for one, other in (
                    ("eye", "ear"),
                    ("shoulder", "elbow"),
                    ("elbow", "wrist"),
                    ("shoulder", "hip"),
                    ("hip", "knee"),
                    ("knee", "ankle"),
                )
            ),
        ),
    )
}


def check_keypoints(find: FindKeypoints, outputs: Outputs, sample_shape: tuple[int, ...]) -> None:
    """Raise BundleError if the kind contradicts outputs, or if windows of this shape are no pictures."""
    if len(sample_shape) < 2:
        refuse("postprocess", "keypoints are found in pictures, and the window has none: state window.sample_shape")
    if bool(find.preset) == bool(find.names):
        refuse("postprocess", "needs either preset or names, not both")
    check_unique("postprocess.names", list(find.names))
    check_unique("postprocess.columns", [column for column in find.columns if column != "none"])
    if not {"x", "y"} <= set(find.columns):
        refuse("postprocess.columns", "needs x and y")
    points = len(find.points)
    values = prod(output_of(outputs, find.output).shape)
    if values != points * len(find.columns):
        refuse("postprocess", f"{values} values for {points} keypoints of {len(find.columns)} columns")
    if find.scores is not None:
        if "score" in find.columns:
            refuse("postprocess.scores", "the columns have a score already")
        scores = prod(output_of(outputs, find.scores).shape)
        if scores not in (1, points):
            refuse("postprocess.scores", f"{scores} scores for {points} keypoints")
    check_decision(find.decision)
    if find.decision.thresholds or find.decision.background:
        refuse("postprocess.decision", "keypoints have no labels, only a threshold")
    if not find.decision.threshold:
        refuse("postprocess.decision.threshold", "keypoints need a threshold other than 0")


class SegmentPicture(Strict, frozen=True, kw_only=True, tag="segmentation", tag_field="kind"):
    """Postprocessing "segmentation": a class of `labels` for each pixel, and the share of the picture by class.

    Padding and masked parts of the picture are left out. Pixels with a number beyond the labels belong to no class.

    Keys:
        output: Index of the output tensor.
        form: Content of the output: "classes", the number of the class of each pixel, or "scores" of each class. A
            single score for each pixel is the score of the second of two labels.
        layout: Order of the axes of scores: "nhwc", classes last, or "nchw", classes first.
        least: Single score from which a pixel belongs to the second label.
        decision: Rules for the decision, which hold for each class by itself, on shares in percent. Without a
            threshold, a class is not decided.
    """

    output: OutputIndex = 0
    form: Literal["classes", "scores"] = "classes"
    layout: Literal["nhwc", "nchw"] = "nhwc"
    least: Real = 0.5
    decision: Decision = Decision()

    def axes(self, shape: tuple[int, ...]) -> tuple[int, int, int] | None:
        """Return height, width and number of classes of an output, 1 for numbers of classes; None if neither."""
        sizes = shape[1:] if shape[:1] == (1,) else shape
        match sizes:
            case (height, width) | (height, width, 1) | (1, height, width) if self.form == "classes":
                return height, width, 1
            case (height, width, classes) if self.form == "scores" and self.layout == "nhwc":
                return height, width, classes
            case (classes, height, width) if self.form == "scores":
                return height, width, classes
        return None


def check_segmentation(
    segment: SegmentPicture, outputs: Outputs, labels: LabelNames, sample_shape: tuple[int, ...]
) -> None:
    """Raise BundleError if the kind contradicts outputs or labels, or if windows of this shape are no pictures."""
    if len(sample_shape) < 2:
        refuse("postprocess", "pictures are segmented, and the window has none: state window.sample_shape")
    output = output_of(outputs, segment.output)
    axes = segment.axes(output.shape)
    if axes is None:
        refuse("postprocess.output", f"the shape {list(output.shape)} holds no {segment.form} by row and column")
    if segment.form == "classes" and output.dtype not in ("uint8", "int8", "int16", "int32", "int64", "float32"):
        refuse("postprocess.output", f"numbers of classes are integers, and the output holds {output.dtype}")
    classes = max(axes[2], 2)  # a single score tells two classes apart
    if segment.form == "scores" and labels and len(labels) != classes:
        refuse("labels", f"{len(labels)} labels for the scores of {classes} classes")
    if len(labels) > MAX_CLASSES:
        refuse("labels", f"{len(labels)} classes, and {MAX_CLASSES} are allowed")
    check_unique("labels", list(labels))
    check_label_decision(segment.decision, labels)
    for threshold in (segment.decision.threshold, *segment.decision.thresholds.values()):
        if not 0 <= threshold <= 100:
            refuse("postprocess.decision", f"a share of the picture is from 0 to 100 percent, not {threshold:g}")


class ReadTensor(Strict, frozen=True, kw_only=True, tag="tensor", tag_field="kind"):
    """Postprocessing "tensor": an output as an array, for programs that do the rest themselves.

    Keys:
        output: Index of the output tensor.
        values: Values in a result: "real", converted by scale and zero point, or "stored", as in the tensor.
    """

    output: OutputIndex = 0
    values: Literal["real", "stored"] = "real"


def check_tensor(read: ReadTensor, outputs: Outputs) -> None:
    """Raise BundleError for an output that does not exist or is too big."""
    values = prod(output_of(outputs, read.output).shape)
    if values > MAX_VALUES:
        refuse("postprocess.output", f"has {values} values, and {MAX_VALUES} are allowed")
