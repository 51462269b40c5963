"""JPEGs for people: a picture with boxes drawn into it."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from edged.core.types import DrawnBox

if TYPE_CHECKING:
    from PIL import Image, ImageFont

QUALITY = 80
"""Quality of the JPEG, of at most 95."""

_FRAME = (255, 64, 0)
_TEXT = (255, 255, 255)
_LONGEST = 60


def jpeg_of(image: Image.Image, source_width: int, boxes: Sequence[DrawnBox], width: int) -> bytes:
    """Return a JPEG of `width` pixels, with boxes in the pixels of a source's picture of `source_width`.

    `image` is the source's picture in RGB, of any size.
    """
    height = max(1, round(image.height * width / image.width))
    if image.size != (width, height):
        image = image.resize((width, height), reducing_gap=3.0)
    if boxes:
        _draw(image, boxes, width / source_width)
    file = BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _draw(image: Image.Image, boxes: Sequence[DrawnBox], scale: float) -> None:
    from PIL import ImageDraw, ImageFont

    line = max(1, image.width // 320)
    draw = ImageDraw.Draw(image)
    font = _font(max(10, image.width // 40))
    for box in boxes:
        left, top, right, bottom = (scale * side for side in box[:4])
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=_FRAME, width=line)
        if box.text:
            text = box.text[:_LONGEST] if isinstance(font, ImageFont.FreeTypeFont) else _latin(box.text[:_LONGEST])
            corner = left + line, top + line
            draw.rectangle(draw.textbbox(corner, text, font), fill=_FRAME)
            draw.text(corner, text, _TEXT, font)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font of about `size` pixels; a small one of Latin letters, if Pillow is old or without FreeType."""
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):
        return ImageFont.load_default()


def _latin(text: str) -> str:
    return text.encode("latin-1", "replace").decode("latin-1")
