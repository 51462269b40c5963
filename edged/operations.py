"""What an operator can ask, once, for the socket, MQTT and the metrics page alike.

`Parts` is what there is to ask about; the daemon fills it in and changes it, and everything here only reads it, on the
event loop's thread. Counters have one writer each and are read without a lock: a figure may be a moment old.
"""

import asyncio
import contextlib
import math
import resource
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec.structs import replace

from edged import __version__
from edged.accelerators import Accelerators
from edged.api import ControlError, EdgedError, Prediction, RunnerInfo
from edged.config import Config, ConfigErrors, PipelineEntry
from edged.control.clock import KernelClock
from edged.core.acceleration import StandingState
from edged.core.errors import some
from edged.core.health import Health, Status
from edged.core.metrics import Family, Sample, render
from edged.core.record import Recorder
from edged.core.tables import Problem
from edged.core.topics import Topics
from edged.flow.decision import LatestDecision
from edged.flow.delivery import Drain
from edged.flow.dependent import DependentStatus
from edged.flow.pipeline import Pipeline
from edged.flow.reader import Reader
from edged.flow.slot import Served, Tally
from edged.forget_device import forget_device, named
from edged.models.bundle import Bundle
from edged.models.selftest import Proof
from edged.outbox.publisher import Publisher
from edged.outbox.spool import DiskStats
from edged.proving import Proving
from edged.updates import Updates

WATCH_QUEUE = 256

NAMESAKE_SECONDS = 3600.0
"""So long a board with the same name is told of in the status after it was heard of last."""

_FEW_VALUES = 16
_AT_A_GLANCE = 4
"""So many pipelines are in the status line; the others are counted."""

RELOAD_SECONDS = 5.0
"""Whoever asks for a reload waits for it so long."""

DISK_SECONDS = 5.0
"""Seconds that a call for the models' versions waits for the disk."""

_UNKNOWN: dict[str, Any] = {"pinned": None, "versions": None}


@dataclass
class ModelPart:
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
    def tallies(self) -> list[Tally]:
        """What the version has done so far, in each pipeline."""
        return [served.tally for served in self.served]

    @property
    def runner(self) -> RunnerInfo | None:
        """What it runs on now, in the first of them."""
        return self.served[0].runner.info if self.served else None


@dataclass
class PipelinePart:
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
        self.taps: tuple[_Tap, ...] = ()

    def send(self, prediction: Prediction) -> None:
        """On a worker's thread."""
        for tap in self.taps:
            tap.send(prediction)


@dataclass
class Parts:
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
    models: dict[str, ModelPart] = field(default_factory=dict)
    pipelines: dict[str, PipelinePart] = field(default_factory=dict)
    sinks: dict[str, Drain] = field(default_factory=dict)
    watchers: Watchers = field(default_factory=Watchers)


