"""Pipeline: windows from a reader's chunks, and predictions from windows.

Windows wait in the mailbox until a thread has the pipeline's turn and takes them: the reader's thread, which serves in
place, if this holds up no other pipeline and the reading only for a moment; the thread shared by the brisk pipelines of
a source (flow/shared_worker.py); or the pipeline's own worker. See `_find_thread`. The thread that has the turn uses
the slot and the model; the worker alone changes the model. A failed window is lost, and makes the pipeline `degraded`;
the next successful window ends this state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import inf, prod
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from edged.api import Chunk, EdgedError, Prediction, Window
from edged.core.health import Status
from edged.core.manifest import WindowSpec
from edged.core.metrics import LatencyHistogram
from edged.core.pictures import PictureForm
from edged.core.window import Windower
from edged.flow.delivery import PredictionSink
from edged.flow.mailbox import Mailbox
from edged.flow.slot import RunCounts, Served, Slot

if TYPE_CHECKING:  # a source with one pipeline needs none
    from edged.flow.shared_worker import SharedWorker

log = logging.getLogger("edged.flow")

ROOM_BYTES = 8 << 20
"""Memory for windows that wait for a model that keeps up, for example after a delay of the board."""

FINISH_SECONDS = 4.0
"""Time for waiting windows when a pipeline is stopped; the rest is dropped."""

BRISK_SECONDS = 0.005
"""Mean duration of a service, sinks included, below which a model is brisk; and the time in which services on the
reader's thread may begin within one chunk, so that a burst of windows does not hold up the reading.
"""

_SERVICES = 16
"""Services in the running mean."""

_LONGEST_SERVICE = _SERVICES * BRISK_SECONDS
"""Duration counted for a longer service: enough for the next window to go through the mailbox, and few enough for some
30 quick services to make up for it, as after the warm-up of a new model.
"""

_OVERHEAD_BYTES = 256
"""Memory of a window besides the samples."""

_BREAKS_HINT = (
    "see in edgectl sources what is lost or refused; have lines that are no samples passed over with the source's "
    "comment, prefix or select"
)
_BEHIND_HINT = (
    "give the model an accelerator or a longer hop, or the board less to do; edgectl pipelines counts what is dropped"
)


class Pipeline:
    """Windows of a source through a model to sinks.

    `window` is the window specification, and `form` the form of pictures, for a source of pictures; after `stopped` the
    pipeline takes no more chunks. `push` belongs to the reader's thread, counters and latencies to the thread that has
    the turn; `sinks` may be replaced whole at any time, and so may `in_place`, which allows windows to be served on the
    reader's thread, and `shared`, a worker for windows of several pipelines. A prediction becomes the `last` and is
    counted once all sinks have taken it.
    """

    def __init__(
        self,
        name: str,
        spec: WindowSpec,
        *,
        columns: NDArray[np.intp] | None,
        patient: bool,
        capacity: int,
        sinks: Sequence[PredictionSink],
        status: Status,
        clock: Callable[[], float],
        rate: Callable[[], float | None] = lambda: None,
        next_seq: int = 0,
        form: PictureForm | None = None,
    ) -> None:
        """Set up with `next_seq`, the number of the first window, which continues an earlier pipeline of the same name.

        `rate` is the number of samples that arrive per second; None if unknown or as in the model.
        """
        self.name = name
        self.window = spec
        self.form = form
        self.status = status
        self.slot = Slot()
        self.sinks: tuple[PredictionSink, ...] = tuple(sinks)
        room = 0 if form else ROOM_BYTES // (_fresh_bytes(spec) + _OVERHEAD_BYTES)  # a late picture is worth little
        self.mailbox = Mailbox(capacity, room, patient=patient)
        self.in_place = False
        self.shared: SharedWorker | None = None
        self.stopped = False
        self.windows = 0
        self.predictions = 0
        self.errors = 0
        self.last: Prediction | None = None
        self.latency = LatencyHistogram()
        self.inference = LatencyHistogram()
        self.busy_since: float | None = None
        self._windower = Windower(spec, columns, next_seq, form)
        self._since_window = 0
        self._rate = rate
        self._clock = clock
        self._expected = next_seq
        self._retired = False
        self._finish_by = inf
        self._service = BRISK_SECONDS  # so that the first window shows whether the model is brisk
        self._turn = Lock()
        self._thread = Thread(target=self._work, name=f"pipeline-{name}", daemon=True)

    @property
    def next_seq(self) -> int:
        """The number of the next window."""
        return self._windower.next_seq

    def push(self, chunk: Chunk) -> None:
        """On the reader's thread: cut a chunk into windows."""
        now = self._clock()
        if self.mailbox.make_room(now, serving=self.slot.current is not None):
            self._set_status(now)
        self._since_window += len(chunk.samples)
        for window in self._windower.cut(chunk, self._rate()):
            self.windows += 1
            self._since_window = 0
            self.mailbox.put(window)
            self._find_thread(now + BRISK_SECONDS)
        if self._since_window >= 3 * max(self.window.length, self.window.hop):
            self.status.set(
                "degraded",
                f"no window is complete: {self.window.length} samples never arrive without a gap",
                _BREAKS_HINT,
            )

    def serve_waiting(self, until: float) -> None:
        """Serve waiting windows on the calling thread as long as the model is brisk, and begin none after `until`. The
        rest is left to the worker, and so are windows for a model in another process or during a change of models.
        """
        if self._turn.acquire(blocking=False):
            try:
                while self.mailbox.waiting and self._service < BRISK_SECONDS and self._clock() <= until:
                    served = self.slot.settled
                    if served is None or served.isolated or self.stopped:
                        break
                    if window := self.mailbox.take():
                        self._serve(served, window)
            finally:
                self._turn.release()
        if self.mailbox.waiting:
            self.mailbox.ring()

    def go_on_from(self, earlier: Self) -> None:
        """Continue the windows of a stopped pipeline from its position. Call before the first chunk."""
        self._windower = earlier._windower

    def serve(self, served: Served) -> None:
        """Serve with this model from now on; the first model starts the worker."""
        self.slot.offer(served)
        if self._thread.ident is None:
            self._thread.start()

    def release(self) -> Event:
        """Close the model in service, and keep windows until the next `serve`; return an event, set after the close."""
        gone = self.slot.release()
        if self._thread.ident is None:
            gone.set()
        self.mailbox.ring()
        return gone

    def stop(self) -> None:
        """Take no more windows; the worker ends after the waiting windows, or after the time limit."""
        self.stopped = True
        if not self._retired:
            self._finish_by = self._clock() + FINISH_SECONDS
        self.slot.end()
        self.mailbox.close()

    def retire(self) -> None:
        """Stop in favour of another flow, which alone reports from then on."""
        self._retired = True
        self.stop()

    def join(self, timeout: float) -> bool:
        """Wait for the end of the worker, and return whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _find_thread(self, until: float) -> None:
        """Have the waiting windows served: on this thread, by the shared worker, or by the worker."""
        if self._service < BRISK_SECONDS:
            if self.in_place:
                self.serve_waiting(until)
                return
            if self.shared is not None and self.shared.call(self):
                return
        self.mailbox.ring()

    def _work(self) -> None:
        for _ in self.mailbox:
            with self._turn:
                served = self.slot.take()
                while window := self.mailbox.take():
                    if self._clock() > self._finish_by:
                        self.mailbox.dropped += 1
                    elif served is not None:
                        self._serve(served, window)
                    served = self.slot.take()
        with self._turn:
            self.slot.close()
        if not self._retired:
            self.status.set("stopped")

    def _serve(self, served: Served, window: Window) -> None:
        """Pass a window through the model to the sinks. The caller has the turn."""
        self.busy_since = begun = self._clock()
        try:
            prediction = self._infer(served, window)
        except Exception as error:  # a backend's own bug must not end the thread
            self._fail(served, error)
        else:
            for sink in self.sinks:
                sink.send(prediction)
            self._count(served.counts, prediction)
        self.busy_since = None
        self._service += (min(self._clock() - begun, _LONGEST_SERVICE) - self._service) / _SERVICES

    def _fail(self, served: Served, error: Exception) -> None:
        self.errors += 1
        served.counts.windows += 1
        served.counts.errors += 1
        if isinstance(error, EdgedError):
            self.status.set("degraded", error.message, error.hint)
            return
        if self.status.health.state != "degraded":
            log.error("pipeline %s cannot infer", self.name, exc_info=error, extra={"pipeline": self.name})
        self.status.set("degraded", f"{type(error).__name__}: {error}", "report this with the log's traceback")

    def _infer(self, served: Served, window: Window) -> Prediction:
        manifest, runner, preprocess, postprocess, _, _ = served
        if window.seq != self._expected:  # a window is missing or failed, so the state of a stateful model is invalid
            runner.reset()
            preprocess.reset()
        inputs = preprocess(window.samples)
        begun = self._clock()
        outputs = runner.run(inputs)
        inference = self._clock() - begun
        preprocess.feed_back(outputs)
        outcome = postprocess(outputs, preprocess.prepared, window.time, window.placement)
        self._expected = window.seq + 1
        now = self._clock()
        latency = now - window.time
        self._set_status(now)
        return Prediction(
            self.name,
            manifest.name,
            manifest.version,
            window.seq,
            window.start,
            window.time,
            latency,
            inference,
            outcome,
        )

    def _count(self, counts: RunCounts, prediction: Prediction) -> None:
        """Count a prediction, after it has left: nobody waits for the figures."""
        counts.add(prediction.outcome, prediction.inference, prediction.time + prediction.latency)
        self.inference.add(prediction.inference)
        self.latency.add(prediction.latency)
        self.last = prediction
        self.predictions += 1

    def _set_status(self, now: float) -> None:
        """Set the state of a pipeline without a failed window."""
        if behind := self.mailbox.behind(now):
            self.status.set("degraded", behind, _BEHIND_HINT)
        else:
            self.status.set("running")


def _fresh_bytes(spec: WindowSpec) -> int:
    """Return the bytes of samples that a window does not share with the previous window."""
    return min(spec.length, spec.hop) * prod(spec.shape) * np.dtype(spec.dtype).itemsize


def stuck(pipelines: Sequence[Pipeline], now: float, limit: float) -> str:
    """Return the pipeline that has spent more than `limit` seconds on a window, for the watchdog; "" for none."""
    for pipeline in pipelines:
        since = pipeline.busy_since
        if since is not None and now - since > limit:
            return f"pipeline {pipeline.name} has been at one window for {now - since:.0f} s"
    return ""
