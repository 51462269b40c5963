"""Pictures as devices and programs give them uncompressed: RGB, gray, and YUYV of webcams.

Scaling by "nearest" takes numpy alone; the other filters take Pillow. YUYV is scaled plane by plane before its colours
are computed, since there are fewer pixels afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edged.core.pictures import PictureForm, Placement, Scaling, place, scaling
from edged.core.types import DrawnBox
from edged.pictures.drawing import jpeg_of
from edged.pictures.fitting import finished, gray
from edged.pictures.pillow import require_pillow, resized

Pixels8 = NDArray[np.uint8]


class RawPicture:
    """Picture of uint8 pixels that nobody writes to.

    The shape is (height, width, 3) for "rgb", (height, width) for "gray", and (height, width, 2) of an even width for
    "yuyv", in which two pixels share their colour.
    """

    def __init__(self, pixels: NDArray[np.uint8], colour: Literal["rgb", "gray", "yuyv"]) -> None:
        self._pixels = pixels
        self._colour = colour
        self._fitted: dict[PictureForm, NDArray[np.uint8]] = {}

    @property
    def width(self) -> int:
        """Return the width in pixels."""
        return int(self._pixels.shape[1])

    @property
    def height(self) -> int:
        """Return the height in pixels."""
        return int(self._pixels.shape[0])

    def fitted(self, form: PictureForm) -> NDArray[np.uint8]:
        """Return the pixels in a form, scaled when first wanted. Raises DeviceError if that takes a missing Pillow."""
        found = self._fitted.get(form)
        if found is None:
            found = self._fitted[form] = self._fit(form)
        return found

    def placement(self, form: PictureForm) -> Placement:
        """Return the place of a form in this picture."""
        return place(form, self.width, self.height)

    def jpeg(self, boxes: Sequence[DrawnBox] = (), max_width: int = 0) -> bytes:
        """Return the picture as a JPEG. Raises DeviceError without Pillow."""
        require_pillow()
        from PIL import Image

        planes = [np.ascontiguousarray(plane) for plane in self._planes(wants_gray=False)]
        if self._colour == "yuyv":
            planes[1:] = [np.repeat(plane, 2, axis=1) for plane in planes[1:]]
        pixels = self._in_colour(planes, wants_gray=False)
        return jpeg_of(Image.fromarray(pixels), self.width, boxes, min(max_width or self.width, self.width))

    def _fit(self, form: PictureForm) -> NDArray[np.uint8]:
        wants_gray = form.spec.colour == "gray"
        boxes = scaling(form, self.width, self.height)
        scaled = [self._scaled(plane, form, boxes) for plane in self._planes(wants_gray)]
        return finished(self._in_colour(scaled, wants_gray), form, boxes, self.width, self.height)

    def _planes(self, wants_gray: bool) -> list[NDArray[np.uint8]]:
        """Return the arrays to scale: brightness and the two colours of YUYV, half as wide, or else all pixels."""
        if self._colour != "yuyv":
            return [self._pixels]
        colours = [] if wants_gray else [self._pixels[:, 0::2, 1], self._pixels[:, 1::2, 1]]
        return [self._pixels[..., 0], *colours]

    def _scaled(self, plane: NDArray[np.uint8], form: PictureForm, boxes: Scaling) -> NDArray[np.uint8]:
        part = plane.shape[1] / self.width
        left, top, right, bottom = boxes.source
        source = left * part, top, right * part, bottom
        if form.spec.filter == "nearest":
            columns = _nearest(source[0], source[2], boxes.target[2] - boxes.target[0], plane.shape[1])
            rows = _nearest(source[1], source[3], boxes.target[3] - boxes.target[1], plane.shape[0])
            return plane[rows[:, None], columns]
        require_pillow()
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(plane))
        return np.asarray(resized(image, form, boxes._replace(source=source)))

    def _in_colour(self, planes: list[NDArray[np.uint8]], wants_gray: bool) -> NDArray[np.uint8]:
        if self._colour == "yuyv":
            return _full_range(planes[0]) if wants_gray else _rgb(*planes)
        if self._colour == "rgb":
            return gray(planes[0]) if wants_gray else planes[0]
        return planes[0] if wants_gray else np.repeat(planes[0][..., None], 3, axis=2)


def _nearest(low: float, high: float, count: int, size: int) -> NDArray[np.intp]:
    """Return the pixels below the middles of `count` equal parts of the line from `low` to `high`."""
    middles = low + (np.arange(count) + 0.5) * ((high - low) / count)
    return np.minimum(middles.astype(np.intp), size - 1)


def _full_range(luma: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the brightness of webcams, 16 to 235, as 0 to 255."""
    return np.clip((luma.astype(np.int32) - 16) * 255 // 219, 0, 255).astype(np.uint8)


def _rgb(luma: NDArray[np.uint8], blue: NDArray[np.uint8], red: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return RGB of YUV by ITU-R 601 in the range of webcams, in fixed point of 8 bits."""
    y = (luma.astype(np.int32) - 16) * 298 + 128
    u, v = blue.astype(np.int32) - 128, red.astype(np.int32) - 128
    channels = (y + 409 * v) >> 8, (y - 100 * u - 208 * v) >> 8, (y + 516 * u) >> 8
    return np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)
