"""Which models may be loaded in this process: those that a child process has loaded, run and closed without harm.

Native code reads a model file, and a file that is damaged or hostile can end or hang the process that loads it. So each
file is tried in a child (models/trial.py) the first time that it is to be loaded with this runtime on this processor.
What came through is remembered in the state folder (core/proofs.py), so that later starts are as fast as before.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
import threading
from functools import cache
from pathlib import Path

from edged.api import Backend
from edged.core import proofs
from edged.core.errors import ModelError, StoreError
from edged.core.proofs import MAX_RECORD_BYTES, MAX_TITLE, SafeLoad
from edged.models.atomic_files import Disk
from edged.models.bundle import Bundle
from edged.models.trial import class_path, prove_apart

log = logging.getLogger("edged.models")

FILE = "proofs.json"
"""The name of the record in the state folder."""

TRIALS_AT_A_TIME = 2
"""The number of children at a time: a board has little memory, and one that hangs must not hold up the others."""


class Proofs:
    """The record in `file`, which need not be there, and the trials that add to it, all on one event loop."""

    def __init__(self, file: Path, disk: Disk | None = None) -> None:
        self._file = file
        self._disk = disk or Disk()
        self._known: dict[SafeLoad, None] | None = None  # in order of age
        self._reading = threading.Lock()
        self._trials: dict[SafeLoad, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(TRIALS_AT_A_TIME)
        self._writing = asyncio.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether a trial is under way."""
        return bool(self._trials)

    def holds(self, bundle: Bundle, backend: Backend, signature: str | None = None) -> bool:
        """Whether a model is known to do no harm. Raises ModelError if its runtime is not installed."""
        return _load_of(bundle, backend, signature) in self._read()

    async def ensure(self, bundle: Bundle, backend: Backend) -> None:
        """Return once a model is known to do no harm; a trial in a child finds out where that is not known.

        Whoever asks for a model that is on trial waits for that trial.

        Raises:
            EdgedError: the model does not work or does harm, as `prove_apart` raises, or was replaced meanwhile.
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
        """Record that a model has passed a trial that was held elsewhere."""
        await self._add(await asyncio.to_thread(_load_of, bundle, backend))

    async def stop(self) -> None:
        """End the trials that are under way."""
        trials = list(self._trials.values())
        for trial in trials:
            trial.cancel()
        if trials:
            await asyncio.wait(trials)

    async def _try(self, bundle: Bundle, backend: Backend, load: SafeLoad) -> None:
        async with self._turns:
            log.info("%s is new to this board, and is tried in a child process first", bundle.path)
            await prove_apart(bundle, backend)
        await self._add(load)

    def _over(self, trial: asyncio.Task[None]) -> None:
        self._trials = {load: each for load, each in self._trials.items() if each is not trial}
        if not trial.cancelled():
            trial.exception()  # looked at, though all who waited for it may have left

    async def _add(self, load: SafeLoad) -> None:
        """Remember a load. One that cannot be written is known in this run alone."""
        async with self._writing:
            known = await asyncio.to_thread(self._read)
            if load in known:
                return
            known[load] = None
            try:
                await asyncio.to_thread(self._write, [each for each in known if each.runtime])
            except StoreError as error:
                log.warning("that a model has passed its trial cannot be remembered: %s", error)

    def _read(self) -> dict[SafeLoad, None]:
        """What is known; the file is read the first time."""
        with self._reading:
            if self._known is None:
                self._known = dict.fromkeys(_recorded(self._file))
            return self._known

    def _write(self, loads: list[SafeLoad]) -> None:
        self._disk.make_folder(self._file.parent)
        self._disk.replace(self._file, proofs.encode(loads))


def _load_of(bundle: Bundle, backend: Backend, signature: str | None = None) -> SafeLoad:
    """What is remembered of a model. Importing a runtime takes long: not for the event loop."""
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
    """The loads in the file; none where it is not there, no regular file, or damaged."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as opened:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise StoreError("it is no regular file")
            return proofs.decode(opened.read(MAX_RECORD_BYTES + 1))
    except (FileNotFoundError, PermissionError):  # edgectl may run as somebody who may not read it
        return ()
    except OSError as error:
        log.warning("%s cannot be read: %s", file, error.strerror)
    except StoreError as error:
        log.warning("%s: %s", file, error)
    return ()


def _refuse_if_replaced(bundle: Bundle) -> None:
    """Hold a model's file against what was tried: a file at a configured path may be replaced at any time."""
    try:
        with bundle.model.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        found = ""
    if found != bundle.manifest.files[bundle.manifest.model].sha256:
        raise ModelError(
            f"{bundle.model} was replaced while it was on trial", hint="reload once it is in place", retryable=True
        )


@cache
def _processor() -> str:
    """The SHA-256 of what tells processors apart: a runtime chooses its instructions by that."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # a sandbox may hide it
        lines = []
    telling = sorted({line for line in lines if line.partition(":")[0].strip() in _TELLING})
    return hashlib.sha256("\n".join([os.uname().machine, *telling]).encode()).hexdigest()


_TELLING = {
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
}
