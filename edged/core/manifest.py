"""The manifest: what a model says of itself, and the only place where its input contract is written down.

It is `manifest.json` beside the model file. Everything in it comes from outside, so decoding is strict (unknown fields
are errors), bounded (every list, name and number), and cross-checked in `check`: what is returned may be believed.
The digests in `files` are what ties the words to the bytes. The SHA-256 of the manifest's own bytes is the identity of
a version, and those bytes are what gets signed.
"""

from __future__ import annotations

import json
from math import prod
from typing import Annotated, Any, Final, Literal, NoReturn

import msgspec
import numpy as np
from msgspec import Meta

from edged.core.errors import BundleError
from edged.core.types import TensorSpec

SCHEMA: Final = "edged.manifest/1"
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILE_BYTES = 256 << 20
MAX_BUNDLE_BYTES = 512 << 20
CHUNK_BYTES = 256 << 10
MAX_ELEMENTS = 1 << 24
MAX_DIMENSIONS = 8
MAX_TENSOR_NAME = 1000
MAX_WORDS = 1000
MAX_NAMES = 1000
MAX_VALUES = 100_000
NO_DELEGATES = ("cpu", "auto")
"""What may stand where a delegate is named, and is none."""
DTYPES = ("int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64", "bool")

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}\Z")]
Version = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){0,3}\Z")]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Text = Annotated[str, Meta(max_length=1000)]
Label = Annotated[str, Meta(min_length=1, max_length=200)]
# JSON has no NaN and no infinity; these bounds keep what is left finite in float32 too.
Real = Annotated[float, Meta(ge=-1e30, le=1e30)]
Positive = Annotated[float, Meta(ge=1e-30, le=1e30)]
NotNegative = Annotated[float, Meta(ge=0, le=1e30)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Bytes = Annotated[int, Meta(ge=1, le=1 << 40)]
Seconds = Annotated[float, Meta(ge=1e-6, le=1e7)]


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every part of a manifest derives from."""


class File(Strict, frozen=True, kw_only=True):
    """Size and digest of one file of the bundle, and the digest of each 256 KiB of it, which a container needs."""

    bytes: Annotated[int, Meta(ge=1, le=MAX_FILE_BYTES)]
    sha256: Digest
    chunks: Annotated[tuple[Digest, ...], Meta(max_length=MAX_FILE_BYTES // CHUNK_BYTES)] = ()


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

    @property
    def is_picture(self) -> bool:
        """Whether it is one picture of uint8 pixels."""
        return self.length == 1 and len(self.sample_shape) >= 2 and self.dtype == "uint8"


class Normalise(Strict, frozen=True, kw_only=True, tag="normalise", tag_field="step"):
    """(x - mean) / std, per channel (last axis) or for all alike."""

    mean: Annotated[tuple[Real, ...], Meta(min_length=1, max_length=4096)]
    std: Annotated[tuple[Positive, ...], Meta(min_length=1, max_length=4096)]


class Standardise(Strict, frozen=True, kw_only=True, tag="standardise", tag_field="step"):
    """Each channel of each window to its own mean 0 and deviation 1; `floor` is the least deviation divided by."""

    floor: Positive = 1e-6


class Clip(Strict, frozen=True, kw_only=True, tag="clip", tag_field="step"):
    """Everything below `low` or above `high` to that bound."""

    low: Real
    high: Real


class NoStep(Strict, frozen=True, kw_only=True, tag="none", tag_field="step"):
    """No step at all, not even the normalisation that the model file's metadata state; it stands alone.

    Values go in as they are: the pixels of a picture (uint8 samples) into an 8-bit tensor as its stored values, 0 to
    255 in uint8 and -128 to 127 in int8, whatever its scale. That is the default for them.
    """


Step = Normalise | Standardise | Clip | NoStep


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
    falls `hysteresis` below. A threshold of 0 stands for the window's best score: the best label is the candidate. It
    must be one in `k` of the last `n` windows, and for `min_duration` seconds; after it has ended it cannot come back
    for `cooldown` seconds. Labels in `background` are never decided.
    """

    threshold: Real = 0.0
    thresholds: dict[Label, Real] = {}
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
    """Each element of the output `output` is a value with a name and a unit.

    More than 1,000 values have no names: they are an array, in the order of the output's elements.
    """

    output: Annotated[int, Meta(ge=0, le=255)] = 0
    names: Annotated[tuple[Name, ...], Meta(max_length=MAX_NAMES)] = ()
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


OptionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
OptionValue = Annotated[str, Meta(pattern=r"^[ -.0-~]{0,200}\Z")]
"""Printable, and with no slash in it: a bundle names no file of the board, least of all a library to be loaded."""


class Variant(Strict, frozen=True, kw_only=True):
    """The same model for an accelerator: a file that `delegate` runs, which may be the model's own.

    `options` are the delegate's, under those that the board gives it. The tensors are those of the manifest; a
    `signature` is the file's own, for compilers do not always keep that of the model.
    """

    name: Name
    delegate: Name
    file: FileName
    signature: Annotated[str, Meta(max_length=200)] | None = None
    options: Annotated[dict[OptionName, OptionValue], Meta(max_length=32)] = {}


class Versions(Strict, frozen=True, kw_only=True):
    """Versions of a runtime: from `at_least` on, and none from `below` on."""

    at_least: Version | None = None
    below: Version | None = None


class Needs(Strict, frozen=True, kw_only=True):
    """What a device must have to be offered the model; what is left out is not needed.

    One of `runtimes`, by the name of its package; `memory_bytes` that are free before it is loaded; one of `delegates`,
    among which "cpu" counts.
    """

    runtimes: Annotated[dict[Name, Versions], Meta(max_length=16)] = {}
    memory_bytes: Bytes | None = None
    delegates: Annotated[tuple[Name, ...], Meta(max_length=16)] = ()


class Limits(Strict, frozen=True, kw_only=True):
    """What the self-test on the device may take; without a limit of its own a model is held to the device's.

    `latency_p99` is of one inference, in seconds, `rss_bytes` of the process that tests, `seconds` of the whole test.
    `delegated_share` is the least share of its nodes that a delegate must take.
    """

    latency_p99: Seconds | None = None
    rss_bytes: Bytes | None = None
    seconds: Seconds | None = None
    delegated_share: Share | None = None


class Reference(Strict, frozen=True, kw_only=True):
    """What a model was fed and what it said over so many `windows` of a recording of what it is made for.

    `mean`, `std`, `min` and `max` are of each channel (last axis) of the samples, before preprocessing. `shares` says
    how often each label was the best, those left out that never were; `scores` are the least anomaly score, its
    quartiles, and the greatest.
    """

    windows: Count
    mean: Annotated[tuple[Real, ...], Meta(max_length=4096)]
    std: Annotated[tuple[NotNegative, ...], Meta(max_length=4096)]
    min: Annotated[tuple[Real, ...], Meta(max_length=4096)]
    max: Annotated[tuple[Real, ...], Meta(max_length=4096)]
    shares: Annotated[dict[Label, Share], Meta(max_length=100_000)] = {}
    scores: Annotated[tuple[Real, ...], Meta(max_length=5)] = ()


class Probation(Strict, frozen=True, kw_only=True):
    """How long a new version is watched as it serves, and what sends it back to where it came from.

    It lasts for `seconds` in which windows were answered, and for so many `windows` that were, whichever ends later. It
    is failed by more than `max_error_share` of the windows ending in an error or in NaN, by a latency above
    `max_latency_p99` seconds, by `constant_windows` outputs in a row that are the same to the last bit, and by more or
    fewer decisions an hour than stated. In the end it is failed too where more than the share `max_label_shift` of the
    windows had to have another label to be shared out among the labels as in the reference.
    """

    seconds: Annotated[float, Meta(ge=0, le=1e7)] = 300.0
    windows: Annotated[int, Meta(ge=0, le=1_000_000)] = 20
    max_error_share: Share = 0.05
    max_latency_p99: Seconds | None = None
    constant_windows: Annotated[int, Meta(ge=2, le=1_000_000)] | None = None
    min_decisions_per_hour: NotNegative | None = None
    max_decisions_per_hour: NotNegative | None = None
    max_label_shift: Share | None = None


class Manifest(Strict, frozen=True, kw_only=True):
    """All of it. `version` is dotted numbers and only ever goes up; `created` is when it was made, in Unix seconds."""

    schema: Literal["edged.manifest/1"]
    name: Name
    version: Version
    created: Annotated[int, Meta(ge=0, le=253_402_300_799)] = 0
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
    reference: Reference | None = None
    variants: Annotated[tuple[Variant, ...], Meta(max_length=16)] = ()
    needs: Needs = Needs()
    limits: Limits = Limits()
    probation: Probation = Probation()


def version_key(version: str) -> tuple[int, ...]:
    """Orders versions: 1.9 before 1.10, and 1 equal to 1.0."""
    parts = [int(part) for part in version.split(".")]
    return tuple(parts + [0] * (4 - len(parts)))


def decode(data: bytes) -> Manifest:
    """The manifest in the bytes of a manifest.json.

    Raises:
        BundleError: it is too big, is no manifest, or contradicts itself; the message names the field.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"manifest.json has {len(data)} bytes", hint=f"at most {MAX_MANIFEST_BYTES} are allowed")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"manifest.json: {_clipped(str(error))}", hint=_HINT) from error
    json.loads(data, object_pairs_hook=_refuse_duplicates)  # of which msgspec keeps the last: others may keep the first
    check(manifest)
    return manifest


def encode(manifest: Manifest) -> bytes:
    """The bytes of its manifest.json, indented for people to read.

    Raises:
        BundleError: it would not decode again.
    """
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    decode(data)
    return data


def check(manifest: Manifest) -> None:
    """Hold every part of a manifest against the others. Labels may be missing: then they are in the model file.

    Raises:
        BundleError: two parts contradict each other.
    """
    _check_files(manifest)
    _check_window(manifest.window)
    for place, tensors in (
        ("inputs", tuple(each.tensor for each in manifest.inputs)),
        ("outputs", manifest.outputs),
    ):
        _check_tensors(place, tensors)
    _check_inputs(manifest)
    _check_steps(manifest)
    _check_needs(manifest.needs)
    _check_variants(manifest)
    _check_limits(manifest.limits)
    _check_reference(manifest, manifest.reference)
    _check_probation(manifest)
    match manifest.postprocess:
        case Classify() as classify:
            _check_classify(manifest, classify)
        case Regress() as regress:
            _check_regress(manifest, regress)
        case Detect() as detect:
            _check_detect(manifest, detect)


_HINT = "correct manifest.json and make the bundle again"


def _refuse(place: str, problem: str) -> NoReturn:
    raise BundleError(f"manifest.json: {_clipped(f'{place}: {problem}')}", hint=_HINT)


def _clipped(words: str) -> str:
    """No more than is read: what a stranger's manifest says may be quoted here, and goes into logs and messages."""
    return words if len(words) <= MAX_WORDS else f"{words[:MAX_WORDS]}..."


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    _check_unique("an object", [key for key, _ in pairs])


def _check_files(manifest: Manifest) -> None:
    for name in ("manifest.json", "manifest.json.sig"):
        if name in manifest.files:
            _refuse("files", f"{name} cannot be vouched for by the manifest itself")
    if sum(file.bytes for file in manifest.files.values()) > MAX_BUNDLE_BYTES:
        _refuse("files", f"have more than {MAX_BUNDLE_BYTES} bytes together")
    for name, file in manifest.files.items():
        _check_chunks(name, file)
    if manifest.model not in manifest.files:
        _refuse("model", f"{manifest.model} is not in files")
    if manifest.golden is None:
        return
    if manifest.golden.file not in manifest.files:
        _refuse("golden.file", f"{manifest.golden.file} is not in files")
    if manifest.golden.file == manifest.model:
        _refuse("golden.file", "is the model itself")


def _check_chunks(name: str, file: File) -> None:
    here = f"files: {name}"
    expected = -(-file.bytes // CHUNK_BYTES)
    if len(file.chunks) not in (0, expected):
        _refuse(here, f"{file.bytes} bytes have {expected} chunks, and there are digests of {len(file.chunks)}")
    if len(file.chunks) == 1 and file.chunks[0] != file.sha256:
        _refuse(here, "its only chunk has another digest than the file")


def _check_window(window: WindowSpec) -> None:
    if bool(window.channels) == bool(window.sample_shape):
        _refuse("window", "needs either channels or sample_shape, and not both")
    _check_unique("window.channels", [channel.name for channel in window.channels])
    if window.length * prod(window.shape) > MAX_ELEMENTS:
        _refuse("window", f"has more than {MAX_ELEMENTS} elements")


def _check_tensors(place: str, tensors: tuple[TensorSpec, ...]) -> None:
    _check_unique(place, [tensor.name for tensor in tensors])
    for tensor in tensors:
        here = f"{place}: tensor {tensor.name!r}"
        if len(tensor.name) > MAX_TENSOR_NAME:
            _refuse(place, f"the name of a tensor has {len(tensor.name)} characters, and {MAX_TENSOR_NAME} are allowed")
        if len(tensor.shape) > MAX_DIMENSIONS or any(not 1 <= size <= MAX_ELEMENTS for size in tensor.shape):
            _refuse(here, f"the shape {list(tensor.shape)} is impossible")
        if prod(tensor.shape) > MAX_ELEMENTS:
            _refuse(here, f"has more than {MAX_ELEMENTS} elements")
        if tensor.dtype not in DTYPES:
            _refuse(here, f"the dtype {tensor.dtype!r} is none of {', '.join(DTYPES)}")
        _check_quantisation(here, tensor)


def _check_quantisation(here: str, tensor: TensorSpec) -> None:
    if tensor.scale == 0.0:
        if not -(1 << 31) <= tensor.zero_point < 1 << 31:
            _refuse(here, "the zero point is no 32-bit number")
        return
    if not 1e-30 <= tensor.scale <= 1e30:
        _refuse(here, f"the scale {tensor.scale} is not a positive number")
    if tensor.numpy_dtype.kind not in "iu":
        _refuse(here, f"{tensor.dtype} has no scale")
    limits = np.iinfo(tensor.numpy_dtype)
    if not limits.min <= tensor.zero_point <= limits.max:
        _refuse(here, f"the zero point {tensor.zero_point} does not fit {tensor.dtype}")


def _check_inputs(manifest: Manifest) -> None:
    if all(each.feed == "feedback" for each in manifest.inputs):
        _refuse("inputs", "none is fed by the window")
    for each in manifest.inputs:
        if each.feed == "window":
            _check_window_input(manifest.window, each)
        else:
            _check_feedback_input(manifest.outputs, each)


def _check_window_input(window: WindowSpec, each: Input) -> None:
    here = f"inputs: tensor {each.tensor.name!r}"
    if each.feedback:
        _refuse(here, 'names a feedback but its feed is "window"')
    _check_unique(f"{here}: channels", list(each.channels))
    unknown = set(each.channels) - {channel.name for channel in window.channels}
    if unknown:
        _refuse(here, f"the window has no channel {min(unknown)!r}")
    fed = (window.length, len(each.channels)) if each.channels else (window.length, *window.shape)
    taken = each.tensor.shape
    if prod(fed) != prod(taken):
        _refuse(here, f"the shape {list(taken)} does not hold a window of {list(fed)}")
    fed, taken = _without_ones(fed), _without_ones(taken)
    if fed != taken and sorted(fed) == sorted(taken):
        _refuse(here, f"the axes of the window {list(fed)} are turned round in the tensor {list(taken)}")


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _check_feedback_input(outputs: tuple[TensorSpec, ...], each: Input) -> None:
    here = f"inputs: tensor {each.tensor.name!r}"
    if each.channels:
        _refuse(here, 'names channels but its feed is "feedback"')
    for output in outputs:
        if output.name == each.feedback:
            break
    else:
        _refuse(here, f"there is no output {each.feedback!r} to feed back")
    if output.shape != each.tensor.shape:
        _refuse(here, f"has another shape than the output {each.feedback!r} it is fed with: {list(output.shape)}")


def _check_steps(manifest: Manifest) -> None:
    columns = manifest.window.shape[-1]
    for position, step in enumerate(manifest.preprocess):
        here = f"preprocess[{position}]"
        match step:
            case Normalise(mean=mean, std=std):
                for name, values in (("mean", mean), ("std", std)):
                    if len(values) not in (1, columns):
                        _refuse(f"{here}.{name}", f"has {len(values)} values, where 1 or {columns} are needed")
            case Clip(low=low, high=high) if low >= high:
                _refuse(here, f"low ({low}) is not below high ({high})")
            case NoStep() if len(manifest.preprocess) > 1:
                _refuse(here, '"none" stands alone')


def _check_needs(needs: Needs) -> None:
    for name, versions in needs.runtimes.items():
        if versions.at_least and versions.below and version_key(versions.at_least) >= version_key(versions.below):
            _refuse(f"needs.runtimes: {name}", f"no version is {versions.at_least} or above and below {versions.below}")
    _check_unique("needs.delegates", list(needs.delegates))


def _check_variants(manifest: Manifest) -> None:
    _check_unique("variants", [variant.name for variant in manifest.variants])
    for variant in manifest.variants:
        here = f"variants: {variant.name}"
        for word in (variant.name, variant.delegate):
            if word in NO_DELEGATES:
                _refuse(here, f"{word!r} means something else wherever a delegate is named")
        if variant.file not in manifest.files:
            _refuse(here, f"{variant.file} is not in files")
        if manifest.golden is not None and variant.file == manifest.golden.file:
            _refuse(here, f"{variant.file} is the golden samples")
    if manifest.variants and manifest.backend != "tflite":
        _refuse("variants", f"the backend {manifest.backend} has no delegates")
    if manifest.limits.delegated_share is not None and not manifest.variants:
        _refuse("limits.delegated_share", "there is no variant of which a delegate could take a share")


def _check_limits(limits: Limits) -> None:
    if limits.latency_p99 and limits.seconds and limits.latency_p99 > limits.seconds:
        _refuse("limits", "latency_p99 is more than seconds, in which all inferences of the self-test must fit")


def _check_reference(manifest: Manifest, reference: Reference | None) -> None:
    if reference is None:
        return
    columns = manifest.window.shape[-1]
    for name in ("mean", "std", "min", "max"):
        if len(getattr(reference, name)) != columns:
            _refuse(f"reference.{name}", f"has {len(getattr(reference, name))} values, where {columns} are needed")
    if reference.shares and not isinstance(manifest.postprocess, Classify):
        _refuse("reference.shares", "only a classification has labels to share out")
    unknown = reference.shares.keys() - set(manifest.labels)
    if manifest.labels and unknown:
        _refuse("reference.shares", f"there is no label {min(unknown)!r}")
    if reference.shares and abs(sum(reference.shares.values()) - 1) > 0.01:
        _refuse("reference.shares", f"are {sum(reference.shares.values()):g} together, and not 1")
    if reference.scores and not isinstance(manifest.postprocess, Detect):
        _refuse("reference.scores", "only an anomaly has a score")
    if len(reference.scores) not in (0, 5) or sorted(reference.scores) != list(reference.scores):
        _refuse("reference.scores", "must be five, in ascending order")


def _check_probation(manifest: Manifest) -> None:
    probation = manifest.probation
    low, high = probation.min_decisions_per_hour, probation.max_decisions_per_hour
    if (low is not None or high is not None) and isinstance(manifest.postprocess, Regress):
        _refuse("probation", "a regression decides nothing that could be counted by the hour")
    if low is not None and high is not None and low > high:
        _refuse("probation", f"min_decisions_per_hour ({low:g}) is more than max_decisions_per_hour ({high:g})")
    if probation.max_label_shift is not None and not (manifest.reference and manifest.reference.shares):
        _refuse("probation.max_label_shift", "needs reference.shares to be held against")
    if probation.constant_windows and probation.constant_windows > probation.windows:
        _refuse("probation", "constant_windows is more than windows, so it might never be reached")


def _check_classify(manifest: Manifest, classify: Classify) -> None:
    scores = prod(_output(manifest, classify.output).shape)
    if manifest.labels and len(manifest.labels) != scores:
        _refuse("labels", f"there are {len(manifest.labels)} for {scores} scores")
    _check_unique("labels", list(manifest.labels))
    decision = classify.decision
    _check_decision(decision)
    if scores == 1 and not (decision.threshold or any(decision.thresholds.values())):
        _refuse("postprocess.decision.threshold", "a single label needs one, as it is the best in every window")
    unknown = {*decision.thresholds, *decision.background} - set(manifest.labels)
    if manifest.labels and unknown:
        _refuse("postprocess.decision", f"there is no label {min(unknown)!r}")


def _check_regress(manifest: Manifest, regress: Regress) -> None:
    _check_no_labels(manifest)
    values = prod(_output(manifest, regress.output).shape)
    _check_unique("postprocess.names", list(regress.names))
    if values > MAX_VALUES:
        _refuse("postprocess.output", f"has {values} values, and {MAX_VALUES} are allowed")
    if len(regress.names) != (values if values <= MAX_NAMES else 0):
        more = f": more than {MAX_NAMES} have no names" if values > MAX_NAMES else ""
        _refuse("postprocess.names", f"there are {len(regress.names)} for {values} values{more}")
    if len(regress.units) not in (0, len(regress.names)):
        _refuse("postprocess.units", f"there are {len(regress.units)} for {values} values")


def _check_detect(manifest: Manifest, detect: Detect) -> None:
    _check_no_labels(manifest)
    _check_decision(detect.decision)
    if detect.decision.thresholds or detect.decision.background:
        _refuse("postprocess.decision", "an anomaly has no labels, only a threshold")
    if not detect.decision.threshold:
        _refuse("postprocess.decision.threshold", "an anomaly needs one that is not 0")
    scored = prod(_output(manifest, detect.output).shape)
    first = manifest.inputs[0]
    rebuilt = prod(first.tensor.shape)
    if detect.score == "output":
        if scored != 1:
            _refuse("postprocess.output", f"an anomaly score is one number, and the output has {scored}")
        return
    if first.feed != "window":
        _refuse("postprocess.score", "an autoencoder rebuilds its first input, which is not fed by the window")
    if scored != rebuilt:
        _refuse("postprocess.score", f"{scored} elements cannot rebuild the {rebuilt} of the first input")


def _check_decision(decision: Decision) -> None:
    if decision.k > decision.n:
        _refuse("postprocess.decision", f"k ({decision.k}) is more than n ({decision.n})")


def _check_no_labels(manifest: Manifest) -> None:
    if manifest.labels:
        _refuse("labels", "only a classification has them")


def _output(manifest: Manifest, index: int) -> TensorSpec:
    if index >= len(manifest.outputs):
        _refuse("postprocess.output", f"there is no output {index}, only {len(manifest.outputs)}")
    return manifest.outputs[index]


def _check_unique(place: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            _refuse(place, f"{name!r} is there twice")
        seen.add(name)
