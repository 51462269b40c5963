"""Rule for "segmentation": the class of each pixel, and the share of the picture by class."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edged.core.label_set import LabelSetDecider
from edged.core.manifest_outcomes import SegmentPicture
from edged.core.manifest_parts import Decision
from edged.core.masks import NONE, ClassMap, SegmentMask
from edged.core.outputs import all_sound
from edged.core.pictures import Placement, Polygon, scaling
from edged.core.tensors import dequantise
from edged.core.types import Arrays, Prepared, Score, Segmentation, TensorSpec


class SegmentRule:
    """Shares of the picture by class, and the mask."""

    def __init__(
        self, segment: SegmentPicture, outputs: tuple[TensorSpec, ...], labels: tuple[str, ...], decision: Decision
    ) -> None:
        """Raise ConfigError if the decision and the labels contradict each other."""
        axes = segment.axes(outputs[segment.output].shape)
        assert axes is not None, "the manifest is checked"
        self._segment = segment
        self._spec = outputs[segment.output]
        self._height, self._width, self._classes = axes
        self._labels = labels
        self._decider = LabelSetDecider(decision, labels)
        self._placement: Placement | None = None
        self._seen = _seen(None, self._height, self._width)
        self.reset = self._decider.reset

    def __call__(self, outputs: Arrays, prepared: Prepared, time: float, placement: Placement | None) -> Segmentation:
        """Return the shares of a window, and the mask."""
        classes = self._classes_of(outputs[self._segment.output])
        seen = self._seen_in(placement)
        classes[~seen.pixels] = NONE
        counts = np.bincount(classes.reshape(-1), minlength=NONE + 1)[: len(self._labels)]
        shares = (counts * (100 / max(1, seen.total))).astype(np.float32)
        over = np.flatnonzero(shares >= self._decider.thresholds).tolist()
        changed = self._decider.update(shares, over, time)
        order = [index for index in np.argsort(-shares, kind="stable").tolist() if counts[index]]
        scores = tuple(Score(self._labels[index], shares.item(index)) for index in order)
        mask = SegmentMask(classes[seen.rows, seen.columns], self._labels, seen.box, seen.picture)
        return Segmentation(scores, self._decider.decided, changed, mask)

    def _seen_in(self, placement: Placement | None) -> _Seen:
        """Return the part of the mask that shows the picture; a camera's pictures all have the same placement."""
        if placement != self._placement:
            self._placement, self._seen = placement, _seen(placement, self._height, self._width)
        return self._seen

    def _classes_of(self, stored: NDArray[Any]) -> ClassMap:
        """Return a new array with the class of each pixel."""
        if self._segment.form == "classes":
            numbers = dequantise(self._spec, stored) if self._spec.scale else stored
            numbers = numbers.reshape(self._height, self._width)
            known = (numbers >= 0) & (numbers < len(self._labels))  # NaN is unknown
            return np.where(known, numbers, NONE).astype(np.uint8)
        if stored.dtype.kind == "f":
            all_sound(stored)
        if self._classes == 1:
            real = dequantise(self._spec, stored.reshape(self._height, self._width))
            return (real >= np.float32(self._segment.least)).astype(np.uint8)
        if self._segment.layout == "nchw":
            best = stored.reshape(self._classes, self._height, self._width).argmax(axis=0)
        else:
            best = stored.reshape(self._height, self._width, self._classes).argmax(axis=2)
        return np.asarray(best, np.uint8)


class _Seen(NamedTuple):
    """Part of the mask that shows the source's picture, neither padded nor masked.

    `rows` and `columns` cut away the padding, and `box` is the place of the rest in the source's picture.
    """

    pixels: NDArray[np.bool_]
    total: int
    rows: slice
    columns: slice
    box: tuple[float, float, float, float] | None
    picture: tuple[int, int] | None


def _seen(placement: Placement | None, height: int, width: int) -> _Seen:
    """Return the part of a mask of this size. The centre of a pixel decides."""
    if placement is None or placement.form is None:
        pixels = np.ones((height, width), bool)
        return _Seen(pixels, pixels.size, slice(height), slice(width), None, None)
    form = placement.form
    left, top, right, bottom = scaling(form, placement.width, placement.height).target
    across, down = form.spec.width / width, form.spec.height / height
    x, y = (np.arange(width) + 0.5) * across, (np.arange(height) + 0.5) * down
    columns, rows = _span((x > left) & (x < right)), _span((y > top) & (y < bottom))
    pixels = np.zeros((height, width), bool)
    pixels[rows, columns] = True
    for polygon in form.mask:
        pixels &= ~_inside(
            polygon,
            (placement.left + placement.x_scale * x) / placement.width,
            (placement.top + placement.y_scale * y) / placement.height,
        )
    box = placement.box(columns.start * across, rows.start * down, columns.stop * across, rows.stop * down)
    return _Seen(pixels, int(pixels.sum()), rows, columns, box, (placement.width, placement.height))


def _span(inside: NDArray[np.bool_]) -> slice:
    found = np.flatnonzero(inside).tolist()
    return slice(found[0], found[-1] + 1) if found else slice(0, 0)


def _inside(polygon: Polygon, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return for each row of `y` and column of `x` if an odd number of edges is left of the point: it is inside."""
    odd = np.zeros((len(y), len(x)), bool)
    for (x1, y1), (x2, y2) in zip(polygon, (*polygon[1:], polygon[0]), strict=True):
        if y1 != y2:
            crossed = (y1 > y) != (y2 > y)
            odd ^= crossed[:, None] & (x[None, :] > (x1 + (y - y1) * (x2 - x1) / (y2 - y1))[:, None])
    return odd
