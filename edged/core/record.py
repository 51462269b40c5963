"""Records that leave the board as JSON: results of pipelines, and states of parts.

The records are the product's public format, the same over MQTT, in files and on the control socket; AsyncAPI's schemas
are made from these structs. A field may be added under the same schema id; changing or removing a field takes a new id.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import msgspec

from edged.core.acceleration import AcceleratorStateName, AcceleratorStatus
from edged.core.health import Health, HealthState
from edged.core.masks import MaskForm, SegmentMask, png
from edged.core.types import (
    Anomaly,
    Classification,
    Detections,
    Embedding,
    FoundObject,
    Keypoints,
    Labels,
    Outcomes,
    Prediction,
    Regression,
    Score,
    Segmentation,
    SingleOutcome,
    Tensor,
)

if TYPE_CHECKING:
    from edged.core.answers import ResultAnswer

RESULT_SCHEMA: Literal["edged.result/1"] = "edged.result/1"
DECISION_SCHEMA: Literal["edged.decision/1"] = "edged.decision/1"
STATE_SCHEMA: Literal["edged.state/1"] = "edged.state/1"
UPDATE_SCHEMA: Literal["edged.update/1"] = "edged.update/1"
MASK_SCHEMA: Literal["edged.mask/1"] = "edged.mask/1"
ACCELERATOR_SCHEMA: Literal["edged.accelerator/1"] = "edged.accelerator/1"


class WallClock(Protocol):
    """Conversion from monotonic time to wall-clock time."""

    @property
    def synchronised(self) -> bool:
        """Return whether the wall clock is synchronised with a time source."""

    def at(self, monotonic: float) -> float:
        """Return Unix seconds for a CLOCK_MONOTONIC time of this boot."""

    def knows(self, monotonic: float) -> bool:
        """Return whether the wall-clock time for `monotonic` is trustworthy."""


class Result(msgspec.Struct, frozen=True, tag_field="kind", gc=False):
    """Common fields of every result record.

    Keys:
        schema: Version of this format.
        device: Name of the board.
        boot: Identifier of this run of the daemon.
        pipeline: Name of the pipeline.
        model: Name of the model.
        version: Version of the model that served.
        seq: Number of the window in this run. A jump means a window that was dropped, or thinned out by `publish`.
        id: `<boot>:<pipeline>:<seq>`, the same each time a message is sent again, so that a subscriber can drop
            duplicates.
        time (s): Time at which the window's last sample arrived, in Unix seconds.
        synchronised: False while the wall clock cannot be trusted.
        latency (s): Time from the last sample to the prediction.
        inference (s): Part of the latency spent in the model.
    """

    schema: Literal["edged.result/1"]
    device: str
    boot: str
    pipeline: str
    model: str
    version: str
    seq: int
    id: str
    time: float
    synchronised: bool
    latency: float
    inference: float


class ClassificationResult(Result, frozen=True, tag="classification", gc=False, omit_defaults=True):
    """Result of a classification.

    Keys:
        label: Label with the best score.
        score: Best score.
        scores: Best scores by label, best first.
        decision: Label decided over several windows; null for none.
        changed: True if the decision differs from the previous result.
        start (s): Time at which the window's first sample arrived, in Unix seconds. Missing if the rate is unknown.
        replayed: True, or missing; true if the result waited for a connection to the broker, or may have been sent
            before.
    """

    label: str
    score: float
    scores: dict[str, float]
    decision: str | None
    changed: bool
    start: float | msgspec.UnsetType = msgspec.UNSET
    replayed: bool = False


class RegressionResult(Result, frozen=True, tag="regression", gc=False, omit_defaults=True):
    """Result of a regression.

    Keys:
        values: Values by name, or an array of more than 1,000 values.
        start (s): Time at which the window's first sample arrived, in Unix seconds. Missing if the rate is unknown.
        replayed: True, or missing; true if the result waited for a connection to the broker, or may have been sent
            before.
    """

    values: dict[str, float] | list[float]
    start: float | msgspec.UnsetType = msgspec.UNSET
    replayed: bool = False


class AnomalyResult(Result, frozen=True, tag="anomaly", gc=False, omit_defaults=True):
    """Result of an anomaly detection.

    Keys:
        score: Distance of the window from the training data.
        threshold: Score from which a window is anomalous.
        anomalous: True while an anomaly is decided.
        changed: True if the decision differs from the previous result.
        start (s): Time at which the window's first sample arrived, in Unix seconds. Missing if the rate is unknown.
        replayed: True, or missing; true if the result waited for a connection to the broker, or may have been sent
            before.
    """

    score: float
    threshold: float
    anomalous: bool
    changed: bool
    start: float | msgspec.UnsetType = msgspec.UNSET
    replayed: bool = False


class ObjectRecord(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Object in a picture.

    Keys:
        label: Label of the object.
        score: Score of the label.
        box (pixels): Left, top, right and bottom in the source's picture.
        zones: Names of the zones that hold the object; "picture" where none is configured.
        number: Number of the object, the same in consecutive results. Missing without `track`.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    zones: tuple[str, ...]
    number: int | msgspec.UnsetType = msgspec.UNSET


class DetectionResult(Result, frozen=True, tag="detection", gc=False, omit_defaults=True):
    """Result of a detection of objects in a picture.

    Keys:
        objects: Objects found, best first.
        counts: Number of objects by zone and label.
        present: Labels decided over several windows, by zone.
        changed: True if `present` differs from the previous result.
        picture (pixels): Width and height of the source's picture.
        start (s): Time at which the window's first sample arrived, in Unix seconds. Missing if the rate is unknown.
        replayed: True, or missing; true if the result waited for a connection to the broker, or may have been sent
            before.
    """

    objects: tuple[ObjectRecord, ...]
    counts: dict[str, dict[str, int]]
    present: dict[str, tuple[str, ...]]
    changed: bool
    picture: tuple[int, int]
    start: float | msgspec.UnsetType = msgspec.UNSET
    replayed: bool = False


class MultilabelResult(Result, frozen=True, tag="multilabel", gc=False, omit_defaults=True):
    """Result of a classification into any number of labels.

    Keys:
        scores: Scores of the labels over their threshold, best first.
        decisions: Labels decided over several windows, in the order of the labels.
        changed: True if the decisions differ from those of the previous result.
        start (s): Time at which the window's first sample arrived, in Unix seconds. Missing if the rate is unknown.
        replayed: True, or missing; true if the result waited for a connection to the broker, or may have been sent
            before.
    """

    scores: dict[str, float]
    decisions: tuple[str, ...]
    changed: bool
    start: float | msgspec.UnsetType = msgspec.UNSET
    replayed: bool = False


class EmbeddingResult(Result, frozen=True, tag="embedding", gc=False, omit_defaults=True):
    """Result of an embedding. All keys but `vector` are missing if the model has no references.

    Keys:
        vector: Vector, as numbers, or in base64 as float32 numbers, little-endian. Missing if not wanted.
        nearest: Name of the nearest reference.
        distance: Distance to the nearest reference.
        decision: Name of the reference decided over several windows; null for none.
        anomalous: True while a vector far from all references is decided.
        changed: True if the decision differs from the previous result.
        start (s): Time at which the window's first sample arrived, in Unix seconds. Missing if the rate is unknown.
        replayed: True, or missing; true if the result waited for a connection to the broker, or may have been sent
            before.
    """

    vector: bytes | list[float] | msgspec.UnsetType = msgspec.UNSET
    nearest: str | msgspec.UnsetType = msgspec.UNSET
    distance: float | msgspec.UnsetType = msgspec.UNSET
    decision: str | msgspec.UnsetType | None = msgspec.UNSET
    anomalous: bool | msgspec.UnsetType = msgspec.UNSET
    changed: bool | msgspec.UnsetType = msgspec.UNSET
    start: float | msgspec.UnsetType = msgspec.UNSET
    replayed: bool = False


class KeypointsResult(Result, frozen=True, tag="keypoints", gc=False, omit_defaults=True):
    """Result of a search for keypoints.

    Keys:
        keypoints: Position x and y in pixels of the source's picture, and score, by name; keypoints of sufficient score
            alone.
        score: Mean of the scores of all keypoints.
        threshold: Mean from which the whole is visible.
        visible: True while the whole is decided to be in the picture.
        changed: True if the decision differs from the previous result.
        picture (pixels): Width and height of the source's picture. Missing for a model fed with an array: then the
            positions are in the model's picture.
        start (s): Time at which the window's first sample arrived, in Unix seconds. Missing if the rate is unknown.
        replayed: True, or missing; true if the result waited for a connection to the broker, or may have been sent
            before.
    """

    keypoints: dict[str, tuple[float, float, float]]
    score: float
    threshold: float
    visible: bool
    changed: bool
    picture: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET
    start: float | msgspec.UnsetType = msgspec.UNSET
    replayed: bool = False


class SegmentationResult(Result, frozen=True, tag="segmentation", gc=False, omit_defaults=True):
    """Result of a segmentation. The mask has a topic of its own.

    Keys:
        shares (percent): Share of the source's picture by class, greatest first; padding and masked parts are left out.
        decisions: Classes decided over several windows, in the order of the labels.
        changed: True if the decisions differ from those of the previous result.
        picture (pixels): Width and height of the source's picture. Missing for a model fed with an array.
        start (s): Time at which the window's first sample arrived, in Unix seconds. Missing if the rate is unknown.
        replayed: True, or missing; true if the result waited for a connection to the broker, or may have been sent
            before.
    """

    shares: dict[str, float]
    decisions: tuple[str, ...]
    changed: bool
    picture: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET
    start: float | msgspec.UnsetType = msgspec.UNSET
    replayed: bool = False


class TensorResult(Result, frozen=True, tag="tensor", gc=False, omit_defaults=True):
    """Result of a model whose output is passed on as an array.

    Keys:
        dtype: Type of the values.
        shape: Shape of the array.
        values: Values in row-major order; true and false are 1 and 0.
        start (s): Time at which the window's first sample arrived, in Unix seconds. Missing if the rate is unknown.
        replayed: True, or missing; true if the result waited for a connection to the broker, or may have been sent
            before.
    """

    dtype: str
    shape: tuple[int, ...]
    values: list[float]
    start: float | msgspec.UnsetType = msgspec.UNSET
    replayed: bool = False


class SeveralResult(Result, frozen=True, tag="several", gc=False, omit_defaults=True):
    """Results of several outputs of one model.

    Keys:
        outcomes: Results by name, each with the keys of the results of its kind, without the keys common to all.
        changed: True if a decision differs from the previous result. Missing if there are no decisions.
        start (s): Time at which the window's first sample arrived, in Unix seconds. Missing if the rate is unknown.
        replayed: True, or missing; true if the result waited for a connection to the broker, or may have been sent
            before.
    """

    outcomes: dict[str, dict[str, Any]]
    changed: bool | msgspec.UnsetType = msgspec.UNSET
    start: float | msgspec.UnsetType = msgspec.UNSET
    replayed: bool = False


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Common fields of every decision record: the present decision of a pipeline, retained.

    The record is replaced as the decision changes, and empty while the pipeline does not run.

    Keys:
        schema: Version of this format.
        device: Name of the board.
        pipeline: Name of the pipeline.
        model: Name of the model.
        version: Version of the model that serves.
        time (s): Time at which the last sample of the deciding window arrived, in Unix seconds.
        synchronised: False if the wall clock could not be trusted.
    """

    schema: Literal["edged.decision/1"] = DECISION_SCHEMA
    device: str
    pipeline: str
    model: str
    version: str
    time: float
    synchronised: bool


