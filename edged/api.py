"""All a plug-in author imports: the contracts of sources, backends and sinks, and the data that passes through them.

The configuration class is the plug-in. It is a frozen `msgspec.Struct` (keyword-only, unknown fields forbidden) whose
fields are the options of its table in edged.toml, whose docstring is the manual, and whose `open()` or `load()` gives
the working thing. Construct cheaply, do no I/O before `open()`, raise EdgedError with a hint, and leave threads,
reconnecting, statistics and logging to the daemon: it wraps every plug-in alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import msgspec

from edged.core.device_requirements import DeviceRequirements
from edged.core.errors import (
    BundleError,
    ConfigError,
    ControlError,
    DeviceError,
    EdgedError,
    ModelError,
    StoreError,
)
from edged.core.record import Recorder, WallClock
from edged.core.topics import Topics
from edged.core.types import (
    Anomaly,
    Arrays,
    Chunk,
    Classification,
    Message,
    Obstacle,
    Outcome,
    Prediction,
    Regression,
    RunnerInfo,
    Score,
    SourceInfo,
    TensorSpec,
    Window,
)

__all__ = [
    "Anomaly",
    "Arrays",
    "Backend",
    "BundleError",
    "Chunk",
    "Classification",
    "ConfigError",
    "ControlError",
    "DeviceError",
    "DeviceRequirements",
    "EdgedError",
    "Message",
    "ModelError",
    "Obstacle",
    "Outbox",
    "Outcome",
    "Prediction",
    "Recorder",
    "Regression",
    "Runner",
    "RunnerInfo",
    "Score",
    "Sink",
    "SinkConfig",
    "SinkContext",
    "Source",
    "SourceConfig",
    "SourceInfo",
    "StoreError",
    "TensorSpec",
    "Topics",
    "WallClock",
    "Window",
]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the configuration class of every plug-in derives from."""


@runtime_checkable
class Source(Protocol):
    """An opened sensor. One thread reads it; it is closed by that thread.

    A source may also have `refused`, a text: how the last input looked that it threw away; and `obstacle`, an
    `Obstacle` or None: why what comes does not become samples. Both are shown while they help.
    """

    def read(self, timeout: float) -> Chunk | None:
        """Wait up to `timeout` seconds for samples; None if none came.

        Raises:
            DeviceError: the sensor is gone or cannot be understood any more; it is closed and opened again, later.
            EOFError: there will never be another sample (the end of a recording).
        """

    @property
    def faults(self) -> dict[str, int]:
        """How often input was thrown away so far, by reason: {"bad crc": 3}."""

    def close(self) -> None:
        """Let go of the device. Never raises; may be called twice."""


class SourceConfig(Options, frozen=True, kw_only=True):
    """Options of a kind of source."""

    def describe(self) -> SourceInfo:
        """What it will deliver, without opening a device. Raises ConfigError if the options contradict one another."""
        raise NotImplementedError

    def devices(self) -> DeviceRequirements:
        """Return the devices that the service's sandbox must let the source open, without opening any of them.

        By default a source needs no device.
        """
        return DeviceRequirements()

    def open(self) -> Source:
        """Open the device. Raises DeviceError, with a hint, when it is not there or not ours to open."""
        raise NotImplementedError


class Runner(Protocol):
    """A loaded model, used by one thread at a time."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def info(self) -> RunnerInfo:
        """What it runs on, now."""

    def run(self, inputs: Arrays) -> Arrays:
        """Run once. `inputs` match the input specs in order, shape and dtype; outputs are valid until the next run.

        Raises:
            ModelError: the runtime failed on this input.
        """

    def reset(self) -> None:
        """Forget what a stateful model remembers of earlier runs."""

    def close(self) -> None:
        """Let go of memory and device. Never raises; may be called twice."""


class Backend(Options, frozen=True, kw_only=True):
    """Options of a kind of backend, from a model's table: `backend = "tflite"` and whatever else it takes."""

    def load(self, file: Path, *, signature: str | None = None) -> Runner:
        """Load a model file; `signature` picks one by name where a file has several.

        Raises:
            ModelError: it does not work here, and why.
            BundleError: the file is damaged.
        """
        raise NotImplementedError

    def title(self) -> str:
        """Name and version of the runtime, as in RunnerInfo; "" if only a loaded model tells.

        The daemon remembers under this title which models a child process has loaded, run and closed without harm.
        Models of a backend without a title are proven in a child at every start.

        Raises:
            ModelError: no runtime is installed.
        """
        return ""


class Outbox(Protocol):
    """Where a sink leaves messages for the broker."""

    def put(self, message: Message) -> None:
        """Take a message over: what cannot be kept is dropped and counted. Raises TypeError if it is of other types.

        Returns at once, except for a pipeline of durability "always": then it returns when the message is on disk.
        """


class SinkContext(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon hands every sink as it opens.

    `device` and `boot` identify this board and this run of it, `topics` are where it publishes. `clock` gives
    wall-clock time for monotonic moments.
    """

    device: str
    boot: str
    topics: Topics
    outbox: Outbox
    clock: WallClock


class Sink(Protocol):
    """Where predictions go. One thread calls `send`."""

    def send(self, prediction: Prediction) -> None:
        """Send one. Raises EdgedError if it could not be sent; the prediction is then counted as dropped."""

    def close(self) -> None:
        """Flush and let go. Never raises; may be called twice."""


class SinkConfig(Options, frozen=True, kw_only=True):
    """Options of a kind of sink.

    A sink that may wait for a disk, a pipe or a peer is `blocking`: it is opened once and gets a thread and a bounded
    queue of its own. One that never waits is opened for each pipeline and called on its worker's thread.
    """

    blocking: ClassVar[bool] = True

    def open(self, context: SinkContext) -> Sink:
        """Open it. Raises StoreError or DeviceError, with a hint."""
        raise NotImplementedError
