"""Admission: the checks of a version before its files are taken in.

The configuration in effect decides about signatures, and the serving versions decide about fit. Any thread may ask, and
no answer waits for the event loop during a swap or a reload.
"""

from __future__ import annotations

from collections.abc import Callable

from edged.api import BundleError, EdgedError
from edged.app.serving import ServedModels
from edged.app.state import ServiceState
from edged.config.options import UpdateOptions
from edged.core.container import Head
from edged.models.bare_file import Bare
from edged.models.signatures import Trust


def trust_of(options: UpdateOptions) -> Trust:
    """Return the signers required by [updates]."""
    return Trust(options.allowed_signers, options.revoked, options.threshold, options.require_signature)


class Admission:
    """The checks of an inbound version. `verify` checks the signatures of a head, and raises BundleError."""

    def __init__(self, state: ServiceState, serving: ServedModels, verify: Callable[[Head], tuple[str, ...]]) -> None:
        self._state = state
        self._serving = serving
        self._verify = verify

    def approve(self, head: Head) -> None:
        """Raise BundleError for the head of a container without the required signatures.

        Called before the rest of the container is taken in, so that unsigned files never fill a disk.
        """
        self._verify(head)

    def fit(self, head: Head) -> None:
        """Raise BundleError for a version unfit for this board, and a retryable EdgedError for a passing reason.

        Called on a fetch thread, before the container is fetched: see `ServedModels.fit`.
        """
        try:
            self._serving.fit(head.manifest.name, head.manifest)
        except EdgedError as error:
            if error.retryable:  # the next attempt continues with the same bytes
                raise
            raise BundleError(error.message, hint=error.hint) from error

    def admit_bare(self) -> None:
        """Raise BundleError if every version must be signed: a bare model file has no signature."""
        trust_of(self._state.config.updates).admit_bare()

    def serves(self, head: Head) -> bool:
        """Return whether this version serves, with its files on the board."""
        name = head.manifest.name
        return self._serving.serving(name) == head.digest and not self.lost(name)

    def serves_file(self, bare: Bare, sha256: str) -> bool:
        """Return whether the serving version was made from this bare file, under the requested number."""
        manifest = self._serving.answering(bare.model)
        if manifest is None or self.lost(bare.model):
            return False
        return manifest.files[manifest.model].sha256 == sha256 and bare.version in (None, manifest.version)

    def lost(self, model: str) -> bool:
        """Return whether the serving version has lost its files, and serves from memory only."""
        part = self._state.models.get(model)
        return part is not None and part.files_lost
