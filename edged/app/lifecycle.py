"""Changes of a serving daemon: first trials after the start, reloads, and the stop, in reverse order.

A broken part has a state with a reason while the others run on; a repaired device or a reload brings the part back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, TypeVar

from edged.api import Message, StoreError
from edged.app.build_parts import spool_policies
from edged.app.check import checked
from edged.app.data_plane import DataPlane
from edged.app.flow_swap import chunk_seconds
from edged.app.metrics_page import MetricsPage
from edged.app.reload import (
    Names,
    TouchedNames,
    affected_models,
    arriving,
    everything,
    leaving,
    restarts_everything,
    touched_names,
)
from edged.app.state import ModelState
from edged.config.diff import Changes, changes
from edged.config.load import ConfigErrors, model_paths
from edged.config.options import Config
from edged.control.systemd import Notifier
from edged.core.health import Health
from edged.core.record import Recorder
from edged.core.topics import Topics
from edged.flow.pipeline import Pipeline
from edged.flow.reader import Reader
from edged.models.atomic_files import Disk
from edged.system.garbage import freeze
from edged.system.log import set_up

log = logging.getLogger("edged.daemon")

T = TypeVar("T")

TRIAL_PATIENCE = 10.0
"""Time for the first trials of new models during a start or a reload; the other models serve meanwhile."""

DRAIN_SECONDS = 8.0
"""Time for a clean stop to finish the windows in hand and to send messages."""

SAVE_SECONDS = 5.0
"""Time for a clean stop to save unsent messages, in addition to DRAIN_SECONDS."""

Hold = Callable[[Collection[str]], AbstractAsyncContextManager[None]]
"""Keeps the updates of these models waiting while their pipelines change."""


class Lifecycle:
    """Brings the configured parts up and down, while the caller holds `changing`.

    `hold` keeps updates of models waiting while their pipelines change. `configure` is called with the configuration
    after each reload. `receive_desired` is called with each message about a desired version.
    """

    def __init__(
        self,
        plane: DataPlane,
        page: MetricsPage,
        notifier: Notifier,
        *,
        hold: Hold,
        configure: Callable[[Config], None],
        receive_desired: Callable[[str, bytes], None],
    ) -> None:
        self._plane = plane
        self._state = plane.state
        self._page = page
        self._notifier = notifier
        self._hold = hold
        self._configure = configure
        self._receive_desired = receive_desired
        self.changing = asyncio.Lock()
        self._incomplete = False
        self._unsent: list[Message] = []  # messages not saved by the closed spool
        self._trials: set[asyncio.Task[Any]] = set()

    async def complete_start(self, unproven: Sequence[str]) -> None:
        """Complete the start of a connected data plane: desired versions, the metrics page, first trials of models."""
        loop = asyncio.get_running_loop()

        def receive(topic: str, payload: bytes, _retained: bool) -> None:
            loop.call_soon_threadsafe(self._receive_desired, topic, payload)

        state = self._state
        state.publisher.subscribe(state.topics.model_desired("+"), receive)
        await self._page.open()
        await self._prove(unproven)
        await asyncio.to_thread(self._tidy)

    async def stop(self, deadline: float = DRAIN_SECONDS) -> None:
        """Take all parts down within `deadline` seconds, in reverse order, so that work in hand is finished.

        A reload in progress ends first, unless it hangs, and no other begins.
        """
        end = time.monotonic() + deadline
        for trial in list(self._trials):
            trial.cancel()
        await self._plane.proofs.stop()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.changing.acquire(), deadline / 2)
        names = everything(self._state.config)
        await self._take_down(names, end)
        await asyncio.to_thread(self._plane.accelerators.close)
        self._plane.topics.publish_stopped(names)
        await self._disconnect(end)
        await self._page.close()

    async def reload(self) -> TouchedNames:
        """Read the configuration again and apply the changes. A wrong configuration has no effect.

        Returns the names of what has changed.

        Raises:
            ConfigErrors: the configuration is wrong.
        """
        state = self._state
        async with self.changing:
            self._notifier.reloading()
            try:
                new, warnings = await asyncio.to_thread(checked, state.files, self._plane.store)
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
                self._plane.refresh()
                self._notifier.ready()
            self._configure(state.config)
            state.warnings = warnings
            for warning in warnings:
                log.warning("%s", warning)
            await asyncio.to_thread(self._tidy)
            names = touched_names(touched)
            log.info("reloaded: %s", ", ".join(names.all) or "nothing changed")
            freeze()
            return names

    async def apply_tuning(self, model: str) -> None:
        """Load a model again with the choices of `edgectl tune`. Raises EdgedError if the model serves as before."""
        async with self.changing, self._hold({model}):
            await self._plane.serving.apply_tuning(model)

    # Reload

    async def _apply(self, new: Config, touched: Changes, *, restart: bool) -> None:
        state = self._state
        if restart:
            end = time.monotonic() + DRAIN_SECONDS
            await self._take_down(everything(state.config), end)
            self._plane.presence.reset(new)
            await self._disconnect(end)
            await self._page.close()
            state.topics = Topics(new.mqtt.prefix, new.device.name)
            state.recorder = Recorder(new.device.name, state.boot, state.clock)
            state.publisher = self._plane.new_publisher(new)
            for message in self._unsent:
                state.publisher.put(message)
            state.config, self._plane.store.paths = new, model_paths(new)
            self._plane.open()
            unproven = await self._bring_up(everything(new))
            self._plane.refresh()
            await asyncio.to_thread(self._plane.connect)
            await self.complete_start(unproven)
        else:
            held = await self._hold_patient_sources()
            try:
                await self._take_down(leaving(touched), time.monotonic() + DRAIN_SECONDS)
                state.config, self._plane.store.paths = new, model_paths(new)
                state.publisher.spool.policies = spool_policies(new)
                unproven = await self._bring_up(arriving(touched))
            finally:
                for reader in held:
                    reader.go_on()
            await self._prove(unproven)
            if "metrics" in touched.tables:
                await self._page.close()
                await self._page.open()
        set_up(new.log.level)
        if "control" in touched.tables:
            log.warning("a change in [control] takes effect when the daemon is started again")
        state.loaded = time.monotonic()
        state.refused = None

    async def _hold_patient_sources(self) -> list[Reader]:
        """Keep the chunks of patient sources from being lost between two flows. Returns the readers that wait."""
        patient = [reader for reader in self._state.sources.values() if reader.info.patient]
        for reader in patient:
            await asyncio.to_thread(reader.hold, chunk_seconds(reader))
        return patient

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
            for name, path in self._plane.store.paths.items()
            if (part := self._state.models.get(name)) and part.origin == str(path)
            if part.digest not in self._plane.store.factory(name)
        }

    def _idle(self) -> set[str]:
        """Return the pipelines without a flow, except for pipelines of a model on trial."""
        pipelines = self._state.pipelines.items()
        return {name for name, part in pipelines if part.flow is None and part.entry.model not in self._plane.on_trial}

    def _tidy(self) -> None:
        """Delete the unpacked bundles of paths no longer configured."""
        try:
            self._plane.store.tidy(Disk())
        except StoreError as error:
            log.warning("unpacked bundles cannot be deleted: %s", error)

    # Up

    async def _bring_up(self, names: Names) -> list[str]:
        """Build the named parts of the configuration in effect, like `DataPlane.start`, while the event loop runs on.

        Returns the models new to this board, not yet loaded: call `_prove` with them.
        """
        plane = self._plane
        await asyncio.to_thread(plane.configure_accelerators)
        models = plane.enter(names)
        unproven = [name for name in models if not await asyncio.to_thread(plane.serving.load, name)]
        plane.start_sources(names.sources, unproven)
        return unproven

    async def _prove(self, names: Sequence[str]) -> None:
        """Load each new model after a trial. Long trials go on after the return."""
        trials = {name: self._begin(self._plane.serving.prove(name)) for name in names}
        if trials:
            await asyncio.wait(trials.values(), timeout=TRIAL_PATIENCE)
        for name, trial in trials.items():
            if not trial.done():
                self._begin(self._load_later(name, self._state.models[name], trial))
                continue
            if trial.result():
                await asyncio.to_thread(self._plane.serving.load, name)
            self._plane.on_trial.discard(name)
        self._plane.start_sources()

    async def _load_later(self, name: str, part: ModelState, trial: asyncio.Task[bool]) -> None:
        """Load a model after a trial, unless a reload has replaced the model."""
        passed = await trial
        async with self.changing:
            if passed and self._state.models.get(name) is part:
                async with self._hold({name}):
                    await asyncio.to_thread(self._plane.serving.load, name)
            self._plane.on_trial.discard(name)
            self._plane.start_sources()

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task, to be cancelled by `stop`."""
        task = asyncio.get_running_loop().create_task(work)
        self._trials.add(task)
        task.add_done_callback(self._trials.discard)
        return task

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
        self._plane.builder.feed()
        for reader in (*readers, *state.sources.values()):  # the chunk in hand still reaches the leaving flows
            patience = min(chunk_seconds(reader), max(0.0, end - time.monotonic()))
            await asyncio.to_thread(reader.between_chunks, lambda: None, patience)
        for flow in flows:
            flow.stop()
        workers: list[Reader | Pipeline] = [*readers, *flows]
        for worker in await asyncio.to_thread(_unfinished, workers, end):
            log.error("%s did not stop in time and is left behind", worker.name)
            worker.status.silence()  # another part may have this name when the worker ends
        self._plane.next_seq |= {name: part.next_seq for name, part in leaving.items()}
        for name in names.sinks:
            if name in state.sinks:
                await asyncio.to_thread(state.sinks.pop(name).close)
        for name in names.models:
            state.models.pop(name, None)
            self._plane.accelerators.forget(name)

    async def _disconnect(self, end: float) -> None:
        """Send the waiting messages for one second at least, leave the broker, and save the rest."""
        publisher = self._state.publisher
        self._plane.topics.publish_service(Health("stopped", "", "", time.monotonic()))
        seconds = max(1.0, end - time.monotonic())
        publisher.stop(seconds)
        await asyncio.to_thread(publisher.join, seconds + 2.0)
        self._plane.presence.settle()
        await asyncio.to_thread(self._plane.presence.flush)
        self._unsent = await asyncio.to_thread(publisher.spool.close, SAVE_SECONDS)


def _unfinished(workers: Sequence[Reader | Pipeline], end: float) -> list[Reader | Pipeline]:
    """Wait for the threads until `end`, and return those that run on."""
    return [each for each in workers if not each.join(max(0.0, end - time.monotonic()))]
