"""Costs of waiting messages in bytes written, memory and time, for a spool with messages of 133 bytes.

The kernel counts bytes on a loop device with a fresh ext4, while 100 messages a second arrive, as from a pipeline, and
are committed every second. Backlogs are put at once and closed. Each round opens a copy, and sends SENT messages
through a publisher to a real mosquitto; with EDGED_SOAK=1, all. paho sends PAHO messages from memory, in a process of
its own, since freed memory would hide the use of the others. The time of the first message after an outage runs from
the broker's return to the acknowledgement.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.counters import forget_peak, resident_bytes
from benchmarks.processes import BROKER, ROOT, broker, free_port
from benchmarks.report import Figure, Skipped, Target
from edged.core.health import Status
from edged.core.topics import Topics
from edged.core.types import Message
from edged.outbox.disk_spool import DiskSpool
from edged.outbox.options import MqttOptions, Policy, SpoolOptions
from edged.outbox.publisher import Publisher

SMALL, LARGE = 10_000, 1_000_000
SENT = LARGE if os.environ.get("EDGED_SOAK") else 100_000
PAHO = 50_000
"""Messages that paho sends, since paho numbers messages with 16 bits."""

RATE = 100
BYTES = 133

TOPICS = Topics("edged", "bench")
TOPIC = TOPICS.result("motion")


def measure(
    rounds: int, seconds: float = 8.0, small: int = SMALL, large: int = LARGE, outage: float = 10.0
) -> list[Figure | Skipped]:
    wear: Figure | Skipped
    if os.geteuid() or not Path("/dev/loop-control").exists():
        wear = Skipped("bytes on the block device", "needs root and loop devices")
    else:
        wear = _wear(rounds, seconds)
    if BROKER is None:
        return [wear, Skipped("sending a backlog", "mosquitto is not installed")]
    return [wear, _first(rounds, outage), *_backlogs(rounds, small, large)]


def _wear(rounds: int, seconds: float) -> Figure:
    figure = Figure("bytes on the block device for a message of 133 bytes", "", {"offline": [], "online": []})
    for _ in range(rounds):
        for variant, found in figure.variants.items():
            with tempfile.TemporaryDirectory(prefix="edged-bench-") as name, _loop(Path(name)) as (folder, written):
                found.append(_written(folder, written, seconds, online=variant == "online"))
    offline, online = figure.variants["offline"], figure.variants["online"]
    figure.targets.append(Target("offline at most 600", offline, 600))
    figure.targets.append(Target("online none", online, 0))
    return figure


def _written(folder: Path, written: Callable[[], int], seconds: float, *, online: bool) -> float:
    """Return the bytes a message, with the file in use already."""
    spool = _spool(folder)
    if online:
        spool.resume()
    settled, count = 2 * RATE, round(RATE * (seconds + 2))
    began = time.monotonic()
    for seq in range(count):
        time.sleep(max(0.0, began + seq / RATE - time.monotonic()))
        if seq == settled:
            before = written()
        spool.put(message(seq))
        if online:
            spool.ack([entry.id for entry in spool.take(1)])
    found = (written() - before) / (count - settled)
    spool.close(60)
    return found


@contextmanager
def _loop(folder: Path) -> Iterator[tuple[Path, Callable[[], int]]]:
    """Mount a fresh ext4; yield the folder, and a function that counts the bytes written to its device."""
    image, mount = folder / "image", folder / "mount"
    image.touch()
    os.truncate(image, 128 << 20)
    mount.mkdir()
    lazy = "lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", lazy, image], check=True)
    subprocess.run(["mount", "-o", "loop,noatime", image, mount], check=True)
    major, minor = os.major(mount.stat().st_dev), os.minor(mount.stat().st_dev)
    statistics = Path(f"/sys/dev/block/{major}:{minor}/stat")
    try:
        subprocess.run(["sync", "-f", mount], check=True)
        yield mount, lambda: int(statistics.read_text().split()[6]) * 512
    finally:
        subprocess.run(["umount", mount], check=True)


def _first(rounds: int, outage: float) -> Figure:
    figure = Figure("the first message after an outage", "s", {"edged": []})
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
            port, spool = free_port(), unopened(Path(name))
            publisher = Publisher(MqttOptions(host="127.0.0.1", port=port), TOPICS, spool, quiet("mqtt"))
            publisher.start()
            publisher.put(message(0))
            time.sleep(outage)
            with broker(Path(name), port):
                began = time.monotonic()
                while not publisher.sent:
                    time.sleep(0.001)
                figure.variants["edged"].append(time.monotonic() - began)
                publisher.stop(5)
                publisher.join(5)
            spool.close(60)
    figure.targets.append(Target("within a second", figure.variants["edged"], 1.0))
    return figure


def _backlogs(rounds: int, small: int, large: int) -> list[Figure | Skipped]:
    names = {"small": small, "large": large}
    rate = Figure(f"sending a backlog of {small} or {large} messages", "messages/s", {**_empty(names), "paho": []})
    opened = Figure("opening it", "ms", _empty(names))
    memory = Figure("memory that opening and sending take at most", "MB", _empty(names))
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name, broker(Path(name)) as port:
        backlogs = {variant: Path(name) / variant for variant in names}
        for variant, backlog in backlogs.items():
            _fill(backlog, names[variant])
        for _ in range(rounds):
            for variant, count in names.items():
                folder = Path(name) / "copy"
                shutil.copytree(backlogs[variant], folder)
                before = resident_bytes(os.getpid())
                forget_peak(os.getpid())
                took, sent = _send(folder, port, count)
                memory.variants[variant].append((resident_bytes(os.getpid(), peak=True) - before) / 1e6)
                opened.variants[variant].append(took * 1e3)
                rate.variants[variant].append(sent)
                shutil.rmtree(folder)
            rate.variants["paho"].append(_paho_apart(port, min(large, PAHO)))
    rate.targets.append(Target("large at least 0.9x small", rate.ratios("large", "small"), 0.9, at_least=True))
    rate.targets.append(Target("large at least 0.95x paho", rate.ratios("large", "paho"), 0.95, at_least=True))
    return [rate, opened, memory]


def _empty(names: dict[str, int]) -> dict[str, list[float]]:
    return {name: [] for name in names}


def _fill(folder: Path, count: int) -> None:
    spool = _spool(folder, SpoolOptions(commit_seconds=0.05, messages=2 * count))
    for seq in range(count):
        spool.put(message(seq))
        while seq % 1000 == 999 and spool.stats.disk and spool.stats.disk.unsaved > 5000:
            time.sleep(0.01)
    if left := spool.close(60):
        raise RuntimeError(f"{len(left)} messages were not saved")


def _send(folder: Path, port: int, count: int) -> tuple[float, float]:
    """Return the seconds until the spool knows the backlog, and the messages a second to the broker."""
    began = time.monotonic()
    spool = _spool(folder, SpoolOptions(messages=2 * count))
    took = time.monotonic() - began
    if spool.depth != count:
        raise RuntimeError(f"{spool.depth} of {count} messages were found")
    spool.close(60)
    spool = unopened(folder, spool.options)
    publisher = Publisher(MqttOptions(host="127.0.0.1", port=port), TOPICS, spool, quiet("mqtt"))
    began = time.monotonic()
    publisher.start()
    while publisher.sent < min(count, SENT):
        time.sleep(0.01)
    rate = publisher.sent / (time.monotonic() - began)
    publisher.stop(5)
    publisher.join(5)
    spool.close(60)
    return took, rate


def _paho_apart(port: int, count: int) -> float:
    command = [sys.executable, "-c", f"from benchmarks.spool import paho; print(paho({port}, {count}))"]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def paho(port: int, count: int) -> float:
    """Return the messages a second of paho alone, from memory."""
    acknowledged, done = 0, Event()

    def on_publish(*_: object) -> None:
        nonlocal acknowledged
        acknowledged += 1
        if acknowledged == count:
            done.set()

    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.on_publish = on_publish
    client.connect_async("127.0.0.1", port)
    for seq in range(count):
        client.publish(TOPIC, message(seq).payload, qos=1)
    began = time.monotonic()
    client.loop_start()
    done.wait()
    rate = count / (time.monotonic() - began)
    client.disconnect()
    client.loop_stop()
    return rate


def _spool(folder: Path, options: SpoolOptions | None = None) -> DiskSpool:
    """Return a spool after a look at the backlog."""
    spool = unopened(folder, options)
    looked = Event()
    spool.start(looked.set)
    looked.wait()
    return spool


def unopened(folder: Path, options: SpoolOptions | None = None) -> DiskSpool:
    """Return a spool in a folder, before any look at the backlog."""
    return DiskSpool(folder / "spool", options, {"motion": Policy()}, status=quiet("spool"))


def quiet(name: str) -> Status:
    """Return a status without an observer."""
    return Status(name, time.monotonic, lambda name, health: None)


def message(seq: int) -> Message:
    """Return a result of BYTES bytes."""
    result = {"pipeline": "motion", "seq": seq, "id": f"18e48143c3ce:motion:{seq}", "time": time.time(), "score": 0.98}
    payload = json.dumps(result).encode().ljust(BYTES)[:BYTES]
    return Message(topic=TOPIC, payload=payload, origin="motion", seq=seq, created=time.monotonic())
