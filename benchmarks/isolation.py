"""CPU added to an inference by isolation in a child process, beside the same runner on the main thread.

Both processes are counted, and pinned: where the kernel puts them decides about half of the cost. On one core, a turn
is two switches of the core; on two, it is two wakes, dearer if a core sleeps meanwhile. A daemon gets either from one
inference to the next. The tiny model is a factory model; the large model takes a picture of 150 kB. The variants take
turns every few dozen milliseconds, so that a disturbance lasts longer than a turn.
"""

from __future__ import annotations

import os
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


ALONE, ONE, TWO = "thread", "process on the same core", "process on another core"


def measure(rounds: int, turns: int = TURNS) -> list[Figure | Skipped]:
    picture = MODELS / "mobilenet_v2_1.0_224_quant.tflite"
    tiny = _measure(
        "CPU of an inference on a tiny model, isolated or not", Store(FACTORY).find("motion").model, rounds, turns
    )
    for variant in _processes(tiny):
        tiny.targets.append(Target(f"a {variant} adds at most 65 us", tiny.differences(variant, ALONE), 65))
    name = "CPU of an inference on a picture of 150 kB, isolated or not"
    if not picture.exists():
        reason = f"{picture.name} is not there: set EDGED_TEST_MODELS to a folder of real models"
        return [tiny, Skipped(name, reason)]
    large = _measure(name, picture, rounds, turns)
    for variant in _processes(large):
        large.targets.append(Target(f"a {variant} takes at most 1x", large.ratios(variant, ALONE), 1.0))
    return [tiny, large]


def _processes(figure: Figure) -> list[str]:
    return [variant for variant in figure.variants if variant != ALONE]


def _measure(name: str, model: Path, rounds: int, turns: int) -> Figure:
    cores = sorted(os.sched_getaffinity(0))
    host = Host("bench", LEASH)
    alone = TfliteBackend().load(model)
    isolated = host.load(TfliteBackend(), model, deadline=60, load_seconds=60)
    assert host.pid is not None
    variants = {ALONE: (alone, cores[0]), ONE: (isolated, cores[0])}
    if len(cores) > 1:
        variants[TWO] = (isolated, cores[1])
    figure = Figure(name, "us", {variant: [] for variant in variants})
    os.sched_setaffinity(0, {cores[0]})
    try:
        begun = time.perf_counter()
        for runner, core in variants.values():
            _cpu(runner, 20, host.pid, core)
        inferences = max(1, round(TURN_SECONDS / (time.perf_counter() - begun) * 20 * len(variants)))
        for _ in range(rounds):
            seconds = dict.fromkeys(variants, 0.0)
            for _ in range(turns):
                for variant, (runner, core) in variants.items():
                    seconds[variant] += _cpu(runner, inferences, host.pid, core)
            for variant, spent in seconds.items():
                figure.variants[variant].append(spent / turns / inferences * 1e6)
    finally:
        os.sched_setaffinity(0, cores)
    for runner in (alone, isolated):
        runner.close()
    return figure


def _cpu(runner: Runner, inferences: int, child: int, core: int) -> float:
    """Return the seconds of CPU of both processes, with the child on a core."""
    os.sched_setaffinity(child, {core})
    (spec,) = runner.inputs
    inputs = [np.random.default_rng(0).integers(0, 100, spec.shape).astype(spec.dtype)]
    runner.run(inputs)  # the child moves to the core
    begun = time.process_time() + cpu_seconds(child)
    for _ in range(inferences):
        runner.run(inputs)
    return time.process_time() + cpu_seconds(child) - begun
