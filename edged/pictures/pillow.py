"""Pillow, imported when a picture needs it: it belongs to the extra `image`, and most boards have no camera."""

from __future__ import annotations

import warnings
from math import ceil, floor
from typing import TYPE_CHECKING

from edged.core.errors import DeviceError
from edged.core.pictures import PictureForm, Scaling

if TYPE_CHECKING:
    from PIL import Image


warnings.filterwarnings("ignore", module=r"PIL\.")  # about pictures of strangers, refused or shown as faults anyway


def require_pillow() -> None:
    """Raise DeviceError with the remedy unless Pillow is installed. For the `open()` of a source."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            f"reading pictures takes Pillow, which cannot be imported: {error}", hint="pip install 'edged[image]'"
        ) from error


def resized(image: Image.Image, form: PictureForm, boxes: Scaling) -> Image.Image:
    """Return the box of an image that a form wants, scaled."""
    from PIL.Image import Resampling

    size = boxes.target[2] - boxes.target[0], boxes.target[3] - boxes.target[1]
    left, top, right, bottom = boxes.source
    whole = floor(left), floor(top), ceil(right), ceil(bottom)
    if whole != (0, 0, *image.size):  # a filter would also look at pixels outside the box
        image = image.crop(whole)
    box = left - whole[0], top - whole[1], right - whole[0], bottom - whole[1]
    match form.spec.filter:
        case "nearest":
            return image.resize(size, Resampling.NEAREST, box)
        case "area":
            return image.resize(size, Resampling.BOX, box)
        case "bilinear":
            return image.resize(size, Resampling.BILINEAR, box, reducing_gap=3.0)
