"""Signatures of versions, verified with the trust in effect and at the time as far as this board knows the time."""

from __future__ import annotations

from collections.abc import Callable

from edged.core.container import Head
from edged.models.signatures import AHEAD_SECONDS, Trust
from edged.updates.update_state import UpdateStates


class SignatureCheck:
    """Verifies who signed a version. `synchronised` tells if the wall clock can be believed."""

    def __init__(
        self, trust: Trust, states: UpdateStates, wall: Callable[[], float], synchronised: Callable[[], bool]
    ) -> None:
        self.trust = trust
        self._states = states
        self._wall = wall
        self._synchronised = synchronised

    def verify(self, head: Head) -> tuple[str, ...]:
        """Return the signers of a version. Raises the errors of Trust.verify. Blocks: not for the event loop.

        Validity dates are held against the later of the clock, which a board may lack, and the newest signed time seen.
        A signed time that a synchronised clock has not reached yet is left out, since the signer's clock was wrong.
        """
        now = self._wall()
        today = now if self._synchronised() else None
        ledgers = [model.ledger for model in list(self._states.values()) if model.ledger]
        seen = [version.created for ledger in ledgers for version in ledger.versions.values() if version.signers]
        known = [created for created in seen if today is None or created <= today + AHEAD_SECONDS]
        return self.trust.verify(head.data, head.signatures, max([now, *known]), today)
