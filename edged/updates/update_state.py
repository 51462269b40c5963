"""State of each model's updates in one run of the daemon. core/ledger.py has the state on disk."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from edged.core.decide import CandidateAnswer, ModelFacts, ReplaceLedger, VersionFault
from edged.core.errors import EdgedError, StoreError
from edged.core.ledger import Ledger
from edged.core.manifest import Probation
from edged.core.probation import Observed
from edged.models.store import FactoryVersion
from edged.updates.jobs import Ending, Job

RETRY_SECONDS = 60.0
"""First pause, in seconds, before another attempt with a version whose fault may pass, while no version serves.

Each further pause is twice as long, up to MAX_RETRY_SECONDS, since a retry may disturb pipelines in service.
"""

MAX_RETRY_SECONDS = 3600.0


@dataclass(eq=False)
class UpdateState:
    """State of one model's updates in this run of the daemon.

    lock           held around every step of the model
    ledger         ledger last read or durably written, as a failed write leaves an unknown file
    unfit          versions found damaged or unable to serve
    trial          outcome of the candidate's self-test
    serving_since  monotonic time of the start of the candidate's probation in this run; None before
    limits         rules of the candidate's probation
    watched        seconds of probation observed last
    answered       windows of probation answered without an error, observed last
    lost_watched   True until a loss of observed seconds has been announced
    suspended      True once a suspended probation has been announced
    factory        factory versions by digest
    jobs           jobs to end with the candidate
    ending         end of the last candidate, until `jobs` have ended, too: state, text and hint
    unsettled      True if a later call may find another step to take
    retry_at       monotonic time of the next attempt of a version whose fault may pass
    retry_pause    seconds to the next attempt
    complaint      error announced last
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ledger: Ledger | None = None
    unfit: dict[str, VersionFault] = field(default_factory=dict)
    trial: CandidateAnswer = "open"
    serving_since: float | None = None
    limits: Probation = field(default_factory=Probation)
    watched: float = 0.0
    answered: int = 0
    lost_watched: bool = False
    suspended: bool = False
    factory: dict[str, FactoryVersion] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    ending: tuple[Ending, str, str] | None = None
    unsettled: bool = False
    retry_at: float | None = None
    retry_pause: float = RETRY_SECONDS
    complaint: str = ""

    def record_end(self, before: ModelFacts, step: ReplaceLedger) -> None:
        """Remember the end of the candidate, if the step is the end."""
        candidate = before.ledger.candidate
        if candidate is None or step.ledger.candidate is not None:
            return
        self.trial = "open"
        state: Ending = "rolled_back"
        if step.ledger.active == candidate.digest:
            state = "done"
        elif candidate.phase == "trial" or candidate.digest in before.unfit:
            state = "failed"
        self.ending = (state, step.text, step.hint)

    def observe(self, seen: Observed) -> None:
        """Take over the observed seconds of probation, which are fewer after a pipeline was rebuilt or removed."""
        self.lost_watched = self.lost_watched or seen.seconds < self.watched
        self.watched, self.answered = seen.seconds, seen.windows - seen.errors

    def progress(self, digest: str) -> str:
        """Return the progress of a version on probation in words, "" for another version."""
        candidate = self.ledger.candidate if self.ledger else None
        if candidate is None or candidate.digest != digest or candidate.phase != "probation":
            return ""
        if self.suspended:
            return "the probation is suspended: no pipeline uses the model"
        seconds = f"{min(self.watched, self.limits.seconds):.0f} of {self.limits.seconds:g} s"
        return f"on probation: {seconds}, {min(self.answered, self.limits.windows)} of {self.limits.windows} windows"

    def begin_retry(self, now: float) -> None:
        """Give versions whose fault may pass another chance, after the pause."""
        if self.retry_at is not None and now >= self.retry_at:
            self.unfit = {digest: fault for digest, fault in self.unfit.items() if fault.kind != "reverted"}
            self.retry_at, self.retry_pause = None, min(2 * self.retry_pause, MAX_RETRY_SECONDS)

    def plan_retry(self, facts: ModelFacts, now: float) -> bool:
        """Set the time of the next attempt; return False without a version worth an attempt."""
        hopeful = facts.serving == "" and any(fault.kind == "reverted" for fault in facts.unfit.values())
        if not hopeful:
            self.retry_at, self.retry_pause = None, RETRY_SECONDS
        elif self.retry_at is None:
            self.retry_at = now + self.retry_pause
        return hopeful

    def number(self, facts: ModelFacts, digest: str) -> str:
        """Return the number of a version, for people."""
        if digest in facts.ledger.versions:
            return facts.ledger.versions[digest].version
        known = self.factory.get(digest)
        return known.version if known else "0"

    def active_number(self, facts: ModelFacts) -> str:
        """Return the number of the version before the next update."""
        return self.number(facts, facts.ledger.active or next(iter(facts.factory), ""))

    def describe_serving(self, facts: ModelFacts) -> str:
        """Return a phrase about the version in service."""
        if facts.serving is None:
            return "no pipeline uses it"
        return f"version {self.number(facts, facts.serving)} serves" if facts.serving else "nothing serves"


UpdateStates = defaultdict[str, UpdateState]
"""States by model. A look-up adds a state."""


def bug(error: Exception) -> EdgedError:
    """Return an unexpected exception as an error for the operator."""
    return StoreError(f"{type(error).__name__}: {error}", hint="report this bug with the traceback in the log")
