"""Anchors of SSD models, made from the parameters used by TensorFlow and MediaPipe.

An anchor is a box from which a model states offsets: centre y, centre x, height and width, in fractions of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import ceil, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_REDUCED = ((0.1, 1.0), (None, 2.0), (None, 0.5))
"""Scale and aspect ratio of the boxes of a reduced first layer; None stands for the scale of the layer."""


class Layer(NamedTuple):
    """Grid of cells of `stride` pixels, and height and width of the boxes of each cell."""

    stride: float
    sizes: tuple[tuple[float, float], ...]


def layers(
    strides: Sequence[float],
    min_scale: float,
    max_scale: float,
    aspect_ratios: Sequence[float],
    *,
    interpolated: bool,
    reduced: bool,
    fixed_size: bool,
) -> list[Layer]:
    """Return the layers for these parameters; consecutive layers of the same stride become a layer."""
    last = len(strides) - 1
    scales = (
        [min_scale + (max_scale - min_scale) * index / last for index in range(len(strides))]
        if last
        else [(min_scale + max_scale) / 2]
    )

    def sizes(index: int) -> list[tuple[float, float]]:
        if index == 0 and reduced:
            found = [(scale or scales[0], ratio) for scale, ratio in _REDUCED]
        else:
            found = [(scales[index], ratio) for ratio in aspect_ratios]
            if interpolated:
                following = scales[index + 1] if index < last else 1.0
                found.append((sqrt(scales[index] * following), 1.0))
        return [(1.0, 1.0) if fixed_size else (scale / sqrt(ratio), scale * sqrt(ratio)) for scale, ratio in found]

    return [
        Layer(stride, tuple(size for index in group for size in sizes(index)))
        for stride, group in groupby(range(len(strides)), key=strides.__getitem__)
    ]


def count(of: Sequence[Layer], height: int, width: int) -> int:
    """Return the number of anchors for a picture of this size."""
    return sum(ceil(height / layer.stride) * ceil(width / layer.stride) * len(layer.sizes) for layer in of)


def generate(of: Sequence[Layer], height: int, width: int, offset: float = 0.5) -> NDArray[np.float32]:
    """Return the anchors, row by row of each layer; `offset` is the centre within a cell."""
    parts = []
    for layer in of:
        rows, columns = ceil(height / layer.stride), ceil(width / layer.stride)
        part = np.empty((rows, columns, len(layer.sizes), 4))
        part[..., 0] = ((np.arange(rows) + offset) / rows)[:, None, None]
        part[..., 1] = ((np.arange(columns) + offset) / columns)[None, :, None]
        part[..., 2:] = layer.sizes
        parts.append(part.reshape(-1, 4))
    return np.concatenate(parts).astype(np.float32)
