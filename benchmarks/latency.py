"""Latency, losses and CPU from the wire of a sensor to a subscriber, through real processes and a real broker.

Each result is matched to the last sample of the window. A slow variant loses samples, since the buffer of the port
overflows. Beside other work means a busy process on each core.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from benchmarks.counters import cpu_seconds
from benchmarks.processes import BROKER, broker, other_work
from benchmarks.report import Figure, Skipped, Target
from benchmarks.wire import Variant, running, variants

QUIET_SLOW, QUIET_FAST, BUSY_FAST = "at 100 Hz", "at 1 kHz", "at 1 kHz beside other work"
RATES = {QUIET_SLOW: 100, QUIET_FAST: 1000, BUSY_FAST: 1000}

SETTLE_SECONDS = 0.5
"""Time after the last sample for results under way, with the CPU time of these results."""


class Passage(NamedTuple):
    """Outcome at one rate: sorted latencies in seconds, share of samples without a result, CPU seconds a second."""

    latencies: list[float]
    lost: float
    cpu: float


def measure(rounds: int, seconds: float = 4.0) -> list[Figure | Skipped]:
    if BROKER is None:
        return [Skipped("sensor to subscriber", "mosquitto is not installed")]
    passages: dict[str, dict[str, list[Passage]]] = {}
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name, broker(Path(name)) as port:
        programs = variants(Path(name), port)
        for _ in range(rounds):
            for who, variant in programs.items():
                for when, passage in _watch(variant, Path(name), port, seconds).items():
                    passages.setdefault(when, {}).setdefault(who, []).append(passage)
    return [figure for when, found in passages.items() for figure in _figures(when, found)]


def _watch(variant: Variant, folder: Path, port: int, seconds: float) -> dict[str, Passage]:
    """Play to one process at every rate."""
    sent: dict[str, dict[int, float]] = {}
    spent: dict[str, float] = {}
    with running(variant, folder, port) as (process, sensor, listener):
        for when, rate in RATES.items():
            with other_work() if when == BUSY_FAST else nullcontext():
                before = cpu_seconds(process.pid)
                sent[when] = sensor.play(rate, seconds)
                time.sleep(SETTLE_SECONDS)
                spent[when] = cpu_seconds(process.pid) - before
        heard = {variant.sample(result): when for when, result in listener.stop()}
    return {when: _passage(sent[when], heard, spent[when] / seconds) for when in RATES}


def _passage(sent: dict[int, float], heard: dict[int, float], cpu: float) -> Passage:
    latencies = sorted(heard[number] - when for number, when in sent.items() if number in heard)
    return Passage(latencies, 1 - len(latencies) / len(sent), cpu)


def _figures(when: str, passages: dict[str, list[Passage]]) -> list[Figure]:
    def figure(name: str, unit: str, of: Callable[[Passage], float]) -> Figure:
        return Figure(
            f"{name} {when}", unit, {who: [of(each) for each in each_round] for who, each_round in passages.items()}
        )

    median = figure("sensor to subscriber, p50", "ms", lambda passage: _percentile(passage.latencies, 50) * 1e3)
    tail = figure("sensor to subscriber, p99", "ms", lambda passage: _percentile(passage.latencies, 99) * 1e3)
    lost = figure("samples without a result", "%", lambda passage: passage.lost * 100)
    cpu = figure("CPU of the whole process", "% of a core", lambda passage: passage.cpu * 100)
    if when == QUIET_SLOW:
        _at_most(0.65, median)
        _at_most(0.6, cpu)
    elif when == QUIET_FAST:
        _at_most(0.5, tail)
        _at_most(0.45, cpu)
    else:
        _at_most(0.15, tail)
    if when == BUSY_FAST:
        return [median, tail, lost]
    lost.targets.append(Target("edged loses none", lost.variants["edged"], 0))
    return [median, tail, lost, cpu]


def _at_most(limit: float, figure: Figure) -> None:
    figure.targets.append(Target(f"edged at most {limit}x script", figure.ratios("edged", "script"), limit))


def _percentile(ordered: list[float], share: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)] if ordered else float("nan")
