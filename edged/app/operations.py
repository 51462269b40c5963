"""The verbs of the control socket about the running service: status, lists, metrics, reload, spool, release.

The daemon changes `ServiceState`, and the verbs read the state on the event loop's thread. Each counter has a single
writer and is read without a lock: a figure may be a moment old.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection

from edged import __version__
from edged.acceleration.placement import Accelerators
from edged.acceleration.verbs import Proving
from edged.api import ControlError, EdgedError
from edged.app.forget_device import forget_device, parse_device
from edged.app.metrics import families, resident_bytes
from edged.app.reload import TouchedNames
from edged.app.state import PipelineState, ServiceState, Tap
from edged.app.status import overall
from edged.config.load import ConfigErrors
from edged.core import answers
from edged.core.answers import (
    AcceleratorAnswer,
    ConfigErrorAnswer,
    DiskAnswer,
    ForgetDeviceAnswer,
    HealthAnswer,
    MetricsAnswer,
    ModelAnswer,
    ModelVersionsAnswer,
    MqttAnswer,
    OutcomeAnswer,
    PercentilesAnswer,
    PipelineAnswer,
    ProofAnswer,
    ReleaseAnswer,
    ReloadAnswer,
    ResultAnswer,
    SourceAnswer,
    SpoolAnswer,
    SpoolCountAnswer,
    SpoolStatsAnswer,
    StatusAnswer,
)
from edged.core.errors import some
from edged.core.health import Health
from edged.core.metrics import render
from edged.core.protocol import Args
from edged.core.topics import Topics
from edged.models.selftest import Proof
from edged.outbox.spool import DiskStats, SpoolStats
from edged.updates.verbs import Updates

NAMESAKE_SECONDS = 3600.0
"""Time to show another board of the same name in the status after the last message of that board."""

_FEW_VALUES = 16

RELOAD_SECONDS = 5.0
"""Time for a reload to finish before the answer. A longer reload goes on afterwards."""

DISK_SECONDS = 5.0
"""Seconds to wait for the disk in a call for the models' versions."""

_UNKNOWN: ModelVersionsAnswer = {"pinned": None, "versions": None}


