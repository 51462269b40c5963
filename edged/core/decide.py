"""The update machine: what to do next about one model, from what is. This file is all of its policy, and pure.

    while step := decide(look()):        look() and do() are in models/updater.py
        do(step)

There is no recovery path. After a power cut, a crash or a restart the daemon looks again, and `decide` goes on from
whatever it finds; an update that nothing interrupts takes the same way. This works because

- `Ledger` (a model's state.json) is the only truth. It is replaced whole, so it is always one of the ledgers written
  here. Everything else on disk either has its name in the ledger or is litter.
- each step changes one thing, and doing it twice does no harm.
- a thing is written before it is acted upon: the candidate before it is tried, the run before the candidate is loaded
  in it, the verdict before anything is undone.

The phases of an update, by `Ledger.candidate`:

                     `offered`: an install passed its checks
      +-----------------------------------------------------------------+
      |                                                                 v
    idle  <-- the self-test fails: rejected -------------------------- trial      the candidate proves itself in a child
      ^                                                                 |         process; `active` serves
      |                                                                 | the self-test is good
      |                                                                 v
      +<-- it misbehaves, or does not load: rejected ---------------- probation   the candidate serves and is watched;
      |    nobody confirms it in time: reverted                         |         `active` is what to return to
      |                                                                 | good, and confirmed where that was asked for
      +<----------------------------------------------------------------+         active = candidate, previous = active

`active` is always the last version that was confirmed, so going back is nothing but serving `active` again, and needs
no network. A candidate is rejected (remembered, refused at once from then on, removed), reverted (kept, and may be
offered again) or damaged (removed, and may be sent again); `VersionFault` says which. Where no pipeline has used the
model since the candidate was offered there is nothing to watch, and probation ends as it begins. Where one did and was
taken away, probation is suspended until one does again, or an operator rolls back.

What serves is not stored but derived, in `ranking`: the candidate on probation, else `active`, else `previous`, else
the factory's versions, newest first, else any other that was once confirmed; of these the first that is sound. Where
the configuration names a version, only those of that number count. So a version that rots on disk costs that version.
One that serves and whose files are gone serves on, from memory. When none is sound nothing serves, and that is a state
an operator sees.

A candidate has BOOTS runs of the daemon for its trial, and as many for its probation. A run is counted before it gets
anywhere near the candidate, and given back by a clean stop; a candidate that takes daemon or board down with it uses
them up. A run that begins while a candidate awaits an operator's confirmation reverts it: nobody has confirmed, and
how long the board was off nobody knows. No other rule here depends on a clock, and none on what day it is.

The anti-rollback floor rises when a version is confirmed, and never falls. It bars installs, not the way back: an
operator may return to any version that was once confirmed here, or to the factory's. Whoever goes back says no to what
served: it is rejected, so that nothing automatic brings it again.
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
    standing,
    used,
    without,
)

# Facts and steps


class VersionFault(msgspec.Struct, frozen=True):
    """What is wrong with a version, and so what becomes of it as a candidate: see the head of this file."""

    kind: Literal["rejected", "reverted", "damaged"]
    reason: str
    hint: str = ""


Answer = Literal["open", "good"] | VersionFault
"""To the question whether a trial or a probation was passed."""


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a model's past is kept: this many versions, in so many bytes.

    Those that are active, previous, under way, serving or of the number that the configuration names are kept, whatever
    they come to.
    """

    versions: int = 4
    bytes: int = 256 << 20


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """All that is to be known of a model to decide what to do next.

    run      this run of the daemon
    factory  digests of the factory's versions, newest first
    present  the version folders on disk, by digest, and their bytes
    unfit    versions found damaged, or that would not serve, in this run
    serving  the digest that answers now; "" for none, None where no pipeline uses the model
    named    the versions of the number that the configuration has the model stay with; None for any number
    trial    how the candidate's self-test ended in this run
    watched  how the candidate is doing on probation
    waited   seconds for which the candidate has been on probation, and served if it can, in this run
    current  the digest that the convenience link names; None where there is no link
    litter   what lies in the model's folder and belongs to nothing, relative to it
    barred   kinds of steps that the disk has just refused: not worth trying again this time
    """

    ledger: Ledger
    run: str
    factory: tuple[str, ...] = ()
    present: dict[str, int] = {}
    unfit: dict[str, VersionFault] = {}
    serving: str | None = ""
    named: frozenset[str] | None = None
    trial: Answer = "open"
    watched: Answer = "open"
    waited: float = 0.0
    current: str | None = None
    litter: tuple[str, ...] = ()
    keep: Keep = Keep()
    barred: frozenset[type[Step]] = frozenset()


class ReplaceLedger(msgspec.Struct, frozen=True):
    """Replace the ledger. `event` names for ever what happens, `text` says it to a person, and `hint` what to do."""

    ledger: Ledger
    event: str
    text: str
    hint: str = ""


