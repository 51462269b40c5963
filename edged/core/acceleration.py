"""Policy for failing accelerators: when to reload, and when to quarantine. All of this policy is here, and pure.

    while step := decide(look()):        run by the thread of an Accelerator: backends/accelerated.py
        do(step)

A device serves the models of several pipelines. Each model has a twin on the CPU, which serves whenever the accelerator
does not. No step here is therefore urgent, and an accelerator serves only while known to be correct.

    loading --> serving --> fault --> a pause --> loading ...
                              |
                              +--> quarantine, after `failures` faults within `within` seconds; ends when the device
                                   is plugged in again, or an operator releases the accelerator

- A fault belongs to the device: all models of the device return to their twins. A failed load or proof of a model is an
  exception: models in service stay. When a model in service has to be reloaded, or another model arrives, such failures
  are forgotten, since otherwise they would delay that model.
- Pauses double from `backoff` to `backoff_max`, and are shortened at random by up to half.
- After `within` seconds of service without a fault, the next pause is as short as the first.
- A missing device is not tried: the daemon looks for the device each POLL_SECONDS seconds, and loads on arrival.
- A quarantined device is tried again when the identity of the device has changed, or when an operator releases the
  accelerator. The history is then forgotten. A device that dropped off the bus and came back cannot be told from a
  device plugged in again, and may also fail `failures` times again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

POLL_SECONDS = 1.0
"""Seconds between two looks for a missing or quarantined device."""

KEPT = 100
"""Maximum number of faults in a record; so many make any pause the longest."""

_Seconds = Annotated[float, Meta(gt=0, le=86_400)]
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
    backoff: _Seconds = 1.0
    backoff_max: _Seconds = 300.0
    failures: Annotated[int, Meta(ge=1, le=KEPT)] = 5
    within: _Seconds = 600.0
    check_every: Annotated[float, Meta(ge=0, le=86_400)] = 60.0
    memory: Annotated[int, Meta(ge=16 << 20, le=1 << 40)] = 1 << 30
    niceness: Annotated[int, Meta(ge=0, le=19)] = 0


class AcceleratorStatus(msgspec.Struct, frozen=True):
    """State of the models of a device, with the reason; `hint` is the remedy, `since` is CLOCK_MONOTONIC seconds.

    "cpu" is no fault: the models are meant to run there, or the accelerator is being loaded.
    """

    state: AcceleratorStateName
    reason: str
    hint: str
    since: float

    @property
    def is_fault(self) -> bool:
        """Return whether the models run on the CPU because of a fault."""
        return self.state in ("degraded", "quarantined")


# The record of a device


class AcceleratorFault(msgspec.Struct, frozen=True):
    """A fault at `time`.

    `kind` is "device" (the device or the driving process failed), "run" (an input failed but runs on the CPU), "wrong"
    (an answer was incorrect) or "load" (a model did not load, or failed the proof).
    """

    time: float
    kind: FaultKind
    reason: str
    hint: str = ""


class AcceleratorRecord(msgspec.Struct, frozen=True, kw_only=True):
    """History of a device; `AcceleratorRecord()` for a new device.

    faults       faults since the last service of sufficient length, oldest first, at most KEPT
    due          time of the next attempt
    settled      time since which all models run on the device; None while any model does not
    quarantined  identity of the device at the quarantine ("" for missing); None outside of quarantine
    """

    faults: tuple[AcceleratorFault, ...] = ()
    due: float = 0.0
    settled: float | None = None
    quarantined: str | None = None


def failed(rules: Rules, record: AcceleratorRecord, fault: AcceleratorFault, luck: float) -> AcceleratorRecord:
    """Record a fault; `luck` from 0 to 1 sets the following pause, from half of the pause to all of it."""
    if fault.kind != "load":
        record = pardoned(rules, record)
    forgotten = record.settled is not None and fault.time - record.settled >= rules.within
    faults = (*(() if forgotten else record.faults), fault)[-KEPT:]
    return replace(record, faults=faults, due=fault.time + pause(rules, len(faults), luck), settled=None)


def pardoned(rules: Rules, record: AcceleratorRecord) -> AcceleratorRecord:
    """Remove failures to load, and end a quarantine without other faults."""
    faults = tuple(fault for fault in record.faults if fault.kind != "load")
    if _recent(rules, faults) >= rules.failures:
        return record
    return replace(record, faults=faults, due=record.due if faults else 0.0, quarantined=None)


def settled(record: AcceleratorRecord, now: float) -> AcceleratorRecord:
    """Record that all models run on the device, or that the failed models have left a quarantined device."""
    if record.quarantined is not None:
        return AcceleratorRecord(settled=now)
    return replace(record, settled=now)


def quarantined(record: AcceleratorRecord, identity: str) -> AcceleratorRecord:
    """Quarantine a device with this identity."""
    return replace(record, quarantined=identity)


def pause(rules: Rules, faults: int, luck: float) -> float:
    """Return the seconds between the last of `faults` faults and the next attempt."""
    longest = max(rules.backoff, rules.backoff_max)
    return min(rules.backoff * 2.0 ** (faults - 1), longest) * (0.5 + 0.5 * luck)


# Deciding


class AcceleratorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts from which the next step of a device is decided.

    waiting   whether a model waits to be loaded
    serving   whether a model runs on the device
    identity  identity of the device; "" if missing
    """

    record: AcceleratorRecord
    waiting: bool
    serving: bool
    identity: str
    now: float


