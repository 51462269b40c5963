"""The update machine: the next step for one model, decided from facts. All policy of updates is here, and pure.

    while step := decide(inspect()):     FactsReader.inspect (edged/updates/facts.py)
        take(step)                       UpdateMachine.take (edged/updates/steps.py)

No recovery path exists. After a power cut, a crash or a restart the daemon looks again, and `decide` continues from the
facts; an uninterrupted update takes the same way. Three rules make this work:

- `Ledger` (a model's state.json) is the only truth. The file is replaced whole, so it always holds a ledger written by
  this machine. Any other file on disk either is named in the ledger or is litter.
- Each step changes one thing, and repeating a step does no harm.
- Every intention is written before it is acted upon: the candidate before the trial, the run before the candidate is
  loaded, the verdict before anything is undone.

The phases of an update, by `Ledger.candidate`:

                     `offered`: an install passed its checks
      +-----------------------------------------------------------------+
      |                                                                 v
    idle  <-- the self-test fails: rejected -------------------------- trial      a child process tests the candidate;
      ^                                                                 |         `active` serves
      |                                                                 | the self-test passes
      |                                                                 v
      +<-- a fault, or a failure to load: rejected ------------------ probation   the candidate serves and is watched;
      |    no confirmation in time: reverted                            |         a failure returns to `active`
      |                                                                 | good, and confirmed if `confirm_within` is set
      +<----------------------------------------------------------------+         active = candidate, previous = active

`active` is always the last confirmed version. Rolling back therefore means serving `active` again, and needs no
network. A candidate ends as rejected (recorded, refused from then on, removed), reverted (kept, may be offered again)
or damaged (removed, may be sent again), according to `VersionFault`. If no pipeline has used the model since the
candidate was offered, there are no windows to watch, and probation ends at once. If the last pipeline was taken away,
probation is suspended until a pipeline uses the model again, or an operator rolls back.

The version to serve is not stored but derived by `ranking`: the candidate on probation, then `active`, `previous`, the
factory versions (newest first), and any other version confirmed on this board; the first sound version serves. If the
configuration names a version number, only versions of this number count. Damage to a version on disk thus costs only
that version. A serving version whose files are gone continues to serve from memory. Without a sound version the model
does not serve, and this state is reported.

A candidate has BOOTS runs of the daemon for the trial, and as many for the probation. A run is charged before the
candidate is touched, and refunded by a clean stop; a candidate that crashes the daemon or the board uses up its runs. A
run that begins while a candidate waits for an operator's confirmation reverts the candidate, since the length of the
outage is unknown. No other rule depends on a clock, and no rule on the date.

The anti-rollback floor rises when a version is confirmed, and never falls. The floor bars installs but not rollbacks:
an operator may return to any version once confirmed on this board, or to a factory version. The version rolled back
from is rejected until `edgectl forget`, so that no automatic update installs it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec
from msgspec.structs import replace

from edged.core.ledger import (
    BOOTS,
    Candidate,
    Ledger,
    awaited,
    confirmed,
    counted,
    proven,
    rejected,
    reverted,
    used,
    versions_to_serve,
    without,
)

# Facts and steps


class VersionFault(msgspec.Struct, frozen=True):
    """Fault of a version. `kind` determines the fate of a candidate; see the head of this file."""

    kind: Literal["rejected", "reverted", "damaged"]
    reason: str
    hint: str = ""


CandidateAnswer = Literal["open", "good"] | VersionFault
"""State of a trial or a probation."""


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """Limits for old versions: a number of versions, and a total of bytes.

    Versions that are active, previous, candidate, serving or named by the configuration are kept regardless.
    """

    versions: int = 4
    bytes: int = 256 << 20


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts from which the next step of a model is decided.

    run      this run of the daemon
    factory  digests of the factory versions, newest first
    present  version folders on disk: bytes by digest
    unfit    versions that were found damaged or failed to serve in this run
    serving  digest that serves now; "" for none, None if no pipeline uses the model
    named    versions of the number that the configuration names; None for any number
    trial    state of the candidate's self-test in this run
    watched  state of the candidate's probation
    waited   seconds of this run in which the candidate has been on probation and, if possible, has served
    current  digest that the convenience link names; None without a link
    litter   unneeded files in the model's folder, relative to the folder
    barred   kinds of steps that the disk has just refused, and that are not repeated this time
    """

    ledger: Ledger
    run: str
    factory: tuple[str, ...] = ()
    present: dict[str, int] = {}
    unfit: dict[str, VersionFault] = {}
    serving: str | None = ""
    named: frozenset[str] | None = None
    trial: CandidateAnswer = "open"
    watched: CandidateAnswer = "open"
    waited: float = 0.0
    current: str | None = None
    litter: tuple[str, ...] = ()
    keep: Keep = Keep()
    barred: frozenset[type[ModelStep]] = frozenset()


