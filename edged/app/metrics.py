"""The figures of the running service, as families of Prometheus metrics."""

import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from edged import __version__
from edged.acceleration.placement import Accelerators
from edged.app.state import ServiceState
from edged.core.acceleration import AcceleratorStateName
from edged.core.metrics import Family, Sample
from edged.flow.pipeline import Pipeline
from edged.flow.reader import Reader
from edged.outbox.spool import DiskStats


def families(state: ServiceState, accelerators: Accelerators) -> list[Family]:
    """Return every figure, for Prometheus."""
    flows = {name: part.flow for name, part in state.pipelines.items() if part.flow is not None}
    sources = state.sources
    spool = state.publisher.spool.stats
    healths = [
        *(("pipeline", name, part.status.health) for name, part in state.pipelines.items()),
        *(("source", name, reader.status.health) for name, reader in sources.items()),
        *(("model", name, part.status.health) for name, part in state.models.items()),
        *(("sink", name, drain.delivery.status.health) for name, drain in state.sinks.items()),
        ("mqtt", "mqtt", state.publisher.status.health),
        ("spool", "spool", state.publisher.spool.health),
    ]

    def by_pipeline(value: Callable[[Pipeline], float]) -> list[Sample]:
        return [Sample(value(flow), {"pipeline": name}) for name, flow in flows.items()]

    def by_source(value: Callable[[Reader], float]) -> list[Sample]:
        return [Sample(value(reader), {"source": name}) for name, reader in sources.items()]

    return [
        Family("edged_info", "gauge", "The running daemon.", [Sample(1, {"version": __version__, "boot": state.boot})]),
        Family("edged_uptime_seconds", "gauge", "Time since start.", [Sample(time.monotonic() - state.started)]),
        Family("edged_resident_memory_bytes", "gauge", "Memory in use.", [Sample(resident_bytes())]),
        Family("edged_clock_synchronised", "gauge", "1 if the wall clock is synchronised.",
               [Sample(state.clock.synchronised)]),
        Family("edged_state", "gauge", "1 for the present state of each part.",
               [Sample(1, {"part": part, "name": name, "state": health.state}) for part, name, health in healths]),
        Family("edged_source_samples_total", "counter", "Samples read.", by_source(lambda reader: reader.samples)),
        Family("edged_source_lost_samples_total", "counter", "Samples known to be missing.",
               by_source(lambda reader: reader.lost)),
        Family("edged_source_reconnects_total", "counter", "Times a source was opened again after a failure.",
               by_source(lambda reader: reader.reconnects)),
        Family("edged_source_rate_hertz", "gauge", "Samples per second as measured.",
               by_source(lambda reader: reader.measured_rate or math.nan)),
        Family("edged_source_faults_total", "counter", "Discarded input, by reason.",
               [Sample(count, {"source": name, "reason": reason})
                for name, reader in sources.items() for reason, count in reader.faults.items()]),
        Family("edged_pipeline_windows_total", "counter", "Windows cut.", by_pipeline(lambda flow: flow.windows)),
        Family("edged_pipeline_dropped_windows_total", "counter", "Windows dropped by a full mailbox.",
               by_pipeline(lambda flow: flow.mailbox.dropped)),
        Family("edged_pipeline_predictions_total", "counter", "Predictions made.",
               by_pipeline(lambda flow: flow.predictions)),
        Family("edged_pipeline_errors_total", "counter", "Windows on which the model failed.",
               by_pipeline(lambda flow: flow.errors)),
        Family("edged_pipeline_latency_seconds", "histogram", "From a window's last sample to its prediction.",
               [sample for name, flow in flows.items() for sample in flow.latency.histogram({"pipeline": name})]),
        Family("edged_pipeline_inference_seconds", "histogram", "Time of an inference.",
               [sample for name, flow in flows.items() for sample in flow.inference.histogram({"pipeline": name})]),
        Family("edged_model_info", "gauge", "The serving version, its runtime and delegate.",
               [Sample(1, {"model": name, "version": part.bundle.manifest.version, "runtime": part.runner.runtime,
                           "delegate": part.runner.delegate})
                for name, part in state.models.items() if part.bundle is not None and part.runner is not None]),
        *_accelerator_families(state, accelerators),
        Family("edged_update_steps_total", "counter", "Steps of model updates, by kind.",
               [Sample(count, {"model": model, "step": step}) for (model, step), count in state.steps.items()]),
        Family("edged_sink_sent_total", "counter", "Predictions accepted by a sink.",
               [Sample(drain.delivery.sent, {"sink": name}) for name, drain in state.sinks.items()]),
        Family("edged_sink_dropped_total", "counter", "Predictions lost by a failing or slow sink.",
               [Sample(drain.delivery.failed + drain.dropped, {"sink": name}) for name, drain in state.sinks.items()]),
        Family("edged_mqtt_connected", "gauge", "1 while connected to the broker.",
               [Sample(state.publisher.connected)]),
        Family("edged_mqtt_reconnects_total", "counter", "Connections made after the first.",
               [Sample(state.publisher.reconnects)]),
        Family("edged_mqtt_sent_total", "counter", "Results accepted by the broker; states are not counted.",
               [Sample(state.publisher.sent)]),
        Family("edged_spool_messages", "gauge", "Messages waiting for the broker.", [Sample(spool.depth)]),
        Family("edged_spool_bytes", "gauge", "Bytes of the waiting messages.", [Sample(spool.bytes)]),
        Family("edged_spool_dropped_total", "counter", "Messages dropped, by reason.",
               [Sample(count, {"pipeline": name, "reason": reason})
                for name, reasons in spool.drops.items() for reason, count in reasons.items()]),
        Family("edged_spool_refused_total", "counter", "Messages refused by the broker.",
               [Sample(sum(reasons.values()), {"pipeline": name}) for name, reasons in spool.parks.items()]),
        Family("edged_spool_oldest_seconds", "gauge", "Age of the oldest message in memory.",
               [Sample(spool.oldest or 0.0)]),
        Family("edged_spool_replayed_total", "counter", "Messages sent from the backlog.",
               [Sample(state.publisher.replayed)]),
        Family("edged_spool_parked_messages", "gauge", "Refused messages kept for inspection.",
               [Sample(len(state.publisher.spool.parked()))]),
        Family("edged_spool_drain_rate", "gauge", "Messages accepted by the broker per second.",
               [Sample(state.publisher.rate)]),
        Family("edged_spool_seconds_to_empty", "gauge", "Seconds until no message waits, at the present rate.",
               _known_values(state.publisher.seconds_to_empty)),
        *_disk_families(spool.disk),
    ]  # fmt: skip


