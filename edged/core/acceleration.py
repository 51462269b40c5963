"""Accelerators that fail: when one is brought back, and when it is left alone. This file is all of that policy, and pure.

    while step := decide(look()):        the thread of an Accelerator does this: backends/accelerated.py
        do(step)

A device serves the models of several pipelines. Each of them has a twin on the CPU, which serves whenever the
accelerator does not; so nothing here is urgent, and an accelerator is only used while it is known to be right.

    loading --> serving --> fault --> a pause --> loading ...
                              |
                              +--> quarantine, after `failures` faults within `within` seconds; ends when the device
                                   is plugged in anew, or an operator releases it

- A fault is the device's, whichever model met it, and all its models go back to their twins. There is one exception: a
  model that does not load there, or fails its proof, leaves those alone that serve already.
- Pauses double from `backoff` to `backoff_max`, less up to half of it by chance.
- What served for `within` seconds without a fault owes nothing: the next pause is the first one's length again.
- A device that is not there is not tried: it is looked for each LOOK_EVERY seconds, and tried as soon as it is there.
- A quarantined device is tried again as soon as it is another than it was when it was quarantined, or an operator says
  so. Its past is then forgotten. One that has fallen off the bus and comes back by itself looks the same as one that
  was plugged in anew, and is treated so: it may fail `failures` times again.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

LOOK_EVERY = 1.0
"""Seconds between two looks for a device that is not there, or quarantined."""

KEPT = 100
"""How many faults are remembered at most; so many double any pause to its longest."""

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
FaultKind = Literal["device", "run", "wrong", "load"]


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How accelerators are borne with, and what they may take: the table [accelerators].

    `deadline`: seconds one inference may take, from the beginning of its turn; then its process is killed.
    `load_seconds`: how long a model may take to load and prove itself.
    `backoff`, `backoff_max`: seconds before a failed accelerator is brought back, doubling from the first to the second.
    `failures`, `within`: after so many faults in so many seconds it is quarantined, until it is plugged in anew or
    released.
    `check_every`: how often one that serves is held against a golden sample, in seconds; 0 for never.
    `memory`: bytes of data memory its process may have.
    `niceness`: how far its process steps back behind others.
    """

    deadline: Annotated[float, Meta(gt=0, le=600)] = 2.0
    load_seconds: Annotated[float, Meta(gt=0, le=600)] = 30.0
    backoff: Seconds = 1.0
    backoff_max: Seconds = 300.0
    failures: Annotated[int, Meta(ge=1, le=KEPT)] = 5
    within: Seconds = 600.0
    check_every: Annotated[float, Meta(ge=0, le=86_400)] = 60.0
    memory: Annotated[int, Meta(ge=16 << 20, le=1 << 40)] = 1 << 30
    niceness: Annotated[int, Meta(ge=0, le=19)] = 0


class Standing(msgspec.Struct, frozen=True):
    """Where a model runs and why; `hint` says what to do about it, `since` is CLOCK_MONOTONIC seconds.

    "cpu" is no fault: it is to run there, or the accelerator is still being loaded.
    """

    state: Literal["accelerated", "degraded", "quarantined", "cpu"]
    reason: str
    hint: str
    since: float