class ClassificationDecision(DecisionRecord, frozen=True, kw_only=True, tag="classification"):
    """Decision of a classification.

    Keys:
        decision: Label decided over several windows; null for none.
        label: Label with the best score in the window.
        score: Best score.
    """

    decision: str | None
    label: str
    score: float


class RegressionDecision(DecisionRecord, frozen=True, kw_only=True, tag="regression"):
    """Newest values of a regression.

    Keys:
        values: Values by name, or an array of more than 1,000 values.
    """

    values: dict[str, float] | list[float]


class AnomalyDecision(DecisionRecord, frozen=True, kw_only=True, tag="anomaly"):
    """Decision of an anomaly detection.

    Keys:
        anomalous: True while an anomaly is decided.
        score: Distance of the window from the training data.
        threshold: Score from which a window is anomalous.
    """

    anomalous: bool
    score: float
    threshold: float


class DetectionDecision(DecisionRecord, frozen=True, kw_only=True, tag="detection"):
    """Decision of a detection of objects.

    Keys:
        present: Labels decided over several windows, by zone.
        counts: Number of objects in the window, by zone and label.
    """

    present: dict[str, tuple[str, ...]]
    counts: dict[str, dict[str, int]]


class MultilabelDecision(DecisionRecord, frozen=True, kw_only=True, tag="multilabel"):
    """Decision of a classification into any number of labels.

    Keys:
        decisions: Labels decided over several windows, in the order of the labels.
        scores: Scores of the labels over their threshold in the window, best first.
    """

    decisions: tuple[str, ...]
    scores: dict[str, float]


