"""The manifest: description of a model, and the only statement of the model's input contract.

The manifest is the file `manifest.json` beside the model file. Since the content comes from outside, decoding is strict
(unknown fields are errors), bounded (every list, name and number), and cross-checked by `check`: a returned manifest
is consistent. The digests in `files` bind the description to the files. The SHA-256 of the manifest's bytes is the
identity of a version, and signatures cover these bytes.
"""

from __future__ import annotations

import json
from math import prod
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta

from edged.core.detection_spec import AnchorFile, DetectObjects, SsdAnchors, check_detection
from edged.core.errors import BundleError
from edged.core.manifest_outcomes import (
    ClassifyMany,
    Embed,
    FindKeypoints,
    ReadTensor,
    SegmentPicture,
    check_embedding,
    check_keypoints,
    check_multilabel,
    check_segmentation,
    check_tensor,
)
from edged.core.manifest_parts import (
    HINT,
    MAX_ELEMENTS,
    MAX_NAMES,
    MAX_VALUES,
    Bytes,
    Count,
    Decision,
    Digest,
    FileName,
    Label,
    Name,
    NotNegative,
    Positive,
    Real,
    Seconds,
    Share,
    ShortText,
    Strict,
    Version,
    check_decision,
    check_unique,
    clipped,
    output_of,
    refuse,
)
from edged.core.pictures import PictureSpec, default_spec
from edged.core.types import TensorSpec

SCHEMA: Final = "edged.manifest/1"
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILE_BYTES = 256 << 20
MAX_BUNDLE_BYTES = 512 << 20
CHUNK_BYTES = 256 << 10
MAX_DIMENSIONS = 8
MAX_TENSOR_NAME = 1000
NO_DELEGATES = ("cpu", "auto")
"""Words that are allowed in place of a delegate's name, but name no delegate."""
DTYPES = ("int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64", "bool")


