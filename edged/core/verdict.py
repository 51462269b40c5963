"""Verdict of a trial: fitness of a version for this board, and the measurements."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from edged.core.manifest import Limits
from edged.core.types import RunnerInfo

Failure = Literal["", "damaged", "unfit", "wrong", "slow", "memory", "crashed", "hung", "silent", "hindered"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Outcome of a trial.

    `failure` is "" for a version that may serve, or one of these words:

    damaged  the files contradict the manifest       memory   the model exceeds its memory limit
    unfit    the model does not load here            crashed  the process ended abnormally
    wrong    an inference fails or is incorrect      hung     the time limit passed
    slow     an inference takes too long             silent   the process ended without a verdict
    hindered the trial lacked a resource through no fault of the version, and may succeed later

    `reason` and `hint` are for people; `stderr` is the end of the process's error output. Measurements made before a
    failure are included: the number of golden `samples` and the `worst` difference in any sample (as in
    selftest.Proof), `latency_p50` and `latency_p99` of one inference in seconds, the peak of `rss_bytes` with
    interpreter and runtime, and the duration of the trial in `seconds`.
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
        """Return whether the version may serve."""
        return not self.failure


def hold_latency(measured: Verdict, limits: Limits, where: str = "") -> Verdict:
    """Return `measured`, or a failure "slow" if the latency exceeds the limit; `where` completes the message."""
    if limits.latency_p99 is None or measured.latency_p99 <= limits.latency_p99:
        return measured
    taken, allowed = (f"{seconds * 1e3:.3g} ms" for seconds in (measured.latency_p99, limits.latency_p99))
    reason = f"an inference takes {taken} at the 99th percentile{where}, and {allowed} are allowed"
    return replace(measured, failure="slow", reason=reason, hint="use a smaller model or another delegate")
