"""The composition root: build every part, hand the parts to one another, start in order, stop in reverse.

`run` is the daemon's whole life, top to bottom. `compose` builds each part from earlier parts: state, serving, updater,
updates, daemon. The `Daemon` brings the configured parts up and down; no other part has a reference to the object.
A broken part has a state with a reason while the others run on; a repaired device or a reload brings the part back.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from edged import __version__
from edged.acceleration.placement import Accelerators
from edged.acceleration.verbs import Proving
from edged.api import ControlError, EdgedError, Message, StoreError
from edged.app.admission import Admission, trust_of
from edged.app.announced import Announced
from edged.app.build_parts import PartBuilder, new_publisher, spool_policies
from edged.app.check import checked
from edged.app.flow_swap import CHUNK_SECONDS
from edged.app.metrics import families
from edged.app.operations import Operations
from edged.app.presence import BrokerPresence
from edged.app.reload import (
    Names,
    affected_models,
    arriving,
    everything,
    leaving,
    restarts_everything,
    touched_names,
)
from edged.app.serving import ServedModels
from edged.app.state import ModelState, ServiceState
from edged.app.state_lock import StateLock
from edged.app.state_topics import StateTopics, log_change
from edged.app.status import overall, summary
from edged.app.upkeep import FileKeeper, delete_stale_transfers
from edged.config.diff import Changes, changes
from edged.config.load import ConfigErrors, load, model_paths
from edged.config.options import Config, UpdateOptions
from edged.control.clock import REFRESH, KernelClock, SetNotice
from edged.control.server import Server
from edged.control.systemd import Notifier
from edged.control.web import Web
from edged.core import protocol
from edged.core.decide import Keep
from edged.core.health import Health, Status
from edged.core.manifest import MAX_BUNDLE_BYTES
from edged.core.metrics import render
from edged.core.record import Recorder
from edged.core.topics import Topics
from edged.flow.pipeline import Pipeline, stuck
from edged.flow.reader import Reader
from edged.models.atomic_files import Disk
from edged.models.proofs import FILE as PROOFS
from edged.models.proofs import Proofs
from edged.models.store import Store
from edged.models.tuning_records import Tunings
from edged.outbox.publisher import Publisher
from edged.system.later import asyncio
from edged.system.log import set_up
from edged.transfer.partial_files import PartialFiles
from edged.updates.desired import DesiredVersionPoller
from edged.updates.jobs import Event
from edged.updates.updater import Updater
from edged.updates.verbs import Updates

log = logging.getLogger("edged.daemon")

T = TypeVar("T")

TRIAL_PATIENCE = 10.0
"""Time for the first trials of new models during a start or a reload; the other models serve meanwhile."""

DRAIN_SECONDS = 8.0
"""Time for a clean stop to finish the windows in hand and to send messages."""

SAVE_SECONDS = 5.0
"""Time for a clean stop to save unsent messages, in addition to DRAIN_SECONDS."""

MAX_TRANSFERS = 10
"""Transfers at a time: up to six fetched by the daemon, and some sent by clients."""

STUCK_SECONDS = 10.0
"""Time at a single window after which a worker counts as stuck, and the watchdog is not fed."""

Hold = Callable[[Collection[str]], AbstractAsyncContextManager[None]]
"""Keeps the updates of these models waiting while their pipelines change."""


class Composition(NamedTuple):
    """The parts of a daemon, for `run` to start and stop."""

    state: ServiceState
    announced: Announced
    accelerators: Accelerators
    proofs: Proofs
    builder: PartBuilder
    serving: ServedModels
    updater: Updater
    partial_files: PartialFiles
    updates: Updates
    desired: DesiredVersionPoller
    daemon: Daemon
    proving: Proving
    operations: Operations


def compose(files: Sequence[Path], config: Config, store: Store, notifier: Notifier, state_dir: Path) -> Composition:
    """Build the parts of a daemon without starting them."""
    store.paths = model_paths(config)
    boot = os.urandom(6).hex()
    announced = Announced(state_dir, boot)
    clock = KernelClock()
    now = time.monotonic()
    state = ServiceState(
        boot=boot,
        files=tuple(files),
        state_dir=state_dir,
        config=config,
        clock=clock,
        publisher=new_publisher(config, state_dir, clock, announced.client),
        topics=Topics(config.mqtt.prefix, config.device.name),
        recorder=Recorder(config.device.name, boot, clock),
        started=now,
        loaded=now,
        metrics_page=Status("metrics", time.monotonic, partial(log_change, "page")),
    )
    topics = StateTopics(state)
    presence = BrokerPresence(state, announced)
    tunings = Tunings(state_dir / "tuning")
    accelerators = Accelerators(topics.publish_accelerator, records=tunings.read)
    builder = PartBuilder(state, topics, store)
    proofs = Proofs(state_dir / PROOFS)
    serving = ServedModels(state, accelerators, proofs, builder.flow, builder.feed, time.monotonic)

    def publish_step(event: Event) -> None:
        if event.id == "update.serving":  # a first version, or a version with other outputs
            presence.announce()
        topics.publish_step(event)

    updater = Updater(
        store,
        serving,
        trust=trust_of(config.updates),
        run=state.boot,
        publish=publish_step,
        keep=_keep(config.updates),
        synchronised=lambda: clock.synchronised,
    )
    partial_files = PartialFiles(state_dir / "incoming", max_bytes=2 * MAX_BUNDLE_BYTES, max_transfers=MAX_TRANSFERS)
    updates = Updates(
        partial_files,
        updater,
        checks=Admission(state, serving, updater.verify),
        clock=clock,
        publish=publish_step,
        fetch=config.updates.fetch,
        urls=_urls(config).values(),
    )
    desired = DesiredVersionPoller(updates.fetch_jobs, serving, publish_step)
    desired.configure(_urls(config), config.updates.check_every, config.device.name)

    def configure(config: Config) -> None:
        updater.configure(trust_of(config.updates), _keep(config.updates))
        updates.fetch_jobs.configure(config.updates.fetch, _urls(config).values())
        desired.configure(_urls(config), config.updates.check_every, config.device.name)

    daemon = Daemon(
        state,
        store=store,
        builder=builder,
        topics=topics,
        presence=presence,
        accelerators=accelerators,
        serving=serving,
        proofs=proofs,
        notifier=notifier,
        hold=updater.held,
        configure=configure,
        receive_desired=desired.receive,
        new_publisher=lambda config: new_publisher(config, state_dir, clock, announced.client),
    )
    proving = Proving(accelerators, serving.subjects, tunings, daemon.apply_tuning)
    operations = Operations(state, accelerators, daemon.reload, updates, proving)
    return Composition(
        state,
        announced,
        accelerators,
        proofs,
        builder,
        serving,
        updater,
        partial_files,
        updates,
        desired,
        daemon,
        proving,
        operations,
    )


async def run(files: Sequence[Path], runtime_dir: Path, lock: StateLock, store: Store) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reloads. The caller has locked the state folder.

    Raises:
        EdgedError: the configuration is wrong, or another daemon has the control socket.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    config = load(files)
    set_up(config.log.level)
    notifier = Notifier()
    parts = compose(files, config, store, notifier, lock.folder)
    state, daemon, updater, updates = parts.state, parts.daemon, parts.updater, parts.updates
    server = Server(runtime_dir / protocol.SOCKET, parts.operations, group=config.control.group)
    await server.start()  # first, since the lock of the socket keeps a second daemon out
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    reloads: set[asyncio.Task[None]] = set()

    def begin_reload() -> None:
        task = loop.create_task(_reload_quietly(daemon.reload))
        reloads.add(task)  # the loop alone would let the task be collected
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, begin_reload)
    clock_set = SetNotice()

    def follow_clock() -> None:
        clock_set.take()
        daemon.refresh()

    if clock_set.descriptor >= 0:
        loop.add_reader(clock_set.descriptor, follow_clock)

    async def start() -> None:
        async with daemon.changing:  # a reload waits until the start is complete
            await daemon.start()
            await updater.start()
            await updates.start()

    try:
        starting, stopping = loop.create_task(start()), loop.create_task(stop.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():  # a trial may outlast the time for a stop, and the final kill would count as a crash
            starting.cancel()
            return
        starting.result()
        notifier.ready()
        log.info("edged %s serves: %s", __version__, summary(state))
        keeper = FileKeeper(state, store, lock, server, updater, parts.announced, parts.serving)
        async with asyncio.TaskGroup() as tasks:
            chores = [
                tasks.create_task(notifier.feed_watchdog(daemon.progress)),
                tasks.create_task(_refresh(daemon.refresh, state, notifier)),
                tasks.create_task(updater.run()),
                tasks.create_task(delete_stale_transfers(parts.partial_files, state.clock)),
                tasks.create_task(parts.desired.run()),
                tasks.create_task(keeper.run()),
            ]
            await stopping
            for chore in chores:
                chore.cancel()
    finally:
        notifier.stopping()
        log.info("stopping")
        parts.proving.stop()
        await updates.stop()
        await updater.stop()
        await daemon.stop(DRAIN_SECONDS)
        await server.stop()
        if clock_set.descriptor >= 0:
            loop.remove_reader(clock_set.descriptor)
            clock_set.close()


def _keep(options: UpdateOptions) -> Keep:
    return Keep(versions=options.keep, bytes=options.keep_bytes)


def _urls(config: Config) -> dict[str, str]:
    return {name: entry.url for name, entry in config.models.items() if entry.url}


async def _reload_quietly(reload: Callable[[], Awaitable[object]]) -> None:
    with suppress(EdgedError):  # `reload` has logged the error, and the state shows it
        await reload()


async def _refresh(refresh: Callable[[], None], state: ServiceState, notifier: Notifier) -> None:
    """Refresh the clock, the states and systemd's status line every REFRESH seconds."""
    while True:
        refresh()
        notifier.status(summary(state))
        await asyncio.sleep(REFRESH)


