"""Rules for the health of a source: silence, garbage, flat lines, lost samples, drift, and retries.

Facts and times go in, a state and a reason come out; no function here reads a clock. A reason holds no changing number,
so that a state is reported once and its duration shows; changing figures are in the source's statistics.
"""

import math
from collections import deque
from itertools import pairwise
from math import inf
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edged.core.health import Health, HealthState

STABLE = 10.0
"""Seconds after which an opened source counts as having worked, so that the next retry is quick again."""

STALLED = "stalled"
"""Beginning of the reason of an open but silent source."""

DROPPED = "older pictures dropped"
"""Reason by which a source of pictures counts those it drops to hold a rate. They are no garbage."""

UNREADABLE = "unreadable pictures"
"""Reason by which pictures count that cannot be decoded."""

UNREADABLE_IN_A_ROW = 3
"""Number of unreadable pictures in a row that make a source of pictures unfit."""

_PERIOD = 10.0
_MARKS = 10
_SILENCE = 30.0
_CALM = 30.0

_Seconds = Annotated[float, Meta(gt=0, le=86_400)]
_Share = Annotated[float, Meta(ge=0, lt=1)]


class Supervision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of [sources.X.supervision]: signs of a source that is unwell, and the retries to open it.

    Keys:
        stall_after (s): Time without a sample after which the source counts as stalled. Default: 20 sample periods and
            at least 2 s; 30 s for a source that states no rate.
        flat_after (s): Time of bit-identical samples after which the source counts as flat-lined, as from a sensor that
            hangs; 0 for never.
        rate_tolerance (share): Largest difference between measured and stated rate; 0 for any. A source with another
            rate stays degraded until 30 s with the stated rate have passed.
        loss_tolerance (share): Largest share of samples that may be missing, beyond chance. A source with more losses
            stays degraded until 30 s with fewer have passed.
        retry_min (s): Time to the first retry; doubled with each further one.
        retry_max (s): Longest time between two retries.
    """

    stall_after: _Seconds | None = None
    flat_after: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    rate_tolerance: _Share = 0.1
    loss_tolerance: _Share = 0.01
    retry_min: _Seconds = 0.5
    retry_max: _Seconds = 30.0


class HealthVerdict(NamedTuple):
    """State with reason and remedy."""

    state: HealthState
    reason: str = ""
    hint: str = ""


def failure(source: str, health: Health) -> Health | None:
    """Return the health of a pipeline that gets no samples because of its source, or None if it gets samples."""
    if health.state == "degraded" and health.reason.startswith(STALLED):
        state: HealthState = "failed"
    elif health.state in ("failed", "stopped"):
        state = health.state
    else:
        return None
    reason = f"source {source!r}: {health.reason}" if health.reason else ""
    return Health(state, reason, health.hint, health.since)


class SourceHealth:
    """Health of a source since it was opened; `rate` is the stated rate, or None.

    Shares and the measured rate cover the last 10 s, or the last 50 samples of a slow source. A busy board reads late,
    and then much at once: rates are computed from the source's times of arrival, and a rate is a fault only if both
    the median and the overall rate are off. An `eventful` source is never silent, unless the options say so.
    """

    def __init__(
        self,
        supervision: Supervision,
        rate: float | None,
        now: float,
        *,
        eventful: bool = False,
        pictures: bool = False,
    ) -> None:
        self._supervision = supervision
        self._rate = rate
        self._eventful = eventful
        self._pictures = pictures
        usual = inf if eventful else max(2.0, 20 / rate) if rate else _SILENCE
        self._stall_after = supervision.stall_after or usual
        self._period = max(_PERIOD, 50 / rate) if rate else _PERIOD
        self._opened = now
        self._heard: float | None = None
        self._changed = now
        self._time = now
        self._samples = 0
        self._lost = 0
        self._faults = 0
        self._faults_before = 0
        self._marks: deque[_Totals] = deque([self._totals], maxlen=_MARKS + 1)
        self._marked = now
        self._losses = _LastingFault()
        self._drift = _LastingFault()

    def observe(
        self, samples: int, lost: int, faults: int, flat: bool, now: float, arrived: float | None = None
    ) -> None:
        """Record one read: number of samples (0 for none), lost samples before them, total faults, and flatness.

        `arrived` is the arrival of the last sample, by default `now`.
        """
        self._faults = faults
        if not samples:
            return
        heard, self._heard = self._heard, now
        resumed = heard is None or now - heard >= self._stall_after
        if resumed or not flat:
            self._changed = now
        self._time = now if arrived is None else arrived
        self._samples += samples
        self._lost += lost
        self._faults_before = faults
        if resumed:  # the backlog says nothing about the rate
            self._marks.clear()
        if resumed or self._time - self._marked >= self._period / _MARKS:
            self._marked = self._time
            self._marks.append(self._totals)

    @property
    def _totals(self) -> "_Totals":
        """The counts up to the last sample."""
        return _Totals(self._time, self._samples, self._lost, self._faults_before)

    @property
    def measured_rate(self) -> float | None:
        """Return the recent rate in samples per second, or None if less than a second was measured."""
        first, last = self._marks[0], self._totals
        return _rate(first, last) if last.time - first.time >= 1.0 else None

    def silent(self, now: float) -> bool:
        """Return whether the time without a sample makes the source stalled."""
        return now - (self._opened if self._heard is None else self._heard) >= self._stall_after

    def verdict(self, now: float) -> HealthVerdict:
        """Return the health: "starting" until the first sample, then "running" or "degraded"."""
        stalled = self.silent(now)
        if self._garbage(stalled):
            return HealthVerdict(
                "degraded",
                f"{STALLED}: only garbage arrives" if stalled else "mostly garbage",
                "check the camera and its connection; see rejected input in `edgectl sources`"
                if self._pictures
                else "check the format, and a port's baud and wiring; see rejected input in `edgectl sources`",
            )
        if stalled:
            return HealthVerdict(
                "degraded",
                f"{STALLED}: no sample for {self._stall_after:g} s",
                "check the sensor's power and cable; for a slow sensor, set supervision.stall_after",
            )
        if self._heard is None:
            return HealthVerdict("running" if self._eventful else "starting")
        if self._supervision.flat_after and self._heard - self._changed >= self._supervision.flat_after:
            return self._flat(self._supervision.flat_after)
        losses, drift = self._losses.held(self._lossy(now), now), self._drift.held(self._drifting(), now)
        return losses or drift or HealthVerdict("running")

    def _flat(self, seconds: float) -> HealthVerdict:
        if self._pictures:
            return HealthVerdict(
                "degraded",
                f"frozen: identical pictures for {seconds:g} s",
                "restart the camera; for a picture that may stay the same, set supervision.flat_after = 0",
            )
        return HealthVerdict(
            "degraded",
            f"flat-lined: identical samples for {seconds:g} s",
            "check the sensor; for a constant sensor, set supervision.flat_after = 0",
        )

    def _garbage(self, stalled: bool) -> bool:
        if stalled:
            return self._faults > self._totals.faults
        first = self._marks[0]
        return self._faults - first.faults > max(3, self._totals.samples - first.samples)

    def _lossy(self, now: float) -> HealthVerdict | None:
        """Return a verdict if more samples are lost than tolerated and, the first time, than chance explains.

        Losses by chance vary by the root of the number of losses.
        """
        first, last = self._marks[0], self._totals
        lost = last.lost - first.lost
        tolerated = self._supervision.loss_tolerance * (lost + last.samples - first.samples)
        chance = 0.0 if self._losses.lasts(now) else 3 * math.sqrt(tolerated)
        if lost <= tolerated + chance:
            return None
        return HealthVerdict(
            "degraded",
            f"more than {100 * self._supervision.loss_tolerance:.3g} % of the samples are lost",
            "check the sensor, the connection (a port's baud and cable) and the load of the board; or set "
            "supervision.loss_tolerance",
        )

    def _drifting(self) -> HealthVerdict | None:
        tolerance, stated, measured = self._supervision.rate_tolerance, self._rate, self.measured_rate
        if not tolerance or not stated or measured is None:
            return None
        if self._totals.time - self._marks[0].time < 0.8 * self._period:
            return None
        marks = pairwise((*self._marks, self._totals))
        mostly = float(np.median([_rate(before, after) for before, after in marks if before.time < after.time]))
        if not (min(measured, mostly) > stated * (1 + tolerance) or max(measured, mostly) < stated * (1 - tolerance)):
            return None
        return HealthVerdict(
            "degraded",
            f"samples arrive {'faster' if measured > stated else 'slower'} than the stated {stated:g} per second",
            "correct the source's rate or the sensor's, or set supervision.rate_tolerance",
        )


class _LastingFault:
    """Fault with an end after `_CALM` calm seconds, since figures near a limit cross the limit by chance."""

    def __init__(self) -> None:
        self._verdict: HealthVerdict | None = None
        self._until = -math.inf

    def held(self, verdict: HealthVerdict | None, now: float) -> HealthVerdict | None:
        """Return the verdict, or the last one while it lasts."""
        if verdict is not None:
            self._verdict, self._until = verdict, now + _CALM
        return self._verdict if self.lasts(now) else None

    def lasts(self, now: float) -> bool:
        """Return whether the fault lasts."""
        return now < self._until


class _Totals(NamedTuple):
    time: float
    samples: int
    lost: int
    faults: int


def _rate(before: _Totals, after: _Totals) -> float:
    return (after.samples - before.samples) / (after.time - before.time)


class FlatLine:
    """Detector of a stream without any change: every sample is bit-identical to the previous sample."""

    def __init__(self) -> None:
        self._last = b""

    def same(self, samples: NDArray[Any]) -> bool:
        """Return whether the samples (n, ...) are all equal to the last sample seen."""
        previous, data = self._last, samples.tobytes()
        self._last = data[-(len(data) // len(samples)) :]
        return data == previous * len(samples)


class Backoff:
    """Waiting times between attempts to open a source."""

    def __init__(self, supervision: Supervision) -> None:
        self._shortest = supervision.retry_min
        self._longest = max(supervision.retry_min, supervision.retry_max)
        self._next = self._shortest

    def delay(self, lived: float, luck: float) -> float:
        """Return the seconds to wait after a source worked for `lived` seconds; `luck` in [0, 1) adds jitter."""
        if lived >= STABLE:
            self._next = self._shortest
        step = self._next
        self._next = min(step * 2, self._longest)
        return step * (0.5 + luck / 2)