class ReplaceLedger(msgspec.Struct, frozen=True):
    """Replace the ledger. `event` is a permanent identifier, `text` a description for people, `hint` the remedy."""

    ledger: Ledger
    event: str
    text: str
    hint: str = ""


class Serve(msgspec.Struct, frozen=True):
    """Switch all pipelines that use the model to this version; "" stops serving."""

    digest: str


class Try(msgspec.Struct, frozen=True):
    """Test a version in a child process."""

    digest: str


class PointLink(msgspec.Struct, frozen=True):
    """Point the convenience link at this version; None removes it."""

    digest: str | None


class Remove(msgspec.Struct, frozen=True):
    """Remove a file or folder, with its content, from the model's folder."""

    path: str


ModelStep = ReplaceLedger | Serve | Try | PointLink | Remove


# Deciding


def decide(facts: ModelFacts) -> ModelStep | None:
    """Return the next step, or None if nothing is to be done until the facts change."""
    for rule in (_judge, _serve, _try, _tidy):
        step = rule(facts)
        if step is not None and type(step) not in facts.barred:
            return step
    return None


def ranking(facts: ModelFacts) -> Iterator[str]:
    """Yield the versions that may serve, best first; a version may be yielded twice, and may be missing on disk."""
    candidate = facts.ledger.candidate
    counted = candidate is not None and candidate.run == facts.run
    ranked = list(versions_to_serve(facts.ledger, facts.factory))
    if candidate is not None and candidate.phase == "probation" and counted and _fault(facts, candidate) is None:
        ranked.insert(0, candidate.digest)
    yield from (digest for digest in ranked if facts.named is None or digest in facts.named)


def target(facts: ModelFacts) -> str:
    """Return the version to serve, or "". A serving version needs no files until the next load."""
    there = {*facts.factory, *facts.present, facts.serving}
    return next((digest for digest in ranking(facts) if digest in there and digest not in facts.unfit), "")


def in_use(facts: ModelFacts) -> set[str | None]:
    """Return the versions that must be kept regardless of limits."""
    ledger = facts.ledger
    candidate = None if ledger.candidate is None else ledger.candidate.digest
    return {ledger.active, ledger.previous, candidate, facts.serving, *(facts.named or ())}


def _judge(facts: ModelFacts) -> ReplaceLedger | None:
    """Move the candidate through its phases."""
    ledger, candidate = facts.ledger, facts.ledger.candidate
    if candidate is None:
        return None
    name = _name(ledger, candidate.digest)
    fault = _fault(facts, candidate)
    if fault is not None:
        text = f"{name} is {fault.kind}: {fault.reason}"
        return ReplaceLedger(_dropped(ledger, candidate, fault), f"update.{fault.kind}", text, fault.hint)
    if candidate.run != facts.run:
        run = BOOTS - candidate.boots_left + 1
        text = f"{name} has its {candidate.phase} in run {run} of at most {BOOTS} of the daemon"
        return ReplaceLedger(counted(ledger, candidate, facts.run), "update.counted", text)
    if candidate.unused and facts.serving is not None:
        return ReplaceLedger(used(ledger, candidate), "update.used", f"a pipeline uses the model, so {name} is watched")
    if candidate.phase == "trial" and facts.trial == "good":
        return ReplaceLedger(proven(ledger, candidate), "update.proven", f"{name} has passed its self-test")
    if _passed(facts, candidate):
        return ReplaceLedger(confirmed(ledger, candidate), "update.confirmed", f"{name} is confirmed")
    return None


