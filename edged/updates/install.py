"""An install, from a submitted file to the candidate in the ledger. From there on `decide` chooses the steps.

The head is read and the signatures verified, the ledger is asked for admission, the file is unpacked and read back, the
host is asked for fit, and only then does the version get a place and become the candidate. After a power cut before
the last of these steps the next run removes the files, and the sender offers the version again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from edged.core import ledger as ledgers
from edged.core.decide import ModelFacts, ReplaceLedger, target
from edged.core.errors import BundleError, EdgedError, ModelError
from edged.core.ledger import Installed
from edged.models.atomic_files import Disk
from edged.models.bare_file import nothing_to_inherit, own_parts
from edged.models.bundle import Bundle
from edged.models.store import Store, open_version
from edged.updates import unpack
from edged.updates.announce import SEE_STATUS, StepAnnouncer
from edged.updates.blocking import on_thread
from edged.updates.facts import FactsReader, ModelHost
from edged.updates.jobs import NAME_IT, Job
from edged.updates.signers import SignatureCheck
from edged.updates.steps import UpdateMachine
from edged.updates.unpack import Submission
from edged.updates.update_state import UpdateStates, bug

log = logging.getLogger("edged.models")


class InstallRunner:
    """Runs installs, one at a time per model. `wall` is the wall clock in Unix seconds."""

    def __init__(
        self,
        store: Store,
        host: ModelHost,
        disk: Disk,
        states: UpdateStates,
        facts: FactsReader,
        steps: StepAnnouncer,
        machine: UpdateMachine,
        signatures: SignatureCheck,
        wall: Callable[[], float],
    ) -> None:
        self._store = store
        self._host = host
        self._disk = disk
        self._states = states
        self._facts = facts
        self._steps = steps
        self._machine = machine
        self._signatures = signatures
        self._wall = wall

    async def run(self, job: Job, file: Path) -> None:
        """Install the version in a file. The job ends with an error, or later with the candidate."""
        try:
            bare = job.options.bare
            submission = None if bare else await on_thread(unpack.read, file)
            job.model = self._facts.require(bare.model) if bare else ""
            if submission:
                job.name(submission.head)
            async with self._states[job.model].lock:
                try:
                    await self._bring_in(job, submission or await self._adopt(job, file))
                except EdgedError as error:
                    self._steps.fail(job, error)
                job.released.set()
                await self._machine.settle(job.model)
        except EdgedError as error:
            self._steps.fail(job, error)
        except asyncio.CancelledError:
            job.end("failed", "the daemon stopped; a recorded candidate continues after the restart")
            raise
        except Exception as error:
            log.exception("the update of %s met a bug", job.model)
            self._steps.fail(job, bug(error))

    async def _bring_in(self, job: Job, submission: Submission) -> None:
        """Make a submitted version the candidate, unless it is the candidate or active already.

        The order of checks: signatures, ledger, content, fit. Raises EdgedError for the first failure.
        """
        name = job.model
        facts = await self._facts.inspect(name)
        ledger, model = facts.ledger, self._states[name]
        signers = await on_thread(self._signatures.verify, submission.head)
        signed_by = ", ".join(signers) or "nobody"
        self._steps.announce(name, "update.verified", f"version {job.version} is signed by {signed_by}", job)
        if ledger.candidate is not None and ledger.candidate.digest == job.digest:
            self._join(job, ledger.candidate.confirm_within)
            return
        ledgers.refuse_unnamed(name, job.version, self._host.named(name))
        if job.digest == (ledger.active or facts.serving):
            await self._renew(job, submission, facts)
            return
        active = model.active_number(facts)
        ledgers.admit(ledger, name, job.digest, job.version, active, allow_downgrade=job.options.allow_downgrade)
        if ledgers.is_downgrade(ledger, job.version, active):
            origin, who = job.options.origin or "an unknown place", job.options.asked_by or "an unknown user"
            text = f"version {job.version} from {origin} is a downgrade, allowed by {who} with --allow-downgrade"
            self._steps.announce(name, "update.downgrade", text, job)
        await self._unpack(job, submission)
        facts = await self._facts.inspect(name)  # older versions may have been removed to make room
        offered = ledgers.offered(
            facts.ledger,
            job.digest,
            Installed(
                version=job.version,
                created=submission.head.manifest.created,
                origin=job.options.origin,
                signers=signers,
                installed=self._wall(),
            ),
            job.options.confirm_within,
            unused=facts.serving is None,
        )
        model.trial = "open"
        model.unfit.pop(job.digest, None)
        model.jobs.append(job)
        text = f"version {job.version} is the candidate"
        await self._machine.take(name, ReplaceLedger(offered, "update.offered", text), facts)

    def _join(self, job: Job, confirm_within: float) -> None:
        """Let a job wait for the candidate of an earlier job."""
        asked = job.options.confirm_within
        if asked not in (0.0, confirm_within):
            text = f"this version is already being installed with --confirm-within {confirm_within:g}; "
            text += f"your {asked:g} s are ignored"
            self._steps.announce(job.model, "update.joined", text, job)
        self._states[job.model].jobs.append(job)

    async def _adopt(self, job: Job, file: Path) -> Submission:
        """Read a bare file, and add the contract of the version to be replaced."""
        name, bare = job.model, job.options.bare
        assert bare is not None
        self._signatures.trust.admit_bare()
        facts = await self._facts.inspect(name)
        before = target(facts)
        if not before:
            raise nothing_to_inherit(name)
        bundle = await on_thread(self._store.open, name, before)
        submission = await on_thread(unpack.adopt, file, bare, bundle, facts.ledger.floor)
        job.name(submission.head)
        if job.digest != before:
            text = f"version {job.version} inherits the contract and the probation of {bundle.manifest.version}, but "
            text += "no golden samples: the self-test can only prove that the file loads and runs"
            if own := own_parts(submission.head.manifest, bundle.manifest):
                text += f". The file's own {' and '.join(own)} are used"
            self._steps.announce(name, "update.inherited", text, job)
        return submission

    async def _renew(self, job: Job, submission: Submission, facts: ModelFacts) -> None:
        """End an install of the active version. Out of service, the version is restored and tried again first."""
        name, model = job.model, self._states[job.model]
        if facts.ledger.active is not None:
            await self._unpack(job, submission)
        model.unfit.pop(job.digest, None)
        await self._machine.settle(name)
        if job.digest in model.unfit:
            raise ModelError(f"{name} {job.version} is active, but does not serve: {model.unfit[job.digest].reason}")
        serving = self._host.serving(name)
        if serving not in (job.digest, None):
            facts = await self._facts.inspect(name)
            raise ModelError(f"{name} {job.version} is active, but {model.describe_serving(facts)}", hint=SEE_STATUS)
        if serving is None:
            job.end("installed", f"{name} {job.version} is installed already; no pipeline uses it", NAME_IT)
        else:
            job.end("done", f"{name} {job.version} serves already")

    async def _unpack(self, job: Job, submission: Submission) -> None:
        """Put a version as a folder in place, read back and found to fit. A sound folder is not written again."""
        name = job.model
        folder = self._store.model(name)
        try:
            bundle = await on_thread(open_version, folder.version(job.digest), name)
        except BundleError:
            await self._machine.settle(name, room=submission.head.size + unpack.RESERVE)
            bundle = await self._unpack_beside(job, submission)
            self._host.fit(name, bundle.manifest)
            await on_thread(unpack.place, submission, self._store, self._disk)
        else:
            self._host.fit(name, bundle.manifest)
        self._steps.announce(name, "update.unpacked", f"version {job.version} is unpacked and sound", job)

    async def _unpack_beside(self, job: Job, submission: Submission) -> Bundle:
        """Unpack a version, not in place yet. The sender of a useless delta learns so by an event."""
        try:
            return await on_thread(unpack.unpack_beside, submission, self._store, self._disk)
        except BundleError as error:
            if not submission.base:
                raise
            text = f"the full bundle is needed: {error.message}"
            self._steps.announce(job.model, "update.full_needed", text, job)
            raise BundleError(text, hint="send the full bundle") from error