class Serve(msgspec.Struct, frozen=True):
    """Have every pipeline that uses the model switch to this version; "" lets go of what serves."""

    digest: str


class Try(msgspec.Struct, frozen=True):
    """Have a version prove itself in a child process."""

    digest: str


class PointLink(msgspec.Struct, frozen=True):
    """Point the convenience link at this version; None removes it."""

    digest: str | None


class Remove(msgspec.Struct, frozen=True):
    """Remove this file or folder of the model's folder, with all that is in it."""

    path: str


Step = ReplaceLedger | Serve | Try | PointLink | Remove


# Deciding


def decide(facts: ModelFacts) -> Step | None:
    """The next step; None when all is as it should be, or must wait for something to happen."""
    for rule in (_judge, _serve, _try, _tidy):
        step = rule(facts)
        if step is not None and type(step) not in facts.barred:
            return step
    return None


def ranking(facts: ModelFacts) -> Iterator[str]:
    """The versions that may serve, best first; some may be there twice, and not all of them need be on disk."""
    candidate = facts.ledger.candidate
    counted = candidate is not None and candidate.run == facts.run
    ranked = list(standing(facts.ledger, facts.factory))
    if candidate is not None and candidate.phase == "probation" and counted and _fault(facts, candidate) is None:
        ranked.insert(0, candidate.digest)
    yield from (digest for digest in ranked if facts.named is None or digest in facts.named)


def target(facts: ModelFacts) -> str:
    """The version that ought to serve; "" where none can. What serves needs no files until it is loaded again."""
    there = {*facts.factory, *facts.present, facts.serving}
    return next((digest for digest in ranking(facts) if digest in there and digest not in facts.unfit), "")


def in_use(facts: ModelFacts) -> set[str | None]:
    """The versions that must not go, whatever they take."""
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
        text = f"{name} has this run of the daemon for its {candidate.phase}, and {candidate.boots_left - 1} more"
        return ReplaceLedger(counted(ledger, candidate, facts.run), "update.counted", text)
    if candidate.unused and facts.serving is not None:
        return ReplaceLedger(
            used(ledger, candidate), "update.used", f"a pipeline uses the model, and so {name} is watched"
        )
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


def _tidy(facts: ModelFacts) -> Step | None:
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
    """The oldest version there is no need to keep, where there are too many."""
    ledger, keep, needed = facts.ledger, facts.keep, in_use(facts)
    bytes_held = sum(size for digest, size in facts.present.items() if digest in ledger.versions)
    if len(ledger.versions) <= keep.versions and bytes_held <= keep.bytes:
        return None
    return next((digest for digest in ledger.versions if digest not in needed), None)


def _fault(facts: ModelFacts, candidate: Candidate) -> VersionFault | None:
    """What ends the candidate, if anything does."""
    if candidate.digest in facts.unfit:
        return facts.unfit[candidate.digest]
    if candidate.digest not in facts.present:
        return VersionFault("damaged", "its folder is gone")
    if candidate.run != facts.run:
        return _fault_of_runs(candidate)
    answer = facts.trial if candidate.phase == "trial" else facts.watched
    if candidate.phase == "probation" and facts.serving not in (candidate.digest, None):
        return None
    if isinstance(answer, VersionFault):
        return answer
    if awaited(candidate) and facts.waited >= candidate.confirm_within:
        return VersionFault("reverted", f"nobody confirmed it within {candidate.confirm_within:g} s")
    return None


def _fault_of_runs(candidate: Candidate) -> VersionFault | None:
    """What keeps a candidate that an earlier run left from being gone on with."""
    if awaited(candidate):
        return VersionFault("reverted", "the daemon started anew before anybody confirmed it")
    if candidate.boots_left == 0:
        return VersionFault("rejected", f"the daemon or the board went down {BOOTS} times during its {candidate.phase}")
    return None


def is_suspended(facts: ModelFacts) -> bool:
    """Whether the candidate is on probation, and the pipeline that used the model was taken away."""
    candidate = facts.ledger.candidate
    on_probation = candidate is not None and candidate.phase == "probation" and not candidate.unused
    return on_probation and facts.serving is None


def _passed(facts: ModelFacts, candidate: Candidate) -> bool:
    """Whether probation is over. Where no pipeline has ever used the model there is nothing to watch."""
    if candidate.phase != "probation" or awaited(candidate):
        return False
    if facts.serving is None:
        return candidate.unused
    return facts.serving == candidate.digest and facts.watched == "good"


def _dropped(ledger: Ledger, candidate: Candidate, fault: VersionFault) -> Ledger:
    digest = candidate.digest
    ledger = replace(ledger, candidate=None)
    if fault.kind == "rejected":
        ledger = rejected(ledger, digest, fault.reason)
    return ledger if fault.kind == "reverted" else without(ledger, digest)


def _name(ledger: Ledger, digest: str) -> str:
    return f"version {ledger.versions[digest].version}"
