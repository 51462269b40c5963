"""Run a model once over a file, without the daemon: a recording (.csv, .npy, .npz), a picture or a folder of pictures.

The command loads, feeds and reads the model exactly like the daemon, and prints the prediction of each window at once;
with --json as a JSON object per line. Time counts from the first sample of the recording, at the rate of the model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from edged.api import Anomaly, Chunk, Classification, ControlError, Detections, Outcome, Regression, Runner
from edged.core.errors import some
from edged.core.manifest import Manifest
from edged.core.masks import SegmentMask
from edged.core.postprocess import Postprocessor
from edged.core.preprocess import Preprocessor
from edged.core.source_match import match_source
from edged.core.types import present_words
from edged.core.window import Windower
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.input_clipping import Clipping
from edged.ctl.local_model import find_model, load_model, prove_first
from edged.ctl.picture_files import is_pictures, picture_chunks, whole_form
from edged.models.bundle import Bundle
from edged.sinks.stdout import words
from edged.sources.replay import ReplaySource

MAX_COLUMNS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a recording (.csv, .npy, .npz), a picture or a folder of pictures"
    )
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="a name, a bundle's folder, an .edgm or a .tflite file"
    )
    parser.add_argument("--signature", metavar="NAME", help="the signature to run, for a model with several")
    parser.add_argument(
        "--columns", type=_names, default=(), metavar="A,B,...", help="names of the columns in the file"
    )
    parser.add_argument("--array", default="", metavar="NAME", help="name of the array in an .npz file")


def run(args: argparse.Namespace) -> int:
    """Print a prediction for each window."""
    bundle, backend = find_model(args.model, args)
    for fact in bundle.derived:
        print(f"edgectl: derived from {bundle.manifest.model}: {fact}", file=sys.stderr)
    prove_first(bundle, backend, args, args.signature)
    runner = load_model(bundle, backend, args.signature)
    try:
        clipping = Clipping(bundle.manifest)
        predictions = infer(bundle, runner, _chunks(args, bundle.manifest), clipping)
        lines = map(_json, predictions) if args.json else _table(bundle.manifest, predictions)
        for line in lines:
            print(line)
    finally:
        runner.close()
    if clipping.is_bad:
        print(f"edgectl: {clipping.words()}: these answers are probably wrong", file=sys.stderr)
    return exits.DONE


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


class Inferred(NamedTuple):
    """Number of a window, time of the last sample, seconds of the inference, and outcome."""

    seq: int
    time: float
    inference: float
    outcome: Outcome


def infer(bundle: Bundle, runner: Runner, chunks: Iterable[Chunk], clipping: Clipping) -> Iterator[Inferred]:
    """Yield predictions for chunks of samples in the order of the model's channels; `clipping` counts clipped values.

    Raises:
        ControlError: the chunks have no whole window.
        ModelError: the model fails.
    """
    manifest = bundle.manifest
    windower = Windower(manifest.window, None, form=whole_form(manifest))
    preprocess, postprocess = Preprocessor(manifest), Postprocessor(manifest, None, bundle.references)
    expected = 0
    for chunk in chunks:
        for window in windower.cut(chunk):
            if window.seq != expected:  # as in the daemon: the memory of a stateful model is from before the gap
                runner.reset()
                preprocess.reset()
            expected = window.seq + 1
            clipping.add(window.samples)
            inputs = preprocess(window.samples)
            begun = time.perf_counter()
            outputs = runner.run(inputs)
            inference = time.perf_counter() - begun
            preprocess.feed_back(outputs)
            outcome = postprocess(outputs, preprocess.prepared, window.time, window.placement)
            yield Inferred(window.seq, window.time, inference, outcome)
    if not expected:
        raise ControlError(
            f"the file has no whole window of {manifest.window.length} samples in a row",
            hint="record more, without gaps",
        )


# -- inputs ---------------------------------------------------------------------------------------------------------


def _chunks(args: argparse.Namespace, manifest: Manifest) -> Iterator[Chunk]:
    if is_pictures(args.file):
        if args.columns or args.array:
            raise ControlError("a picture has no columns or arrays", hint="leave out --columns and --array")
        return picture_chunks(args.file, manifest)
    return _recording(args, manifest)


def _recording(args: argparse.Namespace, manifest: Manifest) -> Iterator[Chunk]:
    """Yield the chunks of a file, timed at the model's rate, or at a sample a second for a model without."""
    window = manifest.window
    options = ReplaySource(
        path=args.file,
        array=args.array,
        channels=tuple(channel.name for channel in window.channels),
        columns=args.columns,
        pace="fast",
        chunk=256 if window.rate else 1,
    )
    match_source(window, options.describe(), args.file.name, manifest.name)
    source = options.open()
    taken = 0
    try:
        while chunk := source.read(0):
            taken += chunk.lost + len(chunk.samples)
            yield chunk._replace(time=(taken - 1) / (window.rate or 1.0))
    except EOFError:
        pass
    finally:
        for fault, count in source.faults.items():
            print(f"edgectl: rows left out: {count} ({fault})", file=sys.stderr)
        source.close()