class Daemon:
    """Brings the configured parts up and down, while the caller holds `changing`.

    `hold` keeps updates of models waiting while their pipelines change. `configure` is called with the configuration
    after each reload. `receive_desired` is called with each message about a desired version.
    """

    def __init__(
        self,
        state: ServiceState,
        *,
        store: Store,
        builder: PartBuilder,
        topics: StateTopics,
        presence: BrokerPresence,
        accelerators: Accelerators,
        serving: ServedModels,
        proofs: Proofs,
        notifier: Notifier,
        hold: Hold,
        configure: Callable[[Config], None],
        receive_desired: Callable[[str, bytes], None],
        new_publisher: Callable[[Config], Publisher],
    ) -> None:
        self._state = state
        self._store = store
        self._builder = builder
        self._topics = topics
        self._presence = presence
        self._accelerators = accelerators
        self._serving = serving
        self._proofs = proofs
        self._notifier = notifier
        self._hold = hold
        self._configure = configure
        self._receive_desired = receive_desired
        self._new_publisher = new_publisher
        self.changing = asyncio.Lock()
        self._page: Web | None = None
        self._incomplete = False
        self._unsent: list[Message] = []  # messages not saved by the closed spool
        self._next_seq: dict[str, int] = {}  # of pipelines that are down: two results never share an id
        self._trials: set[asyncio.Task[Any]] = set()
        self._on_trial: set[str] = set()  # models new to this board

    async def start(self) -> None:
        """Bring all parts up: the spool, models and pipelines, sources, then the connection to the broker."""
        state = self._state
        state.publisher.open()
        self._presence.start()
        unproven = await self._bring_up(everything(state.config))
        self.refresh()
        loop = asyncio.get_running_loop()

        def receive(topic: str, payload: bytes, _retained: bool) -> None:
            loop.call_soon_threadsafe(self._receive_desired, topic, payload)

        state.publisher.subscribe(state.topics.model_desired("+"), receive)
        self._presence.subscribe()
        await self._presence.flush()
        state.publisher.start()
        await self._open_page()
        await self._prove(unproven)
        await asyncio.to_thread(self._tidy)

    async def stop(self, deadline: float) -> None:
        """Take all parts down within `deadline` seconds, in reverse order, so that work in hand is finished.

        A reload in progress ends first, unless it hangs, and no other begins.
        """
        end = time.monotonic() + deadline
        for trial in list(self._trials):
            trial.cancel()
        await self._proofs.stop()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.changing.acquire(), deadline / 2)
        names = everything(self._state.config)
        await self._take_down(names, end)
        await asyncio.to_thread(self._accelerators.close)
        self._topics.publish_stopped(names)
        await self._disconnect(end)
        await self._close_page()

    async def reload(self) -> list[str]:
        """Read the configuration again and apply the changes. A wrong configuration has no effect.

        Returns the changes, as "pipelines.motion".

        Raises:
            ConfigErrors: the configuration is wrong.
        """
        state = self._state
        async with self.changing:
            self._notifier.reloading()
            try:
                new, warnings = await asyncio.to_thread(checked, state.files, self._store)
                remade = self._failed() | await asyncio.to_thread(self._replaced)
                touched = changes(state.config, new, models=remade, pipelines=self._idle())
                restart = self._incomplete or restarts_everything(touched)
                async with self._hold(affected_models(state.config, new, None if restart else touched)):
                    self._incomplete = True  # a failure half way makes the next reload restart all parts
                    await self._apply(new, touched, restart=restart)
                    self._incomplete = False
            except ConfigErrors as error:
                state.refused, state.refused_at = error, time.monotonic()
                log.error("the new configuration is refused, the old one stays in effect: %s", error)
                raise
            finally:
                self.refresh()
                self._notifier.ready()
            self._configure(state.config)
            state.warnings = warnings
            for warning in warnings:
                log.warning("%s", warning)
            await asyncio.to_thread(self._tidy)
            changed = touched_names(touched)
            log.info("reloaded: %s", ", ".join(changed) or "nothing changed")
            return changed

    async def apply_tuning(self, model: str) -> None:
        """Load a model again with the choices of `edgectl tune`. Raises EdgedError if the model serves as before."""
        async with self.changing, self._hold({model}):
            await self._serving.apply_tuning(model)

    def progress(self) -> str:
        """Return "" while every worker makes progress, else the names of stuck workers."""
        flows = [part.flow for part in self._state.pipelines.values() if part.flow is not None]
        return stuck(flows, time.monotonic(), STUCK_SECONDS)

    def refresh(self) -> None:
        """Refresh the clock and the published state of the daemon, and mark hanging sources."""
        state = self._state
        if state.clock.refresh():
            self._topics.publish_again(self._accelerators.statuses())
        for reader in state.sources.values():
            reader.check_hung()
        for part in state.pipelines.values():
            if part.decision is not None:
                part.decision.flush()
        self._presence.announce()
        self._presence.settle()
        self._topics.publish_service(overall(state, self._accelerators))

    # Reload

    async def _apply(self, new: Config, touched: Changes, *, restart: bool) -> None:
        state = self._state
        if restart:
            end = time.monotonic() + DRAIN_SECONDS
            await self._take_down(everything(state.config), end)
            self._presence.reset(new)
            await self._disconnect(end)
            await self._close_page()
            state.topics = Topics(new.mqtt.prefix, new.device.name)
            state.recorder = Recorder(new.device.name, state.boot, state.clock)
            state.publisher = self._new_publisher(new)
            for message in self._unsent:
                state.publisher.put(message)
            state.config, self._store.paths = new, model_paths(new)
            await self.start()
        else:
            await self._take_down(leaving(touched), time.monotonic() + DRAIN_SECONDS)
            state.config, self._store.paths = new, model_paths(new)
            state.publisher.spool.policies = spool_policies(new)
            await self._prove(await self._bring_up(arriving(touched)))
            if "metrics" in touched.tables:
                await self._close_page()
                await self._open_page()
        set_up(new.log.level)
        if "control" in touched.tables:
            log.warning("a change in [control] takes effect when the daemon is started again")
        state.loaded = time.monotonic()
        state.refused = None

    def _failed(self) -> set[str]:
        """Return the models without a working version on this board."""
        return {
            name
            for name, part in self._state.models.items()
            if part.bundle is None or part.status.health.state == "failed"
        }

    def _replaced(self) -> set[str]:
        """Return the models served from a path with another version by now."""
        return {
            name
            for name, path in self._store.paths.items()
            if (part := self._state.models.get(name)) and part.origin == str(path)
            if part.digest not in self._store.factory(name)
        }

    def _idle(self) -> set[str]:
        """Return the pipelines without a flow, except for pipelines of a model on trial."""
        pipelines = self._state.pipelines.items()
        return {name for name, part in pipelines if part.flow is None and part.entry.model not in self._on_trial}

    def _tidy(self) -> None:
        """Delete the unpacked bundles of paths no longer configured."""
        try:
            self._store.tidy(Disk())
        except StoreError as error:
            log.warning("unpacked bundles cannot be deleted: %s", error)

    # Up

    async def _bring_up(self, names: Names) -> list[str]:
        """Build the named parts of the configuration in effect. A broken part has a state with the reason.

        Returns the models new to this board, not yet loaded: call `_prove` with them.
        """
        state, config = self._state, self._state.config
        await asyncio.to_thread(self._accelerators.configure, config.delegates, config.accelerators)
        for name in names.models:
            state.models[name] = self._builder.model(name)
        state.sinks |= self._builder.sinks(names.sinks)
        for name in names.pipelines:
            state.pipelines[name] = self._builder.pipeline(name, self._next_seq.get(name, 0))
            self._topics.follow_source(config.pipelines[name].source)
        models = dict.fromkeys(config.pipelines[name].model for name in names.pipelines)
        unproven = [name for name in models if not await self._serving.load(name)]
        for name in names.sources:
            state.sources[name] = self._builder.source(name)
        self._builder.feed()
        self._on_trial.update(unproven)
        self._start_sources()
        self._presence.announce()
        return unproven

    async def _prove(self, names: Sequence[str]) -> None:
        """Load each new model after a trial. Long trials go on after the return."""
        trials = {name: self._begin(self._serving.prove(name)) for name in names}
        if trials:
            await asyncio.wait(trials.values(), timeout=TRIAL_PATIENCE)
        for name, trial in trials.items():
            if not trial.done():
                self._begin(self._load_later(name, self._state.models[name], trial))
                continue
            if trial.result():
                await self._serving.load(name)
            self._on_trial.discard(name)
        self._start_sources()

    async def _load_later(self, name: str, part: ModelState, trial: asyncio.Task[bool]) -> None:
        """Load a model after a trial, unless a reload has replaced the model."""
        passed = await trial
        async with self.changing:
            if passed and self._state.models.get(name) is part:
                async with self._hold({name}):
                    await self._serving.load(name)
            self._on_trial.discard(name)
            self._start_sources()

    def _start_sources(self) -> None:
        """Start the readers. A source waits if all its models are on trial, since a recording would end too early."""
        for name, reader in self._state.sources.items():
            users = [part for part in self._state.pipelines.values() if part.entry.source == name]
            awaited = any(part.entry.model in self._on_trial for part in users)
            if not reader.is_started and (not awaited or any(part.flow is not None for part in users)):
                reader.start()

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task, to be cancelled by `stop`."""
        task = asyncio.get_running_loop().create_task(work)
        self._trials.add(task)
        task.add_done_callback(self._trials.discard)
        return task

    async def _open_page(self) -> None:
        """Serve the metrics page, if a port is configured. A port in use is shown in the state."""
        state, accelerators = self._state, self._accelerators
        if not state.config.metrics.port:
            if state.metrics_page.health.state == "failed":
                state.metrics_page.set("stopped")
            return
        page = Web(
            state.config.metrics.port,
            lambda: render(families(state, accelerators)),
            lambda: overall(state, accelerators).reason,
        )
        try:
            await page.start()
        except ControlError as error:
            state.metrics_page.set("failed", error.message, error.hint)
        else:
            self._page = page
            state.metrics_page.set("running")

    # Down

    async def _take_down(self, names: Names, end: float) -> None:
        """Stop the named parts, sources first, so that each part finishes while the next still runs.

        A name without a part is skipped: a hanging reload has not brought up all parts.
        """
        state = self._state
        readers = [state.sources.pop(name) for name in names.sources if name in state.sources]
        leaving = {name: state.pipelines.pop(name) for name in names.pipelines if name in state.pipelines}
        flows = [part.flow for part in leaving.values() if part.flow is not None]
        for reader in readers:
            reader.stop()
            reader.feeds = ()
        self._builder.feed()
        for reader in (*readers, *state.sources.values()):  # the chunk in hand still reaches the leaving flows
            patience = min(CHUNK_SECONDS, max(0.0, end - time.monotonic()))
            await asyncio.to_thread(reader.between_chunks, lambda: None, patience)
        for flow in flows:
            flow.stop()
        workers: list[Reader | Pipeline] = [*readers, *flows]
        for worker in workers:
            if not await asyncio.to_thread(worker.join, max(0.0, end - time.monotonic())):
                log.error("%s did not stop in time and is left behind", worker.name)
                worker.status.silence()  # another part may have this name when the worker ends
        self._next_seq |= {name: part.next_seq for name, part in leaving.items()}
        for name in names.sinks:
            if name in state.sinks:
                await asyncio.to_thread(state.sinks.pop(name).close)
        for name in names.models:
            state.models.pop(name, None)
            self._accelerators.forget(name)

    async def _close_page(self) -> None:
        if self._page is not None:
            await self._page.stop()
            self._page = None
            self._state.metrics_page.set("stopped")

    async def _disconnect(self, end: float) -> None:
        """Send the waiting messages for one second at least, leave the broker, and save the rest."""
        publisher = self._state.publisher
        self._topics.publish_service(Health("stopped", "", "", time.monotonic()))
        seconds = max(1.0, end - time.monotonic())
        publisher.stop(seconds)
        await asyncio.to_thread(publisher.join, seconds + 2.0)
        self._presence.settle()
        await self._presence.flush()
        self._unsent = await asyncio.to_thread(publisher.spool.close, SAVE_SECONDS)
