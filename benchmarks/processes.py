"""The processes around a measure: a broker, a sensor on a pseudo-terminal, a listener, and what they surround.

The sensor is physics and waits for nobody. It keeps absolute deadlines, and what its reader has left no room for in the
terminal's buffer is lost, as in a serial port.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from benchmarks.inline import CHANNELS, RECORDING
from edged.core import manifest as manifests
from edged.models.store import FACTORY, Store

ROOT = Path(__file__).parents[1]
PATIENCE = 20.0
BAUD = 921_600

BROKER = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextlib.contextmanager
def broker(folder: Path, port: int = 0) -> Iterator[int]:
    """mosquitto on this port, or else a free one, of the loopback interface."""
    assert BROKER, "the caller has looked"
    port = port or free_port()
    config = folder / "mosquitto.conf"
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", "persistence false", "set_tcp_nodelay true"]
    config.write_text("\n".join(lines) + "\n")
    with program([BROKER, "-c", str(config)], folder / "broker.log"):
        _await_broker(port)
        yield port


def free_port() -> int:
    """One where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@contextlib.contextmanager
def program(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose output goes to a file, stopped when the block ends."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, cwd=ROOT, env=installed(log.parent), stdin=subprocess.DEVNULL, stdout=output, stderr=output
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


def installed(folder: Path) -> dict[str, str]:
    """The environment of a process that finds its modules compiled, as they are where they were installed."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(folder / "compiled")}


class Listener:
    """A subscriber in a process of its own."""

    def __init__(self, port: int, topic: str) -> None:
        command = [sys.executable, "-m", "benchmarks.listener", str(port), topic]
        self._child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._child.stdout is not None
        if self._child.stdout.readline() != "ready\n":
            raise RuntimeError("the listener cannot subscribe")

    def stop(self) -> list[tuple[float, dict[str, Any]]]:
        """Everything it has heard: when, and what, once it has grown quiet."""
        heard, _ = self._child.communicate(timeout=2 * PATIENCE)
        return [(when, json.loads(payload)) for when, payload in json.loads(heard)]


class Sensor:
    """A motion sensor that sends lines of CSV, each with its number: 0, 1, 2, ..."""

    def __init__(self) -> None:
        with RECORDING.open() as file:
            self._rows = [",".join(f"{float(row[name]):.3f}" for name in CHANNELS) for row in csv.DictReader(file)]
        self._terminal, device = os.openpty()
        os.set_blocking(self._terminal, False)
        self.port = os.ttyname(device)
        os.close(device)
        self.next = 0
        self.overruns = 0

    def await_reader(self) -> None:
        """Until somebody has opened the port and is done with it. Raises TimeoutError."""
        hung_up = select.poll()
        hung_up.register(self._terminal, select.POLLHUP)
        until = time.monotonic() + PATIENCE
        while hung_up.poll(0):  # there is no event for a hang-up that ends
            if time.monotonic() > until:
                raise TimeoutError(f"nobody opened {self.port}")
            time.sleep(0.01)
        time.sleep(0.3)  # whoever opens a port sets its speed and empties its buffer next
        os.write(self._terminal, b"\n")  # a reader cannot know whether its first line is a whole one

    def play(self, rate: float, seconds: float) -> dict[int, float]:
        """Send samples; when each was sent."""
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
        """Unplug it."""
        os.close(self._terminal)

    def _send(self, line: bytes) -> None:
        try:
            written = os.write(self._terminal, line)
        except BlockingIOError:
            written = 0
        self.overruns += written < len(line)


def script_command(model: Path, sensor: Sensor, broker_port: int, topic: str) -> list[str]:
    """The user's script, classifying after every sample."""
    options = ["--port", sensor.port, "--baud", str(BAUD), "--broker", "127.0.0.1", "--broker-port", str(broker_port)]
    script = str(Path(__file__).with_name("user_script.py"))
    return [sys.executable, script, *options, "--topic", topic, "--model", str(model), "--hop", "1"]


def edged_command(folder: Path, config: str) -> list[str]:
    """The daemon, with this configuration in this folder."""
    (folder / "edged.toml").write_text(config)
    options = ["--config", str(folder / "edged.toml"), "--runtime-dir", str(folder / "run")]
    return [sys.executable, "-m", "edged", *options]


def hasty_motion(folder: Path) -> tuple[Path, int]:
    """A copy of the motion model with a window after every sample, at any rate; and the length of a window."""
    bundle = Store(FACTORY).find("motion")
    copy = folder / "motion"
    shutil.copytree(bundle.folder, copy)
    window = replace(bundle.manifest.window, hop=1, rate=None)
    (copy / "manifest.json").write_bytes(manifests.encode(replace(bundle.manifest, window=window)))
    return copy, window.length


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process: its CPU clock, whose number clock_getcpuclockid(3) makes of the pid."""
    return time.clock_gettime(~pid << 3 | 2)


def resident_bytes(pid: int, *, peak: bool = False) -> int:
    """What a process holds in memory, or the most that it has held since the start or `forget_peak`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:" if peak else "VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} is gone")


def forget_peak(pid: int) -> None:
    """Begin to look anew for the most that a process holds."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


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
