"""CPU and wakes of a daemon without work: the sensor is silent, the broker is connected.

The script waits beside the daemon, for the same time.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.counters import cpu_seconds, waits
from benchmarks.processes import BROKER, broker
from benchmarks.report import Figure, Skipped, Target
from benchmarks.wire import running, variants

SETTLE_SECONDS = 5.0
"""Time for the first messages to be acknowledged and saved, and for the start to end."""


def measure(rounds: int, seconds: float = 10.0, settle: float = SETTLE_SECONDS) -> list[Figure | Skipped]:
    if BROKER is None:
        return [Skipped("an idle daemon", "mosquitto is not installed")]
    cpu = Figure("CPU of an idle process", "ms a second", {})
    wakes = Figure("wakes of an idle process", "a second", {})
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name, broker(Path(name)) as port, ExitStack() as stack:
        pids = {}
        for who, variant in variants(Path(name), port).items():
            pids[who] = stack.enter_context(running(variant, Path(name), port)).process.pid
        time.sleep(settle)
        for _ in range(rounds):
            before = {who: (cpu_seconds(pid), waits(pid)) for who, pid in pids.items()}
            time.sleep(seconds)
            for who, (spent, woken) in before.items():
                cpu.variants.setdefault(who, []).append((cpu_seconds(pids[who]) - spent) / seconds * 1e3)
                wakes.variants.setdefault(who, []).append((waits(pids[who]) - woken) / seconds)
    cpu.targets.append(Target("edged at most 0.5 ms a second", cpu.variants["edged"], 0.5))
    wakes.targets.append(Target("edged at most 2 a second", wakes.variants["edged"], 2))
    return [cpu, wakes]