class Operations:
    """The verbs. `call` returns an answer; `stream` yields answers until the caller stops."""

    def __init__(
        self,
        state: ServiceState,
        accelerators: Accelerators,
        reload: Callable[[], Awaitable[TouchedNames]],
        updates: Updates,
        proving: Proving,
    ) -> None:
        self._state = state
        self._accelerators = accelerators
        self._calls = {
            **updates.calls,
            **dict(
                (
                    answers.STATUS.by(self._status),
                    answers.PIPELINES.by(self._pipelines),
                    answers.SOURCES.by(self._sources),
                    answers.MODELS.by(self._models),
                    answers.METRICS.by(self._metrics),
                    answers.RELOAD.by(self._reload),
                    answers.SPOOL.by(self._spool),
                    answers.SPOOL_RETRY.by(self._spool_retry),
                    answers.SPOOL_DROP.by(self._spool_drop),
                    answers.RELEASE.by(self._release),
                    answers.FORGET_DEVICE.by(self._forget_device),
                )
            ),
        }
        self._do_reload = reload
        self._versions = updates.versions
        self._reloads: set[asyncio.Future[TouchedNames]] = set()

        self._streams = {**updates.streams, **proving.streams, **dict([answers.WATCH.by(self._watch)])}
        self.calls = frozenset(self._calls)
        self.streams = frozenset(self._streams)
        changes = frozenset({"reload", "release", "forget-device", "spool-retry", "spool-drop"})
        self.changes = changes | updates.changes | proving.changes

    async def call(self, verb: str, args: Args) -> object:
        """Return the answer of a verb in `calls`, ready for JSON. Raises EdgedError for a failed request."""
        return await self._calls[verb](args)

    def stream(self, verb: str, args: Args) -> AsyncGenerator[object, None]:
        """Yield the answers of a verb in `streams`. Raises EdgedError for a failed request."""
        return self._streams[verb](args)

    async def _watch(self, args: Args) -> AsyncGenerator[ResultAnswer, None]:
        """Yield the results of a pipeline, or of all pipelines. Raises ControlError for an unknown pipeline."""
        name, watchers = args.get("pipeline"), self._state.watchers
        if name is not None and (not isinstance(name, str) or name not in self._state.pipelines):
            raise ControlError(f"there is no pipeline {name!r}", hint=_known(self._state.pipelines))
        tap = Tap(self._state, name, asyncio.get_running_loop())
        watchers.taps = (*watchers.taps, tap)
        try:
            while True:
                yield await tap.queue.get()
        finally:
            watchers.taps = tuple(other for other in watchers.taps if other is not tap)

    async def _status(self, args: Args) -> StatusAnswer:
        state = self._state
        now = time.monotonic()
        health = overall(state, self._accelerators)
        return {
            "device": state.config.device.name,
            "version": __version__,
            "boot": state.boot,
            "uptime": now - state.started,
            "state": health.state,
            "health": self._health(health),
            "clock": {"synchronised": state.clock.synchronised},
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
                for name, drain in state.sinks.items()
            ],
            "config": {
                "files": [str(file.absolute()) for file in state.files],
                "state_dir": str(state.state_dir.absolute()),
                "loaded": state.clock.at(state.loaded),
                "error": _refusal(state.refused),
            },
            "memory": {"rss_bytes": resident_bytes()},
        }

    def _mqtt(self) -> MqttAnswer:
        publisher = self._state.publisher
        spool = publisher.spool.stats
        return {
            "broker": publisher.broker,
            "connected": publisher.connected,
            "sent": publisher.sent,
            "last_sent": None if publisher.last_sent is None else self._state.clock.at(publisher.last_sent),
            "last_sent_ago": None if publisher.last_sent is None else time.monotonic() - publisher.last_sent,
            "reconnects": publisher.reconnects,
            "namesake": self._namesake(),
            "spool": {**_spool_stats(spool), "health": self._health(publisher.spool.health)},
            "health": self._health(publisher.status.health),
        }

    def _namesake(self) -> str:
        """Return the boot of another board with the same name, or "" after NAMESAKE_SECONDS without a message."""
        state = self._state
        return state.namesake if time.monotonic() - state.namesake_at < NAMESAKE_SECONDS else ""

    async def _pipelines(self, args: Args) -> list[PipelineAnswer]:
        return [self._pipeline(name, part) for name, part in self._state.pipelines.items()]

    def _pipeline(self, name: str, part: PipelineState) -> PipelineAnswer:
        flow = part.flow
        model = self._state.models.get(part.entry.model)
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
            "latency": _percentiles(flow.latency.percentiles()) if flow else None,
            "inference": _percentiles(flow.inference.percentiles()) if flow else None,
            "runner": part.runner.answer() if part.runner else None,
            "last": _shortened(self._state.recorder.result(flow.last)) if flow and flow.last else None,
            "health": self._health(part.status.health),
        }

    async def _sources(self, args: Args) -> list[SourceAnswer]:
        entries = self._state.config.sources
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
                "refused_ago": None if reader.refused_at is None else time.monotonic() - reader.refused_at,
                "health": self._health(reader.status.health),
            }
            for name, reader in self._state.sources.items()
        ]

    async def _models(self, args: Args) -> list[ModelAnswer]:
        """Return all configured or installed models with versions, or None as versions if the disk is too slow."""
        known: dict[str, ModelVersionsAnswer] = {}
        with contextlib.suppress(EdgedError, TimeoutError):
            async with asyncio.timeout(DISK_SECONDS):
                known = await self._versions()
        configured = self._serving_models()
        names = {model["name"] for model in configured}
        unused = [self._unused(name) for name, each in known.items() if name not in names and _is_installed(each)]
        return [{**model, **known.get(model["name"], _UNKNOWN)} for model in [*configured, *unused]]

    def _serving_models(self) -> list[ModelAnswer]:
        pipelines = self._state.pipelines.items()
        return [
            {
                "name": name,
                "version": part.bundle.manifest.version if part.bundle else "",
                "digest": part.digest,
                "origin": part.origin,
                "pipelines": [pipeline for pipeline, served in pipelines if served.entry.model == name],
                "bytes": part.bundle.manifest.files[part.bundle.manifest.model].bytes if part.bundle else 0,
                "runner": part.runner.answer() if part.runner else None,
                "proof": _proof(part.proof) if part.proof else None,
                "accelerator": self._accelerator(name),
                "choice": self._accelerators.choices().get(name, ""),
                "isolated": self._state.config.models[name].isolate,
                "health": self._health(part.status.health),
            }
            for name, part in self._state.models.items()
        ]

    def _unused(self, name: str) -> ModelAnswer:
        """Return an installed model without a place in the configuration."""
        hint = f'name the model in a pipeline: model = "{name}", then: edgectl reload'
        health = Health("stopped", "no pipeline uses the model", hint, self._state.started)
        return {
            "name": name,
            "version": "",
            "digest": "",
            "origin": "",
            "pipelines": [],
            "bytes": 0,
            "runner": None,
            "proof": None,
            "accelerator": None,
            "choice": "",
            "isolated": False,
            "health": self._health(health),
        }

    def _accelerator(self, model: str) -> AcceleratorAnswer | None:
        """Return the status of a model's accelerator, or None for a model on the CPU."""
        name, status = self._accelerators.statuses().get(model, ("", None))
        if status is None:
            return None
        return {
            "name": name,
            "state": status.state,
            "reason": status.reason,
            "hint": status.hint,
            "since": self._state.clock.at(status.since),
            "for": time.monotonic() - status.since,
            "off_processor": self._accelerators.shares().get(model),
        }

    async def _release(self, args: Args) -> ReleaseAnswer:
        name = args.get("accelerator")
        if not isinstance(name, str):
            raise ControlError("the request names no accelerator", hint="give a name: edgectl release NAME")
        statuses = self._accelerators.statuses().values()
        at_fault = any(accelerator == name and status.is_fault for accelerator, status in statuses)
        self._accelerators.release(name)
        return {"released": name, "changed": at_fault}

    async def _forget_device(self, args: Args) -> ForgetDeviceAnswer:
        config = self._state.config
        device = parse_device(args.get("device"), config.device.name)
        topics = Topics(config.mqtt.prefix, device)
        return {"topics": await forget_device(self._state.publisher, topics, config.mqtt.discovery_prefix)}

    async def _metrics(self, args: Args) -> MetricsAnswer:
        return {"text": render(families(self._state, self._accelerators))}

    async def _reload(self, args: Args) -> ReloadAnswer:
        """Reload, and return the changes, and warnings about settings without effect.

        A reload not yet `done` continues after the answer, since an update may delay the reload. Changes in the tables
        of `restart` take effect when the daemon is started again.
        """
        reloading = asyncio.ensure_future(self._do_reload())
        self._reloads.add(reloading)
        reloading.add_done_callback(self._reloads.discard)
        done, _ = await asyncio.wait([reloading], timeout=RELOAD_SECONDS)
        names = reloading.result() if done else TouchedNames([], [], [])
        warnings = list(map(str, self._state.warnings)) if done else []
        return {
            "changed": names.all,
            "added": names.added,
            "removed": names.removed,
            "done": bool(done),
            "restart": sorted({"control"} & {*names.all}),
            "warnings": warnings,
        }

    async def _spool(self, args: Args) -> SpoolAnswer:
        publisher = self._state.publisher
        spool = publisher.spool
        return {
            **_spool_stats(spool.stats),
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

    async def _spool_retry(self, args: Args) -> SpoolCountAnswer:
        return {"count": self._state.publisher.spool.retry(_numbers(args))}

    async def _spool_drop(self, args: Args) -> SpoolCountAnswer:
        return {"count": self._state.publisher.spool.drop(_numbers(args))}

    def _health(self, health: Health) -> HealthAnswer:
        return {
            "state": health.state,
            "reason": health.reason,
            "hint": health.hint,
            "since": self._state.clock.at(health.since),
            "for": time.monotonic() - health.since,
        }


def _percentiles(found: dict[str, float | None]) -> PercentilesAnswer:
    return {"p50": found["p50"], "p90": found["p90"], "p99": found["p99"]}


def _proof(proof: Proof) -> ProofAnswer:
    return {"samples": proof.samples, "worst": proof.worst}


def _spool_stats(stats: SpoolStats) -> SpoolStatsAnswer:
    return {
        "depth": stats.depth,
        "in_flight": stats.in_flight,
        "on_disk": stats.on_disk,
        "bytes": stats.bytes,
        "oldest": stats.oldest,
        "dropped": stats.dropped,
        "parked": stats.parked,
        "drops": {pipeline: dict(reasons) for pipeline, reasons in stats.drops.items()},
        "parks": {pipeline: dict(reasons) for pipeline, reasons in stats.parks.items()},
        "disk": _disk(stats.disk) if stats.disk else None,
    }


def _disk(disk: DiskStats) -> DiskAnswer:
    return {
        "path": disk.path,
        "file_bytes": disk.file_bytes,
        "written": disk.written,
        "daily_bytes": disk.daily_bytes,
        "unsaved": disk.unsaved,
        "unsaved_seconds": disk.unsaved_seconds,
        "loss_seconds": disk.loss_seconds,
        "loss_messages": disk.loss_messages,
        "late": disk.late,
        "commit": _percentiles(disk.commit),
        "set_aside": [{"path": aside.path, "saved": aside.saved} for aside in disk.set_aside],
    }


def _shortened(record: ResultAnswer) -> ResultAnswer:
    """Return a result for the status: of an array, which may have 100,000 values, the first values and the count.

    Of many objects, too, the first are returned; `counts` holds their number. A vector is left out.
    """
    _shorten(record)
    for outcome in record.get("outcomes", {}).values():
        _shorten(outcome)
    return record


def _shorten(outcome: OutcomeAnswer) -> None:
    outcome.pop("vector", None)
    if "objects" in outcome:
        outcome["objects"] = outcome["objects"][:_FEW_VALUES]
    values = outcome.get("values")
    if isinstance(values, list):
        outcome["values"], outcome["count"] = values[:_FEW_VALUES], len(values)


def _numbers(args: Args) -> list[int] | None:
    """Return the numbers of the requested messages, None for all. Raises ControlError for any other request."""
    numbers = args.get("numbers")
    if numbers == "all":
        return None
    if not isinstance(numbers, list) or not numbers or not all(type(number) is int for number in numbers):
        raise ControlError("the request names no messages", hint='give the numbers of messages, or "all"')
    return numbers


def _refusal(error: ConfigErrors | None) -> ConfigErrorAnswer | None:
    if error is None:
        return None
    return {"message": error.message, "problems": [str(problem) for problem in error.problems]}


def _is_installed(known: ModelVersionsAnswer) -> bool:
    """Return True for a model with a version apart from the factory's."""
    return any("factory" not in each["roles"] for each in known["versions"] or ())


def _known(names: Collection[str]) -> str:
    return f"there are: {some(sorted(names))}" if names else "the configuration has no pipelines"
