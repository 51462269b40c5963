"""The loop of the update machine: inspect a model, let `decide` choose a step, take the step, inspect again.

core/decide.py holds the policy and explains the machine; nothing here decides. An install, an operator's request, the
passing of time and the start of the daemon all end in `UpdateMachine.settle`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Literal

from edged.core.decide import (
    CandidateAnswer,
    ModelFacts,
    ModelStep,
    PointLink,
    Remove,
    ReplaceLedger,
    Serve,
    Try,
    VersionFault,
    decide,
    is_suspended,
)
from edged.core.errors import BundleError, EdgedError, ModelError, StoreError, quantity
from edged.core.ledger import Ledger
from edged.core.verdict import Failure, Verdict
from edged.models.atomic_files import ASIDE, Disk
from edged.models.store import Store
from edged.updates.announce import StepAnnouncer
from edged.updates.blocking import on_thread
from edged.updates.facts import FactsReader, ModelHost
from edged.updates.update_state import UpdateStates, bug

log = logging.getLogger("edged.models")

MAX_STEPS = 100
"""Steps of one call of `settle`; no update takes so many."""


class UpdateMachine:
    """Takes steps for models. The caller of each method holds the lock of the model's state.

    `unsettled` is set with the `unsettled` of any model; the reader clears the event.
    """

    def __init__(
        self,
        store: Store,
        host: ModelHost,
        disk: Disk,
        states: UpdateStates,
        facts: FactsReader,
        steps: StepAnnouncer,
        clock: Callable[[], float],
    ) -> None:
        self.stopping = False
        self.unsettled = asyncio.Event()
        self._store = store
        self._host = host
        self._disk = disk
        self._states = states
        self._facts = facts
        self._steps = steps
        self._clock = clock

    async def settle(self, name: str, room: int = 0) -> None:
        """Take steps until none is left; take no step while the daemon stops.

        A kind of step refused by the disk or the host is announced and not tried again in this call. Old versions may
        be removed to have `room` bytes free.
        """
        if self.stopping:  # the next run counts steps anew
            return
        model = self._states[name]
        barred: frozenset[type[ModelStep]] = frozenset()
        complaint = ""
        taken = 0
        model.begin_retry(self._clock())
        try:
            while (step := decide(facts := await self._facts.inspect(name, barred, room))) is not None:
                taken += 1
                if taken > MAX_STEPS:
                    raise StoreError(
                        f"{self._store.model(name).folder}: {MAX_STEPS} steps did not bring the update to an end",
                        hint="end any other program with write access to the folder",
                    )
                try:
                    await self.take(name, step, facts)
                except EdgedError as error:
                    complaint = str(error)
                    barred |= {type(step)}
                else:
                    if isinstance(step, Remove) and not step.path.endswith(ASIDE):  # the disk may have room again
                        barred -= {ReplaceLedger}
            hopeful = model.plan_retry(facts, self._clock())
            model.unsettled = facts.ledger.candidate is not None or bool(barred) or hopeful
            self._announce_suspension(name, facts)
            self._announce_lost_time(name, facts)
            self._steps.end_jobs(name, facts)
        except StoreError as error:
            complaint = str(error)
            model.unsettled = True
        if model.unsettled:
            self.unsettled.set()
        if complaint and complaint != model.complaint:
            self._steps.announce(name, "update.hindered", complaint)
        model.complaint = complaint

    async def take(self, name: str, step: ModelStep, facts: ModelFacts) -> None:
        """Take one step. Raises EdgedError if the disk or the host refuses."""
        folder, model = self._store.model(name), self._states[name]
        match step:
            case ReplaceLedger():
                await self.write_ledger(name, step.ledger)
                self._steps.announce(name, step.event, step.text)
                model.record_end(facts, step)
            case Try(digest):
                model.trial = await self._try(name, facts, digest)
            case Serve(""):
                await self._host.swap(name, None)
                self._steps.announce(name, "update.nothing", "no version is fit to serve")
            case Serve(digest):
                await self._serve(name, facts, digest)
            case PointLink(digest):
                await on_thread(self._disk.point, folder.link, digest and f"versions/{digest}")
            case Remove(path):
                await on_thread(self._disk.remove, folder.folder / path)

    async def write_ledger(self, name: str, ledger: Ledger) -> None:
        """Replace the ledger on disk. After a StoreError the old ledger still counts, whatever the file holds."""

        def write() -> None:
            self._store.model(name).write(ledger, self._disk)
            self._states[name].ledger = ledger  # on this thread, as the caller may have been cancelled meanwhile

        await on_thread(write)

    def _announce_suspension(self, name: str, facts: ModelFacts) -> None:
        """Announce a suspended probation of the candidate; the end shows in the next step of the model."""
        model, candidate = self._states[name], facts.ledger.candidate
        suspended = is_suspended(facts)
        if suspended and not model.suspended and candidate is not None:
            number = model.number(facts, candidate.digest)
            text = f"the probation of version {number} is suspended: no pipeline uses {name} any more"
            remedy = f"name {name} in a pipeline again, or: edgectl rollback {name}"
            self._steps.announce(name, "update.suspended", f"{text} ({remedy})")
        model.suspended = suspended

    def _announce_lost_time(self, name: str, facts: ModelFacts) -> None:
        model, candidate = self._states[name], facts.ledger.candidate
        if model.lost_watched and candidate is not None:
            text = f"the probation of version {model.number(facts, candidate.digest)} continues from "
            text += f"{model.watched:.0f} s, since a pipeline of {name} was rebuilt or removed"
            self._steps.announce(name, "update.rewatched", text)
        model.lost_watched = False

    async def _try(self, name: str, facts: ModelFacts, digest: str) -> CandidateAnswer:
        number = self._states[name].number(facts, digest)
        self._steps.announce(name, "update.trying", f"version {number} is on trial")
        try:
            bundle = await on_thread(self._store.open, name, digest)
        except BundleError as error:
            return _unsound(error)
        try:
            verdict = await self._host.try_out(name, bundle)
        except EdgedError as error:  # without a trial the version is not to blame
            return VersionFault("reverted", error.message, error.hint)
        except Exception as error:
            log.exception("the trial of %s met a bug", name)
            return VersionFault("reverted", bug(error).message, bug(error).hint)
        if not verdict.ok:
            return VersionFault(_FAULTS.get(verdict.failure, "rejected"), verdict.reason, verdict.hint)
        self._steps.announce(name, "update.tried", _measured(number, verdict))
        return "good"

    async def _serve(self, name: str, facts: ModelFacts, digest: str) -> None:
        model = self._states[name]
        number = model.number(facts, digest)
        fault = await self._swap(name, digest)
        if fault is None:
            candidate, limits = facts.ledger.candidate, model.limits
            text = f"version {number} serves"
            if candidate is not None and candidate.digest == digest:
                text += f", on probation by its manifest until it has answered {quantity(limits.windows, 'window')} "
                text += f"in at least {limits.seconds:g} s"
            self._steps.announce(name, "update.serving", text)
        else:
            model.unfit[digest] = fault
            self._steps.announce(name, "update.unfit", f"version {number} does not serve: {fault.reason}")

    async def _swap(self, name: str, digest: str) -> VersionFault | None:
        """Have a version serve, and return the fault of a failure."""
        try:
            bundle = await on_thread(self._store.open, name, digest)
        except BundleError as error:
            return _unsound(error)
        try:
            await self._host.swap(name, bundle)
        except EdgedError as error:
            own = isinstance(error, ModelError | BundleError) and not error.retryable
            return VersionFault("rejected" if own else "reverted", error.message, error.hint)
        except Exception as error:
            log.exception("the swap of %s met a bug", name)
            return VersionFault("rejected", bug(error).message, bug(error).hint)
        if self._host.serving(name) == digest:
            return None
        return VersionFault("rejected", "the loaded version does not answer")


_FAULTS: dict[Failure, Literal["reverted", "damaged"]] = {"damaged": "damaged", "hindered": "reverted"}
"""Fault of a version after a failure of the trial for a reason outside the version."""


def _unsound(error: BundleError) -> VersionFault:
    """Return the fault of a version with an unusable folder."""
    return VersionFault("reverted" if error.retryable else "damaged", error.message, error.hint)


def _measured(number: str, verdict: Verdict) -> str:
    return (
        f"version {number} passed its self-test: {quantity(verdict.samples, 'golden sample')}, "
        f"{verdict.latency_p99 * 1000:.3g} ms (p99), {verdict.rss_bytes >> 20} MiB, in {verdict.seconds:.3g} s"
    )
