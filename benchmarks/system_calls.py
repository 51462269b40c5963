"""System calls and context switches of a message at 100 Hz, from the wire of the sensor to the broker's socket.

The kernel counts the switches of a thread that waits. strace logs the calls, and delays each, so calls and switches
come from separate runs. Wakes of the idle daemon count too, spread over the messages.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.counters import waits
from benchmarks.processes import BROKER, broker
from benchmarks.report import Figure, Skipped, Target
from benchmarks.tracing import STRACE, calls, traced
from benchmarks.wire import Variant, running, variants

RATE = 100
FREQUENT = 0.05
"""Calls a message from which a call is named in the table."""


def measure(rounds: int, seconds: float = 3.0) -> list[Figure | Skipped]:
    if BROKER is None or STRACE is None:
        return [Skipped("system calls of a message", "mosquitto or strace is not installed")]
    made = Figure(f"system calls of a message at {RATE} Hz", "", {})
    switches = Figure(f"context switches of a message at {RATE} Hz", "", {})
    named: dict[str, Counter[str]] = {}
    messages = round(RATE * seconds)
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name, broker(Path(name)) as port:
        programs = variants(Path(name), port)
        for _ in range(rounds):
            for who, variant in programs.items():
                found = _calls(variant, Path(name), port, seconds)
                named.setdefault(who, Counter()).update(found)
                made.variants.setdefault(who, []).append(found.total() / messages)
                waited = _waits(variant, Path(name), port, seconds)
                switches.variants.setdefault(who, []).append(waited / messages)
    made.targets.append(Target("edged at most 4.5", made.variants["edged"], 4.5))
    switches.targets.append(Target("edged at most 1.5", switches.variants["edged"], 1.5))
    made.notes += [f"{who}: {_list(found, messages * rounds)}" for who, found in named.items()]
    return [made, switches]


def _calls(variant: Variant, folder: Path, port: int, seconds: float) -> Counter[str]:
    log = folder / "calls.log"
    under_strace = variant._replace(command=lambda sensor: traced(variant.command(sensor), log))
    with running(under_strace, folder, port) as (_, sensor, _):
        began = time.time()
        sensor.play(RATE, seconds)
        ended = time.time()
    return calls(log, began, ended)


def _waits(variant: Variant, folder: Path, port: int, seconds: float) -> int:
    with running(variant, folder, port) as (process, sensor, _):
        before = waits(process.pid)
        sensor.play(RATE, seconds)
        return waits(process.pid) - before


def _list(found: Counter[str], messages: int) -> str:
    shares = ((name, count / messages) for name, count in found.most_common())
    return ", ".join(f"{name} {share:.2f}" for name, share in shares if share >= FREQUENT)
