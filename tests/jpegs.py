"""Small JPEG pictures for cameras of tests."""

from __future__ import annotations

import io

from PIL import Image


def jpeg(shade: int = 0, size: tuple[int, int] = (16, 12)) -> bytes:
    """Return a JPEG of one shade of gray, 0 to 255."""
    file = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(file, "JPEG")
    return file.getvalue()


def png(shade: int = 0) -> bytes:
    """Return a PNG of one shade of gray."""
    file = io.BytesIO()
    Image.new("L", (16, 12), shade).save(file, "PNG")
    return file.getvalue()
