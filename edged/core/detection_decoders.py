"""Decoders of detection models: from output tensors to candidates, boxes in the model's pixels with class and score.

Thousands of boxes are compared with a threshold as stored, before anything is dequantised; the few above it are then
compared exactly. A box has a single class, the best of those over their thresholds. However many boxes pass, at most
`MAX_CANDIDATES` are compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import inf, log, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edged.core import anchors
from edged.core.boxes import Floats, corners, from_centres, without_duplicates
from edged.core.detection_spec import (
    AnchorFile,
    AnchorGrid,
    AnchorTable,
    BoxDecoder,
    Fomo,
    SsdAnchors,
    SsdPostprocess,
    Yolov5,
    Yolov8,
    grid_layers,
    yolov8_axis,
)
from edged.core.errors import ConfigError, ModelError
from edged.core.outputs import BYTES, activate, all_sound, sound
from edged.core.tensors import dequantise
from edged.core.types import Arrays, TensorSpec

MAX_CANDIDATES = 300
"""Most boxes of which duplicates are sought, the best: the comparison of all pairs takes time by their square."""

_MAX_ENTRIES = 5000
"""Most scores to sort; of more, the best are found first."""

_MARGIN = 1e-3
"""Distance of a first threshold for logits below the exact one, which the activated score is compared with."""

_MAX_CELLS = 1000
"""Most cells of a grid that are joined to objects."""

Indices = NDArray[np.intp]


class Candidates(NamedTuple):
    """Boxes in the model's pixels, best first: corners, scores and numbers of classes."""

    boxes: Floats
    scores: Floats
    classes: Indices


Decode = Callable[[Arrays], Candidates]


def decoder(decoder: BoxDecoder, outputs: tuple[TensorSpec, ...], least: Floats, width: int, height: int) -> Decode:
    """Return the decoder of outputs for a model's picture of this size.

    `least` is the least score of each class, infinite for classes of no interest.
    """
    match decoder:
        case SsdPostprocess():
            return _SsdPostprocess(decoder, outputs, least, width, height)
        case SsdAnchors():
            return _SsdAnchors(decoder, outputs, least, width, height)
        case Yolov5():
            return _Yolov5(decoder, outputs, least, width, height)
        case Yolov8():
            return _Yolov8(decoder, outputs, least, width, height)
        case Fomo():
            return _Fomo(decoder, outputs, least, width, height)


class _Picked(NamedTuple):
    """Boxes over their thresholds, best first: indices, scores and classes."""

    rows: Indices
    scores: Floats
    classes: Indices


