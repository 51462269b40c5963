"""Pictures as files and cameras send them: JPEG, PNG, BMP, GIF and WebP, decoded by Pillow.

The head of a picture is checked before anything is decoded, since a few bytes may claim gigabytes of pixels. A JPEG is
decoded at the smallest scale that has a pixel for each pixel wanted (Pillow's draft mode), which takes a fraction of
the time and the memory. A JPEG of more than `MAX_DECODED` pixels is decoded at half the scale at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edged.core.errors import DeviceError, PictureError
from edged.core.pictures import PictureForm, Placement, place, scaling
from edged.core.types import DrawnBox
from edged.pictures.drawing import jpeg_of
from edged.pictures.fitting import finished
from edged.pictures.pillow import require_pillow, resized

if TYPE_CHECKING:
    from PIL import Image

MAX_BYTES = 64 << 20
"""Maximum number of bytes of an encoded picture."""

MAX_PIXELS = 64_000_000
"""Maximum number of pixels that the head of a picture may state."""

MAX_DECODED = 24_000_000
"""Maximum number of pixels to decode. A larger picture must be a JPEG, which can be decoded at a smaller scale."""

SUFFIXES = (".bmp", ".gif", ".jpg", ".jpeg", ".png", ".webp")
"""Endings of the names of pictures."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
_SCALES = (8, 4, 2)  # of libjpeg, as divisors
_ORIENTATION = 0x0112  # the Exif tag
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""Pillow's name of the turn that makes a picture of an orientation upright; orientation 1 is upright."""

_FIRST_ON_ITS_SIDE = 5
"""First orientation that exchanges width and height."""


class _Head(NamedTuple):
    width: int
    height: int
    turn: str
    is_plain_jpeg: bool


class EncodedPicture:
    """Picture in the bytes of a file, decoded when wanted. Turns stated by Exif are obeyed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._known: _Head | None = None
        self._fitted: dict[PictureForm, NDArray[np.uint8]] = {}

    @property
    def width(self) -> int:
        """Return the width of the upright picture. Raises PictureError."""
        return self._head.width

    @property
    def height(self) -> int:
        """Return the height of the upright picture. Raises PictureError."""
        return self._head.height

    def fitted(self, form: PictureForm) -> NDArray[np.uint8]:
        """Return the pixels in a form, decoded when first wanted. Raises PictureError."""
        found = self._fitted.get(form)
        if found is None:
            found = self._fitted[form] = self._fit(form)
        return found

    def placement(self, form: PictureForm) -> Placement:
        """Return the place of a form in this picture. Raises PictureError."""
        return place(form, self.width, self.height)

    def jpeg(self, boxes: Sequence[DrawnBox] = (), max_width: int = 0) -> bytes:
        """Return the picture as a JPEG; the bytes as received, if no change is needed. Raises PictureError."""
        head = self._head
        width = min(max_width or head.width, head.width)
        if not boxes and width == head.width and head.is_plain_jpeg:
            return self._data
        with _guarded():
            return jpeg_of(self._decoded("RGB", head.width / width), head.width, boxes, width)

    @property
    def _head(self) -> _Head:
        if self._known is None:
            with _guarded():
                self._known = _head(_opened(self._data))
        return self._known

    def _fit(self, form: PictureForm) -> NDArray[np.uint8]:
        width, height = self.width, self.height
        source, target = boxes = scaling(form, width, height)
        reduction = min(
            (source[2] - source[0]) / (target[2] - target[0]), (source[3] - source[1]) / (target[3] - target[1])
        )
        with _guarded():
            image = self._decoded("L" if form.spec.colour == "gray" else "RGB", reduction)
            x, y = image.width / width, image.height / height
            decoded = source[0] * x, source[1] * y, min(source[2] * x, image.width), min(source[3] * y, image.height)
            scaled = resized(image, form, boxes._replace(source=decoded))
            return finished(np.asarray(scaled), form, boxes, width, height)

    def _decoded(self, mode: str, reduction: float) -> Image.Image:
        """Return the upright picture in a mode, with at least 1/`reduction` of the pixels in each direction."""
        from PIL.Image import Transpose

        image = _opened(self._data)
        turn = _head(image).turn
        stated = image.size
        if image.format in ("JPEG", "MPO"):
            # Even for a small region: a picture that one pipeline cannot have is lost to all pipelines of the source.
            least = 2 if image.width * image.height > MAX_DECODED else 1
            scale = next((each for each in _SCALES if each <= reduction), least)
            image.draft(mode, (image.width // scale, image.height // scale))
        # libjpeg holds the coefficients of a progressive picture in full, whatever the scale.
        width, height = stated if image.info.get("progressive") else image.size
        if width * height > MAX_DECODED:
            raise _too_large(f"{width} x {height}")
        upright = _in_mode(image, mode)
        return upright.transpose(Transpose[turn]) if turn else upright


@contextmanager
def _guarded() -> Iterator[None]:
    """Make any exception of Pillow a PictureError: a broken picture may raise many kinds."""
    try:
        yield
    except DeviceError:
        raise
    except Exception as error:
        raise _undecodable(str(error)) from error


def _undecodable(reason: str) -> PictureError:
    return PictureError(
        f"a picture cannot be decoded: {reason}"[:200], hint="check that the camera or the program sends whole pictures"
    )


def _opened(data: bytes) -> Image.Image:
    """Return an image whose head is read and whose pixels are not decoded yet."""
    require_pillow()
    from PIL import Image, UnidentifiedImageError

    if len(data) > MAX_BYTES:
        raise PictureError(
            f"a picture has more than {MAX_BYTES >> 20} MiB",
            hint="have the camera or the program send smaller pictures",
        )
    if data[:4] == b"RIFF":
        import_module("PIL.WebPImagePlugin")  # Pillow itself imports all plug-ins to find this one
    try:
        image = Image.open(BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise _undecodable("no JPEG, PNG, BMP, GIF or WebP") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(str(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(f"{image.width} x {image.height}")
    return image


def _too_large(size: str) -> PictureError:
    return PictureError(
        f"a picture has too many pixels ({size}): {MAX_PIXELS // 1_000_000} megapixels are allowed, and "
        f"{MAX_DECODED // 1_000_000} if it is not a baseline JPEG to be decoded at a smaller scale",
        hint="have the camera or the program send smaller pictures",
    )


def _head(image: Image.Image) -> _Head:
    orientation = _orientation(image)
    width, height = image.size if orientation < _FIRST_ON_ITS_SIDE else image.size[::-1]
    turn = _TURNS.get(orientation, "")
    return _Head(width, height, turn, image.format == "JPEG" and image.mode in ("L", "RGB") and not turn)


def _orientation(image: Image.Image) -> int:
    """Return the orientation stated by Exif, 1 for an upright picture."""
    if "exif" not in image.info:  # asking a PNG would decode the pixels, in search of a late Exif block
        return 1
    try:
        stated = image.getexif().get(_ORIENTATION)
    except Exception:  # a broken block, which may raise many kinds, states nothing
        return 1
    return stated if stated in _TURNS else 1


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return the first frame in the mode "RGB" or "L". Transparency is ignored, as by the tools that train models."""
    from PIL import Image as Images

    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip instead of scaling
        return Images.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(mode)
    image.load()
    return image if image.mode == mode else image.convert(mode)
