"""Probation: whether a version that has begun to serve keeps the limits its manifest sets."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Literal

import msgspec

from edged.core.acceleration import MISSING, AcceleratorStatus
from edged.core.manifest import Probation

HOUR = 3600.0

FEW = 3
"""So many periods may lie between two answers for all of that time to count."""

GRAIN = 0.1
"""Seconds: answers that are closer together than this are counted together."""

MAX_PERIOD = 60.0
"""The longest period, in seconds, that is taken from the gaps seen where no rate is stated."""

_GAPS = 15

RECOVERY = 60.0
"""Seconds an accelerator may be brought back for before its trouble counts against the version."""


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What a version did since it began to serve in this run of the daemon.

    `seconds` are those in which windows were answered: see AnsweredTime. `errors` counts those of the `windows` that
    ended in an error or in NaN, `constant` how many outputs in a row were the same up to now, `decisions` those that
    were let through, and `labels` how often each label was the best. `latency_p99` is in seconds, 0 while it is not
    known. `delegate_fault` says what is wrong with the accelerator it should run on, "" for nothing.
    """

    seconds: float = 0.0
    windows: int = 0
    errors: int = 0
    latency_p99: float = 0.0
    constant: int = 0
    decisions: int = 0
    labels: dict[str, int] = {}
    delegate_fault: str = ""


class AnsweredTime:
    """The seconds in which windows were answered. One thread adds, anybody reads `seconds`.

    A gap between two answers counts up to FEW periods of the windows that were answered since the gap before, so that
    time in which the daemon, the sensor or the board stood still does not count. `period` is the seconds from one
    window to the next; None where no rate is stated, and then the median of the latest gaps stands for it.
    """

    def __init__(self, period: float | None = None) -> None:
        self.seconds = 0.0
        self._period = period
        self._gaps: deque[float] = deque(maxlen=_GAPS)
        self._since: float | None = None
        self._answers = 0

    def add(self, now: float) -> None:
        """Count an answer, given at `now` by a monotonic clock."""
        self._answers += 1
        if self._since is None:
            self._since, self._answers = now, 0
        gap = now - self._since
        if gap < GRAIN:
            return
        self.seconds += min(gap, FEW * self._covered())
        self._gaps.append(gap)
        self._since, self._answers = now, 0

    def _covered(self) -> float:
        """The seconds that the windows stand for that were answered since the last gap."""
        if self._period is not None:
            return self._answers * self._period
        return min(sorted(self._gaps)[len(self._gaps) // 2], MAX_PERIOD) if self._gaps else 0.0


class Watch(msgspec.Struct, frozen=True):
    """How it stands: "watching", "good", or "failed" for a reason."""

    state: Literal["watching", "good", "failed"]
    reason: str = ""


def judge(limits: Probation, seen: Observed, usual: Mapping[str, float] | None = None) -> Watch:
    """Hold what was seen against the limits, and labels against their `usual` shares.

    What can no longer be kept has failed; the end need not be waited for.
    """
    reason = _failure(limits, seen, usual or {})
    if reason:
        return Watch("failed", reason)
    over = seen.seconds >= limits.seconds and seen.windows - seen.errors >= limits.windows
    return Watch("good" if over else "watching")


def delegate_fault(standing: AcceleratorStatus, began: float, now: float) -> str:
    """What is wrong with the accelerator of a version, as far as that may be the version's doing; "" for nothing.

    It is not where there was trouble before the version `began` to serve, or where nothing is plugged in; and what is
    brought back soon is no trouble. Times are of one monotonic clock, in seconds.
    """
    if standing.reason == MISSING or standing.since < began:
        return ""
    lasting = standing.state == "degraded" and now - standing.since >= RECOVERY
    return standing.reason if lasting or standing.state == "quarantined" else ""


def label_shift(usual: Mapping[str, float], labels: Mapping[str, int]) -> float:
    """The share of windows that had to have another label for the labels to have their usual shares: 0 to 1."""
    total = sum(labels.values())
    if not total:
        return 0.0
    return sum(abs(usual.get(each, 0.0) - labels.get(each, 0) / total) for each in {*usual, *labels}) / 2


def _failure(limits: Probation, seen: Observed, usual: Mapping[str, float]) -> str:
    enough = seen.windows - seen.errors >= limits.windows
    over = enough and seen.seconds >= limits.seconds
    hours = max(seen.seconds, limits.seconds) / HOUR
    least, most = limits.min_decisions_per_hour, limits.max_decisions_per_hour
    if seen.delegate_fault:
        return seen.delegate_fault
    if seen.errors > limits.max_error_share * max(seen.windows, limits.windows):
        return f"{seen.errors} of {seen.windows} windows ended in an error or in NaN"
    if limits.constant_windows is not None and seen.constant >= limits.constant_windows:
        return f"its output was the same for {seen.constant} windows in a row"
    if enough and limits.max_latency_p99 is not None and seen.latency_p99 > limits.max_latency_p99:
        return f"its latency is {seen.latency_p99:.4g} s (p99), and {limits.max_latency_p99:g} s are allowed"
    if most is not None and seen.decisions > math.ceil(most * hours):
        return f"it decided {seen.decisions} times in {seen.seconds:.0f} s, and {most:g} an hour are allowed"
    shift = label_shift(usual, seen.labels)
    if over and limits.max_label_shift is not None and shift > limits.max_label_shift:
        return f"its labels are {shift:.0%} off their usual shares, and {limits.max_label_shift:.0%} are allowed"
    if over and least is not None and seen.decisions < math.floor(least * hours):
        return f"it decided {seen.decisions} times in {seen.seconds:.0f} s, and {least:g} an hour are expected"
    return ""
