"""The data that travels: chunk -> window -> prediction -> message.

Times inside are CLOCK_MONOTONIC seconds; wall-clock time is added once, where a message leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray


class SourceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a source will deliver, known before the first sample.

    `shape` is the shape of one sample: `(6,)` for six channels, `(96, 96, 3)` for a picture.
    `channels` and `units` name the columns where a sample is a row of channels; empty means unstated.
    `rate` is in samples per second; None where only the sensor knows. `pace` is how many a second arrive, where that is
    another number: of a recording that is played faster or slower than it was made. A `patient` source can wait while
    the pipeline catches up (a recording played as fast as possible); physics cannot.
    """

    shape: tuple[int, ...]
    channels: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    rate: float | None = None
    pace: float | None = None
    patient: bool = False


class Chunk(NamedTuple):
    """What a source yields: samples that arrived together.

    `samples` has shape `(n, *SourceInfo.shape)` with n >= 1, and is only valid until the next read.
    `time` is when the last of them arrived. `lost` counts the samples missing just before the first one: 0 when
    the stream went on without a break, and at least 1 when it broke and the number is unknown. `anew` says that
    another stream begins with the first one, as a recording that is played again: no window spans that, and nothing
    is lost.
    """

    samples: NDArray[Any]
    time: float
    lost: int = 0
    anew: bool = False


MAX_SHOWN = 80
"""Characters that are shown of input that was thrown away."""


class Obstacle(NamedTuple):
    """The reason why bytes that a source receives do not become samples, and what to do about it."""

    reason: str
    hint: str


class Window(NamedTuple):
    """What a model eats: `samples` of shape `(length, *sample shape)`, and where it stands in the stream.

    `samples` are shared with the windows that overlap it, and nobody writes to them. `seq` counts the windows the
    stream has had, including those that were dropped on the way, so a jump shows. `time` is when its last sample
    arrived, `start` when its first did; None where no rate is known.
    """

    samples: NDArray[Any]
    seq: int
    time: float
    start: float | None = None


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Specification of one input or output tensor of a model: real = scale * (stored - zero_point).

    Keys:
        name: Name of the tensor in the model file.
        shape: Shape of the tensor.
        dtype: Type of its elements, for example "int8".
        scale: Quantisation scale; 0 for a tensor that is not quantised.
        zero_point: Quantisation zero point.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype as numpy knows it."""
        return np.dtype(self.dtype)


class RunnerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded model runs on: for `edgectl models` and the result's metadata.

    `delegate` is "cpu" or the name of an accelerator; `nodes` and `delegated` count graph nodes, 0 where unknown.
    """

    backend: str
    runtime: str
    delegate: str = "cpu"
    threads: int = 1
    nodes: int = 0
    delegated: int = 0


class Score(msgspec.Struct, frozen=True, gc=False):
    """One label with its score, a probability for classifiers that give one."""

    label: str
    score: float


class Classification(msgspec.Struct, frozen=True, tag="classification", tag_field="kind"):
    """The best labels of one window, best first, and what is decided over time.

    `decision` is the label that thresholds, smoothing, minimum duration and cooldown let through now, None for
    none; `changed` is true on the window at which it became so.
    """

    label: str
    score: float
    scores: tuple[Score, ...]
    decision: str | None
    changed: bool


class Regression(msgspec.Struct, frozen=True, tag="regression", tag_field="kind"):
    """Named real values, or an array of them where they are too many to be named."""

    values: dict[str, float] | list[float]


class Anomaly(msgspec.Struct, frozen=True, tag="anomaly", tag_field="kind"):
    """How far a window is from what the model knows; `anomalous` is decided over time, `changed` as it turns."""

    score: float
    threshold: float
    anomalous: bool
    changed: bool


Outcome = Classification | Regression | Anomaly


class Prediction(msgspec.Struct, frozen=True):
    """What a pipeline says of one window.

    `start` and `time` are when the window's first and last samples arrived, `start` None where no rate is known.
    `latency` is the seconds from `time` until the prediction was made, `inference` those of them the model took.
    """

    pipeline: str
    model: str
    version: str
    seq: int
    start: float | None
    time: float
    latency: float
    inference: float
    outcome: Outcome


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What a sink sends: a payload for one topic, waiting in the spool until the broker has it.

    `origin` is the pipeline it belongs to and `seq` its number there; with the boot id they identify it for ever.
    `created` is when what it tells was made, in CLOCK_MONOTONIC seconds; it is only `estimated` of a message of an
    earlier boot that did not know the time. `expiry` is how many seconds later it is worthless (0: never).
    """

    topic: str
    payload: bytes
    origin: str
    seq: int
    created: float
    qos: int = 1
    expiry: int = 0
    properties: tuple[tuple[str, str], ...] = ()
    estimated: bool = False


Arrays = Sequence[NDArray[Any]]
"""Tensors in the order of a model's inputs or outputs."""
