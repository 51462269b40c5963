"""Take the measures, print the table, write the figures: python -m benchmarks.run --json build/bench.json"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.report import Figure, Skipped, plain, table
from benchmarks.surroundings import Watch, describe, warning_before

MEASURES = (
    "added_cpu",
    "data_path",
    "stages",
    "detection",
    "throughput",
    "latency",
    "system_calls",
    "idle",
    "start",
    "imports",
    "pipelines",
    "updates",
    "isolation",
    "spool",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures of all rounds to this file")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each variant (%(default)s)")
    parser.add_argument("--only", choices=MEASURES, action="append", help="take this measure alone; may be repeated")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")

    about = {"command": " ".join(["python -m benchmarks.run", *sys.argv[1:]]), "rounds": args.rounds, **describe()}
    for name, value in about.items():
        print(f"{name:<16} {value}")
    warnings = [warning] if (warning := warning_before()) else []
    _warn(warnings)
    results: list[Figure | Skipped] = []
    measures: dict[str, dict[str, Any]] = {}
    for name in args.only or MEASURES:
        watch = Watch()
        found = import_module(f"benchmarks.{name}").measure(args.rounds)
        other = watch.stop()
        measures[name] = {**other._asdict(), "warning": other.warning}
        print(f"\n{table(found)}", flush=True)
        if other.warning:
            warnings.append(f"{other.warning} during {name}")
            _warn(warnings[-1:])
        results += found
    _summarize(results, warnings)
    if args.json:
        everything = {**about, "warnings": warnings, "measures": measures, "results": [plain(each) for each in results]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(everything, indent=2) + "\n")
    return 0


def _summarize(results: list[Figure | Skipped], warnings: list[str]) -> None:
    """Print the targets missed, and the reasons for distrust."""
    targets = [(figure, target) for figure in results if isinstance(figure, Figure) for target in figure.targets]
    missed = [f"  {figure.name}: {target.promise}" for figure, target in targets if not target.met]
    print("\n".join([f"\n{len(missed)} of {len(targets)} targets missed", *missed]))
    _warn(warnings)


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        print(f"BUSY MACHINE: {warning}; trust no figure of a busy machine", flush=True)


if __name__ == "__main__":
    sys.exit(main())
