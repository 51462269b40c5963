"""The health of the whole service, and the line that systemd shows."""

from itertools import islice

from msgspec.structs import replace

from edged.app.state import ModelState, PipelineState, ServiceState
from edged.core.errors import some
from edged.core.health import Health

_AT_A_GLANCE = 4
"""So many pipelines are in the status line; the others are counted."""


def overall(parts: ServiceState) -> Health:
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


def summary(parts: ServiceState) -> str:
    """One line for `systemctl status`: what is served, and how fast."""
    serving = sum(part.status.health.state == "running" for part in parts.pipelines.values())
    shown = [_served(name, part, parts.models) for name, part in islice(parts.pipelines.items(), _AT_A_GLANCE)]
    listed = some(shown, _AT_A_GLANCE, of=len(parts.pipelines))
    link = "connected" if parts.publisher.connected else "not connected"
    return f"{serving} of {len(parts.pipelines)} pipelines running{listed and ': '}{listed}; MQTT {link}"


def _served(name: str, part: PipelineState, models: dict[str, ModelState]) -> str:
    """A pipeline, the version that serves in it, and how long a result takes; or how it is instead."""
    model = models.get(part.entry.model)
    title = f"{part.entry.model} {model.bundle.manifest.version}" if model and model.bundle else part.entry.model
    if part.flow is None or part.status.health.state != "running":
        return f"{name} ({title}, {part.status.health.state})"
    p50, _, p99 = part.flow.latency.percentiles().values()
    speed = f", p50 {p50 * 1000:.2g} ms, p99 {p99 * 1000:.2g} ms" if p50 and p99 else ""
    return f"{name} ({title}, {part.flow.predictions} results{speed})"
