"""A camera of this board by Video4Linux: most USB cameras, and others with a driver of their own."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from edged.api import Chunk, DeviceError, DeviceRequirements, Source, SourceConfig, SourceInfo
from edged.core.errors import some
from edged.core.framing import Faults
from edged.core.picture_stream import DAMAGED, TRUNCATED, JpegSplitter
from edged.core.pictures import Pixels
from edged.core.types import Picture
from edged.pictures.encoded import EncodedPicture
from edged.pictures.pillow import require_pillow
from edged.pictures.raw import RawPicture
from edged.sources.newest_picture import NewestPicture, PictureRate, Timeout
from edged.sources.v4l2 import Layout, VideoDevice, VideoKernel, VideoPicture, cameras

LETTERS = {"mjpeg": "MJPG", "yuyv": "YUYV"}

_ALLOW = "sudo edgectl devices allow --restart"


class CameraSource(SourceConfig, frozen=True, kw_only=True):
    """Options of [sources.X] with kind = "camera": a camera of this board by Video4Linux.

    `edgectl devices` lists cameras with formats, sizes, rates and controls. For camera modules of a Raspberry Pi use
    kind = "command" with rpicam-vid.

    Keys:
        device: Device file of the camera, best the stable name in /dev/v4l/by-id.
        format: Format of the pictures: "mjpeg", or "yuyv" for uncompressed pictures.
        size (pixels): Width and height.
        rate (pictures/s): Pictures to take, at most; the camera is asked for the nearest rate.
        controls: Table of controls and their values, for example {exposure_auto = 1}.
        timeout (s): Time without a picture after which the camera is opened again.
    """

    device: Annotated[str, Meta(min_length=1, max_length=4096)] = "/dev/video0"
    format: Literal["mjpeg", "yuyv"] = "mjpeg"
    size: tuple[Pixels, Pixels] = (640, 480)
    rate: PictureRate | None = None
    controls: Annotated[dict[Annotated[str, Meta(max_length=64)], int], Meta(max_length=64)] = {}  # noqa: RUF012, msgspec copies it
    timeout: Timeout = 10.0

    def describe(self) -> SourceInfo:
        """Describe a source of pictures."""
        return SourceInfo(shape=(), pictures=True)

    def devices(self) -> DeviceRequirements:
        """Return the camera, possibly on USB and not plugged in."""
        return DeviceRequirements(paths=(self.device,), groups=("video",), drivers={"video4linux": "videodev"})

    def open(self) -> Source:
        """Open the camera, and begin to capture."""
        if self.format == "mjpeg":
            require_pillow()
        return open_camera(self, VideoKernel())


def open_camera(options: CameraSource, kernel: VideoKernel) -> CameraPictures:
    """Open a camera through a kernel. Raises DeviceError."""
    try:
        device = VideoDevice(options.device, kernel)
    except OSError as error:
        raise refusal(options.device, error) from error
    try:
        layout = _prepared(device, options)
        device.start()
    except OSError as error:
        device.close()
        raise refusal(options.device, error) from error
    except DeviceError:
        device.close()
        raise
    return CameraPictures(device, layout, options)


def _prepared(device: VideoDevice, options: CameraSource) -> Layout:
    """Set format, rate and controls, and return the layout of the pictures."""
    if not device.is_camera:
        raise DeviceError(
            f"{options.device} captures no pictures of a single plane",
            hint='choose another device: edgectl devices; for a camera module of a Raspberry Pi use kind = "command"',
            retryable=True,
        )
    letters, (width, height) = LETTERS[options.format], options.size
    layout = device.set_format(letters, width, height)
    if (layout.letters, layout.width, layout.height) != (letters, width, height):
        raise DeviceError(
            f"{options.device} has no {width} x {height} in {letters}; the nearest is {layout.width} x {layout.height} "
            f"in {layout.letters}",
            hint="choose a format and a size of the camera: edgectl devices",
            retryable=True,
        )
    if options.rate:
        device.set_rate(options.rate)
    known = {control.name: control.id for control in device.controls()} if options.controls else {}
    for name, value in options.controls.items():
        if name not in known:
            raise DeviceError(
                f"{options.device} has no control {name!r}",
                hint=f"choose one of: {some(list(known)) or 'none'}",
                retryable=True,
            )
        device.set_control(known[name], value)
    return layout


class CameraPictures:
    """Pictures of an open camera. `faults` counts discarded pictures by reason."""

    def __init__(
        self,
        device: VideoDevice,
        layout: Layout,
        options: CameraSource,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.faults = Faults()
        self._device = device
        self._layout = layout
        self._options = options
        self._clock = clock
        self._newest = NewestPicture(options.rate, self._decoded, self.faults)
        self._heard = clock()

    @property
    def refused(self) -> str:
        """The beginning of the last discarded picture, escaped."""
        return self.faults.last

    def read(self, timeout: float) -> Chunk | None:
        """Return the newest picture; None if none was captured, or if the rate allows none yet."""
        deadline = self._clock() + timeout
        while True:
            now = self._clock()
            until = deadline if self._newest.due is None else min(deadline, self._newest.due)
            try:
                captured = self._device.pictures(max(until - now, 0.0))
            except OSError as error:
                raise refusal(self._options.device, error) from error
            now = self._clock()
            pictures = [data for each in captured for data in self._sound(each)]
            self._newest.offer(pictures, now)
            if pictures:
                self._heard = now
            elif now - self._heard > self._options.timeout:
                raise DeviceError(
                    f"{self._options.device} gives no picture for {self._options.timeout:g} s",
                    hint="plug the camera in again, and check cable and power",
                    retryable=True,
                )
            chunk = self._newest.take(now)
            if chunk or now >= deadline:
                return chunk

    def close(self) -> None:
        """Release the camera."""
        self._device.close()

    def _sound(self, picture: VideoPicture) -> list[bytes]:
        """Return the picture unless damaged."""
        if picture.damaged:
            self.faults.count(DAMAGED, picture.data[:80])
            return []
        if self._options.format == "mjpeg":
            splitter = JpegSplitter(self.faults)
            return splitter.feed(picture.data) + splitter.end()
        if len(picture.data) >= self._layout.row_bytes * self._layout.height:
            return [picture.data]
        self.faults.count(TRUNCATED, picture.data[:80])
        return []

    def _decoded(self, data: bytes) -> Picture:
        if self._options.format == "mjpeg":
            return EncodedPicture(data)
        _, width, height, row = self._layout
        rows = np.frombuffer(data, np.uint8, row * height).reshape(height, row)
        return RawPicture(rows[:, : 2 * width].reshape(height, width, 2), "yuyv")


def refusal(path: str, error: OSError, root: Path = Path("/")) -> DeviceError:
    """Return the error for a camera that cannot be used. Available cameras are looked up below `root`."""
    number = error.errno
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        there = cameras(root / "dev")
        hint = f"plug it in, or set device to an available camera: {some(there)}" if there else "plug it in"
        if not there and any((root / "sys/class/video4linux").glob("video*")):
            hint = f"the service's sandbox hides all devices: run {_ALLOW}"
        return DeviceError(f"{path} is not there", hint=hint, retryable=True)
    if number == errno.EPERM:  # the permissions of the file are not at fault
        return DeviceError(f"the service's sandbox blocks {path}", hint=f"run {_ALLOW}", retryable=True)
    if number == errno.EACCES:
        hint = f"add the user of edged to the group video (sudo usermod -aG video USER), and restart; then: {_ALLOW}"
        return DeviceError(f"not allowed to open {path}", hint=hint, retryable=True)
    if number == errno.EBUSY:
        hint = f"find the program: sudo fuser -v {path}; a camera serves a single program"
        return DeviceError(f"{path} is in use by another program", hint=hint, retryable=True)
    if number == errno.ENOTTY:
        return DeviceError(f"{path} is no camera", hint="choose a camera: edgectl devices", retryable=True)
    return DeviceError(
        f"{path} fails as a camera: {error.strerror}", hint="plug the camera in again; see dmesg", retryable=True
    )
