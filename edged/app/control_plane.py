"""The control plane: everything that an operator, the service manager or an update asks of a serving daemon.

`compose` builds each part from earlier parts: updater, updates, life cycle, verbs. `run` is the life of the event loop,
from the data plane's first service to the end of the daemon. No part has a reference to the composition.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from edged import __version__
from edged.acceleration.verbs import Proving
from edged.api import EdgedError
from edged.app.admission import Admission, trust_of
from edged.app.data_plane import DataPlane
from edged.app.lifecycle import Lifecycle
from edged.app.metrics_page import MetricsPage
from edged.app.operations import Operations
from edged.app.state import ServiceState
from edged.app.state_lock import StateLock
from edged.app.status import summary
from edged.app.upkeep import FileKeeper, delete_stale_transfers
from edged.config.options import Config, UpdateOptions
from edged.control.clock import REFRESH, SetNotice
from edged.control.control_socket import ControlSocket
from edged.control.server import Server
from edged.control.systemd import Notifier
from edged.core.decide import Keep
from edged.core.manifest import MAX_BUNDLE_BYTES
from edged.system.garbage import freeze
from edged.transfer.partial_files import PartialFiles
from edged.updates.desired import DesiredVersionPoller
from edged.updates.jobs import Event
from edged.updates.updater import Updater
from edged.updates.verbs import Updates

log = logging.getLogger("edged.daemon")

MAX_TRANSFERS = 10
"""Transfers at a time: up to six fetched by the daemon, and some sent by clients."""

HandOver = Callable[[Mapping[int, Callable[[], None]]], None]
"""Has the running event loop call a handler for each signal."""


class Composition(NamedTuple):
    """The parts of the control plane, for `run` to start and stop."""

    updater: Updater
    partial_files: PartialFiles
    updates: Updates
    desired: DesiredVersionPoller
    lifecycle: Lifecycle
    proving: Proving
    operations: Operations


def compose(plane: DataPlane, notifier: Notifier) -> Composition:
    """Build the parts without starting them."""
    state, serving = plane.state, plane.serving
    config = state.config

    def publish_step(event: Event) -> None:
        if event.id == "update.serving":  # a first version, or a version with other outputs
            plane.presence.announce()
        plane.topics.publish_step(event)

    updater = Updater(
        plane.store,
        serving,
        trust=trust_of(config.updates),
        run=state.boot,
        publish=publish_step,
        keep=_keep(config.updates),
        synchronised=lambda: state.clock.synchronised,
    )
    incoming = state.state_dir / "incoming"
    partial_files = PartialFiles(incoming, max_bytes=2 * MAX_BUNDLE_BYTES, max_transfers=MAX_TRANSFERS)
    updates = Updates(
        partial_files,
        updater,
        checks=Admission(state, serving, updater.verify),
        clock=state.clock,
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

    lifecycle = Lifecycle(
        plane,
        MetricsPage(state, plane.accelerators),
        notifier,
        hold=updater.held,
        configure=configure,
        receive_desired=desired.receive,
    )
    proving = Proving(plane.accelerators, serving.subjects, plane.tunings, lifecycle.apply_tuning)
    operations = Operations(state, plane.accelerators, lifecycle.reload, updates, proving)
    return Composition(updater, partial_files, updates, desired, lifecycle, proving, operations)


async def run(
    plane: DataPlane,
    unproven: Sequence[str],
    notifier: Notifier,
    listening: ControlSocket,
    lock: StateLock,
    hand_over: HandOver,
) -> None:
    """Control a data plane that serves, with models still to be proven, until a signal to stop."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    parts = compose(plane, notifier)
    lifecycle, updater, updates = parts.lifecycle, parts.updater, parts.updates
    server = Server(listening, parts.operations)
    clock_set = SetNotice()
    reloads: set[asyncio.Task[None]] = set()

    def follow_clock() -> None:
        clock_set.take()
        plane.refresh()

    if clock_set.descriptor >= 0:
        loop.add_reader(clock_set.descriptor, follow_clock)

    def begin_reload() -> None:
        task = loop.create_task(_reload_quietly(lifecycle.reload))
        reloads.add(task)  # the loop alone would let the task be collected
        task.add_done_callback(reloads.discard)

    async def start() -> None:
        async with lifecycle.changing:  # a reload waits until the start is complete
            await server.start()
            await lifecycle.complete_start(unproven)
            await updater.start()
            await updates.start()

    try:
        starting, stopping = loop.create_task(start()), loop.create_task(stop.wait())
        hand_over({signal.SIGTERM: stop.set, signal.SIGINT: stop.set, signal.SIGHUP: begin_reload})
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():  # a trial may outlast the time for a stop, and the final kill would count as a crash
            starting.cancel()
            return
        starting.result()
        notifier.ready()
        log.info("edged %s serves: %s", __version__, summary(plane.state))
        freeze()
        keeper = FileKeeper(plane.state, plane.store, lock, server, updater, plane.announced, plane.serving)
        async with asyncio.TaskGroup() as tasks:
            chores = [
                tasks.create_task(notifier.feed_watchdog(plane.progress)),
                tasks.create_task(_refresh(plane.refresh, plane.state, notifier)),
                tasks.create_task(updater.run()),
                tasks.create_task(delete_stale_transfers(parts.partial_files, plane.state.clock)),
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
        await lifecycle.stop()
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
