"""Programs between the wire of a sensor and a subscriber: the script, and edged as a whole daemon.

Both read the same lines of CSV from a serial port, and classify after each sample. Results of the script carry the
number of the sample. Results of edged number the windows; the first window ends with the sample LENGTH - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any, NamedTuple

from benchmarks.processes import (
    BAUD,
    Listener,
    Sensor,
    edged_command,
    hasty_motion,
    program,
    script_command,
)

WARM_UP_SECONDS = 0.6
"""Time to fill the first window at 100 Hz, and to warm up."""

CONFIG = """
[device]
name = "bench"
[mqtt]
host = "127.0.0.1"
port = {broker}
[sources.wrist]
kind = "serial"
port = "{port}"
baud = {baud}
columns = ["seq", "ax", "ay", "az", "gx", "gy", "gz"]
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
sequence = "seq"
[models.motion]
path = "{model}"
"""

PIPELINE = """
[pipelines.{name}]
source = "wrist"
model = "motion"
queue = {queue}
"""

QUEUE = 64
"""Windows that may wait; at 1 kHz the usual 4 are 4 ms, and a busy machine's threads wait longer for their turn."""


class Variant(NamedTuple):
    """A program to put between sensor and broker; `sample` returns the number of the sample behind a result."""

    command: Callable[[Sensor], list[str]]
    topic: str
    sample: Callable[[dict[str, Any]], int]


class Running(NamedTuple):
    """A variant at work, with its process, sensor and subscriber."""

    process: Popen[bytes]
    sensor: Sensor
    listener: Listener


def variants(folder: Path, broker: int) -> dict[str, Variant]:
    """Return the script and edged, with their files in a folder."""
    model, length = hasty_motion(folder)
    return {
        "script": Variant(
            lambda sensor: script_command(model / "model.tflite", sensor, broker, "motion/result"),
            "motion/result",
            lambda result: int(result["seq"]),
        ),
        "edged": Variant(
            lambda sensor: edged_command(folder, config(broker, sensor, model)),
            "edged/bench/pipelines/motion/result",
            lambda result: int(result["seq"]) + length - 1,
        ),
    }


def config(broker: int, sensor: Sensor, model: Path, pipelines: Sequence[str] = ("motion",), queue: int = QUEUE) -> str:
    """Return the configuration of a daemon with these pipelines, all of one sensor and one model."""
    parts = CONFIG.format(broker=broker, port=sensor.port, baud=BAUD, model=model)
    return parts + "".join(PIPELINE.format(name=name, queue=queue) for name in pipelines)


@contextmanager
def running(variant: Variant, folder: Path, broker: int) -> Iterator[Running]:
    """Run a variant with a fresh sensor, warmed up. The end of the block stops the process, but not the listener."""
    sensor = Sensor()
    listener = Listener(broker, variant.topic)
    log = folder / "variant.log"
    log.unlink(missing_ok=True)
    try:
        with program(variant.command(sensor), log) as process:
            sensor.await_reader()
            sensor.play(100, WARM_UP_SECONDS)
            try:
                yield Running(process, sensor, listener)
            except ProcessLookupError as error:
                raise RuntimeError(f"the program has ended: {log.read_text()[-2000:]}") from error
    finally:
        sensor.close()
        listener.close()
