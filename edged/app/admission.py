"""Admission: the checks that a new version passes before it may come in.

The configuration in effect and the versions that serve decide: signatures, fit, and whether the version serves already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edged.api import BundleError, ControlError, EdgedError
from edged.app.serving import ServedModels
from edged.app.state import ServiceState
from edged.config.options import UpdateOptions
from edged.core.container import Head
from edged.models.bare_file import Bare
from edged.models.signatures import Trust

ASK_SECONDS = 10.0
"""How long a thread waits for the event loop, which may have ended."""


def trust_of(options: UpdateOptions) -> Trust:
    """Return the signers that [updates] asks for."""
    return Trust(options.allowed_signers, options.revoked, options.threshold, options.require_signature)


class Admission:
    """What the configuration as it is now, and what serves now, say to what would come in."""

    def __init__(
        self,
        state: ServiceState,
        serving: ServedModels,
        verify: Callable[[Head], tuple[str, ...]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._state = state
        self._serving = serving
        self._verify = verify
        self._loop = loop

    def approve(self, head: Head) -> None:
        """Before more than the head of a container is taken: nobody fills a disk with what nobody signed."""
        self._verify(head)

    def fit(self, head: Head) -> None:
        """Before all of it is fetched, perhaps again and again. It is the loop that changes what this looks at."""

        async def fit() -> None:
            self._serving.fit(head.manifest.name, head.manifest)

        try:
            asyncio.run_coroutine_threadsafe(fit(), self._loop).result(ASK_SECONDS)
        except TimeoutError as error:
            raise ControlError("the daemon is busy", hint="fetch it again in a minute", retryable=True) from error
        except EdgedError as error:
            if error.retryable:  # what passes is no reason to throw away what has come of it
                raise
            raise BundleError(error.message, hint=error.hint) from error

    def admit_bare(self) -> None:
        """Raises BundleError where only signed versions may come in."""
        trust_of(self._state.config.updates).admit_bare()

    def serves(self, head: Head) -> bool:
        """Whether it is the version that answers now."""
        name = head.manifest.name
        return self._serving.serving(name) == head.digest and not self.lost(name)

    def serves_file(self, bare: Bare, sha256: str) -> bool:
        """Whether the version that answers now is made of the file with this digest, and is what is asked for."""
        manifest = self._serving.answering(bare.model)
        if manifest is None or self.lost(bare.model):
            return False
        return manifest.files[manifest.model].sha256 == sha256 and bare.version in (None, manifest.version)

    def lost(self, model: str) -> bool:
        """Whether what answers now does so from memory only, and is to be brought again."""
        part = self._state.models.get(model)
        return part is not None and part.files_lost
