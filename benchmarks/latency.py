"""Latency, losses and CPU from the wire of a sensor to a subscriber, through real processes and a real broker.

A window ends with every sample, and each result is matched to the sample that completed its window. Results of the
script carry the number of the sample. Results of edged number the windows; the first window ends with the sample
LENGTH - 1. A variant that is too slow loses the samples that overflow the buffer of the port.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.processes import (
    BAUD,
    BROKER,
    Listener,
    Sensor,
    broker,
    cpu_seconds,
    edged_command,
    hasty_motion,
    program,
    script_command,
)
from benchmarks.report import Figure, Skipped, Target

RATES = (100, 1000)

CONFIG = """
[device]
name = "bench"
[mqtt]
host = "127.0.0.1"
port = {broker}
[sources.wrist]
kind = "serial"
port = "{port}"
baud = {baud}
columns = ["seq", "ax", "ay", "az", "gx", "gy", "gz"]
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
sequence = "seq"
[models.motion]
path = "{model}"
[pipelines.motion]
source = "wrist"
model = "motion"
queue = 64  # windows; at 1 kHz the usual 4 are 4 ms, and a busy machine's threads wait longer for their turn
"""


class Passage(NamedTuple):
    """Outcome at one rate: sorted latencies in seconds, share of samples without a result, CPU seconds a second."""

    latencies: list[float]
    lost: float
    cpu: float


def measure(rounds: int, seconds: float = 4.0) -> list[Figure | Skipped]:
    if BROKER is None:
        return [Skipped("sensor to subscriber", "mosquitto is not installed")]
    passages: dict[str, dict[int, list[Passage]]] = {name: {rate: [] for rate in RATES} for name in ("script", "edged")}
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name, broker(Path(name)) as port:
        folder = Path(name)
        model, length = hasty_motion(folder)
        for _ in range(rounds):
            for variant, watch in (("script", _watch_script), ("edged", _watch_edged)):
                for rate, passage in watch(folder, model, length, port, seconds).items():
                    passages[variant][rate].append(passage)
    return [
        figure for rate in RATES for figure in _figures(rate, {name: found[rate] for name, found in passages.items()})
    ]


def _watch_script(folder: Path, model: Path, length: int, port: int, seconds: float) -> dict[int, Passage]:
    def command(sensor: Sensor) -> list[str]:
        return script_command(model / "model.tflite", sensor, port, "motion/result")

    return _watch(folder, port, "motion/result", command, lambda result: result["seq"], seconds)


def _watch_edged(folder: Path, model: Path, length: int, port: int, seconds: float) -> dict[int, Passage]:
    def command(sensor: Sensor) -> list[str]:
        return edged_command(folder, CONFIG.format(broker=port, port=sensor.port, baud=BAUD, model=model))

    topic = "edged/bench/pipelines/motion/result"
    return _watch(folder, port, topic, command, lambda result: result["seq"] + length - 1, seconds)


def _watch(
    folder: Path,
    port: int,
    topic: str,
    command: Callable[[Sensor], list[str]],
    sample: Callable[[dict[str, Any]], int],
    seconds: float,
) -> dict[int, Passage]:
    """Play to one process at every rate; `sample` returns the number of the sample behind a result."""
    sent: dict[int, dict[int, float]] = {}
    spent: dict[int, float] = {}
    with ExitStack() as running:
        sensor = Sensor()
        running.callback(sensor.close)
        listener = Listener(port, topic)
        process = running.enter_context(program(command(sensor), folder / "variant.log"))
        sensor.await_reader()
        sensor.play(RATES[0], 0.6)  # to fill the first window, and to warm up
        for rate in RATES:
            before = cpu_seconds(process.pid)
            sent[rate] = sensor.play(rate, seconds)
            time.sleep(0.2)  # the rate includes messages still under way
            spent[rate] = cpu_seconds(process.pid) - before
        heard = {sample(result): when for when, result in listener.stop()}
        if sensor.next - 1 not in heard and not sensor.overruns:
            raise RuntimeError(f"the last sample has no result: {(folder / 'variant.log').read_text()[-2000:]}")
    return {rate: _passage(sent[rate], heard, spent[rate] / seconds) for rate in RATES}


def _passage(sent: dict[int, float], heard: dict[int, float], cpu: float) -> Passage:
    latencies = sorted(heard[number] - when for number, when in sent.items() if number in heard)
    return Passage(latencies, 1 - len(latencies) / len(sent), cpu)


def _figures(rate: int, passages: dict[str, list[Passage]]) -> list[Figure]:
    def figure(name: str, unit: str, of: Callable[[Passage], float]) -> Figure:
        return Figure(
            f"{name} at {rate} Hz",
            unit,
            {who: [of(each) for each in each_round] for who, each_round in passages.items()},
        )

    median = figure("sensor to subscriber, p50", "ms", lambda passage: _percentile(passage.latencies, 50) * 1e3)
    tail = figure("sensor to subscriber, p99", "ms", lambda passage: _percentile(passage.latencies, 99) * 1e3)
    lost = figure("samples without a result", "%", lambda passage: passage.lost * 100)
    cpu = figure("CPU of the whole process", "% of a core", lambda passage: passage.cpu * 100)
    lost.targets.append(Target("edged loses none", lost.variants["edged"], 0))
    cpu.targets.append(Target("edged at most 0.7x script", cpu.ratios("edged", "script"), 0.7))
    if rate == RATES[0]:
        median.targets.append(Target("edged at most 0.7x script", median.ratios("edged", "script"), 0.7))
    else:
        tail.targets.append(Target("edged at most 0.25x script", tail.ratios("edged", "script"), 0.25))
    return [median, tail, lost, cpu]


def _percentile(ordered: list[float], share: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)] if ordered else float("nan")
