"""Pack a model into a bundle, an .edgm file for `edgectl update-model`.

A folder with a manifest.json is packed unchanged, and a draft (`edgectl model draft`) with the manifest.toml. For a
.tflite file the manifest comes from the options, then from --manifest (a manifest.json or a part, such as the manifest
of the version before, or the same in TOML), then from the unambiguous parts of the file, which the command reports. The
command asks for any other part. Tensors always come from the file; open shapes are resized to the shapes in the
manifest or to the window. Pixels go into 8-bit tensors unchanged. A file of labels (--labels) has a label per line, as
"INDEX LABEL" or alone, or a table with a header; equal labels are numbered.

A board proves a model with golden samples: windows with the outputs of the model on this machine. --golden is a
recording to cut windows from (.csv, .npy, .npz), or an array of windows (n, length, ...). The default is random
tensors, a weaker proof, since random tensors resemble no real input.

--variant adds the same model for an accelerator, and may be repeated: `--variant edgetpu=model_edgetpu.tflite` is a
file compiled for the delegate, `--variant teflon` is the model's own file, for a delegate able to load such a file. A
variant has the name of the delegate or a given name, as in `--variant small:edgetpu=small_edgetpu.tflite`.

--reference is a recording of everyday use: the statistics of the inputs and the share of each label go into the
manifest. probation.max_label_shift limits the difference of a board from these shares.

The command opens, loads and proves a bundle like a board before writing; for variants, with accelerators on boards
only, the command compares the tensors with the model.

With --delta-from the command also writes a delta beside the bundle, if smaller than half of the bundle: the changes
from the version of another bundle or folder to this version. The delta contains the signatures, so sign first: with a
bundle (.edgm) as MODEL, the command makes the delta only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypedDict, TypeVar

import msgspec
from msgspec.structs import replace

from edged import plugins
from edged.api import Backend, BundleError, ControlError, Runner
from edged.backends.delegates import KNOWN
from edged.control.clock import kernel_synchronised
from edged.core import container, labels
from edged.core import manifest as manifests
from edged.core.container import SUFFIX, Head, measure
from edged.core.delta import SUFFIX as DELTA_SUFFIX
from edged.core.derived import NORMALISE, detection_of, is_picture_shape
from edged.core.errors import quantity, some
from edged.core.manifest import Classify, Golden, Manifest, Variant
from edged.core.manifest_parts import Count, FileName
from edged.core.references import References
from edged.core.tflite_file import TfliteFile, inspect
from edged.ctl import exit_codes as exits
from edged.ctl import kernel_spread, tables
from edged.ctl.bundle_file import save, version_line
from edged.ctl.draft import FILL_IN, marked, unfilled
from edged.ctl.golden_labels import GoldenLabels
from edged.ctl.golden_samples import GoldenSample, answered, npz, random_samples, samples_of
from edged.ctl.local_model import default_backend, loaded_apart
from edged.ctl.reference_statistics import reference_of
from edged.models.atomic_files import Disk
from edged.models.bundle import (
    DRAFT,
    DRAFT_MODEL,
    MANIFEST,
    Bundle,
    bare_name,
    certain,
    examine,
    fill_in,
    open_folder,
    read_structure,
    references_in,
    unpack,
    with_anchors,
    with_metadata,
)
from edged.models.delta import make_delta
from edged.models.selftest import Proof, check_tensors, golden_samples
from edged.models.signatures import AHEAD_SECONDS
from edged.models.trial import prove_apart

T = TypeVar("T")


class ManifestPart(TypedDict, total=False):
    """A manifest with any part missing, perhaps with further keys not read in this module."""

    schema: str
    name: str
    version: str
    model: str
    backend: str
    signature: str | None
    created: int
    files: dict[str, dict[str, object]]
    inputs: list[dict[str, object]]
    outputs: list[dict[str, object]]
    window: dict[str, object]
    labels: list[str]
    postprocess: dict[str, object]
    probation: dict[str, object]
    golden: dict[str, object] | None
    variants: list[dict[str, object]]


class Delta(TypedDict):
    """A written delta, as printed by `--json`; `share` is the share of the bundle's bytes."""

    delta: str
    delta_bytes: int
    share: float


