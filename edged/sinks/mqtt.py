"""Predictions to the broker."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from edged.api import Message, Prediction, Recorder, Sink, SinkConfig, SinkContext


class MqttSink(SinkConfig, frozen=True, kw_only=True):
    """Options of [sinks.X] with kind = "mqtt": one message for each prediction, never retained.

    Keys:
        qos: MQTT quality of service. 1 repeats a message until the broker acknowledges it; 0 sends it once.
        expiry (s): Time after which a result is worthless: the spool drops it, and a broker with MQTT 5 too; 0 for
            never.
    """

    blocking: ClassVar[bool] = False

    qos: Literal[0, 1] = 1
    expiry: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)] = 0

    def open(self, context: SinkContext) -> Sink:
        """Return a sink at no cost and without failure: messages wait in the outbox for a broker."""
        return _Sink(self, context)


class _Sink:
    def __init__(self, options: MqttSink, context: SinkContext) -> None:
        self._options = options
        self._context = context
        self._encode = Recorder(context.device, context.boot, context.clock).encode
        self._topics: dict[str, str] = {}

    def send(self, prediction: Prediction) -> None:
        name, options = prediction.pipeline, self._options
        topic = self._topics.get(name) or self._topics.setdefault(name, self._context.topics.result(name))
        self._context.outbox.put(
            Message(
                topic=topic,
                payload=self._encode(prediction),
                origin=name,
                seq=prediction.seq,
                created=prediction.time + prediction.latency,
                qos=options.qos,
                expiry=options.expiry,
                properties=(
                    ("schema", "edged.result/1"),
                    ("id", f"{self._context.boot}:{name}:{prediction.seq}"),
                    ("model", prediction.model),
                    ("version", prediction.version),
                ),
            )
        )

    def close(self) -> None:
        pass
