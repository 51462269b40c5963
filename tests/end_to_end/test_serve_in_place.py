"""The real daemon with a sensor on a serial port, whose thread serves windows or calls a shared worker."""

import json
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.broker import Broker, Subscriber
from tests.edged_process import Edged, SerialPort
from tests.motion import Call, bundle, edgectl

CONFIG = """
[device]
name = "board"
[mqtt]
host = "127.0.0.1"
port = {port}
[sources.wrist]
kind = "serial"
port = "{link}"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
[models.motion]
backend = "noting"
"""

PIPELINE = """
[pipelines.{name}]
source = "wrist"
model = "motion"
queue = 1000
"""

NOTING = """
import os, threading, time
from pathlib import Path
import edged.flow.pipeline, edged.flow.reader, edged.flow.shared_worker
from edged.backends.tflite import TfliteBackend

edged.flow.reader.HUNG_SECONDS = 3.0
edged.flow.pipeline.BRISK_SECONDS = 60.0  # on a busy machine, too, the model is brisk
edged.flow.shared_worker.ROUND_SECONDS = 60.0
loaded = []
folder = Path({folder!r})

class NotingBackend(TfliteBackend, frozen=True, kw_only=True):
    "Notes the thread of each window. A runner hangs while a file is named hang and its own number."

    def load(self, file, *, signature=None):
        runner = TfliteBackend.load(self, file, signature=signature)
        run = runner.run
        loaded.append(runner)
        hang = folder / f"hang{{len(loaded)}}"

        def noting(inputs):
            with open(folder / "threads", "a") as threads:
                threads.write(threading.current_thread().name + chr(10))
            while hang.exists():
                time.sleep(0.01)
            return run(inputs)

        runner.run = noting
        return runner
"""


class Sensor:
    """Sensor, and the results of its samples: a window has 40 samples, the next begins 10 later."""

    def __init__(self, port: SerialPort, subscriber: Subscriber) -> None:
        self._port = port
        self._subscriber = subscriber
        self._sent = 0
        port.write(b"\n")  # a reader that opens a port discards the rest of a line

    def send(self, samples: int) -> None:
        lines = [f"{number},1,2,3,4,5\n" for number in range(self._sent, self._sent + samples)]
        self._sent += samples
        self._port.write("".join(lines).encode())

    def hear(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self._subscriber.next().payload)
        return result


@pytest.fixture
def start(tmp_path: Path, install_plugin, edged) -> Callable[..., Edged]:
    install_plugin("noting", NOTING.format(folder=str(tmp_path)), family="backends", noting="noting:NotingBackend")

    def with_broker(port: int, *pipelines: str) -> Edged:
        config = CONFIG.format(port=port, link=tmp_path / "tty")
        config += "".join(PIPELINE.format(name=name) for name in pipelines)
        daemon: Edged = edged(config, PYTHONPATH=sys.path[0])  # added by install_plugin
        daemon.wait_for_log("source wrist is open")
        return daemon

    return with_broker


def test_a_swap_under_load_loses_no_window_and_goes_back_to_the_sources_thread(tmp_path: Path, start):
    port = SerialPort(tmp_path / "tty")
    with Broker(tmp_path) as broker, Subscriber(broker.port, "edged/board/pipelines/motion/result") as subscriber:
        daemon = start(broker.port, "motion")
        sensor = Sensor(port, subscriber)
        sensor.send(80)  # from now on five windows are on their way
        heard = [sensor.hear()]
        update = Call(daemon, "update-model", bundle(tmp_path, "1.1.0", backend="noting"))
        while update.is_running or heard[-200:][0]["version"] != "1.1.0":  # a probation needs windows to its end
            sensor.send(10)
            heard.append(sensor.hear())
            assert len(heard) < 100_000, "the new version does not serve"
        assert update.end().code == 0
    assert [each["seq"] for each in heard] == list(range(len(heard)))
    assert [version for version, _ in groupby(each["version"] for each in heard)] == ["1.0.0", "1.1.0"]
    assert set((tmp_path / "threads").read_text().split()) >= {"source-wrist", "pipeline-motion"}


def test_a_model_that_hangs_on_the_sources_thread_fails_source_and_pipeline_until_it_answers(tmp_path: Path, start):
    port = SerialPort(tmp_path / "tty")
    with Broker(tmp_path) as broker, Subscriber(broker.port, "edged/board/pipelines/motion/result") as subscriber:
        daemon = start(broker.port, "motion")
        sensor = Sensor(port, subscriber)
        sensor.send(40)
        heard = [sensor.hear()]
        while (tmp_path / "threads").read_text().split()[-1] != "source-wrist":
            sensor.send(10)
            heard.append(sensor.hear())
        (tmp_path / "hang1").touch()
        sensor.send(10)
        held = "pipeline 'motion' holds up the source: its model or a sink does not answer"
        daemon.wait_for_log(f"source wrist is failed: {held}")
        daemon.wait_for_log(f"pipeline motion is failed: source 'wrist': {held}")
        status = edgectl(daemon, "status").output
        assert f"source 'wrist': {held}" in status
        sensor.send(100)
        (tmp_path / "hang1").unlink()
        heard += [sensor.hear() for _ in range(11)]
        daemon.wait_for_log("source wrist is running", times=2)
        daemon.wait_for_log("pipeline motion is running", times=2)
    assert [each["seq"] for each in heard] == list(range(len(heard)))


def test_a_model_that_hangs_holds_up_no_other_pipeline_of_the_source(tmp_path: Path, start):
    port = SerialPort(tmp_path / "tty")
    with Broker(tmp_path) as broker, Subscriber(broker.port, "edged/board/pipelines/+/result") as subscriber:
        daemon = start(broker.port, "motion", "second")
        sensor = Sensor(port, subscriber)
        sensor.send(40)
        heard = [sensor.hear(), sensor.hear()]
        while (tmp_path / "threads").read_text().split()[-2:] != ["shared-wrist", "shared-wrist"]:
            sensor.send(10)
            heard += [sensor.hear(), sensor.hear()]
            assert len(heard) < 10_000, "no window was served by the shared worker"
        (tmp_path / "hang1").touch()
        for _ in range(20):
            sensor.send(10)
            heard.append(sensor.hear())
        assert [each["pipeline"] for each in heard[-20:]] == ["second"] * 20
        assert edgectl(daemon, "status").code == 0
        (tmp_path / "hang1").unlink()
        heard += [sensor.hear() for _ in range(20)]
        assert [each["pipeline"] for each in heard[-20:]] == ["motion"] * 20
    for name in ("motion", "second"):
        assert [each["seq"] for each in heard if each["pipeline"] == name] == list(range(len(heard) // 2))
