"""The records that leave the board as JSON: what a pipeline said, and how a part is.

They are the product's public format, the same over MQTT, in files and on the control socket; AsyncAPI's schemas are
made from these structs. A field may be added under the same schema id; changing or removing one takes a new id.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import msgspec

from edged.core.acceleration import Standing, StandingState
from edged.core.health import Health
from edged.core.health import State as HealthState
from edged.core.types import Anomaly, Classification, Prediction, Regression

RESULT_SCHEMA: Literal["edged.result/1"] = "edged.result/1"
DECISION_SCHEMA: Literal["edged.decision/1"] = "edged.decision/1"
STATE_SCHEMA: Literal["edged.state/1"] = "edged.state/1"
UPDATE_SCHEMA: Literal["edged.update/1"] = "edged.update/1"
ACCELERATOR_SCHEMA: Literal["edged.accelerator/1"] = "edged.accelerator/1"


class WallClock(Protocol):
    """Wall-clock time for monotonic moments."""

    @property
    def synchronised(self) -> bool:
        """Whether a time source vouches for the wall clock."""

    def at(self, monotonic: float) -> float:
        """Unix seconds at a CLOCK_MONOTONIC moment of this boot."""


class Result(msgspec.Struct, frozen=True, tag_field="kind", gc=False):
    """What every result says of itself.

    `id` is "<boot>:<pipeline>:<seq>" and the same each time a message is sent again, so that a subscriber can drop
    duplicates; a jump in `seq` is a window that was dropped. `start` and `time` are when the window's first and last
    samples arrived, in Unix seconds, to be believed as far as the clock is `synchronised`; a result that waits until it
    is leaves with the right times. There is no `start` where neither model nor source has a rate to reckon it by.
    `replayed` is there, and true, when the result waited for a connection to the broker: it is not news.
    `latency` is the seconds from `time` until the prediction was made, `inference` those of them the model took.
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
    """The best label, the best scores, best first, and the label that is decided over time (null for none)."""

    label: str
    score: float
    scores: dict[str, float]
    decision: str | None
    changed: bool
    start: float | msgspec.UnsetType = msgspec.UNSET
    replayed: bool = False


class RegressionResult(Result, frozen=True, tag="regression", gc=False, omit_defaults=True):
    """Named real values, or an array of them where they are more than 1,000."""

    values: dict[str, float] | list[float]
    start: float | msgspec.UnsetType = msgspec.UNSET
    replayed: bool = False