class _Threshold:
    """Comparison of scores, as stored, with the least score of each class.

    If scores are multiplied by weights, `greatest` is the greatest weight.
    """

    def __init__(self, spec: TensorSpec, activation: str, least: Floats, greatest: float = 1.0) -> None:
        self._spec = spec
        self._activation = activation
        self._least = least
        self._table: Floats | None = None
        lowest = float(least.min()) / greatest
        self._bar: Any = np.float32(lowest)
        if spec.dtype in BYTES and activation != "softmax":
            self._set_table(lowest)
        elif activation == "sigmoid":
            self._bar = np.float32(log(lowest / (1 - lowest)) - _MARGIN if 0 < lowest < 1 else inf if lowest else -inf)

    def _set_table(self, lowest: float) -> None:
        codes = np.arange(256, dtype=np.uint8).view(self._spec.numpy_dtype)
        self._table = activate(self._activation, dequantise(self._spec, codes))
        passing = codes[self._table >= np.float32(lowest)]
        self._bar = passing.min() if len(passing) else None

    def passing(self, stored: NDArray[Any]) -> Indices:
        """Return the indices, in memory order of a copy, of scores that may reach their threshold."""
        if self._table is None:
            if sound(float(stored.max(initial=-1e30))) < self._bar:
                return np.empty(0, np.intp)
        elif self._bar is None:
            return np.empty(0, np.intp)
        return np.flatnonzero(stored >= self._bar)

    def real(self, stored: NDArray[Any]) -> Floats:
        """Return the scores for stored values."""
        if self._table is not None:
            return self._table[stored.view(np.uint8)]
        return activate(self._activation, stored.astype(np.float32))

    def prepared(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return rows of scores in the form to compare: bytes as stored, other numbers real, softmax applied."""
        if self._table is not None or (stored.dtype == np.float32 and self._activation != "softmax"):
            return stored
        real = dequantise(self._spec, stored)
        return activate("softmax", real) if self._activation == "softmax" else real

    def pick(
        self,
        stored: NDArray[Any],
        weights: Floats | None = None,
        *,
        by_class: bool = False,
        most: int = MAX_CANDIDATES,
    ) -> _Picked:
        """Return the best boxes of scores with a row for each box, or for each class if `by_class`.

        `weights` are factors for the scores of each box.
        """
        stored = self.prepared(stored)
        entries = self.passing(stored)
        first, second = np.divmod(entries, stored.shape[1])
        values = stored[first, second]
        if len(entries) > _MAX_ENTRIES:
            best = np.argpartition(values, -_MAX_ENTRIES)[-_MAX_ENTRIES:]
            first, second, values = first[best], second[best], values[best]
        rows, classes = (second, first) if by_class else (first, second)
        scores = values if self._activation == "softmax" else self.real(values)
        if weights is not None:
            scores = scores * weights[rows]
        exact = np.flatnonzero(scores >= self._least[classes])
        order = exact[np.argsort(-scores[exact], kind="stable")]
        _, firsts = np.unique(rows[order], return_index=True)  # of a box over several thresholds, the best class
        firsts.sort()
        chosen = order[firsts[:most]]
        return _Picked(rows[chosen], scores[chosen], classes[chosen])


class _SsdPostprocess:
    def __init__(
        self, roles: SsdPostprocess, outputs: tuple[TensorSpec, ...], least: Floats, width: int, height: int
    ) -> None:
        self._roles = roles
        self._specs = outputs
        self._least = least
        self._size = (width, height) if roles.units == "fractions" else (1, 1)

    def __call__(self, outputs: Arrays) -> Candidates:
        roles = self._roles
        scores = self._real(outputs, roles.scores).reshape(-1)
        count = len(scores)
        if roles.count is not None:
            count = min(max(int(sound(self._real(outputs, roles.count).item())), 0), count)
        scores = scores[:count]
        all_sound(scores)
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= self._least.min()]
        numbers = self._real(outputs, roles.classes).reshape(-1)[order]
        all_sound(numbers)
        classes = numbers.astype(np.intp)
        strangers = (classes < 0) | (classes >= len(self._least))
        if strangers.any():
            raise ModelError(
                f"the model found class {classes[strangers][0]}, and its label map has {len(self._least)} classes",
                hint="complete `labels` in the manifest, or correct `label_offset`",
            )
        exact = scores[order] >= self._least[classes]
        order, classes = order[exact], classes[exact]
        boxes = self._real(outputs, roles.boxes).reshape(-1, 4)[order]
        all_sound(boxes)
        return Candidates(corners(boxes, roles.order, *self._size), scores[order], classes)

    def _real(self, outputs: Arrays, index: int) -> Floats:
        return dequantise(self._specs[index], outputs[index])


class _SsdAnchors:
    def __init__(
        self, heads: SsdAnchors, outputs: tuple[TensorSpec, ...], least: Floats, width: int, height: int
    ) -> None:
        self._heads = heads
        self._spec = outputs[heads.boxes]
        self._threshold = _Threshold(outputs[heads.scores], heads.activation, least)
        self._size = np.array((width, height), np.float32)
        self._scales = np.array(heads.scales, np.float32)
        found = anchor_boxes(heads.anchors, width, height)
        rows = prod(self._spec.shape[:-1])
        if len(found) != rows:
            raise ConfigError(
                f"{len(found)} anchors do not fit the {rows} boxes of the model",
                hint="correct `anchors` in the manifest",
            )
        self._anchors = found

    def __call__(self, outputs: Arrays) -> Candidates:
        heads = self._heads
        stored = outputs[heads.scores]
        picked = self._threshold.pick(stored.reshape(-1, stored.shape[-1]))
        boxes = self._boxes(outputs[heads.boxes], picked.rows)
        return _distinct(boxes, picked, heads.overlap)

    def _boxes(self, stored: NDArray[Any], rows: Indices) -> Floats:
        raw = dequantise(self._spec, stored.reshape(-1, stored.shape[-1])[rows, :4]) / self._scales
        if self._heads.order == "cycxhw":
            raw = raw[:, (1, 0, 3, 2)]
        anchors = self._anchors[rows]
        raw[:, :2] = raw[:, :2] * anchors[:, 2:] + anchors[:, :2]
        raw[:, 2:] = (np.exp(raw[:, 2:]) if self._heads.exponential else raw[:, 2:]) * anchors[:, 2:]
        raw[:, :2] *= self._size
        raw[:, 2:] *= self._size
        return from_centres(raw)


def anchor_boxes(origin: AnchorGrid | AnchorFile | AnchorTable, width: int, height: int) -> Floats:
    """Return the anchors: centre x, centre y, width and height in fractions of the picture.

    Raises:
        ConfigError: the file of the anchors has not been read.
    """
    match origin:
        case AnchorGrid():
            return anchors.generate(grid_layers(origin), height, width, origin.offset)[:, (1, 0, 3, 2)]
        case AnchorTable(rows=rows, order=order):
            boxes = corners(np.array(rows, np.float32), order, 1, 1)
            return np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), axis=1)
        case AnchorFile(file=file):
            raise ConfigError(f"the anchors in {file} are not known", hint="pack the model into a bundle: edgectl pack")


class _Yolov5:
    def __init__(self, spec: Yolov5, outputs: tuple[TensorSpec, ...], least: Floats, width: int, height: int) -> None:
        self._index = spec.output
        self._order = spec.order
        self._overlap = spec.overlap
        self._size = (width, height) if spec.units == "fractions" else (1, 1)
        self._spec = outputs[spec.output]
        greatest = 1.0
        if self._spec.dtype in BYTES:  # a quantised probability may be a little above 1
            limits = np.iinfo(self._spec.numpy_dtype)
            greatest = max(greatest, dequantise(self._spec, np.array([limits.max])).item())
        self._threshold = _Threshold(self._spec, "none", least, greatest)

    def __call__(self, outputs: Arrays) -> Candidates:
        stored = outputs[self._index]
        stored = self._threshold.prepared(stored.reshape(-1, stored.shape[-1]))
        rows = self._threshold.passing(stored[:, 4])
        weights = self._threshold.real(stored[rows, 4])
        picked = self._threshold.pick(stored[rows, 5:], weights)
        numbers = stored[rows[picked.rows], :4]
        real = dequantise(self._spec, numbers) if numbers.dtype == self._spec.numpy_dtype else numbers
        return _distinct(corners(real, self._order, *self._size), picked, self._overlap)


class _Yolov8:
    def __init__(self, spec: Yolov8, outputs: tuple[TensorSpec, ...], least: Floats, width: int, height: int) -> None:
        self._index = spec.output
        self._order = spec.order
        self._overlap = spec.overlap
        self._size = (width, height) if spec.units == "fractions" else (1, 1)
        self._spec = outputs[spec.output]
        self._values_first = yolov8_axis(self._spec.shape, len(least)) == 1
        self._threshold = _Threshold(self._spec, "none", least)

    def __call__(self, outputs: Arrays) -> Candidates:
        stored = outputs[self._index][0]
        if self._values_first:
            picked = self._threshold.pick(stored[4:], by_class=True)
            numbers = stored[:4, picked.rows].T
        else:
            picked = self._threshold.pick(stored[:, 4:])
            numbers = stored[picked.rows, :4]
        boxes = corners(dequantise(self._spec, numbers), self._order, *self._size)
        return _distinct(boxes, picked, self._overlap)


class _Fomo:
    """Objects from a grid: cells of a class that touch each other are an object, as strong as its best cell."""

    def __init__(self, spec: Fomo, outputs: tuple[TensorSpec, ...], least: Floats, width: int, height: int) -> None:
        self._index = spec.output
        tensor = outputs[spec.output]
        self._columns = tensor.shape[2]
        self._cell = width / tensor.shape[2], height / tensor.shape[1]
        self._threshold = _Threshold(tensor, "none", least)

    def __call__(self, outputs: Arrays) -> Candidates:
        stored = outputs[self._index]
        picked = self._threshold.pick(stored.reshape(-1, stored.shape[-1])[:, 1:], most=_MAX_CELLS)
        places = [divmod(row, self._columns) for row in picked.rows.tolist()]
        cells = dict(zip(places, picked.classes.tolist(), strict=True))
        starts, boxes = [], []
        for index, cell in enumerate(places):  # best first
            if cell in cells:
                starts.append(index)
                boxes.append(self._box(_neighbourhood(cells, cell)))
        return Candidates(np.array(boxes, np.float32).reshape(-1, 4), picked.scores[starts], picked.classes[starts])

    def _box(self, cells: list[tuple[int, int]]) -> tuple[float, float, float, float]:
        width, height = self._cell
        rows, columns = zip(*cells, strict=True)
        return min(columns) * width, min(rows) * height, (max(columns) + 1) * width, (max(rows) + 1) * height


def _neighbourhood(cells: dict[tuple[int, int], int], start: tuple[int, int]) -> list[tuple[int, int]]:
    """Take a cell and all connected cells of its class out of `cells`, and return them."""
    kind = cells.pop(start)
    found = [start]
    for row, column in found:  # grows while it is read
        for near in product((row - 1, row, row + 1), (column - 1, column, column + 1)):
            if cells.get(near) == kind:
                del cells[near]
                found.append(near)
    return found


def _distinct(boxes: Floats, picked: _Picked, overlap: float) -> Candidates:
    """Return candidates without duplicates. Raises ModelError for a box with NaN or infinity."""
    all_sound(boxes)
    kept = without_duplicates(boxes, picked.classes, overlap)
    return Candidates(boxes[kept], picked.scores[kept], picked.classes[kept])
