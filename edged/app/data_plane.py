"""The data plane: the parts between the sensors and the broker, and the models in them.

`DataPlane` builds the parts for the configuration in effect. No part needs an event loop: a start serves the sensors
before the control plane is imported. A broken part has a state with a reason while the others run on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from edged.acceleration.placement import Accelerators
from edged.app.announced import Announced
from edged.app.build_parts import PartBuilder, new_publisher
from edged.app.presence import BrokerPresence
from edged.app.reload import Names, everything
from edged.app.serving import ServedModels
from edged.app.state import ServiceState
from edged.app.state_topics import StateTopics, log_change
from edged.app.status import overall
from edged.config.load import model_paths
from edged.config.options import Config
from edged.control.clock import KernelClock
from edged.core.health import Status
from edged.core.record import Recorder
from edged.core.topics import Topics
from edged.flow.pipeline import stuck
from edged.models.proofs import FILE as PROOFS
from edged.models.proofs import Proofs
from edged.models.store import Store
from edged.models.tuning_records import Tunings

STUCK_SECONDS = 10.0
"""Time at a single window after which a worker counts as stuck, and the watchdog is not fed."""


class DataPlane:
    """The parts, for the control plane to read and to change. Only one thread at a time calls the methods."""

    def __init__(self, files: Sequence[Path], config: Config, store: Store, state_dir: Path) -> None:
        """Build the permanent parts without starting them."""
        store.paths = model_paths(config)
        boot = os.urandom(6).hex()
        self.store = store
        self.announced = Announced(state_dir, boot)
        clock = KernelClock()
        now = time.monotonic()
        self.new_publisher = partial(new_publisher, state_dir=state_dir, clock=clock, client=self.announced.client)
        self.state = ServiceState(
            boot=boot,
            files=tuple(files),
            state_dir=state_dir,
            config=config,
            clock=clock,
            publisher=self.new_publisher(config),
            topics=Topics(config.mqtt.prefix, config.device.name),
            recorder=Recorder(config.device.name, boot, clock),
            started=now,
            loaded=now,
            metrics_page=Status("metrics", time.monotonic, partial(log_change, "page")),
        )
        self.topics = StateTopics(self.state)
        self.presence = BrokerPresence(self.state, self.announced)
        self.tunings = Tunings(state_dir / "tuning")
        self.accelerators = Accelerators(self.topics.publish_accelerator, records=self.tunings.read)
        self.builder = PartBuilder(self.state, self.topics, store)
        self.proofs = Proofs(state_dir / PROOFS)
        self.serving = ServedModels(
            self.state, self.accelerators, self.proofs, self.builder.flow, self.builder.feed, time.monotonic
        )
        self.next_seq: dict[str, int] = {}  # of pipelines that are down: two results never share an id
        self.on_trial: set[str] = set()  # models new to this board

    def start(self, is_stopped: Callable[[], bool] = lambda: False) -> list[str]:
        """Bring all parts up but for the connection to the broker, which `connect` starts.

        No further model is loaded after `is_stopped`. Returns the models new to this board, not yet loaded.
        """
        self.open()
        names = everything(self.state.config)
        self.configure_accelerators()
        unproven = [name for name in self.enter(names) if not is_stopped() and not self.serving.load(name)]
        self.start_sources(names.sources, unproven)
        self.refresh()
        return unproven

    def open(self) -> None:
        """Start the spool, so that results are kept before the connection."""
        self.state.publisher.open()
        self.presence.start()

    def configure_accelerators(self) -> None:
        """Apply the configuration in effect to the accelerators. Blocks for the end of processes."""
        config = self.state.config
        self.accelerators.configure(config.delegates, config.accelerators)

    def enter(self, names: Names) -> Collection[str]:
        """Build the named sinks, models and pipelines. Returns the models for `ServedModels.load`."""
        state = self.state
        for name in names.models:
            state.models[name] = self.builder.model(name)
        state.sinks |= self.builder.sinks(names.sinks)
        for name in names.pipelines:
            state.pipelines[name] = self.builder.pipeline(name, self.next_seq.get(name, 0))
            self.topics.follow_source(state.config.pipelines[name].source)
        return dict.fromkeys(state.config.pipelines[name].model for name in names.pipelines)

    def start_sources(self, names: Sequence[str] = (), unproven: Sequence[str] = ()) -> None:
        """Build the named sources, and start every source that is not started yet.

        A source waits if all its models are on trial, since a recording would end too early.
        """
        state = self.state
        for name in names:
            state.sources[name] = self.builder.source(name)
        self.builder.feed()
        self.on_trial.update(unproven)
        for name, reader in state.sources.items():
            users = [part for part in state.pipelines.values() if part.entry.source == name]
            awaited = any(part.entry.model in self.on_trial for part in users)
            if not reader.is_started and (not awaited or any(part.flow is not None for part in users)):
                reader.start()
        self.presence.announce()

    def connect(self) -> None:
        """Connect to the broker, after the topics are on record."""
        self.presence.subscribe()
        self.presence.flush()
        self.state.publisher.start()

    def progress(self) -> str:
        """Return "" while every worker and every source makes progress, else the name of a stuck one."""
        flows = [part.flow for part in self.state.pipelines.values() if part.flow is not None]
        held = (reader.stuck(STUCK_SECONDS) for reader in self.state.sources.values())
        return stuck(flows, time.monotonic(), STUCK_SECONDS) or next(filter(None, held), "")

    def refresh(self) -> None:
        """Refresh the clock and the published state of the daemon, and mark hanging sources."""
        state = self.state
        if state.clock.refresh():
            self.topics.publish_again(self.accelerators.statuses())
        for reader in state.sources.values():
            reader.check_hung()
        for part in state.pipelines.values():
            if part.decision is not None:
                part.decision.flush()
        self.presence.announce()
        self.presence.settle()
        self.topics.publish_service(overall(state, self.accelerators))
