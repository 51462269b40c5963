"""Versions of one model (state.json), and every permitted change of them.

A ledger is a value: each change returns a new ledger, and the updater replaces the file whole. core/decide.py decides
on the time of each change; the head of that file explains candidates, floors and rejections.

A version is identified by its digest, the SHA-256 of the manifest's bytes. Factory versions are not in the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from edged.core.errors import BundleError, ControlError, StoreError, some
from edged.core.manifest import version_key
from edged.core.manifest_parts import Digest, Version

BOOTS = 3
"""Number of runs of the daemon that a candidate has for the trial, and again for the probation."""

MAX_REJECTED = 256
"""Maximum number of rejections in a ledger; the oldest are forgotten first."""

MAX_REASON = 500
"""Maximum length of a reason. A backend's error may fill pages, and a ledger over the size limit would be lost."""


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """A version on disk: origin, signers, and confirmation on this board.

    `created` is the manifest's time in Unix seconds. `installed` is the time of the installation by the board's clock,
    for information only. `reverted` is the reason for which the last install of the version was reverted, or "".
    """

    version: Version
    created: int = 0
    origin: str = ""
    signers: tuple[str, ...] = ()
    installed: float = 0.0
    confirmed: bool = False
    reverted: str = ""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """The version being installed. `run` is the run of the daemon last counted in `boots_left`.

    `confirm_within` is the number of seconds in which an operator must confirm the candidate once it serves; 0 if no
    confirmation is required. `unused` is true if no pipeline has used the model since the candidate was offered.
    """

    digest: Digest
    phase: Literal["trial", "probation"] = "trial"
    boots_left: Annotated[int, Meta(ge=0, le=BOOTS)] = BOOTS
    run: str = ""
    confirm_within: Annotated[float, Meta(ge=0)] = 0.0
    unused: bool = False


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """Reason for the refusal of a digest."""

    version: Version
    reason: str


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """State of a model's versions.

    `active` is the last confirmed version, `previous` its predecessor; None stands for the newest factory version.
    `versions` and `rejected` are in order of arrival. A `pinned` model keeps its active version.
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
"""Ledger of a model without any installed version."""


def encode(ledger: Ledger) -> bytes:
    """Return the ledger as the bytes of state.json, indented for people to read."""
    return msgspec.json.format(msgspec.json.encode(ledger), indent=2) + b"\n"


def decode(data: bytes) -> Ledger:
    """Return the ledger in the bytes of a state.json.

    Raises:
        StoreError: the ledger is damaged or contradicts itself.
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
    """Return a replacement for a lost ledger, made of the versions on disk.

    `active` is the target of the `current` link. Only the active version is known to be confirmed; the others cannot
    serve until installed again. The floor is the highest version: too high a floor requires an operator, too low a
    floor would permit a downgrade. Rejections and pins are lost.
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


def versions_to_serve(ledger: Ledger, factory: Sequence[str]) -> Iterator[str]:
    """Yield the versions to serve, best first, without the candidate; `factory` holds digests, newest first.

    A version may be yielded twice, and may be missing on disk.
    """
    for chosen in (ledger.active, ledger.previous, None):
        yield from factory if chosen is None else (chosen,)
    for digest, version in reversed(ledger.versions.items()):
        if version.confirmed and digest not in ledger.rejected:
            yield digest


# An install


def admit(ledger: Ledger, name: str, digest: str, version: str, active: str, *, allow_downgrade: bool) -> None:
    """Raise an error if a version of model `name` may not become the candidate now; `active` is a version number.

    Raises:
        BundleError: the version was rejected before, or is below the floor or the active version.
        ControlError: the model is pinned, or another version is being installed.
    """
    if digest in ledger.rejected:
        reason = ledger.rejected[digest].reason
        raise BundleError(
            f"{name} {version} was rejected on this board: {reason}",
            hint=f"to try the version again, run `edgectl forget {name} {digest[:12]}`",
        )
    if ledger.pinned:
        raise ControlError(f"{name} is pinned to {active}", hint=f"unpin the model with `edgectl pin {name} --off`")
    if ledger.candidate is not None:
        raise _under_way(ledger, ledger.candidate, name)
    if is_downgrade(ledger, version, active) and not allow_downgrade:
        floor, rolled_back = _floor(ledger, active), ""
        if version_key(floor) > version_key(active):
            rolled_back = f"{floor}, the highest version here so far, counts although {active} serves now; "
        raise BundleError(
            f"{name} {version} is older than {floor}, and versions only go up",
            hint=f"{rolled_back}to downgrade on purpose, add --allow-downgrade",
        )


def _under_way(ledger: Ledger, candidate: Candidate, name: str) -> ControlError:
    return ControlError(
        f"{name} {ledger.versions[candidate.digest].version} is under way ({candidate.phase})",
        hint=f"wait for the end, or cancel with `edgectl rollback {name}`",
        retryable=True,
    )


def refuse_unnamed(name: str, version: str, named: str) -> None:
    """Raise ControlError if `version` is not the configured version `named` ("" permits any version)."""
    if named and version_key(version) != version_key(named):
        raise held_by_configuration(name, named)


def held_by_configuration(name: str, named: str) -> ControlError:
    """Return the error for a version other than the configured version."""
    return ControlError(
        f"the configuration keeps {name} at version {named}",
        hint=f"delete `version` in [models.{name}], then run `edgectl reload`",
    )


def is_downgrade(ledger: Ledger, version: str, active: str) -> bool:
    """Return whether a version is lower than the highest version confirmed so far; `active` is a version number."""
    return version_key(version) < version_key(_floor(ledger, active))


def _floor(ledger: Ledger, active: str) -> str:
    return max(ledger.floor, active, key=version_key)


def offered(ledger: Ledger, digest: str, version: Installed, confirm_within: float, *, unused: bool = False) -> Ledger:
    """Make an accepted version the candidate; `unused` if no pipeline uses the model."""
    known = ledger.versions.get(digest)
    version = replace(version, confirmed=known is not None and known.confirmed)
    others = {each: ledger.versions[each] for each in ledger.versions if each != digest}
    return replace(
        ledger,
        candidate=Candidate(digest=digest, confirm_within=confirm_within, unused=unused),
        versions={**others, digest: version},
    )


def counted(ledger: Ledger, candidate: Candidate, run: str) -> Ledger:
    """Charge a run of the daemon to the candidate."""
    return replace(ledger, candidate=replace(candidate, run=run, boots_left=candidate.boots_left - 1))


def given_back(ledger: Ledger, run: str) -> Ledger:
    """Refund the run charged to the candidate, for a run of the daemon that ends regularly."""
    candidate = ledger.candidate
    if candidate is None or candidate.run != run or awaited(candidate):
        return ledger
    return replace(ledger, candidate=replace(candidate, run="", boots_left=candidate.boots_left + 1))


def used(ledger: Ledger, candidate: Candidate) -> Ledger:
    """Record that a pipeline uses the model, so that the candidate is watched from now on."""
    return replace(ledger, candidate=replace(candidate, unused=False))


def proven(ledger: Ledger, candidate: Candidate) -> Ledger:
    """Move the candidate to probation; the current run is the first run of the probation."""
    return replace(ledger, candidate=replace(candidate, phase="probation", boots_left=BOOTS - 1))


def awaited(candidate: Candidate) -> bool:
    """Return whether the candidate serves and waits for an operator's confirmation."""
    return candidate.phase == "probation" and candidate.confirm_within > 0


