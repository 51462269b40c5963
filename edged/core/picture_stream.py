"""Splitters of byte streams into pictures: Motion JPEG with any text between the pictures, and raw frames.

A splitter takes pieces cut anywhere, holds a single unfinished picture, and counts useless input.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

from edged.core.framing import Faults

MAX_PICTURE = 64 << 20
"""Maximum number of bytes of a picture."""

MAX_BETWEEN = 16 << 10
"""Number of bytes without the beginning of a picture for each fault."""

TRUNCATED = "truncated pictures"
DAMAGED = "damaged pictures"
TOO_LARGE = "pictures larger than 64 MiB"
NO_PICTURE = "input without a picture"

_BEGIN = b"\xff\xd8\xff"
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_STANDALONE = {0x01, *range(0xD0, 0xD8)}
"""Markers without a segment after them."""

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Marker at the end of compressed data: no stuffed zero, no restart and no fill byte."""


_PPM = re.compile(rb"P6\s([1-9]\d{0,4})\s([1-9]\d{0,4})\s255\s")
_MAX_PPM_HEADER = 64


class PictureSplitter(Protocol):
    """Splitter of a stream. `faults` counts discarded input by reason."""

    faults: Faults

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the pictures completed by a piece of the stream."""

    def end(self) -> list[bytes]:
        """Return the picture completed by the end of the stream, if any."""


class JpegSplitter:
    """Splitter of JPEG pictures by the markers inside.

    Bytes between two pictures are passed over: the boundaries and headers of a multipart stream are never needed, and
    so cannot be wrong. A thumbnail within a picture is part of a segment of stated length.
    """

    def __init__(self, faults: Faults, limit: int = MAX_PICTURE) -> None:
        self.faults = faults
        self._limit = limit
        self._buffer = bytearray()
        self._between = 0
        self._begun = False
        self._compressed = False
        self._at = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the pictures completed by a piece of the stream."""
        self._buffer += piece
        pictures = []
        while self._find():
            if self._at > self._limit:
                self._discard(TOO_LARGE)
                continue
            pictures.append(bytes(self._buffer[: self._at]))
            self._restart()
        if self._begun and len(self._buffer) > self._limit:
            self._discard(TOO_LARGE)
        return pictures

    def end(self) -> list[bytes]:
        """Count a picture without an end."""
        if self._begun:
            self._discard(TRUNCATED)
        return []

    def _find(self) -> bool:
        """Move to the end of the picture in the buffer, and return True if the buffer has that end."""
        buffer = self._buffer
        while self._begun or self._begin():
            if self._compressed:
                found = _MARKER.search(buffer, self._at)
                if found is None:
                    self._at = max(self._at, len(buffer) - 1)  # the last byte may begin a marker
                    return False
                self._at, self._compressed = found.start(), False
            at = self._at
            if len(buffer) < at + 4 and not buffer.startswith(b"\xff\xd9", at):
                return False
            mark = buffer[at + 1]
            if buffer[at] != 0xFF or mark == 0:
                self._discard(DAMAGED)
            elif mark == _EOI:
                self._at += 2
                return True
            elif mark == _SOI:
                self._discard(TRUNCATED)
            elif mark == 0xFF:
                self._at += 1
            elif mark in _STANDALONE:
                self._at += 2
            else:
                self._at += 2 + int.from_bytes(buffer[at + 2 : at + 4])
                self._compressed = mark == _SOS
        return False

    def _begin(self) -> bool:
        """Discard all before the next picture, and return True if a picture begins."""
        start = self._buffer.find(_BEGIN)
        self._begun = start >= 0
        discarded = start if self._begun else max(len(self._buffer) - len(_BEGIN) + 1, 0)
        self._between += discarded
        if self._between >= MAX_BETWEEN:
            self.faults.count(NO_PICTURE, bytes(self._buffer[:80]))
            self._between = 0
        del self._buffer[:discarded]
        if self._begun:
            self._between, self._at = 0, 2
        return self._begun

    def _discard(self, reason: str) -> None:
        self.faults.count(reason, bytes(self._buffer[:80]))
        self._restart()

    def _restart(self) -> None:
        del self._buffer[: self._at]
        self._begun = self._compressed = False
        self._between = 0


class FrameSplitter:
    """Splitter of raw frames, each of `size` bytes."""

    def __init__(self, faults: Faults, size: int) -> None:
        self.faults = faults
        self._size = size
        self._buffer = bytearray()

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the frames completed by a piece of the stream."""
        self._buffer += piece
        whole = len(self._buffer) // self._size
        frames = [bytes(self._buffer[i * self._size : (i + 1) * self._size]) for i in range(whole)]
        del self._buffer[: whole * self._size]
        return frames

    def end(self) -> list[bytes]:
        """Count a frame without an end."""
        if self._buffer:
            self.faults.count(TRUNCATED, bytes(self._buffer[:80]))
        return []


class PpmSplitter:
    """Splitter of raw pictures with headers, in the format PPM: `P6 width height 255`, and RGB pixels."""

    def __init__(self, faults: Faults, limit: int = MAX_PICTURE) -> None:
        self.faults = faults
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the pictures completed by a piece of the stream, with their headers."""
        self._buffer += piece
        pictures = []
        while (size := self._size()) and len(self._buffer) >= size:
            pictures.append(bytes(self._buffer[:size]))
            del self._buffer[:size]
        return pictures

    def end(self) -> list[bytes]:
        """Count a picture without an end."""
        if self._buffer:
            self.faults.count(TRUNCATED, bytes(self._buffer[:80]))
        return []

    def _size(self) -> int:
        """Return the number of bytes of the first picture, 0 before the header has arrived."""
        header = ppm_header(self._buffer)
        if header is None:
            if len(self._buffer) >= _MAX_PPM_HEADER:
                self._discard(NO_PICTURE)
            return 0
        size = header.end + 3 * header.width * header.height
        if size <= self._limit:
            return size
        self._discard(TOO_LARGE)
        return 0

    def _discard(self, reason: str) -> None:
        """Discard all up to the next possible header."""
        self.faults.count(reason, bytes(self._buffer[:80]))
        start = self._buffer.find(b"P6", 1)
        del self._buffer[: start if start > 0 else len(self._buffer)]


class PpmHeader(NamedTuple):
    """Size of a picture in pixels, and the number of bytes of its header."""

    width: int
    height: int
    end: int


def ppm_header(data: bytes | bytearray) -> PpmHeader | None:
    """Return the header of a PPM picture."""
    found = _PPM.match(data)
    return PpmHeader(int(found[1]), int(found[2]), found.end()) if found else None


class WholePicture:
    """Collector of a stream that is a single picture, of any format."""

    def __init__(self, faults: Faults, limit: int = MAX_PICTURE) -> None:
        self.faults = faults
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, piece: bytes) -> list[bytes]:
        """Collect a piece; the picture is complete at the end of the stream."""
        if len(self._buffer) <= self._limit:
            self._buffer += piece
        return []

    def end(self) -> list[bytes]:
        """Return the picture."""
        if 0 < len(self._buffer) <= self._limit:
            return [bytes(self._buffer)]
        self.faults.count(TOO_LARGE if self._buffer else NO_PICTURE, bytes(self._buffer[:80]))
        return []
