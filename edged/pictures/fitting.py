"""The last steps of every fitted picture: padding, the order of colours, and the mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edged.core.pictures import PictureForm, Scaling, masked_pixels


def finished(
    scaled: NDArray[np.uint8], form: PictureForm, boxes: Scaling, width: int, height: int
) -> NDArray[np.uint8]:
    """Return the picture of a form from the scaled pixels (height, width[, channels]), which are RGB or gray.

    `width` and `height` are those of the source's picture.
    """
    spec = form.spec
    pixels = scaled.reshape(*scaled.shape[:2], spec.channels)
    if spec.colour == "bgr":
        pixels = pixels[..., ::-1]
    mask = masked_pixels(form, width, height)
    if mask is None and pixels.shape == spec.shape:
        return np.ascontiguousarray(pixels)
    left, top, right, bottom = boxes.target
    picture = np.full(spec.shape, spec.pad, np.uint8)
    picture[top:bottom, left:right] = pixels
    if mask is not None:
        picture[mask] = spec.pad
    return picture


def gray(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the luma (ITU-R 601) of RGB pixels, rounded as Pillow does."""
    luma = rgb @ np.array([19595, 38470, 7471], np.uint32) + 0x8000
    return (luma >> 16).astype(np.uint8)