class EmbeddingDecision(DecisionRecord, frozen=True, kw_only=True, tag="embedding"):
    """Decision of an embedding, or the vector if the model has no references.

    Keys:
        decision: Name of the reference decided over several windows; null for none.
        anomalous: True while a vector far from all references is decided.
        nearest: Name of the nearest reference in the window.
        distance: Distance to the nearest reference.
        vector: Vector, as numbers, or in base64 as float32 numbers, little-endian; of a model without references.
    """

    decision: str | msgspec.UnsetType | None = msgspec.UNSET
    anomalous: bool | msgspec.UnsetType = msgspec.UNSET
    nearest: str | msgspec.UnsetType = msgspec.UNSET
    distance: float | msgspec.UnsetType = msgspec.UNSET
    vector: bytes | list[float] | msgspec.UnsetType = msgspec.UNSET


class KeypointsDecision(DecisionRecord, frozen=True, kw_only=True, tag="keypoints"):
    """Decision of a search for keypoints.

    Keys:
        visible: True while the whole is decided to be in the picture.
        score: Mean of the scores of all keypoints.
        threshold: Mean from which the whole is visible.
        keypoints: Position x and y in pixels of the source's picture, and score, by name.
        picture (pixels): Width and height of the source's picture. Missing for a model fed with an array.
    """

    visible: bool
    score: float
    threshold: float
    keypoints: dict[str, tuple[float, float, float]]
    picture: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET


