"""Take the measures, print the table, write the figures: python -m benchmarks.run --json build/bench.json"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.report import Figure, Skipped, plain, table

MEASURES = ("added_cpu", "throughput", "latency", "start", "updates", "isolation", "spool")
PACKAGES = ("ai-edge-litert", "numpy", "msgspec", "paho-mqtt", "pyserial")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures of all rounds to this file")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each variant (%(default)s)")
    parser.add_argument("--only", choices=MEASURES, action="append", help="take this measure alone; may be repeated")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")

    about = {"command": " ".join(["python -m benchmarks.run", *sys.argv[1:]]), "rounds": args.rounds, **surroundings()}
    for name, value in about.items():
        print(f"{name:<16} {value}")
    results: list[Figure | Skipped] = []
    for name in args.only or MEASURES:
        found = import_module(f"benchmarks.{name}").measure(args.rounds)
        print(f"\n{table(found)}", flush=True)
        results += found
    targets = [(figure, target) for figure in results if isinstance(figure, Figure) for target in figure.targets]
    missed = [f"  {figure.name}: {target.promise}" for figure, target in targets if not target.met]
    print("\n".join([f"\n{len(missed)} of {len(targets)} targets missed", *missed]))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**about, "results": [plain(result) for result in results]}, indent=2) + "\n")
    return 0


def surroundings() -> dict[str, Any]:
    """Return the machine and the versions installed there."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{_processor()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "mosquitto": _mosquitto(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _mosquitto() -> str:
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if not found:
        return "not installed"
    return subprocess.run([found, "-h"], capture_output=True, text=True).stdout.partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