# -- what is printed ------------------------------------------------------------------------------------------------


def _json(inferred: Inferred) -> str:
    fields = {"seq": inferred.seq, "time": round(inferred.time, 6), "inference": inferred.inference}
    return json.dumps(fields | msgspec.to_builtins(inferred.outcome, enc_hook=_plain), ensure_ascii=False)


def _plain(mask: SegmentMask) -> dict[str, object]:
    """Return a mask as run lengths, in the words of COCO."""
    return {"size": mask.size, "counts": mask.runs()}


def _table(manifest: Manifest, predictions: Iterable[Inferred]) -> Iterator[str]:
    """Lines as they come, so the columns are as wide as the model's longest label, up to a point."""
    width = min(32, max([8, *map(len, manifest.labels)]))
    for index, inferred in enumerate(predictions):
        cells = _cells(inferred.outcome, width)
        if index == 0:
            yield "  ".join(["    SEQ", "  TIME s", *(name for name, _ in cells)]).rstrip()
        yield "  ".join([f"{inferred.seq:7}", f"{inferred.time:8.2f}", *(cell for _, cell in cells)]).rstrip()


def _box(box: tuple[float, float, float, float]) -> str:
    return f"[{', '.join(f'{side:.1f}' for side in box)}]"


def _cells(outcome: Outcome, width: int) -> list[tuple[str, str]]:
    """Heads and cells of equal width."""
    match outcome:
        case Classification(label=label, score=score, decision=decision):
            return [
                (f"{'LABEL':{width}}", f"{tables.plain(label):{width}}"),
                (" SCORE", f"{score:6.3f}"),
                ("DECISION", tables.plain(decision or "-")),
            ]
        case Anomaly(score=score, threshold=threshold, anomalous=anomalous):
            return [
                ("      SCORE", f"{score:11.6g}"),
                ("  THRESHOLD", f"{threshold:11.6g}"),
                ("ANOMALOUS", "yes" if anomalous else "no"),
            ]
        case Detections(objects=found, present=present):
            shown = [f"{tables.plain(each.label)} {each.score:.3f} {_box(each.box)}" for each in found[:MAX_COLUMNS]]
            boxes = some(shown, MAX_COLUMNS, of=len(found), by="; ") or "-"
            return [("PRESENT", f"{tables.plain(present_words(present)):{width}}"), ("OBJECTS", boxes)]
        case Regression(values=values) if isinstance(values, dict) and len(values) <= MAX_COLUMNS:
            return [(f"{name:>11}", f"{value:{max(11, len(name))}.6g}") for name, value in values.items()]
        case Regression(values=values):
            first = islice(values.items() if isinstance(values, dict) else enumerate(values), MAX_COLUMNS)
            return [("VALUES", some([f"{name} {value:.6g}" for name, value in first], MAX_COLUMNS, of=len(values)))]
        case _:
            return [("RESULT", tables.plain(words(outcome)))]
