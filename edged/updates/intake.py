"""What all ways in have in common: who decides on what comes, how far it is, and how the models stood before it.

The ways are what others send (updates.py) and what the daemon fetches (fetches.py).
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
from edged.updates.jobs import Event, InstallOptions, Job, Outcome, Report


class Installer(Protocol):
    """What decides about versions; see models/updater.py."""

    def install(self, container: Path, options: InstallOptions) -> Job:
        """Begin to install a container, which stays where it is until the job has `released` it."""

    async def rollback(self, name: str, to: str = "") -> None:
        """Go back. Raises EdgedError."""

    async def confirm(self, name: str) -> None:
        """Confirm the candidate. Raises EdgedError."""

    async def pin(self, name: str, pinned: bool) -> None:
        """Stay with what there is, or do not. Raises EdgedError."""

    async def forget_rejection(self, name: str, digest: str) -> None:
        """Let a rejected version be tried again. Raises EdgedError."""

    async def knows(self, file: Path) -> bool:
        """Whether what is in a file that came in is installed, under way or rejected."""

    def jobs(self) -> tuple[Job, ...]:
        """Those of this run, the oldest first."""

    async def models(self) -> tuple[Report, ...]:
        """How every model stands."""


class AdmissionRules(Protocol):
    """What decides at the first sight of what comes. On any thread, but for what says otherwise."""

    def approve(self, head: Head) -> None:
        """Raises BundleError for the head of a container that may not come in."""

    def fit(self, head: Head) -> None:
        """Raises BundleError for a version that could not serve here, and any other EdgedError where that may pass.

        Not on the event loop's thread.
        """

    def admit_bare(self) -> None:
        """Raises BundleError where no bare model file may."""

    def serves(self, head: Head) -> bool:
        """Whether it is the version that answers now."""

    def serves_file(self, bare: Bare, sha256: str) -> bool:
        """Whether the version that answers now is made of the file with this digest, and is what is asked for."""

    def lost(self, model: str) -> bool:
        """Whether what answers now does so from memory only, and is to be brought again."""


@dataclass(eq=False)
class InboundVersion:
    """What comes, as far as it is known: the thread that takes it writes, anybody reads.

    While it is `quiet` nothing is published of how much there is: it may be anything, from anywhere.
    """

    phase: Literal["receiving", "fetching"]
    model: str
    version: str = ""
    digest: str = ""
    transfer: Transfer | None = None
    quiet: bool = False

    @property
    def received(self) -> int:
        """How many bytes are here."""
        return self.transfer.received if self.transfer else 0

    @property
    def total(self) -> int | None:
        """How many there will be, once that is known."""
        return self.transfer.total if self.transfer else None

    def name(self, head: Head) -> None:
        """Its head is there."""
        self.model, self.version, self.digest = head.manifest.name, head.manifest.version, head.digest
        self.quiet = False

    def event(self, kind: str, text: str, outcome: Outcome = "") -> Event:
        """A step of it, now."""
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
    """How all models stood a moment ago; `bases` are the versions a delta may build on."""

    def __init__(self, models: tuple[Report, ...]) -> None:
        self.models = models
        self.bases = {digest for model in models for digest in (*model.ledger.versions, *model.factory)}

    def is_unused(self, digest: str) -> bool:
        """Return whether this version is active and would serve if a pipeline used its model."""
        return any(digest == model.ledger.active and model.serving is None for model in self.models)

    def refuse_rejected(self, digest: str) -> None:
        """Raises BundleError if this version was rejected: it is refused unseen."""
        for model in self.models:
            if rejection := model.ledger.rejected.get(digest):
                raise BundleError(
                    f"{model.name} {rejection.version} was rejected on this board: {rejection.reason}",
                    hint=f"to try the version again, run `edgectl forget {model.name} {digest[:12]}`",
                )

    def admit(self, name: str, digest: str, version: str, *, allow_downgrade: bool) -> None:
        """Raises BundleError if this version may not come in, and will not by the time that all of it is here."""
        for model in self.models:
            if model.name != name:
                continue
            candidate = model.ledger.candidate and model.ledger.candidate.digest
            free = replace(model.ledger, candidate=None)  # what is under way now may be over then
            try:
                refuse_unnamed(name, version, model.named)
                if digest in (model.ledger.active, candidate):
                    continue
                admit(free, name, digest, version, model.active, allow_downgrade=allow_downgrade)
            except ControlError as error:
                raise BundleError(error.message, hint=error.hint) from error

    def admit_bare(self, bare: Bare, *, allow_downgrade: bool) -> None:
        """Raises BundleError if a bare file may not come in, or there is nothing that it could inherit from."""
        known = {model.name: model for model in self.models}
        model = known.get(bare.model)
        if model is None:
            raise BundleError(f"there is no model {bare.model!r}", hint=f"there is {', '.join(known) or 'none'}")
        if not model.factory and not model.ledger.versions:
            raise nothing_to_inherit(bare.model)
        latest = max(model.ledger.floor, model.active, key=version_key)
        version = bare.version or next_version(latest)
        self.admit(bare.model, "", version, allow_downgrade=allow_downgrade)