class SegmentationDecision(DecisionRecord, frozen=True, kw_only=True, tag="segmentation"):
    """Decision of a segmentation.

    Keys:
        decisions: Classes decided over several windows, in the order of the labels.
        shares (percent): Share of the source's picture by class, greatest first.
    """

    decisions: tuple[str, ...]
    shares: dict[str, float]


class TensorDecision(DecisionRecord, frozen=True, kw_only=True, tag="tensor"):
    """Newest array of a model whose output is passed on.

    Keys:
        dtype: Type of the values.
        shape: Shape of the array.
        values: Values in row-major order; true and false are 1 and 0.
    """

    dtype: str
    shape: tuple[int, ...]
    values: list[float]


class SeveralDecision(DecisionRecord, frozen=True, kw_only=True, tag="several"):
    """Decisions of several outputs of one model.

    Keys:
        outcomes: Decisions by name, each with the keys of the decisions of its kind, without the keys common to all.
    """

    outcomes: dict[str, dict[str, Any]]


class MaskRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Mask of a segmentation, published on request. A mask in PNG has this record as text, under the keyword "edged".

    Keys:
        schema: Version of this format.
        device: Name of the board.
        pipeline: Name of the pipeline.
        outcome: Name of the outcome, if the model has several.
        model: Name of the model.
        version: Version of the model.
        id: `id` of the result of the same window.
        time (s): Time at which the window's last sample arrived, in Unix seconds.
        synchronised: False while the wall clock cannot be trusted.
        size (pixels): Numbers of rows and columns of the mask.
        box (pixels): Place of the mask in the source's picture: left, top, right and bottom. Missing for a model fed
            with an array.
        picture (pixels): Width and height of the source's picture. Missing for a model fed with an array.
        counts: Runs of each class in the mask, by label: lengths of alternating runs outside and inside, column by
            column from the top left, beginning outside, as in COCO's uncompressed RLE. Missing in a PNG.
        labels: Labels of the pixel values 0 and on of a PNG; 255 stands for no class, or a masked part of the picture.
    """

    schema: Literal["edged.mask/1"]
    device: str
    pipeline: str
    outcome: str = ""
    model: str
    version: str
    id: str
    time: float
    synchronised: bool
    size: tuple[int, int]
    box: tuple[float, ...] | msgspec.UnsetType = msgspec.UNSET
    picture: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET
    counts: dict[str, list[int]] | msgspec.UnsetType = msgspec.UNSET
    labels: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


class State(msgspec.Struct, frozen=True, kw_only=True):
    """State of the daemon, a source, a model or a pipeline.

    Keys:
        schema: Version of this format.
        name: Name of the part.
        state: State of the part.
        reason: Reason of the state, for people.
        hint: Remedy, for people.
        since (s): Time since which the part is in this state, in Unix seconds.
        details: Further figures, which differ from part to part.
    """

    schema: Literal["edged.state/1"] = STATE_SCHEMA
    name: str
    state: HealthState
    reason: str
    hint: str
    since: float
    details: dict[str, Any] = {}


Phase = Literal["", "receiving", "fetching", "checking", "trial", "probation"]


class AcceleratorState(msgspec.Struct, frozen=True, kw_only=True):
    """State of the accelerator of a model. In every state but "accelerated" the model runs on the CPU.

    "degraded": the accelerator failed or is missing, and is tried again. "quarantined": the accelerator failed too
    often, and is left alone until plugged in again or released. "cpu": no fault; the accelerator is being loaded, or
    the model is meant to run on the CPU.

    Keys:
        schema: Version of this format.
        model: Name of the model.
        accelerator: Name of the accelerator.
        state: State of the accelerator.
        reason: Reason of the state, for people.
        hint: Remedy, for people.
        since (s): Time since which the accelerator is in this state, in Unix seconds.
    """

    schema: Literal["edged.accelerator/1"] = ACCELERATOR_SCHEMA
    model: str
    accelerator: str
    state: AcceleratorStateName
    reason: str
    hint: str
    since: float


class UpdateStep(msgspec.Struct, frozen=True, kw_only=True):
    """Last step of the last update of a model.

    Keys:
        schema: Version of this format.
        model: Name of the model.
        id: Kind of the step, a permanent identifier.
        text: Description of the step, for people.
        time (s): Time of the step, in Unix seconds.
        version: Version concerned; "" for none, or while unknown.
        digest: SHA-256 of the version's manifest; "" for none, or while unknown.
        phase: Phase of the version from this step on; "" for none.
        outcome: End of the update, in its last step: "done" (the version answers), "installed" (no pipeline uses the
            model), "refused", "failed" (the version does not work here) or "rolled_back".
        bytes (bytes): Bytes received while the version arrives; null otherwise.
        total (bytes): Bytes of the whole, while the version arrives; null otherwise.
    """

    schema: Literal["edged.update/1"] = UPDATE_SCHEMA
    model: str
    id: str
    text: str
    time: float
    version: str = ""
    digest: str = ""
    phase: Phase = ""
    outcome: Literal["", "done", "installed", "refused", "failed", "rolled_back"] = ""
    bytes: int | None = None
    total: int | None = None


TIME_DECIMALS = 4
"""Wall-clock times are given to a tenth of a millisecond; no clock of a board is more accurate."""

DURATION_DECIMALS = 6

PIXEL_DECIMALS = 1

SCORE = "%.4g"
"""Format with 4 significant digits: an 8-bit model has 256 different scores, and a float model is no more certain."""

VALUE = "%.6g"
"""Format with 6 significant digits: the precision of a 32-bit float, without the noise of conversion to 64 bits."""


def worth(value: float, digits: str) -> float:
    """Return a value rounded to the significant digits of a format. An f-string with variable digits takes longer."""
    return float(digits % value)


@lru_cache(1024)
def _score(value: float) -> float:
    """Return a score as given in records. Scores of 8-bit models repeat, and a look-up takes a sixth of the time."""
    return worth(value, SCORE)


T = TypeVar("T")
Common = tuple[Literal["edged.result/1"], str, str, str, str, str, int, str, float, bool, float, float]
"""The fields of `Result`, in their order."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_UNSYNCHRONISED = b'"synchronised":false'


