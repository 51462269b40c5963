"""What is known of one model's versions (its state.json), and every way in which that may change.

A ledger is a value: each change makes another one, and models/updater.py replaces the file whole. When which change is
due is decided in core/decide.py, whose head says how to think about candidates, floors and rejections.

Versions go by digest, the SHA-256 of their manifest's bytes. The factory's versions are not in the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from edged.core.errors import BundleError, ControlError, StoreError, some
from edged.core.manifest import Digest, Version, version_key

BOOTS = 3
"""How many runs of the daemon a candidate has for its trial, and again for its probation."""

MAX_REJECTED = 256
"""How many rejections are remembered; the oldest is forgotten first."""

MAX_REASON = 500
"""How many characters of a reason are: a backend may say pages, and a ledger too long to be read would be lost."""


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """A version on disk: where it came from, who signed it, whether it ever was confirmed here.

    `created` is what its manifest states, in Unix seconds. `installed` likewise, by this board's clock, for people to
    read; nothing depends on it.
    """

    version: Version
    created: int = 0
    origin: str = ""
    signers: tuple[str, ...] = ()
    installed: float = 0.0
    confirmed: bool = False


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """The version under way. `run` is the run of the daemon that `boots_left` was last counted for.

    `confirm_within` is how many seconds an operator has to confirm it once it serves; 0 where nobody need. `unused` is
    whether no pipeline has used the model since it was offered.
    """

    digest: Digest
    phase: Literal["trial", "probation"] = "trial"
    boots_left: Annotated[int, Meta(ge=0, le=BOOTS)] = BOOTS
    run: str = ""
    confirm_within: Annotated[float, Meta(ge=0)] = 0.0
    unused: bool = False


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """Why a digest is refused."""

    version: Version
    reason: str


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. `active` is the version confirmed last, `previous` the one before; None is the factory's newest.

    `versions` and `rejected` are in order of arrival. A `pinned` model stays with what it has.
    """

    schema: Literal["edged.ledger/1"]
    active: Digest | None = None
    previous: Digest | None = None
    candidate: Candidate | None = None
    floor: Version = "0"
    pinned: bool = False
    versions: dict[Digest, Installed] = {}
    rejected: dict[Digest, Rejection] = {}


EMPTY = Ledger(schema="edged.ledger/1")
"""Of a model that nothing was ever installed of."""


def encode(ledger: Ledger) -> bytes:
    """The bytes of its state.json, indented for people to read."""
    return msgspec.json.format(msgspec.json.encode(ledger), indent=2) + b"\n"


def decode(data: bytes) -> Ledger:
    """The ledger in the bytes of a state.json.

    Raises:
        StoreError: it is damaged, or contradicts itself.
    """
    try:
        ledger = msgspec.json.decode(data, type=Ledger)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StoreError(f"state.json is damaged: {error}", hint=_DAMAGED) from error
    candidate = ledger.candidate and ledger.candidate.digest
    unknown = {ledger.active, ledger.previous, candidate} - {None, *ledger.versions}
    if unknown or (candidate is not None and candidate == ledger.active):
        raise StoreError("state.json contradicts itself", hint=_DAMAGED)
    return ledger


_DAMAGED = "the disk may be failing; install the model again"


def recovered(found: dict[Digest, Installed], active: Digest | None) -> Ledger:
    """What the versions that are on disk tell, where the ledger is lost; `active` is the one that `current` names.

    That one was confirmed, of the others nobody knows, and they only wait to be sent again. The floor is at the newest,
    for one that is too high asks an operator, and one that is too low asks nobody. Rejections and pins are forgotten.
    """
    by_age = dict(sorted(found.items(), key=lambda each: version_key(each[1].version)))
    if active in by_age:
        by_age[active] = replace(by_age[active], confirmed=True)
    return replace(
        EMPTY,
        active=active if active in by_age else None,
        floor=max((each.version for each in by_age.values()), key=version_key, default=EMPTY.floor),
        versions=by_age,
    )


def standing(ledger: Ledger, factory: Sequence[str]) -> Iterator[str]:
    """The versions to serve, best first, the candidate aside; `factory` are the factory's digests, newest first.

    Some may be there twice, and not all of them need be on disk.
    """
    for chosen in (ledger.active, ledger.previous, None):
        yield from factory if chosen is None else (chosen,)
    for digest, version in reversed(ledger.versions.items()):
        if version.confirmed and digest not in ledger.rejected:
            yield digest


# An install


