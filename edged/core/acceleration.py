"""Accelerators that fail: when one is brought back, and when it is left alone. All of that policy, and pure.

    while step := decide(look()):        the thread of an Accelerator does this: backends/accelerated.py
        do(step)

A device serves the models of several pipelines. Each of them has a twin on the CPU, which serves whenever the
accelerator does not; so nothing here is urgent, and an accelerator is only used while it is known to be right.

    loading --> serving --> fault --> a pause --> loading ...
                              |
                              +--> quarantine, after `failures` faults within `within` seconds; ends when the device
                                   is plugged in anew, or an operator releases it

- A fault is the device's, whichever model met it, and all its models go back to their twins. There is one exception: a
  model that does not load there, or fails its proof, leaves those alone that serve already. Where one of them has to be
  brought back, or another model comes, such failures are forgotten: they would keep that one away for nothing.
- Pauses double from `backoff` to `backoff_max`, less up to half of it by chance.
- What served for `within` seconds without a fault owes nothing: the next pause is as short as the first.
- A device that is not there is not tried: it is looked for each LOOK_EVERY seconds, and tried as soon as it is there.
- A quarantined device is tried again when it is another than it was as it was quarantined, or when an operator says
  so. Its past is then forgotten. One that has fallen off the bus and comes back by itself looks the same as one that
  was plugged in anew, and is treated so: it may fail `failures` times again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

LOOK_EVERY = 1.0
"""Seconds between two looks for a device that is not there, or quarantined."""

KEPT = 100
"""How many faults are remembered at most; so many make any pause the longest."""

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
FaultKind = Literal["device", "run", "wrong", "load"]
AcceleratorStateName = Literal["accelerated", "degraded", "quarantined", "cpu"]

MISSING = "the device is not there"
LOADING = "the accelerator is being loaded"


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of [accelerators]: limits for accelerators, and the retries after a fault.

    Keys:
        deadline (s): Time that one inference may take; then the accelerator's process is killed.
        load_seconds (s): Time in which a model must load and prove itself on the accelerator.
        backoff (s): Time from a fault to the first retry; doubled with each further fault.
        backoff_max (s): Longest time to a retry.
        failures: Number of faults within `within` after which the accelerator is quarantined, until it is plugged in
            anew or released with `edgectl release`.
        within (s): Time in which `failures` are counted.
        check_every (s): Time between two checks of a serving accelerator with a golden sample; 0 for no checks.
        memory (bytes): Most data memory of the accelerator's process.
        niceness: Niceness of the accelerator's process; see nice(1).
    """

    deadline: Annotated[float, Meta(gt=0, le=20)] = 2.0
    load_seconds: Annotated[float, Meta(gt=0, le=600)] = 30.0
    backoff: Seconds = 1.0
    backoff_max: Seconds = 300.0
    failures: Annotated[int, Meta(ge=1, le=KEPT)] = 5
    within: Seconds = 600.0
    check_every: Annotated[float, Meta(ge=0, le=86_400)] = 60.0
    memory: Annotated[int, Meta(ge=16 << 20, le=1 << 40)] = 1 << 30
    niceness: Annotated[int, Meta(ge=0, le=19)] = 0


class AcceleratorStatus(msgspec.Struct, frozen=True):
    """Where the models of a device run and why; `hint` says what to do, `since` is CLOCK_MONOTONIC seconds.

    "cpu" is no fault: they are to run there, or the accelerator is still being loaded.
    """

    state: AcceleratorStateName
    reason: str
    hint: str
    since: float

    @property
    def is_fault(self) -> bool:
        """Whether the models run on the CPU though they should not."""
        return self.state in ("degraded", "quarantined")


# The record of a device, and how it changes


class AcceleratorFault(msgspec.Struct, frozen=True):
    """What went wrong at `time`.

    By `kind`: the "device", or the process that drives it, failed; it would not "run" an input that the CPU ran; it
    answered "wrong"; a model did not "load" or failed its proof.
    """

    time: float
    kind: FaultKind
    reason: str
    hint: str = ""


class AcceleratorRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All that is remembered of a device; one with no past is `AcceleratorRecord()`.

    faults       since it last served for long enough, oldest first, the last KEPT of them
    due          when it may be tried next
    settled      since when all its models run on it; None while any does not
    quarantined  what it was as it was quarantined ("" for not there); None while it is not in quarantine
    """

    faults: tuple[AcceleratorFault, ...] = ()
    due: float = 0.0
    settled: float | None = None
    quarantined: str | None = None


def failed(rules: Rules, record: AcceleratorRecord, fault: AcceleratorFault, luck: float) -> AcceleratorRecord:
    """After a fault; `luck` from 0 to 1 makes the pause that follows longer, from half of it to all."""
    if fault.kind != "load":
        record = pardoned(rules, record)
    forgotten = record.settled is not None and fault.time - record.settled >= rules.within
    faults = (*(() if forgotten else record.faults), fault)[-KEPT:]
    return replace(record, faults=faults, due=fault.time + pause(rules, len(faults), luck), settled=None)


def pardoned(rules: Rules, record: AcceleratorRecord) -> AcceleratorRecord:
    """Without what models failed to load, and out of quarantine where that was all there was to it."""
    faults = tuple(fault for fault in record.faults if fault.kind != "load")
    if _recent(rules, faults) >= rules.failures:
        return record
    return replace(record, faults=faults, due=record.due if faults else 0.0, quarantined=None)


def settled(record: AcceleratorRecord, now: float) -> AcceleratorRecord:
    """After the last of its models has come to run on it; in quarantine that is so once those that failed have left."""
    if record.quarantined is not None:
        return AcceleratorRecord(settled=now)
    return replace(record, settled=now)


def quarantined(record: AcceleratorRecord, identity: str) -> AcceleratorRecord:
    """As it is left alone: it was `identity`."""
    return replace(record, quarantined=identity)


def pause(rules: Rules, faults: int, luck: float) -> float:
    """Seconds from the last of so many faults until it is tried again."""
    longest = max(rules.backoff, rules.backoff_max)
    return min(rules.backoff * 2.0 ** (faults - 1), longest) * (0.5 + 0.5 * luck)


# Deciding


class AcceleratorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """All that is to be known of a device to decide what to do next.

    waiting   whether any model waits to be loaded
    serving   whether any model runs on it
    identity  what is plugged in; "" for nothing
    """

    record: AcceleratorRecord
    waiting: bool
    serving: bool
    identity: str
    now: float


class LoadWaiting(msgspec.Struct, frozen=True):
    """Load a model that waits."""


class Settle(msgspec.Struct, frozen=True):
    """All models run on it: count from now on how long it serves."""


class Quarantine(msgspec.Struct, frozen=True):
    """Leave it alone, and remember what it was."""


class Release(msgspec.Struct, frozen=True):
    """Forget its past: it was plugged in anew."""


class Wait(msgspec.Struct, frozen=True):
    """Do nothing until then, or until there is news where it is None; `missing` is for a device that is not there."""

    until: float | None
    missing: bool = False


Step = LoadWaiting | Settle | Quarantine | Release | Wait


def decide(rules: Rules, facts: AcceleratorFacts) -> Step:
    """The next step."""
    record, now = facts.record, facts.now
    if not facts.waiting:
        return Settle() if facts.serving and record.settled is None else Wait(None)
    if record.quarantined is not None:
        return Release() if facts.identity not in ("", record.quarantined) else Wait(now + LOOK_EVERY)
    if _recent(rules, record.faults) >= rules.failures:
        return Quarantine()
    if now < record.due:
        return Wait(record.due)
    return LoadWaiting() if facts.identity else Wait(now + LOOK_EVERY, missing=True)


def standing(rules: Rules, record: AcceleratorRecord, *, name: str, missing: bool, now: float) -> AcceleratorStatus:
    """How the device `name` stands, from now on."""
    if record.quarantined is not None:
        faults = _recent(rules, record.faults)
        several = f"{faults} faults" if faults > 1 else "1 fault"
        why = f"{several} within {rules.within:g} s, the last: {record.faults[-1].reason}"
        hint = f"plug the device in anew; or, when the cause is mended: edgectl release {name}"
        return AcceleratorStatus("quarantined", why, hint, now)
    if record.settled is not None:
        return AcceleratorStatus("accelerated", "", "", now)
    if missing:
        return AcceleratorStatus(
            "degraded", MISSING, "plug it in; if it is, let the service at it: sudo edgectl devices allow", now
        )
    if record.faults:
        return AcceleratorStatus("degraded", record.faults[-1].reason, record.faults[-1].hint, now)
    return AcceleratorStatus("cpu", LOADING, "", now)


def standing_with(device: AcceleratorStatus, up: bool) -> AcceleratorStatus:
    """How one of a device's models stands, by whether it is loaded there: faults are those of the ones that are not."""
    if up:
        return AcceleratorStatus("accelerated", "", "", device.since)
    if device.state == "accelerated":
        return AcceleratorStatus("cpu", LOADING, "", device.since)
    return device


def _recent(rules: Rules, faults: Sequence[AcceleratorFault]) -> int:
    """How many of the faults were within the time that counts, up to the last."""
    return sum(faults[-1].time - fault.time < rules.within for fault in faults)
