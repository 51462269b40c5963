"""The manifest: what a model says of itself, and the only place where its input contract is written down.

It is `manifest.json` beside the model file. Everything in it comes from outside, so decoding is strict (unknown fields
are errors), bounded (every list, name and number), and cross-checked in `check`: what is returned may be believed.
The digests in `files` are what ties the words to the bytes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edged.core.types import TensorSpec

SCHEMA = "edged.manifest/1"
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILE_BYTES = 256 << 20

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}\Z")]
Version = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){0,3}\Z")]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Text = Annotated[str, Meta(max_length=1000)]
Label = Annotated[str, Meta(min_length=1, max_length=200)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every part of a manifest derives from."""


class File(Strict, frozen=True, kw_only=True):
    """Size and digest of one file of the bundle."""

    bytes: Annotated[int, Meta(ge=1, le=MAX_FILE_BYTES)]
    sha256: Digest


class Channel(Strict, frozen=True, kw_only=True):
    """One column of a sample. A source that states units must state this one."""

    name: Name
    unit: Annotated[str, Meta(max_length=32)] = ""


class WindowSpec(Strict, frozen=True, kw_only=True):
    """How samples become windows: `length` of them at a time, a new window every `hop` samples.

    `rate` is in samples per second, and what a source says of itself may be off by the share `rate_tolerance`; a
    model with no rate takes samples as they come. A sample is a row of `channels`, or has the shape `sample_shape`.
    """

    length: Count
    hop: Count
    rate: Positive | None = None
    rate_tolerance: Share = 0.05
    channels: Annotated[tuple[Channel, ...], Meta(max_length=4096)] = ()
    sample_shape: Annotated[tuple[Count, ...], Meta(max_length=3)] = ()
    dtype: Literal["float32", "uint8", "int16"] = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.sample_shape or (len(self.channels),)


class Normalise(Strict, frozen=True, kw_only=True, tag="normalise", tag_field="step"):
    """(x - mean) / std, per channel (last axis) or for all alike."""

    mean: Annotated[tuple[float, ...], Meta(min_length=1, max_length=4096)]
    std: Annotated[tuple[Positive, ...], Meta(min_length=1, max_length=4096)]


class Standardise(Strict, frozen=True, kw_only=True, tag="standardise", tag_field="step"):
    """Each channel of each window to its own mean 0 and deviation 1; `floor` is the least deviation divided by."""

    floor: Positive = 1e-6


class Clip(Strict, frozen=True, kw_only=True, tag="clip", tag_field="step"):
    """Everything below `low` or above `high` to that bound."""

    low: float
    high: float


Step = Normalise | Standardise | Clip


class Input(Strict, frozen=True, kw_only=True):
    """One input tensor and what feeds it.

    "window" is the preprocessed window, or those `channels` of it. "feedback" is what the output named by `feedback`
    said last time, zero at the start. Stateful models that keep their state inside need neither.
    """

    tensor: TensorSpec
    feed: Literal["window", "feedback"] = "window"
    channels: Annotated[tuple[Name, ...], Meta(max_length=4096)] = ()
    feedback: Annotated[str, Meta(max_length=200)] = ""


class Decision(Strict, frozen=True, kw_only=True):
    """When a score becomes a decision. These, and only these, may be overridden by the configuration.

    A label is a candidate while its score is at least `threshold` (or its own in `thresholds`), and stays one until it
    falls `hysteresis` below. It must be one in `k` of the last `n` windows, and for `min_duration` seconds; after it
    has ended it cannot come back for `cooldown` seconds. Labels in `background` are never decided.
    """

    threshold: float = 0.0
    thresholds: dict[Label, float] = {}
    hysteresis: NotNegative = 0.0
    k: Count = 1
    n: Annotated[int, Meta(ge=1, le=1000)] = 1
    min_duration: NotNegative = 0.0
    cooldown: NotNegative = 0.0
    background: tuple[Label, ...] = ()


class Classify(Strict, frozen=True, kw_only=True, tag="classification", tag_field="kind"):
    """Scores of `labels` in the output `output`; `activation` turns logits into probabilities."""

    output: Annotated[int, Meta(ge=0, le=255)] = 0
    activation: Literal["none", "softmax", "sigmoid"] = "none"
    top_k: Annotated[int, Meta(ge=1, le=100)] = 5
    decision: Decision = Decision()


class Regress(Strict, frozen=True, kw_only=True, tag="regression", tag_field="kind"):
    """Each element of the output `output` is a value with a name and a unit."""

    output: Annotated[int, Meta(ge=0, le=255)] = 0
    names: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=1000)]
    units: Annotated[tuple[Annotated[str, Meta(max_length=32)], ...], Meta(max_length=1000)] = ()


class Detect(Strict, frozen=True, kw_only=True, tag="anomaly", tag_field="kind"):
    """An anomaly score: the output itself, or how badly an autoencoder rebuilds its (preprocessed) first input.

    The decision's `threshold` is what it is held against.
    """

    output: Annotated[int, Meta(ge=0, le=255)] = 0
    score: Literal["output", "mean_absolute_error", "mean_squared_error"] = "mean_squared_error"
    decision: Decision


Postprocess = Classify | Regress | Detect


class Golden(Strict, frozen=True, kw_only=True):
    """Golden samples: an .npz with arrays `input_0..` of shape (n, *tensor shape) and `output_0..` likewise.

    They are stored as the tensors are, quantised. An output agrees when no element is further off than `steps`
    quantisation steps, or `absolute` where the output is not quantised, and the decision (argmax) is the same.
    """

    file: FileName = "golden.npz"
    steps: NotNegative = 2.0
    absolute: NotNegative = 1e-3


class Manifest(Strict, frozen=True, kw_only=True):
    """All of it. `version` is dotted numbers and only ever goes up."""

    schema: Literal["edged.manifest/1"]
    name: Name
    version: Version
    description: Text = ""
    licence: Text = ""
    files: Annotated[dict[FileName, File], Meta(max_length=64)]
    model: FileName = "model.tflite"
    backend: Name = "tflite"
    signature: Annotated[str, Meta(max_length=200)] | None = None
    window: WindowSpec
    inputs: Annotated[tuple[Input, ...], Meta(min_length=1, max_length=64)]
    outputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1, max_length=64)]
    preprocess: Annotated[tuple[Step, ...], Meta(max_length=16)] = ()
    labels: Annotated[tuple[Label, ...], Meta(max_length=100_000)] = ()
    postprocess: Postprocess
    golden: Golden | None = None


def version_key(version: str) -> tuple[int, ...]:
    """Orders versions: 1.9 before 1.10, and 1 equal to 1.0."""
    parts = [int(part) for part in version.split(".")]
    return tuple(parts + [0] * (4 - len(parts)))
