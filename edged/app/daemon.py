"""The composition root: build every part, hand them to one another, start in order, stop in reverse.

`run` is the daemon's whole life, top to bottom. `Daemon` holds the parts and changes them when the configuration does;
it alone knows them all. A part that cannot be built is a state with a reason and never an exit: the rest runs on, and
a repaired device or a later reload brings it back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import msgspec

from edged import __version__
from edged.acceleration.placement import Accelerators
from edged.acceleration.verbs import Proving
from edged.api import ControlError, EdgedError, Message, SinkContext, StoreError
from edged.app.admission import Admission, trust_of
from edged.app.announced import Announced
from edged.app.check import checked
from edged.app.metrics import families
from edged.app.operations import Operations
from edged.app.reload import Names, arriving, everything, leaving, named, shaken
from edged.app.serving import CHUNK_SECONDS, ServedModels
from edged.app.state import ModelState, PipelineState, ServiceState
from edged.app.state_lock import StateLock
from edged.app.status import overall, summary
from edged.config.check import describe, find_bundle
from edged.config.diff import Changes, changes
from edged.config.load import ConfigErrors, load, model_paths, publishes
from edged.config.options import Config, ModelEntry, PipelineEntry, UpdateOptions
from edged.control.clock import REFRESH, KernelClock, SetNotice
from edged.control.server import Server
from edged.control.systemd import Notifier
from edged.control.web import Web
from edged.core import discovery, protocol, source_health
from edged.core.acceleration import AcceleratorStatus
from edged.core.decide import Keep
from edged.core.description import Description, retained
from edged.core.health import Health, Status
from edged.core.manifest import MAX_BUNDLE_BYTES, Manifest
from edged.core.metrics import render
from edged.core.record import (
    TIME_DECIMALS,
    Recorder,
    UpdateStep,
    encode_acceleration,
    encode_state,
    encode_step,
    state_boot,
)
from edged.core.source_match import match_source
from edged.core.topics import ONLINE, Topics
from edged.flow.decision import LatestDecision
from edged.flow.delivery import Delivery, Drain, PredictionSink, Selection
from edged.flow.dependent import LIVE, DependentStatus
from edged.flow.pipeline import Pipeline, stuck
from edged.flow.reader import Reader
from edged.models.atomic_files import Disk
from edged.models.proofs import FILE as PROOFS
from edged.models.proofs import Proofs
from edged.models.store import BRING, MissingModelError, Store
from edged.models.tuning_records import Tunings
from edged.outbox.announcer import Announcer
from edged.outbox.disk_spool import DiskSpool
from edged.outbox.options import Policy
from edged.outbox.publisher import Publisher
from edged.system.folder_watch import FolderWatch
from edged.system.log import set_up
from edged.transfer.partial_files import PartialFiles
from edged.updates.desired import DesiredVersionPoller
from edged.updates.jobs import Event
from edged.updates.updater import Updater
from edged.updates.verbs import Updates

log = logging.getLogger("edged.daemon")

T = TypeVar("T")

TRIAL_PATIENCE = 10.0
"""How long a start or a reload waits for models that are new to this board. Everything else serves meanwhile."""

DRAIN_SECONDS = 8.0
"""How long a clean stop may take: windows in hand are finished and messages sent for so long, then it is over."""

SAVE_SECONDS = 5.0
"""How long saving what was not sent may take on top of that."""

SETTLE_SECONDS = 0.2
"""How long to wait for more after something has happened to a file: things are seldom done to one alone."""

MAX_TRANSFERS = 10
"""The six that are fetched at a time, and some that others send."""

STALE_SECONDS = 7 * 86400.0
TIDY_SECONDS = 3600.0

KEEP_SECONDS = 1.0
"""How long the names that are told to the broker may take to be on disk before they are told, or forgotten."""

RETAINED_SECONDS = 60.0
NAMESAKE_SECONDS = 600.0
"""How long another board with this one's name is told of: one whose state was retained, and one that just spoke."""

ANEW_SECONDS = 2.0
"""Time for all that a namesake takes back to be over before it is said again."""

_ALL_ANEW = {"device", "mqtt", "spool"}
"""Tables that are in every topic and under every sink: where they change, everything begins anew."""

STUCK_SECONDS = 10.0
"""A worker that is at one window for longer makes no progress, and the watchdog hears of it."""


