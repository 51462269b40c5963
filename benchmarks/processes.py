"""Processes of a measure: a broker, a sensor on a pseudo-terminal, a listener, and the variants under test.

The sensor is physics and does not wait. Sensors keep absolute deadlines, and lose samples while the buffer of the
terminal is full, as a serial port does.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from benchmarks.inline import CHANNELS, RECORDING
from edged.core import manifest as manifests
from edged.core.answers import PIPELINES
from edged.ctl.client import UnreachableError, connect
from edged.models.store import FACTORY, Store

ROOT = Path(__file__).parents[1]
PATIENCE = 20.0
BAUD = 921_600

RECORDED = f"""
[sources.recorded]
kind = "replay"
path = "{RECORDING}"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10
pace = "fast"
[pipelines.motion]
source = "recorded"
model = "motion"
"""
"""A recording as fast as possible into the motion model; the last table of a configuration."""

BROKER = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextlib.contextmanager
def broker(folder: Path, port: int = 0) -> Iterator[int]:
    """Run mosquitto on `port` of the loopback interface, 0 for a free one."""
    assert BROKER, "the caller has looked"
    port = port or free_port()
    config = folder / "mosquitto.conf"
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", "persistence false", "set_tcp_nodelay true"]
    config.write_text("\n".join(lines) + "\n")
    with program([BROKER, "-c", str(config)], folder / "broker.log"):
        _await_broker(port)
        yield port


def free_port() -> int:
    """Return a port without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@contextlib.contextmanager
def program(command: Sequence[str], log: Path, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with its output in a file; the end of the block stops the process."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, cwd=ROOT, env=installed() | environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def other_work() -> Iterator[None]:
    """Keep each core busy with a process that never waits."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def installed() -> dict[str, str]:
    """Return the environment of a process whose modules are compiled, as after an installation."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(ROOT / "build" / "compiled")}


class Listener:
    """Subscriber in a process of its own."""

    def __init__(self, port: int, topic: str) -> None:
        command = [sys.executable, "-m", "benchmarks.listener", str(port), topic]
        self._child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._child.stdout is not None
        if self._child.stdout.readline() != "ready\n":
            raise RuntimeError("the listener cannot subscribe")

    def stop(self) -> list[tuple[float, dict[str, Any]]]:
        """Return the time and payload of every message, after a pause without messages."""
        heard, _ = self._child.communicate(timeout=2 * PATIENCE)
        return [(when, json.loads(payload)) for when, payload in json.loads(heard)]

    def close(self) -> None:
        """End the process, if `stop` has not."""
        self._child.kill()
        self._child.communicate()


def recorded_lines() -> list[str]:
    """Return the recording of the demo as a sensor sends the samples, without numbers and line ends."""
    with RECORDING.open() as file:
        return [",".join(f"{float(row[name]):.3f}" for name in CHANNELS) for row in csv.DictReader(file)]


class Sensor:
    """Motion sensor that sends numbered lines of CSV: 0, 1, 2, ..."""

    def __init__(self) -> None:
        self._rows = recorded_lines()
        self._terminal, device = os.openpty()
        os.set_blocking(self._terminal, False)
        self.port = os.ttyname(device)
        os.close(device)
        self.next = 0
        self.overruns = 0

    def await_reader(self, patience: float = PATIENCE) -> None:
        """Wait until a reader has opened the port and set it up. Raises TimeoutError."""
        hung_up = select.poll()
        hung_up.register(self._terminal, select.POLLHUP)
        until = time.monotonic() + patience
        while hung_up.poll(0):  # there is no event for a hang-up that ends
            if time.monotonic() > until:
                raise TimeoutError(f"no process opened {self.port}")
            time.sleep(0.01)
        time.sleep(0.3)  # a reader sets the speed next and empties the buffer
        os.write(self._terminal, b"\n")  # the first line may be incomplete to a reader

    def play(self, rate: float, seconds: float) -> dict[int, float]:
        """Send samples, and return the time of each."""
        sent = {}
        due = time.monotonic()
        for _ in range(round(rate * seconds)):
            due += 1 / rate
            while (left := due - time.monotonic()) > 0:
                time.sleep(left)
            line = f"{self.next},{self._rows[self.next % len(self._rows)]}\r\n".encode()
            sent[self.next] = time.monotonic()
            self._send(line)
            self.next += 1
        return sent

    def close(self) -> None:
        """Unplug the sensor."""
        os.close(self._terminal)

    def _send(self, line: bytes) -> None:
        try:
            written = os.write(self._terminal, line)
        except BlockingIOError:
            written = 0
        self.overruns += written < len(line)


def script_command(model: Path, sensor: Sensor, broker_port: int, topic: str) -> list[str]:
    """Return the command of the script, which classifies after every sample."""
    options = ["--port", sensor.port, "--baud", str(BAUD), "--broker", "127.0.0.1", "--broker-port", str(broker_port)]
    script = str(Path(__file__).with_name("user_script.py"))
    return [sys.executable, script, *options, "--topic", topic, "--model", str(model), "--hop", "1"]


def edged_command(folder: Path, config: str) -> list[str]:
    """Return the command of a daemon that keeps configuration, state and socket in a folder of its own."""
    (folder / "edged.toml").write_text(config)
    options = ["--config", str(folder / "edged.toml")]
    options += ["--runtime-dir", str(folder / "run"), "--state-dir", str(folder / "state")]
    return [sys.executable, "-m", "edged", *options]


def predictions(folder: Path) -> list[int]:
    """Return the number of predictions of each pipeline of the daemon in a folder, none before its socket is there."""
    try:
        pipelines = connect(str(folder / "run")).call(PIPELINES)
    except UnreachableError:
        return []
    return [pipeline["predictions"] for pipeline in pipelines]


def await_predictions(
    folder: Path, count: int, pipelines: int = 1, meanwhile: Callable[[], object] = lambda: time.sleep(0.05)
) -> None:
    """Wait until each pipeline of the daemon in a folder has made `count` predictions. Raises TimeoutError."""
    until = time.monotonic() + PATIENCE
    while [made >= count for made in predictions(folder)] != [True] * pipelines:
        if time.monotonic() > until:
            raise TimeoutError((folder / "edged.log").read_text()[-2000:])
        meanwhile()


def hasty_motion(folder: Path) -> tuple[Path, int]:
    """Copy the motion model with a window after every sample, at any rate; return folder and window length."""
    bundle = Store(FACTORY).find("motion")
    copy = folder / "motion"
    shutil.copytree(bundle.folder, copy)
    window = replace(bundle.manifest.window, hop=1, rate=None)
    (copy / "manifest.json").write_bytes(manifests.encode(replace(bundle.manifest, window=window)))
    return copy, window.length


def _await_broker(port: int) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