_KINDS: dict[str, object] = {
    "backend": str,
    "signature": str | None,
    "inputs": list[dict[str, object]],
    "window": dict[str, object],
    "labels": list[str],
    "postprocess": dict[str, object],
    "probation": dict[str, object],
    "golden": dict[str, object] | None,
    "variants": list[Variant],
}
_DESCRIBING = (
    "name",
    "version",
    "labels",
    "golden",
    "expect",
    "reference",
    "channels",
    "rate",
    "window",
    "hop",
    "manifest",
    "card",
    "variant",
)
_CARD = "CARD.md"
MUCH = 0.2
"""The share of an output's range above which a tolerance proves little."""


class VariantOption(NamedTuple):
    """The parts of a --variant option; None for the model's own file."""

    name: str
    delegate: str
    file: Path | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a .tflite file, a draft, or a folder with manifest.json"
    )
    parser.add_argument("--delta-from", type=Path, metavar="OLD", help="make a delta too: the bundle or folder before")
    parser.add_argument("-o", "--out", type=Path, metavar="OUT.edgm", help="default: NAME-VERSION.edgm, here")
    of_a_file = parser.add_argument_group("options for a .tflite file")
    of_a_file.add_argument("--name", metavar="NAME", help="default: the file's")
    of_a_file.add_argument("--version", metavar="N.N", help="dotted numbers, higher than in any version before")
    of_a_file.add_argument("--labels", type=Path, metavar="FILE", help="a label on each line")
    of_a_file.add_argument(
        "--golden", type=Path, metavar="SAMPLES", help="a recording, windows, or a folder of pictures"
    )
    of_a_file.add_argument(
        "--expect",
        type=Path,
        metavar="FILE",
        help="the label of each window in --golden, a line per window, - for none",
    )
    of_a_file.add_argument(
        "--reference",
        type=Path,
        metavar="RECORDING",
        help="a recording, as for --golden, for statistics in the manifest",
    )
    of_a_file.add_argument("--channels", type=_names, metavar="A,B,...", help="names of the values in a sample")
    of_a_file.add_argument("--rate", type=float, metavar="HZ", help="samples a second")
    of_a_file.add_argument("--window", type=int, metavar="LENGTH", help="samples in a window")
    of_a_file.add_argument("--hop", type=int, metavar="N", help="a new window every N samples")
    of_a_file.add_argument("--manifest", type=Path, metavar="PART.json", help="further parts of the manifest")
    of_a_file.add_argument(
        "--variant",
        type=_variant_option,
        action="append",
        metavar="[NAME:]DELEGATE[=FILE]",
        help="the same model for an accelerator; may be repeated",
    )
    of_a_file.add_argument("--card", type=Path, metavar="CARD.md", help="a description of the model for people")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    if args.model.suffix == SUFFIX:
        return _run_on_bundle(args)
    with TemporaryDirectory(prefix="edgectl-pack-") as scratch:
        _take_draft(args)
        if args.model.is_dir():
            _refuse_descriptions(args)
            folder = args.model
            _hold_tolerance(open_folder(folder))
        else:
            folder = Path(scratch)
            _make_folder(args, folder)
        proof = _prove(folder)
        head = _sealed(folder)
        out = args.out or Path(f"{head.manifest.name}-{head.manifest.version}{SUFFIX}")
        body = ((folder / name).read_bytes() for name in sorted(head.manifest.files))
        save(out, container.write(head.data, head.signatures, body))
    delta = _write_delta(args.delta_from, out, out.with_suffix(DELTA_SUFFIX)) if args.delta_from else None
    if args.json:
        tables.show_json(
            {
                "file": str(out),
                "name": head.manifest.name,
                "version": head.manifest.version,
                "digest": head.digest,
                "bytes": head.size,
                "proof": msgspec.to_builtins(proof),
                **(delta or {}),
            }
        )
    else:
        tables.show([f"{out}: {version_line(head)}, {tables.size(head.size)}, {proof.words(head.manifest)}"])
        _show_delta(delta)
    return exits.DONE