async def run(files: Sequence[Path], runtime_dir: Path, lock: StateLock, store: Store) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reloads. The lock on the state folder is held.

    Raises:
        EdgedError: the configuration is wrong, or another daemon has the control socket.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    state_dir = lock.folder
    config = load(files)
    set_up(config.log.level)
    notifier = Notifier()
    daemon = Daemon(files, config, store, notifier, state_dir)
    updater = _updater(daemon, config, store)
    incoming = PartialFiles(state_dir / "incoming", max_bytes=2 * MAX_BUNDLE_BYTES, max_transfers=MAX_TRANSFERS)
    updates = Updates(
        incoming,
        updater,
        checks=Admission(daemon.parts, daemon.board, updater.verify, loop),
        clock=daemon.parts.clock,
        publish=daemon.tell,
        fetch=config.updates.fetch,
        urls=_urls(config).values(),
    )
    desires = DesiredVersionPoller(updates.fetch_jobs, daemon.board, daemon.tell)
    daemon.on_wish = desires.receive
    daemon.hold = updater.held

    def follow_config() -> None:
        """After a reload: what [updates] says, and where the models may come from."""
        options = daemon.parts.config.updates
        updater.configure(trust_of(options), _keep(options))
        updates.fetch_jobs.configure(options.fetch, _urls(daemon.parts.config).values())
        desires.configure(_urls(daemon.parts.config), options.check_every, daemon.parts.config.device.name)

    daemon.on_reload = follow_config
    desires.configure(_urls(config), config.updates.check_every, config.device.name)
    proving = Proving(daemon.parts.accelerators, daemon.board.subjects, daemon.tunings, daemon.serve_anew)
    operations = Operations(daemon.parts, daemon.reload, updates, proving)
    server = Server(runtime_dir / protocol.SOCKET, operations, group=config.control.group)
    await server.start()  # first of all, for its lock is what keeps a second daemon out
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    reloads: set[asyncio.Task[None]] = set()

    def hang_up() -> None:
        task = loop.create_task(_reload_quietly(daemon))
        reloads.add(task)  # the loop itself would let it be collected
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, hang_up)
    clock_set = SetNotice()

    def follow_clock() -> None:
        clock_set.take()
        daemon.refresh()

    if clock_set.descriptor >= 0:
        loop.add_reader(clock_set.descriptor, follow_clock)

    async def start() -> None:
        async with daemon.changing:  # who asks for a reload from now on waits until there is something to change
            await daemon.start()
            await updater.start()
            await updates.start()

    try:
        starting, stopping = loop.create_task(start()), loop.create_task(stop.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():  # a version may be on trial, to which the end of the time for a stop would be a crash
            starting.cancel()
            return
        starting.result()
        notifier.ready()
        log.info("edged %s serves: %s", __version__, summary(daemon.parts))
        async with asyncio.TaskGroup() as tasks:
            chores = [
                tasks.create_task(notifier.feed_watchdog(daemon.progress)),
                tasks.create_task(_refresh(daemon, notifier)),
                tasks.create_task(updater.run()),
                tasks.create_task(_tidy(incoming, daemon.parts.clock)),
                tasks.create_task(desires.run()),
                tasks.create_task(_keep_in_place(daemon, lock, updater, server)),
            ]
            await stopping
            for chore in chores:
                chore.cancel()
    finally:
        notifier.stopping()
        log.info("stopping")
        proving.stop()
        await updates.stop()
        await updater.stop()
        await daemon.stop(DRAIN_SECONDS)
        await server.stop()
        if clock_set.descriptor >= 0:
            loop.remove_reader(clock_set.descriptor)
            clock_set.close()


def _updater(daemon: Daemon, config: Config, store: Store) -> Updater:
    return Updater(
        store,
        daemon.board,
        trust=trust_of(config.updates),
        run=daemon.parts.boot,
        publish=daemon.tell,
        keep=_keep(config.updates),
        synchronised=lambda: daemon.parts.clock.synchronised,
    )


def _keep(options: UpdateOptions) -> Keep:
    return Keep(versions=options.keep, bytes=options.keep_bytes)


def _urls(config: Config) -> dict[str, str]:
    return {name: entry.url for name, entry in config.models.items() if entry.url}


async def _reload_quietly(daemon: Daemon) -> None:
    try:
        await daemon.reload()
    except EdgedError:
        pass  # logged where it was refused, and shown in the state


async def _refresh(daemon: Daemon, notifier: Notifier) -> None:
    """What wants doing every few seconds: the clock, the status line, the daemon's own state."""
    while True:
        daemon.refresh()
        notifier.status(summary(daemon.parts))
        await asyncio.sleep(REFRESH)


async def _keep_in_place(daemon: Daemon, lock: StateLock, updater: Updater, server: Server) -> None:
    """Put right what somebody deletes or replaces of the files that this run relies on, as soon as that happens.

    The spool's keeper sees to its own.
    """
    loop, watch, changed = asyncio.get_running_loop(), FolderWatch(), asyncio.Event()

    def hear() -> None:
        if watch.take():
            changed.set()

    if watch.descriptor >= 0:
        loop.add_reader(watch.descriptor, hear)
    try:
        while True:
            watch.follow(_watched(daemon, lock.folder, server.path))
            _stay_alone(lock)
            try:
                await server.keep_listening()
            except (EdgedError, OSError) as error:
                log.error("%s", error)
            await updater.keep_ledgers()
            await asyncio.to_thread(daemon.announced.keep)
            daemon.board.notice_lost_files()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if watch.descriptor >= 0 else REFRESH):
                    await changed.wait()
            await asyncio.sleep(SETTLE_SECONDS)
            changed.clear()
    finally:
        loop.remove_reader(watch.descriptor)
        watch.close()


