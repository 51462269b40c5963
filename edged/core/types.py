"""The data that travels: chunk -> window -> prediction -> message.

Times inside are CLOCK_MONOTONIC seconds; wall-clock time is added once, where a message leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.core.masks import SegmentMask
from edged.core.pictures import PictureForm, Placement

if TYPE_CHECKING:
    from edged.core.answers import RunnerAnswer


class SourceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Properties of a source that are known before the first sample.

    `shape` is the shape of one sample: `(6,)` for six channels, `(96, 96, 3)` for a picture. `channels` and `units`
    name the columns of a sample that is a row of channels; empty means unstated. `rate` is in samples per second; None
    if only the sensor knows. `pace` is the number of samples that arrive per second, if a recording is played faster or
    slower than `rate`. A `patient` source can wait while the pipeline catches up (a recording played as fast as
    possible); physics cannot. A source of `pictures` has no shape: pictures may have any size. Samples of an
    `eventful` source arrive when something happens, and silence is no fault.
    """

    shape: tuple[int, ...]
    channels: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    rate: float | None = None
    pace: float | None = None
    patient: bool = False
    pictures: bool = False
    eventful: bool = False


class DrawnBox(NamedTuple):
    """Box to be drawn into a picture, in the picture's pixels, and the text beside it."""

    left: float
    top: float
    right: float
    bottom: float
    text: str = ""


class Picture(Protocol):
    """Picture of a source, decoded no sooner than needed. `width` and `height` are those of the upright picture."""

    @property
    def width(self) -> int:
        """Return the width in pixels."""

    @property
    def height(self) -> int:
        """Return the height in pixels."""

    def fitted(self, form: PictureForm) -> NDArray[np.uint8]:
        """Return the pixels in a form, as an array (height, width, channels) that nobody writes to.

        The same form is computed once. For the thread that reads the source.

        Raises:
            PictureError: the picture cannot be decoded.
            DeviceError: Pillow is not installed.
        """

    def placement(self, form: PictureForm) -> Placement:
        """Return the place of a form in this picture."""

    def jpeg(self, boxes: Sequence[DrawnBox] = (), max_width: int = 0) -> bytes:
        """Return the picture as a JPEG with boxes drawn, scaled down to `max_width` pixels unless 0. For any thread.

        Raises:
            PictureError: the picture cannot be decoded.
            DeviceError: Pillow is not installed.
        """


class Chunk(NamedTuple):
    """Samples that arrived together from a source.

    `samples` has shape `(n, *SourceInfo.shape)` with n >= 1, and is only valid until the next read. `time` is the
    arrival of the last sample. `lost` counts the samples missing just before the first one: 0 in an unbroken stream, at
    least 1 after a gap of unknown length. `anew` marks the first chunk of another stream, such as a recording that is
    played again: no window spans the boundary, and nothing is lost.

    A chunk of a source of pictures is one `picture`; `samples` are then the bytes as received, of shape (1, n).
    """

    samples: NDArray[Any]
    time: float
    lost: int = 0
    anew: bool = False
    picture: Picture | None = None


MAX_URL = 4096
"""Maximum number of characters of a URL."""

MAX_SHOWN = 300
"""Maximum number of characters shown of discarded input, with the reason."""


class Obstacle(NamedTuple):
    """Reason why received bytes do not become samples, and the remedy."""

    reason: str
    hint: str