class AnomalyResult(Result, frozen=True, tag="anomaly", gc=False, omit_defaults=True):
    """How far the window is from what the model knows, and whether that is decided to be too far."""

    score: float
    threshold: float
    anomalous: bool
    changed: bool
    start: float | msgspec.UnsetType = msgspec.UNSET
    replayed: bool = False


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What a pipeline decides now, retained: replaced as it changes, empty while the pipeline does not run.

    `time` is when the last sample of the window arrived that says so, in Unix seconds, to be believed as far as the
    clock was `synchronised`.
    """

    schema: Literal["edged.decision/1"] = DECISION_SCHEMA
    device: str
    pipeline: str
    model: str
    version: str
    time: float
    synchronised: bool


class ClassificationDecision(DecisionRecord, frozen=True, kw_only=True, tag="classification"):
    """The label that is decided over time (null for none), and the best label of the window with its score."""

    decision: str | None
    label: str
    score: float


class RegressionDecision(DecisionRecord, frozen=True, kw_only=True, tag="regression"):
    """Named real values."""

    values: dict[str, float] | list[float]


class AnomalyDecision(DecisionRecord, frozen=True, kw_only=True, tag="anomaly"):
    """Whether it is decided that windows are too far from what the model knows, and how far the window is."""

    anomalous: bool
    score: float
    threshold: float


class State(msgspec.Struct, frozen=True, kw_only=True):
    """How a part is and since when (Unix seconds); `hint` says what to do about it, `details` whatever helps."""

    schema: Literal["edged.state/1"] = STATE_SCHEMA
    name: str
    state: HealthState
    reason: str
    hint: str
    since: float
    details: dict[str, Any] = {}


Phase = Literal["", "receiving", "fetching", "checking", "trial", "probation"]


class AcceleratorState(msgspec.Struct, frozen=True, kw_only=True):
    """How the `accelerator` that a model is to run on stands, and since when (Unix seconds); `hint` says what to do.

    Whenever it is not "accelerated" the model runs on the CPU. "degraded": the accelerator failed or is not there, and
    is brought back by itself; "quarantined": it failed too often, and is left alone until it is plugged in anew or
    released; "cpu": no fault, it is still being loaded or the model is to run on the CPU.
    """

    schema: Literal["edged.accelerator/1"] = ACCELERATOR_SCHEMA
    model: str
    accelerator: str
    state: StandingState
    reason: str
    hint: str
    since: float


class UpdateStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a model's update at `time` (Unix seconds). `id` names its kind for ever, `text` says it to a person.

    It is about a `version` with this `digest`, "" where it is about none or that is not known yet, which is in this
    `phase` from then on, "" for none; its last step has an `outcome`: "done" (it answers), "installed" (no pipeline
    uses the model), "refused", "failed" or "rolled_back".
    While it comes, `bytes` of `total` are here, and null otherwise.
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
"""Wall-clock times are told to a tenth of a millisecond; no clock of a board is truer."""

DURATION_DECIMALS = 6

SCORE_DIGITS = 4
"""Significant digits of a score: an 8-bit model knows 256 of them, and a float one is not surer."""

VALUE_DIGITS = 6
"""Significant digits of a value: what a 32-bit float holds, without the noise of its conversion to 64 bits."""


def worth(value: float, digits: int) -> float:
    """The value with so many significant digits."""
    return float(f"{value:.{digits}g}")


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_UNSYNCHRONISED = b'"synchronised":false'


class Recorder:
    """Makes records of predictions, for one device and one boot of it."""

    def __init__(self, device: str, boot: str, clock: WallClock) -> None:
        self._device = device
        self._boot = boot
        self._clock = clock

    def record(self, prediction: Prediction) -> ClassificationResult | RegressionResult | AnomalyResult:
        """The record of a prediction."""
        name, seq, outcome, clock = prediction.pipeline, prediction.seq, prediction.outcome, self._clock
        common = (  # by position, in the order of Result: twice as fast as by name, and every prediction comes by
            RESULT_SCHEMA,
            self._device,
            self._boot,
            name,
            prediction.model,
            prediction.version,
            seq,
            f"{self._boot}:{name}:{seq}",
            round(clock.at(prediction.time), TIME_DECIMALS),
            clock.synchronised,
            round(prediction.latency, DURATION_DECIMALS),
            round(prediction.inference, DURATION_DECIMALS),
        )
        start: float | msgspec.UnsetType = msgspec.UNSET
        if prediction.start is not None:  # by the clock's reading at the end: it may have been set within the window
            start = round(clock.at(prediction.time) - (prediction.time - prediction.start), TIME_DECIMALS)
        if isinstance(outcome, Classification):
            scores = {score.label: worth(score.score, SCORE_DIGITS) for score in outcome.scores}
            score = worth(outcome.score, SCORE_DIGITS)
            return ClassificationResult(*common, outcome.label, score, scores, outcome.decision, outcome.changed, start)
        if isinstance(outcome, Anomaly):
            score = worth(outcome.score, SCORE_DIGITS)
            return AnomalyResult(*common, score, outcome.threshold, outcome.anomalous, outcome.changed, start)
        return RegressionResult(*common, _values(outcome), start)

    def decision(self, prediction: Prediction) -> DecisionRecord:
        """The record of what is decided with a prediction."""
        outcome, clock = prediction.outcome, self._clock
        common: dict[str, Any] = {
            "device": self._device,
            "pipeline": prediction.pipeline,
            "model": prediction.model,
            "version": prediction.version,
            "time": round(clock.at(prediction.time), TIME_DECIMALS),
            "synchronised": clock.synchronised,
        }
        if isinstance(outcome, Regression):
            return RegressionDecision(**common, values=_values(outcome))
        score = worth(outcome.score, SCORE_DIGITS)
        if isinstance(outcome, Anomaly):
            return AnomalyDecision(**common, anomalous=outcome.anomalous, score=score, threshold=outcome.threshold)
        return ClassificationDecision(**common, decision=outcome.decision, label=outcome.label, score=score)

    def encode(self, prediction: Prediction) -> bytes:
        """The record of a prediction as JSON."""
        return _encode(self.record(prediction))

    def result(self, prediction: Prediction) -> dict[str, Any]:
        """The record of a prediction as plain values, for whoever writes JSON by other means."""
        plain: dict[str, Any] = msgspec.to_builtins(self.record(prediction))
        return plain


def _values(outcome: Regression) -> dict[str, float] | list[float]:
    if isinstance(outcome.values, list):
        return [worth(value, VALUE_DIGITS) for value in outcome.values]
    return {name: worth(value, VALUE_DIGITS) for name, value in outcome.values.items()}


def corrected(payload: bytes, created: float, clock: WallClock) -> bytes:
    """A result's record as JSON with the right times, if it was made before `clock` was synchronised, which it is now.

    `created` is when, in CLOCK_MONOTONIC seconds. What is no such record, or was right, stays as it is.
    """
    if _UNSYNCHRONISED not in payload:
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
    """A part's state record as JSON. `details` must be JSON's own types."""
    return _encode(
        State(
            name=name,
            state=health.state,
            reason=health.reason,
            hint=health.hint,
            since=clock.at(health.since),
            details=details or {},
        )
    )


class _Details(msgspec.Struct, frozen=True):
    boot: str = ""


class _OwnState(msgspec.Struct, frozen=True):
    details: _Details = _Details()


def state_boot(payload: bytes) -> str:
    """Which boot of a daemon said this as the daemon's own state; "" where that cannot be told."""
    try:
        return msgspec.json.decode(payload, type=_OwnState).details.boot[:64]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def encode_acceleration(model: str, accelerator: str, standing: Standing, clock: WallClock) -> bytes:
    """The record of a model's accelerator as JSON."""
    return _encode(
        AcceleratorState(
            model=model,
            accelerator=accelerator,
            state=standing.state,
            reason=standing.reason,
            hint=standing.hint,
            since=clock.at(standing.since),
        )
    )


def encode_step(step: UpdateStep) -> bytes:
    """A step of an update as JSON."""
    return _encode(step)
