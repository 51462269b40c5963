"""Demo of `edged` in one terminal: a sensor, a broker, the daemon and a subscriber.

The sensor is a pseudo-terminal that plays `recording.csv` at its own rate; the model was not trained on the recording.
The daemon is the real one, with `edged.toml` as a user would write it; the demo adds the ports of sensor and broker in
conf.d. The subscriber prints each prediction beside the activity that the recording states for that time.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tty
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import paho.mqtt.client as mqtt

HERE = Path(__file__).parent
RATE = 10.0
READY_SECONDS = 20.0


class Sensor:
    """Player of the recording into a pseudo-terminal, in a loop, with a record of the activity at each time."""

    def __init__(self) -> None:
        with (HERE / "recording.csv").open() as file:
            self._rows = list(csv.DictReader(file))
        self._terminal, device = os.openpty()
        tty.setraw(device)
        self.port = os.ttyname(device)
        self._played: deque[tuple[float, str]] = deque(maxlen=1000)
        self._unplug = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)

    def start(self) -> None:
        """Begin to play."""
        self._thread.start()

    def stop(self) -> None:
        """Stop playing."""
        self._unplug.set()
        self._thread.join()

    def truth(self, start: float, end: float) -> str:
        """Return the activity between two Unix times, two joined by ">" if it changed."""
        # A sample arrives a little after it is played, and the start of a window follows from the nominal rate.
        seen = [activity for played, activity in list(self._played) if start - 0.5 / RATE <= played <= end]
        return " > ".join(dict.fromkeys(seen))

    def _play(self) -> None:
        due = time.monotonic()
        sequence = 0
        while True:
            for row in self._rows:
                due += 1 / RATE
                if self._unplug.wait(max(0.0, due - time.monotonic())):
                    return
                line = ",".join([str(sequence), *(row[axis] for axis in ("ax", "ay", "az", "gx", "gy", "gz"))])
                self._played.append((time.time(), row["activity"]))
                os.write(self._terminal, line.encode() + b"\r\n")
                sequence += 1


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[tuple[str, int]]:
    """Run a broker on a free port of the loopback interface: mosquitto if installed, else an embedded one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    mosquitto = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if mosquitto:
        config = folder / "mosquitto.conf"
        config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
        command = [mosquitto, "-c", str(config)]
    else:
        command = [sys.executable, "-m", "iotcore", "--listen", "127.0.0.1", "--port", str(port)]
    with process(command, folder / "broker.log"):
        yield Path(command[0]).name if mosquitto else "iotcore", port


@contextlib.contextmanager
def process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a child process until the block ends; Ctrl-C in the terminal does not reach the child."""
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def subscribe(port: int, messages: SimpleQueue[tuple[str, bytes]], seconds: float) -> mqtt.Client:
    """Subscribe to every topic of the device."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_connect = lambda client, *_: client.subscribe("edged/#", qos=1)
    client.on_message = lambda _client, _data, message: messages.put((message.topic, message.payload))
    until = time.monotonic() + seconds
    while True:
        try:
            client.connect("127.0.0.1", port)
            break
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)  # the broker gives no other sign of readiness
    client.loop_start()
    return client


def show(result: dict[str, Any], truth: str) -> bool | None:
    """Print a prediction beside the truth; return whether both agree, None if the truth changed in the window."""
    right = None if ">" in truth or not truth else result["label"] == truth
    mark = {True: "ok", False: "WRONG", None: "(changing)"}[right]
    clock = time.strftime("%H:%M:%S", time.localtime(result["time"]))
    print(
        f"{clock}  #{result['seq']:<4} {result['label']:<10} {result['score']:5.0%}   decided: "
        f"{result['decision'] or '-':<10}  in {result['latency'] * 1000:4.1f} ms   truth: {truth:<22} {mark}",
        flush=True,
    )
    return right


def listen(
    sensor: Sensor, messages: SimpleQueue[tuple[str, bytes]], daemon: subprocess.Popen[bytes], seconds: float
) -> Counter[bool | None]:
    """Print messages for `seconds` (0: until Ctrl-C), or until the daemon ends; count right and wrong ones."""
    scores: Counter[bool | None] = Counter()
    until = time.monotonic() + seconds if seconds else float("inf")
    while time.monotonic() < until and daemon.poll() is None:
        try:
            topic, payload = messages.get(timeout=0.2)
        except Empty:
            continue
        if topic.endswith("/result"):
            result = json.loads(payload)
            scores[show(result, sensor.truth(result["start"], result["time"]))] += 1
        elif topic.endswith("/availability"):
            print(f"          {topic}: {payload.decode()}", flush=True)
    return scores


def edgectl() -> str:
    """Return the command of edgectl in the virtual environment, perhaps not on the PATH."""
    beside = Path(sys.executable).with_name("edgectl")
    if not beside.exists():
        return f"{sys.executable} -m edged.ctl"
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)


def play(seconds: float) -> Counter[bool | None]:
    """Start all processes, listen, and stop in reverse order."""
    messages: SimpleQueue[tuple[str, bytes]] = SimpleQueue()
    with contextlib.ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="edged-demo-")))
        sensor = Sensor()
        kind, port = running.enter_context(broker(folder))
        subscriber = subscribe(port, messages, READY_SECONDS)
        running.callback(subscriber.loop_stop)

        shutil.copy(HERE / "edged.toml", folder)
        (folder / "conf.d").mkdir()
        (folder / "conf.d" / "demo.toml").write_text(f'mqtt.port = {port}\nsources.wrist.port = "{sensor.port}"\n')
        command = [sys.executable, "-m", "edged", "--config", str(folder / "edged.toml")]
        command += ["--runtime-dir", str(folder / "run"), "--state-dir", str(folder / "state")]
        daemon = running.enter_context(process(command, folder / "edged.log"))
        sensor.start()
        running.callback(sensor.stop)
        print(f"sensor {sensor.port}, broker {kind} on port {port}, log {folder / 'edged.log'}")
        print(f"ask the daemon: {edgectl()} --runtime-dir {folder / 'run'} status\n", flush=True)
        try:
            return listen(sensor, messages, daemon, seconds)
        finally:
            if daemon.poll() is not None:
                print((folder / "edged.log").read_text(), file=sys.stderr)


def main() -> int:
    """Play, print the counts, and return 0 if at least one prediction was right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.0, help="seconds to play (default: until Ctrl-C)")
    args = parser.parse_args()
    scores: Counter[bool | None] = Counter()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        scores = play(args.seconds)
    except KeyboardInterrupt:
        print("\nstopped")
        return 0
    print(f"\n{scores[True]} right, {scores[False]} wrong, {scores[None]} while the activity changed")
    if not scores[True]:
        print("no correct prediction arrived", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
