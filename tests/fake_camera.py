"""A camera of Video4Linux in memory, behind the calls of the operating system.

Requests are decoded by the layouts of edged/sources/v4l2.py; test_v4l2.py holds those against the kernel's headers.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Mapping

from edged.sources import v4l2
from edged.sources.v4l2 import VideoKernel

Sizes = Mapping[tuple[int, int], tuple[int, ...]]
"""Rates by width and height."""


class FakeKernel(VideoKernel):
    """A kernel with a single camera. `film` has the pictures to come, `fails` errors by request."""

    def __init__(
        self, formats: Mapping[str, Sizes], controls: Mapping[str, tuple[int, int, int]] | None = None
    ) -> None:
        self.formats = formats
        self.controls = dict(controls or {})
        self.set: dict[str, int] = {}
        self.rate: float | None = None
        self.film: deque[tuple[bytes, int]] = deque()
        self.fails: dict[int, int] = {}
        self.capabilities = v4l2.CAN_CAPTURE | v4l2.CAN_STREAM
        self.row_padding = 0
        self.opened: list[str] = []
        self.is_open = False
        self.streams = False
        self.shared: list[bytearray] = []
        self.queued: deque[int] = deque()

    def open(self, path: str) -> int:
        self._fail(0)
        self.opened.append(path)
        self.is_open = True
        return 1000

    def close(self, fd: int) -> None:
        self.is_open = False

    def map(self, fd: int, length: int, offset: int) -> _Memory:
        return _Memory(self.shared[offset // 4096])

    def wait(self, fd: int, seconds: float) -> None:
        pass

    def ioctl(self, fd: int, request: int, data: bytearray) -> None:
        assert self.is_open
        self._fail(request)
        layout, answer = {
            v4l2.QUERYCAP: (v4l2.CAPABILITY, self._capability),
            v4l2.ENUM_FMT: (v4l2.DESCRIPTION, self._format),
            v4l2.ENUM_FRAMESIZES: (v4l2.SIZE, self._size),
            v4l2.ENUM_FRAMEINTERVALS: (v4l2.INTERVAL, self._interval),
            v4l2.QUERYCTRL: (v4l2.QUERY, self._control),
            v4l2.S_CTRL: (v4l2.CONTROL, self._set_control),
            v4l2.S_FMT: (v4l2.FORMAT, self._set_format),
            v4l2.S_PARM: (v4l2.PARAMETERS, self._set_rate),
            v4l2.REQBUFS: (v4l2.REQUEST, self._request),
            v4l2.QUERYBUF: (v4l2.BUFFER, self._buffer),
            v4l2.QBUF: (v4l2.BUFFER, self._queue),
            v4l2.DQBUF: (v4l2.BUFFER, self._dequeue),
            v4l2.STREAMON: (v4l2.QUEUE, self._start),
            v4l2.STREAMOFF: (v4l2.QUEUE, self._stop),
        }[request]
        fields = list(layout.unpack(data))
        answer(fields)
        data[:] = layout.pack(*fields)

    def _fail(self, request: int) -> None:
        if request in self.fails:
            raise OSError(self.fails[request], "made up")

    def _capability(self, fields: list) -> None:
        fields[1] = b"Fake Camera\0"
        fields[4:6] = v4l2.HAS_DEVICE_CAPS, self.capabilities

    def _format(self, fields: list) -> None:
        fields[4] = _code(_nth(list(self.formats), fields[0]))

    def _size(self, fields: list) -> None:
        size = _nth(list(self.formats[_letters(fields[1])]), fields[0])
        fields[2:5] = v4l2.DISCRETE, *size

    def _interval(self, fields: list) -> None:
        rate = _nth(self.formats[_letters(fields[1])][fields[2], fields[3]], fields[0])
        fields[4:7] = v4l2.DISCRETE, 1, rate

    def _control(self, fields: list) -> None:
        last = fields[0] & ~v4l2.NEXT_CONTROL
        name = _nth(list(self.controls), last)
        fields[0:8] = last + 1, v4l2.INTEGER, name.encode(), *self.controls[name][:2], 1, self.controls[name][2], 0

    def _set_control(self, fields: list) -> None:
        self.set[list(self.controls)[fields[0] - 1]] = fields[1]

    def _set_format(self, fields: list) -> None:
        letters = _letters(fields[3])
        sizes = self.formats.get(letters) or next(iter(self.formats.values()))
        letters = letters if letters in self.formats else next(iter(self.formats))
        wanted = fields[1], fields[2]
        width, height = wanted if wanted in sizes else next(iter(sizes))
        row = 2 * width + self.row_padding if letters == "YUYV" else 0
        fields[1:6] = width, height, _code(letters), 1, row

    def _set_rate(self, fields: list) -> None:
        self.rate = fields[4] / fields[3]

    def _request(self, fields: list) -> None:
        self.shared = [bytearray(1 << 16) for _ in range(fields[0])]

    def _buffer(self, fields: list) -> None:
        fields[10:12] = fields[0] * 4096, 1 << 16

    def _queue(self, fields: list) -> None:
        assert fields[0] not in self.queued
        self.queued.append(fields[0])

    def _dequeue(self, fields: list) -> None:
        assert self.streams
        if not self.film or not self.queued:
            raise BlockingIOError(errno.EAGAIN, "no picture")
        index = self.queued.popleft()
        data, flags = self.film.popleft()
        self.shared[index][: len(data)] = data
        fields[0], fields[2], fields[3] = index, len(data), flags

    def _start(self, fields: list) -> None:
        self.streams = True

    def _stop(self, fields: list) -> None:
        self.streams = False


class _Memory:
    def __init__(self, data: bytearray) -> None:
        self._data = data

    def __getitem__(self, part: slice) -> bytes:
        return bytes(self._data[part])

    def close(self) -> None:
        pass


def _nth(items: list, index: int):
    if index >= len(items):
        raise OSError(errno.EINVAL, "the end of the list")
    return items[index]


def _code(letters: str) -> int:
    return int.from_bytes(letters.encode(), "little")


def _letters(code: int) -> str:
    return code.to_bytes(4, "little").decode()
