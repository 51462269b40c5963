"""The state of the service: the configuration in effect, and the sources, models, pipelines and sinks made from it.

The daemon brings parts up and takes them down, `ServedModels` writes the fields of `ModelState` and the flows of
`PipelineState`, and every other module of `app` reads. Counters have one writer each and are read without a lock: a
figure may be a moment old.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import field

from edged.api import Prediction, RunnerInfo
from edged.config.load import ConfigErrors
from edged.config.options import Config, PipelineEntry
from edged.control.clock import KernelClock
from edged.core.health import Status
from edged.core.record import Recorder
from edged.core.tables import Problem
from edged.core.topics import Topics
from edged.flow.decision import LatestDecision
from edged.flow.delivery import Drain, PredictionSink
from edged.flow.dependent import DependentStatus
from edged.flow.pipeline import Pipeline
from edged.flow.reader import Reader
from edged.flow.slot import RunCounts, Served
from edged.models.bundle import Bundle
from edged.models.selftest import Proof
from edged.outbox.publisher import Publisher
from edged.system.later import asyncio

if TYPE_CHECKING:
    from edged.core.answers import ResultAnswer

WATCH_QUEUE = 256


class ModelState(msgspec.Struct, eq=False):
    """A model that pipelines use: the bundle of the version that serves, if any, and the result of its self-test.

    `digest` names the version in the store, and is "" for a version outside the store. The version has served `since`
    a moment of CLOCK_MONOTONIC, and is in `served` once for each pipeline.
    """

    status: Status
    bundle: Bundle | None = None
    digest: str = ""
    since: float = 0.0
    served: tuple[Served, ...] = ()
    origin: str = ""
    proof: Proof | None = None
    files_lost: bool = False

    @property
    def run_counts(self) -> list[RunCounts]:
        """Return the counts of the version that serves, one for each pipeline."""
        return [served.counts for served in self.served]

    @property
    def runner(self) -> RunnerInfo | None:
        """Return the runner of the first pipeline. Any thread may ask."""
        served = self.served  # read once: the event loop's thread replaces the tuple
        return served[0].runner.info if served else None


class PipelineState(msgspec.Struct, eq=False):
    """A pipeline as configured, and its `flow`, which is None while the model or the source is refused.

    During a handover to a version with other windows, `spare` collects windows for the version before, in case the new
    version fails.

    `decision` holds the latest decision; it is None if no sink of the pipeline is the broker.

    The first window has the number `begins_at`: a new flow continues the numbers of the flow before it, so that two
    results of one boot never share an id.
    """

    entry: PipelineEntry
    status: DependentStatus
    decision: LatestDecision | None = None
    flow: Pipeline | None = None
    spare: Pipeline | None = None
    served: Served | None = None
    begins_at: int = 0

    @property
    def runner(self) -> RunnerInfo | None:
        """Return the runner of the model at this moment."""
        return None if self.served is None else self.served.runner.info

    @property
    def next_seq(self) -> int:
        """Return the number of the next window."""
        return self.begins_at if self.flow is None else self.flow.next_seq


class Watchers:
    """The last sink of every pipeline: `edgectl watch`. The event loop's thread replaces `taps` as a whole."""

    def __init__(self) -> None:
        self.taps: tuple[PredictionSink, ...] = ()

    def send(self, prediction: Prediction) -> None:
        """Pass a prediction to every tap. Called on a pipeline's or a source's thread."""
        for tap in self.taps:
            tap.send(prediction)


class ServiceState(msgspec.Struct, eq=False):
    """The configuration in effect, and the parts made from it.

    `steps` counts the steps of updates, by model and kind. `namesake` is the boot of another board with the name of
    this one, last heard of at `namesake_at`.
    """

    boot: str
    files: tuple[Path, ...]
    state_dir: Path
    config: Config
    clock: KernelClock
    publisher: Publisher
    topics: Topics
    recorder: Recorder
    started: float
    loaded: float
    metrics_page: Status
    refused: ConfigErrors | None = None
    warnings: tuple[Problem, ...] = ()
    refused_at: float = 0.0
    namesake: str = ""
    namesake_at: float = 0.0
    steps: Counter[tuple[str, str]] = field(default_factory=Counter)
    sources: dict[str, Reader] = field(default_factory=dict)
    models: dict[str, ModelState] = field(default_factory=dict)
    pipelines: dict[str, PipelineState] = field(default_factory=dict)
    sinks: dict[str, Drain] = field(default_factory=dict)
    watchers: Watchers = field(default_factory=Watchers)

    def users(self, model: str) -> dict[str, PipelineState]:
        """Return the pipelines of a model. Any thread may ask."""
        return {name: each for name, each in list(self.pipelines.items()) if each.entry.model == model}


class Tap:
    """Passes results of one pipeline, or of all (None), to the event loop; drops the newest while `queue` is full."""

    def __init__(self, state: ServiceState, pipeline: str | None, loop: asyncio.AbstractEventLoop) -> None:
        self.queue: asyncio.Queue[ResultAnswer] = asyncio.Queue(WATCH_QUEUE)
        self._state = state
        self._pipeline = pipeline
        self._loop = loop

    def send(self, prediction: Prediction) -> None:
        """Pass on a prediction. Called on a pipeline's or a source's thread."""
        if self._pipeline not in (None, prediction.pipeline):
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended: the daemon is stopping
            self._loop.call_soon_threadsafe(self._put, self._state.recorder.result(prediction))

    def _put(self, record: ResultAnswer) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self.queue.put_nowait(record)
