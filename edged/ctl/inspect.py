"""Show the content of a bundle, after a check of every digest, or of a bare .tflite file.

The command shows the names of the signers without a check; `edgectl verify` checks signatures. For a .tflite file the
command shows tensors, metadata and ops, the settled part of a manifest, and the other part to fill in.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from math import prod
from pathlib import Path
from typing import TypeVar

import msgspec

from edged.core.container import Head
from edged.core.derived import Side
from edged.core.detection_spec import DetectObjects, counted_labels
from edged.core.errors import BundleError, some
from edged.core.manifest import (
    Classify,
    DetectAnomaly,
    Limits,
    Manifest,
    ModelRequirements,
    PreprocessStep,
    Probation,
    Regress,
    Several,
    Variant,
    WindowSpec,
)
from edged.core.manifest_outcomes import ClassifyMany, Embed, FindKeypoints, ReadTensor, SegmentPicture
from edged.core.pictures import PictureSpec
from edged.core.signatures import parse
from edged.core.tflite_file import TensorMetadata, TfliteFile
from edged.core.types import TensorSpec
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.models.bundle import BARE_SUFFIX, certain, examine, fill_in, read_structure
from edged.models.store import open_path

MAX_LINES = 16
STATE = "kept from window to window; zero again after loading, and after a missing or failed window"

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    kinds = "an .edgm file, a bundle's folder, or a .tflite file"
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help=kinds)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    if args.bundle.suffix == BARE_SUFFIX:
        structure = read_structure(args.bundle)
        if args.json:
            tables.show_json(_bare_fields(args.bundle, structure))
        else:
            tables.show(_lines(_bare_facts(args.bundle, structure)))
        return exits.DONE
    head = examine(args.bundle)
    if args.json:
        tables.show_json(_fields(head))
    else:
        tables.show(lines(head, stateful=_is_stateful(args.bundle, head.manifest)))
    return exits.DONE


def _is_stateful(bundle: Path, manifest: Manifest) -> bool:
    """Return whether the model file of a sound bundle keeps state. Of other runtimes nothing is known."""
    return manifest.backend == "tflite" and read_structure(open_path(bundle).model).stateful


def _fields(head: Head) -> dict[str, object]:
    signatures = [{"key": each.key, "namespace": each.namespace} for each in parse(head.signatures)]
    return {
        "digest": head.digest,
        "bytes": head.size,
        "signatures": signatures,
        "manifest": msgspec.to_builtins(head.manifest),
    }


def lines(head: Head, *, stateful: bool = False) -> Iterator[str]:
    """Yield the facts about a bundle for a terminal, a fact per line; `stateful` if the model file keeps state."""
    return _lines(_facts(head, stateful=stateful))


def _lines(facts: Iterator[tuple[str, str]]) -> Iterator[str]:
    for title, text in facts:
        yield f"{title:12}  {tables.plain(text)}"


def _bare_fields(file: Path, structure: TfliteFile) -> dict[str, object]:
    obstacle, sides = _use(structure)
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "inputs": msgspec.to_builtins(structure.inputs),
        "outputs": msgspec.to_builtins(structure.outputs),
        "input_metadata": msgspec.to_builtins(structure.input_metadata),
        "output_metadata": msgspec.to_builtins(structure.output_metadata),
        "nodes": structure.nodes,
        "ops": structure.ops,
        "custom_ops": structure.custom_ops,
        "signatures": [signature.name for signature in structure.signatures],
        "obstacle": obstacle,
        "derived": [side.fact for side in sides if side.fact],
        "problems": [side.problem for side in sides if side.problem],
        "part": {key: part for side in sides for key, part in side.part.items()},
    }


def _use(structure: TfliteFile) -> tuple[str, Iterable[Side]]:
    """Return an obstacle without sides, or "" with the two sides of the contract."""
    try:
        return "", certain(structure)
    except BundleError as error:
        return str(error), ()


def _bare_facts(file: Path, structure: TfliteFile) -> Iterator[tuple[str, str]]:
    yield "file", f"{file.name}, {tables.size(file.stat().st_size)}, with no manifest"
    yield from contents(structure)
    obstacle, sides = _use(structure)
    if obstacle:
        yield "cannot run", obstacle
    for title, fact in _titled("derived", [side.fact for side in sides if side.fact]):
        yield title, fact
    for title, problem in _titled("not certain", [side.problem for side in sides if side.problem]):
        yield title, problem
    if part := {key: part for side in sides for key, part in side.part.items()}:
        yield "to do", fill_in(file, part)


def contents(structure: TfliteFile) -> Iterator[tuple[str, str]]:
    """Yield tensors, metadata, ops and signatures of a .tflite file, each fact with its title."""
    for title, tensors, metadata in (
        ("inputs", structure.inputs, structure.input_metadata),
        ("outputs", structure.outputs, structure.output_metadata),
    ):
        for index, (name, tensor) in enumerate(_titled(title, tensors)):
            yield name, tensor_line(tensor)
            if index < len(metadata) and (said := _metadata(metadata[index])):
                yield "", f"  metadata: {said}"
    yield "ops", f"{some(structure.ops, MAX_LINES)}, in {structure.nodes} nodes"
    if structure.stateful:
        yield "state", STATE
    for title, signature in _titled("signatures", [signature.name for signature in structure.signatures]):
        yield title, signature


def _metadata(said: TensorMetadata) -> str:
    words = [said.name] if said.name else []
    if said.content:
        words.append(said.content + (f" at {said.sample_rate} a second" if said.sample_rate else ""))
    if said.mean:
        words.append(f"normalised by mean {_value(said.mean)}, std {_value(said.std)}")
    if said.threshold is not None:
        words.append(f"threshold {said.threshold:g}")
    if said.labels:
        words.append(f"{len(said.labels)} labels: {some(said.labels)}")
    return "; ".join(words)


def _facts(head: Head, *, stateful: bool) -> Iterator[tuple[str, str]]:
    manifest = head.manifest
    yield "model", f"{manifest.name} {manifest.version}"
    if manifest.description:
        yield "", manifest.description
    yield "digest", head.digest
    if manifest.created:
        yield "created", f"{datetime.fromtimestamp(manifest.created, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if manifest.licence:
        yield "licence", manifest.licence
    keys = [each.key for each in parse(head.signatures)]
    yield "signed by", f"{', '.join(keys)} (not verified)" if keys else "nobody"
    for title, (name, file) in _titled("files", sorted(manifest.files.items())):
        yield title, f"{name}, {tables.size(file.bytes)}"
    yield "window", _window(manifest.window)
    if spec := manifest.picture_spec:
        yield "picture", _picture(spec)
    for title, step in _titled("preprocess", manifest.preprocess):
        yield title, _step(step)
    for title, each in _titled("inputs", manifest.inputs):
        yield title, tensor_line(each.tensor)
    for title, output in _titled("outputs", manifest.outputs):
        yield title, tensor_line(output)
    if stateful or any(each.feed == "feedback" for each in manifest.inputs):
        yield "state", STATE
    yield "says", _says(manifest)
    yield "golden", f"samples in {manifest.golden.file}" if manifest.golden else "no samples"
    for title, text in _titled("reference", [] if manifest.reference is None else _reference(manifest)):
        yield title, text
    for title, variant in _titled("variants", manifest.variants):
        yield title, _variant(variant)
    for title, part in (("needs", manifest.needs), ("limits", manifest.limits), ("probation", manifest.probation)):
        if stated := _stated(part):
            yield title, stated


def _titled(title: str, items: Iterable[T]) -> Iterator[tuple[str, T]]:
    """Yield each item with the title, or with "" from the second on."""
    for index, item in enumerate(items):
        yield "" if index else title, item


def _window(window: WindowSpec) -> str:
    rate = f" at {window.rate:g} a second" if window.rate else ""
    names = [f"{channel.name} [{channel.unit}]" if channel.unit else channel.name for channel in window.channels]
    content = f"of {some(names)}" if names else f"of shape {list(window.sample_shape)}"
    return f"{window.length} samples{rate} {content}, a new window every {window.hop}"


def _picture(spec: PictureSpec) -> str:
    fits = {"stretch": "stretched", "letterbox": f"letterboxed on {spec.pad}", "crop": "cropped"}
    layout = ", channels first" if spec.layout == "nchw" else ""
    return f"{spec.width} x {spec.height} {spec.colour}, {fits[spec.fit]}, {spec.filter}{layout}"


def _step(step: PreprocessStep) -> str:
    fields = msgspec.to_builtins(step)
    return f"{fields.pop('step')} {_listed(fields)}".rstrip()


def tensor_line(tensor: TensorSpec) -> str:
    """Return name, type, shape and quantisation of a tensor, in a line."""
    quantised = f", scale {tensor.scale:g}, zero point {tensor.zero_point}" if tensor.scale else ""
    return f"{tensor.name}: {tensor.dtype} {list(tensor.shape)}{quantised}"


def _variant(variant: Variant) -> str:
    told = _listed(msgspec.to_builtins(variant.options))
    return f"{variant.name}: {variant.file} on {variant.delegate}" + (f", with {told}" if told else "")


def _says(manifest: Manifest) -> str:
    labels = manifest.labels
    match manifest.postprocess:
        case Classify():
            return f"a label of {len(labels)}: {some(labels)}" if labels else "a label in the model file"
        case Regress(names=names, output=output):
            return f"values of {some(names)}" if names else f"{prod(manifest.outputs[output].shape)} values"
        case DetectAnomaly(decision=decision):
            return f"an anomaly at {decision.threshold:g} or more"
        case DetectObjects(decoder=decoder, decision=rules):
            known = counted_labels(manifest.labels, rules)
            of = f" of {len(known)} labels: {some(known)}" if known else ", with labels in the model file"
            return f"objects at {rules.threshold:g} or more, by {msgspec.to_builtins(decoder)['decoder']}{of}"
        case ClassifyMany():
            return f"any labels of {len(labels)}: {some(labels)}" if labels else "any labels in the model file"
        case Embed(output=output, references=references):
            size = prod(manifest.outputs[output].shape)
            return f"a vector of {size}" + (f", and the nearest of {references}" if references else "")
        case FindKeypoints(points=points):
            return f"{len(points)} keypoints: {some(points)}"
        case SegmentPicture():
            return f"a class for each pixel of {len(labels)}: {some(labels)}" if labels else "classes in the model file"
        case ReadTensor(output=output):
            return f"the tensor {tensor_line(manifest.outputs[output])}"
        case Several():
            return "; ".join(f"{name}: {_says(part)}" for name, part in manifest.parts.items())


def _reference(manifest: Manifest) -> list[str]:
    """Return the statistics of the reference recording, a line for each channel, label, and score."""
    reference = manifest.reference
    assert reference is not None
    names = [channel.name for channel in manifest.window.channels] or [str(each) for each in range(len(reference.mean))]
    rows = zip(names, reference.mean, reference.std, reference.min, reference.max, strict=True)
    return [
        f"{reference.windows} windows",
        *_cut([f"{name}: {mean:g} ± {std:g}, {low:g} to {high:g}" for name, mean, std, low, high in rows]),
        *_cut([f"{label}: {share:.1%}" for label, share in reference.shares.items()]),
        *([f"scores: {', '.join(f'{score:g}' for score in reference.scores)}"] if reference.scores else []),
    ]


def _cut(lines: list[str]) -> list[str]:
    """Return the first lines, and the number of the others."""
    return [*lines[:MAX_LINES], f"and {len(lines) - MAX_LINES} more"] if len(lines) > MAX_LINES else lines


def _stated(part: ModelRequirements | Limits | Probation) -> str:
    """Return the values other than the defaults."""
    return _listed(msgspec.to_builtins(part))


def _listed(fields: dict[str, object]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in fields.items())


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{some([_value(each) for each in value[:MAX_LINES]], MAX_LINES, of=len(value), by=',')}]"
    if isinstance(value, dict) and len(value) > MAX_LINES:
        first = dict(islice(value.items(), MAX_LINES))
        return f"{msgspec.json.encode(first).decode()} and {len(value) - MAX_LINES} more"
    return msgspec.json.encode(value).decode()