def _take_draft(args: argparse.Namespace) -> None:
    """Replace a draft by the model in the folder with manifest.toml as --manifest; options take precedence."""
    folder = args.model
    if not (folder / DRAFT).is_file() or (folder / MANIFEST).exists():
        return
    if args.manifest:
        raise ControlError(f"{folder} has a {DRAFT}, and --manifest names another file", hint="leave --manifest out")
    args.manifest, args.model = folder / DRAFT, folder / DRAFT_MODEL
    if args.card is None and (folder / _CARD).is_file():
        args.card = folder / _CARD


def _run_on_bundle(args: argparse.Namespace) -> int:
    """Make the delta to an existing bundle."""
    if args.delta_from is None:
        raise ControlError(f"{args.model} is packed already", hint="make a delta with --delta-from OLD.edgm")
    _refuse_descriptions(args)
    delta = _write_delta(args.delta_from, args.model, args.out or args.model.with_suffix(DELTA_SUFFIX))
    if args.json:
        tables.show_json(delta or {})
    else:
        _show_delta(delta)
    return exits.DONE


def _write_delta(old: Path, bundle: Path, out: Path) -> Delta | None:
    """Write a delta and return the file and the size, or None if the delta is not small enough."""
    with TemporaryDirectory(prefix="edgectl-pack-") as scratch:
        delta = make_delta(_as_folder(old, Path(scratch, "old")), _as_folder(bundle, Path(scratch, "new")))
    if delta is None:
        warn(f"no delta was written: a delta from {old} would not be below half of the bundle")
        return None
    save(out, [delta])
    return {"delta": str(out), "delta_bytes": len(delta), "share": len(delta) / bundle.stat().st_size}


def _as_folder(bundle: Path, folder: Path) -> Path:
    if bundle.is_dir():
        return bundle
    try:
        with bundle.open("rb") as file:
            unpack(file, folder, Disk())
    except OSError as error:
        raise ControlError(
            f"{bundle} cannot be read: {error.strerror}", hint="name an .edgm file or a folder"
        ) from error
    return folder


def _show_delta(delta: Delta | None) -> None:
    if delta:
        tables.show([f"{delta['delta']}: {tables.size(delta['delta_bytes'])}, {delta['share']:.0%} of the bundle"])


def _variant_option(text: str) -> VariantOption:
    said, has_file, file = text.partition("=")
    name, _, delegate = said.rpartition(":")
    if not delegate or (has_file and not file):
        raise argparse.ArgumentTypeError(f"{text!r} is not [NAME:]DELEGATE[=FILE]")
    return VariantOption(name or delegate, delegate, Path(file) if file else None)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _refuse_descriptions(args: argparse.Namespace) -> None:
    given = [f"--{name}" for name in _DESCRIBING if getattr(args, name) is not None]
    if given:
        raise ControlError(
            f"the manifest in {args.model} is complete: {', '.join(given)} cannot be given",
            hint=f"change the {MANIFEST}, or pack the model file in the folder",
        )


def _prove(folder: Path) -> Proof:
    """Open, load and prove a bundle like a board."""
    bundle = open_folder(folder)
    verdict = asyncio.run(prove_apart(bundle, default_backend(bundle)))
    for variant in bundle.manifest.variants:
        _check_variant(bundle, variant)
    return Proof(verdict.samples, verdict.worst)