def _watched(daemon: Daemon, state: Path, socket: Path) -> dict[Path, str]:
    """The folders to watch; in those that are not ours only for the name that is."""
    models = [state / "models" / name for name in daemon.store.installed()]
    bundles = [part.bundle.folder for part in daemon.parts.models.values() if part.bundle is not None]
    ours = [state, state / "models", *models, *(model / "versions" for model in models), *bundles]
    return {state.parent: state.name, socket.parent: socket.name} | dict.fromkeys(ours, "")


def _stay_alone(lock: StateLock) -> None:
    """Lock the state folder that has taken the place of ours, if one has.

    Where another program has that, this one ends at once, as by a power cut: all it could still do is write there.
    """
    try:
        lock.take()
    except StoreError as error:
        log.critical("%s", error)
        os._exit(1)


async def _tidy(incoming: PartialFiles, clock: KernelClock) -> None:
    """Throw away transfers that nobody has gone on with for a week; while the clock is wrong nobody knows."""
    while True:
        if clock.synchronised:
            try:
                for name in await asyncio.to_thread(incoming.collect, time.time(), STALE_SECONDS):
                    log.info("threw away the transfer %s, which nobody went on with", name)
            except (EdgedError, OSError) as error:
                log.warning("stale transfers cannot be thrown away: %s", error)
        await asyncio.sleep(TIDY_SECONDS)


