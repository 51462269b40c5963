"""Time from the start of a process to its first inference, and its memory then.

edged is the whole daemon, which plays a recording at full speed into the motion model and to a real broker. The first
result states the time of the inference; memory is measured at the end of the recording.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.inline import RECORDING
from benchmarks.processes import BROKER, ROOT, Listener, broker, edged_command, installed, program, resident_bytes
from benchmarks.report import Figure, Skipped, Target
from edged.models.store import FACTORY, Store

STARTS = 3  # a round; a start is short, so that other load disturbs the measurement most

CONFIG = """
[device]
name = "bench"
[mqtt]
host = "127.0.0.1"
port = {broker}
[sources.recorded]
kind = "replay"
path = "{recording}"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10
pace = "fast"
[pipelines.motion]
source = "recorded"
model = "motion"
"""


def measure(rounds: int) -> list[Figure | Skipped]:
    if BROKER is None:
        return [Skipped("start and memory", "mosquitto is not installed")]
    start = Figure("start of the process to its first inference", "ms", {"bare": [], "edged": []})
    memory = Figure("resident memory", "MB", {"bare": [], "edged": []})
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name, broker(Path(name)) as port:
        for number in range(1 + STARTS * rounds):
            found = {"bare": _bare(Path(name)), "edged": _edged(Path(name), port)}
            if number == 0:
                continue  # files come from the disk, and modules are compiled
            for variant, (seconds, resident) in found.items():
                start.variants[variant].append(seconds * 1e3)
                memory.variants[variant].append(resident / 1e6)
    start.targets.append(Target("edged at most 1.5x bare", start.ratios("edged", "bare"), 1.5))
    memory.targets.append(Target("edged at most bare + 16 MB", memory.differences("edged", "bare"), 16))
    return [start, memory]


def _bare(folder: Path) -> tuple[float, int]:
    model = Store(FACTORY).find("motion").model
    command = [sys.executable, "-m", "benchmarks.bare", str(model)]
    begun = time.time()
    child = subprocess.Popen(command, cwd=ROOT, env=installed(folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        done = float(child.stdout.readline())
        resident = resident_bytes(child.pid)
        child.communicate()
    return done - begun, resident


def _edged(folder: Path, port: int) -> tuple[float, int]:
    listener = Listener(port, "edged/bench/pipelines/motion/result")
    command = edged_command(folder, CONFIG.format(broker=port, recording=RECORDING))
    begun = time.time()
    with program(command, folder / "edged.log") as child:
        results = listener.stop()
        resident = resident_bytes(child.pid)
    if not results:
        raise RuntimeError(f"the daemon published nothing: {(folder / 'edged.log').read_text()[-2000:]}")
    first = results[0][1]
    return first["time"] + first["latency"] - begun, resident
