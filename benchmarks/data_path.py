"""CPU added to an inference on a tiny model, from a line of the sensor to bytes in the broker's socket.

The measure takes the CPU time of all threads of a whole daemon, and subtracts that of the bare interpreter. The lines
come from memory: in bursts back to back, so that all but the first of a burst find warm code; and one at a time at the
rate of a usual sensor, where caches and cores have gone cold meanwhile.
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

PACES = {"back to back": (50, 0.025), "at 100 Hz": (1, 0.01)}
"""Lines of a burst, and seconds from burst to burst, long enough for the results to leave: otherwise windows would wait
in the mailbox, and be handed to another thread, until the end of the measure.
"""

WARM_UP = 200
"""Predictions before a measure."""

CONFIG = """
[device]
name = "bench"
[mqtt]
host = "127.0.0.1"
port = {broker}
[sources.wrist]
kind = "bench-lines"
burst = {burst}
every = {every}
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
    whole = {pace: Figure(f"{name}, {pace}", "us", {"bare": [], "edged": []}) for pace in PACES}
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as folder, broker(Path(folder)) as port:
        model, _ = hasty_motion(Path(folder))
        install(Path(folder) / "packages")
        bare = Bare(model / "model.tflite")
        bare.run([bare.silence], 1000)  # to warm up
        for _ in range(rounds):
            for pace, (burst, every) in PACES.items():
                config = CONFIG.format(broker=port, burst=burst, every=every, model=model)
                whole[pace].variants["bare"].append(_bare(bare) * 1e6)
                whole[pace].variants["edged"].append(_edged(Path(folder), config, seconds) * 1e6)
    added = [
        Figure(f"CPU added, line to bytes in the socket, {pace}", "us", {"edged": figure.differences("edged", "bare")})
        for pace, figure in whole.items()
    ]
    added[0].targets.append(Target("edged adds at most 60 us", added[0].variants["edged"], 60))
    return [*whole.values(), *added]


def _bare(bare: Bare, inferences: int = 5000) -> float:
    begun = time.process_time()
    bare.run([bare.silence], inferences)
    return (time.process_time() - begun) / inferences


def _edged(folder: Path, config: str, seconds: float) -> float:
    packages = str(folder / "packages")
    with program(edged_command(folder, config), folder / "edged.log", PYTHONPATH=packages) as daemon:
        await_predictions(folder, WARM_UP)
        made, spent = sum(predictions(folder)), cpu_seconds(daemon.pid)  # the question itself takes CPU of the daemon
        time.sleep(seconds)
        spent = cpu_seconds(daemon.pid) - spent
        return spent / (sum(predictions(folder)) - made)
