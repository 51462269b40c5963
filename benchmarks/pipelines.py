"""Costs of many pipelines of a sensor and a model: CPU of an inference, memory, and the time of a reload.

All pipelines of a daemon classify after each sample, so many pipelines make many inferences at a time, and run warmer
code than a single pipeline of the same sensor. The CPU is therefore compared at the same number of inferences a second
too. The reload changes every pipeline, once the results of the warm-up are sent: a backlog would compete with the
reload for the interpreter.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.counters import cpu_seconds, resident_bytes
from benchmarks.processes import (
    BROKER,
    Sensor,
    await_predictions,
    broker,
    edged_command,
    hasty_motion,
    predictions,
    program,
)
from benchmarks.report import Figure, Skipped, Target
from benchmarks.wire import QUEUE, WARM_UP_SECONDS, config
from edged.core.answers import RELOAD, SPOOL
from edged.ctl.client import connect

SHARING, MANY = 32, 100
RATE, FEW = 100, 30
"""Samples a second; FEW keeps the inferences of all SHARING pipelines within the rate of a fast sensor."""


class Running(NamedTuple):
    """A daemon with its sensor, and the folder of its configuration and socket."""

    pid: int
    sensor: Sensor
    folder: Path
    model: Path


def measure(rounds: int, seconds: float = 3.0, sharing: int = SHARING, many: int = MANY) -> list[Figure | Skipped]:
    if BROKER is None:
        return [Skipped("many pipelines", "mosquitto is not installed")]
    same, equal = _comparison(f"at {RATE} Hz", sharing), _comparison(f"at {FEW * sharing} inferences a second", sharing)
    memory = Figure(f"resident memory with {many} pipelines", "MB", {"edged": []})
    reload = Figure(f"a reload that changes {many} pipelines", "s", {"edged": []})
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name, broker(Path(name)) as port:
        model, _ = hasty_motion(Path(name))
        for _ in range(rounds):
            for count in (1, sharing):
                with _running(Path(name), port, model, count) as daemon:
                    for figure, rate in ((same, RATE), (equal, FEW * sharing // count)):
                        figure.variants[_label(count)].append(_cpu_of_an_inference(daemon, rate, seconds) * 1e6)
            with _running(Path(name), port, model, many) as daemon:
                memory.variants["edged"].append(resident_bytes(daemon.pid) / 1e6)
                reload.variants["edged"].append(_reload(daemon, port, many))
    for figure in (same, equal):
        ratios = figure.ratios(_label(sharing), _label(1))
        figure.targets.append(Target(f"at most 1.1x with {sharing} pipelines", ratios, 1.1))
    return [same, equal, memory, reload]


def _comparison(rate: str, sharing: int) -> Figure:
    name = f"CPU of an inference, pipelines of one sensor {rate}"
    return Figure(name, "us", {_label(1): [], _label(sharing): []})


def _label(count: int) -> str:
    return f"with {count}"


@contextmanager
def _running(folder: Path, port: int, model: Path, count: int) -> Iterator[Running]:
    """Run a daemon with `count` pipelines, until every pipeline has served."""
    sensor = Sensor()
    try:
        with program(edged_command(folder, config(port, sensor, model, _names(count))), folder / "edged.log") as child:
            daemon = Running(child.pid, sensor, folder, model)
            sensor.await_reader()
            await_predictions(folder, 1, count, meanwhile=lambda: sensor.play(RATE, WARM_UP_SECONDS))
            yield daemon
    finally:
        sensor.close()


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"motion-{number}" for number in range(count))


def _cpu_of_an_inference(daemon: Running, rate: int, seconds: float) -> float:
    before, made = cpu_seconds(daemon.pid), sum(predictions(daemon.folder))
    daemon.sensor.play(rate, seconds)
    return (cpu_seconds(daemon.pid) - before) / (sum(predictions(daemon.folder)) - made)


def _reload(daemon: Running, port: int, count: int) -> float:
    """Return the seconds of a reload."""
    changed = config(port, daemon.sensor, daemon.model, _names(count), queue=QUEUE + 1)
    control = connect(str(daemon.folder / "run"))
    while control.call(SPOOL)["depth"]:
        time.sleep(0.1)
    (daemon.folder / "edged.toml").write_text(changed)
    begun = time.monotonic()
    while not control.call(RELOAD)["done"]:
        pass  # the answer to a long reload comes early; another call waits for the rest
    return time.monotonic() - begun