def admit(ledger: Ledger, name: str, digest: str, version: str, active: str, *, allow_downgrade: bool) -> None:
    """Refuse a version of model `name` that may not become a candidate now; `active` is the active version's number.

    Raises:
        BundleError: it was rejected before, or is below the floor or the active version.
        ControlError: the model is pinned, or another version is under way.
    """
    if digest in ledger.rejected:
        reason = ledger.rejected[digest].reason
        raise BundleError(
            f"{name} {version} was rejected on this board: {reason}",
            hint=f"have it tried again with `edgectl forget {name} {digest[:12]}`",
        )
    if ledger.pinned:
        raise ControlError(f"{name} is pinned to {active}", hint=f"let go of it with `edgectl pin {name} --off`")
    if ledger.candidate is not None:
        raise _under_way(ledger, ledger.candidate, name)
    if is_downgrade(ledger, version, active) and not allow_downgrade:
        raise BundleError(
            f"{name} {version} is older than {_floor(ledger, active)}, and versions only go up",
            hint="if that is what you want, say so with --allow-downgrade",
        )


def _under_way(ledger: Ledger, candidate: Candidate, name: str) -> ControlError:
    return ControlError(
        f"{name} {ledger.versions[candidate.digest].version} is under way ({candidate.phase})",
        hint=f"wait for its end, or stop it with `edgectl rollback {name}`",
        retryable=True,
    )


def refuse_unnamed(name: str, version: str, named: str) -> None:
    """Raises ControlError for another version than the number that the configuration names, "" for any."""
    if named and version_key(version) != version_key(named):
        raise held_by_configuration(name, named)


def held_by_configuration(name: str, named: str) -> ControlError:
    """The error for another version than the one that the configuration names."""
    return ControlError(
        f"the configuration has {name} stay with version {named}",
        hint=f"take `version` out of [models.{name}], then: edgectl reload",
    )


def is_downgrade(ledger: Ledger, version: str, active: str) -> bool:
    """Whether a version is older than one that has been confirmed here; `active` is the active version's number."""
    return version_key(version) < version_key(_floor(ledger, active))


def _floor(ledger: Ledger, active: str) -> str:
    return max(ledger.floor, active, key=version_key)


def offered(ledger: Ledger, digest: str, version: Installed, confirm_within: float, *, unused: bool = False) -> Ledger:
    """With a version that passed the checks as the candidate; `unused` if no pipeline uses the model."""
    known = ledger.versions.get(digest)
    version = replace(version, confirmed=known is not None and known.confirmed)
    others = {each: ledger.versions[each] for each in ledger.versions if each != digest}
    return replace(
        ledger,
        candidate=Candidate(digest=digest, confirm_within=confirm_within, unused=unused),
        versions={**others, digest: version},
    )


def counted(ledger: Ledger, candidate: Candidate, run: str) -> Ledger:
    """With one more run of the daemon spent on the candidate."""
    return replace(ledger, candidate=replace(candidate, run=run, boots_left=candidate.boots_left - 1))


def given_back(ledger: Ledger, run: str) -> Ledger:
    """With this run, which ends as it should, not held against the candidate."""
    candidate = ledger.candidate
    if candidate is None or candidate.run != run or awaited(candidate):
        return ledger
    return replace(ledger, candidate=replace(candidate, run="", boots_left=candidate.boots_left + 1))


def used(ledger: Ledger, candidate: Candidate) -> Ledger:
    """With a pipeline that uses the model, which is watched from then on."""
    return replace(ledger, candidate=replace(candidate, unused=False))


def proven(ledger: Ledger, candidate: Candidate) -> Ledger:
    """With the candidate on probation, for which this run counts as well."""
    return replace(ledger, candidate=replace(candidate, phase="probation", boots_left=BOOTS - 1))


def awaited(candidate: Candidate) -> bool:
    """Whether it serves until an operator confirms it, or nobody does."""
    return candidate.phase == "probation" and candidate.confirm_within > 0


def pinned(ledger: Ledger, name: str, *, on: bool) -> Ledger:
    """With the model staying with what it has, or free again.

    Raises:
        ControlError: another version is under way, which would serve all the same.
    """
    if on and ledger.candidate is not None:
        raise _under_way(ledger, ledger.candidate, name)
    return replace(ledger, pinned=on)


def vouched(ledger: Ledger, name: str) -> Ledger:
    """With the candidate confirmed by an operator; the rest of its probation remains.

    Raises:
        ControlError: nothing waits for that.
    """
    candidate = ledger.candidate
    if candidate is None or not awaited(candidate):
        raise ControlError(f"nothing of {name} waits to be confirmed", hint="see `edgectl models`")
    return replace(ledger, candidate=replace(candidate, confirm_within=0.0))


