"""Models that may be loaded in this process: a child process has loaded, run and closed them without harm.

Native code reads a model file, and a damaged or hostile file can end or hang the process. Each file is therefore tried
in a child process (models/trial.py) before the first load with this runtime on this processor. Proven models are
recorded in the state folder (core/proofs.py), so that later starts are fast.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from functools import cache, cached_property
from pathlib import Path

from edged.api import Backend
from edged.core import proofs
from edged.core.digest import file_sha256, sha256
from edged.core.errors import ModelError, StoreError
from edged.core.proofs import MAX_RECORD_BYTES, MAX_TITLE, SafeLoad
from edged.models.atomic_files import Disk
from edged.models.bundle import Bundle
from edged.models.selftest import class_path
from edged.system.later import asyncio

log = logging.getLogger("edged.models")

FILE = "proofs.json"
"""The name of the record in the state folder."""

TRIALS_AT_A_TIME = 2
"""Maximum number of concurrent trials: a board has little memory, and a hanging trial must not delay the others."""


class Proofs:
    """The record in `file`, which may be missing, and the trials that extend the record, all on one event loop."""

    def __init__(self, file: Path, disk: Disk | None = None) -> None:
        self._file = file
        self._disk = disk or Disk()
        self._known: dict[SafeLoad, None] | None = None  # in order of age
        self._reading = threading.Lock()
        self._trials: dict[SafeLoad, asyncio.Task[None]] = {}

    @cached_property
    def _turns(self) -> asyncio.Semaphore:  # made with the first trial: `holds` needs no event loop
        return asyncio.Semaphore(TRIALS_AT_A_TIME)

    @cached_property
    def _writing(self) -> asyncio.Lock:
        return asyncio.Lock()

    @property
    def is_busy(self) -> bool:
        """Return whether a trial is running."""
        return bool(self._trials)

    def holds(self, bundle: Bundle, backend: Backend, signature: str | None = None) -> bool:
        """Return whether a model is known to be safe. Raises ModelError if the runtime is not installed."""
        return _load_of(bundle, backend, signature) in self._read()

    async def ensure(self, bundle: Bundle, backend: Backend) -> None:
        """Return once a model is known to be safe, after a trial in a child process if necessary.

        Concurrent calls for a model wait for the same trial.

        Raises:
            EdgedError: the model fails or does harm, as raised by `prove_apart`, or was replaced meanwhile.
        """
        load = await asyncio.to_thread(_load_of, bundle, backend)
        if load in await asyncio.to_thread(self._read):
            return
        trial = self._trials.get(load)
        if trial is None:
            trial = self._trials[load] = asyncio.get_running_loop().create_task(self._try(bundle, backend, load))
            trial.add_done_callback(self._over)
        await asyncio.shield(trial)
        await asyncio.to_thread(_refuse_if_replaced, bundle)

    async def remember(self, bundle: Bundle, backend: Backend) -> None:
        """Record that a model has passed a trial elsewhere."""
        await self._add(await asyncio.to_thread(_load_of, bundle, backend))

    async def stop(self) -> None:
        """End the running trials."""
        trials = list(self._trials.values())
        for trial in trials:
            trial.cancel()
        if trials:
            await asyncio.wait(trials)

    async def _try(self, bundle: Bundle, backend: Backend, load: SafeLoad) -> None:
        async with self._turns:
            log.info("%s is new to this board, and is tried in a child process first", bundle.path)
            from edged.models.trial import prove_apart  # most starts try nothing

            await prove_apart(bundle, backend)
        await self._add(load)

    def _over(self, trial: asyncio.Task[None]) -> None:
        self._trials = {load: each for load, each in self._trials.items() if each is not trial}
        if not trial.cancelled():
            trial.exception()  # retrieved, even if all waiting calls were cancelled

    async def _add(self, load: SafeLoad) -> None:
        """Record a load. An unwritten record holds for this run alone."""
        async with self._writing:
            known = await asyncio.to_thread(self._read)
            if load in known:
                return
            known[load] = None
            try:
                await asyncio.to_thread(self._write, [each for each in known if each.runtime])
            except StoreError as error:
                log.warning("the proof of a model cannot be recorded: %s", error)

    def _read(self) -> dict[SafeLoad, None]:
        """Return the record; the first call reads the file."""
        with self._reading:
            if self._known is None:
                self._known = dict.fromkeys(_recorded(self._file))
            return self._known

    def _write(self, loads: list[SafeLoad]) -> None:
        self._disk.make_folder(self._file.parent)
        self._disk.replace(self._file, proofs.encode(loads))


def _load_of(bundle: Bundle, backend: Backend, signature: str | None = None) -> SafeLoad:
    """Return the entry for a model. Importing a runtime is slow, so do not call this on the event loop."""
    manifest = bundle.manifest
    return SafeLoad(
        file=manifest.files[manifest.model].sha256,
        signature=signature or manifest.signature,
        shapes=tuple(each.tensor.shape for each in manifest.inputs),
        backend=class_path(backend)[-MAX_TITLE:],
        runtime=backend.title()[:MAX_TITLE],
        processor=_processor(),
    )


def _recorded(file: Path) -> tuple[SafeLoad, ...]:
    """Return the loads in the file; none if missing, irregular or damaged."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as opened:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise StoreError("not a regular file")
            return proofs.decode(opened.read(MAX_RECORD_BYTES + 1))
    except (FileNotFoundError, PermissionError):  # edgectl may run as a user without permission to read the file
        return ()
    except OSError as error:
        log.warning("%s cannot be read: %s", file, error.strerror)
    except StoreError as error:
        log.warning("%s: %s", file, error)
    return ()


def _refuse_if_replaced(bundle: Bundle) -> None:
    """Raise an error if the model's file differs from the tried file: a file at a configured path may be replaced."""
    try:
        with bundle.model.open("rb") as file:
            found = file_sha256(file)
    except OSError:
        found = ""
    if found != bundle.manifest.files[bundle.manifest.model].sha256:
        raise ModelError(
            f"{bundle.model} was replaced during the trial", hint="reload once the file is in place", retryable=True
        )


@cache
def _processor() -> str:
    """Return the SHA-256 of the processor's identification, by which a runtime chooses instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # a sandbox may hide the file
        lines = []
    telling = sorted({line for line in lines if line.partition(":")[0].strip() in _TELLING})
    return sha256("\n".join([os.uname().machine, *telling]).encode())


_TELLING = {
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
}
