"""Derivation of a manifest from a bare .tflite file, as far as certain; other parts must be filled in.

Two sources are certain: TFLite metadata (labels, normalisation, audio), and unambiguous tensors. An 8-bit input of 1 or
3 channels with the quantisation of pixels is a picture, and a last op SOFTMAX or LOGISTIC makes scores. Anything else
is not guessed, since the results of a wrong guess look correct.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import msgspec

from edged.core.detection_spec import DetectObjects, ObjectDecision, SsdPostprocess
from edged.core.errors import some
from edged.core.labels import GAP, mapped, numbered, renamed
from edged.core.manifest import Channel, Classify, Normalise, NoStep, PreprocessStep, WindowSpec
from edged.core.manifest_parts import MAX_NAMES, Decision
from edged.core.tflite_file import DETECTION_OP, MAX_LABELS, TensorMetadata, TfliteFile
from edged.core.types import TensorSpec

LEAST_SCORE = 0.5
"""Threshold of a detection without a manifest; the configuration may set another."""

_LEAST_SIDE = 16
_FEW = 12
_PIXEL_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-128.0, 127.0), (-0.5, 0.5))
"""Real values of the darkest and the brightest pixel in quantised picture models."""
_SCORES = {"SOFTMAX": "a single class", "LOGISTIC": "a score for each class"}


class Side(NamedTuple):
    """Input or output of a model: the certain fields of a manifest, and a sentence with the reason.

    Without any, `problem` states the uncertainty, and `part` is a part of a manifest to be filled in.
    """

    fields: Mapping[str, Any]
    fact: str
    problem: str
    part: Mapping[str, Any]


class Derived(NamedTuple):
    """Input and output of a model: the input has a `window`, the output `labels` and a `postprocess`."""

    input: Side
    output: Side


def _sure(fields: Mapping[str, Any], fact: str) -> Side:
    return Side(fields, fact, "", {})


def _unsure(problem: str, part: Mapping[str, Any]) -> Side:
    return Side({}, "", problem, part)


def derive(structure: TfliteFile) -> Derived:
    """Return the certain properties of the first subgraph of a file."""
    return Derived(_input(structure), _output(structure))


def default_steps(
    window: WindowSpec, tensors: tuple[TensorSpec, ...], metadata: tuple[TensorMetadata, ...]
) -> tuple[PreprocessStep, ...]:
    """Return the preprocessing for a manifest without steps, for the tensors fed by the window.

    Pixels go into 8-bit tensors unchanged: TFLite's own metadata reader also normalises float tensors only.
    """
    if window.is_picture and all(tensor.dtype in ("uint8", "int8") for tensor in tensors):
        return (NoStep(),)
    return _normalisation(metadata[0]) if len(metadata) == 1 else ()


# The input


def _input(structure: TfliteFile) -> Side:
    if opened := _open_shapes(structure):
        part: dict[str, Any] = {"window": _window_part(structure)}
        if len(structure.inputs) != 1:
            part["inputs"] = _feeds(structure)
        return _unsure(problem=f"the input has an open shape: {opened}", part=part)
    if len(structure.inputs) != 1:
        problem = f"the model has {len(structure.inputs)} inputs: {_few(structure.inputs)}"
        return _unsure(problem=problem, part={"window": _window_part(structure), "inputs": _feeds(structure)})
    tensor = structure.inputs[0]
    said = structure.input_metadata[0] if structure.input_metadata else TensorMetadata()
    match tensor.shape:
        case (1, height, width, depth) if min(height, width) >= _LEAST_SIDE and depth in (1, 3):
            if said.content in ("", "image") and (found := _picture(tensor, said)):
                return found
        case (count,) | (1, count) if said.content == "audio" and said.channels == 1 and said.sample_rate:
            return _audio(count, said)
        case (1, columns) | (1, 1, columns) if said != TensorMetadata():
            return _rows(1, columns, said)
        case (1, length, columns) if said != TensorMetadata():
            return _rows(length, columns, said)
    part = {"window": _window_part(structure)}
    if picture := _channels_first(tensor):
        part["picture"] = picture
    if picture or _looks_like_a_picture(tensor):
        floating = tensor.dtype == "float32"
        part["preprocess"] = [NORMALISE if floating else {"step": "none"}]
    return _unsure(problem=f"the meaning of the input is not certain: {_words(tensor)}", part=part)


def _picture(tensor: TensorSpec, said: TensorMetadata) -> Side | None:
    _, height, width, depth = tensor.shape
    window = WindowSpec(length=1, hop=1, sample_shape=(height, width, depth), dtype="uint8")
    what = f"pictures of {width} x {height} pixels, {'grey' if depth == 1 else 'RGB'}"
    if tensor.dtype in ("uint8", "int8") and (said.content == "image" or _is_of_pixels(tensor)):
        return _sure({"window": window}, f"{what}, fed unchanged")
    if tensor.dtype == "float32" and _normalisation(said):
        words = f"(x - {_listed(said.mean)}) / {_listed(said.std)}"
        return _sure({"window": window}, f"{what}, normalised as in the metadata: {words}")
    return None


def _is_of_pixels(tensor: TensorSpec) -> bool:
    """Return whether the range of an 8-bit tensor equals a usual range of normalised pixels."""
    if not tensor.scale:
        return tensor.dtype == "uint8"
    least = -128 if tensor.dtype == "int8" else 0
    darkest, brightest = ((stored - tensor.zero_point) * tensor.scale for stored in (least, least + 255))
    tolerance = 0.02
    return any(
        abs(darkest - low) <= tolerance * (high - low) and abs(brightest - high) <= tolerance * (high - low)
        for low, high in _PIXEL_RANGES
    )


def _audio(count: int, said: TensorMetadata) -> Side:
    window = WindowSpec(length=count, hop=count, rate=said.sample_rate, channels=(Channel(name="audio"),))
    fact = f"{count} samples of sound at {said.sample_rate} per second, by the metadata, from -1 to 1"
    return _sure({"window": window}, fact)


def _rows(length: int, columns: int, said: TensorMetadata) -> Side:
    # One channel over a manifest's limit is enough for a refusal. A hostile file may claim billions.
    channels = tuple(Channel(name=f"c{index}") for index in range(min(columns, 4097)))
    window = WindowSpec(length=length, hop=length, channels=channels)
    how = "normalised as in the metadata" if _normalisation(said) else "without normalisation in the metadata"
    return _sure({"window": window}, f"{length} samples of {columns} channels, named c0 and so on, {how}")


def _normalisation(metadata: TensorMetadata) -> tuple[PreprocessStep, ...]:
    return (Normalise(mean=metadata.mean, std=metadata.std),) if metadata.mean and metadata.std else ()


NORMALISE = {"step": "normalise", "mean": ["MEAN"], "std": ["STD"]}


def is_picture_shape(shape: Sequence[int]) -> bool:
    """Return whether a sample of this shape is probably a picture."""
    match shape:
        case (height, width) | (height, width, 1 | 3):
            return min(height, width) >= _LEAST_SIDE
    return False


def _looks_like_a_picture(tensor: TensorSpec) -> bool:
    """Return whether shape and quantisation fit a picture."""
    is_shape = tensor.shape[:1] == (1,) and is_picture_shape(tensor.shape[1:])
    return is_shape and (tensor.dtype == "float32" or _is_of_pixels(tensor))


def _channels_first(tensor: TensorSpec) -> dict[str, Any]:
    """Return the picture of a tensor (1, channels, height, width); {} for other tensors."""
    match tensor.shape:
        case (1, (1 | 3) as depth, height, width) if min(height, width) >= _LEAST_SIDE and width not in (1, 3):
            colour = "rgb" if depth == 3 else "gray"
            return {"width": width, "height": height, "colour": colour, "layout": "nchw"}
    return {}


def _window_part(structure: TfliteFile) -> dict[str, Any]:
    """Return a window that fills the first input; SIZE stands for open sizes."""
    tensor = structure.inputs[0] if structure.inputs else TensorSpec(name="", shape=(1,), dtype="float32")
    if _looks_like_a_picture(tensor):
        return {"length": 1, "hop": 1, "sample_shape": list(tensor.shape[1:]), "dtype": "uint8"}
    if picture := _channels_first(tensor):
        shape = [picture["height"], picture["width"], tensor.shape[1]]
        return {"length": 1, "hop": 1, "sample_shape": shape, "dtype": "uint8"}
    opened = structure.dynamic[0] if structure.dynamic else ()
    sizes: list[Any] = ["SIZE" if axis in opened else size for axis, size in enumerate(tensor.shape)]
    pixels = {"dtype": "uint8"} if len(sizes) == 4 and sizes[-1] in (1, 3) and tensor.dtype in ("uint8", "int8") else {}
    if opened and (opened != (0,) or tensor.shape[0] != 1):
        return {"length": 1, "hop": 1, "sample_shape": sizes[1:] or sizes, **pixels}
    match tensor.shape:
        case (1, *rest) if len(rest) > 2:
            return {"length": 1, "hop": 1, "sample_shape": rest}
        case (1, length, columns) if length > 1:
            return {"length": length, "hop": length, **_columns(columns)}
        case (1, *_, columns):
            return {"length": 1, "hop": 1, **_columns(columns)}
        case (length,):
            return {"length": length, "hop": length, **_columns(1)}
    return {"length": 1, "hop": 1, **_columns(prod(tensor.shape))}


def _columns(count: int) -> dict[str, Any]:
    if count > _FEW:
        return {"sample_shape": [count]}
    return {"channels": [{"name": f"c{index}"} for index in range(count)]}


def _feeds(structure: TfliteFile) -> list[dict[str, Any]]:
    """Return the feeds: an input with the shape of an output, but not of the first input, is probably fed back."""
    outputs = list(structure.outputs)
    feeds: list[dict[str, Any]] = []
    for tensor in structure.inputs[:_FEW]:
        back = next((each for each in outputs if each.shape == tensor.shape != structure.inputs[0].shape), None)
        if back is None:
            feeds.append({"channels": ["NAME"]} if feeds else {})
        else:
            outputs.remove(back)
            feeds.append({"feed": "feedback", "feedback": back.name})
    return feeds


# The output


def object_labels(structure: TfliteFile) -> tuple[str, ...]:
    """Return the label map of a detection in the metadata of a file; () without any."""
    found = (each.value_labels or each.labels for each in structure.output_metadata)
    return mapped(next(filter(None, found), ()))


def detection_of(structure: TfliteFile) -> DetectObjects | None:
    """Return the postprocessing of a file with the op TFLite_Detection_PostProcess; None without the op."""
    if len(structure.detection_outputs) != 4:
        return None
    boxes, classes, scores, count = structure.detection_outputs
    decoder = SsdPostprocess(boxes=boxes, classes=classes, scores=scores, count=count)
    return DetectObjects(decoder=decoder, decision=ObjectDecision(threshold=LEAST_SCORE))


def _detection(structure: TfliteFile, detect: DetectObjects) -> Side:
    labels = object_labels(structure)
    if not labels:
        part = {"labels": ["NAME"], "postprocess": msgspec.to_builtins(detect)}
        return _unsure(problem="the file has no labels for the objects that it detects", part=part)
    named = sum(label != GAP for label in labels)
    fact = f"objects of {named} labels from the metadata, by the op {DETECTION_OP}; of a score of {LEAST_SCORE} or more"
    return _sure({"labels": labels, "postprocess": detect}, fact)


def _output(structure: TfliteFile) -> Side:
    if detect := detection_of(structure):
        return _detection(structure, detect)
    labelled = [index for index, each in enumerate(structure.output_metadata) if each.labels]
    if len(structure.outputs) != 1 and labelled != [0]:
        problem = f"the model has {len(structure.outputs)} outputs: {_few(structure.outputs)}"
        return _unsure(problem=problem, part=_output_part(structure))
    tensor = structure.outputs[0]
    said = structure.output_metadata[0] if structure.output_metadata else TensorMetadata()
    if tensor.shape and prod(tensor.shape) == tensor.shape[-1] <= MAX_LABELS:
        return _scores(structure, tensor, said)
    problem = f"the meaning of the output is not certain: {_words(tensor)}"
    return _unsure(problem=problem, part=_output_part(structure))


def _scores(structure: TfliteFile, tensor: TensorSpec, said: TensorMetadata) -> Side:
    count, last_op = tensor.shape[-1], structure.last_ops[0]
    threshold = said.threshold or 0.0
    named = len(said.labels) == count
    if said.labels and not named:
        problem = f"the metadata have {len(said.labels)} labels for {count} scores"
        return _unsure(problem=problem, part={"labels": ["NAME"], "postprocess": {"kind": "classification"}})
    if not named and last_op not in _SCORES:
        last = f" of the op {last_op}" if last_op else ""
        problem = f"the output{last} may not be scores: {_words(tensor)}"
        return _unsure(problem=problem, part=_output_part(structure))
    if count == 1 and not threshold:
        problem = "a single score needs a threshold"
        decision = {"threshold": "THRESHOLD"}
        part = {"labels": ["NAME"], "postprocess": {"kind": "classification", "decision": decision}}
        return _unsure(problem=problem, part=part)
    labels = numbered(said.labels) if named else tuple(f"class_{index}" for index in range(count))
    kind = f": {_SCORES[last_op]}, by the last op {last_op}" if last_op in _SCORES else ", by the labels"
    names = "labels from the metadata" if named else "no labels in the file, so named class_0 and so on"
    if named and (changed := renamed(said.labels, labels)):
        names += f", and {changed}"
    fields = {"labels": labels, "postprocess": Classify(decision=Decision(threshold=threshold))}
    return _sure(fields, f"{count} scores{kind}; {names}")


def _output_part(structure: TfliteFile) -> dict[str, Any]:
    """Return a possible postprocessing: an anomaly for an autoencoder, otherwise values."""
    if not structure.outputs:
        return {}
    shape = structure.outputs[0].shape
    count = prod(shape)
    if not shape:  # known to the runtime only
        return {"postprocess": {"kind": "regression", "output": 0, "names": ["NAME"]}}
    if len(structure.outputs) == 1 and len(structure.inputs) == 1 and 1 < count == prod(structure.inputs[0].shape):
        decision = {"threshold": "THRESHOLD"}
        return {"postprocess": {"kind": "anomaly", "score": "mean_squared_error", "decision": decision}}
    if shape[-2:] == (17, 3) and count == 51:  # as of MoveNet
        return {"postprocess": {"kind": "keypoints", "preset": "coco17"}}
    if _is_class_map(structure):
        return {"labels": ["NAME"], "postprocess": {"kind": "segmentation"}}
    names = [f"v{index}" for index in range(min(count, _FEW))] + ["..."] * (count > _FEW)
    named = {"names": names} if count <= MAX_NAMES else {}
    return {"postprocess": {"kind": "regression", "output": 0, **named}}


def _is_class_map(structure: TfliteFile) -> bool:
    """Return whether the output has an integer for each pixel of the input."""
    output, taken = structure.outputs[0], structure.inputs[0].shape if structure.inputs else ()
    return output.dtype in ("int32", "int64") and len(taken) == 4 and output.shape in (taken[:3], (*taken[:3], 1))


# Words


def _words(tensor: TensorSpec) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}" + (f" of scale {tensor.scale:.4g}" if tensor.scale else "")


def _few(tensors: tuple[TensorSpec, ...]) -> str:
    return some([f"{each.name[:80]} {_words(each)}" for each in tensors[:4]], 4, of=len(tensors))


def _open_shapes(structure: TfliteFile) -> str:
    """Return the open shapes of inputs, with ? for open axes; "" if only the first axis, of size 1, is open."""
    found = []
    for tensor, axes in zip(structure.inputs, structure.dynamic, strict=True):
        if any(axis > 0 or tensor.shape[0] != 1 for axis in axes):
            sizes = ["?" if axis in axes else str(size) for axis, size in enumerate(tensor.shape)]
            found.append(f"[{', '.join(sizes)}]")
    return some(found, 4)


def _listed(numbers: tuple[float, ...]) -> str:
    return some([f"{number:g}" for number in numbers], 4)
