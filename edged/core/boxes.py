"""Geometry of boxes: corners from other forms, overlap, suppression of duplicates, and points in polygons.

A box is left, top, right and bottom.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def corners(numbers: Floats, order: str, width: float, height: float) -> Floats:
    """Return boxes in corners from rows of four numbers in another order, scaled by `width` and `height`."""
    if order in ("yxyx", "cycxhw"):
        numbers = numbers[:, (1, 0, 3, 2)]
    scaled = numbers * np.array((width, height, width, height), np.float32)
    return scaled if order in ("yxyx", "xyxy") else from_centres(scaled)


def from_centres(boxes: Floats) -> Floats:
    """Return corners from centre x, centre y, width and height."""
    half = boxes[:, 2:] * np.float32(0.5)
    return np.concatenate((boxes[:, :2] - half, boxes[:, :2] + half), axis=1)


def without_duplicates(boxes: Floats, classes: NDArray[np.intp], overlap: float) -> list[int]:
    """Return the indices of the boxes to keep, of boxes in descending order of their scores.

    A box is dropped if the intersection over union with a kept box of the same class is more than `overlap`.
    """
    left, top, right, bottom = np.ascontiguousarray(boxes.T)
    shared = _shared_sides(left, right) * _shared_sides(top, bottom)
    areas = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    bars = shared > np.float32(overlap) * (areas[:, None] + areas - shared)
    bars &= classes[:, None] == classes
    kept, barred = [], 0
    for index, row in enumerate(np.packbits(bars, axis=1, bitorder="little")):  # a whole number for each row of bits
        if not barred >> index & 1:
            kept.append(index)
            barred |= int.from_bytes(row.tobytes(), "little")
    return kept


def _shared_sides(low: Floats, high: Floats) -> Floats:
    """Return the length that each pair of sides has in common."""
    shared: Floats = np.minimum(high[:, None], high)
    shared -= np.maximum(low[:, None], low)
    return np.maximum(shared, 0, out=shared)


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the intersection over union of two boxes; 0 for boxes without area."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - shared)


def is_inside(x: float, y: float, polygon: Sequence[tuple[float, float]]) -> bool:
    """Return whether a point is in a polygon: a ray to the right crosses an odd number of its edges."""
    inside = False
    before_x, before_y = polygon[-1]
    for corner_x, corner_y in polygon:
        if (corner_y > y) != (before_y > y):
            crossing = corner_x + (y - corner_y) / (before_y - corner_y) * (before_x - corner_x)
            inside ^= x < crossing
        before_x, before_y = corner_x, corner_y
    return inside
