"""Probation: check of a new version in service against the limits in its manifest."""

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
"""Maximum number of periods between two answers for the whole gap to count."""

GRAIN = 0.1
"""Answers within this time, in seconds, are counted together."""

MAX_PERIOD = 60.0
"""Longest period, in seconds, estimated from gaps if no rate is stated."""

_GAPS = 15

RECOVERY = 60.0
"""Time, in seconds, that an accelerator may take to recover before the trouble counts against the version."""


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """Behaviour of a version since the start of service in this run of the daemon.

    `seconds` is the time in which windows were answered: see AnsweredTime. `errors` counts the `windows` that ended in
    an error or in NaN, `constant` the latest consecutive identical outputs, `decisions` the decisions let through, and
    `labels` the windows by best label. `latency_p99` is in seconds, 0 while unknown. `delegate_fault` is the fault of
    the version's accelerator, or "".
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
    """Time in which windows were answered. One thread adds; any thread may read `seconds`.

    A gap between two answers counts up to FEW periods of the windows answered since the previous gap, so that
    standstills of the daemon, the sensor or the board do not count. `period` is the time from one window to the next in
    seconds; if None, the median of the latest gaps is used.
    """

    def __init__(self, period: float | None = None) -> None:
        self.seconds = 0.0
        self._period = period
        self._gaps: deque[float] = deque(maxlen=_GAPS)
        self._since: float | None = None
        self._answers = 0

    def add(self, now: float) -> None:
        """Count an answer at `now`, a time of a monotonic clock."""
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
        """Return the seconds covered by the windows answered since the last gap."""
        if self._period is not None:
            return self._answers * self._period
        return min(sorted(self._gaps)[len(self._gaps) // 2], MAX_PERIOD) if self._gaps else 0.0


class Watch(msgspec.Struct, frozen=True):
    """State of a probation: "watching", "good", or "failed" for a reason."""

    state: Literal["watching", "good", "failed"]
    reason: str = ""


def judge(limits: Probation, seen: Observed, usual: Mapping[str, float] | None = None) -> Watch:
    """Compare a version with its limits, and the labels with their `usual` shares.

    A limit that can no longer be kept fails the probation at once.
    """
    reason = _failure(limits, seen, usual or {})
    if reason:
        return Watch("failed", reason)
    over = seen.seconds >= limits.seconds and seen.windows - seen.errors >= limits.windows
    return Watch("good" if over else "watching")


def delegate_fault(status: AcceleratorStatus, began: float, now: float) -> str:
    """Return the fault of a version's accelerator as far as the version may have caused the fault, else "".

    A fault older than the start of service at `began`, a missing device, and a short recovery do not count. Times are
    seconds of one monotonic clock.
    """
    if status.reason == MISSING or status.since < began:
        return ""
    lasting = status.state == "degraded" and now - status.since >= RECOVERY
    return status.reason if lasting or status.state == "quarantined" else ""


def label_shift(usual: Mapping[str, float], labels: Mapping[str, int]) -> float:
    """Return the share of windows, 0 to 1, that would need another label for the labels to have their usual shares."""
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
        return f"the output was the same for {seen.constant} windows in a row"
    if enough and limits.max_latency_p99 is not None and seen.latency_p99 > limits.max_latency_p99:
        return f"the latency is {seen.latency_p99:.4g} s (p99), and {limits.max_latency_p99:g} s are allowed"
    if most is not None and seen.decisions > math.ceil(most * hours):
        return f"{seen.decisions} decisions were made in {seen.seconds:.0f} s, and {most:g} an hour are allowed"
    shift = label_shift(usual, seen.labels)
    if over and limits.max_label_shift is not None and shift > limits.max_label_shift:
        return f"the labels are {shift:.0%} off their usual shares, and {limits.max_label_shift:.0%} are allowed"
    if over and least is not None and seen.decisions < math.floor(least * hours):
        return f"{seen.decisions} decisions were made in {seen.seconds:.0f} s, and {least:g} an hour are expected"
    return ""