def _check_variant(bundle: Bundle, variant: Variant) -> None:
    """Check a variant without the accelerator: the delegate of the file, and the tensors. Raises BundleError."""
    label = f"the variant {variant.name} ({variant.file})"
    structure = inspect(bundle.file(variant.file).read_bytes())
    compiled = structure.compiled_for
    if compiled not in (None, variant.delegate) and variant.delegate in KNOWN:
        raise BundleError(
            f"{label} is compiled for {compiled}, not for {variant.delegate}", hint="name the right delegate"
        )
    if compiled is None and variant.delegate == "edgetpu":
        warn(f"{label} is not compiled for the Edge TPU, and would not use the Edge TPU: see edgetpu_compiler")
    if variant.signature is not None:
        if variant.signature not in [signature.name for signature in structure.signatures]:
            raise BundleError(
                f"{label} has no signature {variant.signature!r}", hint="leave the signature out, or correct the name"
            )
        return
    try:
        check_tensors(bundle.manifest, structure)
    except BundleError as error:
        raise BundleError(
            f"{label} is of another model: {error.message}", hint="compile the variant from this model"
        ) from error


def _sealed(folder: Path) -> Head:
    """Return the head of the container of a folder: the manifest unchanged, or with added digests of chunks."""
    head = examine(folder)
    _check_date(head.manifest)
    if all(file.chunks for file in head.manifest.files.values()):
        return head
    if head.signatures:
        warn("the signatures are left out, since the signed manifest has no digests of chunks. Sign the bundle again")
    files = {name: measure((folder / name).read_bytes()) for name in head.manifest.files}
    manifest = replace(head.manifest, files=files)
    return Head(manifest, manifests.encode(manifest), b"")


# A folder for a model file


def _make_folder(args: argparse.Namespace, folder: Path) -> None:
    """Write the model and the other files of the bundle to an empty folder."""
    said = _read_part(args.manifest)
    shift = (
        said.get("probation", {}).pop("max_label_shift", None) if args.reference else None
    )  # until the shares are known
    name = f"model{args.model.suffix}"
    _copy(args.model, folder / name)
    if args.card:
        _copy(args.card, folder / _CARD)
    variants = _variants(args.variant or [], said, name, folder)
    for file in (*_anchor_files(said), *_vector_files(said)):
        _copy(args.manifest.parent / file, folder / file)
    backend = _sized(backend_of(said), args, said)
    with loaded_apart(args.model.name, backend, folder / name, said.get("signature")) as runner:
        manifest = _describe(args, said, name, variants, runner)
        whole = with_anchors(manifest, folder)
        vectors = references_in(folder, manifest)
        samples, tolerance = _golden(args, said, whole, folder / name, backend, runner, vectors)
        if args.reference:
            reference = reference_of(args.reference, whole, runner, vectors)
            watch = replace(manifest.probation, max_label_shift=shift)
            manifest = replace(manifest, reference=reference, probation=watch)
    (folder / Golden().file).write_bytes(npz(samples))
    files = {path.name: measure(path.read_bytes()) for path in sorted(folder.iterdir())}
    manifest = replace(manifest, files=files, golden=tolerance)
    (folder / MANIFEST).write_bytes(manifests.encode(manifest))


def _anchor_files(said: ManifestPart) -> list[str]:
    """Return the file with the anchors of a detection, which lies beside the manifest, if there is any."""
    match said.get("postprocess"):
        case {"decoder": {"anchors": {"from": "file", "file": str(file)}}}:
            return [file]
    return []