class Recorder:
    """Maker of records from predictions, for one device and one run of the daemon."""

    def __init__(self, device: str, boot: str, clock: WallClock) -> None:
        self._device = device
        self._boot = boot
        self._clock = clock

    def record(self, prediction: Prediction) -> Result:
        """Return the record of a prediction."""
        name, seq, outcome = prediction.pipeline, prediction.seq, prediction.outcome
        arrived = self._clock.at(prediction.time)
        common = (  # by position, in the order of Result: twice as fast as by name, for every prediction
            RESULT_SCHEMA,
            self._device,
            self._boot,
            name,
            prediction.model,
            prediction.version,
            seq,
            f"{self._boot}:{name}:{seq}",
            round(arrived, TIME_DECIMALS),
            self._clock.synchronised,
            round(prediction.latency, DURATION_DECIMALS),
            round(prediction.inference, DURATION_DECIMALS),
        )
        start: float | msgspec.UnsetType = msgspec.UNSET
        if prediction.start is not None:  # by the offset at the end: the clock may have been set within the window
            start = round(arrived - (prediction.time - prediction.start), TIME_DECIMALS)
        if isinstance(outcome, Outcomes):
            parts = {name: _result(common, part, start) for name, part in outcome.outcomes.items()}
            return SeveralResult(*common, _without(Result, parts), _or_unset(outcome.changed), start)
        return _result(common, outcome, start)

    def decision(self, prediction: Prediction) -> DecisionRecord:
        """Return the record of the decision in a prediction."""
        outcome, clock = prediction.outcome, self._clock
        common: dict[str, Any] = {
            "device": self._device,
            "pipeline": prediction.pipeline,
            "model": prediction.model,
            "version": prediction.version,
            "time": round(clock.at(prediction.time), TIME_DECIMALS),
            "synchronised": clock.synchronised,
        }
        if isinstance(outcome, Outcomes):
            parts = {name: _decision(common, part) for name, part in outcome.outcomes.items()}
            return SeveralDecision(**common, outcomes=_without(DecisionRecord, parts))
        return _decision(common, outcome)

    def mask(self, prediction: Prediction, outcome: str, mask: SegmentMask, form: MaskForm) -> bytes:
        """Return a mask of a prediction as JSON or PNG. `outcome` names one of several."""
        clock, box = self._clock, mask.box
        record = MaskRecord(
            schema=MASK_SCHEMA,
            device=self._device,
            pipeline=prediction.pipeline,
            outcome=outcome,
            model=prediction.model,
            version=prediction.version,
            id=f"{self._boot}:{prediction.pipeline}:{prediction.seq}",
            time=round(clock.at(prediction.time), TIME_DECIMALS),
            synchronised=clock.synchronised,
            size=mask.size,
            box=msgspec.UNSET if box is None else _box(box),
            picture=_or_unset(mask.picture),
            counts=mask.runs() if form == "rle" else msgspec.UNSET,
            labels=mask.labels if form == "png" else msgspec.UNSET,
        )
        return png(mask.classes, _encode(record)) if form == "png" else _encode(record)

    def encode(self, prediction: Prediction) -> bytes:
        """Return the record of a prediction as JSON."""
        return _encode(self.record(prediction))

    def result(self, prediction: Prediction) -> ResultAnswer:
        """Return the record of a prediction as plain values, for other encoders of JSON."""
        plain: ResultAnswer = msgspec.to_builtins(self.record(prediction))
        return plain


