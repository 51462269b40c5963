"""Delivery of predictions to sinks, with statistics and failures kept here, so that sinks stay small.

A sink that never waits is called on the thread that serves the window (`Delivery`). A sink that may wait for a disk or
a pipe gets a thread and a short queue that drops the oldest (`Drain`), so that a full disk costs log lines and never a
window.
"""

import logging
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Literal, Protocol

from edged.api import EdgedError, Prediction, Sink
from edged.core.health import Status
from edged.core.types import has_changed

log = logging.getLogger("edged.sinks")


class PredictionSink(Protocol):
    """Destination of a pipeline's predictions."""

    def send(self, prediction: Prediction) -> None:
        """Take a prediction. Never raises, and waits only for the disk, if the pipeline requires this."""


class Delivery:
    """A sink with counts and health. Used by one thread at a time.

    The first prediction opens the sink, and later predictions try again after a failure: a disk may be mounted after
    the start.
    """

    def __init__(self, open_sink: Callable[[], Sink], status: Status) -> None:
        self.status = status
        self.sent = 0
        self.failed = 0
        self._open_sink = open_sink
        self._sink: Sink | None = None

    def send(self, prediction: Prediction) -> None:
        """Send, and turn any failure into a count and a state."""
        try:
            if self._sink is None:
                self._sink = self._open_sink()
            self._sink.send(prediction)
        except EdgedError as error:
            self.failed += 1
            self.status.set("degraded", error.message, error.hint)
        except Exception as error:  # a plug-in's own bug must not stop the pipeline
            self.failed += 1
            if self.status.health.state != "failed":
                log.exception("sink %s failed", self.status.name)
            self.status.set("failed", f"{type(error).__name__}: {error}", "report this to the sink's author")
        else:
            self.sent += 1
            self.status.set("running")

    def close(self) -> None:
        """Flush and let go."""
        if self._sink is not None:
            self._sink.close()


class Selection:
    """Filter for predictions with a changed decision or changed values ("changes"), or for one prediction in so many
    seconds.
    """

    def __init__(self, sink: PredictionSink, publish: Literal["changes"] | float) -> None:
        self._sink = sink
        self._publish = publish
        self._last: Prediction | None = None

    def send(self, prediction: Prediction) -> None:
        """Pass on a selected prediction."""
        if self._is_due(prediction):
            self._last = prediction
            self._sink.send(prediction)

    def _is_due(self, prediction: Prediction) -> bool:
        last, outcome = self._last, prediction.outcome
        if self._publish != "changes":
            return last is None or prediction.time - last.time >= self._publish
        changed = has_changed(outcome)
        return (last is None or outcome != last.outcome) if changed is None else changed


class Drain:
    """A delivery behind a bounded queue with a thread of its own; several pipelines may send to the queue."""

    def __init__(self, delivery: Delivery, capacity: int = 256) -> None:
        self.delivery = delivery
        self.dropped = 0
        self._capacity = capacity
        self._queue: SimpleQueue[Prediction | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=f"sink-{delivery.status.name}", daemon=True)
        self._thread.start()

    def send(self, prediction: Prediction) -> None:
        """Queue a prediction; when the queue is full the oldest goes."""
        self._queue.put(prediction)
        if self._queue.qsize() > self._capacity:
            try:
                self._queue.get_nowait()
            except Empty:
                return
            self.dropped += 1

    def close(self, timeout: float = 2.0) -> None:
        """Send queued predictions for at most `timeout` seconds, and release the sink."""
        self._queue.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (prediction := self._queue.get()) is not None:
            self.delivery.send(prediction)
        self.delivery.close()