def _variants(options: list[VariantOption], said: ManifestPart, model: str, folder: Path) -> list[Variant]:
    """Return the variants of the manifest and the options, with the files copied to the folder."""
    own = said.get("model", model)
    variants = {each.name: each for each in msgspec.convert(said.get("variants", []), list[Variant])}
    lost = {name: each for name, each in variants.items() if each.file != own}
    variants = {name: replace(each, file=model) for name, each in variants.items()}
    for name, delegate, source in options:
        lost.pop(name, None)
        file = model if source is None else f"model_{name}.tflite"
        fields = msgspec.to_builtins(variants[name]) if name in variants else {}
        variants[name] = _convert({**fields, "name": name, "delegate": delegate, "file": file}, Variant, "--variant")
        if source is not None:
            _copy(source, folder / file)
    for name, each in lost.items():
        raise ControlError(
            f"the file {each.file} of the variant {name} is missing",
            hint=f"name the file: --variant {name}:{each.delegate}=FILE",
        )
    return list(variants.values())


def _vector_files(said: ManifestPart) -> list[str]:
    """Return the files with reference vectors in a part of a manifest; they lie beside the file of the part."""
    post = _convert(said.get("postprocess", {}), _Vectors, "postprocess")
    return [each.references for each in (post, *post.outcomes.values()) if each.references]


class _VectorFile(msgspec.Struct):
    references: FileName | None = None


class _Vectors(_VectorFile):
    outcomes: dict[str, _VectorFile] = {}


def _read_part(path: Path | None) -> ManifestPart:
    """Return the part of a manifest in a file; the keys read in this module have the right kinds."""
    if path is None:
        return {}
    name = ""
    try:
        decoded = _read_toml(path) if path.suffix == ".toml" else _read_json(path)
        for name in _KINDS.keys() & decoded.keys():
            msgspec.convert(decoded[name], _KINDS[name])
    except OSError as error:
        raise ControlError(f"{path} cannot be read: {error.strerror}", hint="check the path") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        where = f"{path}: {name}" if name else str(path)
        raise ControlError(f"{where}: {error}", hint="write a manifest.json, or a part of a manifest") from error
    part: ManifestPart = decoded  # type: ignore[assignment]  # the kinds of the keys read here have been checked
    return part


def _read_json(path: Path) -> dict[str, object]:
    return msgspec.json.decode(path.read_bytes(), type=dict[str, object])


def _read_toml(path: Path) -> dict[str, object]:
    """Return the part of a manifest in a .toml file. Raises ControlError for a draft with open lines."""
    text = path.read_bytes().decode("utf-8-sig")
    lines = [str(number) for number in unfilled(text)]
    if lines:
        raise ControlError(
            f"{path} is not complete: {FILL_IN!r} stands in line {some(lines, 8)}",
            hint="replace the text by the value described in the comment above",
        )
    if marks := [str(number) for number in marked(text)]:
        warn(f"{path}: still marked TO DO: line {some(marks, 12)}; delete each mark when the value below it is right")
    return tomllib.loads(text)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise ControlError(f"{source} cannot be read: {error.strerror}", hint="check the path") from error


def backend_of(said: ManifestPart) -> Backend:
    """Return the backend named in a part of a manifest, with default options."""
    backend: Backend = plugins.load("backends", said.get("backend", "tflite"))()
    return backend


class _Sizes(msgspec.Struct):
    """The size of a window in a part of a manifest."""

    length: Count = 1
    sample_shape: list[Count] = []
    channels: list[object] = []


class _Shape(msgspec.Struct):
    shape: list[Count] = []


class _Fed(msgspec.Struct):
    """The size of an input in a part of a manifest."""

    tensor: _Shape = msgspec.field(default_factory=_Shape)


def _sized(backend: Backend, args: argparse.Namespace, said: ManifestPart) -> Backend:
    """Return the backend with shapes for open axes, from the manifest or from the window."""
    if not hasattr(backend, "shapes"):
        return backend
    structure = read_structure(args.model)
    if not any(structure.dynamic):
        return backend
    window = _convert(said.get("window", {}), _Sizes, "window")
    fed = [args.window or window.length, *(window.sample_shape or [len(args.channels or window.channels)])]
    stated = _convert(said.get("inputs", [{}] * len(structure.inputs)), list[_Fed], "inputs")
    shapes = tuple(
        tuple(each.tensor.shape or _filled(tensor.shape, axes, fed))
        for tensor, axes, each in zip(structure.inputs, structure.dynamic, stated, strict=False)
    )
    return replace(backend, shapes=shapes)


