"""Drafts of a manifest: manifest.toml, with the keys settled by a .tflite file, and comments on the other keys.

`draft` turns the structure of a file into text. A value not to be guessed, such as a threshold, is written as
"FILL-IN", and `unfilled` finds such lines again. Names inside the file are untrusted, and reach the text as TOML
strings or within a comment line only.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple, TypedDict, TypeVar

import msgspec
import numpy as np

from edged.core.derived import Derived, default_steps, detection_of, is_picture_shape, object_labels
from edged.core.labels import GAP
from edged.core.manifest import WindowSpec
from edged.core.manifest_parts import MAX_NAMES, MAX_VALUES
from edged.core.pictures import PictureSpec, default_spec
from edged.core.tflite_file import DETECTION_OP, TfliteFile
from edged.core.types import TensorSpec
from edged.ctl import inspect, tables
from edged.ctl.config import toml_value

FILL_IN = "FILL-IN"
_MARK = "# TO DO"
_PLACEHOLDERS = {"MEAN", "STD", "THRESHOLD", "NAME", "SIZE"}
_WIDTH = 100
_MOST_CHANNELS = 64

T = TypeVar("T")


class Open(NamedTuple):
    """Lines for the author to fill in (`must`) or to check, and the comment above the lines."""

    why: str
    lines: tuple[str, ...]
    must: bool = False


class OpenLine(NamedTuple):
    """A line of a draft for the author to fill in (`must`) or to check, by number."""

    number: int
    why: str
    must: bool


class Draft(NamedTuple):
    """The text of manifest.toml, and the open lines from top to bottom."""

    text: str
    open: tuple[OpenLine, ...]


def draft(file: str, structure: TfliteFile, sides: Derived, name: str, labels: Sequence[str] = ()) -> Draft:
    """Return the draft of a manifest for a file. `labels` belong to the first output, if the author gives any."""
    lines: list[str] = []
    found: list[OpenLine] = []
    for part in _parts(file, structure, sides, name, labels):
        if isinstance(part, Open):
            lines += _comment(f"{_MARK[2:]}: {part.why}")
            place = next((index for index, line in enumerate(part.lines) if _is_unfilled(line)), 0)
            found.append(OpenLine(len(lines) + 1 + place, part.why, part.must))
            lines += part.lines
        else:
            lines.append(part)
    return Draft("\n".join(lines) + "\n", tuple(found))


def unfilled(text: str) -> list[int]:
    """Return the numbers of the lines of a draft with a value to be filled in."""
    return [number for number, line in enumerate(text.split("\n"), 1) if _is_unfilled(line)]


def marked(text: str) -> list[int]:
    """Return the numbers of the lines of a draft that still mark a value to be checked or filled in."""
    return [number for number, line in enumerate(text.split("\n"), 1) if line.lstrip().startswith(_MARK)]


def _is_unfilled(line: str) -> bool:
    return json.dumps(FILL_IN) in line and not line.lstrip().startswith("#")


def _comment(text: str) -> list[str]:
    return textwrap.wrap(tables.plain(text), _WIDTH, initial_indent="# ", subsequent_indent="#   ")


def _key(name: str, value: object) -> str:
    return f"{name} = {toml_value(value)}"


def _list(name: str, values: Sequence[object]) -> tuple[str, ...]:
    """Return the lines of an array: a line for each item of several."""
    if len(values) <= 1:
        return (_key(name, list(values)),)
    return (f"{name} = [", *(f"    {toml_value(value)}," for value in values), "]")


def _parts(file: str, structure: TfliteFile, sides: Derived, name: str, labels: Sequence[str]) -> Iterator[str | Open]:
    yield from _comment(f"Manifest of the model {name}, drafted from {file} by `edgectl model draft`.")
    yield "#"
    yield from _comment(
        "Complete the lines below TO DO, and delete each of these marks: the model file does not settle these values, "
        "and a wrong value gives wrong results without any error. Then run: edgectl pack FOLDER --golden RECORDING. "
        "The manifest reference of the manual describes all keys."
    )
    yield "#"
    for title, text in inspect.contents(structure):
        yield f"# {title:12}  {tables.plain(text)}"[:300]
    yield ""
    yield _key("name", name)
    yield from _comment("Dotted numbers. Raise the version with each change; boards refuse lower versions.")
    yield _key("version", "1")
    yield from _comment("Purpose and licence of the model, for people.")
    yield _key("description", "")
    yield _key("licence", "")
    yield from _signature(structure)
    yield ""
    yield from _preprocess(structure, sides)
    said = _postprocess(structure, sides, labels)
    yield from _labels(said.pop("labels", ()), sides, given=bool(labels))
    yield ""
    yield from _window(structure, sides)
    yield from _inputs(structure, sides.input.part.get("inputs", ()))
    yield from _result(structure, sides, said, given=bool(labels))
    yield from _OPTIONAL.splitlines()


def _signature(structure: TfliteFile) -> Iterator[str]:
    names = [signature.name for signature in structure.signatures]
    if len(names) > 1:
        yield from _comment("Signature of the file to run. Default: the first subgraph of the file.")
        yield from (f"# {_key('signature', name[:200])}" for name in names[:16])


# The input


def _preprocess(structure: TfliteFile, sides: Derived) -> Iterator[str | Open]:
    fields, part = sides.input.fields, sides.input.part
    if "window" in fields:
        steps = default_steps(fields["window"], structure.inputs, structure.input_metadata)
        yield from _comment(f"Steps from samples to the input tensor. From the file: {sides.input.fact}.")
        yield from _list("preprocess", msgspec.to_builtins(steps))
        return
    if "preprocess" in part:
        open_steps = _filled(part["preprocess"])
        must = any(FILL_IN in step.get("mean", ()) for step in open_steps)
        advice = (
            "Mean and std of the input (pixel - mean) / std, as in training. Usual are mean 127.5, std 127.5 for "
            "-1 to 1, and mean 0, std 255 for 0 to 1."
            if must
            else "Pixels go in unchanged, without a step. Correct this line if the samples are no pixels."
        )
        yield Open(advice, _list("preprocess", open_steps), must)
        return
    ranges = [f" The first input stores values from {low:g} to {high:g}." for low, high in _range(structure.inputs)]
    yield Open(
        "Steps applied to the samples by the training code, such as "
        '{step = "normalise", mean = [0.0], std = [1.0]}. Quantisation is no step.' + "".join(ranges[:1]),
        (_key("preprocess", []),),
    )


def _range(inputs: Sequence[TensorSpec]) -> Iterator[tuple[float, float]]:
    """Yield the range of real values of each quantised tensor."""
    for tensor in inputs:
        if tensor.scale and tensor.dtype in ("int8", "uint8", "int16"):
            limits = np.iinfo(tensor.dtype)
            yield (limits.min - tensor.zero_point) * tensor.scale, (limits.max - tensor.zero_point) * tensor.scale


def _window(structure: TfliteFile, sides: Derived) -> Iterator[str | Open]:
    side = sides.input
    sure = side.fields.get("window")
    window = _filled(msgspec.to_builtins(sure) if sure is not None else dict(side.part["window"]))
    picture = is_picture_shape(window.get("sample_shape", ())) and window["length"] == 1
    if sure is None:
        yield Open(
            f"Not settled by the file: {side.problem}. This window fills the tensor; correct the meaning.",
            ("[window]",),
        )
    else:
        yield from _comment(f"From the file: {side.fact}.")
        yield "[window]"
    yield _key("length", window["length"])
    if picture or window["length"] == 1:
        yield _key("hop", window["hop"])
    else:
        yield Open(
            "A new window begins every `hop` samples: less than `length` for overlapping windows.",
            (_key("hop", window["hop"]),),
        )
    if "rate" in window:
        yield _key("rate", float(window["rate"]))
    elif not picture:
        yield Open(
            "Samples a second in the training data. Without a rate the model takes samples at any.",
            ("# rate = 100.0",),
        )
    if "sample_shape" not in window:
        yield from _channels(window.get("channels", ()), sure)
    else:
        yield from _comment("Shape of a sample, and type of the values before the steps above.")
        shape = _key("sample_shape", window["sample_shape"])
        yield Open("Sizes left open by the file.", (shape,), must=True) if _is_unfilled(shape) else shape
        yield _key("dtype", window.get("dtype", "float32"))
        if sure is None:
            yield from _rows(structure)
    yield ""
    stated = side.part.get("picture")
    if picture and (spec := msgspec.convert(stated, PictureSpec) if stated else default_spec(window["sample_shape"])):
        yield from _picture(spec)


def _picture(spec: PictureSpec) -> Iterator[str]:
    yield from _comment(
        'Way from a camera\'s picture of any size to this one: fit "stretch", "letterbox" or "crop", as in training; '
        'filter "bilinear", "area" or "nearest"; colour "rgb", "bgr" or "gray".'
    )
    yield "[picture]"
    for key in ("width", "height", "colour", "fit", "filter"):
        yield _key(key, getattr(spec, key))
    if spec.layout != "nhwc":
        yield _key("layout", spec.layout)
    yield ""


def _rows(structure: TfliteFile) -> Iterator[Open]:
    """Yield another window for a tensor of two axes: rows of channels in place of a whole sample."""
    sizes = [size for tensor in structure.inputs for size in tensor.shape if size != 1]
    if len(structure.inputs) != 1 or len(sizes) != 2 or any(structure.dynamic) or sizes[1] > _MOST_CHANNELS:
        return
    length, columns = sizes
    names = ", ".join(f'{{name="c{index}"}}' for index in range(columns))  # lines end between tables, at blanks
    lines = [_key("length", length), _key("hop", length), _key("rate", 100.0)]
    lines += textwrap.wrap(f"channels = [{names}]", _WIDTH, subsequent_indent="    ", break_on_hyphens=False)
    yield Open(
        f"Here one sample fills the tensor, like a picture. For a sensor that sends rows of {columns} values, of which "
        f"{length} fill the tensor, delete length, hop, sample_shape and dtype, and write the lines below without #.",
        tuple(f"# {line}" for line in lines),
    )


def _channels(channels: Sequence[Mapping[str, object]], sure: WindowSpec | None) -> Iterator[str | Open]:
    lines = _list("channels", [{"name": each["name"], "unit": ""} for each in channels])
    if sure is not None and sure.rate:
        yield from lines
    else:
        yield Open(
            "Channels in the order of training, with the names of the source's channels, and units.",
            lines,
        )


def _inputs(structure: TfliteFile, feeds: Sequence[Mapping[str, object]]) -> Iterator[str | Open]:
    if not feeds:
        return
    yield from _comment("A table for each input tensor, in the order of the file.")
    for tensor, feed in zip(structure.inputs, feeds, strict=False):
        yield from _comment(inspect.tensor_line(tensor)[:200])
        yield "[[inputs]]"
        if feed.get("feed") == "feedback":
            yield Open(
                "The output to feed back into this input. This output has the same shape.",
                (_key("feed", "feedback"), _key("feedback", feed["feedback"])),
            )
        elif "channels" in feed:
            yield Open("Channels of [window] for this input.", (_key("channels", [FILL_IN]),), must=True)
        else:
            yield _key("feed", "window")
        yield ""


# The output


class Postprocessing(TypedDict, total=False):
    """Labels, and the fields of the postprocessing."""

    labels: Sequence[str]
    kind: str
    names: Sequence[str]
    preset: str
    output: int
    score: str
    decoder: Mapping[str, object]
    decision: Mapping[str, object]


def _postprocess(structure: TfliteFile, sides: Derived, labels: Sequence[str]) -> Postprocessing:
    """Return labels, if any, and the fields of the postprocessing."""
    if detect := detection_of(structure):
        objects: Postprocessing = msgspec.to_builtins(detect)
        return objects | {"labels": labels or object_labels(structure) or [FILL_IN]}
    if labels:
        single: Postprocessing = {"labels": labels, "kind": "classification"}
        if len(labels) == 1:
            single["decision"] = {"threshold": FILL_IN}
        return single
    fields = msgspec.to_builtins(dict(sides.output.fields))
    part = fields or _filled(dict(sides.output.part))
    found: Postprocessing = part.get("postprocess", {"kind": FILL_IN})
    found["labels"] = part.get("labels", ())
    if found["kind"] == "classification" and FILL_IN in found["labels"]:
        count = prod(structure.outputs[0].shape)
        found["labels"] = [f"class_{index}" for index in range(count)]
    if "..." in found.get("names", ()):
        found["names"] = [f"v{index}" for index in range(min(prod(structure.outputs[0].shape), MAX_NAMES))]
    return found


def _labels(labels: Sequence[str], sides: Derived, *, given: bool) -> Iterator[str | Open]:
    if not labels:
        return
    lines = _list("labels", labels)
    if given or (sides.output.fact and "metadata" in sides.output.fact):
        yield from _comment(f'Labels in the order of the scores, "{GAP}" for a class without a label.')
        yield from lines
    else:
        yield Open(
            "Labels in the order of the scores. The file has no labels; --labels FILE reads some.",
            lines,
            FILL_IN in labels,
        )


def _result(structure: TfliteFile, sides: Derived, said: Postprocessing, *, given: bool) -> Iterator[str | Open]:
    decision = said.pop("decision", {})
    kind = said.pop("kind")
    if "decoder" in said:
        yield from _comment(f"From the file: objects, by the op {DETECTION_OP}.")
        yield from ("[postprocess]", _key("kind", kind), _key("decoder", said["decoder"]))
    elif given or sides.output.fact:
        why = "Classification by the given labels." if given else f"From the file: {sides.output.fact}."
        yield from _comment(why[:300])
        yield from ("[postprocess]", _key("kind", kind))
    else:
        problem = sides.output.problem or "the file has no output"
        values = prod(structure.outputs[0].shape) if structure.outputs else 0
        if values > MAX_VALUES and kind == "regression":
            kind, problem = FILL_IN, f"{problem}, and a regression has at most {MAX_VALUES} values"
        yield Open(
            f"Not settled by the file: {problem}. The kind is classification (with `labels` above), regression (with "
            "`names`), anomaly (with a threshold), detection (with a `decoder` and `labels`) or another.",
            ("[postprocess]", _key("kind", kind)),
            must=kind == FILL_IN,
        )
    if len(structure.outputs) > 1 and "decoder" not in said:
        yield Open("Index of the output with the result.", (_key("output", said.get("output", 0)),))
    if "names" in said:
        must = FILL_IN in said["names"]
        yield Open("Names of the values, in the order of the output's elements.", _list("names", said["names"]), must)
        yield "# units = []"
    if "preset" in said:
        yield from _comment("Rows of y, x and score for each of 17 points of a person.")
        yield _key("preset", said["preset"])
    if "score" in said:
        yield from _comment("The score is the error of the rebuilt input.")
        yield _key("score", said["score"])
    last = structure.last_ops[0] if structure.last_ops else ""
    if kind == "classification" and last not in ("SOFTMAX", "LOGISTIC"):
        yield Open(
            'Function from the output to scores: "softmax" or "sigmoid" for an output of logits.',
            (_key("activation", "none"),),
        )
    if kind in ("classification", "anomaly", "detection"):
        yield from _decision(decision, kind)
    yield ""


def _decision(decision: Mapping[str, object], kind: str) -> Iterator[str | Open]:
    threshold = decision.get("threshold", 0.0)
    what = {
        "classification": "a label counts; 0 takes the best label of each window",
        "anomaly": "a window is odd",
        "detection": "an object is reported",
    }[kind]
    yield ""
    yield "[postprocess.decision]"
    yield Open(f"Score from which {what}.", (_key("threshold", threshold),), must=threshold == FILL_IN)
    yield from _comment("Decide when k of the last n windows agree. More keys: hysteresis, min_duration, cooldown.")
    yield from ("k = 1", "n = 1")


def _filled(value: T) -> T:
    """Return the part of a manifest with the same word for all values to be filled in."""
    match value:
        case dict():
            return {key: _filled(each) for key, each in value.items()}  # type: ignore[return-value]  # of JSON's kinds
        case list() | tuple():
            return [_filled(each) for each in value]  # type: ignore[return-value]
        case str() if value in _PLACEHOLDERS:
            return FILL_IN  # type: ignore[return-value]
    return value


_OPTIONAL = """\
# The rest is optional.

# `edgectl pack --golden RECORDING` makes golden samples, and measures these tolerances.
# [golden]
# steps = 2.0
# absolute = 0.001

# Requirements to the board.
# [needs]
# memory_bytes = 20000000

# Limits of the self-test on the board.
# [limits]
# latency_p99 = 0.05

# Rules for the time after an update, during which a new version is watched.
# [probation]
# seconds = 300.0
# windows = 20"""
