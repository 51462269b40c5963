"""Predictions to standard output: for trying things out, for pipes, and for the journal."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from itertools import islice
from typing import Literal

from edged.api import DeviceError, Outcome, Prediction, Recorder, Sink, SinkConfig, SinkContext
from edged.core.errors import some
from edged.core.types import Anomaly, Classification, Detections, Regression, present_words


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
        words = _words(prediction.outcome)
        return f"{time} {prediction.pipeline} {words} ({prediction.latency * 1000:.1f} ms)".encode()


def _write(data: bytes) -> None:
    """Write directly to the descriptor: the buffer of a stream would keep unwritten data, and grow."""
    while data:
        data = data[os.write(1, data) :]


def _words(outcome: Outcome) -> str:
    match outcome:
        case Classification():
            turned = f", now {outcome.decision or 'none'}" if outcome.changed else ""
            return f"{outcome.label} {outcome.score:.2f}{turned}"
        case Anomaly():
            verdict = "anomalous" if outcome.anomalous else "normal"
            return f"{verdict} {outcome.score:.4g} (threshold {outcome.threshold:.4g})"
        case Detections(objects=found):
            turned = f", now {present_words(outcome.present)}" if outcome.changed else ""
            return f"{some([f'{each.label} {each.score:.2f}' for each in found], 10) or 'nothing'}{turned}"
        case Regression(values=values):
            if isinstance(values, list):
                return f"{len(values)} values"
            shown = [f"{name}={value:.6g}" for name, value in islice(values.items(), 10)]
            return " ".join([*shown, *([f"and {len(values) - 10} more"] if len(values) > 10 else [])])
