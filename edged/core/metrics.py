"""Metrics of the daemon, and their text in Prometheus' exposition format, version 0.0.4.

Names follow Prometheus: `edged_`, base units, and `_total`, `_seconds`, `_bytes`, `_ratio` or `_info` at the end.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Literal, NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper bounds of the buckets in seconds: from a tiny model on a fast core to a camera model on a slow one."""

_RING = 1024


class Sample(NamedTuple):
    """Value of a metric. `suffix` is appended to a histogram's family name: "_bucket", "_sum" or "_count"."""

    value: float
    labels: Mapping[str, str] = {}
    suffix: str = ""


class Family(NamedTuple):
    """Metric with a name and a meaning."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: Iterable[Sample]


class LatencyHistogram:
    """Durations: percentiles of the last 1024, and a histogram of all. One thread adds."""

    def __init__(self) -> None:
        self._ring = array("d", bytes(8 * _RING))
        self._added = 0
        self._counts = [0] * (len(BOUNDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Add one duration."""
        self._ring[self._added % _RING] = seconds
        self._added += 1
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._sum += seconds

    def percentiles(self) -> dict[str, float | None]:
        """Return the p50, p90 and p99 of the last durations in seconds; None before the first."""
        recent = sorted(self._ring[: min(self._added, _RING)])
        return {f"p{share}": _percentile(recent, share) for share in (50, 90, 99)}

    def histogram(self, labels: Mapping[str, str]) -> list[Sample]:
        """Return the samples of a family of kind "histogram"."""
        below = list(accumulate(self._counts))  # one copy, so that the last bucket and the count agree
        bounds = [*(_number(bound) for bound in BOUNDS), "+Inf"]
        buckets = [
            Sample(count, {**labels, "le": bound}, "_bucket") for bound, count in zip(bounds, below, strict=True)
        ]
        return [*buckets, Sample(self._sum, labels, "_sum"), Sample(below[-1], labels, "_count")]


def render(families: Iterable[Family]) -> str:
    """Return the families as a page for Prometheus."""
    return "".join(f"{line}\n" for family in families for line in _lines(family))


def _lines(family: Family) -> Iterable[str]:
    yield f"# HELP {family.name} {_escape(family.help)}"
    yield f"# TYPE {family.name} {family.kind}"
    for sample in family.samples:
        yield f"{family.name}{sample.suffix}{_labels(sample.labels)} {_number(sample.value)}"


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{name}="{_escape(value, quotes=True)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escape(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(int(value)) if value == int(value) else repr(value)


def _percentile(ordered: list[float], share: int) -> float | None:
    """Return the nearest-rank percentile: the least value not exceeded by `share` per cent."""
    return ordered[math.ceil(len(ordered) * share / 100) - 1] if ordered else None
