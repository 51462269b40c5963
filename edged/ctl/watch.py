"""Print a line for each prediction: time, pipeline, result and latency.

A line starts with ">" if the decision changed, and a time ends with "?" while the clock is not synchronised. With
--json the line is the record, as sent over MQTT.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from itertools import islice

from edged.core.answers import WATCH, OutcomeAnswer, ResultAnswer
from edged.core.errors import some
from edged.core.types import present_words
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect
from edged.ctl.pipelines import outcomes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("pipeline", nargs="?", help="name of a pipeline (default: all)")
    parser.add_argument("--count", type=_positive, metavar="N", help="stop after so many predictions")


def run(args: argparse.Namespace) -> int:
    """Print predictions until the count is reached, or until Ctrl-C."""
    records = connect(args.runtime_dir).stream(WATCH, pipeline=args.pipeline)
    with contextlib.suppress(KeyboardInterrupt):  # the usual way to stop
        for record in islice(records, args.count):
            print(json.dumps(record, ensure_ascii=False) if args.json else _line(record), flush=True)
    return exits.DONE


def _line(record: ResultAnswer) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(record["time"]))
    moment = f"{clock}.{int(record['time'] % 1 * 1000):03}"
    doubt = "" if record["synchronised"] else "?"
    mark = ">" if record.get("changed") else " "
    decision = f"  {decisions(record)}" if mark == ">" else ""
    latency = tables.milliseconds(record["latency"])
    return tables.plain(f"{mark} {moment}{doubt}  {record['pipeline']}  {outcomes(record)}  {latency} ms{decision}")


def decisions(record: ResultAnswer) -> str:
    """Return the changed decisions of a result in words."""
    changed = {name: each for name, each in record.get("outcomes", {}).items() if each.get("changed")}
    return "; ".join(f"{name} {_decision(each)}" for name, each in changed.items()) or _decision(record)


def _decision(record: OutcomeAnswer) -> str:
    match record["kind"]:
        case "anomaly":
            return "alarm" if record.get("anomalous") else "back to normal"
        case "detection":
            return f"now: {present_words(record.get('present', {}))}"
        case "keypoints":
            return "decided: present" if record.get("visible") else "decided: absent"
        case "multilabel" | "segmentation":
            return f"decided: {some(record.get('decisions', []), 5) or 'nothing'}"
        case "embedding" if record.get("anomalous"):
            return "alarm"
    return f"decided: {record.get('decision') or 'nothing'}"


def _positive(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError
    return count
