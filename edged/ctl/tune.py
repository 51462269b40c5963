"""Measure all ways to run a model on this board (threads of the CPU, accelerators), and use the fastest.

Each way must first agree with the CPU on the golden samples, and is then timed for some seconds in a separate process.
The measurements are recorded for this board, and decide `delegate = "auto"` and `threads = 0`, until the model, the
runtime, the kernel, the library of a delegate or the devices change. A running daemon does the work, as the owner of
the devices, and serves more slowly meanwhile; otherwise edgectl does, and the daemon reads the record at the next
start.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from edged.acceleration.placement import Accelerators
from edged.acceleration.tune import MAX_SECONDS, TUNE_SECONDS, tune
from edged.acceleration.verbs import step_answer
from edged.app.state_lock import StateLock
from edged.config.options import Config
from edged.core.errors import ControlError
from edged.core.update_answers import TUNE, MeasurementAnswer, TuneStepAnswer
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.local_model import prove_first
from edged.ctl.prove_or_tune import names, steps, subjects
from edged.models.tuning_records import Tunings

_IN_USE = "have that daemon measure, edgectl --runtime-dir DIR tune, or stop it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a model's name")
    parser.add_argument("--all", action="store_true", help="all models")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=TUNE_SECONDS,
        metavar="S",
        help=f"time to measure each way (default: {TUNE_SECONDS:g})",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, and print each way when measured."""
    if bool(args.model) == args.all:
        raise ControlError("no model to tune is given", hint="edgectl tune MODEL, or edgectl tune --all")
    for name in names(args) if args.all else [args.model]:
        for step in _tuned(name, args):
            if args.json:
                print(json.dumps(step, ensure_ascii=False), flush=True)
            else:
                tables.show(lines(step))
    return exits.DONE


def _tuned(name: str, args: argparse.Namespace) -> Iterator[TuneStepAnswer]:
    def work(accelerators: Accelerators, config: Config | None) -> Iterator[TuneStepAnswer]:
        state = Path(args.state_dir)
        with StateLock(state, "edgectl tune", hint=_IN_USE):
            (subject,) = subjects(args, config, name)
            prove_first(subject.bundle, subject.backend, args)
            folder = state / "tuning"
            yield from map(step_answer, tune(accelerators, subject, Tunings(folder), time.time(), args.seconds))
            if os.geteuid() == 0:
                _give_to_the_daemon(folder, name)

    return steps(args, TUNE, {"model": name, "seconds": args.seconds}, work)


def _give_to_the_daemon(folder: Path, name: str) -> None:
    """Give the record written by root to the owner of the state folder, without following links."""
    owner = folder.parent.stat()
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.chown(f"{name}.json", owner.st_uid, owner.st_gid, dir_fd=opened, follow_symlinks=False)
        os.chown(opened, owner.st_uid, owner.st_gid)
    finally:
        os.close(opened)


def lines(step: TuneStepAnswer) -> Iterator[str]:
    """Yield the lines of a step: the start, a measurement, or the conclusion."""
    match step.get("id"):
        case "tune.begun":
            yield f"{step.get('model')} {step.get('version')}: {step.get('ways')} ways to run it"
        case "tune.measured" if "measurement" in step:
            yield from _measured(step.get("title", ""), step["measurement"])
        case "tune.recorded":
            yield f"  {tables.plain(step.get('why', ''))}"


def _measured(title: str, measured: MeasurementAnswer) -> Iterator[str]:
    if measured["failure"]:
        yield f"  {title:28} {tables.plain(measured['failure'])}"
        yield from tables.advice(measured["hint"])
        return
    times = f"p50 {measured['p50'] * 1e3:.3f} ms, p99 {measured['p99'] * 1e3:.3f} ms in {measured['runs']} runs"
    yield f"  {title:28} {times}, {tables.size(measured['rss_bytes'])}{_warmth(measured)}"


def _warmth(measured: MeasurementAnswer) -> str:
    before, after = measured["celsius_before"], measured["celsius_after"]
    return "" if before is None or after is None else f", {before:.0f} to {after:.0f} °C"


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"more than 0, and {MAX_SECONDS:g} at most")
    return seconds
