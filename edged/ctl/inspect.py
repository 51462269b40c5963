"""Show what is in a bundle, once every digest in it has been verified.

Who is said to have signed it is shown too, but not whether that is true: that is what `edgectl verify` tells.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from edged.core.container import Head
from edged.core.manifest import Classify, Detect, Limits, Manifest, Needs, Probation, Regress, Step, Variant, WindowSpec
from edged.core.signatures import parse
from edged.core.types import TensorSpec
from edged.ctl import exits, tables
from edged.models.bundle import examine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which bundle."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="an .edgm file, or a bundle's folder")


def run(args: argparse.Namespace) -> int:
    """Show it."""
    head = examine(args.bundle)
    if args.json:
        tables.show_json(_fields(head))
    else:
        tables.show(lines(head))
    return exits.DONE


def _fields(head: Head) -> dict[str, Any]:
    signatures = [{"key": each.key, "namespace": each.namespace} for each in parse(head.signatures)]
    return {
        "digest": head.digest,
        "bytes": head.size,
        "signatures": signatures,
        "manifest": msgspec.to_builtins(head.manifest),
    }


def lines(head: Head) -> Iterator[str]:
    """What a person wants to know of it, a fact a line."""
    for title, text in _facts(head):
        yield f"{title:12}  {tables.plain(text)}"


def _facts(head: Head) -> Iterator[tuple[str, str]]:
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
    for title, step in _titled("preprocess", manifest.preprocess):
        yield title, _step(step)
    for title, each in _titled("inputs", manifest.inputs):
        yield title, _tensor(each.tensor)
    for title, output in _titled("outputs", manifest.outputs):
        yield title, _tensor(output)
    yield "says", _says(manifest)
    yield "golden", f"samples in {manifest.golden.file}" if manifest.golden else "no samples"
    for title, text in _titled("reference", [] if manifest.reference is None else _reference(manifest)):
        yield title, text
    for title, variant in _titled("variants", manifest.variants):
        yield title, _variant(variant)
    for title, part in (("needs", manifest.needs), ("limits", manifest.limits), ("probation", manifest.probation)):
        if stated := _stated(part):
            yield title, stated


def _titled(title: str, items: Any) -> Iterator[tuple[str, Any]]:
    """The title before the first of several, and nothing before the others."""
    for index, item in enumerate(items):
        yield "" if index else title, item


def _window(window: WindowSpec) -> str:
    rate = f" at {window.rate:g} a second" if window.rate else ""
    names = [f"{channel.name} [{channel.unit}]" if channel.unit else channel.name for channel in window.channels]
    what = f"of {', '.join(names)}" if names else f"of shape {list(window.sample_shape)}"
    return f"{window.length} samples{rate} {what}, a new one every {window.hop}"


def _step(step: Step) -> str:
    fields = msgspec.to_builtins(step)
    return f"{fields.pop('step')} {_listed(fields)}".rstrip()


def _tensor(tensor: TensorSpec) -> str:
    quantised = f", scale {tensor.scale:g}, zero point {tensor.zero_point}" if tensor.scale else ""
    return f"{tensor.name}: {tensor.dtype} {list(tensor.shape)}{quantised}"


def _variant(variant: Variant) -> str:
    told = _listed(msgspec.to_builtins(variant.options))
    return f"{variant.name}: {variant.file} on {variant.delegate}" + (f", with {told}" if told else "")


def _says(manifest: Manifest) -> str:
    match manifest.postprocess:
        case Classify():
            labels = manifest.labels
            shown = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
            return f"one of {len(labels)} labels: {shown}" if labels else "one of the labels in the model file"
        case Regress(names=names):
            return f"values of {', '.join(names)}"
        case Detect(decision=decision):
            return f"an anomaly at {decision.threshold:g} or more"


def _reference(manifest: Manifest) -> list[str]:
    """What the model met and said on its reference recording, a line for each channel, label, and score."""
    reference = manifest.reference
    assert reference is not None
    names = [channel.name for channel in manifest.window.channels] or [str(each) for each in range(len(reference.mean))]
    rows = zip(names, reference.mean, reference.std, reference.min, reference.max, strict=True)
    return [
        f"{reference.windows} windows",
        *(f"{name}: {mean:g} ± {std:g}, {low:g} to {high:g}" for name, mean, std, low, high in rows),
        *(f"{label}: {share:.1%}" for label, share in reference.shares.items()),
        *([f"scores: {', '.join(f'{score:g}' for score in reference.scores)}"] if reference.scores else []),
    ]


def _stated(part: Needs | Limits | Probation) -> str:
    """What is not left at its default."""
    return _listed(msgspec.to_builtins(part))


def _listed(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name} {msgspec.json.encode(value).decode()}" for name, value in fields.items())