def pinned(ledger: Ledger, name: str, *, on: bool) -> Ledger:
    """Pin the model to the active version, or unpin it.

    Raises:
        ControlError: another version is being installed, and would serve in spite of the pin.
    """
    if on and ledger.candidate is not None:
        raise _under_way(ledger, ledger.candidate, name)
    return replace(ledger, pinned=on)


def vouched(ledger: Ledger, name: str) -> Ledger:
    """Record an operator's confirmation of the candidate; the rest of the probation remains.

    Raises:
        ControlError: no candidate waits for confirmation.
    """
    candidate = ledger.candidate
    if candidate is None or not awaited(candidate):
        raise ControlError(f"{name} has no version to confirm", hint="see `edgectl models`")
    return replace(ledger, candidate=replace(candidate, confirm_within=0.0))


def confirmed(ledger: Ledger, candidate: Candidate) -> Ledger:
    """Make the candidate the active version, and raise the floor to its number if it is higher."""
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
    """Refuse a version from now on; its files remain."""
    others = {each: ledger.rejected[each] for each in ledger.rejected if each != digest}
    others[digest] = Rejection(version=ledger.versions[digest].version, reason=reason[:MAX_REASON])
    return replace(ledger, rejected=dict(list(others.items())[-MAX_REJECTED:]))


def reverted(ledger: Ledger, digest: str, reason: str) -> Ledger:
    """Keep a version that may be installed again, with the reason for which it does not serve."""
    version = replace(ledger.versions[digest], reverted=reason[:MAX_REASON])
    return replace(ledger, versions={**ledger.versions, digest: version})


def without(ledger: Ledger, digest: str) -> Ledger:
    """Remove a version; its folder becomes litter."""
    return replace(
        ledger,
        previous=None if digest == ledger.previous else ledger.previous,
        versions={each: ledger.versions[each] for each in ledger.versions if each != digest},
    )


# Operator requests


def rolled_back(ledger: Ledger, name: str, to: str = "", *, has_factory: bool = True) -> Ledger:
    """Return to the previous version, to a confirmed version (number or digest in `to`), or to "factory".

    `has_factory` is true if a factory version other than the active version exists. The version rolled back from is
    rejected. A candidate may be rolled back even without a predecessor.

    Raises:
        ControlError: no such version exists.
    """
    if ledger.pinned:
        raise ControlError(f"{name} is pinned", hint=f"unpin the model with `edgectl pin {name} --off`")
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
    """Return the error for a rollback without effect."""
    serving = ledger.versions[ledger.active].version if ledger.active else "the factory's version"
    if to == "factory" and ledger.active:
        return ControlError(f"there is no other factory version of {name}", hint="list the versions: edgectl models")
    if to:
        return ControlError(f"{name} is already at {serving}", hint="list the versions: edgectl models")
    others = [each.version for digest, each in ledger.versions.items() if each.confirmed and digest != ledger.active]
    if not others:
        return ControlError(
            f"{name} cannot be rolled back: no other version was confirmed on this board",
            hint="install a version: edgectl update-model FILE",
        )
    return ControlError(
        f"{name} cannot be rolled back without a version number",
        hint=f"name a version: edgectl rollback {name} --to VERSION (available: {', '.join(others)})",
    )


def forgiven(ledger: Ledger, name: str, digest: str) -> Ledger:
    """Remove a rejection; a unique prefix of the digest is enough.

    Raises:
        ControlError: no digest or several digests have this prefix.
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
