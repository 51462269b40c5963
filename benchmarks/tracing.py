"""System calls of a process, as strace(1) logs them."""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from pathlib import Path

from benchmarks.processes import PATIENCE

STRACE = shutil.which("strace")

_LINE = re.compile(r"^\d+ +(?P<when>\d+\.\d+) (?:(?P<call>\w+)\()?", re.MULTILINE)
"""Beginning of a line: thread, time, and the name if a call begins, rather than goes on or a signal arrives."""


def traced(command: list[str], log: Path) -> list[str]:
    """Return the command of the same process under strace, which logs the calls of all threads into a file."""
    assert STRACE, "the caller has looked"
    return [STRACE, "-D", "-f", "-ttt", "-s", "0", "-o", str(log), *command]


def calls(log: Path, began: float, ended: float) -> Counter[str]:
    """Return the number of calls by name that began between two times in Unix seconds, once the process has ended."""
    until = time.monotonic() + PATIENCE
    while not (lines := list(_LINE.finditer(log.read_text()))) or float(lines[-1]["when"]) < ended:
        if time.monotonic() > until:
            raise TimeoutError(f"strace did not complete {log}")
        time.sleep(0.01)
    return Counter(line["call"] for line in lines if line["call"] and began <= float(line["when"]) < ended)
