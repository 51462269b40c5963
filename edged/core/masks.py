"""Masks of a segmentation: run lengths as in COCO, and pictures in PNG.

A mask is an array of bytes: the number of a class for each pixel, or `NONE`.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

NONE = 255
"""Value of a pixel without a class."""

ClassMap = NDArray[np.uint8]
MaskForm = Literal["rle", "png"]


class SegmentMask:
    """Classes of the pixels of a picture, with the names of the classes.

    `box` is the place of the mask in the source's picture of the size `picture`, both in pixels: left, top, right and
    bottom; None for a model fed with an array.
    """

    __slots__ = ("box", "classes", "labels", "picture")

    def __init__(
        self,
        classes: ClassMap,
        labels: tuple[str, ...],
        box: tuple[float, float, float, float] | None = None,
        picture: tuple[int, int] | None = None,
    ) -> None:
        self.classes = classes
        self.labels = labels
        self.box = box
        self.picture = picture

    @property
    def size(self) -> tuple[int, int]:
        """Return the number of rows and of columns."""
        height, width = self.classes.shape
        return height, width

    @property
    def changes(self) -> int:
        """Return the number of borders from pixel to pixel, which limits the number of runs."""
        pixels = self.classes.T.reshape(-1)
        return int(np.count_nonzero(pixels[1:] != pixels[:-1]))

    def runs(self) -> dict[str, list[int]]:
        """Return the run lengths of each class in the mask, by label."""
        present = np.unique(self.classes).tolist()
        return {self.labels[each]: run_lengths(self.classes == each) for each in present if each < len(self.labels)}


def run_lengths(inside: NDArray[np.bool_]) -> list[int]:
    """Return the lengths of alternating runs outside and inside, column by column from the top left.

    The first run is outside, and may have the length 0. COCO calls this an uncompressed RLE.
    """
    pixels = inside.T.reshape(-1)
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    lengths: list[int] = np.diff(changes, prepend=0, append=pixels.size).tolist()
    return [0, *lengths] if pixels[0] else lengths


def png(mask: ClassMap, text: bytes = b"") -> bytes:
    """Return a PNG of one byte a pixel, with a colour for each class; `text` is kept under the keyword "edged".

    Pixels without a class are transparent.
    """
    height, width = mask.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row begins with the number of its filter: none
    rows[:, 1:] = mask
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)  # 8 bits, palette, deflate, not interlaced
    parts = [
        (b"IHDR", header),
        (b"PLTE", palette()),
        (b"tRNS", b"\xff" * NONE + b"\x00"),
        *([(b"iTXt", b"edged\0\0\0\0\0" + text)] if text else []),
        (b"IDAT", zlib.compress(rows.tobytes(), 6)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_part(*part) for part in parts)


def _part(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@cache
def palette() -> bytes:
    """Return red, green and blue of 256 classes: black, and then colours that differ from their neighbours.

    The three lowest bits of a number become the highest bits of the colours, and so on, as in PASCAL VOC.
    """
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for place in range(3):
        for channel in range(3):
            bit = numbers >> (3 * place + channel) & 1
            colours[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    return colours.tobytes()


def mask_origin(pipeline: str) -> str:
    """Return the origin of the messages with masks of a pipeline."""
    return f"{pipeline}/mask"
