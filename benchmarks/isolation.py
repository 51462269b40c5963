"""CPU added to an inference by isolation in a child process, beside the same runner on the main thread.

Both processes are counted. The tiny model is a factory model; the large model takes a picture of 150 kB. The runners
take turns every few dozen milliseconds, so that a disturbance lasts longer than a turn.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from benchmarks.counters import cpu_seconds
from benchmarks.report import Figure, Skipped, Target
from benchmarks.throughput import MODELS
from edged.api import Runner
from edged.backends.isolated import Host
from edged.backends.tflite import TfliteBackend
from edged.models.store import FACTORY, Store
from edged.system.child import ResourceLimits

TURNS = 10
TURN_SECONDS = 0.05
LEASH = ResourceLimits(memory=1 << 30, niceness=0)


def measure(rounds: int, turns: int = TURNS) -> list[Figure | Skipped]:
    picture = MODELS / "mobilenet_v2_1.0_224_quant.tflite"
    tiny = _measure(
        "CPU of an inference on a tiny model, isolated or not", Store(FACTORY).find("motion").model, rounds, turns
    )
    tiny.targets.append(Target("a process adds at most 65 us", tiny.differences("process", "thread"), 65))
    name = "CPU of an inference on a picture of 150 kB, isolated or not"
    if not picture.exists():
        reason = f"{picture.name} is not there: set EDGED_TEST_MODELS to a folder of real models"
        return [tiny, Skipped(name, reason)]
    large = _measure(name, picture, rounds, turns)
    large.targets.append(Target("a process takes at most 1x", large.ratios("process", "thread"), 1.0))
    return [tiny, large]


def _measure(name: str, model: Path, rounds: int, turns: int) -> Figure:
    host = Host("bench", LEASH)
    runners: dict[str, Runner] = {
        "thread": TfliteBackend().load(model),
        "process": host.load(TfliteBackend(), model, deadline=60, load_seconds=60),
    }
    assert host.pid is not None
    begun = time.perf_counter()
    for runner in runners.values():
        _cpu(runner, 20, host.pid)
    inferences = max(1, round(TURN_SECONDS / (time.perf_counter() - begun) * 40))
    figure = Figure(name, "us", {variant: [] for variant in runners})
    for _ in range(rounds):
        seconds = dict.fromkeys(runners, 0.0)
        for _ in range(turns):
            for variant, runner in runners.items():
                seconds[variant] += _cpu(runner, inferences, host.pid)
        for variant, spent in seconds.items():
            figure.variants[variant].append(spent / turns / inferences * 1e6)
    for runner in runners.values():
        runner.close()
    return figure


def _cpu(runner: Runner, inferences: int, child: int) -> float:
    """Return the seconds of CPU of both processes."""
    (spec,) = runner.inputs
    inputs = [np.random.default_rng(0).integers(0, 100, spec.shape).astype(spec.dtype)]
    begun = time.process_time() + cpu_seconds(child)
    for _ in range(inferences):
        runner.run(inputs)
    return time.process_time() + cpu_seconds(child) - begun