def _result(common: Common, outcome: SingleOutcome, start: float | msgspec.UnsetType) -> Result:
    if isinstance(outcome, Classification):  # first, and without a match: most results are of this kind
        score = _score(outcome.score)
        scores = _scores(outcome.scores)
        return ClassificationResult(*common, outcome.label, score, scores, outcome.decision, outcome.changed, start)
    match outcome:
        case Anomaly():
            score = _score(outcome.score)
            return AnomalyResult(*common, score, outcome.threshold, outcome.anomalous, outcome.changed, start)
        case Regression():
            return RegressionResult(*common, _values(outcome), start)
        case Detections():
            objects = tuple(map(_object, outcome.objects))
            counts, present = outcome.counts, outcome.present
            return DetectionResult(*common, objects, counts, present, outcome.changed, outcome.picture, start)
        case Labels():
            scores = _scores(outcome.scores)
            return MultilabelResult(*common, scores, outcome.decisions, outcome.changed, start)
        case Embedding(nearest=None):
            return EmbeddingResult(*common, vector=_vector(outcome), start=start)
        case Embedding():
            return EmbeddingResult(
                *common,
                vector=_vector(outcome),
                nearest=_or_unset(outcome.nearest),
                distance=_distance(outcome),
                decision=outcome.decision,
                anomalous=outcome.anomalous,
                changed=_or_unset(outcome.changed),
                start=start,
            )
        case Keypoints():
            return KeypointsResult(
                *common,
                keypoints=_points(outcome),
                score=_score(outcome.score),
                threshold=outcome.threshold,
                visible=outcome.visible,
                changed=outcome.changed,
                picture=_or_unset(outcome.picture),
                start=start,
            )
        case Segmentation():
            shares, picture = _scores(outcome.shares), _or_unset(outcome.mask.picture)
            return SegmentationResult(*common, shares, outcome.decisions, outcome.changed, picture, start)
        case Tensor():
            return TensorResult(*common, outcome.dtype, outcome.shape, _tensor(outcome), start)