class LoadWaiting(msgspec.Struct, frozen=True):
    """Load a waiting model."""


class Settle(msgspec.Struct, frozen=True):
    """Record that all models run on the device; the time of service begins."""


class Quarantine(msgspec.Struct, frozen=True):
    """Quarantine the device, and record its identity."""


class Release(msgspec.Struct, frozen=True):
    """Forget the history of the device, which was plugged in again."""


class Wait(msgspec.Struct, frozen=True):
    """Do nothing until `until` or, if None, until the facts change; `missing` if the device is missing."""

    until: float | None
    missing: bool = False


AcceleratorStep = LoadWaiting | Settle | Quarantine | Release | Wait


def decide(rules: Rules, facts: AcceleratorFacts) -> AcceleratorStep:
    """Return the next step."""
    record, now = facts.record, facts.now
    if not facts.waiting:
        return Settle() if facts.serving and record.settled is None else Wait(None)
    if record.quarantined is not None:
        return Release() if facts.identity not in ("", record.quarantined) else Wait(now + POLL_SECONDS)
    if _recent(rules, record.faults) >= rules.failures:
        return Quarantine()
    if now < record.due:
        return Wait(record.due)
    return LoadWaiting() if facts.identity else Wait(now + POLL_SECONDS, missing=True)


def device_status(
    rules: Rules, record: AcceleratorRecord, *, name: str, missing: bool, now: float
) -> AcceleratorStatus:
    """Return the status of the device `name` from `now` on."""
    if record.quarantined is not None:
        faults = _recent(rules, record.faults)
        several = f"{faults} faults" if faults > 1 else "1 fault"
        why = f"{several} within {rules.within:g} s, the last: {record.faults[-1].reason}"
        hint = f"plug the device in again; or remove the cause, then run: edgectl release {name}"
        return AcceleratorStatus("quarantined", why, hint, now)
    if record.settled is not None:
        return AcceleratorStatus("accelerated", "", "", now)
    if missing:
        return AcceleratorStatus(
            "degraded", MISSING, "plug the device in; if plugged in, run: sudo edgectl devices allow --restart", now
        )
    if record.faults:
        return AcceleratorStatus("degraded", record.faults[-1].reason, record.faults[-1].hint, now)
    return AcceleratorStatus("cpu", LOADING, "", now)


def model_status(device: AcceleratorStatus, up: bool) -> AcceleratorStatus:
    """Return the status of a model on the device; `up` if loaded there: faults of the device concern other models."""
    if up:
        return AcceleratorStatus("accelerated", "", "", device.since)
    if device.state == "accelerated":
        return AcceleratorStatus("cpu", LOADING, "", device.since)
    return device


def _recent(rules: Rules, faults: Sequence[AcceleratorFault]) -> int:
    """Return the number of faults in the period that ends with the last fault."""
    return sum(faults[-1].time - fault.time < rules.within for fault in faults)