def _accelerator_families(state: ServiceState, accelerators: Accelerators) -> list[Family]:
    statuses, counts = accelerators.statuses(), accelerators.counts()
    if not statuses:
        return []
    runners = {name: part.runner for name, part in state.models.items() if name in statuses and part.runner}
    return [
        Family("edged_accelerator_state", "gauge", "1 for the present state of a model's accelerator.",
               [Sample(each == status.state, {"model": model, "accelerator": name, "state": each})
                for model, (name, status) in statuses.items() for each in get_args(AcceleratorStateName)]),
        Family("edged_accelerator_windows_total", "counter", "Windows that ran on the accelerator, or on its twin.",
               [Sample(count, {"accelerator": name, "on": where})
                for name, each in counts.items()
                for where, count in (("accelerator", each.accelerated), ("cpu", each.on_twin))]),
        Family("edged_accelerator_faults_total", "counter", "Faults of an accelerator, by kind.",
               [Sample(count, {"accelerator": name, "kind": kind})
                for name, each in counts.items() for kind, count in each.faults.items()]),
        Family("edged_accelerator_promotions_total", "counter", "Moves of a model to its accelerator.",
               [Sample(each.promotions, {"accelerator": name}) for name, each in counts.items()]),
        Family("edged_model_nodes", "gauge", "Nodes of the model's graph.",
               [Sample(runner.nodes, {"model": model}) for model, runner in runners.items()]),
        Family("edged_model_delegated_nodes", "gauge", "Nodes of the graph on a delegate.",
               [Sample(runner.delegated, {"model": model}) for model, runner in runners.items()]),
        Family("edged_model_off_processor_ratio", "gauge", "Share of an accelerated inference off the processor.",
               [Sample(share, {"model": model}) for model, share in accelerators.shares().items()]),
    ]  # fmt: skip


def _disk_families(disk: DiskStats | None) -> list[Family]:
    if disk is None:
        return []
    return [
        Family("edged_spool_file_bytes", "gauge", "Bytes in use of the spool's file.", [Sample(disk.file_bytes)]),
        Family("edged_spool_day_written_bytes", "gauge", "Bytes written to disk within a day.",
               _known_values(disk.written)),
        Family("edged_spool_day_limit_bytes", "gauge", "Bytes allowed on disk within a day, 0 for any number.",
               [Sample(disk.daily_bytes)]),
        Family("edged_spool_unsaved_messages", "gauge", "Messages lost by a power cut now.", [Sample(disk.unsaved)]),
        Family("edged_spool_unsaved_seconds", "gauge", "Age of the oldest unsaved message.",
               [Sample(disk.unsaved_seconds)]),
        Family("edged_spool_loss_messages", "gauge", "Messages lost by a power cut, at most.",
               _known_values(disk.loss_messages)),
        Family("edged_spool_loss_seconds", "gauge", "Age of the oldest message lost by a power cut, at most.",
               _known_values(disk.loss_seconds)),
        Family("edged_spool_late_total", "counter", "Messages of \"always\" sent before they were saved.",
               [Sample(disk.late)]),
        Family("edged_spool_commit_seconds", "gauge", "Duration of the last commits, by percentile.",
               [Sample(seconds, {"percentile": share}) for share, seconds in disk.commit.items()
                if seconds is not None]),
    ]  # fmt: skip


def _known_values(value: float | None) -> list[Sample]:
    return [] if value is None else [Sample(value)]


def resident_bytes() -> int:
    """Return the resident memory of the process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
