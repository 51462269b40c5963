"""Work on model files, without a daemon. (`edgectl models` shows the models of a running daemon.)

`draft` makes a folder for a .tflite file: a copy named model.tflite, and manifest.toml, the description of inputs and
outputs. Tensors, quantisation, TFLite metadata and label files inside the model settle a part of the manifest. The
other lines stand below "TO DO", and the command lists the line numbers. Complete these lines, then make a bundle with
`edgectl pack FOLDER`; packing refuses lines with "FILL-IN", and warns of marks "TO DO" left in the file.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from math import prod
from pathlib import Path

import msgspec

from edged.core import labels
from edged.core.derived import derive
from edged.core.errors import ControlError, EdgedError
from edged.core.manifest_parts import Name
from edged.core.tflite_file import TfliteFile
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.bundle_file import save
from edged.ctl.draft import Draft, draft
from edged.ctl.local_model import loaded_apart
from edged.ctl.pack import backend_of, read_labels, warn
from edged.models.bundle import DRAFT, DRAFT_MODEL, bare_name, certain, read_structure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the action, the model file, and the folder to make."""
    parser.add_argument("action", choices=("draft",), help="draft a manifest for a model file")
    parser.add_argument("model", type=Path, metavar="MODEL.tflite")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="labels of the scores, as for `edgectl pack`")
    parser.add_argument("--name", metavar="NAME", help="name of the model (default: the file's)")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="a new folder (default: NAME, here)")


def run(args: argparse.Namespace) -> int:
    """Draft the manifest, and list the open lines."""
    structure = _with_output_shapes(args.model, read_structure(args.model))
    name = _name(args)
    folder = args.output or Path(name)
    made = draft(args.model.name, structure, derive(structure), name, _labels(args.labels, structure))
    _make_folder(folder)
    try:
        save(folder / DRAFT_MODEL, _blocks(args.model))
        save(folder / DRAFT, [made.text.encode()])
    except BaseException:
        (folder / DRAFT_MODEL).unlink(missing_ok=True)  # a folder with half a draft would be refused the next time
        raise
    command = f"edgectl pack {shlex.quote(str(folder))} --golden RECORDING"
    if args.json:
        lines = [each._asdict() for each in made.open]
        tables.show_json({"folder": str(folder), "manifest": str(folder / DRAFT), "open": lines, "next": [command]})
    else:
        tables.show(_lines(args.model, folder, made, command))
    return exits.DONE


def _lines(model: Path, folder: Path, made: Draft, command: str) -> Iterator[str]:
    file = folder / DRAFT
    yield f"{file}: drafted from {model.name}"
    for each in made.open:
        yield tables.plain(f"{file}:{each.number}: {'fill in' if each.must else 'check'}: {each.why}")
    yield f"      -> then: {command}"


def _name(args: argparse.Namespace) -> str:
    name = args.name or bare_name(args.model)
    try:
        return msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        raise ControlError(
            f"{name!r} is no name of a model", hint="use lower-case letters, digits, - and _, at most 64 of them"
        ) from error


def _with_output_shapes(model: Path, structure: TfliteFile) -> TfliteFile:
    """Return the structure with the shapes of all outputs. The runtime computes shapes left open in the file."""
    certain(structure)  # raises for a model compiled for an accelerator
    if all(output.shape for output in structure.outputs) or any(structure.dynamic):
        return structure
    try:
        with loaded_apart(model.name, backend_of({}), model) as runner:
            return structure._replace(outputs=runner.outputs)
    except EdgedError as error:
        warn(f"the shapes of the outputs are not known, as {model.name} does not load here: {error.message}")
        return structure


def _labels(file: Path | None, structure: TfliteFile) -> tuple[str, ...]:
    if file is None:
        return ()
    if structure.detection_outputs:
        return labels.mapped(labels.read_map(read_labels(file), str(file)))
    found = labels.read(read_labels(file), str(file), prod(structure.outputs[0].shape) if structure.outputs else 0)
    unique = labels.numbered(found.labels)
    for text in filter(None, (found.note, labels.renamed(found.labels, unique))):
        warn(text)
    return unique


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise ControlError(f"{folder} cannot be made: {error.strerror}", hint="name a folder with -o") from error
    if occupied:
        raise ControlError(f"{folder} exists already, and is not empty", hint="name another folder with -o")


def _blocks(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                yield block
    except OSError as error:
        raise ControlError(f"{file} cannot be read: {error.strerror}", hint="check the path") from error