class Daemon:
    """The parts, and how they come and go: whoever has them do so holds `changing`."""

    def __init__(
        self, files: Sequence[Path], config: Config, store: Store, notifier: Notifier, state_dir: Path
    ) -> None:
        boot = uuid4().hex[:12]
        self.announced = Announced(state_dir, boot)
        self._described: tuple[Description, Announcer | None] | None = None
        clock = KernelClock()
        now = time.monotonic()
        self.store = store
        store.paths = model_paths(config)
        self._state_dir = state_dir
        self.tunings = Tunings(state_dir / "tuning")
        self._notifier = notifier
        self.changing = asyncio.Lock()
        self._feeding = threading.Lock()
        self._depending = threading.Lock()
        self._page: Web | None = None
        self._announcer: Announcer | None = None
        self._torn = False
        self.on_wish: Callable[[str, bytes], None] = lambda topic, payload: None
        self.hold: Callable[[Collection[str]], AbstractAsyncContextManager[None]] = lambda models: nullcontext()
        self.on_reload: Callable[[], None] = lambda: None
        self._unsent: list[Message] = []  # what a spool that was closed could not keep
        self._next_seq: dict[str, int] = {}  # of pipelines that were taken down: results never share an id
        self.parts = ServiceState(
            boot=boot,
            files=tuple(files),
            state_dir=state_dir,
            config=config,
            clock=clock,
            recorder=Recorder(config.device.name, boot, clock),
            topics=Topics(config.mqtt.prefix, config.device.name),
            publisher=self._publisher(config, clock),
            accelerators=Accelerators(self._accelerator_changed, records=self.tunings.read),
            started=now,
            loaded=now,
            metrics_page=Status("metrics", time.monotonic, partial(self._changed, "page")),
        )
        self.proofs = Proofs(state_dir / PROOFS)
        self._trials: set[asyncio.Task[Any]] = set()
        self._on_trial: set[str] = set()  # models that are new to this board
        self.board = ServedModels(self.parts, self.proofs, self._build, self._feed, time.monotonic)

    async def start(self) -> None:
        """Bring everything up: the spool, models and pipelines, what feeds them, then the link to the broker."""
        parts = self.parts
        parts.publisher.open()
        mqtt = parts.config.mqtt
        if mqtt.home_assistant:
            name, announced = parts.config.device.name, self.announced
            known = announced.components if discovery.topic(mqtt.discovery_prefix, name) in announced.topics else {}
            self._announcer = Announcer(mqtt.discovery_prefix, name, parts.publisher, known)
        unproven = await self._bring_up(everything(parts.config))
        self.refresh()
        loop = asyncio.get_running_loop()

        def hear(topic: str, payload: bytes, _retained: bool) -> None:
            loop.call_soon_threadsafe(self.on_wish, topic, payload)

        parts.publisher.subscribe(parts.topics.model_desired("+"), hear)
        parts.publisher.subscribe(parts.topics.state, self._hear_own_state)
        parts.publisher.subscribe(parts.topics.availability, self._hear_own_availability)
        await asyncio.to_thread(self.announced.flush, KEEP_SECONDS)
        parts.publisher.start()
        await self._open_page()
        await self._prove(unproven)
        await asyncio.to_thread(self._tidy)

    async def stop(self, deadline: float) -> None:
        """Let everything go within `deadline` seconds, in the reverse order, so that what was begun is finished.

        A reload that is in hand comes first, unless it hangs, and none begins any more.
        """
        end = time.monotonic() + deadline
        for trial in list(self._trials):
            trial.cancel()
        await self.proofs.stop()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.changing.acquire(), deadline / 2)
        await self._take_down(everything(self.parts.config), end)
        await asyncio.to_thread(self.parts.accelerators.close)
        stopped = Health("stopped", "", "", time.monotonic())
        for kind, names in zip(_STATE_TOPICS, everything(self.parts.config), strict=False):  # sinks have no topic
            for name in names:
                self._publish(kind, name, stopped)
        await self._hang_up(end)
        await self._close_page()

    async def reload(self) -> list[str]:
        """Read the configuration again and change what it changes; on any error, keep all as it is.

        Returns what changed, as "pipelines.motion". Raises ConfigErrors.
        """
        async with self.changing:
            self._notifier.reloading()
            try:
                new, doubts = await asyncio.to_thread(checked, self.parts.files, self.store)
                anew_models = self._failed() | await asyncio.to_thread(self._replaced)
                touched = changes(self.parts.config, new, models=anew_models, pipelines=self._idle())
                anew = self._torn or bool(_ALL_ANEW & set(touched.tables))
                async with self.hold(shaken(self.parts.config, new, None if anew else touched)):
                    self._torn = True  # if it breaks off half way, the next one begins everything anew
                    await self._reload(new, touched, anew=anew)
                    self._torn = False
            except ConfigErrors as error:
                self.parts.refused, self.parts.refused_at = error, time.monotonic()
                log.error("the new configuration is refused, the old one serves on: %s", error)
                raise
            finally:
                self.refresh()
                self._notifier.ready()
            self.on_reload()
            self.parts.warnings = doubts
            for doubt in doubts:
                log.warning("%s", doubt)
            await asyncio.to_thread(self._tidy)
            changed = named(touched)
            log.info("reloaded: %s", ", ".join(changed) or "nothing changed")
            return changed

    async def serve_anew(self, model: str) -> None:
        """Have a model serve as was measured since. Raises EdgedError where it does not; then it serves as before."""
        async with self.changing, self.hold({model}):
            await self.board.serve_anew(model)

    def tell(self, event: Event) -> None:
        """Log a step of an update, and publish it as the state of its model."""
        log.info("%s: %s", event.model, event.text, extra={"model": event.model, "step": event.id})
        parts = self.parts
        parts.steps[event.model, event.id] += 1
        if event.id == "update.serving":  # a first version, or one that says otherwise
            self._announce()
        if not event.model:  # it was no bundle, so nobody knows of what
            return
        fields = msgspec.structs.asdict(event) | {"time": round(parts.clock.at(event.time), TIME_DECIMALS)}
        step = UpdateStep(**fields)
        parts.publisher.publish_state(parts.topics.model_update(event.model), encode_step(step))

    def progress(self) -> str:
        """ "" while every worker makes progress, else which does not."""
        flows = [part.flow for part in self.parts.pipelines.values() if part.flow is not None]
        return stuck(flows, time.monotonic(), STUCK_SECONDS)

    def refresh(self) -> None:
        """Keep the clock right, the daemon's own state current, and an eye on sources that hang."""
        parts = self.parts
        if parts.clock.refresh():
            self._publish_anew()
        for reader in parts.sources.values():
            reader.look()
        for part in parts.pipelines.values():
            if part.decision is not None:
                part.decision.flush()
        self._announce()
        self._settle()
        self._tell_state(overall(parts))

    def _tell_state(self, health: Health) -> None:
        parts = self.parts
        spool = parts.publisher.spool.stats
        details = {"version": __version__, "boot": parts.boot, "dropped": spool.drops, "refused": spool.parks}
        state = encode_state(parts.config.device.name, health, parts.clock, details)
        parts.publisher.publish_state(parts.topics.state, state)

    def _publish_anew(self) -> None:
        """Publish the retained states again, since the clock was set and they say since when they are so."""
        parts = self.parts
        for kind, family in (("source", parts.sources), ("model", parts.models), ("pipeline", parts.pipelines)):
            for name, part in family.items():
                self._publish(kind, name, part.status.health)
        for pipeline in parts.pipelines.values():
            if pipeline.decision is not None:
                pipeline.decision.restamp()
        for model, (name, standing) in parts.accelerators.standings().items():
            state = encode_acceleration(model, name, standing, parts.clock)
            parts.publisher.publish_state(parts.topics.model_accelerator(model), state)

    def _settle(self) -> None:
        """Forget the names that the broker has been told to forget."""
        components = self._announcer.known if self._announcer else self.announced.components
        self.announced.settle(self.parts.publisher.is_clear, components)

    async def _reload(self, new: Config, touched: Changes, *, anew: bool) -> None:
        parts = self.parts
        if anew:
            end = time.monotonic() + DRAIN_SECONDS
            await self._take_down(everything(parts.config), end)
            if new.mqtt.broker != parts.config.mqtt.broker:  # this one will hear of no change any more
                for topic in self.announced.topics - {parts.topics.availability}:
                    parts.publisher.forget_state(topic)
            self._announcer = None
            await self._hang_up(end)
            await self._close_page()
            parts.topics = Topics(new.mqtt.prefix, new.device.name)
            parts.recorder = Recorder(new.device.name, parts.boot, parts.clock)
            parts.publisher = self._publisher(new, parts.clock)
            for message in self._unsent:
                parts.publisher.put(message)
            parts.config, self.store.paths = new, model_paths(new)
            await self.start()
        else:
            await self._take_down(leaving(touched), time.monotonic() + DRAIN_SECONDS)
            parts.config, self.store.paths = new, model_paths(new)
            parts.publisher.spool.policies = _policies(new)
            await self._prove(await self._bring_up(arriving(touched)))
            if "metrics" in touched.tables:
                await self._close_page()
                await self._open_page()
        set_up(new.log.level)
        if "control" in touched.tables:
            log.warning("what changed in [control] takes effect when the daemon is started again")
        parts.loaded = time.monotonic()
        parts.refused = None

    async def _bring_up(self, names: Names) -> list[str]:
        """Build what is named from the configuration as it is now. What cannot be built is in a state that says why.

        The models that are new to this board are not loaded, but returned: `_prove` them.
        """
        parts = self.parts
        config = parts.config
        await asyncio.to_thread(parts.accelerators.configure, config.delegates, config.accelerators)
        for name in names.models:
            parts.models[name] = self._model(name, config.models[name])
        for name in names.sinks:
            if config.sinks[name].options.blocking:
                parts.sinks[name] = Drain(self._delivery(name))
        for name in names.pipelines:
            entry = config.pipelines[name]
            begins_at = self._next_seq.get(name, 0)
            status = DependentStatus(name, time.monotonic, partial(self._changed, "pipeline"))
            self._publish("pipeline", name, status.health)
            decision = self._decision(name, status) if publishes(config, entry) else None
            parts.pipelines[name] = PipelineState(entry, status, decision, begins_at=begins_at)
            self._depend(entry.source)
        models = dict.fromkeys(config.pipelines[name].model for name in names.pipelines)
        unproven = [name for name in models if not await self.board.load(name)]
        for name in names.sources:
            parts.sources[name] = self._reader(name)
        self._feed()
        self._on_trial.update(unproven)
        self._start_sources()
        self._announce()
        return unproven

    async def _prove(self, names: Sequence[str]) -> None:
        """Load models that are new to this board once each has passed its trial: those that take long, later."""
        trials = {name: self._begin(self.board.prove(name)) for name in names}
        if trials:
            await asyncio.wait(trials.values(), timeout=TRIAL_PATIENCE)
        for name, trial in trials.items():
            if not trial.done():
                self._begin(self._load_later(name, self.parts.models[name], trial))
                continue
            if trial.result():
                await self.board.load(name)
            self._on_trial.discard(name)
        self._start_sources()

    async def _load_later(self, name: str, part: ModelState, trial: asyncio.Task[bool]) -> None:
        """Load a model whose trial takes long, unless a reload has put another in its place meanwhile."""
        passed = await trial
        async with self.changing:
            if passed and self.parts.models.get(name) is part:
                async with self.hold({name}):
                    await self.board.load(name)
            self._on_trial.discard(name)
            self._start_sources()

    def _start_sources(self) -> None:
        """Have the sources read. One waits while none but models on trial have use for it: a recording would end."""
        for name, reader in self.parts.sources.items():
            users = [part for part in self.parts.pipelines.values() if part.entry.source == name]
            awaited = any(part.entry.model in self._on_trial for part in users)
            if not reader.is_started and (not awaited or any(part.flow is not None for part in users)):
                reader.start()

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin what `stop` ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._trials.add(task)
        task.add_done_callback(self._trials.discard)
        return task

    def _announce(self) -> None:
        """Keep which names are told to the broker, take back those of before, and tell Home Assistant.

        Done again now and then, since what a pipeline says changes with the version of its model.
        """
        parts = self.parts
        manifests = {name: part.bundle.manifest if part.bundle else None for name, part in parts.models.items()}
        description = describe(parts.config, manifests)
        if (description, self._announcer) == self._described:
            return
        self._described = description, self._announcer
        topics = retained(description)
        if self._announcer:
            topics.add(self._announcer.topic)
        over = self.announced.expect(parts.publisher.broker, topics) if parts.publisher.broker else set()
        ours = {topic for topic in over if not topic.endswith("/config")}
        for topic in over - ours:
            parts.publisher.forget_state(topic)
        if self._announcer:
            self._announcer.announce(description)
            for pipeline in description.pipelines:  # what is no option yet was not taken
                parts.publisher.repeat_state(parts.topics.decision(pipeline.name))
        for topic in ours:  # when Home Assistant hears them no more
            parts.publisher.forget_state(topic)

    def _hear_own_state(self, topic: str, payload: bytes, is_retained: bool) -> None:
        """On the publisher's thread: what the broker has as this device's own state may be another board's."""
        boot = state_boot(payload)
        if not boot or boot in self.announced.boots:
            return
        parts = self.parts
        name = parts.config.device.name
        parts.namesake, parts.namesake_at = boot, time.monotonic()
        reason = f"another board calls itself {name!r} too (its boot is {boot})"
        hint = "give each board a name of its own: name in [device]; for a board with a new card, this passes by itself"
        parts.publisher.degrade(reason, hint, RETAINED_SECONDS if is_retained else NAMESAKE_SECONDS)

    def _hear_own_availability(self, topic: str, payload: bytes, is_retained: bool) -> None:
        """On the publisher's thread: a namesake that goes or is renamed takes back what it said, and so what we did."""
        if not is_retained and payload != ONLINE:
            self.parts.publisher.repeat_states(ANEW_SECONDS)

    async def _take_down(self, names: Names, end: float) -> None:
        """Stop what is named, sources first, so that each part still has its next one while it finishes.

        A reload that hangs has not brought up all that the configuration names.
        """
        parts = self.parts
        readers = [parts.sources.pop(name) for name in names.sources if name in parts.sources]
        leaving = {name: parts.pipelines.pop(name) for name in names.pipelines if name in parts.pipelines}
        flows = [part.flow for part in leaving.values() if part.flow is not None]
        for reader in readers:
            reader.stop()
            reader.feeds = ()
        self._feed()
        for reader in (*readers, *parts.sources.values()):  # the chunk in hand still goes where it was to go
            patience = min(CHUNK_SECONDS, max(0.0, end - time.monotonic()))
            await asyncio.to_thread(reader.between_chunks, lambda: None, patience)
        for flow in flows:
            flow.stop()
        workers: list[Reader | Pipeline] = [*readers, *flows]
        for worker in workers:
            if not await asyncio.to_thread(worker.join, max(0.0, end - time.monotonic())):
                log.error("%s did not stop in time and is left behind", worker.name)
                worker.status.silence()  # its end, some day, is no news of what comes in its place
        self._next_seq |= {name: part.next_seq for name, part in leaving.items()}
        for name in names.sinks:
            if name in parts.sinks:
                await asyncio.to_thread(parts.sinks.pop(name).close)
        for name in names.models:
            parts.models.pop(name, None)
            parts.accelerators.forget(name)

    async def _open_page(self) -> None:
        """Serve metrics, if a port is configured; a port that is taken is no reason not to infer."""
        parts = self.parts
        if not parts.config.metrics.port:
            if parts.metrics_page.health.state == "failed":
                parts.metrics_page.set("stopped")
            return
        page = Web(parts.config.metrics.port, lambda: render(families(parts)), lambda: overall(parts).reason)
        try:
            await page.start()
        except ControlError as error:
            parts.metrics_page.set("failed", error.message, error.hint)
        else:
            self._page = page
            parts.metrics_page.set("running")

    async def _close_page(self) -> None:
        if self._page is not None:
            await self._page.stop()
            self._page = None
            self.parts.metrics_page.set("stopped")

    async def _hang_up(self, end: float) -> None:
        """Send what waits, leave the broker, and save the rest; a second is always spent on trying."""
        publisher = self.parts.publisher
        self._tell_state(Health("stopped", "", "", time.monotonic()))
        seconds = max(1.0, end - time.monotonic())
        publisher.stop(seconds)
        await asyncio.to_thread(publisher.join, seconds + 2.0)
        self._settle()
        await asyncio.to_thread(self.announced.flush, KEEP_SECONDS)
        self._unsent = await asyncio.to_thread(publisher.spool.close, SAVE_SECONDS)

    def _feed(self) -> None:
        """Give every reader the pipelines that want its chunks. Any thread: a swap and a reload may feed at once."""
        with self._feeding:
            for name, reader in list(self.parts.sources.items()):
                parts = [part for part in list(self.parts.pipelines.values()) if part.entry.source == name]
                reader.feeds = tuple(flow for part in parts for flow in (part.flow, part.spare) if flow)

    def _model(self, name: str, entry: ModelEntry) -> ModelState:
        part = ModelState(self._status("model", name))
        try:
            part.bundle = find_bundle(name, entry, self.store)
        except MissingModelError:
            version = f"version {entry.version}" if entry.version else "version"
            part.status.set("starting", f"no {version} of it is here yet", BRING)
        except EdgedError as error:
            part.status.set("failed", error.message, error.hint)
        return part

    def _build(self, name: str, manifest: Manifest) -> Pipeline:
        """The flow of a pipeline around a model. Raises ConfigError where its source cannot give what it needs."""
        parts = self.parts
        part = parts.pipelines[name]
        entry = part.entry
        info = parts.config.sources[entry.source].options.describe()

        def rate() -> float | None:
            reader = parts.sources.get(entry.source)
            return info.pace or manifest.window.rate or info.rate or (reader.measured_rate if reader else None)

        outbox_first = sorted(entry.sinks, key=parts.sinks.__contains__)  # on disk before anybody else is told
        return Pipeline(
            name,
            manifest.window,
            columns=match_source(manifest.window, info, entry.source, entry.model),
            patient=info.patient,
            capacity=entry.queue,
            sinks=[
                *(self._sender(entry, sink) for sink in outbox_first),
                *([part.decision] if part.decision else []),
                parts.watchers,
            ],
            status=part.status,
            clock=time.monotonic,
            rate=rate,
            next_seq=part.next_seq,
        )

    def _reader(self, name: str) -> Reader:
        entry = self.parts.config.sources[name]
        return Reader(
            name,
            entry.options,
            feeds=(),
            status=self._status("source", name),
            clock=time.monotonic,
            supervision=entry.supervision,
        )

    def _sender(self, entry: PipelineEntry, sink: str) -> PredictionSink:
        """Where a pipeline leaves what it has for a sink."""
        sender = self.parts.sinks.get(sink) or self._delivery(sink)
        if entry.publish == "all" or self.parts.config.sinks[sink].kind != "mqtt":
            return sender
        return Selection(sender, entry.publish)

    def _decision(self, name: str, status: DependentStatus) -> LatestDecision:
        parts = self.parts
        publish = partial(parts.publisher.publish_state, parts.topics.decision(name))
        seconds = parts.config.pipelines[name].decision_seconds
        return LatestDecision(parts.recorder, status, publish, seconds=seconds, clock=time.monotonic)

    def _delivery(self, name: str) -> Delivery:
        parts = self.parts
        context = SinkContext(
            device=parts.config.device.name,
            boot=parts.boot,
            topics=parts.topics,
            outbox=parts.publisher,
            clock=parts.clock,
        )
        return Delivery(partial(parts.config.sinks[name].options.open, context), self._status("sink", name))

    def _publisher(self, config: Config, clock: KernelClock) -> Publisher:
        folder = self._state_dir / "spool"
        disk = Status("disk", time.monotonic, partial(self._changed, "spool"))
        spool = DiskSpool(folder, config.spool, _policies(config), status=disk, wall=clock)
        topics = Topics(config.mqtt.prefix, config.device.name)
        broker = Status("broker", time.monotonic, partial(self._changed, "mqtt"))
        return Publisher(config.mqtt, topics, spool, broker, wall=clock, client=self.announced.client)

    def _status(self, kind: str, name: str) -> Status:
        """A status whose every change is logged and, where it has a topic, published."""
        status = Status(name, time.monotonic, partial(self._changed, kind))
        self._publish(kind, name, status.health)
        return status

    def _changed(self, kind: str, name: str, health: Health) -> None:
        """On whichever thread it happens."""
        level = logging.WARNING if health.state in ("degraded", "failed") else logging.INFO
        why = f": {health.reason}" if health.reason else ""
        remedy = f" ({health.hint})" if health.hint else ""
        log.log(level, "%s %s is %s%s%s", kind, name, health.state, why, remedy, extra={kind: name})
        self._publish(kind, name, health)
        if kind == "source":
            self._depend(name)

    def _depend(self, source: str) -> None:
        """Have the pipelines of a source say what its health means for them. Any thread."""
        with self._depending:  # so that the newest health is told last
            reader = self.parts.sources.get(source)
            if reader is None:  # it is not there yet, or leaves, and its pipelines with it
                return
            for part in list(self.parts.pipelines.values()):
                if part.entry.source == source:
                    part.status.depend(source_health.failure(source, reader.status.health))

    def _accelerator_changed(self, model: str, name: str, standing: AcceleratorStatus | None) -> None:
        """On whichever thread it happens."""
        parts = self.parts
        topic = parts.topics.model_accelerator(model)
        if standing is None:
            parts.publisher.forget_state(topic)
            return
        level = logging.WARNING if standing.is_fault else logging.INFO
        why = f": {standing.reason}" if standing.reason else ""
        log.log(level, "model %s on %s is %s%s", model, name, standing.state, why, extra={"model": model})
        parts.publisher.publish_state(topic, encode_acceleration(model, name, standing, parts.clock))

    def _failed(self) -> set[str]:
        """The models that do not work, or are not here."""
        return {
            name
            for name, part in self.parts.models.items()
            if part.bundle is None or part.status.health.state == "failed"
        }

    def _replaced(self) -> set[str]:
        """The models that serve from their path, and where another version is by now."""
        return {
            name
            for name, path in self.store.paths.items()
            if (part := self.parts.models.get(name)) and part.origin == str(path)
            if part.digest not in self.store.factory(name)
        }

    def _tidy(self) -> None:
        """Remove what was unpacked for paths that are no longer configured."""
        try:
            self.store.tidy(Disk())
        except StoreError as error:
            log.warning("what was unpacked cannot be removed: %s", error)

    def _idle(self) -> set[str]:
        """The pipelines that could not be built; those whose model is still on trial need nothing."""
        pipelines = self.parts.pipelines.items()
        return {name for name, part in pipelines if part.flow is None and part.entry.model not in self._on_trial}

    def _publish(self, kind: str, name: str, health: Health) -> None:
        parts = self.parts
        topic = _STATE_TOPICS.get(kind)
        if topic is not None:
            parts.publisher.publish_state(topic(parts.topics, name), encode_state(name, health, parts.clock))
        if kind == "pipeline" and health.state not in LIVE:  # after the state, so that nobody takes it for a decision
            part = parts.pipelines.get(name)
            if part is not None and part.decision is not None:
                part.decision.withdraw()
            else:  # what an earlier life of the daemon has left there
                parts.publisher.forget_state(parts.topics.decision(name))


_STATE_TOPICS: dict[str, Callable[[Topics, str], str]] = {
    "source": Topics.source_state,
    "model": Topics.model_state,
    "pipeline": Topics.pipeline_state,
}


def _policies(config: Config) -> dict[str, Policy]:
    """What the messages of each pipeline are worth."""
    return {name: entry.policy for name, entry in config.pipelines.items()}
