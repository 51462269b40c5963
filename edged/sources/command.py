"""A program as a camera or sensor: pictures, lines or frames on standard output."""

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from edged.api import ConfigError, DeviceRequirements, Source, SourceInfo
from edged.core.device_requirements import MAX_PATHS, DevicePath
from edged.core.errors import some
from edged.core.framing import Faults
from edged.core.picture_stream import MAX_PICTURE, FrameSplitter, JpegSplitter, PictureSplitter, PpmSplitter
from edged.core.pictures import Pixels
from edged.core.types import Picture
from edged.pictures.encoded import EncodedPicture
from edged.pictures.pillow import require_pillow
from edged.pictures.raw import RawPicture
from edged.sources.columns import Channels, Rate, row
from edged.sources.framed import FramedSource, changed
from edged.sources.program_output import ProgramPictures, ProgramSamples, ppm_picture
from edged.system.program import Program

_BYTES_OF_A_PIXEL: dict[str, int] = {"rgb": 3, "gray": 1, "yuyv": 2}
_SAMPLES = ("csv", "json", "binary")
_FOR_PICTURES = {"command", "format", "size", "rate", "device_files", "timeout"}

RawColour = Literal["rgb", "gray", "yuyv"]

_Word = Annotated[str, Meta(max_length=4096)]


class CommandSource(FramedSource, frozen=True, kw_only=True):
    """Options of [sources.X] with kind = "command": a program that writes pictures or samples to standard output.

    The program runs with the rights of edged, and is ended with all descendants when the source is closed. A program
    that ends is started again after a pause; the last lines of error output are the reason in the source's state.

    Keys:
        command: The program and the arguments, a text for each; no shell is involved.
        format: Form of the output. "mjpeg": JPEG pictures without a pause. "ppm": raw pictures with headers. "rgb",
            "gray", "yuyv": raw pictures of `size` without headers. "csv", "json", "binary": samples in lines or frames,
            with the options of a serial port.
        size (pixels): Width and height of raw pictures without headers.
        channels: Columns or fields to take from each sample, in this order.
        rate (Hz): Pictures to take a second, at most; or samples a second.
        device_files: Devices that the program opens, for `edgectl devices allow`.
        timeout (s): Time without a picture or sample after which the program is killed and started again; 0 for never.
    """

    command: Annotated[tuple[_Word, ...], Meta(min_length=1, max_length=256)]
    format: Literal["mjpeg", "ppm", "rgb", "gray", "yuyv", "csv", "json", "binary"] = "mjpeg"
    size: tuple[Pixels, Pixels] | None = None
    channels: Channels = ()
    rate: Rate | None = None
    device_files: Annotated[tuple[DevicePath, ...], Meta(max_length=MAX_PATHS)] = ()
    timeout: Annotated[float, Meta(ge=0, le=86_400)] = 0.0

    def describe(self) -> SourceInfo:
        """Describe pictures, or samples by channels and rate."""
        if not self.command[0]:
            raise ConfigError("command names no program", hint="begin the list with a program's path or name")
        if (self.size is not None) != (self.format in _BYTES_OF_A_PIXEL):
            raise ConfigError(
                "raw pictures and size go together", hint='set size = [640, 480] with format = "rgb", "gray" or "yuyv"'
            )
        if self.format in _SAMPLES:
            return self._describe_samples()
        if meaningless := [option for option in changed(self) if option not in _FOR_PICTURES]:
            raise ConfigError(
                f'{some(meaningless)} {"mean" if meaningless[1:] else "means"} nothing for format = "{self.format}"',
                hint='use these options with format = "csv", "json" or "binary"',
            )
        if self.size and self.size[0] * self.size[1] * _BYTES_OF_A_PIXEL[self.format] > MAX_PICTURE:
            raise ConfigError(f"size means pictures of more than {MAX_PICTURE >> 20} MiB", hint="use smaller pictures")
        if self.size and self.format == "yuyv" and self.size[0] % 2:
            raise ConfigError("YUYV pictures have an even width", hint="correct size")
        return SourceInfo(shape=(), pictures=True)

    def devices(self) -> DeviceRequirements:
        """Return the devices in the options."""
        return DeviceRequirements(paths=self.device_files)

    def open(self) -> Source:
        """Start the program."""
        if self.format == "mjpeg":
            require_pillow()
        program = Program(self.command, remedy="check the path in command, or install the program")
        if self.format in _SAMPLES:
            decoder = self.decoder()
            decoder.decode(self._end_before())
            return ProgramSamples(program, decoder, limit=self.timeout)
        splitter, decode = self._pictures()
        return ProgramPictures(program, splitter, decode, rate=self.rate, limit=self.timeout)

    def _describe_samples(self) -> SourceInfo:
        if not self.channels:
            raise ConfigError(f'format = "{self.format}" needs channels', hint='name them: channels = ["x", "y"]')
        self.decoder()
        return row(self.channels, self.units, self.rate)

    def _end_before(self) -> bytes:
        """Return the end of a line or frame, since a decoder expects to join a stream in the middle."""
        if self.format == "binary":
            return b"\0" if self.cobs else b""
        return bytes.fromhex(self.end) or b"\n"

    def _pictures(self) -> tuple[PictureSplitter, Callable[[bytes], Picture]]:
        """Return a splitter of the output, and the function that makes a picture of a part."""
        match self.format:
            case "mjpeg":
                return JpegSplitter(Faults()), EncodedPicture
            case "rgb" | "gray" | "yuyv" as colour:
                return self._raw_pictures(colour)
        return PpmSplitter(Faults()), ppm_picture

    def _raw_pictures(self, colour: RawColour) -> tuple[PictureSplitter, Callable[[bytes], Picture]]:
        assert self.size is not None
        width, height = self.size
        depth = _BYTES_OF_A_PIXEL[colour]
        shape = (height, width) if colour == "gray" else (height, width, depth)

        def decode(data: bytes) -> Picture:
            return RawPicture(np.frombuffer(data, np.uint8).reshape(shape), colour)

        return FrameSplitter(Faults(), width * height * depth), decode