def _serve(facts: ModelFacts) -> Serve | None:
    wanted = target(facts)
    return None if facts.serving in (wanted, None) else Serve(wanted)


def _try(facts: ModelFacts) -> Try | None:
    candidate = facts.ledger.candidate
    due = candidate is not None and candidate.phase == "trial" and candidate.run == facts.run and facts.trial == "open"
    return Try(candidate.digest) if candidate is not None and due else None


def _tidy(facts: ModelFacts) -> ModelStep | None:
    ledger = facts.ledger
    strays = [*facts.litter, *(f"versions/{digest}" for digest in facts.present if digest not in ledger.versions)]
    if strays and Remove not in facts.barred:
        return Remove(strays[0])
    if facts.current != ledger.active and PointLink not in facts.barred:
        return PointLink(ledger.active)
    spare = _spare(facts)
    if spare is not None:
        name = _name(ledger, spare)
        return ReplaceLedger(without(ledger, spare), "update.retired", f"{name} is removed to make room")
    return None


def _spare(facts: ModelFacts) -> str | None:
    """Return the oldest version that may be removed if the limits are exceeded, else None."""
    ledger, keep, needed = facts.ledger, facts.keep, in_use(facts)
    bytes_held = sum(size for digest, size in facts.present.items() if digest in ledger.versions)
    if len(ledger.versions) <= keep.versions and bytes_held <= keep.bytes:
        return None
    return next((digest for digest in ledger.versions if digest not in needed), None)


def _fault(facts: ModelFacts, candidate: Candidate) -> VersionFault | None:
    """Return the fault that ends the candidate, or None."""
    if candidate.digest in facts.unfit:
        return facts.unfit[candidate.digest]
    if candidate.digest not in facts.present:
        return VersionFault("damaged", "the version's folder is gone")
    if candidate.run != facts.run:
        return _fault_of_runs(candidate)
    answer = facts.trial if candidate.phase == "trial" else facts.watched
    if candidate.phase == "probation" and facts.serving not in (candidate.digest, None):
        return None
    if isinstance(answer, VersionFault):
        return answer
    if awaited(candidate) and facts.waited >= candidate.confirm_within:
        return VersionFault("reverted", f"no operator confirmed it within {candidate.confirm_within:g} s")
    return None


def _fault_of_runs(candidate: Candidate) -> VersionFault | None:
    """Return the fault that ends a candidate left by an earlier run, or None."""
    if awaited(candidate):
        return VersionFault("reverted", "the daemon restarted before an operator confirmed it")
    if candidate.boots_left == 0:
        return VersionFault("rejected", f"the daemon or the board went down {BOOTS} times during its {candidate.phase}")
    return None


def is_suspended(facts: ModelFacts) -> bool:
    """Return whether the candidate is on probation and the pipelines that used the model were taken away."""
    candidate = facts.ledger.candidate
    on_probation = candidate is not None and candidate.phase == "probation" and not candidate.unused
    return on_probation and facts.serving is None


def _passed(facts: ModelFacts, candidate: Candidate) -> bool:
    """Return whether probation is over. Without any pipeline since the offer, probation has nothing to watch."""
    if candidate.phase != "probation" or awaited(candidate):
        return False
    if facts.serving is None:
        return candidate.unused
    return facts.serving == candidate.digest and facts.watched == "good"


def _dropped(ledger: Ledger, candidate: Candidate, fault: VersionFault) -> Ledger:
    digest = candidate.digest
    ledger = replace(ledger, candidate=None)
    if fault.kind == "reverted":
        return reverted(ledger, digest, fault.reason)
    if fault.kind == "rejected":
        ledger = rejected(ledger, digest, fault.reason)
    return without(ledger, digest)


def _name(ledger: Ledger, digest: str) -> str:
    return f"version {ledger.versions[digest].version}"