def _filled(shape: tuple[int, ...], axes: tuple[int, ...], fed: list[int]) -> Sequence[int]:
    """Return the shape with open axes set to hold a window, or unchanged if no window fits."""
    for filled in ([1, *fed], fed, [1, *fed[1:]] if fed[0] == 1 else [], [1, prod(fed)], [prod(fed)]):
        if len(filled) == len(shape) and all(axis in axes or filled[axis] == shape[axis] for axis in range(len(shape))):
            return filled
    return shape


def _describe(
    args: argparse.Namespace, said: ManifestPart, name: str, variants: list[Variant], runner: Runner
) -> Manifest:
    """Return the manifest, with placeholders for the files except for the names of the model files."""
    if not (args.version or said.get("version")):
        raise ControlError("the version is missing", hint="give --version: dotted numbers, higher than before")
    structure = read_structure(args.model) if said.get("backend", "tflite") == "tflite" else None
    fields: ManifestPart = {"name": bare_name(args.model)}
    if structure is not None and said.get("signature") is None:
        fields |= _certain(args, said, structure)
    fields |= said
    fields |= {"schema": manifests.SCHEMA, "model": name, "created": _now(), "golden": None}
    fields["name"] = args.name or fields["name"]
    fields["version"] = args.version or fields["version"]
    needed = {name, *(variant.file for variant in variants), *_anchor_files(said), *_vector_files(said)}
    fields["files"] = {file: {"bytes": 1, "sha256": "0" * 64} for file in needed}  # until each file is written
    fields["variants"] = msgspec.to_builtins(variants)
    fields["inputs"] = _inputs(said.get("inputs"), runner)
    fields["outputs"] = msgspec.to_builtins(runner.outputs)
    fields["window"] = _window(args, fields.get("window", {}), said.get("window", {}), runner)
    fields["labels"] = _labels(args.labels, fields, said, runner)
    manifest = _convert(fields, Manifest, str(args.manifest or "manifest"))
    _check(manifest, args.manifest)
    return manifest if structure is None else _with_steps(args.model, with_metadata(manifest, structure))


def _check(manifest: Manifest, written: Path | None) -> None:
    """Check the parts against each other. Raises BundleError, with the name of the user's file, if any."""
    try:
        manifests.check(manifest)
    except BundleError as error:
        if written is None:
            raise
        problem = error.message.removeprefix(f"{MANIFEST}: ")
        raise BundleError(f"{written}: {problem}", hint=f"correct {written}, or the option") from error


def _certain(args: argparse.Namespace, said: ManifestPart, structure: TfliteFile) -> ManifestPart:
    """Return the unambiguous parts of the file missing in options and manifest, and report each derived part.

    Raises:
        BundleError: a part is missing; the hint has the part to fill in.
    """
    sides = certain(structure)
    given = ("window" in said or args.channels is not None, "postprocess" in said or args.labels is not None)
    wanted = [side for side, is_given in zip(sides, given, strict=True) if not is_given]
    missing = {key: part for side in wanted for key, part in side.part.items() if key not in said}
    if missing:
        problems = "; ".join(side.problem for side in wanted if side.problem)
        raise BundleError(f"{args.model}: {problems}", hint=fill_in(args.model, missing))
    has_labels = args.labels is not None or "labels" in said
    for side in wanted:
        if side.fact:
            warn(f"derived from {args.model.name}: {side.fact.partition('; ')[0] if has_labels else side.fact}")
    fields: ManifestPart = {}
    if args.labels:
        detect = detection_of(structure)
        fields["postprocess"] = msgspec.to_builtins(detect) if detect else {"kind": "classification"}
    fields |= msgspec.to_builtins(dict(sides.input.fields))
    if not said.get("postprocess", {}).get("output"):  # the derived part describes the first output
        fields |= msgspec.to_builtins(dict(sides.output.fields))
    return fields


