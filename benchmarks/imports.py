"""Import budget: the cost of imports until the first inference of a daemon, by package, beyond the imports of bare.

Python prints the time of each import (-X importtime), which itself takes time: the shares count, not the sum. The sink
`stdout` shows the first inference among those lines.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks.processes import RECORDED, ROOT, edged_command, installed
from benchmarks.report import Figure, Skipped
from edged.models.store import FACTORY, Store

SHOWN = 16
"""Packages in the table, the dearest first."""

CONFIG = """
[device]
name = "bench"
[sinks.shown]
kind = "stdout"
format = "json"
"""

_IMPORT = re.compile(r"import time: +(?P<own>\d+) \| +\d+ \| +(?P<module>[\w.]+)\n")


def measure(rounds: int) -> list[Figure | Skipped]:
    figure = Figure("imports until the first inference beyond bare, by package", "ms", {})
    totals: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
        bare = [sys.executable, "-m", "benchmarks.bare", str(Store(FACTORY).find("motion").model)]
        edged = edged_command(Path(name), CONFIG + RECORDED + 'sinks = ["shown"]\n')
        _until_output(edged)  # modules are compiled, and the model is proven
        for _ in range(rounds):
            known = _until_output(bare)
            beyond = {module: own for module, own in _until_output(edged).items() if module not in known}
            for package, own in by_package(beyond).items():
                totals.setdefault(package, []).append(own / 1e3)
            totals.setdefault("all", []).append(sum(beyond.values()) / 1e3)
            figure.notes = [f"{len(beyond)} modules beyond the {len(known)} of bare"]
    dearest = sorted(totals, key=lambda package: -sum(totals[package]))
    figure.variants = {package: totals[package] for package in dearest[:SHOWN]}
    return [figure]


def by_package(modules: dict[str, int]) -> Counter[str]:
    """Return the time of each package; those within edged count apart."""
    found: Counter[str] = Counter()
    for module, own in modules.items():
        parts = module.split(".")
        found[".".join(parts[: 2 if parts[0] == "edged" else 1])] += own
    return found


def imports(lines: Iterable[str]) -> dict[str, int]:
    """Return the microseconds of each import, without the imports within."""
    return {found["module"]: int(found["own"]) for line in lines if (found := _IMPORT.fullmatch(line))}


def _until_output(command: list[str]) -> dict[str, int]:
    """Run Python until it prints anything but imports and logs, and return the imports until then."""
    python, *arguments = command
    lines = []
    with subprocess.Popen(
        [python, "-X", "importtime", *arguments],
        cwd=ROOT,
        env=installed(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if re.match(r"\{|\d+\.\d+$", line):  # a result of edged, or the time that bare prints
                break
            lines.append(line)
        child.kill()
    return imports(lines)
