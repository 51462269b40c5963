"""Cameras of the kernel's Video4Linux: requests (ioctl) and shared memory (mmap), without any policy.

Layouts are those of <linux/videodev2.h>, in the native sizes of this machine. A `VideoKernel` is the operating system;
tests have another.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import select
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

CAPTURE = 1
"""Queue of captured pictures (V4L2_BUF_TYPE_VIDEO_CAPTURE)."""

MMAP = 1
"""Buffers in memory of the kernel (V4L2_MEMORY_MMAP)."""

CAN_CAPTURE = 0x1
CAN_STREAM = 0x0400_0000
HAS_DEVICE_CAPS = 0x8000_0000
DAMAGED = 0x40
"""Flag of a buffer with a damaged picture."""

NEXT_CONTROL = 0x8000_0000
DISABLED = 0x1
INTEGER, BOOLEAN, MENU, INTEGER_MENU = 1, 2, 3, 9
DISCRETE = 1

CAPABILITY = struct.Struct("16s32s32sIII12x")
DESCRIPTION = struct.Struct("III32sII12x")
FORMAT = struct.Struct("I0L12I152x0L")
SIZE = struct.Struct("IIIIIIIII8x")
INTERVAL = struct.Struct("IIIIIIIIIII8x")
PARAMETERS = struct.Struct("IIIIIIII172x")
REQUEST = struct.Struct("IIIII")
BUFFER = struct.Struct("IIIII0Lll16sIILIII0L")
QUERY = struct.Struct("II32siiiiI8x")
CONTROL = struct.Struct("Ii")
QUEUE = struct.Struct("i")

_READ, _WRITE, _BOTH = 2, 1, 3


def _number(direction: int, number: int, layout: struct.Struct) -> int:
    return direction << 30 | layout.size << 16 | ord("V") << 8 | number


QUERYCAP = _number(_READ, 0, CAPABILITY)
ENUM_FMT = _number(_BOTH, 2, DESCRIPTION)
S_FMT = _number(_BOTH, 5, FORMAT)
REQBUFS = _number(_BOTH, 8, REQUEST)
QUERYBUF = _number(_BOTH, 9, BUFFER)
QBUF = _number(_BOTH, 15, BUFFER)
DQBUF = _number(_BOTH, 17, BUFFER)
STREAMON = _number(_WRITE, 18, QUEUE)
STREAMOFF = _number(_WRITE, 19, QUEUE)
S_PARM = _number(_BOTH, 22, PARAMETERS)
S_CTRL = _number(_BOTH, 28, CONTROL)
QUERYCTRL = _number(_BOTH, 36, QUERY)
ENUM_FRAMESIZES = _number(_BOTH, 74, SIZE)
ENUM_FRAMEINTERVALS = _number(_BOTH, 75, INTERVAL)

_BUFFERS = 4
_MOST = 64
"""Most formats, sizes, rates or controls listed of a camera."""


class SharedMemory(Protocol):
    """Memory shared with the kernel."""

    def __getitem__(self, part: slice) -> bytes:
        """Return a copy of a part."""

    def close(self) -> None:
        """Release the memory."""


class VideoKernel:
    """Calls of the operating system on the files of cameras."""

    def open(self, path: str) -> int:
        """Open a file."""
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def ioctl(self, fd: int, request: int, data: bytearray) -> None:
        """Make a request, which may change the data."""
        fcntl.ioctl(fd, request, data, True)

    def map(self, fd: int, length: int, offset: int) -> SharedMemory:
        """Share a buffer of the kernel."""
        return mmap.mmap(fd, length, offset=offset)

    def wait(self, fd: int, seconds: float) -> None:
        """Wait for a picture, or for an error."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(seconds * 1000)

    def close(self, fd: int) -> None:
        """Close a file."""
        os.close(fd)


class VideoSize(NamedTuple):
    """Size of pictures, and the rates in pictures a second; empty for unknown rates."""

    width: int
    height: int
    rates: tuple[float, ...]


class VideoFormat(NamedTuple):
    """Format of pictures by four letters, such as MJPG, and the sizes; empty for any size."""

    letters: str
    sizes: tuple[VideoSize, ...]


class VideoControl(NamedTuple):
    """Setting of a camera, and the bounds of the value."""

    id: int
    name: str
    least: int
    most: int
    step: int
    default: int


class Layout(NamedTuple):
    """Format of the pictures to come: a row of raw pixels may be longer than the pixels need."""

    letters: str
    width: int
    height: int
    row_bytes: int


class VideoPicture(NamedTuple):
    """Content of a buffer."""

    data: bytes
    damaged: bool