def _with_steps(model: Path, manifest: Manifest) -> Manifest:
    """Return the manifest, complete with the preprocessing of pictures.

    Raises:
        BundleError: the preprocessing of pictures is missing; the hint has the part to fill in.
    """
    shape = manifest.window.sample_shape
    if manifest.preprocess or manifest.window.length != 1 or not is_picture_shape(shape):
        return manifest
    dtype = manifest.inputs[0].tensor.dtype
    raise BundleError(
        f"{model}: the preprocessing of a picture of shape {list(shape)} for a {dtype} tensor is not stated",
        hint=f'{fill_in(model, {"preprocess": [NORMALISE]})}; unchanged values need [{{"step":"none"}}]',
    )


def _check_date(manifest: Manifest) -> None:
    """Warn of a date refused by boards, and of a clock that may be wrong: a version of 2034 outlives keys."""
    ahead = manifest.created - time.time()
    if ahead > AHEAD_SECONDS:
        day = f"{datetime.fromtimestamp(manifest.created, UTC):%Y-%m-%d}"
        warn(f"the date of the manifest, {day}, is in the future: boards with the right time refuse the bundle")
    elif ahead > -AHEAD_SECONDS and not kernel_synchronised():
        now = time.strftime("%Y-%m-%d %H:%M")
        warn(f"the clock of this computer, {now}, is not synchronised: boards refuse dates more than a day ahead")


def _now() -> int:
    """Return the Unix time, or SOURCE_DATE_EPOCH, so that packing again can give the same bundle."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())


def _inputs(said: list[dict[str, object]] | None, runner: Runner) -> list[dict[str, object]]:
    """Return the inputs of the manifest with the model's own tensors."""
    said = [{} for _ in runner.inputs] if said is None else said
    if len(said) != len(runner.inputs):
        raise ControlError(
            f"the manifest has {len(said)} inputs, and the model {len(runner.inputs)}",
            hint="list each input, in the model's order",
        )
    tensors = msgspec.to_builtins(runner.inputs)
    return [{**each, "tensor": tensor} for each, tensor in zip(said, tensors, strict=True)]