class File(Strict, frozen=True, kw_only=True):
    """Size and digests of one file of the bundle.

    Keys:
        bytes (bytes): Size of the file.
        sha256: SHA-256 of the file in hexadecimal.
        chunks: SHA-256 of each 256 KiB of the file, required in an .edgm container.
    """

    bytes: Annotated[int, Meta(ge=1, le=MAX_FILE_BYTES)]
    sha256: Digest
    chunks: Annotated[tuple[Digest, ...], Meta(max_length=MAX_FILE_BYTES // CHUNK_BYTES)] = ()


class Channel(Strict, frozen=True, kw_only=True):
    """Column of a sample.

    Keys:
        name: Name of the channel, as offered by the source.
        unit: Unit of the values. A source that states units must state this unit.
    """

    name: Name
    unit: Annotated[str, Meta(max_length=32)] = ""


class WindowSpec(Strict, frozen=True, kw_only=True):
    """Cutting of samples into windows. A sample is a row of `channels`, or has the shape `sample_shape`.

    Keys:
        length (samples): Samples of one window.
        hop (samples): Samples from the beginning of one window to that of the next.
        rate (Hz): Samples per second. A model without a rate accepts any rate.
        rate_tolerance (share): Largest difference between `rate` and the rate stated by a source.
        channels: Channels of a sample, in their order.
        sample_shape: Shape of a sample other than a row of channels, for example [96, 96, 3] for a picture.
        dtype: Type of the values before preprocessing.
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
        """Shape of one sample."""
        return self.sample_shape or (len(self.channels),)

    @property
    def is_picture(self) -> bool:
        """Return whether a window is a single picture of uint8 pixels."""
        return self.length == 1 and len(self.sample_shape) >= 2 and self.dtype == "uint8"


class Normalise(Strict, frozen=True, kw_only=True, tag="normalise", tag_field="step"):
    """Step "normalise": (x - mean) / std, for each channel (last axis) or for all alike.

    Keys:
        mean: Value to subtract: a single value, or a value for each channel.
        std: Value to divide by: a single value, or a value for each channel.
    """

    mean: Annotated[tuple[Real, ...], Meta(min_length=1, max_length=4096)]
    std: Annotated[tuple[Positive, ...], Meta(min_length=1, max_length=4096)]


class Standardise(Strict, frozen=True, kw_only=True, tag="standardise", tag_field="step"):
    """Step "standardise": each channel of each window to mean 0 and standard deviation 1.

    Keys:
        floor: Least standard deviation to divide by.
    """

    floor: Positive = 1e-6


class Clip(Strict, frozen=True, kw_only=True, tag="clip", tag_field="step"):
    """Step "clip": values outside the bounds are set to the nearest bound.

    Keys:
        low: Least value.
        high: Greatest value.
    """

    low: Real
    high: Real


class NoStep(Strict, frozen=True, kw_only=True, tag="none", tag_field="step"):
    """Step "none": no preprocessing, not even the normalisation stated in the metadata of the model file.

    This step stands alone. Values are fed unchanged: pixels of a picture (uint8 samples) become the
    stored values of an 8-bit tensor, 0 to 255 in uint8 and -128 to 127 in int8, for any scale. This is the default for
    pictures.
    """


PreprocessStep = Normalise | Standardise | Clip | NoStep


class Input(Strict, frozen=True, kw_only=True):
    """Input tensor and its feed. A model with internal state needs no feedback.

    State, internal or fed back, passes from window to window. It begins with zeros when the model is loaded, and again
    after a window that is missing or failed: a jump in `seq` of the results.

    Keys:
        tensor: Specification of the tensor.
        feed: Source of the values: "window", the preprocessed window, or "feedback", an output of the run before.
        channels: With "window", channels of the window to feed. Default: all.
        feedback: With "feedback", name of the output to feed; zeros at the start and after a gap.
    """

    tensor: TensorSpec
    feed: Literal["window", "feedback"] = "window"
    channels: Annotated[tuple[Name, ...], Meta(max_length=4096)] = ()
    feedback: Annotated[str, Meta(max_length=200)] = ""


class Classify(Strict, frozen=True, kw_only=True, tag="classification", tag_field="kind"):
    """Postprocessing "classification": scores of `labels`.

    Keys:
        output: Index of the output tensor with the scores.
        activation: Function from logits to probabilities.
        top_k: Number of best scores in a result.
        decision: Rules for the decision.
    """

    output: Annotated[int, Meta(ge=0, le=255)] = 0
    activation: Literal["none", "softmax", "sigmoid"] = "none"
    top_k: Annotated[int, Meta(ge=1, le=100)] = 5
    decision: Decision = Decision()


class Regress(Strict, frozen=True, kw_only=True, tag="regression", tag_field="kind"):
    """Postprocessing "regression": each element of an output is a value with a name and a unit.

    More than 1,000 values have no names, and form an array in the order of the output's elements.

    Keys:
        output: Index of the output tensor with the values.
        names: Names of the values, in the order of the elements.
        units: Units of the values, in the order of the elements.
    """

    output: Annotated[int, Meta(ge=0, le=255)] = 0
    names: Annotated[tuple[Name, ...], Meta(max_length=MAX_NAMES)] = ()
    units: Annotated[tuple[Annotated[str, Meta(max_length=32)], ...], Meta(max_length=1000)] = ()


class DetectAnomaly(Strict, frozen=True, kw_only=True, tag="anomaly", tag_field="kind"):
    """Postprocessing "anomaly": a score for the distance of a window from the training data.

    Keys:
        output: Index of the output tensor.
        score: Origin of the score: the "output" itself, or the error of an autoencoder's reconstruction of the
            preprocessed first input.
        decision: Rules for the decision; `threshold` is the least score of an anomalous window.
    """

    output: Annotated[int, Meta(ge=0, le=255)] = 0
    score: Literal["output", "mean_absolute_error", "mean_squared_error"] = "mean_squared_error"
    decision: Decision


PicturePostprocess = DetectObjects | FindKeypoints | SegmentPicture
SinglePostprocess = Classify | Regress | DetectAnomaly | ClassifyMany | Embed | ReadTensor | PicturePostprocess


class Several(Strict, frozen=True, kw_only=True, tag="several", tag_field="kind"):
    """Postprocessing "several": results of several outputs under names, each with a decision of its own.

    Keys:
        outcomes: Postprocessing of any other kind, by name.
        labels: Labels of an outcome, by its name. Default: labels in the metadata of the model file.
    """

    outcomes: Annotated[dict[Name, SinglePostprocess], Meta(min_length=1, max_length=16)]
    labels: dict[Name, Annotated[tuple[Label, ...], Meta(max_length=100_000)]] = msgspec.field(default_factory=dict)


Postprocess = SinglePostprocess | Several
WithLabels = Classify | DetectObjects | ClassifyMany | SegmentPicture
"""Kinds of postprocessing that need labels."""


class Golden(Strict, frozen=True, kw_only=True):
    """Golden samples: inputs, and outputs that the model must compute for these inputs.

    The file holds arrays `input_0` and on, of shape (n, *tensor shape), and `output_0` and on likewise, quantised
    like the tensors. The decision (argmax) must be the same too.

    Keys:
        file: Name of the .npz file in the bundle.
        steps: Largest permitted difference of an element of a quantised output, in quantisation steps.
        absolute: Largest permitted difference of an element of an output without quantisation.
        pixels (share): Largest permitted share of pixels of another class, for an output with a class for each pixel.
        score: Largest permitted difference of the scores of an object, for the op TFLite_Detection_PostProcess.
        overlap (share): Least intersection over union of the boxes of an object, for this op.
    """

    file: FileName = "golden.npz"
    steps: NotNegative = 2.0
    absolute: NotNegative = 1e-3
    pixels: Share = 0.02
    score: Share = 0.1
    overlap: Share = 0.5


OptionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
OptionValue = Annotated[str, Meta(pattern=r"^[ -.0-~]{0,200}\Z")]
"""Printable text without a slash: a bundle must not name files of the board, least of all a library to be loaded."""


class Variant(Strict, frozen=True, kw_only=True):
    """The same model for an accelerator. The tensors are those of the manifest.

    Keys:
        name: Name of the variant.
        delegate: Delegate that runs the file.
        file: Name of the model file in the bundle, possibly the file of the CPU model.
        signature: Signature to run in this file; compilers do not always keep the model's signature.
        options: Options of the delegate. Options in the board's configuration take precedence.
    """

    name: Name
    delegate: Name
    file: FileName
    signature: Annotated[str, Meta(max_length=200)] | None = None
    options: Annotated[dict[OptionName, OptionValue], Meta(max_length=32)] = msgspec.field(default_factory=dict)


class Versions(Strict, frozen=True, kw_only=True):
    """Range of versions of a runtime.

    Keys:
        at_least: Lowest accepted version.
        below: Upper bound, not accepted itself.
    """

    at_least: Version | None = None
    below: Version | None = None


class ModelRequirements(Strict, frozen=True, kw_only=True):
    """Requirements of the model for the board. An omitted key means no requirement.

    Keys:
        runtimes: Python packages that can run the model, by name, with versions; a single package is enough.
        memory_bytes (bytes): Free memory required before loading the model.
        delegates: Delegates that can run the model, "cpu" included; a single delegate is enough.
    """

    runtimes: Annotated[dict[Name, Versions], Meta(max_length=16)] = msgspec.field(default_factory=dict)
    memory_bytes: Bytes | None = None
    delegates: Annotated[tuple[Name, ...], Meta(max_length=16)] = ()


class Limits(Strict, frozen=True, kw_only=True):
    """Limits of the self-test on the board. The defaults are the board's own limits.

    Keys:
        latency_p99 (s): Largest 99th percentile of the time of an inference.
        rss_bytes (bytes): Most memory of the process that tests the model.
        seconds (s): Time for the whole test.
        delegated_share (share): Least share of the model's nodes that a delegate must take.
    """

    latency_p99: Seconds | None = None
    rss_bytes: Bytes | None = None
    seconds: Seconds | None = None
    delegated_share: Share | None = None


class Reference(Strict, frozen=True, kw_only=True):
    """Statistics of a typical recording, and of the model's outputs for this recording.

    Keys:
        windows (windows): Number of windows in the recording.
        mean: Mean of each channel (last axis) of the samples, before preprocessing.
        std: Standard deviation of each channel.
        min: Least value of each channel.
        max: Greatest value of each channel.
        shares (share): Share of the windows in which a label had the best score, by label; labels without any windows
            are omitted.
        scores: Least anomaly score, its three quartiles, and the greatest score; or distances of embeddings.
    """

    windows: Count
    mean: Annotated[tuple[Real, ...], Meta(max_length=4096)]
    std: Annotated[tuple[NotNegative, ...], Meta(max_length=4096)]
    min: Annotated[tuple[Real, ...], Meta(max_length=4096)]
    max: Annotated[tuple[Real, ...], Meta(max_length=4096)]
    shares: Annotated[dict[Label, Share], Meta(max_length=100_000)] = msgspec.field(default_factory=dict)
    scores: Annotated[tuple[Real, ...], Meta(max_length=5)] = ()


class Probation(Strict, frozen=True, kw_only=True):
    """Rules for the probation of a new version in service. A version that breaks a rule is rolled back.

    Keys:
        seconds (s): Least duration of probation; only time in which windows were answered counts.
        windows (windows): Least number of answered windows in probation.
        max_error_share (share): Largest share of windows with an error or NaN.
        max_latency_p99 (s): Largest 99th percentile of the latency.
        constant_windows (windows): Number of consecutive bit-identical outputs from which the version fails.
        min_decisions_per_hour: Least number of decisions per hour.
        max_decisions_per_hour: Largest number of decisions per hour.
        max_label_shift (share): Largest share of windows that would need another label for the shares of labels in
            `reference`; judged at the end.
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
    """Description of one version of a model: manifest.json.

    Keys:
        schema: Version of this format.
        name: Name of the model.
        version: Dotted number of the version, higher than earlier versions.
        created (s): Time at which the version was made, in Unix seconds.
        description: Purpose of the model, for people.
        licence: Licence of the model.
        files: Sizes and digests of all files of the bundle, by name.
        model: Name of the model file for the CPU.
        backend: Kind of runtime for the model file.
        signature: Signature to run, if the model file has several.
        window: Cutting of samples into windows.
        picture: Picture that the model takes from a source of pictures. Default, for a window of a single
            picture: RGB or gray as `window.sample_shape` says, stretched, bilinear.
        inputs: Input tensors in the order of the model file, and their feeds.
        outputs: Output tensors in the order of the model file.
        preprocess: Steps from the samples of a window to the input, in order, without quantisation.
        labels: Labels in the order of the scores. Default: labels in the metadata of the model file.
        postprocess: Way from the outputs to a result.
        golden: Golden samples.
        reference: Statistics of a typical recording.
        variants: The model for accelerators, in order of preference.
        needs: Requirements for the board.
        limits: Limits of the self-test on the board.
        probation: Rules for the probation of a new version.
    """

    schema: Literal["edged.manifest/1"]
    name: Name
    version: Version
    created: Annotated[int, Meta(ge=0, le=253_402_300_799)] = 0
    description: ShortText = ""
    licence: ShortText = ""
    files: Annotated[dict[FileName, File], Meta(max_length=64)]
    model: FileName = "model.tflite"
    backend: Name = "tflite"
    signature: Annotated[str, Meta(max_length=200)] | None = None
    window: WindowSpec
    picture: PictureSpec | None = None
    inputs: Annotated[tuple[Input, ...], Meta(min_length=1, max_length=64)]
    outputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1, max_length=64)]
    preprocess: Annotated[tuple[PreprocessStep, ...], Meta(max_length=16)] = ()
    labels: Annotated[tuple[Label, ...], Meta(max_length=100_000)] = ()
    postprocess: Postprocess
    golden: Golden | None = None
    reference: Reference | None = None
    variants: Annotated[tuple[Variant, ...], Meta(max_length=16)] = ()
    needs: ModelRequirements = ModelRequirements()
    limits: Limits = Limits()
    probation: Probation = Probation()

    @property
    def picture_spec(self) -> PictureSpec | None:
        """Return the picture that the model takes from a source of pictures; None for a model of other input."""
        return self.picture or (default_spec(self.window.sample_shape) if self.window.length == 1 else None)

    @property
    def parts(self) -> dict[str, Manifest]:
        """Return a manifest for each outcome by name, as if the outcome stood alone; "" names a single one."""
        post = self.postprocess
        if not isinstance(post, Several):
            return {"": self}
        return {
            name: msgspec.structs.replace(self, postprocess=each, labels=post.labels.get(name, ()))
            for name, each in post.outcomes.items()
        }

    @property
    def class_maps(self) -> frozenset[int]:
        """Return the outputs with a number of a class for each pixel."""
        posts = [part.postprocess for part in self.parts.values()]
        return frozenset(post.output for post in posts if isinstance(post, SegmentPicture) and post.form == "classes")

    def with_labels(self, part: str, labels: tuple[str, ...]) -> Manifest:
        """Return the manifest with the labels of an outcome in `parts`."""
        if not isinstance(self.postprocess, Several):
            return msgspec.structs.replace(self, labels=labels)
        several = msgspec.structs.replace(self.postprocess, labels={**self.postprocess.labels, part: labels})
        return msgspec.structs.replace(self, postprocess=several)