class VideoDevice:
    """An open camera. Every method may raise OSError."""

    def __init__(self, path: str, kernel: VideoKernel) -> None:
        self._kernel = kernel
        self._fd = kernel.open(path)
        self._shared: list[SharedMemory] = []
        _, card, _, _, capabilities, device = self._ask(QUERYCAP, CAPABILITY)
        self.card = _text(card)
        found = device if capabilities & HAS_DEVICE_CAPS else capabilities
        self.is_camera = bool(found & CAN_CAPTURE and found & CAN_STREAM)

    def formats(self) -> list[VideoFormat]:
        """Return the formats, sizes and rates of the camera."""
        listed = self._listed(lambda index: self._ask(ENUM_FMT, DESCRIPTION, index, CAPTURE))
        codes = [found[4] for found in listed]
        return [VideoFormat(_letters(code), tuple(self._sizes(code))) for code in codes]

    def controls(self) -> list[VideoControl]:
        """Return the settings with a number as value."""
        found: list[VideoControl] = []
        last = 0
        with suppress(OSError):  # the end of the list
            while len(found) < _MOST:
                last, kind, name, *bounds, flags = self._ask(QUERYCTRL, QUERY, last | NEXT_CONTROL)
                if kind in (INTEGER, BOOLEAN, MENU, INTEGER_MENU) and not flags & DISABLED:
                    found.append(VideoControl(last, _plain(_text(name)), *bounds))
        return found

    def set_control(self, control: int, value: int) -> None:
        """Change a setting."""
        self._ask(S_CTRL, CONTROL, control, value)

    def set_format(self, letters: str, width: int, height: int) -> Layout:
        """Ask for a format, and return the nearest that the camera offers."""
        code = int.from_bytes(letters.encode(), "little")
        _, width, height, code, _, row, *_ = self._ask(S_FMT, FORMAT, CAPTURE, width, height, code)
        return Layout(_letters(code), width, height, row)

    def set_rate(self, rate: float) -> None:
        """Ask for a number of pictures a second; the camera chooses the nearest, or refuses any."""
        with suppress(OSError):
            self._ask(S_PARM, PARAMETERS, CAPTURE, 0, 0, 1000, max(round(rate * 1000), 1))

    def start(self) -> None:
        """Begin to capture pictures."""
        count = self._ask(REQBUFS, REQUEST, _BUFFERS, CAPTURE, MMAP)[0]
        for index in range(count):
            fields = self._ask(QUERYBUF, BUFFER, index, CAPTURE, *[0] * 5, b"", 0, MMAP)
            self._shared.append(self._kernel.map(self._fd, fields[11], fields[10]))
            self._queue(index)
        self._ask(STREAMON, QUEUE, CAPTURE)

    def pictures(self, seconds: float) -> list[VideoPicture]:
        """Wait up to some seconds, and return copies of the pictures captured, oldest first."""
        self._kernel.wait(self._fd, seconds)
        found: list[VideoPicture] = []
        with suppress(BlockingIOError):  # no picture left
            while len(found) < len(self._shared):
                index, _, used, flags, *_ = self._ask(DQBUF, BUFFER, 0, CAPTURE, *[0] * 5, b"", 0, MMAP)
                found.append(VideoPicture(bytes(self._shared[index][:used]), bool(flags & DAMAGED)))
                self._queue(index)
        return found

    def close(self) -> None:
        """Stop capturing, and release the camera."""
        if self._fd < 0:
            return
        with suppress(OSError):
            self._ask(STREAMOFF, QUEUE, CAPTURE)
        for shared in self._shared:
            shared.close()
        self._shared.clear()
        with suppress(OSError):
            self._kernel.close(self._fd)
        self._fd = -1

    def _queue(self, index: int) -> None:
        """Hand a buffer to the camera."""
        self._ask(QBUF, BUFFER, index, CAPTURE, *[0] * 5, b"", 0, MMAP)

    def _sizes(self, code: int) -> Iterator[VideoSize]:
        for found in self._listed(lambda index: self._ask(ENUM_FRAMESIZES, SIZE, index, code)):
            _, _, kind, width, height, *_ = found
            if kind == DISCRETE:
                yield VideoSize(width, height, tuple(self._rates(code, width, height)))

    def _rates(self, code: int, width: int, height: int) -> Iterator[float]:
        for found in self._listed(lambda index: self._ask(ENUM_FRAMEINTERVALS, INTERVAL, index, code, width, height)):
            kind, seconds, parts = found[4:7]
            if kind == DISCRETE and seconds:
                yield parts / seconds

    def _listed(self, ask: Callable[[int], tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Yield the answers of the camera for the indices from 0 on."""
        with suppress(OSError):  # the end of the list
            for index in range(_MOST):
                yield ask(index)

    def _ask(self, request: int, layout: struct.Struct, *values: Any) -> tuple[Any, ...]:
        """Make a request with the first fields of a layout, and return all fields."""
        zeros = layout.unpack(bytes(layout.size))
        data = bytearray(layout.pack(*values, *zeros[len(values) :]))
        self._kernel.ioctl(self._fd, request, data)
        return layout.unpack(data)


def cameras(dev: Path = Path("/dev")) -> list[str]:
    """Return the paths of the files of Video4Linux."""
    found = [entry for entry in dev.glob("video*") if entry.name[5:].isdecimal()]
    return [str(entry) for entry in sorted(found, key=lambda entry: int(entry.name[5:]))]


def _text(data: bytes) -> str:
    text = data.partition(b"\0")[0].decode(errors="replace")
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _plain(name: str) -> str:
    """Return the name of a control as a key: Exposure (Absolute) is exposure_absolute."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def _letters(code: int) -> str:
    return _text(code.to_bytes(4, "little")).strip()
