"""The pipeline of edged in this process, from a window to its message in the outbox."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from threading import Event

import numpy as np
from numpy.typing import NDArray

from edged.api import Message, Outbox, SinkContext
from edged.backends.tflite import TfliteBackend
from edged.control.clock import KernelClock
from edged.core.health import Health, Status
from edged.core.postprocess import Postprocessor
from edged.core.preprocess import Preprocessor
from edged.core.topics import Topics
from edged.flow.delivery import Delivery
from edged.flow.pipeline import Pipeline
from edged.flow.slot import RunCounts, Served
from edged.models.bundle import Bundle
from edged.sinks.mqtt import MqttSink

RECORDING = Path(__file__).parents[1] / "demo" / "recording.csv"
CHANNELS = ("ax", "ay", "az", "gx", "gy", "gz")


class Counter:
    """Outbox that counts messages and drops them: sending is the cost of the publisher."""

    def __init__(self) -> None:
        self._awaited = 0
        self._arrived = Event()

    def put(self, message: Message) -> None:
        """Count the message."""
        self._awaited -= 1
        if not self._awaited:
            self._arrived.set()

    def expect(self, messages: int) -> None:
        """Start to count up to `count`."""
        self._arrived.clear()
        self._awaited = messages

    def wait(self) -> None:
        """Wait for the last message. Raises TimeoutError after a minute."""
        if not self._arrived.wait(60):
            raise TimeoutError(f"{self._awaited} messages never came")


def sink_context(outbox: Outbox) -> SinkContext:
    """Return the surroundings of a sink into the outbox."""
    topics = Topics("edged", "bench")
    return SinkContext(device="bench", boot="0123456789ab", topics=topics, outbox=outbox, clock=KernelClock())


def pipeline(bundle: Bundle, outbox: Counter, capacity: int) -> Pipeline:
    """Return a pipeline into the outbox, without a model. The reader waits instead of dropping a window."""
    return Pipeline(
        "bench",
        bundle.manifest.window,
        columns=None,
        patient=True,
        capacity=capacity,
        sinks=[Delivery(lambda: MqttSink().open(sink_context(outbox)), _status("sink"))],
        status=_status("pipeline"),
        clock=time.monotonic,
    )


def served(bundle: Bundle) -> Served:
    """Return the model of a bundle, ready to serve."""
    manifest = bundle.manifest
    runner = TfliteBackend().load(bundle.model)
    return Served(manifest, runner, Preprocessor(manifest), Postprocessor(manifest, None), RunCounts())


def recorded() -> NDArray[np.float32]:
    """Return the recording of the demo: samples `(n, 6)` of real motion."""
    with RECORDING.open() as file:
        return np.array([[row[channel] for channel in CHANNELS] for row in csv.DictReader(file)], np.float32)


def _status(name: str) -> Status:
    def refuse_trouble(name: str, health: Health) -> None:
        if health.state not in ("running", "stopped"):
            raise RuntimeError(f"the {name} is {health.state}: {health.reason}")

    return Status(name, time.monotonic, refuse_trouble)
