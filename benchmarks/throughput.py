"""Inferences per second on picture models, from a chunk of a source to an encoded message, beside the bare interpreter.

The variants take turns every few dozen milliseconds, so that a disturbance lasts longer than a turn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.bare import Bare
from benchmarks.inline import Counter, pipeline, served
from benchmarks.report import Figure, Skipped, Target
from edged.api import Chunk
from edged.models.bundle import Bundle, derive

MODELS = Path(os.environ.get("EDGED_TEST_MODELS", Path(__file__).parents[2] / "shared" / "models"))

IN_PLACE, QUEUED = "edged", "edged, queued"
"""A brisk model is served on the thread of the source. Queued windows, as for the second of two pipelines, are served
by the worker while the source goes on.
"""

TURNS = 10
TURN_SECONDS = 0.1


def measure(rounds: int, turns: int = TURNS) -> list[Figure | Skipped]:
    return [
        _measure("of about 1 ms", "mobilenet_v1_0.25_128_quant", {IN_PLACE: 0.9, QUEUED: 0.95}, rounds, turns),
        _measure("of about 10 ms", "mobilenet_v2_1.0_224_quant", {IN_PLACE: 0.98}, rounds, turns),
    ]


def _measure(cost: str, title: str, limits: dict[str, float], rounds: int, turns: int) -> Figure | Skipped:
    name, model = f"throughput on a model {cost}", MODELS / f"{title}.tflite"
    if not model.exists():
        return Skipped(name, f"{model.name} is not there: set EDGED_TEST_MODELS to a folder of real models")
    bundle = derive(model)
    shape = bundle.manifest.window.shape
    pictures = np.random.default_rng(0).integers(0, 256, (8, 1, *shape), np.uint8)  # as chunks of one sample
    bare = Bare(model)
    bare.run(pictures, 5)
    inferences = max(1, round(TURN_SECONDS / _wall(lambda: bare.run(pictures, 20)) * 20))
    flows = {IN_PLACE: Flow(bundle, in_place=True), QUEUED: Flow(bundle, in_place=False)}
    runs = {"bare": bare.run} | {variant: flow.run for variant, flow in flows.items()}
    for run in runs.values():
        run(pictures, inferences)  # to warm up
    figure = Figure(name, "inferences/s", {variant: [] for variant in runs})
    for _ in range(rounds):
        seconds = dict.fromkeys(runs, 0.0)
        for _ in range(turns):
            for variant, run in runs.items():
                seconds[variant] += _wall(lambda: run(pictures, inferences))  # noqa: B023
        for variant, spent in seconds.items():
            figure.variants[variant].append(turns * inferences / spent)
    for flow in flows.values():
        flow.stop()
    for variant, limit in limits.items():
        if variant == IN_PLACE or (os.cpu_count() or 1) > 1:
            promise = f"{variant} at least {limit}x bare"
            figure.targets.append(Target(promise, figure.ratios(variant, "bare"), limit, at_least=True))
    return figure


class Flow:
    """A pipeline that counts its messages; in place, brisk models serve on the thread that pushes."""

    def __init__(self, bundle: Bundle, *, in_place: bool) -> None:
        self._outbox = Counter()
        self._pipeline = pipeline(bundle, self._outbox, capacity=4)
        self._pipeline.in_place = in_place
        self._pipeline.serve(served(bundle))

    def run(self, pictures: NDArray[np.uint8], times: int) -> None:
        """Push as many chunks, with the pictures in turn, and wait for the last message."""
        self._outbox.expect(times)
        for number in range(times):
            self._pipeline.push(Chunk(pictures[number % len(pictures)], time.monotonic()))
        self._outbox.wait()

    def stop(self) -> None:
        """End the pipeline."""
        self._pipeline.stop()
        self._pipeline.join(10)


def _wall(run: Callable[[], None]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun
