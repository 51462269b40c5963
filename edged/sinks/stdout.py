"""Predictions to standard output: for trying things out, for pipes, and for the journal."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from itertools import islice
from typing import Literal

from edged.api import DeviceError, Outcome, Prediction, Recorder, Sink, SinkConfig, SinkContext
from edged.core.errors import some
from edged.core.types import (
    Anomaly,
    Classification,
    Detections,
    Embedding,
    Keypoints,
    Labels,
    Outcomes,
    Regression,
    Segmentation,
    Tensor,
    present_words,
)


class StdoutSink(SinkConfig, frozen=True, kw_only=True):
    """Options of [sinks.X] with kind = "stdout": one line for each prediction.

    Keys:
        format: Form of the lines: "text" for people, "json" as over MQTT.
    """

    format: Literal["text", "json"] = "text"

    def open(self, context: SinkContext) -> Sink:
        """Standard output is open already."""
        return _Sink(self.format, context)


class _Sink:
    def __init__(self, format: str, context: SinkContext) -> None:  # noqa: A002
        self._clock = context.clock
        recorder = Recorder(context.device, context.boot, context.clock)
        self._line = self._text if format == "text" else recorder.encode

    def send(self, prediction: Prediction) -> None:
        try:
            _write(self._line(prediction) + b"\n")
        except OSError as error:
            raise DeviceError(
                f"standard output cannot be written: {error.strerror}",
                hint="check the reader of standard output",
                retryable=True,
            ) from error

    def close(self) -> None:
        pass

    def _text(self, prediction: Prediction) -> bytes:
        moment = datetime.fromtimestamp(self._clock.at(prediction.time), UTC)
        about = "" if self._clock.synchronised else "~"
        time = f"{about}{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"
        line = words(prediction.outcome)
        return f"{time} {prediction.pipeline} {line} ({prediction.latency * 1000:.1f} ms)".encode()


def _write(data: bytes) -> None:
    """Write directly to the descriptor: the buffer of a stream would keep unwritten data, and grow."""
    while data:
        data = data[os.write(1, data) :]


def words(outcome: Outcome) -> str:
    """Return an outcome on one line, for people."""
    if isinstance(outcome, Outcomes):
        return "; ".join(f"{name}: {words(part)}" for name, part in outcome.outcomes.items())
    turned = "none"
    match outcome:
        case Classification():
            turned = outcome.decision or "none"
            line = f"{outcome.label} {outcome.score:.2f}"
        case Anomaly():
            verdict = "anomalous" if outcome.anomalous else "normal"
            return f"{verdict} {outcome.score:.4g} (threshold {outcome.threshold:.4g})"
        case Detections(objects=found):
            turned = present_words(outcome.present)
            line = some([f"{each.label} {each.score:.2f}" for each in found], 10) or "nothing"
        case Regression(values=values):
            if isinstance(values, list):
                return f"{len(values)} values"
            return some(
                [f"{name}={value:.6g}" for name, value in islice(values.items(), 10)], 10, of=len(values), by=" "
            )
        case Labels():
            turned = _listed(outcome.decisions)
            line = some([f"{each.label} {each.score:.2f}" for each in outcome.scores], 10) or "no label"
        case Embedding(nearest=None):
            return "vector"
        case Embedding():
            turned = "anomalous" if outcome.anomalous else outcome.decision or "none"
            line = f"{outcome.nearest} at {outcome.distance:.4g}"
        case Keypoints():
            verdict = "present" if outcome.visible else "absent"
            return f"{verdict} {outcome.score:.2f}, {len(outcome.points)} keypoints"
        case Segmentation():
            turned = _listed(outcome.decisions)
            line = some([f"{each.label} {each.score:.1f}%" for each in outcome.shares], 10) or "no class"
        case Tensor():
            return f"{outcome.dtype} {list(outcome.shape)}"
    return f"{line}, now {turned}" if outcome.changed else line


def _listed(labels: tuple[str, ...]) -> str:
    return some(labels, 10) or "none"