class Operations:
    """The verbs. `call` answers at once; `stream` goes on until its caller stops asking."""

    def __init__(
        self, parts: Parts, reload: Callable[[], Awaitable[list[str]]], updates: Updates, proving: Proving
    ) -> None:
        self._parts = parts
        self._calls: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
            **updates.calls,
            "status": self._status,
            "pipelines": self._pipelines,
            "sources": self._sources,
            "models": self._models,
            "metrics": self._metrics,
            "reload": self._reload,
            "spool": self._spool,
            "spool-retry": self._spool_retry,
            "spool-drop": self._spool_drop,
            "release": self._release,
            "forget-device": self._forget_device,
        }
        self._do_reload = reload
        self._versions = updates.versions
        self._reloads: set[asyncio.Future[list[str]]] = set()

        self._streams = {**updates.streams, **proving.streams, "watch": self._watch}
        self.calls = frozenset(self._calls)
        self.streams = frozenset(self._streams)
        changes = frozenset({"reload", "release", "forget-device", "spool-retry", "spool-drop"})
        self.changes = changes | updates.changes | proving.changes

    async def call(self, verb: str, args: dict[str, Any]) -> Any:
        """Answer one of `calls` with something JSON can carry. Raises EdgedError where it cannot be done."""
        return await self._calls[verb](args)

    def stream(self, verb: str, args: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """Answer one of `streams` again and again. Raises EdgedError where it cannot be done."""
        return self._streams[verb](args)

    async def _watch(self, args: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """The results of one pipeline, or of all, as they are made. Raises ControlError for an unknown one."""
        name, watchers = args.get("pipeline"), self._parts.watchers
        if name is not None and name not in self._parts.pipelines:
            raise ControlError(f"there is no pipeline {name!r}", hint=_known(self._parts.pipelines))
        tap = _Tap(self._parts, name, asyncio.get_running_loop())
        watchers.taps = (*watchers.taps, tap)
        try:
            while True:
                yield await tap.queue.get()
        finally:
            watchers.taps = tuple(other for other in watchers.taps if other is not tap)

    async def _status(self, args: dict[str, Any]) -> dict[str, Any]:
        parts = self._parts
        now = time.monotonic()
        health = overall(parts)
        return {
            "device": parts.config.device.name,
            "version": __version__,
            "boot": parts.boot,
            "uptime": now - parts.started,
            "state": health.state,
            "health": self._health(health),
            "clock": {"synchronised": parts.clock.synchronised},
            "mqtt": self._mqtt(),
            "pipelines": await self._pipelines(args),
            "sources": await self._sources(args),
            "models": self._serving_models(),
            "sinks": [
                {
                    "name": name,
                    "sent": drain.delivery.sent,
                    "failed": drain.delivery.failed,
                    "dropped": drain.dropped,
                    "health": self._health(drain.delivery.status.health),
                }
                for name, drain in parts.sinks.items()
            ],
            "config": {
                "files": [str(file.absolute()) for file in parts.files],
                "state_dir": str(parts.state_dir.absolute()),
                "loaded": parts.clock.at(parts.loaded),
                "error": _refusal(parts.refused),
            },
            "memory": {"rss_bytes": resident_bytes()},
        }

    def _mqtt(self) -> dict[str, Any]:
        publisher = self._parts.publisher
        spool = publisher.spool.stats
        return {
            "broker": publisher.broker,
            "connected": publisher.connected,
            "sent": publisher.sent,
            "last_sent": None if publisher.last_sent is None else self._parts.clock.at(publisher.last_sent),
            "last_sent_ago": None if publisher.last_sent is None else time.monotonic() - publisher.last_sent,
            "reconnects": publisher.reconnects,
            "namesake": self._namesake(),
            "spool": {**msgspec.to_builtins(spool), "health": self._health(publisher.spool.health)},
            "health": self._health(publisher.status.health),
        }

    def _namesake(self) -> str:
        """The boot of another board with the same name, if one has been heard of lately."""
        parts = self._parts
        return parts.namesake if time.monotonic() - parts.namesake_at < NAMESAKE_SECONDS else ""

    async def _pipelines(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        return [self._pipeline(name, part) for name, part in self._parts.pipelines.items()]

    def _pipeline(self, name: str, part: PipelinePart) -> dict[str, Any]:
        flow = part.flow
        model = self._parts.models.get(part.entry.model)
        bundle = model.bundle if model else None
        return {
            "name": name,
            "source": part.entry.source,
            "model": bundle.manifest.name if bundle else part.entry.model,
            "version": bundle.manifest.version if bundle else "",
            "sinks": list(part.entry.sinks),
            "windows": flow.windows if flow else 0,
            "predictions": flow.predictions if flow else 0,
            "dropped": flow.mailbox.dropped if flow else 0,
            "errors": flow.errors if flow else 0,
            "latency": flow.latency.percentiles() if flow else None,
            "inference": flow.inference.percentiles() if flow else None,
            "runner": part.runner and msgspec.to_builtins(part.runner),
            "last": _shortened(self._parts.recorder.result(flow.last)) if flow and flow.last else None,
            "health": self._health(part.status.health),
        }

    async def _sources(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        entries = self._parts.config.sources
        return [
            {
                "name": name,
                "kind": entries[name].kind,
                "channels": list(reader.info.channels),
                "rate": reader.info.rate,
                "measured_rate": reader.measured_rate,
                "samples": reader.samples,
                "lost": reader.lost,
                "reconnects": reader.reconnects,
                "faults": dict(reader.faults),
                "refused": reader.refused,
                "health": self._health(reader.status.health),
            }
            for name, reader in self._parts.sources.items()
        ]

    async def _models(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        """Every model that is configured or installed, with its versions: None where the disk does not tell in time."""
        known: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(EdgedError, TimeoutError):
            async with asyncio.timeout(DISK_SECONDS):
                known = await self._versions()
        configured = self._serving_models()
        names = {model["name"] for model in configured}
        unused = [self._unused(name) for name, each in known.items() if name not in names and _is_installed(each)]
        return [{**model, **known.get(model["name"], _UNKNOWN)} for model in [*configured, *unused]]

    def _serving_models(self) -> list[dict[str, Any]]:
        pipelines = self._parts.pipelines.items()
        return [
            {
                "name": name,
                "version": part.bundle.manifest.version if part.bundle else "",
                "digest": part.digest,
                "origin": part.origin,
                "pipelines": [pipeline for pipeline, served in pipelines if served.entry.model == name],
                "bytes": part.bundle.manifest.files[part.bundle.manifest.model].bytes if part.bundle else 0,
                "runner": part.runner and msgspec.to_builtins(part.runner),
                "proof": part.proof and msgspec.to_builtins(part.proof),
                "accelerator": self._accelerator(name),
                "choice": self._parts.accelerators.choices().get(name, ""),
                "isolated": self._parts.config.models[name].isolate,
                "health": self._health(part.status.health),
            }
            for name, part in self._parts.models.items()
        ]

    def _unused(self, name: str) -> dict[str, Any]:
        """A model that is installed and that no configuration names."""
        hint = f'name it in a pipeline: model = "{name}", then: edgectl reload'
        health = Health("stopped", "no pipeline uses it", hint, self._parts.started)
        return {
            **dict.fromkeys(("version", "digest", "origin", "choice"), ""),
            **dict.fromkeys(("runner", "proof", "accelerator")),
            "name": name,
            "pipelines": [],
            "bytes": 0,
            "isolated": False,
            "health": self._health(health),
        }

    def _accelerator(self, model: str) -> dict[str, Any] | None:
        """How the accelerator of a model stands, None where it has none."""
        name, standing = self._parts.accelerators.standings().get(model, ("", None))
        if standing is None:
            return None
        return {
            "name": name,
            "state": standing.state,
            "reason": standing.reason,
            "hint": standing.hint,
            "since": self._parts.clock.at(standing.since),
            "for": time.monotonic() - standing.since,
            "off_processor": self._parts.accelerators.shares().get(model),
        }

    async def _release(self, args: dict[str, Any]) -> dict[str, Any]:
        name = args.get("accelerator")
        if not isinstance(name, str):
            raise ControlError("it is not said which accelerator", hint="name one: edgectl release NAME")
        standings = self._parts.accelerators.standings().values()
        at_fault = any(accelerator == name and standing.is_fault for accelerator, standing in standings)
        self._parts.accelerators.release(name)
        return {"released": name, "changed": at_fault}

    async def _forget_device(self, args: dict[str, Any]) -> dict[str, Any]:
        config = self._parts.config
        device = named(args.get("device"), config.device.name)
        topics = Topics(config.mqtt.prefix, device)
        return {"topics": await forget_device(self._parts.publisher, topics, config.mqtt.discovery_prefix)}

    async def _metrics(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"text": render(families(self._parts))}

    async def _reload(self, args: dict[str, Any]) -> dict[str, Any]:
        """Reload, and return what changed and what has no effect.

        While it is not `done` it goes on by itself, as an update may be in its way. What is in `restart` takes effect
        when the daemon is started again.
        """
        reloading = asyncio.ensure_future(self._do_reload())
        self._reloads.add(reloading)
        reloading.add_done_callback(self._reloads.discard)
        done, _ = await asyncio.wait([reloading], timeout=RELOAD_SECONDS)
        changed = reloading.result() if done else []
        warnings = list(map(str, self._parts.warnings)) if done else []
        return {
            "changed": changed,
            "done": bool(done),
            "restart": sorted({"control"} & {*changed}),
            "warnings": warnings,
        }

    async def _spool(self, args: dict[str, Any]) -> dict[str, Any]:
        publisher = self._parts.publisher
        spool = publisher.spool
        return {
            **msgspec.to_builtins(spool.stats),
            "rate": publisher.rate,
            "seconds_to_empty": publisher.seconds_to_empty,
            "replayed": publisher.replayed,
            "refused": [
                {
                    "number": number,
                    "pipeline": entry.message.origin,
                    "seq": entry.message.seq,
                    "topic": entry.message.topic,
                    "bytes": len(entry.message.payload),
                    "reason": reason,
                }
                for number, entry, reason in spool.parked()
            ],
            "health": self._health(spool.health),
        }

    async def _spool_retry(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"count": self._parts.publisher.spool.retry(_numbers(args))}

    async def _spool_drop(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"count": self._parts.publisher.spool.drop(_numbers(args))}

    def _health(self, health: Health) -> dict[str, Any]:
        return {
            "state": health.state,
            "reason": health.reason,
            "hint": health.hint,
            "since": self._parts.clock.at(health.since),
            "for": time.monotonic() - health.since,
        }


class _Tap:
    """A watcher of one pipeline, or of all (None): hands results to the event loop, and drops the newest while nobody
    takes them."""

    def __init__(self, parts: Parts, pipeline: str | None, loop: asyncio.AbstractEventLoop) -> None:
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


def overall(parts: Parts) -> Health:
    """The daemon's own health: as bad as the worst of its pipelines, and of the way in and out."""
    healths = [
        *((f"source {name}", reader.status.health) for name, reader in parts.sources.items()),
        *((f"pipeline {name}", part.status.health) for name, part in parts.pipelines.items()),
        *((f"sink {name}", drain.delivery.status.health) for name, drain in parts.sinks.items()),
        ("mqtt", parts.publisher.status.health),
        ("spool", parts.publisher.spool.health),
        ("metrics", parts.metrics_page.health),
        *((f"model {name}", part.status.health) for name, part in parts.models.items() if part.files_lost),
        *(
            (f"model {model} on {name}", Health("degraded", standing.reason, standing.hint, standing.since))
            for model, (name, standing) in parts.accelerators.standings().items()
            if standing.is_fault
        ),
    ]
    healths += [
        (f"pipeline {name}", replace(part.status.health, state="degraded"))
        for name, part in parts.pipelines.items()
        if part.served is None and part.status.health.state == "starting"
    ]
    bad = [(name, health) for name, health in healths if health.state in ("failed", "degraded")]
    if bad:
        name, worst = max(bad, key=lambda item: item[1].state == "failed")
        return Health("degraded", f"{name}: {worst.reason}", worst.hint, worst.since)
    if parts.refused is not None:
        return Health("degraded", "the new configuration was refused", "edgectl config check", parts.refused_at)
    return Health("running", "", "", parts.started)


def _shortened(record: dict[str, Any]) -> dict[str, Any]:
    """A result for a status: of an array the first values, and how many there are, for it may have 100,000."""
    values = record.get("values")
    if not isinstance(values, list):
        return record
    return record | {"values": values[:_FEW_VALUES], "count": len(values)}


def summary(parts: Parts) -> str:
    """One line for `systemctl status`: what is served, and how fast."""
    serving = sum(part.status.health.state == "running" for part in parts.pipelines.values())
    shown = [_served(name, part, parts.models) for name, part in islice(parts.pipelines.items(), _AT_A_GLANCE)]
    listed = some(shown, _AT_A_GLANCE, of=len(parts.pipelines))
    link = "connected" if parts.publisher.connected else "not connected"
    return f"{serving} of {len(parts.pipelines)} pipelines running{listed and ': '}{listed}; MQTT {link}"


def _served(name: str, part: PipelinePart, models: dict[str, ModelPart]) -> str:
    """A pipeline, the version that serves in it, and how long a result takes; or how it is instead."""
    model = models.get(part.entry.model)
    title = f"{part.entry.model} {model.bundle.manifest.version}" if model and model.bundle else part.entry.model
    if part.flow is None or part.status.health.state != "running":
        return f"{name} ({title}, {part.status.health.state})"
    p50, _, p99 = part.flow.latency.percentiles().values()
    speed = f", p50 {p50 * 1000:.2g} ms, p99 {p99 * 1000:.2g} ms" if p50 and p99 else ""
    return f"{name} ({title}, {part.flow.predictions} results{speed})"


def families(parts: Parts) -> list[Family]:
    """Everything that is counted, for Prometheus."""
    flows = {name: part.flow for name, part in parts.pipelines.items() if part.flow is not None}
    sources = parts.sources
    spool = parts.publisher.spool.stats
    healths = [
        *(("pipeline", name, part.status.health) for name, part in parts.pipelines.items()),
        *(("source", name, reader.status.health) for name, reader in sources.items()),
        *(("model", name, part.status.health) for name, part in parts.models.items()),
        *(("sink", name, drain.delivery.status.health) for name, drain in parts.sinks.items()),
        ("mqtt", "mqtt", parts.publisher.status.health),
        ("spool", "spool", parts.publisher.spool.health),
    ]

    def by_pipeline(value: Callable[[Pipeline], float]) -> list[Sample]:
        return [Sample(value(flow), {"pipeline": name}) for name, flow in flows.items()]

    def by_source(value: Callable[[Reader], float]) -> list[Sample]:
        return [Sample(value(reader), {"source": name}) for name, reader in sources.items()]

    return [
        Family("edged_info", "gauge", "The daemon.", [Sample(1, {"version": __version__, "boot": parts.boot})]),
        Family("edged_uptime_seconds", "gauge", "Time since start.", [Sample(time.monotonic() - parts.started)]),
        Family("edged_resident_memory_bytes", "gauge", "Memory in use.", [Sample(resident_bytes())]),
        Family("edged_clock_synchronised", "gauge", "1 when wall-clock time can be trusted.",
               [Sample(parts.clock.synchronised)]),
        Family("edged_state", "gauge", "1 for the state each part is in.",
               [Sample(1, {"part": part, "name": name, "state": health.state}) for part, name, health in healths]),
        Family("edged_source_samples_total", "counter", "Samples read.", by_source(lambda reader: reader.samples)),
        Family("edged_source_lost_samples_total", "counter", "Samples known to be missing.",
               by_source(lambda reader: reader.lost)),
        Family("edged_source_reconnects_total", "counter", "Times a source was opened again.",
               by_source(lambda reader: reader.reconnects)),
        Family("edged_source_rate_hertz", "gauge", "Samples per second as measured.",
               by_source(lambda reader: reader.measured_rate or math.nan)),
        Family("edged_source_faults_total", "counter", "Input thrown away, by reason.",
               [Sample(count, {"source": name, "reason": reason})
                for name, reader in sources.items() for reason, count in reader.faults.items()]),
        Family("edged_pipeline_windows_total", "counter", "Windows cut.", by_pipeline(lambda flow: flow.windows)),
        Family("edged_pipeline_dropped_windows_total", "counter", "Windows dropped because the worker was behind.",
               by_pipeline(lambda flow: flow.mailbox.dropped)),
        Family("edged_pipeline_predictions_total", "counter", "Predictions made.",
               by_pipeline(lambda flow: flow.predictions)),
        Family("edged_pipeline_errors_total", "counter", "Windows on which the model failed.",
               by_pipeline(lambda flow: flow.errors)),
        Family("edged_pipeline_latency_seconds", "histogram", "From a window's last sample to its prediction.",
               [sample for name, flow in flows.items() for sample in flow.latency.histogram({"pipeline": name})]),
        Family("edged_pipeline_inference_seconds", "histogram", "Time the model took.",
               [sample for name, flow in flows.items() for sample in flow.inference.histogram({"pipeline": name})]),
        Family("edged_model_info", "gauge", "What serves, and on what.",
               [Sample(1, {"model": name, "version": part.bundle.manifest.version, "runtime": part.runner.runtime,
                           "delegate": part.runner.delegate})
                for name, part in parts.models.items() if part.bundle is not None and part.runner is not None]),
        *_accelerator_families(parts),
        Family("edged_update_steps_total", "counter", "Steps of model updates, by kind.",
               [Sample(count, {"model": model, "step": step}) for (model, step), count in parts.steps.items()]),
        Family("edged_sink_sent_total", "counter", "Predictions a sink took.",
               [Sample(drain.delivery.sent, {"sink": name}) for name, drain in parts.sinks.items()]),
        Family("edged_sink_dropped_total", "counter", "Predictions a sink failed on or was too slow for.",
               [Sample(drain.delivery.failed + drain.dropped, {"sink": name}) for name, drain in parts.sinks.items()]),
        Family("edged_mqtt_connected", "gauge", "1 while the broker is there.", [Sample(parts.publisher.connected)]),
        Family("edged_mqtt_reconnects_total", "counter", "Connections made after the first.",
               [Sample(parts.publisher.reconnects)]),
        Family("edged_mqtt_sent_total", "counter", "Messages the broker took.", [Sample(parts.publisher.sent)]),
        Family("edged_spool_messages", "gauge", "Messages waiting for the broker.", [Sample(spool.depth)]),
        Family("edged_spool_bytes", "gauge", "What they take.", [Sample(spool.bytes)]),
        Family("edged_spool_dropped_total", "counter", "Messages dropped, by reason.",
               [Sample(count, {"pipeline": name, "reason": reason})
                for name, reasons in spool.drops.items() for reason, count in reasons.items()]),
        Family("edged_spool_refused_total", "counter", "Messages the broker refused.",
               [Sample(sum(reasons.values()), {"pipeline": name}) for name, reasons in spool.parks.items()]),
        Family("edged_spool_oldest_seconds", "gauge", "Age of the oldest message in memory.",
               [Sample(spool.oldest or 0.0)]),
        Family("edged_spool_replayed_total", "counter", "Messages sent later than they were made.",
               [Sample(parts.publisher.replayed)]),
        Family("edged_spool_parked_messages", "gauge", "Refused messages that are kept to be looked at.",
               [Sample(len(parts.publisher.spool.parked()))]),
        Family("edged_spool_drain_rate", "gauge", "Messages a second that the broker takes.",
               [Sample(parts.publisher.rate)]),
        Family("edged_spool_seconds_to_empty", "gauge", "When nothing will wait, if it goes on like this.",
               _known_values(parts.publisher.seconds_to_empty)),
        *_disk_families(spool.disk),
    ]  # fmt: skip


def _accelerator_families(parts: Parts) -> list[Family]:
    standings, counts = parts.accelerators.standings(), parts.accelerators.counts()
    if not standings:
        return []
    runners = {name: part.runner for name, part in parts.models.items() if name in standings and part.runner}
    return [
        Family("edged_accelerator_state", "gauge", "1 for the state that the accelerator of a model is in.",
               [Sample(state == standing.state, {"model": model, "accelerator": name, "state": state})
                for model, (name, standing) in standings.items() for state in get_args(StandingState)]),
        Family("edged_accelerator_windows_total", "counter", "Windows that ran on the accelerator, or in its place.",
               [Sample(count, {"accelerator": name, "on": where})
                for name, each in counts.items()
                for where, count in (("accelerator", each.accelerated), ("cpu", each.on_twin))]),
        Family("edged_accelerator_faults_total", "counter", "Faults of an accelerator, by kind.",
               [Sample(count, {"accelerator": name, "kind": kind})
                for name, each in counts.items() for kind, count in each.faults.items()]),
        Family("edged_accelerator_promotions_total", "counter", "How often a model was moved to its accelerator.",
               [Sample(each.promotions, {"accelerator": name}) for name, each in counts.items()]),
        Family("edged_model_nodes", "gauge", "Nodes of the model's graph.",
               [Sample(runner.nodes, {"model": model}) for model, runner in runners.items()]),
        Family("edged_model_delegated_nodes", "gauge", "Those of them that a delegate runs.",
               [Sample(runner.delegated, {"model": model}) for model, runner in runners.items()]),
        Family("edged_model_off_processor_ratio", "gauge", "Share of an accelerated inference off the processor.",
               [Sample(share, {"model": model}) for model, share in parts.accelerators.shares().items()]),
    ]  # fmt: skip


def _disk_families(disk: DiskStats | None) -> list[Family]:
    if disk is None:
        return []
    return [
        Family("edged_spool_file_bytes", "gauge", "Bytes in use of the spool's file.", [Sample(disk.file_bytes)]),
        Family("edged_spool_day_written_bytes", "gauge", "Bytes written to disk within a day.",
               _known_values(disk.written)),
        Family("edged_spool_day_limit_bytes", "gauge", "How many may be written within a day, 0 for any number.",
               [Sample(disk.daily_bytes)]),
        Family("edged_spool_unsaved_messages", "gauge", "Messages a power cut would cost now.", [Sample(disk.unsaved)]),
        Family("edged_spool_unsaved_seconds", "gauge", "Age of the oldest of them.", [Sample(disk.unsaved_seconds)]),
        Family("edged_spool_loss_messages", "gauge", "Messages a power cut may cost at most.",
               _known_values(disk.loss_messages)),
        Family("edged_spool_loss_seconds", "gauge", "Age of the oldest of them, at most.",
               _known_values(disk.loss_seconds)),
        Family("edged_spool_late_total", "counter", "Messages of \"always\" that went on before they were saved.",
               [Sample(disk.late)]),
        Family("edged_spool_commit_seconds", "gauge", "How long the last commits took, by percentile.",
               [Sample(seconds, {"percentile": share}) for share, seconds in disk.commit.items()
                if seconds is not None]),
    ]  # fmt: skip


def _known_values(value: float | None) -> list[Sample]:
    return [] if value is None else [Sample(value)]


def resident_bytes() -> int:
    """Memory the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _numbers(args: dict[str, Any]) -> list[int] | None:
    """Which refused messages are meant, None for all."""
    numbers = args.get("numbers")
    if numbers == "all":
        return None
    if not isinstance(numbers, list) or not numbers or not all(type(number) is int for number in numbers):
        raise ControlError("it is not said which messages", hint='give their numbers, or "all"')
    return numbers


def _refusal(error: ConfigErrors | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"message": error.message, "problems": [str(problem) for problem in error.problems]}


def _is_installed(known: dict[str, Any]) -> bool:
    """Return whether a model has a version that is not the factory's."""
    return any("factory" not in each["roles"] for each in known["versions"])


def _known(names: dict[str, Any]) -> str:
    return f"there are: {some(sorted(names))}" if names else "the configuration has none"
