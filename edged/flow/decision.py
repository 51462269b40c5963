"""Current decision of a pipeline, as a retained message that is replaced: the present, while results are history.

Results are queued until the broker has them, so after an outage hundreds of old results arrive at once. A listener that
shows the present state, like Home Assistant, subscribes to this topic instead: it changes at most every so many
seconds, is never replayed, and is empty while the pipeline does not run and therefore has no decision.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from threading import Lock

import msgspec

from edged.api import Prediction
from edged.core.record import DecisionRecord, Recorder
from edged.core.types import has_changed
from edged.flow.dependent import DependentStatus


class LatestDecision:
    """Publisher of a pipeline's decision after each change, at most every `seconds`.

    A changed decision waits only for `seconds` since the last change, and not for scores and values published in
    between. The thread that serves a window calls `send`; another thread calls `flush` at intervals, for a pipeline
    that falls silent.
    """

    def __init__(
        self,
        recorder: Recorder,
        status: DependentStatus,
        publish: Callable[[bytes], None],
        *,
        seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._recorder = recorder
        self._status = status
        self._publish = publish
        self._seconds = seconds
        self._clock = clock
        self._lock = Lock()
        self._waiting: Prediction | None = None
        self._turned = False
        self._published: DecisionRecord | None = None
        self._source: Prediction | None = None
        self._next = -inf
        self._next_turn = -inf

    def send(self, prediction: Prediction) -> None:
        """Record the current decision, and publish it unless another was published just now."""
        self._turned = self._turned or bool(has_changed(prediction.outcome))
        self._waiting = prediction
        if self._clock() >= (self._next_turn if self._turned else self._next):
            self.flush()

    def flush(self) -> None:
        """Publish a waiting decision if due."""
        with self._lock:
            now = self._clock()
            prediction, turned = self._waiting, self._turned
            if prediction is None or now < (self._next_turn if turned else self._next) or not self._status.live:
                return
            self._waiting, self._turned = None, False
            self._next = now + self._seconds
            self._next_turn = self._next if turned else self._next_turn
            record = self._recorder.decision(prediction)
            if self._published is None or record != _at(self._published, record):
                self._publish_record(prediction, record)

    def restamp(self) -> None:
        """Publish the same decision again, with the time by a clock that was set since."""
        with self._lock:
            if self._source is not None:
                self._publish_record(self._source, self._recorder.decision(self._source))

    def withdraw(self) -> None:
        """Publish an empty message: the pipeline does not run."""
        with self._lock:
            self._waiting = self._source = self._published = None
            self._turned = False
            self._next = self._next_turn = -inf
            self._publish(b"")

    def _publish_record(self, prediction: Prediction, record: DecisionRecord) -> None:
        self._source, self._published = prediction, record
        self._publish(msgspec.json.encode(record))


def _at(told: DecisionRecord, now: DecisionRecord) -> DecisionRecord:
    """Return a published record with the time of another, so that any remaining difference is worth publishing."""
    return msgspec.structs.replace(told, time=now.time, synchronised=now.synchronised)
