"""The updater: installs versions, carries out operators' requests, and continues the updates of an earlier run.

core/decide.py holds the policy: read the head of core/decide.py first. The updater hands each file to an
`InstallRunner` (install.py), and takes the steps chosen by `decide` with an `UpdateMachine` (steps.py). Steps of a
model never overlap, as each holds the lock of the `UpdateState`; blocking work runs on other threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from edged.core import ledger as ledgers
from edged.core.container import Head
from edged.core.decide import Keep, ReplaceLedger, is_suspended, target
from edged.core.errors import ControlError, EdgedError, ModelError, StoreError
from edged.core.ledger import Ledger
from edged.models.atomic_files import Disk
from edged.models.signatures import Trust
from edged.models.store import BRING, Store
from edged.updates import unpack
from edged.updates.announce import StepAnnouncer
from edged.updates.blocking import on_thread
from edged.updates.facts import FactsReader, ModelHost
from edged.updates.install import InstallRunner
from edged.updates.jobs import Event, InstallOptions, Job, JobList, ModelReport
from edged.updates.signers import SignatureCheck
from edged.updates.steps import UpdateMachine
from edged.updates.update_state import UpdateState, UpdateStates

log = logging.getLogger("edged.models")

INTERVAL = 1.0
"""Seconds between two inspections of a model during an update."""

RELOAD_SECONDS = 10.0
"""Longest wait, in seconds, of a reload for the models with changed pipelines; a first trial may take longer."""

START_SECONDS = 60.0
"""Longest wait, in seconds, of the start of the daemon for earlier updates; the service manager waits, too."""

STOP_SECONDS = 4.0
"""Longest wait, in seconds, of the end of a run for work on other threads."""


class Updater:
    """Keeps the models of a board up to date, and a working version in service if at all possible.

    `run` identifies the run of the daemon. `publish` is called with every step, on the event loop.
    """

    def __init__(
        self,
        store: Store,
        host: ModelHost,
        *,
        trust: Trust,
        run: str,
        publish: Callable[[Event], None],
        keep: Keep | None = None,
        disk: Disk | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        synchronised: Callable[[], bool] = lambda: False,
    ) -> None:
        disk = disk or Disk()
        self._store = store
        self._host = host
        self._run = run
        self._disk = disk
        self._states = states = UpdateStates(UpdateState)
        self._steps = steps = StepAnnouncer(states, publish, clock)
        self._facts = facts = FactsReader(store, host, states, run=run, keep=keep or Keep(), clock=clock)
        self._machine = machine = UpdateMachine(store, host, disk, states, facts, steps, clock)
        self._signatures = signatures = SignatureCheck(trust, states, wall, synchronised)
        self._installs = InstallRunner(store, host, disk, states, facts, steps, machine, signatures, wall)
        self._jobs = JobList()
        self._tasks: set[asyncio.Task[None]] = set()

    # Start, run, stop

    async def start(self) -> None:
        """Continue the updates of an earlier run, and return as soon as the best version of each model serves.

        Trials beyond START_SECONDS go on after the return.
        """
        resuming = self._spawn(self._resume_all())
        done, _ = await asyncio.wait([resuming], timeout=START_SECONDS)
        for task in done:
            task.result()

    async def run(self) -> None:
        """Take due steps, until cancelled. A step under way is then left to `stop`."""
        while True:
            await self._machine.unsettled.wait()
            unsettled = [name for name, model in self._states.items() if model.unsettled]
            if not unsettled:
                self._machine.unsettled.clear()
                continue
            await asyncio.gather(*(asyncio.shield(self._spawn(self.settle(name))) for name in unsettled))
            await asyncio.sleep(INTERVAL)

    async def stop(self) -> None:
        """End the run without a count against any candidate; the next run continues. Cancel `run` before.

        Work beyond STOP_SECONDS is abandoned, since results wait to be saved, and the run counts then.
        """
        self._machine.stopping = True
        for task in self._tasks:
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                if self._tasks:
                    await asyncio.wait(self._tasks)  # gather would go on until the tasks have ended
                for name, model in list(self._states.items()):
                    async with model.lock:
                        await self._give_back(name)

    async def settle(self, name: str) -> None:
        """Take every due step of a model now."""
        async with self._states[name].lock:
            await self._machine.settle(name)

    async def keep_ledgers(self) -> None:
        """Restore every ledger changed or deleted by another program: the running daemon knows the true ledger."""
        for name, model in list(self._states.items()):
            async with model.lock:
                folder, ledger = self._store.model(name), model.ledger
                if self._machine.stopping or ledger is None or await on_thread(folder.holds, ledger):
                    continue
                text = f"{folder.folder}: another program changed or deleted state.json; edged restores the file"
                log.warning("%s: %s", name, text, extra={"model": name})
                try:
                    await self._machine.write_ledger(name, ledger)
                except StoreError as error:
                    self._steps.announce(name, "update.hindered", str(error))
                await self._machine.settle(name)

    @asynccontextmanager
    async def held(self, names: Collection[str]) -> AsyncIterator[None]:
        """Take no step for the models while the caller changes pipelines, and settle the models afterwards.

        Versions unable to serve before the change get another chance. Work beyond RELOAD_SECONDS goes on after the
        return.
        """
        held = [name for name in self._facts.names() if name in names]
        async with AsyncExitStack() as locks:
            for name in held:
                await locks.enter_async_context(self._states[name].lock)
            yield
            for name in held:
                self._states[name].unfit.clear()
        settling = [self._spawn(self.settle(name)) for name in held]
        if settling:
            done, _ = await asyncio.wait(settling, timeout=RELOAD_SECONDS)
            for task in done:
                task.result()

    def configure(self, trust: Trust, keep: Keep) -> None:
        """Change the trusted signers and the limits of old versions."""
        self._signatures.trust, self._facts.keep = trust, keep

    # Requests

    def install(self, container: Path, options: InstallOptions) -> Job:
        """Begin to install the version in a file. The file must stay in place until the job is `released`.

        The file is a container, a delta to an installed version or, with `options.bare`, a bare model.
        """
        job = self._jobs.new(options)
        self._spawn(self._installs.run(job, container))
        return job

    async def rollback(self, name: str, to: str = "") -> None:
        """Return to the version before, or to the version `to`: a confirmed number or digest, or "factory".

        Raises:
            ControlError: no such version was confirmed here.
            ModelError: the chosen version does not serve, and the best other version does; or the factory version is
                not sound, and stays unused.
            StoreError: the disk refuses.
        """
        factory = await on_thread(self._store.factory, name)
        named = self._host.named(name)

        def rolled_back(ledger: Ledger) -> Ledger:
            if named and (to or ledger.candidate is None):
                raise ledgers.held_by_configuration(name, named)
            has_factory = next(iter(factory), None) not in (None, ledger.active)
            return ledgers.rolled_back(ledger, name, to, has_factory=has_factory)

        ledger = (await self._facts.inspect(self._facts.require(name))).ledger
        if ledger.active is not None and rolled_back(ledger).active is None:
            await self._require_factory(name, factory)
        await self._change(name, rolled_back, "update.rolled_back", f"an operator rolled {name} back")
        facts = await self._facts.inspect(name)
        wanted = target(replace(facts, unfit={}))
        if wanted in facts.unfit:
            number = self._states[name].number(facts, wanted)
            raise ModelError(f"{name} {number} does not serve: {facts.unfit[wanted].reason}")

    async def confirm(self, name: str) -> None:
        """Confirm the candidate for an operator. Raises ControlError without a candidate to confirm."""
        text = "an operator confirmed the version"
        await self._change(name, lambda ledger: ledgers.vouched(ledger, name), "update.vouched", text)

    async def pin(self, name: str, pinned: bool) -> None:
        """Refuse other versions of a model from now on, or accept other versions again.

        Raises:
            ControlError: the model has no version yet, or another version is under way.
        """
        if pinned and self._facts.require(name) not in self._store.names():
            raise ControlError(f"{name} has no version to be pinned to", hint=BRING)
        text = f"{name} is pinned to the present version" if pinned else f"{name} is no longer pinned"
        await self._change(name, lambda ledger: ledgers.pinned(ledger, name, on=pinned), "update.pinned", text)

    async def forget_rejection(self, name: str, digest: str) -> None:
        """Let a rejected version be tried again, given the digest or the start of the digest. Raises ControlError."""
        text = f"an operator allows {digest[:12]} to be tried again"
        await self._change(name, lambda ledger: ledgers.forgiven(ledger, name, digest), "update.forgiven", text)

    def probation(self, job: Job) -> str:
        """Return the progress of the probation of a job's version in words, "" outside probation."""
        model = self._states.get(job.model)
        return model.progress(job.digest) if model else ""

    def jobs(self) -> tuple[Job, ...]:
        """Return the latest jobs of this run, oldest first."""
        return self._jobs.latest()

    def verify(self, head: Head) -> tuple[str, ...]:
        """Return the signers of a version, as SignatureCheck does."""
        return self._signatures.verify(head)

    async def models(self) -> tuple[ModelReport, ...]:
        """Return a report on each model. Raises StoreError."""
        inspected = [(name, await self._facts.inspect(name)) for name in self._facts.names()]
        return tuple(
            ModelReport(
                name=name,
                serving=facts.serving,
                active=self._states[name].active_number(facts),
                factory={digest: self._states[name].number(facts, digest) for digest in facts.factory},
                ledger=facts.ledger,
                unfit=facts.unfit,
                named=self._host.named(name),
                suspended=is_suspended(facts),
            )
            for name, facts in inspected
        )

    async def knows(self, file: Path) -> bool:
        """Return True if the version in a received file is installed, under way or rejected, and the file obsolete."""
        try:
            digest = (await on_thread(unpack.read, file)).head.digest
        except EdgedError:  # an incomplete head, or a bare file without the name of a model
            return False
        try:
            ledgers = [(await self._facts.inspect(name)).ledger for name in self._store.installed()]
        except StoreError:
            return False
        return any(
            digest in ledger.rejected or digest in (ledger.active, ledger.candidate and ledger.candidate.digest)
            for ledger in ledgers
        )

    async def _change(self, name: str, change: Callable[[Ledger], Ledger], event: str, text: str) -> None:
        """Change the ledger for an operator and settle the model. Every version gets another chance."""
        model = self._states[self._facts.require(name)]
        async with model.lock:
            if self._machine.stopping:
                raise ControlError(
                    "the daemon is stopping", hint="repeat the command after the restart", retryable=True
                )
            facts = await self._facts.inspect(name)
            await self._machine.take(name, ReplaceLedger(change(facts.ledger), event, text), facts)
            model.unfit.clear()
            await self._machine.settle(name)

    async def _require_factory(self, name: str, digests: Iterable[str]) -> None:
        """Raise ModelError if no factory version is sound, before a good version is given up in vain."""
        problem = "there is none"
        for digest in digests:
            try:
                await on_thread(self._store.open, name, digest)
            except EdgedError as error:
                problem = str(error)
            else:
                return
        raise ModelError(f"{name} is unchanged, since no factory version can be used: {problem}")

    async def _resume_all(self) -> None:
        for name in self._store.installed():
            await self._resume(name)

    async def _resume(self, name: str) -> None:
        """Continue a model's update of an earlier run.

        The daemon may have been killed before a rename was durable, and the card may have lost the ledger since: the
        ledger is written again from the copy.
        """
        folder, model = self._store.model(name), self._states[name]
        async with model.lock:
            try:
                ledger = model.ledger = await on_thread(folder.read)
            except StoreError:  # `settle` meets the same error, and announces it
                await self._machine.settle(name)
                return
            if ledger.candidate is not None:
                version = ledger.versions[ledger.candidate.digest]
                job = self._jobs.new(
                    InstallOptions(origin=version.origin, confirm_within=ledger.candidate.confirm_within)
                )
                job.model, job.version, job.digest = name, version.version, ledger.candidate.digest
                job.released.set()
                model.jobs.append(job)
            try:
                await on_thread(self._disk.sync_folder, folder.folder)
                if not await on_thread(folder.holds, ledger):
                    await self._machine.write_ledger(name, ledger)
            except StoreError as error:
                self._steps.announce(name, "update.hindered", str(error))
            await self._machine.settle(name)

    async def _give_back(self, name: str) -> None:
        """Take back the count of this run for a model's candidate, after a clean end."""
        ledger = self._states[name].ledger
        spared = ledger and ledgers.given_back(ledger, self._run)
        try:
            if spared is not None and spared != ledger:
                await self._machine.write_ledger(name, spared)
        except StoreError as error:
            self._steps.announce(name, "update.hindered", str(error))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin work, to be ended by `stop`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
