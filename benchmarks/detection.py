"""Warm CPU from the outputs of a detection model to its outcome: decoding, suppression of duplicates, zones, decision.

The outputs are made up, with 60 scores over the threshold as in a lively picture, and with 10,000 as from a model gone
wrong. The least of several blocks counts, since other work on the machine can only add.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Figure, Skipped, Target
from edged.core.detection_spec import AnchorGrid, BoxDecoder, DetectObjects, ObjectDecision, SsdAnchors, Yolov5, Yolov8
from edged.core.manifest import SCHEMA, File, Input, Manifest, WindowSpec
from edged.core.postprocess import Postprocessor
from edged.core.types import TensorSpec

BLOCKS, RUNS = 7, 10
LIVELY, WRONG = 60, 10_000
LIMIT = 2.0

SSD, YOLO = "outcome of an SSD of 1,917 anchors and 90 classes", "outcome of a YOLO of 8,400 boxes and 80 classes"


class Case(NamedTuple):
    """Decoder, made-up outputs of a model, number of classes, and side of the model's picture."""

    decoder: BoxDecoder
    outputs: list[NDArray[np.float32]]
    classes: int
    side: int


def measure(rounds: int, runs: int = RUNS) -> list[Figure | Skipped]:
    figures = [_figure(SSD, _ssd, rounds, runs), _figure(YOLO, _yolo, rounds, runs)]
    return [figure for pair in figures for figure in pair]


def _figure(name: str, cases: Callable[[int], dict[str, Case]], rounds: int, runs: int) -> tuple[Figure, Figure]:
    lively, wrong = Figure(name, "ms", {}), Figure(f"{name}, {WRONG:,} over the threshold", "ms", {})
    for figure, over in ((lively, LIVELY), (wrong, WRONG)):
        stages = {
            f"{kind}, {dtype}": _stage(case, dtype)
            for kind, case in cases(over).items()
            for dtype in ("float32", "int8")
        }
        for _ in range(rounds):
            for variant, stage in stages.items():
                figure.variants.setdefault(variant, []).append(_least(stage, runs))
    slowest = [max(values) for values in zip(*lively.variants.values(), strict=True)]
    lively.targets.append(Target(f"at most {LIMIT:g} ms, whatever the decoder", slowest, LIMIT))
    return lively, wrong


def _ssd(over: int) -> dict[str, Case]:
    random = np.random.default_rng(0)
    scores = random.random((1, 1917, 91), np.float32) * 0.3
    scores.reshape(-1)[random.choice(scores.size, over, replace=False)] = 0.75
    boxes = random.standard_normal((1, 1917, 4), np.float32)
    anchors = AnchorGrid(strides=(16, 32, 64, 100, 150, 300))
    return {"ssd_anchors": Case(SsdAnchors(anchors=anchors, activation="none"), [boxes, scores], 91, 300)}


def _yolo(over: int) -> dict[str, Case]:
    random = np.random.default_rng(0)
    rows = random.random((8400, 84), np.float32)
    rows[:, 2:4] *= 0.2
    rows[:, 4:] *= 0.3
    lively = random.choice(8400, min(over, 8400), replace=False)
    rows[lively, 4 + random.integers(0, 80, len(lively))] = 0.5 + 0.4 * random.random(len(lively), np.float32)
    with_objects = np.insert(rows, 4, rows[:, 4:].max(axis=1), axis=1)
    return {
        "yolov8, boxes last": Case(Yolov8(), [np.ascontiguousarray(rows.T)[None]], 80, 640),
        "yolov8, boxes first": Case(Yolov8(), [rows[None]], 80, 640),
        "yolov5": Case(Yolov5(), [with_objects[None]], 80, 640),
    }


def _stage(case: Case, dtype: str) -> Callable[[], object]:
    """Return a function that postprocesses the outputs once, as of a model of this type."""
    scale, zero_point = (1 / 255, -128) if dtype == "int8" else (0.0, 0)
    outputs: list[NDArray[Any]] = []
    specs = []
    for index, real in enumerate(case.outputs):
        outputs.append(np.rint(real / scale + zero_point).clip(-128, 127).astype(np.int8) if scale else real)
        specs.append(TensorSpec(name=f"y{index}", shape=real.shape, dtype=dtype, scale=scale, zero_point=zero_point))
    shape = (case.side, case.side, 3)
    manifest = Manifest(
        schema=SCHEMA,
        name="find",
        version="1",
        files={"model.tflite": File(bytes=1, sha256="0" * 64)},
        window=WindowSpec(length=1, hop=1, sample_shape=shape, dtype="uint8"),
        inputs=(Input(tensor=TensorSpec(name="x", shape=(1, *shape), dtype="uint8")),),
        outputs=tuple(specs),
        labels=tuple(f"label {index}" for index in range(case.classes)),
        postprocess=DetectObjects(decoder=case.decoder, decision=ObjectDecision(threshold=0.4)),
    )
    postprocess = Postprocessor(manifest, None)
    return lambda: postprocess(outputs, None, 0.0)


def _least(stage: Callable[[], object], runs: int) -> float:
    """Return the CPU of a call in milliseconds, in the best of several blocks."""
    blocks = []
    for _ in range(BLOCKS):
        begun = time.thread_time()
        for _ in range(runs):
            stage()
        blocks.append(time.thread_time() - begun)
    return min(blocks) / runs * 1e3
