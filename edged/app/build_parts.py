"""Build sources, models, pipelines and sinks from the tables of the configuration."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edged.api import EdgedError, SinkContext
from edged.app.state import ModelState, PipelineState, ServiceState
from edged.app.state_topics import StateTopics, log_change
from edged.config.check import find_bundle, picture_form
from edged.config.load import publishes
from edged.config.options import Config, PipelineEntry
from edged.control.clock import KernelClock
from edged.core.health import Status
from edged.core.manifest import Manifest
from edged.core.masks import mask_origin
from edged.core.source_match import match_source
from edged.core.topics import Topics
from edged.flow.decision import LatestDecision
from edged.flow.delivery import Delivery, Drain, PredictionSink, Selection
from edged.flow.pipeline import Pipeline
from edged.flow.reader import Reader
from edged.models.store import BRING, MissingModelError, Store
from edged.outbox.disk_spool import DiskSpool
from edged.outbox.options import Policy
from edged.outbox.publisher import Publisher

if TYPE_CHECKING:
    from edged.flow.shared_worker import SharedWorker


class PartBuilder:
    """Builds parts by name from the configuration in effect. A built part is not started, nor entered in the state."""

    def __init__(self, state: ServiceState, topics: StateTopics, store: Store) -> None:
        self._state = state
        self._topics = topics
        self._store = store
        self._feeding = threading.Lock()

    def source(self, name: str) -> Reader:
        """Return a reader, not yet connected to pipelines."""
        entry = self._state.config.sources[name]
        return Reader(
            name,
            entry.options,
            feeds=(),
            status=self._topics.new_status("source", name),
            clock=time.monotonic,
            supervision=entry.supervision,
        )

    def model(self, name: str) -> ModelState:
        """Return a model with its bundle, or with the reason for a missing bundle in the status."""
        part = ModelState(self._topics.new_status("model", name))
        entry = self._state.config.models[name]
        try:
            part.bundle = find_bundle(name, entry, self._store)
        except MissingModelError:
            version = f"version {entry.version}" if entry.version else "version"
            part.status.set("starting", f"no {version} of {name} is on this board yet", BRING)
        except EdgedError as error:
            part.status.set("failed", error.message, error.hint)
        return part

    def pipeline(self, name: str, begins_at: int) -> PipelineState:
        """Return a pipeline without a flow. The first window has the number `begins_at`."""
        config = self._state.config
        entry = config.pipelines[name]
        status = self._topics.new_pipeline_status(name)
        decision = None
        if publishes(config, entry):
            publish = partial(self._state.publisher.publish_state, self._state.topics.decision(name))
            decision = LatestDecision(
                self._state.recorder, status, publish, seconds=entry.decision_seconds, clock=time.monotonic
            )
        return PipelineState(entry, status, decision, begins_at=begins_at)

    def sinks(self, names: tuple[str, ...]) -> dict[str, Drain]:
        """Return the blocking sinks, each with a thread and a queue. Pipelines open the others."""
        entries = self._state.config.sinks
        return {name: Drain(self._delivery(name)) for name in names if entries[name].options.blocking}

    def flow(self, name: str, manifest: Manifest) -> Pipeline:
        """Return the flow of a pipeline for a version of its model.

        Raises:
            ConfigError: the source lacks channels, units or a rate of the version's window.
        """
        state = self._state
        part = state.pipelines[name]
        entry = part.entry
        info = state.config.sources[entry.source].options.describe()

        def rate() -> float | None:
            reader = state.sources.get(entry.source)
            return info.pace or manifest.window.rate or info.rate or (reader.measured_rate if reader else None)

        outbox_first = sorted(entry.sinks, key=state.sinks.__contains__)  # messages are saved before they are shown
        return Pipeline(
            name,
            manifest.window,
            columns=match_source(manifest.window, info, entry.source, entry.model),
            patient=info.patient,
            capacity=entry.queue,
            sinks=[
                *(self._sink(entry, sink) for sink in outbox_first),
                *([part.decision] if part.decision else []),
                *self._masks(entry),
                state.watchers,
            ],
            status=part.status,
            clock=time.monotonic,
            rate=rate,
            next_seq=part.next_seq,
            form=picture_form(entry, manifest) if info.pictures else None,
        )

    def _masks(self, entry: PipelineEntry) -> list[PredictionSink]:
        if entry.publish_mask is None:
            return []
        from edged.flow.mask_sender import MaskSender

        state = self._state
        return [
            MaskSender(
                entry.publish_mask,
                entry.mask_seconds,
                recorder=state.recorder,
                topics=state.topics,
                outbox=state.publisher,
            )
        ]

    def feed(self) -> None:
        """Give every reader the flows of its source. Any thread may call: a swap and a reload may do so at once.

        Unless each result is to be written to the disk, the only flow of a source may serve in place, and several may
        have a worker in common.
        """
        with self._feeding:
            for name, reader in list(self._state.sources.items()):
                parts = [part for part in list(self._state.pipelines.values()) if part.entry.source == name]
                flows = [(flow, part) for part in parts for flow in (part.flow, part.spare) if flow]
                shared = _shared_worker(reader) if len(flows) > 1 else None
                for flow, part in flows:
                    waits = part.entry.durability == "always"
                    flow.in_place = not shared and not waits
                    flow.shared = None if waits else shared
                reader.feeds = tuple(flow for flow, _ in flows)

    def _sink(self, entry: PipelineEntry, sink: str) -> PredictionSink:
        sender = self._state.sinks.get(sink) or self._delivery(sink)
        if entry.publish == "all" or self._state.config.sinks[sink].kind != "mqtt":
            return sender
        return Selection(sender, entry.publish)

    def _delivery(self, name: str) -> Delivery:
        state = self._state
        context = SinkContext(
            device=state.config.device.name,
            boot=state.boot,
            topics=state.topics,
            outbox=state.publisher,
            clock=state.clock,
        )
        return Delivery(partial(state.config.sinks[name].options.open, context), self._topics.new_status("sink", name))


def _shared_worker(reader: Reader) -> SharedWorker:
    """Return the shared worker of a source, from the first call on the same."""
    from edged.flow.shared_worker import SharedWorker  # a source with one pipeline needs none

    if reader.shared is None:
        reader.shared = SharedWorker(reader.name, time.monotonic)
    return reader.shared


def new_publisher(config: Config, state_dir: Path, clock: KernelClock, client: str) -> Publisher:
    """Return an unconnected publisher with a spool in the state folder."""
    disk = Status("disk", time.monotonic, partial(log_change, "spool"))
    spool = DiskSpool(state_dir / "spool", config.spool, spool_policies(config), status=disk, wall=clock)
    broker = Status("broker", time.monotonic, partial(log_change, "mqtt"))
    topics = Topics(config.mqtt.prefix, config.device.name)
    return Publisher(config.mqtt, topics, spool, broker, wall=clock, client=client)


def spool_policies(config: Config) -> dict[str, Policy]:
    """Return the policy of the spool for the messages of each pipeline."""
    policies = {name: entry.policy for name, entry in config.pipelines.items()}
    with_masks = [name for name, entry in config.pipelines.items() if entry.publish_mask]
    masks = {mask_origin(name): Policy(durability="memory") for name in with_masks}
    return policies | masks
