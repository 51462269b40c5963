"""Inferences per second on picture models, from a chunk of a source to an encoded message, beside the bare interpreter.

The variants take turns every few dozen milliseconds, so that a disturbance lasts longer than a turn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.bare import Bare
from benchmarks.inline import Counter, pipeline, served
from benchmarks.report import Figure, Skipped, Target
from edged.api import Chunk
from edged.models.bundle import derive

MODELS = Path(os.environ.get("EDGED_TEST_MODELS", Path(__file__).parents[2] / "shared" / "models"))

TURNS = 10
TURN_SECONDS = 0.1


def measure(rounds: int, turns: int = TURNS) -> list[Figure | Skipped]:
    return [
        _measure("of about 1 ms", MODELS / "mobilenet_v1_0.25_128_quant.tflite", 0.9, rounds, turns),
        _measure("of about 10 ms", MODELS / "mobilenet_v2_1.0_224_quant.tflite", 0.98, rounds, turns),
    ]


def _measure(cost: str, model: Path, limit: float, rounds: int, turns: int) -> Figure | Skipped:
    name = f"throughput on a model {cost}"
    if not model.exists():
        return Skipped(name, f"{model.name} is not there: set EDGED_TEST_MODELS to a folder of real models")
    bundle = derive(model)
    shape = bundle.manifest.window.shape
    pictures = np.random.default_rng(0).integers(0, 256, (8, 1, *shape), np.uint8)  # as chunks of one sample
    bare = Bare(model)
    bare.run(pictures, 5)
    inferences = max(1, round(TURN_SECONDS / _wall(lambda: bare.run(pictures, 20)) * 20))
    outbox = Counter()
    flow = pipeline(bundle, outbox, capacity=4)
    flow.serve(served(bundle))

    def edged() -> None:
        outbox.expect(inferences)
        for number in range(inferences):
            flow.push(Chunk(pictures[number % len(pictures)], time.monotonic()))
        outbox.wait()

    edged()
    figure = Figure(name, "inferences/s", {"bare": [], "edged": []})
    for _ in range(rounds):
        seconds = {"bare": 0.0, "edged": 0.0}
        for _ in range(turns):
            seconds["bare"] += _wall(lambda: bare.run(pictures, inferences))
            seconds["edged"] += _wall(edged)
        for variant, spent in seconds.items():
            figure.variants[variant].append(turns * inferences / spent)
    flow.stop()
    flow.join(10)
    figure.targets.append(Target(f"edged at least {limit}x bare", figure.ratios("edged", "bare"), limit, at_least=True))
    return figure


def _wall(run: Callable[[], None]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun
