"""CPU added to an inference on a tiny model, from a line of the sensor to bytes in the broker's socket.

The measure takes the CPU time of all threads of a whole daemon, and subtracts that of the bare interpreter. The lines
come from memory, in bursts of half the messages that may be in flight, so the code is warm. At the rate of a usual
sensor the code is cold and dearer: see the measure `latency`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.bare import Bare
from benchmarks.counters import cpu_seconds
from benchmarks.line_source import install
from benchmarks.processes import (
    BROKER,
    await_predictions,
    broker,
    edged_command,
    hasty_motion,
    predictions,
    program,
)
from benchmarks.report import Figure, Skipped, Target

BURST, PAUSE = 10, 0.001

CONFIG = """
[device]
name = "bench"
[mqtt]
host = "127.0.0.1"
port = {broker}
[sources.wrist]
kind = "bench-lines"
burst = {burst}
pause = {pause}
[models.motion]
path = "{model}"
[pipelines.motion]
source = "wrist"
model = "motion"
queue = 64
"""


def measure(rounds: int, seconds: float = 2.0) -> list[Figure | Skipped]:
    name = "CPU of an inference on a tiny model, line to bytes in the socket"
    if BROKER is None:
        return [Skipped(name, "mosquitto is not installed")]
    whole = Figure(name, "us", {"bare": [], "edged": []})
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as folder, broker(Path(folder)) as port:
        model, _ = hasty_motion(Path(folder))
        install(Path(folder) / "packages")
        bare = Bare(model / "model.tflite")
        bare.run([bare.silence], 1000)  # to warm up
        for _ in range(rounds):
            whole.variants["bare"].append(_bare(bare) * 1e6)
            whole.variants["edged"].append(_edged(Path(folder), model, port, seconds) * 1e6)
    added = Figure(f"CPU added, {name.partition(', ')[2]}", "us", {"edged": whole.differences("edged", "bare")})
    added.targets.append(Target("edged adds at most 60 us", added.variants["edged"], 60))
    return [whole, added]


def _bare(bare: Bare, inferences: int = 5000) -> float:
    begun = time.process_time()
    bare.run([bare.silence], inferences)
    return (time.process_time() - begun) / inferences


def _edged(folder: Path, model: Path, port: int, seconds: float) -> float:
    command = edged_command(folder, CONFIG.format(broker=port, burst=BURST, pause=PAUSE, model=model))
    with program(command, folder / "edged.log", PYTHONPATH=str(folder / "packages")) as daemon:
        await_predictions(folder, 1000)
        spent, made = cpu_seconds(daemon.pid), sum(predictions(folder))
        time.sleep(seconds)
        return (cpu_seconds(daemon.pid) - spent) / (sum(predictions(folder)) - made)