class Window(NamedTuple):
    """Input of one inference: `samples` of shape `(length, *sample shape)`, and their position in the stream.

    Overlapping windows share `samples`, which must not be written to. `seq` counts the windows of the stream, dropped
    windows included, so a jump shows a drop. `time` is the arrival of the last sample, `start` that of the first
    sample; None if the rate is unknown. A window cut from a `picture` of a source has a `placement` in it.
    """

    samples: NDArray[Any]
    seq: int
    time: float
    start: float | None = None
    picture: Picture | None = None
    placement: Placement | None = None


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Specification of one input or output tensor of a model: real = scale * (stored - zero_point).

    Keys:
        name: Name of the tensor in the model file.
        shape: Shape of the tensor.
        dtype: Type of its elements, for example "int8".
        scale: Quantisation scale; 0 for a tensor that is not quantised.
        zero_point: Quantisation zero point.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Return the dtype as a numpy object."""
        return np.dtype(self.dtype)


class RunnerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Runtime and delegate of a loaded model, shown by `edgectl models` and in results.

    `delegate` is "cpu" or the name of an accelerator; `nodes` and `delegated` count graph nodes, 0 where unknown.
    """

    backend: str
    runtime: str
    delegate: str = "cpu"
    threads: int = 1
    nodes: int = 0
    delegated: int = 0

    def answer(self) -> RunnerAnswer:
        """Return the fields for the control socket."""
        return {
            "backend": self.backend,
            "runtime": self.runtime,
            "delegate": self.delegate,
            "threads": self.threads,
            "nodes": self.nodes,
            "delegated": self.delegated,
        }


class Score(msgspec.Struct, frozen=True, gc=False):
    """Label with a score, which is a probability if the classifier computes probabilities."""

    label: str
    score: float


class Classification(msgspec.Struct, frozen=True, tag="classification", tag_field="kind"):
    """Best labels of one window, best first, and the decision over several windows.

    `decision` is the label that passes thresholds, smoothing, minimum duration and cooldown, or None. `changed` is true
    for the window in which the decision changed.
    """

    label: str
    score: float
    scores: tuple[Score, ...]
    decision: str | None
    changed: bool

    @property
    def said(self) -> object:
        """Value equal for equal answers of the model."""
        return self.label, self.score


class Regression(msgspec.Struct, frozen=True, tag="regression", tag_field="kind"):
    """Named real values, or an array if the values are too many to have names."""

    values: dict[str, float] | list[float]

    @property
    def said(self) -> object:
        """Value equal for equal answers of the model."""
        return self.values


class Anomaly(msgspec.Struct, frozen=True, tag="anomaly", tag_field="kind"):
    """Distance of a window from the training data. `anomalous` is decided over several windows, as `changed` is."""

    score: float
    threshold: float
    anomalous: bool
    changed: bool

    @property
    def said(self) -> object:
        """Value equal for equal answers of the model."""
        return self.score


class FoundObject(msgspec.Struct, frozen=True, gc=False):
    """Object in a picture: label, score, and box in pixels of the source's picture, left, top, right and bottom.

    `zones` are the names of the zones that hold the object. `number` stays the same in consecutive windows; None
    without tracking.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    zones: tuple[str, ...] = ()
    number: int | None = None


class Detections(msgspec.Struct, frozen=True, tag="detection", tag_field="kind"):
    """Objects in a picture of `picture` pixels (width and height), best first, and the decision over several windows.

    `counts` are the objects by zone and label. `present`, the decision, are the labels decided in each zone.
    """

    objects: tuple[FoundObject, ...]
    counts: dict[str, dict[str, int]]
    present: dict[str, tuple[str, ...]]
    changed: bool
    picture: tuple[int, int]

    @property
    def said(self) -> object:
        """Value equal for equal answers of the model. Pictures without objects are never the same."""
        return [(each.label, each.score, each.box) for each in self.objects] or object()


def present_words(present: Mapping[str, Sequence[str]]) -> str:
    """Return the decision of a detection in words: the labels, with their zone if there are several zones."""
    words = [
        f"{', '.join(labels)} in {zone}" if len(present) > 1 else ", ".join(labels)
        for zone, labels in present.items()
        if labels
    ]
    return "; ".join(words) or "nothing"


class Labels(msgspec.Struct, frozen=True, tag="multilabel", tag_field="kind"):
    """Labels over their thresholds in one window, best first, and the labels decided over several windows."""

    scores: tuple[Score, ...]
    decisions: tuple[str, ...]
    changed: bool

    @property
    def said(self) -> object:
        """Value equal for equal answers of the model."""
        return self.scores


class Embedding(msgspec.Struct, frozen=True, tag="embedding", tag_field="kind"):
    """A vector, the nearest reference with its distance, and the reference decided over several windows.

    `vector` is None if not wanted; as bytes it holds float32 numbers, little-endian. `anomalous` is decided over
    several windows too.
    """

    vector: bytes | list[float] | None
    nearest: str | None = None
    distance: float | None = None
    decision: str | None = None
    anomalous: bool = False
    changed: bool | None = None

    @property
    def said(self) -> object:
        """Value equal for equal answers of the model."""
        return self.vector, self.distance


class Keypoint(msgspec.Struct, frozen=True, gc=False):
    """Named point in pixels of the source's picture."""

    name: str
    x: float
    y: float
    score: float