def _decision(common: dict[str, Any], outcome: SingleOutcome) -> DecisionRecord:
    match outcome:
        case Classification():
            score = _score(outcome.score)
            return ClassificationDecision(**common, decision=outcome.decision, label=outcome.label, score=score)
        case Anomaly():
            score = _score(outcome.score)
            return AnomalyDecision(**common, anomalous=outcome.anomalous, score=score, threshold=outcome.threshold)
        case Regression():
            return RegressionDecision(**common, values=_values(outcome))
        case Detections():
            return DetectionDecision(**common, present=outcome.present, counts=outcome.counts)
        case Labels():
            return MultilabelDecision(**common, decisions=outcome.decisions, scores=_scores(outcome.scores))
        case Embedding(nearest=None):
            return EmbeddingDecision(**common, vector=_vector(outcome))
        case Embedding():
            return EmbeddingDecision(
                **common,
                decision=outcome.decision,
                anomalous=outcome.anomalous,
                nearest=_or_unset(outcome.nearest),
                distance=_distance(outcome),
            )
        case Keypoints():
            return KeypointsDecision(
                **common,
                visible=outcome.visible,
                score=_score(outcome.score),
                threshold=outcome.threshold,
                keypoints=_points(outcome),
                picture=_or_unset(outcome.picture),
            )
        case Segmentation():
            return SegmentationDecision(**common, decisions=outcome.decisions, shares=_scores(outcome.shares))
        case Tensor():
            return TensorDecision(**common, dtype=outcome.dtype, shape=outcome.shape, values=_tensor(outcome))


def _without(base: type[msgspec.Struct], records: Mapping[str, msgspec.Struct]) -> dict[str, dict[str, Any]]:
    """Return the fields of records but those of the base class, and but the start of the window."""
    common = {*base.__struct_fields__, "start"}
    return {
        name: {key: value for key, value in msgspec.to_builtins(record).items() if key not in common}
        for name, record in records.items()
    }