def unlabelled(manifest: Manifest) -> dict[str, WithLabels]:
    """Return the outcomes that lack labels, by name in `Manifest.parts`."""
    return {
        name: part.postprocess
        for name, part in manifest.parts.items()
        if isinstance(part.postprocess, WithLabels) and not part.labels
    }


def version_key(version: str) -> tuple[int, ...]:
    """Return a sort key for versions: 1.9 before 1.10, and 1 equal to 1.0."""
    parts = [int(part) for part in version.split(".")]
    return tuple(parts + [0] * (4 - len(parts)))


def decode(data: bytes) -> Manifest:
    """Return the manifest in the bytes of a manifest.json.

    Raises:
        BundleError: `data` is too long, not a manifest, or contradictory; the message names the field.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"manifest.json has {len(data)} bytes", hint=f"at most {MAX_MANIFEST_BYTES} are allowed")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"manifest.json: {clipped(str(error))}", hint=HINT) from error
    json.loads(data, object_pairs_hook=_refuse_duplicates)  # msgspec keeps the last, others the first
    check(manifest)
    return manifest


def encode(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest.json, indented for people to read.

    Raises:
        BundleError: the result would be invalid.
    """
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    decode(data)
    return data


def check(manifest: Manifest) -> None:
    """Check the parts of a manifest against each other. Labels may be missing: then the model file has labels.

    Raises:
        BundleError: two parts contradict each other.
    """
    _check_files(manifest)
    _check_window(manifest.window)
    _check_picture(manifest.window, manifest.picture)
    for place, tensors in (
        ("inputs", tuple(each.tensor for each in manifest.inputs)),
        ("outputs", manifest.outputs),
    ):
        _check_tensors(place, tensors)
    _check_inputs(manifest)
    _check_steps(manifest)
    _check_requirements(manifest.needs)
    _check_variants(manifest)
    _check_limits(manifest.limits)
    _check_reference(manifest, manifest.reference)
    _check_probation(manifest)
    if isinstance(manifest.postprocess, Several):
        _check_several(manifest, manifest.postprocess)
    else:
        _check_single(manifest, manifest.postprocess)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    check_unique("an object", [key for key, _ in pairs])