class Keypoints(msgspec.Struct, frozen=True, tag="keypoints", tag_field="kind"):
    """Keypoints of sufficient score. `score` is the mean of all; `visible` is decided over several windows.

    `picture` is the size of the source's picture; None for a model fed with an array.
    """

    score: float
    threshold: float
    visible: bool
    changed: bool
    points: tuple[Keypoint, ...]
    picture: tuple[int, int] | None = None

    @property
    def said(self) -> object:
        """Value equal for equal answers of the model."""
        return self.score, self.points


class Segmentation(msgspec.Struct, frozen=True, tag="segmentation", tag_field="kind"):
    """Shares of the picture by class, in percent, greatest first, and the classes decided over several windows."""

    shares: tuple[Score, ...]
    decisions: tuple[str, ...]
    changed: bool
    mask: SegmentMask

    @property
    def said(self) -> object:
        """Value equal for equal answers of the model."""
        return self.shares


class Tensor(msgspec.Struct, frozen=True, tag="tensor", tag_field="kind"):
    """Values of an output in row-major order; true and false are 1 and 0."""

    dtype: str
    shape: tuple[int, ...]
    values: list[float]

    @property
    def said(self) -> object:
        """Value equal for equal answers of the model."""
        return self.values


PictureOutcome = Detections | Keypoints | Segmentation
SingleOutcome = Classification | Regression | Anomaly | Labels | Embedding | Tensor | PictureOutcome


class Outcomes(msgspec.Struct, frozen=True, tag="several", tag_field="kind"):
    """Outcomes of several outputs of one model by name, each decided by itself."""

    outcomes: dict[str, SingleOutcome]

    @property
    def changed(self) -> bool | None:
        """Return whether a decision has changed; None if there are no decisions."""
        each = {has_changed(outcome) for outcome in self.outcomes.values()} - {None}
        return any(each) if each else None

    @property
    def said(self) -> object:
        """Value equal for equal answers of the model."""
        return tuple(outcome.said for outcome in self.outcomes.values())


Prepared = NDArray[np.float32] | None
Outcome = SingleOutcome | Outcomes


def has_changed(outcome: Outcome) -> bool | None:
    """Return whether the decision has changed with this window; None for a kind of outcome without decisions."""
    return getattr(outcome, "changed", None)


class Prediction(msgspec.Struct, frozen=True):
    """Result of one window of a pipeline.

    `start` and `time` are the arrivals of the window's first and last samples; `start` is None if the rate is unknown.
    `latency` is the time from `time` to the prediction, `inference` the time in the model, both in seconds.
    """

    pipeline: str
    model: str
    version: str
    seq: int
    start: float | None
    time: float
    latency: float
    inference: float
    outcome: Outcome


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Payload for one topic, kept in the spool until the broker has acknowledged it.

    `origin` is the name of the pipeline, and `seq` the number of the message in this pipeline; together with the boot
    id they are unique. `created` is the time of the content in CLOCK_MONOTONIC seconds; `estimated` marks a guess, for
    a message of an earlier boot without a clock. `expiry` is the lifetime in seconds (0: unlimited).
    """

    topic: str
    payload: bytes
    origin: str
    seq: int
    created: float
    qos: int = 1
    expiry: int = 0
    properties: tuple[tuple[str, str], ...] = ()
    estimated: bool = False


Arrays = Sequence[NDArray[Any]]
"""Tensors in the order of a model's inputs or outputs."""
