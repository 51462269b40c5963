"""State topics: every change of health makes one line in the log and one retained state at the broker.

A part reports a change on the thread of the change. The publisher only takes a state into memory, and never blocks.
Parts without a state topic (sinks, spool, broker, metrics page) are logged only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

import msgspec

from edged import __version__
from edged.app.reload import Names
from edged.app.state import ServiceState
from edged.core import source_health
from edged.core.acceleration import AcceleratorStatus
from edged.core.health import Health, Status
from edged.core.record import TIME_DECIMALS, UpdateStep, encode_acceleration, encode_state, encode_step
from edged.core.topics import Topics
from edged.flow.dependent import LIVE, DependentStatus

if TYPE_CHECKING:
    from edged.updates.jobs import Event

log = logging.getLogger("edged.daemon")

_TOPICS: dict[str, Callable[[Topics, str], str]] = {
    "source": Topics.source_state,
    "model": Topics.model_state,
    "pipeline": Topics.pipeline_state,
}


def log_change(kind: str, name: str, health: Health) -> None:
    """Log a change of health: a warning for "degraded" and "failed"."""
    level = logging.WARNING if health.state in ("degraded", "failed") else logging.INFO
    why = f": {health.reason}" if health.reason else ""
    remedy = f" ({health.hint})" if health.hint else ""
    log.log(level, "%s %s is %s%s%s", kind, name, health.state, why, remedy, extra={kind: name})


class StateTopics:
    """Logs and publishes the changes of all parts of a service. Any thread may call."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state
        self._source_lock = Lock()

    def new_status(self, kind: str, name: str) -> Status:
        """Return the status of a new part, published as "starting", and again with every change."""
        status = Status(name, time.monotonic, partial(self._change, kind))
        self._publish(kind, name, status.health)
        return status

    def new_pipeline_status(self, name: str) -> DependentStatus:
        """Return the status of a new pipeline, published like the status of any part."""
        status = DependentStatus(name, time.monotonic, partial(self._change, "pipeline"))
        self._publish("pipeline", name, status.health)
        return status

    def follow_source(self, source: str) -> None:
        """Have the pipelines of a source show a failure or the recovery of the source."""
        with self._source_lock:  # so that the pipelines show the newest health in the end
            reader = self._state.sources.get(source)
            if reader is None:  # the source is not built yet, or is being taken down
                return
            for part in list(self._state.pipelines.values()):
                if part.entry.source == source:
                    part.status.depend(source_health.failure(source, reader.status.health))

    def publish_service(self, health: Health) -> None:
        """Publish the state of the daemon itself."""
        state = self._state
        spool = state.publisher.spool.stats
        details = {"version": __version__, "boot": state.boot, "dropped": spool.drops, "refused": spool.parks}
        payload = encode_state(state.config.device.name, health, state.clock, details)
        state.publisher.publish_state(state.topics.state, payload)

    def publish_step(self, event: Event) -> None:
        """Log, count and publish a step of an update."""
        log.info("%s: %s", event.model, event.text, extra={"model": event.model, "step": event.id})
        state = self._state
        state.steps[event.model, event.id] += 1
        if not event.model:  # the file was no bundle, so the model is unknown
            return
        fields = msgspec.structs.asdict(event) | {"time": round(state.clock.at(event.time), TIME_DECIMALS)}
        state.publisher.publish_state(state.topics.model_update(event.model), encode_step(UpdateStep(**fields)))

    def publish_accelerator(self, model: str, name: str, status: AcceleratorStatus | None) -> None:
        """Log and publish the accelerator of a model; None clears the retained state."""
        if status is None:
            self._state.publisher.forget_state(self._state.topics.model_accelerator(model))
            return
        level = logging.WARNING if status.is_fault else logging.INFO
        why = f": {status.reason}" if status.reason else ""
        log.log(level, "model %s on %s is %s%s", model, name, status.state, why, extra={"model": model})
        self._publish_accelerator(model, name, status)

    def publish_again(self, accelerators: Mapping[str, tuple[str, AcceleratorStatus]]) -> None:
        """Publish every retained state again after the clock was set, since each state contains a time."""
        state = self._state
        for kind, family in (("source", state.sources), ("model", state.models), ("pipeline", state.pipelines)):
            for name, part in family.items():
                self._publish(kind, name, part.status.health)
        for pipeline in state.pipelines.values():
            if pipeline.decision is not None:
                pipeline.decision.restamp()
        for model, (name, status) in accelerators.items():
            self._publish_accelerator(model, name, status)

    def publish_stopped(self, names: Names) -> None:
        """Publish "stopped" as the state of these sources, models and pipelines."""
        stopped = Health("stopped", "", "", time.monotonic())
        for kind, family in (("source", names.sources), ("model", names.models), ("pipeline", names.pipelines)):
            for name in family:
                self._publish(kind, name, stopped)

    def _change(self, kind: str, name: str, health: Health) -> None:
        log_change(kind, name, health)
        self._publish(kind, name, health)
        if kind == "source":
            self.follow_source(name)

    def _publish(self, kind: str, name: str, health: Health) -> None:
        state = self._state
        topic = _TOPICS.get(kind)
        if topic is not None:
            state.publisher.publish_state(topic(state.topics, name), encode_state(name, health, state.clock))
        if kind == "pipeline" and health.state not in LIVE:  # after the state: a decision needs a live pipeline
            part = state.pipelines.get(name)
            if part is not None and part.decision is not None:
                part.decision.withdraw()
            else:  # an earlier run of the daemon may have left a decision
                state.publisher.forget_state(state.topics.decision(name))

    def _publish_accelerator(self, model: str, name: str, status: AcceleratorStatus) -> None:
        state = self._state
        payload = encode_acceleration(model, name, status, state.clock)
        state.publisher.publish_state(state.topics.model_accelerator(model), payload)
