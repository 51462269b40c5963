"""The commands of docs/guide/first-pipeline.md, typed as printed: from a .tflite file to results on MQTT.

Two words differ from the page: the port is a pseudo-terminal, and the broker has another port.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from itertools import cycle
from pathlib import Path

import pytest

from tests.broker import Broker
from tests.edged_process import SerialPort
from tests.motion import lines

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guide/first-pipeline.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


class Reader:
    """A reader of the page, in a folder with a model, labels and a recording, beside a sensor and a broker."""

    def __init__(self, folder, sensor, broker):
        self.folder = folder
        self._words = {
            "/dev/ttyUSB0": str(sensor.link),
            "--broker localhost": f"--broker localhost:{broker.port}",
            "-h localhost": f"-h localhost -p {broker.port}",
        }
        for name, module in (("edged", "edged"), ("edgectl", "edged.ctl")):
            command = folder / "bin" / name
            command.parent.mkdir(exist_ok=True)
            command.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
            command.chmod(0o755)
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self._environ = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}

    def start(self, command):
        """Type a command."""
        for word, here in self._words.items():
            command = command.replace(word, here)
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(f"exec {command}", shell=True, cwd=self.folder, env=self._environ, text=True, **pipes)

    def run(self, command, code=0):
        """Type a command, wait for the end, and return the output."""
        process = self.start(command)
        said, _ = process.communicate()
        assert process.returncode == code, said
        return said


def edit(text, block):
    """Replace lines of a draft by lines of the page with the same key in the same table."""
    table = ""
    for line in block.splitlines():
        if line.startswith("["):
            table = line
        elif key := line.partition(" = ")[0]:
            text = _replace(text.splitlines(), table, key, line)
    return text


def _replace(draft, table, key, line):
    start = draft.index(table) if table else 0
    first = next(n for n in range(start, len(draft)) if re.match(rf"(# )?{key} = ", draft[n]))
    last = next(n for n in range(first, len(draft)) if draft[n] == "]") if draft[first].endswith("[") else first
    return "\n".join([*draft[:first], line, *draft[last + 1 :]]) + "\n"


@pytest.fixture
def sensor(tmp_path):
    """Run a sensor that sends ten lines per second during the test."""
    port, done = SerialPort(tmp_path / "imu"), threading.Event()

    def play():
        for row in cycle(range(300)):
            port.offer(lines(row, 1))
            if done.wait(0.1):
                return

    player = threading.Thread(target=play)
    player.start()
    yield port
    done.set()
    player.join()


@pytest.fixture
def reader(tmp_path, sensor):
    folder = tmp_path / "desk"
    folder.mkdir()
    shutil.copy(ROOT / "firmware_models/motion/1.0.0/model.tflite", folder / "gestures.tflite")
    shutil.copy(ROOT / "demo/recording.csv", folder / "recording.csv")
    (folder / "labels.txt").write_text("standing\nwalking\nrunning\nbadminton\n")
    with Broker(tmp_path) as broker:
        yield Reader(folder, sensor, broker)


def test_the_page_leads_from_a_sensor_and_a_model_file_to_results_on_mqtt(reader):
    draft, pack, infer, init, check, run, look, _ = blocks("sh")
    assert "gestures/manifest.toml" in reader.run(draft)
    (changes,) = blocks("toml")
    manifest = reader.folder / "gestures" / "manifest.toml"
    manifest.write_text(edit(manifest.read_text(), changes))
    assert tomllib.loads(changes).items() <= _without_kind(tomllib.loads(manifest.read_text())).items()
    assert "gestures-1.edgm: gestures 1 " in reader.run(pack)
    assert "DECISION" in reader.run(infer)
    assert "edged.toml: written: 1 pipeline, 1 source, 1 model, 1 sink" in reader.run(init)
    assert "edged.toml: valid" in reader.run(check)
    daemon = reader.start(run)
    try:
        _until(daemon.stdout, "pipeline gestures is running")
        status, watch, subscribe = look.splitlines()
        assert "gestures" in reader.run(status)
        assert re.search(r"gestures +\w+", reader.run(watch))
        subscriber = reader.start(subscribe)
        topic, _, payload = _until(subscriber.stdout, "pipelines/gestures/result").partition(" ")
        subscriber.kill()
        subscriber.wait()
    finally:
        daemon.terminate()
        daemon.communicate()
    result = json.loads(payload)
    assert topic == "edged/desk/pipelines/gestures/result"
    assert (result["device"], result["model"], result["version"]) == ("desk", "gestures", "1")
    assert result["label"] in ("standing", "walking", "running", "badminton")


def _without_kind(manifest):
    """Return the manifest, with only the page's changes in the postprocessing."""
    return {**manifest, "postprocess": {"decision": manifest["postprocess"]["decision"]}}


def _until(output, text):
    """Return the first line of a process's output with this text."""
    said = []
    for line in output:
        said.append(line)
        if text in line:
            return line
    raise AssertionError("".join(said))
