"""Geometry of pictures: the picture a model takes, and the way from a source's picture to it and back.

A region of the source's picture is scaled to the model's size, in one of three ways. A `Placement` leads from a pixel
of the model's picture back to the source's picture, whichever the way.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, floor
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

Pixels = Annotated[int, Meta(ge=1, le=16_384)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Point = tuple[Fraction, Fraction]
Region = tuple[Fraction, Fraction, Fraction, Fraction]
Polygon = Annotated[tuple[Point, ...], Meta(min_length=3, max_length=64)]
Mask = Annotated[tuple[Polygon, ...], Meta(max_length=32)]

WHOLE: Region = (0.0, 0.0, 1.0, 1.0)


class PictureSpec(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, repr_omit_defaults=True
):
    """Picture that a model takes. A source's picture of any size becomes a picture of this size.

    Keys:
        width (pixels): Width, as in `window.sample_shape`.
        height (pixels): Height, as in `window.sample_shape`.
        colour: Order of the values of a pixel: "rgb", "bgr", or "gray" for a single value.
        fit: Way of scaling. "stretch" changes the ratio of the sides; "letterbox" keeps the ratio and pads; "crop"
            keeps the ratio and cuts the longer side on both ends.
        pad: Value of padded and masked pixels, 0 to 255.
        filter: Filter of scaling: "nearest", "bilinear", or "area" for the mean.
        layout: Order of the tensor's axes: "nhwc", channels last, or "nchw", channels first.
    """

    width: Pixels
    height: Pixels
    colour: Literal["rgb", "bgr", "gray"] = "rgb"
    fit: Literal["stretch", "letterbox", "crop"] = "stretch"
    pad: Annotated[int, Meta(ge=0, le=255)] = 0
    filter: Literal["nearest", "bilinear", "area"] = "bilinear"
    layout: Literal["nhwc", "nchw"] = "nhwc"

    @property
    def channels(self) -> int:
        """Number of values of a pixel."""
        return 1 if self.colour == "gray" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a fitted picture, whatever the tensor's layout."""
        return self.height, self.width, self.channels


class PictureForm(msgspec.Struct, frozen=True):
    """Picture that a pipeline wants of a source: pipelines of the same form share one scaled picture.

    `region` is the part of the source's picture to scale: left, top, right and bottom. `mask` are polygons to paint
    over. Both are in fractions of the source's picture, so that another resolution of the camera changes nothing.
    """

    spec: PictureSpec
    region: Region = WHOLE
    mask: Mask = ()


class Placement(NamedTuple):
    """Place of the model's picture in the source's picture of `width` x `height` pixels.

    A pixel x of the model is at `left + x_scale * x` in the source's picture, and y likewise. `form` is the form of the
    model's picture; None for a placement without a picture.
    """

    width: int
    height: int
    left: float
    top: float
    x_scale: float
    y_scale: float
    form: PictureForm | None = None

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of a point of the model's picture in the source's picture, clipped to the picture."""
        return (
            min(max(self.left + self.x_scale * x, 0.0), float(self.width)),
            min(max(self.top + self.y_scale * y, 0.0), float(self.height)),
        )

    def box(self, left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        """Return the place of a box of the model's picture in the source's picture, clipped to the picture."""
        return *self.point(left, top), *self.point(right, bottom)


class Scaling(NamedTuple):
    """Box of the source's picture to scale, and the box of the model's picture to fill with it, in pixels.

    Boxes are left, top, right and bottom.
    """

    source: tuple[float, float, float, float]
    target: tuple[int, int, int, int]


def scaling(form: PictureForm, width: int, height: int) -> Scaling:
    """Return the boxes for a source's picture of `width` x `height` pixels. The region grows to whole pixels."""
    spec = form.spec
    left, right = _whole(form.region[0], form.region[2], width)
    top, bottom = _whole(form.region[1], form.region[3], height)
    across, down = (right - left) / spec.width, (bottom - top) / spec.height
    if spec.fit == "crop":
        scale = min(across, down)
        x_cut = max(0.0, (right - left - spec.width * scale) / 2)
        y_cut = max(0.0, (bottom - top - spec.height * scale) / 2)
        return Scaling((left + x_cut, top + y_cut, right - x_cut, bottom - y_cut), (0, 0, spec.width, spec.height))
    if spec.fit == "letterbox":
        scale = max(across, down)
        filled_x, filled_y = max(1, round((right - left) / scale)), max(1, round((bottom - top) / scale))
        x_pad, y_pad = (spec.width - filled_x) // 2, (spec.height - filled_y) // 2
        return Scaling((left, top, right, bottom), (x_pad, y_pad, x_pad + filled_x, y_pad + filled_y))
    return Scaling((left, top, right, bottom), (0, 0, spec.width, spec.height))


def place(form: PictureForm, width: int, height: int) -> Placement:
    """Return the place of a form in a source's picture of `width` x `height` pixels."""
    source, target = scaling(form, width, height)
    x_scale = (source[2] - source[0]) / (target[2] - target[0])
    y_scale = (source[3] - source[1]) / (target[3] - target[1])
    return Placement(
        width, height, source[0] - x_scale * target[0], source[1] - y_scale * target[1], x_scale, y_scale, form
    )


def _whole(low: float, high: float, size: int) -> tuple[int, int]:
    """Return the whole pixels, at least one, that hold the part from `low` to `high` of a side."""
    first = min(floor(low * size), size - 1)
    return first, min(max(ceil(high * size), first + 1), size)


def default_spec(shape: tuple[int, ...]) -> PictureSpec | None:
    """Return the picture for samples of a shape: stretched, RGB or gray; None if the samples are no pictures."""
    match shape:
        case (height, width) | (height, width, 1):
            return PictureSpec(width=width, height=height, colour="gray")
        case (height, width, 3):
            return PictureSpec(width=width, height=height)
    return None


@lru_cache(maxsize=32)
def masked_pixels(form: PictureForm, width: int, height: int) -> NDArray[np.bool_] | None:
    """Return the pixels of the model's picture, (height, width), whose middle is in the mask; None without a mask.

    `width` and `height` are those of the source's picture.
    """
    if not form.mask:
        return None
    placement = place(form, width, height)
    x = (placement.left + placement.x_scale * (np.arange(form.spec.width) + 0.5)) / width
    y = (placement.top + placement.y_scale * (np.arange(form.spec.height) + 0.5)) / height
    masked = np.zeros((form.spec.height, form.spec.width), np.bool_)
    for polygon in form.mask:
        masked |= _inside(polygon, x, y)
    masked.flags.writeable = False
    return masked


def _inside(polygon: Polygon, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the points of a grid that a line to the left enters an odd number of times: those within the polygon."""
    inside = np.zeros((len(y), len(x)), np.bool_)
    for (x0, y0), (x1, y1) in zip(polygon, (*polygon[1:], polygon[0]), strict=True):
        rows = np.flatnonzero((y0 > y) != (y1 > y))
        crossings = x0 + (y[rows] - y0) * (x1 - x0) / (y1 - y0 or 1.0)
        inside[rows] ^= x > crossings[:, None]
    return inside