def confirmed(ledger: Ledger, candidate: Candidate) -> Ledger:
    """With the candidate as the active version, and the floor at it or above."""
    version = replace(ledger.versions[candidate.digest], confirmed=True)
    return replace(
        ledger,
        active=candidate.digest,
        previous=ledger.active,
        candidate=None,
        floor=max(ledger.floor, version.version, key=version_key),
        versions={**ledger.versions, candidate.digest: version},
    )


def rejected(ledger: Ledger, digest: str, reason: str) -> Ledger:
    """With a version that is refused from now on; it stays where it is."""
    others = {each: ledger.rejected[each] for each in ledger.rejected if each != digest}
    others[digest] = Rejection(version=ledger.versions[digest].version, reason=reason[:MAX_REASON])
    return replace(ledger, rejected=dict(list(others.items())[-MAX_REJECTED:]))


def without(ledger: Ledger, digest: str) -> Ledger:
    """Without a version, whose folder is litter then."""
    return replace(
        ledger,
        previous=None if digest == ledger.previous else ledger.previous,
        versions={each: ledger.versions[each] for each in ledger.versions if each != digest},
    )


# What an operator asks for


def rolled_back(ledger: Ledger, name: str, to: str = "", *, has_factory: bool = True) -> Ledger:
    """Back to what served before, to a version confirmed here (`to` its number or digest), or to the "factory".

    `has_factory` is whether that has another version than the active one. What it goes away from is rejected. A
    candidate without anything before it may be rejected too.

    Raises:
        ControlError: there is nothing of that kind to go back to.
    """
    if ledger.pinned:
        raise ControlError(f"{name} is pinned", hint=f"let go of it with `edgectl pin {name} --off`")
    by_hand = "an operator rolled it back"
    candidate = ledger.candidate
    chosen = ledger.active if candidate is not None and not to else _chosen(ledger, name, to)
    if candidate is not None:
        ledger = replace(rejected(ledger, candidate.digest, by_hand), candidate=None)
        if chosen == ledger.active:
            return ledger
    if chosen == ledger.active or (chosen is None and not has_factory):
        raise _nothing_before(ledger, name, to)
    if ledger.active is not None:
        ledger = rejected(ledger, ledger.active, by_hand)
    return replace(
        ledger,
        active=chosen,
        previous=None if chosen == ledger.previous else ledger.previous,
        rejected={each: ledger.rejected[each] for each in ledger.rejected if each != chosen},
    )


def _nothing_before(ledger: Ledger, name: str, to: str) -> ControlError:
    """The error for a rollback that would change nothing."""
    serving = ledger.versions[ledger.active].version if ledger.active else "the factory's version"
    if to == "factory" and ledger.active:
        return ControlError(f"there is no other factory version of {name}", hint="see what there is: edgectl models")
    if to:
        return ControlError(f"{name} is at {serving} already", hint="see what else there is: edgectl models")
    others = [each.version for digest, each in ledger.versions.items() if each.confirmed and digest != ledger.active]
    if not others:
        return ControlError(
            f"{name} has nothing to go back to: no other version was confirmed here",
            hint="bring one: edgectl update-model FILE",
        )
    return ControlError(
        f"{name} has nothing to go back to by itself",
        hint=f"name a version: edgectl rollback {name} --to VERSION; there are: {', '.join(others)}",
    )


def forgiven(ledger: Ledger, name: str, digest: str) -> Ledger:
    """Without a rejection; the beginning of the digest is enough.

    Raises:
        ControlError: nothing like that, or more than one, was rejected.
    """
    found = [each for each in ledger.rejected if digest and each.startswith(digest)]
    if len(found) != 1:
        known = some([each[:12] for each in ledger.rejected]) or "none"
        raise ControlError(
            f"{len(found)} rejected versions of {name} begin with {digest!r}", hint=f"there are: {known}"
        )
    return replace(ledger, rejected={each: ledger.rejected[each] for each in ledger.rejected if each != found[0]})


def _chosen(ledger: Ledger, name: str, to: str) -> str | None:
    if not to:
        return ledger.previous
    if to == "factory":
        return None
    there = {digest: each for digest, each in ledger.versions.items() if each.confirmed}
    for digest, each in reversed(there.items()):
        if to == each.version or (len(to) >= 8 and digest.startswith(to)):
            return digest
    known = some(["factory", *(each.version for each in there.values())])
    raise ControlError(f"{name} has no confirmed version {to!r} on this board", hint=f"there are: {known}")
