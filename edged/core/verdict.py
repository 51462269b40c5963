"""The verdict of a trial: whether a version may serve on this board, and what was measured."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from edged.core.manifest import Limits
from edged.core.types import RunnerInfo

Failure = Literal["", "damaged", "unfit", "wrong", "slow", "memory", "crashed", "hung", "silent", "hindered"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a trial found.

    `failure` is "" for a version that may serve, or else in one word why not:

    damaged  it is not what its manifest says          memory   it needs more memory than it may have
    unfit    it does not load here                     crashed  it ended its process
    wrong    it loads, and fails or answers wrongly    hung     it was not done in time
    slow     it answers too slowly                     silent   its process ended without a verdict
    hindered that cannot be told now: what it lacked is no fault of the version, and may be there the next time

    `reason` and `hint` say it to a person, and `stderr` is the end of what the process complained of. What was measured
    before the failure is there too: the number of golden `samples` and the `worst` difference in any of them (as in
    selftest.Proof), `latency_p50` and `latency_p99` of one inference in seconds, `rss_bytes` at their peak, interpreter
    and runtime included, and the `seconds` that all of it took.
    """

    failure: Failure = ""
    reason: str = ""
    hint: str = ""
    stderr: str = ""
    samples: int = 0
    worst: float = 0.0
    latency_p50: float = 0.0
    latency_p99: float = 0.0
    rss_bytes: int = 0
    seconds: float = 0.0
    runner: RunnerInfo | None = None

    @property
    def ok(self) -> bool:
        """Whether the version may serve."""
        return not self.failure


def hold_latency(measured: Verdict, limits: Limits, where: str = "") -> Verdict:
    """The same verdict, or where it took longer than a manifest allows, that it is too slow; `where` says on what."""
    if limits.latency_p99 is None or measured.latency_p99 <= limits.latency_p99:
        return measured
    taken, allowed = (f"{seconds * 1e3:.3g} ms" for seconds in (measured.latency_p99, limits.latency_p99))
    reason = f"one inference takes {taken} at the 99th percentile{where}, and {allowed} are allowed"
    return replace(measured, failure="slow", reason=reason, hint="a smaller model, or another delegate, is needed")
