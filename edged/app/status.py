"""The health of the whole service, and its line in `systemctl status`."""

from itertools import islice

from msgspec.structs import replace

from edged.acceleration.placement import Accelerators
from edged.app.state import ModelState, PipelineState, ServiceState
from edged.core.errors import some
from edged.core.health import Health

_AT_A_GLANCE = 4
"""Pipelines in the status line; the others are only counted."""


def overall(state: ServiceState, accelerators: Accelerators) -> Health:
    """Return the health of the daemon: the worst health among pipelines, sources, sinks and the broker."""
    healths = [
        *((f"source {name}", reader.status.health) for name, reader in state.sources.items()),
        *((f"pipeline {name}", part.status.health) for name, part in state.pipelines.items()),
        *((f"sink {name}", drain.delivery.status.health) for name, drain in state.sinks.items()),
        ("mqtt", state.publisher.status.health),
        ("spool", state.publisher.spool.health),
        ("metrics", state.metrics_page.health),
        *((f"model {name}", part.status.health) for name, part in state.models.items() if part.files_lost),
        *(
            (f"model {model} on {name}", Health("degraded", status.reason, status.hint, status.since))
            for model, (name, status) in accelerators.statuses().items()
            if status.is_fault
        ),
    ]
    healths += [
        (f"pipeline {name}", replace(part.status.health, state="degraded"))
        for name, part in state.pipelines.items()
        if part.served is None and part.status.health.state == "starting"
    ]
    bad = [(name, health) for name, health in healths if health.state in ("failed", "degraded")]
    if bad:
        name, worst = max(bad, key=lambda item: item[1].state == "failed")
        return Health("degraded", f"{name}: {worst.reason}", worst.hint, worst.since)
    if state.refused is not None:
        return Health("degraded", "the new configuration was refused", "edgectl config check", state.refused_at)
    return Health("running", "", "", state.started)


def summary(state: ServiceState) -> str:
    """Return a line for `systemctl status`: the pipelines, their versions and latencies."""
    serving = sum(part.status.health.state == "running" for part in state.pipelines.values())
    shown = [_served(name, part, state.models) for name, part in islice(state.pipelines.items(), _AT_A_GLANCE)]
    listed = some(shown, _AT_A_GLANCE, of=len(state.pipelines))
    link = "connected" if state.publisher.connected else "not connected"
    return f"{serving} of {len(state.pipelines)} pipelines running{listed and ': '}{listed}; MQTT {link}"


def _served(name: str, part: PipelineState, models: dict[str, ModelState]) -> str:
    """Return the name of a pipeline, its version, and its latency or its state."""
    model = models.get(part.entry.model)
    title = f"{part.entry.model} {model.bundle.manifest.version}" if model and model.bundle else part.entry.model
    if part.flow is None or part.status.health.state != "running":
        return f"{name} ({title}, {part.status.health.state})"
    p50, _, p99 = part.flow.latency.percentiles().values()
    speed = f", p50 {p50 * 1000:.2g} ms, p99 {p99 * 1000:.2g} ms" if p50 and p99 else ""
    return f"{name} ({title}, {part.flow.predictions} results{speed})"
