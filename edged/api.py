"""Interface for authors of plug-ins: the contracts of sources, backends and sinks, and the data that pass through them.

The configuration class is the plug-in: a frozen `msgspec.Struct` (keyword-only, unknown fields forbidden) with the
options of its table in edged.toml as fields, the manual as docstring, and a method `open()` or `load()` that returns
the working object. Construct cheaply, do no I/O before `open()`, raise EdgedError with a hint, and leave threads,
reconnecting, statistics and logging to the daemon, which treats all plug-ins alike.
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
    PictureError,
    StoreError,
)
from edged.core.record import Recorder, WallClock
from edged.core.topics import Topics
from edged.core.types import (
    Anomaly,
    Arrays,
    Chunk,
    Classification,
    Detections,
    Message,
    Obstacle,
    Outcome,
    Picture,
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
    "Detections",
    "DeviceError",
    "DeviceRequirements",
    "EdgedError",
    "Message",
    "ModelError",
    "Obstacle",
    "Outbox",
    "Outcome",
    "Picture",
    "PictureError",
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
    """Base of the configuration class of every plug-in."""


@runtime_checkable
class Source(Protocol):
    """An opened sensor. One thread reads and closes the source.

    Optional attributes: `refused`, a text that shows the latest discarded input; and `obstacle`, an `Obstacle` or None,
    the reason why received bytes do not become samples. The daemon shows both while relevant.
    """

    def read(self, timeout: float) -> Chunk | None:
        """Wait up to `timeout` seconds for samples; return None if none arrived.

        Raises:
            DeviceError: the sensor is gone or unintelligible; the daemon closes the source and opens it again later.
            EOFError: no further sample will ever arrive (the end of a recording).
        """

    @property
    def faults(self) -> dict[str, int]:
        """Return the counts of discarded input by reason: {"bad crc": 3}."""

    def close(self) -> None:
        """Let go of the device. Never raises; may be called twice."""


class SourceConfig(Options, frozen=True, kw_only=True):
    """Options of a kind of source."""

    def describe(self) -> SourceInfo:
        """Return the properties of the source, without opening a device. Raises ConfigError if the options contradict
        each other.
        """
        raise NotImplementedError

    def devices(self) -> DeviceRequirements:
        """Return the devices that the service's sandbox must permit to the source, without opening any of them.

        By default a source needs no device.
        """
        return DeviceRequirements()

    def open(self) -> Source:
        """Open the device. Raises DeviceError with a hint if the device is missing or not permitted."""
        raise NotImplementedError


class Runner(Protocol):
    """A loaded model, used by one thread at a time."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def info(self) -> RunnerInfo:
        """Return the present runtime and delegate."""

    def run(self, inputs: Arrays) -> Arrays:
        """Run once. `inputs` match the input specs in order, shape and dtype; outputs are valid until the next run.

        Raises:
            ModelError: the runtime failed on this input.
        """

    def reset(self) -> None:
        """Forget the state of earlier runs."""

    def close(self) -> None:
        """Let go of memory and device. Never raises; may be called twice."""


class Backend(Options, frozen=True, kw_only=True):
    """Options of a kind of backend, from a model's table: `backend = "tflite"` and further keys."""

    def load(self, file: Path, *, signature: str | None = None) -> Runner:
        """Load a model file; `signature` names a signature of a file with several.

        Raises:
            ModelError: the model does not work here.
            BundleError: the file is damaged.
        """
        raise NotImplementedError

    def title(self) -> str:
        """Return name and version of the runtime, as in RunnerInfo; "" if known to a loaded model only.

        The daemon records under this title the models that a child process has loaded, run and closed without harm.
        Models of a backend without a title are proven in a child process at every start.

        Raises:
            ModelError: no runtime is installed.
        """
        return ""


class Outbox(Protocol):
    """Queue of messages for the broker."""

    def put(self, message: Message) -> None:
        """Take over a message; without room the message is dropped and counted. Raises TypeError for wrong types.

        Returns at once, except for a pipeline of durability "always": then once the message is on disk.
        """


class SinkContext(msgspec.Struct, frozen=True, kw_only=True):
    """Context given to every sink by the daemon.

    `device` and `boot` identify the board and the run of the daemon, `topics` are the topics for publications. `clock`
    converts monotonic times to wall-clock time.
    """

    device: str
    boot: str
    topics: Topics
    outbox: Outbox
    clock: WallClock


class Sink(Protocol):
    """Destination of predictions. One thread at a time calls `send`."""

    def send(self, prediction: Prediction) -> None:
        """Send a prediction. Raises EdgedError on failure; the prediction is then counted as dropped."""

    def close(self) -> None:
        """Flush and let go. Never raises; may be called twice."""


class SinkConfig(Options, frozen=True, kw_only=True):
    """Options of a kind of sink.

    A sink that may wait for a disk, a pipe or a peer is `blocking`: the daemon opens the sink once, with a thread and a
    bounded queue of its own. Other sinks are opened for each pipeline and called on the thread that serves the window.
    """

    blocking: ClassVar[bool] = True

    def open(self, context: SinkContext) -> Sink:
        """Open the sink. Raises StoreError or DeviceError with a hint."""
        raise NotImplementedError
