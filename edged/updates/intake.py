"""Parts shared by the ways in for versions: the Protocols of checks and updater, and the version under way.

The ways in are files sent by clients (receive.py) and files fetched by the daemon (fetch_jobs.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from msgspec.structs import replace

from edged.api import BundleError, ControlError
from edged.core.container import Head
from edged.core.ledger import admit, refuse_unnamed
from edged.core.manifest import version_key
from edged.models.bare_file import Bare, next_version, nothing_to_inherit
from edged.transfer.partial_files import Transfer
from edged.updates.jobs import Event, InstallOptions, Job, JobOutcome, ModelReport


class InstallControl(Protocol):
    """Installs versions, and carries out the decisions of operators."""

    def install(self, container: Path, options: InstallOptions) -> Job:
        """Begin to install a file. The file stays in place until the job is `released`."""

    async def rollback(self, name: str, to: str = "") -> None:
        """Return to an earlier version. Raises EdgedError."""

    async def confirm(self, name: str) -> None:
        """Confirm the candidate. Raises EdgedError."""

    async def pin(self, name: str, pinned: bool) -> None:
        """Refuse other versions from now on, or accept other versions again. Raises EdgedError."""

    async def forget_rejection(self, name: str, digest: str) -> None:
        """Let a rejected version be tried again. Raises EdgedError."""

    async def knows(self, file: Path) -> bool:
        """Return True if the version in a received file is installed, under way or rejected."""

    def probation(self, job: Job) -> str:
        """Return the progress of the probation of a job's version in words, "" outside probation."""

    def jobs(self) -> tuple[Job, ...]:
        """Return the latest jobs of this run, oldest first."""

    async def models(self) -> tuple[ModelReport, ...]:
        """Return a report on each model. Raises StoreError."""


class InboundChecks(Protocol):
    """Checks of inbound versions. Callable on any thread."""

    def approve(self, head: Head) -> None:
        """Raise BundleError if the version is not admitted."""

    def fit(self, head: Head) -> None:
        """Raise BundleError for a version unable to serve here, or another EdgedError if the reason may pass.

        Blocks: not for the event loop.
        """

    def admit_bare(self) -> None:
        """Raise BundleError if bare model files may not come in."""

    def serves(self, head: Head) -> bool:
        """Return True for the version in service."""

    def serves_file(self, bare: Bare, sha256: str) -> bool:
        """Return True if the version in service is the requested version, made of the file with the digest `sha256`."""

    def lost(self, model: str) -> bool:
        """Return True if the version in service has lost the files and answers from memory."""


@dataclass(eq=False)
class InboundVersion:
    """A version on the way in, as far as known. The receiving thread writes, any thread reads.

    With `quiet` the byte counts are not published, since the file may be any file of any server.
    """

    phase: Literal["receiving", "fetching"]
    model: str
    version: str = ""
    digest: str = ""
    transfer: Transfer | None = None
    quiet: bool = False

    @property
    def received(self) -> int:
        """Number of bytes received."""
        return self.transfer.received if self.transfer else 0

    @property
    def total(self) -> int | None:
        """Number of bytes to receive, once known."""
        return self.transfer.total if self.transfer else None

    def name(self, head: Head) -> None:
        """Take over model, version and digest from the head of the file."""
        self.model, self.version, self.digest = head.manifest.name, head.manifest.version, head.digest
        self.quiet = False

    def event(self, kind: str, text: str, outcome: JobOutcome = "") -> Event:
        """Return a step of the version, with the present time."""
        return Event(
            id=kind,
            model=self.model,
            text=text,
            time=time.monotonic(),
            version=self.version,
            digest=self.digest,
            phase="" if outcome else self.phase,
            outcome=outcome,
            bytes=None if self.quiet else self.received,
            total=None if self.quiet else self.total,
        )


class ModelsSnapshot:
    """Reports on all models at one moment. `bases` are the possible bases of a delta."""

    def __init__(self, models: tuple[ModelReport, ...]) -> None:
        self.models = models
        self.bases = {digest for model in models for digest in (*model.ledger.versions, *model.factory)}

    def is_unused(self, digest: str) -> bool:
        """Return True if the version is active and only lacks a pipeline for the model."""
        return any(digest == model.ledger.active and model.serving is None for model in self.models)

    def refuse_rejected(self, digest: str) -> None:
        """Raise BundleError for a rejected version, before any byte of the file is sent in vain."""
        for model in self.models:
            if rejection := model.ledger.rejected.get(digest):
                raise BundleError(
                    f"{model.name} {rejection.version} was rejected on this board: {rejection.reason}",
                    hint=f"to try the version again, run `edgectl forget {model.name} {digest[:12]}`",
                )

    def admit(self, name: str, digest: str, version: str, *, allow_downgrade: bool) -> None:
        """Raise BundleError if the version is not admitted now, nor will be after the arrival of the whole file."""
        for model in self.models:
            if model.name != name:
                continue
            candidate = model.ledger.candidate and model.ledger.candidate.digest
            free = replace(model.ledger, candidate=None)  # the present candidate may have ended by then
            try:
                refuse_unnamed(name, version, model.named)
                if digest in (model.ledger.active, candidate):
                    continue
                admit(free, name, digest, version, model.active, allow_downgrade=allow_downgrade)
            except ControlError as error:
                raise BundleError(error.message, hint=error.hint) from error

    def admit_bare(self, bare: Bare, *, allow_downgrade: bool) -> None:
        """Raise BundleError if a bare file is not admitted, or has no version to inherit the contract from."""
        known = {model.name: model for model in self.models}
        model = known.get(bare.model)
        if model is None:
            names = ", ".join(known) or "(none)"
            raise BundleError(f"there is no model {bare.model!r}", hint=f"choose one of: {names}")
        if not model.factory and not model.ledger.versions:
            raise nothing_to_inherit(bare.model)
        latest = max(model.ledger.floor, model.active, key=version_key)
        version = bare.version or next_version(latest)
        self.admit(bare.model, "", version, allow_downgrade=allow_downgrade)
