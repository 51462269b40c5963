"""Time and CPU from the start of a process to its first inference, and its memory then.

edged is the whole daemon, which plays a recording at full speed into the motion model and to a real broker. The proof
of the model is in the state folder, as in every start but the first. The first result states the time of the
inference; a look at the CPU clock of the process every millisecond tells the CPU until then. Memory is measured at the
end of the recording.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.counters import Trace, cpu_seconds, resident_bytes
from benchmarks.processes import BROKER, RECORDED, ROOT, Listener, broker, edged_command, installed, program
from benchmarks.report import Figure, Skipped, Target
from edged.models.store import FACTORY, Store

STARTS = 3  # a round; a start is short, so that other load disturbs the measurement most

CONFIG = """
[device]
name = "bench"
[mqtt]
host = "127.0.0.1"
port = {broker}
"""


class Start(NamedTuple):
    """Outcome of a start: CPU and wall-clock seconds until the first inference, and bytes of memory."""

    cpu: float
    wall: float
    resident: int


def measure(rounds: int, starts: int = STARTS) -> list[Figure | Skipped]:
    if BROKER is None:
        return [Skipped("start and memory", "mosquitto is not installed")]
    found: dict[str, list[Start]] = {"bare": [], "edged": []}
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name, broker(Path(name)) as port:
        for number in range(1 + starts * rounds):
            each = {"bare": _bare(), "edged": _edged(Path(name), port)}
            if number == 0:
                continue  # files come from the disk, modules are compiled, and the model is proven
            for variant, start in each.items():
                found[variant].append(start)

    def figure(name: str, unit: str, of: Callable[[Start], float]) -> Figure:
        return Figure(name, unit, {who: [of(start) for start in starts] for who, starts in found.items()})

    cpu = figure("CPU from the start of the process to its first inference", "ms", lambda start: start.cpu * 1e3)
    wall = figure("time from the start of the process to its first inference", "ms", lambda start: start.wall * 1e3)
    memory = figure("resident memory", "MB", lambda start: start.resident / 1e6)
    cpu.targets.append(Target("edged at most 1.6x bare", cpu.ratios("edged", "bare"), 1.6))
    memory.targets.append(Target("edged at most bare + 15 MB", memory.differences("edged", "bare"), 15))
    return [cpu, wall, memory]


def _bare() -> Start:
    model = Store(FACTORY).find("motion").model
    command = [sys.executable, "-m", "benchmarks.bare", str(model)]
    begun = time.time()
    child = subprocess.Popen(command, cwd=ROOT, env=installed(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with Trace(partial(cpu_seconds, child.pid)) as trace:
        assert child.stdout is not None
        done = float(child.stdout.readline())
        resident = resident_bytes(child.pid)
    child.communicate()
    return Start(trace.at(done), done - begun, resident)


def _edged(folder: Path, port: int) -> Start:
    listener = Listener(port, "edged/bench/pipelines/motion/result")
    command = edged_command(folder, CONFIG.format(broker=port) + RECORDED)
    begun = time.time()
    with program(command, folder / "edged.log") as child, Trace(partial(cpu_seconds, child.pid)) as trace:
        results = listener.stop()
        resident = resident_bytes(child.pid)
    if not results:
        raise RuntimeError(f"the daemon published nothing: {(folder / 'edged.log').read_text()[-2000:]}")
    first = results[0][1]
    done = first["time"] + first["latency"]
    return Start(trace.at(done), done - begun, resident)
