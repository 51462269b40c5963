"""Compare accelerated variants of models with the CPU on this board: outputs, delegated nodes and latency.

Each variant with a ready delegate is loaded in a process of the device, runs the golden samples, and is compared with
the CPU sample by sample. A running daemon does the work, as the owner of the devices; otherwise edgectl does. Without a
MODEL, all models are compared. The exit code is 1 if a variant fails or disagrees.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator

from edged.acceleration.placement import Accelerators
from edged.acceleration.prove import Subject, failing, prove
from edged.acceleration.verbs import finding_answer
from edged.core.errors import EdgedError
from edged.core.update_answers import PROVE, ComparisonAnswer, FindingAnswer, LatencyAnswer
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.local_model import prove_first
from edged.ctl.prove_or_tune import steps, subjects

_BAD = ("disagrees", "fails")
_DOTS = {"agrees": "running", "disagrees": "failed", "fails": "failed", "not ready": "degraded", "cpu": "stopped"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a model's name (default: all)")


def run(args: argparse.Namespace) -> int:
    """Compare and print, variant by variant."""
    found = []
    for each in steps(
        args,
        PROVE,
        {"model": args.model},
        lambda accelerators, config: _proven(accelerators, subjects(args, config, args.model), args),
    ):
        found.append(each)
        if not args.json:
            tables.show(lines(each))
    if args.json:
        tables.show_json(found)
    return exits.BAD if any(each["state"] in _BAD for each in found) else exits.DONE


def _proven(
    accelerators: Accelerators, subjects: Collection[Subject], args: argparse.Namespace
) -> Iterator[FindingAnswer]:
    """Yield findings; a model with a crash in a child process is not loaded in this process."""
    for subject in subjects:
        try:
            prove_first(subject.bundle, subject.backend, args)
        except EdgedError as error:
            yield finding_answer(failing(subject, error))
        else:
            yield from map(finding_answer, prove(accelerators, [subject]))


def lines(found: FindingAnswer) -> Iterator[str]:
    """Yield the lines of a finding: the result, the reason, the figures and each sample."""
    where = f" on {_title(found)}" if found["delegate"] else ""
    state = "runs on the CPU" if found["state"] == "cpu" else found["state"]
    if found["state"] in ("agrees", "disagrees"):
        state += " with the CPU"
    head = f"{found['model']} {found['version']}{where} {'is ' if found['state'] == 'not ready' else ''}{state}"
    yield f"{tables.dot(_DOTS[found['state']])} {tables.plain(head)}"
    if found["reason"]:
        yield f"      {tables.plain(found['reason'])}"
    yield from tables.advice(found["hint"])
    if found["samples"]:
        yield from (f"      {line}" for line in _figures(found))


def _figures(found: FindingAnswer) -> Iterator[str]:
    took = f"{found['delegated']} of {found['nodes']} nodes"
    yield f"{took}, {found['off_processor']:.0%} of the time off the processor"
    yield from tables.table(
        ("", ">P50 ms", ">P99 ms"),
        [
            [_title(found), *_milliseconds(found["latency"])],
            ["the CPU", *_milliseconds(found["cpu_latency"])],
        ],
    )
    samples = enumerate(found["samples"])
    yield from tables.table(("SAMPLE", ">OFF BY", "DECISION", ""), [_sample(number, each) for number, each in samples])


def _title(found: FindingAnswer) -> str:
    return f"{found['delegate']} ({found['variant']})" if found["variant"] else found["delegate"]


def _milliseconds(latency: LatencyAnswer | None) -> list[str]:
    return [f"{latency['p50'] * 1e3:.3f}", f"{latency['p99'] * 1e3:.3f}"] if latency else ["-", "-"]


def _sample(number: int, sample: ComparisonAnswer) -> list[str]:
    off = "not a number" if sample["worst"] is None else f"{sample['worst']:.4g}"
    decision = {None: "-", True: "the same", False: "another"}[sample["same"]]
    return [str(number), off, decision, sample["problem"]]