def _or_unset(value: T | None) -> T | msgspec.UnsetType:
    return msgspec.UNSET if value is None else value


def _scores(scores: tuple[Score, ...]) -> dict[str, float]:
    return {score.label: _score(score.score) for score in scores}


def _vector(outcome: Embedding) -> bytes | list[float] | msgspec.UnsetType:
    if isinstance(outcome.vector, list):
        return [worth(value, VALUE) for value in outcome.vector]
    return _or_unset(outcome.vector)


def _distance(outcome: Embedding) -> float | msgspec.UnsetType:
    return msgspec.UNSET if outcome.distance is None else worth(outcome.distance, SCORE)


def _points(outcome: Keypoints) -> dict[str, tuple[float, float, float]]:
    return {
        point.name: (round(point.x, PIXEL_DECIMALS), round(point.y, PIXEL_DECIMALS), worth(point.score, SCORE))
        for point in outcome.points
    }


def _tensor(outcome: Tensor) -> list[float]:
    return [worth(value, VALUE) for value in outcome.values] if outcome.dtype.startswith("float") else outcome.values


def _object(found: FoundObject) -> ObjectRecord:
    return ObjectRecord(found.label, _score(found.score), _box(found.box), found.zones, _or_unset(found.number))


def _box(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    return (
        round(left, PIXEL_DECIMALS),
        round(top, PIXEL_DECIMALS),
        round(right, PIXEL_DECIMALS),
        round(bottom, PIXEL_DECIMALS),
    )


def _values(outcome: Regression) -> dict[str, float] | list[float]:
    if isinstance(outcome.values, list):
        return [worth(value, VALUE) for value in outcome.values]
    return {name: worth(value, VALUE) for name, value in outcome.values.items()}


def corrected(payload: bytes, created: float, clock: WallClock) -> bytes:
    """Return a result as JSON with corrected times, if `clock` has become synchronised since the result was made.

    `created` is a CLOCK_MONOTONIC time. Other payloads, and results with correct times, are returned unchanged.
    """
    if _UNSYNCHRONISED not in payload or not clock.knows(created):
        return payload
    try:
        record = _decode(payload)
    except msgspec.DecodeError:
        return payload
    match record:
        case {"synchronised": False, "time": float(time), "latency": float(latency)}:
            right = round(clock.at(created - latency), TIME_DECIMALS)
            moved = {}
            if isinstance(record.get("start"), float):
                moved["start"] = round(right - (time - record["start"]), TIME_DECIMALS)
            return _encode({**record, "time": right, **moved, "synchronised": True})
    return payload


def encode_state(name: str, health: Health, clock: WallClock, details: dict[str, Any] | None = None) -> bytes:
    """Return the state record of a part as JSON. `details` must hold JSON types only."""
    return _encode(
        State(
            name=name,
            state=health.state,
            reason=health.reason,
            hint=health.hint,
            since=round(clock.at(health.since), TIME_DECIMALS),
            details=details or {},
        )
    )


class _Details(msgspec.Struct, frozen=True):
    boot: str = ""


class _OwnState(msgspec.Struct, frozen=True):
    details: _Details = _Details()


def state_boot(payload: bytes) -> str:
    """Return the run of the daemon that published this state of the daemon, or "" if unknown."""
    try:
        return msgspec.json.decode(payload, type=_OwnState).details.boot[:64]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def encode_acceleration(model: str, accelerator: str, status: AcceleratorStatus, clock: WallClock) -> bytes:
    """Return the record of a model's accelerator as JSON."""
    return _encode(
        AcceleratorState(
            model=model,
            accelerator=accelerator,
            state=status.state,
            reason=status.reason,
            hint=status.hint,
            since=round(clock.at(status.since), TIME_DECIMALS),
        )
    )


def encode_step(step: UpdateStep) -> bytes:
    """Return a step of an update as JSON."""
    return _encode(step)
