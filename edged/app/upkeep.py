"""Upkeep of a running daemon: restore deleted or replaced files, and delete stale transfers."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from edged.api import EdgedError, StoreError
from edged.app.announced import Announced
from edged.app.serving import ServedModels
from edged.app.state import ServiceState
from edged.app.state_lock import StateLock
from edged.control.clock import REFRESH, KernelClock
from edged.control.server import Server
from edged.models.store import Store
from edged.system.folder_watch import FolderWatch
from edged.transfer.partial_files import PartialFiles
from edged.updates.updater import Updater

log = logging.getLogger("edged.daemon")

SETTLE_SECONDS = 0.2
"""Delay after a change of a file, since changes seldom come alone."""

STALE_SECONDS = 7 * 86400.0
TIDY_SECONDS = 3600.0


class FileKeeper:
    """Restores the files of this run after every change from outside. The spool restores its own files."""

    def __init__(
        self,
        state: ServiceState,
        store: Store,
        lock: StateLock,
        server: Server,
        updater: Updater,
        announced: Announced,
        serving: ServedModels,
    ) -> None:
        self._state = state
        self._store = store
        self._lock = lock
        self._server = server
        self._updater = updater
        self._announced = announced
        self._serving = serving

    async def run(self) -> None:
        """Restore files until cancelled."""
        loop, watch, changed = asyncio.get_running_loop(), FolderWatch(), asyncio.Event()

        def wake() -> None:
            if watch.take():
                changed.set()

        if watch.descriptor >= 0:
            loop.add_reader(watch.descriptor, wake)
        try:
            while True:
                watch.follow(self._folders())
                await self._restore()
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if watch.descriptor >= 0 else REFRESH):
                        await changed.wait()
                await asyncio.sleep(SETTLE_SECONDS)
                changed.clear()
        finally:
            loop.remove_reader(watch.descriptor)
            watch.close()

    async def _restore(self) -> None:
        _keep_locked(self._lock)
        try:
            await self._server.keep_listening()
        except (EdgedError, OSError) as error:
            log.error("%s", error)
        await self._updater.keep_ledgers()
        await asyncio.to_thread(self._announced.keep)
        self._serving.notice_lost_files()

    def _folders(self) -> dict[Path, str]:
        """Return the folders to watch, each with the only name to watch, or "" for every name in a folder of ours."""
        folder, socket = self._lock.folder, self._server.path
        models = [folder / "models" / name for name in self._store.installed()]
        bundles = [part.bundle.folder for part in self._state.models.values() if part.bundle is not None]
        ours = [folder, folder / "models", *models, *(model / "versions" for model in models), *bundles]
        return {folder.parent: folder.name, socket.parent: socket.name} | dict.fromkeys(ours, "")


def _keep_locked(lock: StateLock) -> None:
    """Lock the state folder again if another folder has taken its place.

    If another program has locked the new folder, end the process at once, like a power cut: every further write would
    damage files of the other program.
    """
    try:
        lock.take()
    except StoreError as error:
        log.critical("%s", error)
        os._exit(1)


async def delete_stale_transfers(partial_files: PartialFiles, clock: KernelClock) -> None:
    """Delete transfers without progress for a week, every hour. An unsynchronised clock gives no age."""
    while True:
        if clock.synchronised:
            try:
                for name in await asyncio.to_thread(partial_files.collect, time.time(), STALE_SECONDS):
                    log.info("deleted the transfer %s, without progress for a week", name)
            except (EdgedError, OSError) as error:
                log.warning("stale transfers cannot be deleted: %s", error)
        await asyncio.sleep(TIDY_SECONDS)