def _window(
    args: argparse.Namespace, derived: dict[str, object], said: dict[str, object], runner: Runner
) -> dict[str, object]:
    """Return the window from the options, then the manifest, then the shape of the tensor."""
    window = derived | said
    if args.channels:
        for of_pictures in ("sample_shape", "dtype"):
            window.pop(of_pictures, None)
        window["channels"] = [{"name": name} for name in args.channels]
        if "length" not in said:
            window["length"] = window["hop"] = max(1, prod(runner.inputs[0].shape) // len(args.channels))
    if args.window:
        window |= {"length": args.window, "hop": said.get("hop", args.window)}
    return window | {key: getattr(args, key) for key in ("rate", "hop") if getattr(args, key)}


def _labels(file: Path | None, fields: ManifestPart, said: ManifestPart, runner: Runner) -> list[str]:
    """Return the labels from the file, the manifest or the model, each once, and report changes of labels."""
    post = fields.get("postprocess", {})
    detects = post.get("kind") == "detection"
    has_labels = "labels" in said or detects or post.get("kind") == "classification"
    given: Sequence[str] = fields.get("labels", []) if has_labels else []
    if file is not None and detects:
        given = labels.read_map(read_labels(file), str(file))
    elif file is not None:
        output = post.get("output", 0)
        scores = 0
        if isinstance(output, int) and output in range(len(runner.outputs)):
            scores = prod(runner.outputs[output].shape)
        given, note = labels.read(read_labels(file), str(file), scores)
        if note:
            warn(note)
    found = labels.mapped(given) if detects else labels.numbered(given)
    if note := labels.renamed(given, found):
        warn(note)
    return list(found)


def read_labels(file: Path) -> bytes:
    """Return the bytes of a file of labels. Raises ControlError."""
    try:
        with file.open("rb") as opened:
            data = opened.read(labels.MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ControlError(f"{file} cannot be read: {error.strerror}", hint="check the path") from error
    if len(data) > labels.MAX_FILE_BYTES:
        raise ControlError(f"{file} is too big for a file of labels", hint="name a text file with a label a line")
    return data


def _golden(
    args: argparse.Namespace,
    said: ManifestPart,
    manifest: Manifest,
    model: Path,
    backend: Backend,
    runner: Runner,
    vectors: Mapping[str, References],
) -> tuple[list[GoldenSample], Golden]:
    """Return golden samples with equal decisions by each kernel of the runtime, and the necessary tolerance."""
    given = _convert({**(said.get("golden") or {}), "file": Golden().file}, Golden, "golden")
    if args.golden is not None:
        expected = GoldenLabels(args.expect, manifest, vectors) if args.expect else None
        samples = samples_of(args.golden, manifest, runner, expected)
    elif args.expect is not None:
        raise ControlError("--expect has the labels of the windows in --golden", hint="give --golden too")
    else:
        warn("without --golden the samples are random, a weaker proof than real windows")
        post = manifest.postprocess
        samples = random_samples(runner, post.output if isinstance(post, Classify) else None)
    found = kernel_spread.measure(samples, manifest, model, backend)
    while found is not None and found.otherwise:
        left = kernel_spread.without(samples, found.otherwise)
        number = quantity(len(samples) - len(left), "golden sample")
        warn(f"left out: {number} that the runtime's kernels decide differently")
        samples = answered(runner, [sample.inputs for sample in left])
        found = kernel_spread.measure(samples, manifest, model, backend)
    if found is None:
        return samples, given
    needed = kernel_spread.tolerance(found, samples, manifest)
    chosen = replace(
        given,
        steps=max(needed.steps, _stated(said, "steps")),
        absolute=max(needed.absolute, _stated(said, "absolute")),
        pixels=max(needed.pixels, _stated(said, "pixels")),
    )
    allowed = kernel_spread.off(chosen.steps, chosen.absolute, chosen.pixels, manifest)
    warn(f"{kernel_spread.words(found, manifest)}; the outputs of a board may be off by {allowed}")
    share = kernel_spread.share(chosen, samples, manifest)
    if share > MUCH:
        warn(f"this tolerance is {share:.0%} of an output's range, and proves little: give other samples with --golden")
    return samples, chosen


def _hold_tolerance(bundle: Bundle) -> None:
    """Warn of a tolerance smaller than the differences between the runtime's own kernels."""
    manifest = bundle.manifest
    if manifest.golden is None:
        return
    inputs, outputs = (zip(*arrays, strict=True) for arrays in golden_samples(bundle, manifest.golden))
    samples = [GoldenSample(*sample) for sample in zip(inputs, outputs, strict=True)]
    found = kernel_spread.measure(samples, manifest, bundle.model, default_backend(bundle))
    golden = manifest.golden
    over = found and (found.steps > golden.steps or found.absolute > golden.absolute or found.pixels > golden.pixels)
    if found and (over or found.otherwise):
        warn(
            f"{kernel_spread.words(found, manifest)}, and the manifest allows less: other boards may refuse the bundle"
        )


def _stated(said: ManifestPart, name: str) -> float:
    """Return a tolerance stated in the manifest, kept if wide enough."""
    stated = (said.get("golden") or {}).get(name, 0.0)
    return float(stated) if isinstance(stated, int | float) else 0.0


def _convert(fields: object, kind: type[T], place: str) -> T:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise ControlError(f"{place}: {error}", hint="correct this part of the manifest, or the option") from error


def warn(text: str) -> None:
    """Print a warning on standard error."""
    print(f"edgectl: {text}", file=sys.stderr)
