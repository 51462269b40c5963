"""The state of the service: what is configured, and how it runs.

The daemon changes it; every other module of `app` reads it. Counters have one writer each and are read without a lock:
a figure may be a moment old.
"""

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edged.acceleration.placement import Accelerators
from edged.api import Prediction, RunnerInfo
from edged.config.load import ConfigErrors
from edged.config.options import Config, PipelineEntry
from edged.control.clock import KernelClock
from edged.core.health import Status
from edged.core.record import Recorder
from edged.core.tables import Problem
from edged.core.topics import Topics
from edged.flow.decision import LatestDecision
from edged.flow.delivery import Drain
from edged.flow.dependent import DependentStatus
from edged.flow.pipeline import Pipeline
from edged.flow.reader import Reader
from edged.flow.slot import RunCounts, Served
from edged.models.bundle import Bundle
from edged.models.selftest import Proof
from edged.outbox.publisher import Publisher

WATCH_QUEUE = 256


@dataclass
class ModelState:
    """A model that pipelines use: the bundle it comes from, or why there is none, and how it did in its self-test.

    `digest` names the version in the store, "" for one that is not of the store; it has been serving `since`, and is
    `served` once in each pipeline.
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
    def tallies(self) -> list[RunCounts]:
        """What the version has done so far, in each pipeline."""
        return [served.tally for served in self.served]

    @property
    def runner(self) -> RunnerInfo | None:
        """What it runs on now, in the first of them."""
        return self.served[0].runner.info if self.served else None


@dataclass
class PipelineState:
    """A pipeline as configured, and as it runs, if it does: `flow` is None while its model or source is refused.

    While a model is handed over to a version with other windows, `spare` gathers those of the one before, which may
    have to come back.

    What it decides now is its `decision`, None where none of its sinks is the broker.

    Its windows are numbered from `begins_at`, and go on where an earlier flow of the same name left off: no two results
    of a boot ever share an id.
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
        """What its model runs on now."""
        return None if self.served is None else self.served.runner.info

    @property
    def next_seq(self) -> int:
        """The number of its next window."""
        return self.begins_at if self.flow is None else self.flow.next_seq


class Watchers:
    """The last sink of every pipeline: whoever watches. `taps` is replaced whole, on the event loop's thread."""

    def __init__(self) -> None:
        self.taps: tuple[Tap, ...] = ()

    def send(self, prediction: Prediction) -> None:
        """On a worker's thread."""
        for tap in self.taps:
            tap.send(prediction)


@dataclass
class ServiceState:
    """All there is to ask about. `steps` counts the steps of updates, by model and kind.

    `namesake` is the boot of another board that was heard of under this one's name, at `namesake_at`.
    """

    boot: str
    files: tuple[Path, ...]
    state_dir: Path
    config: Config
    clock: KernelClock
    publisher: Publisher
    accelerators: Accelerators
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


class Tap:
    """A watcher of one pipeline, or of all (None): hands results to the event loop, and drops the newest while nobody
    takes them."""

    def __init__(self, parts: ServiceState, pipeline: str | None, loop: asyncio.AbstractEventLoop) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue(WATCH_QUEUE)
        self._parts = parts
        self._pipeline = pipeline
        self._loop = loop

    def send(self, prediction: Prediction) -> None:
        """On a worker's thread."""
        if self._pipeline not in (None, prediction.pipeline):
            return
        with contextlib.suppress(RuntimeError):  # the loop has gone: the daemon is stopping
            self._loop.call_soon_threadsafe(self._put, self._parts.recorder.result(prediction))

    def _put(self, record: Any) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self.queue.put_nowait(record)