def _check_files(manifest: Manifest) -> None:
    for name in ("manifest.json", "manifest.json.sig"):
        if name in manifest.files:
            refuse("files", f"{name} cannot be listed in the manifest itself")
    if sum(file.bytes for file in manifest.files.values()) > MAX_BUNDLE_BYTES:
        refuse("files", f"have more than {MAX_BUNDLE_BYTES} bytes together")
    for name, file in manifest.files.items():
        _check_chunks(name, file)
    if manifest.model not in manifest.files:
        refuse("model", f"{manifest.model} is not in files")
    if manifest.golden is None:
        return
    if manifest.golden.file not in manifest.files:
        refuse("golden.file", f"{manifest.golden.file} is not in files")
    if manifest.golden.file == manifest.model:
        refuse("golden.file", "is the model itself")


def _check_chunks(name: str, file: File) -> None:
    here = f"files: {name}"
    expected = -(-file.bytes // CHUNK_BYTES)
    if len(file.chunks) not in (0, expected):
        refuse(here, f"{file.bytes} bytes have {expected} chunks, but {len(file.chunks)} digests are given")
    if len(file.chunks) == 1 and file.chunks[0] != file.sha256:
        refuse(here, "the digest of the only chunk differs from the digest of the file")


def _check_window(window: WindowSpec) -> None:
    if bool(window.channels) == bool(window.sample_shape):
        refuse("window", "needs either channels or sample_shape, not both")
    check_unique("window.channels", [channel.name for channel in window.channels])
    if window.length * prod(window.shape) > MAX_ELEMENTS:
        refuse("window", f"has more than {MAX_ELEMENTS} elements")


def _check_picture(window: WindowSpec, picture: PictureSpec | None) -> None:
    if picture is None:
        return
    if window.length != 1:
        refuse("picture", f"needs a window of length 1, not {window.length}")
    needed = [[*picture.shape]] + [[picture.height, picture.width]] * (picture.channels == 1)
    if list(window.sample_shape) not in needed:
        refuse("picture", f"window.sample_shape must be {needed[0]} for it, not {list(window.sample_shape)}")


def _check_tensors(place: str, tensors: tuple[TensorSpec, ...]) -> None:
    check_unique(place, [tensor.name for tensor in tensors])
    for tensor in tensors:
        here = f"{place}: tensor {tensor.name!r}"
        if len(tensor.name) > MAX_TENSOR_NAME:
            refuse(place, f"the name of a tensor has {len(tensor.name)} characters, and {MAX_TENSOR_NAME} are allowed")
        if len(tensor.shape) > MAX_DIMENSIONS or any(not 1 <= size <= MAX_ELEMENTS for size in tensor.shape):
            refuse(here, f"the shape {list(tensor.shape)} is impossible")
        if prod(tensor.shape) > MAX_ELEMENTS:
            refuse(here, f"has more than {MAX_ELEMENTS} elements")
        if tensor.dtype not in DTYPES:
            refuse(here, f"the dtype {tensor.dtype!r} is none of {', '.join(DTYPES)}")
        _check_quantisation(here, tensor)


def _check_quantisation(here: str, tensor: TensorSpec) -> None:
    if tensor.scale == 0.0:
        if not -(1 << 31) <= tensor.zero_point < 1 << 31:
            refuse(here, "the zero point is no 32-bit number")
        return
    if not 1e-30 <= tensor.scale <= 1e30:
        refuse(here, f"the scale {tensor.scale} is not a positive number")
    if tensor.numpy_dtype.kind not in "iu":
        refuse(here, f"{tensor.dtype} has no scale")
    limits = np.iinfo(tensor.numpy_dtype)
    if not limits.min <= tensor.zero_point <= limits.max:
        refuse(here, f"the zero point {tensor.zero_point} does not fit {tensor.dtype}")


def _check_inputs(manifest: Manifest) -> None:
    if all(each.feed == "feedback" for each in manifest.inputs):
        refuse("inputs", "no input is fed by the window")
    for each in manifest.inputs:
        if each.feed == "window":
            _check_window_input(manifest, each)
        else:
            _check_feedback_input(manifest.outputs, each)


def _check_window_input(manifest: Manifest, each: Input) -> None:
    window, picture = manifest.window, manifest.picture
    here = f"inputs: tensor {each.tensor.name!r}"
    if each.feedback:
        refuse(here, 'names a feedback but its feed is "window"')
    check_unique(f"{here}: channels", list(each.channels))
    unknown = set(each.channels) - {channel.name for channel in window.channels}
    if unknown:
        refuse(here, f"the window has no channel {min(unknown)!r}")
    fed = (window.length, len(each.channels)) if each.channels else (window.length, *window.shape)
    taken = each.tensor.shape
    if prod(fed) != prod(taken):
        refuse(here, f"the shape {list(taken)} does not hold a window of {list(fed)}")
    if picture is not None and picture.layout == "nchw":
        fed = (picture.channels, picture.height, picture.width)
    fed, taken = _without_ones(fed), _without_ones(taken)
    if fed != taken and sorted(fed) == sorted(taken):
        refuse(here, f"the axes of the window {list(fed)} are turned round in the tensor {list(taken)}")


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _check_feedback_input(outputs: tuple[TensorSpec, ...], each: Input) -> None:
    here = f"inputs: tensor {each.tensor.name!r}"
    if each.channels:
        refuse(here, 'names channels but its feed is "feedback"')
    for output in outputs:
        if output.name == each.feedback:
            break
    else:
        refuse(here, f"the feedback {each.feedback!r} is not an output")
    if output.shape != each.tensor.shape:
        refuse(here, f"the shape differs from the output {each.feedback!r} that feeds the input: {list(output.shape)}")


def _check_steps(manifest: Manifest) -> None:
    columns = manifest.window.shape[-1]
    for position, step in enumerate(manifest.preprocess):
        here = f"preprocess[{position}]"
        match step:
            case Normalise(mean=mean, std=std):
                for name, values in (("mean", mean), ("std", std)):
                    if len(values) not in (1, columns):
                        refuse(f"{here}.{name}", f"has {len(values)} values, but 1 or {columns} are needed")
            case Clip(low=low, high=high) if low >= high:
                refuse(here, f"low ({low}) is not below high ({high})")
            case NoStep() if len(manifest.preprocess) > 1:
                refuse(here, '"none" stands alone')


def _check_requirements(needs: ModelRequirements) -> None:
    for name, versions in needs.runtimes.items():
        if versions.at_least and versions.below and version_key(versions.at_least) >= version_key(versions.below):
            refuse(f"needs.runtimes: {name}", f"no version is {versions.at_least} or above and below {versions.below}")
    check_unique("needs.delegates", list(needs.delegates))


def _check_variants(manifest: Manifest) -> None:
    check_unique("variants", [variant.name for variant in manifest.variants])
    for variant in manifest.variants:
        here = f"variants: {variant.name}"
        for word in (variant.name, variant.delegate):
            if word in NO_DELEGATES:
                refuse(here, f"{word!r} is reserved, and cannot name a variant or delegate")
        if variant.file not in manifest.files:
            refuse(here, f"{variant.file} is not in files")
        if manifest.golden is not None and variant.file == manifest.golden.file:
            refuse(here, f"{variant.file} is the golden samples")
    if manifest.variants and manifest.backend != "tflite":
        refuse("variants", f"the backend {manifest.backend} has no delegates")
    if manifest.limits.delegated_share is not None and not manifest.variants:
        refuse("limits.delegated_share", "needs a variant for a delegate")


def _check_limits(limits: Limits) -> None:
    if limits.latency_p99 and limits.seconds and limits.latency_p99 > limits.seconds:
        refuse("limits", "latency_p99 exceeds seconds, the time for all inferences of the self-test")


def _check_reference(manifest: Manifest, reference: Reference | None) -> None:
    if reference is None:
        return
    columns = manifest.window.shape[-1]
    for name in ("mean", "std", "min", "max"):
        if len(getattr(reference, name)) != columns:
            refuse(f"reference.{name}", f"has {len(getattr(reference, name))} values, but {columns} are needed")
    if reference.shares and not isinstance(manifest.postprocess, Classify):
        refuse("reference.shares", "only a classification has labels to share out")
    unknown = reference.shares.keys() - set(manifest.labels)
    if manifest.labels and unknown:
        refuse("reference.shares", f"no label {min(unknown)!r} exists")
    if reference.shares and abs(sum(reference.shares.values()) - 1) > 0.01:
        refuse("reference.shares", f"the sum is {sum(reference.shares.values()):g}, not 1")
    if reference.scores and not isinstance(manifest.postprocess, DetectAnomaly | Embed):
        refuse("reference.scores", "only an anomaly has a score, and an embedding a distance")
    if len(reference.scores) not in (0, 5) or sorted(reference.scores) != list(reference.scores):
        refuse("reference.scores", "must be five numbers in ascending order")


def _check_probation(manifest: Manifest) -> None:
    probation = manifest.probation
    low, high = probation.min_decisions_per_hour, probation.max_decisions_per_hour
    if (low is not None or high is not None) and not any(_decides(part) for part in manifest.parts.values()):
        kind = manifest.postprocess.__struct_config__.tag
        refuse("probation", f"the kind {kind!r} makes no decisions to be counted per hour")
    if low is not None and high is not None and low > high:
        refuse("probation", f"min_decisions_per_hour ({low:g}) is more than max_decisions_per_hour ({high:g})")
    if probation.max_label_shift is not None and not (manifest.reference and manifest.reference.shares):
        refuse("probation.max_label_shift", "needs reference.shares for comparison")
    if probation.constant_windows and probation.constant_windows > probation.windows:
        refuse("probation", "constant_windows exceeds windows, and might never be reached")


def _decides(manifest: Manifest) -> bool:
    match manifest.postprocess:
        case Regress() | ReadTensor() | Embed(references=None):
            return False
    return True


def _check_several(manifest: Manifest, several: Several) -> None:
    if manifest.labels:
        refuse("labels", "several outcomes have their labels in postprocess.labels")
    strangers = several.labels.keys() - several.outcomes.keys()
    if strangers:
        refuse("postprocess.labels", f"no outcome {min(strangers)!r} exists")
    for name, part in manifest.parts.items():
        match part.postprocess:
            case DetectObjects(decoder=SsdAnchors(anchors=AnchorFile())):
                refuse(f"postprocess.outcomes.{name}", "anchors in a file are for a model with a single outcome")
        try:
            _check_single(part, several.outcomes[name])
        except BundleError as error:
            raise BundleError(f"{error.message}, in the outcome {name!r}", hint=error.hint) from error


def _check_single(manifest: Manifest, post: SinglePostprocess) -> None:
    outputs, labels, shape = manifest.outputs, manifest.labels, manifest.window.sample_shape
    if not isinstance(post, WithLabels) and labels:
        refuse("labels", f"the kind {post.__struct_config__.tag!r} has no labels")
    match post:
        case Classify():
            _check_classify(manifest, post)
        case Regress():
            _check_regress(manifest, post)
        case DetectAnomaly():
            _check_detect(manifest, post)
        case DetectObjects():
            picture = shape if manifest.window.is_picture else ()
            check_detection(post, labels, outputs, picture, manifest.files)
        case ClassifyMany():
            check_multilabel(post, outputs, labels)
        case Embed():
            golden = manifest.golden.file if manifest.golden else None
            check_embedding(post, outputs, manifest.files.keys() - {manifest.model, golden})
        case FindKeypoints():
            check_keypoints(post, outputs, shape)
        case SegmentPicture():
            check_segmentation(post, outputs, labels, shape)
        case ReadTensor():
            check_tensor(post, outputs)


def _check_classify(manifest: Manifest, classify: Classify) -> None:
    scores = prod(output_of(manifest.outputs, classify.output).shape)
    if manifest.labels and len(manifest.labels) != scores:
        refuse("labels", f"{len(manifest.labels)} labels for {scores} scores")
    check_unique("labels", list(manifest.labels))
    decision = classify.decision
    check_decision(decision)
    if scores == 1 and not (decision.threshold or any(decision.thresholds.values())):
        refuse("postprocess.decision.threshold", "a single label needs a threshold, or would always be decided")
    unknown = {*decision.thresholds, *decision.background} - set(manifest.labels)
    if manifest.labels and unknown:
        refuse("postprocess.decision", f"no label {min(unknown)!r} exists")


def _check_regress(manifest: Manifest, regress: Regress) -> None:
    values = prod(output_of(manifest.outputs, regress.output).shape)
    check_unique("postprocess.names", list(regress.names))
    if values > MAX_VALUES:
        refuse("postprocess.output", f"has {values} values, and {MAX_VALUES} are allowed")
    if len(regress.names) != (values if values <= MAX_NAMES else 0):
        more = f": more than {MAX_NAMES} have no names" if values > MAX_NAMES else ""
        refuse("postprocess.names", f"{len(regress.names)} names for {values} values{more}")
    if len(regress.units) not in (0, len(regress.names)):
        refuse("postprocess.units", f"{len(regress.units)} units for {values} values")


def _check_detect(manifest: Manifest, detect: DetectAnomaly) -> None:
    check_decision(detect.decision)
    if detect.decision.thresholds or detect.decision.background:
        refuse("postprocess.decision", "an anomaly has no labels, only a threshold")
    if not detect.decision.threshold:
        refuse("postprocess.decision.threshold", "an anomaly needs a threshold other than 0")
    scored = prod(output_of(manifest.outputs, detect.output).shape)
    first = manifest.inputs[0]
    rebuilt = prod(first.tensor.shape)
    if detect.score == "output":
        if scored != 1:
            refuse("postprocess.output", f"an anomaly score is a single number, but the output has {scored}")
        return
    if first.feed != "window":
        refuse("postprocess.score", "an autoencoder rebuilds the first input, but the window does not feed this input")
    if scored != rebuilt:
        refuse("postprocess.score", f"{scored} elements cannot rebuild the {rebuilt} of the first input")
