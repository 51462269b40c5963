"""A sensor on a serial port: samples as text lines or binary frames.

This module fetches bytes, and core/framing.py decodes them. pyserial opens and configures the port. Reading goes
straight to the descriptor: the terminal driver waits for input and returns all available bytes in one system call, and
they are decoded as a block.
"""

import contextlib
import errno
import os
import select
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from edged.api import (
    Chunk,
    DeviceError,
    DeviceRequirements,
    Obstacle,
    Source,
    SourceInfo,
)
from edged.core.framing import Decoder, Stretch
from edged.sources.columns import Channels, Rate, row
from edged.sources.framed import FramedSource

if TYPE_CHECKING:
    import serial

MAX_BLOCK = 65_536

DRIVER_WAIT = 1.0
"""Seconds for which the terminal driver waits for input; a read of shorter timeout polls first."""

_ALLOW = "sudo edgectl devices allow --restart"
_IN_EVERY_SANDBOX = {"console", "ptmx", "tty"}

_ADAPTERS = {"ttyUSB": "usbserial", "ttyACM": "cdc_acm"}
"""Kernel drivers of serial ports that come and go, and the module for each driver."""


class SerialSource(FramedSource, frozen=True, kw_only=True):
    """Options of [sources.X] with kind = "serial": a sensor on a serial port, with lines of text or binary frames.

    Lines between the samples are passed over if `comment`, `prefix` or `select` excludes them, and so is a line of
    column names. Any other line or frame without a sample counts as a fault and breaks the window.

    Keys:
        port: Device file of the port, best the stable name in /dev/serial/by-id.
        baud (Bd): Speed of the port.
        channels: Columns or fields to take from each sample, in this order.
        rate (Hz): Samples a second from the sensor.
        format: Form of a sample. "csv": a line of numbers. "json": a line with an object, with a key for each channel,
            or with an array of numbers in the order of `columns`. "binary": a frame.
    """

    port: Annotated[str, Meta(min_length=1, max_length=4096)]
    baud: Annotated[int, Meta(ge=50, le=20_000_000)] = 115_200
    channels: Annotated[Channels, Meta(min_length=1)]
    rate: Rate | None = None
    format: Literal["csv", "json", "binary"] = "csv"

    def describe(self) -> SourceInfo:
        """Return the channels, units and rate of the options."""
        self.decoder()
        return row(self.channels, self.units, self.rate)

    def devices(self) -> DeviceRequirements:
        """Return the port, possibly a USB adapter that is not plugged in."""
        return DeviceRequirements(paths=(self.port,), drivers=_ADAPTERS)

    def open(self) -> Source:
        """Open the port, shared with no other program."""
        decoder = self.decoder()
        return SerialPort(self.port, open_port(self.port, self.baud), decoder)


class SerialPort:
    """An open port, and the samples read so far."""

    def __init__(
        self, name: str, port: "serial.Serial", decoder: Decoder, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._port = port
        self._decoder = decoder
        self._clock = clock
        self._fd = port.fileno()
        self._arrival = select.poll()
        self._arrival.register(self._fd, select.POLLIN)
        self._arrived = 0.0
        self._ready: deque[Stretch] = deque()

    @property
    def faults(self) -> dict[str, int]:
        """The number of faults, by reason."""
        return self._decoder.faults

    @property
    def refused(self) -> str:
        """The beginning of the last discarded line or frame, escaped."""
        return self._decoder.faults.last

    @property
    def obstacle(self) -> Obstacle | None:
        """The reason for bytes without samples, None while samples come."""
        return self._decoder.obstacle

    def read(self, timeout: float) -> Chunk | None:
        """Return the samples received, None without a complete sample."""
        if not self._ready and (timeout >= DRIVER_WAIT or self._arrival.poll(timeout * 1000)):
            block = self._take()
            self._arrived = self._clock()
            self._ready.extend(self._decoder.decode(block))
        if not self._ready:
            return None
        stretch = self._ready.popleft()
        return Chunk(stretch.samples, self._arrived, stretch.lost)

    def close(self) -> None:
        """Close the port."""
        with contextlib.suppress(Exception):  # an unplugged device may refuse even that
            self._port.close()

    def _take(self) -> bytes:
        """Return the bytes received; none after `DRIVER_WAIT` without input."""
        try:
            block = os.read(self._fd, MAX_BLOCK)
        except OSError as error:
            raise self._gone(error.strerror or str(error)) from error
        if not block and any(event != select.POLLIN for _, event in self._arrival.poll(0)):
            raise self._gone("the end of the input, as after a disconnection")
        return block

    def _gone(self, why: str) -> DeviceError:
        return DeviceError(
            f"{self._name} is gone: {why}",
            hint="plug the device in again, and check cable and power; edged opens the device again by itself",
            retryable=True,
        )


def open_port(path: str, baud: int) -> "serial.Serial":
    """Open a port that no other program may share. Raises DeviceError."""
    import termios

    import serial

    try:
        port = serial.Serial(path, baud, timeout=0, exclusive=True)
        settings = termios.tcgetattr(port.fileno())
        settings[6][termios.VMIN] = 0
        settings[6][termios.VTIME] = int(DRIVER_WAIT * 10)
        termios.tcsetattr(port.fileno(), termios.TCSANOW, settings)
        os.set_blocking(port.fileno(), True)
    except (OSError, ValueError, termios.error) as error:
        raise refusal(path, error) from error
    return port


def refusal(path: str, error: Exception, root: Path = Path("/")) -> DeviceError:
    """Return the error for a port that cannot be opened. Available ports are looked up below `root`."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        hint = _ports(root / "dev/serial/by-id")
        if _sandboxed(root):
            hint = f"the service's sandbox hides all devices: run {_ALLOW}; after that, plug the device in"
        return DeviceError(f"{path} is not there", hint=hint, retryable=True)
    if number == errno.EPERM:  # its permissions would let us, so that it is the service's sandbox that does not
        return DeviceError(f"the service's sandbox blocks {path}", hint=f"run {_ALLOW}", retryable=True)
    if number == errno.EACCES:
        return DeviceError(
            f"not allowed to open {path}",
            hint="add the user of edged to the group dialout (sudo usermod -aG dialout USER) and restart, "
            f"or give the user access by a udev rule; then: {_ALLOW}",
            retryable=True,
        )
    if number in (errno.EBUSY, errno.EAGAIN):
        return DeviceError(
            f"{path} is in use by another program",
            hint=f"find the program: sudo fuser -v {path} (ModemManager and a login console are usual)",
            retryable=True,
        )
    return DeviceError(f"{path} cannot be opened as a serial port: {error}", hint="check port and baud", retryable=True)


def _sandboxed(root: Path) -> bool:
    """Return whether /dev lacks all terminals of the kernel, as in a unit with PrivateDevices=."""
    try:
        kernels = {entry.name for entry in (root / "sys/class/tty").iterdir()} - _IN_EVERY_SANDBOX
    except OSError:
        return False
    return bool(kernels) and not any((root / "dev" / name).exists() for name in kernels)


def _ports(folder: Path) -> str:
    try:
        names = sorted(str(entry) for entry in folder.iterdir())
    except OSError:
        names = []
    if not names:
        return "plug it in; no USB serial port is available now"
    return "plug it in, or set port to an available port: " + ", ".join(names[:8])
