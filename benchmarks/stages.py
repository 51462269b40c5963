"""Warm CPU of each stage of a message on a tiny model, in the order of the data path.

Each stage runs alone in a loop, and the least of several blocks counts, since other work on the machine can only add.
The stages exclude what lies between them: system calls of the reader, wakes of threads, cold caches. The put is the
part of the thread that infers, with the sending where a message is sent directly, in bursts of half the messages that
may be in flight.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.bare import Bare
from benchmarks.inline import Counter, recorded, served, sink_context
from benchmarks.line_source import LineSource
from benchmarks.processes import BROKER, broker
from benchmarks.report import Figure, Skipped
from benchmarks.spool import TOPICS, message, quiet, unopened
from edged.api import Prediction
from edged.core.source_health import FlatLine, SourceHealth, Supervision
from edged.core.window import Windower
from edged.models.store import FACTORY, Store
from edged.outbox.options import MqttOptions
from edged.outbox.packets import publish
from edged.outbox.publisher import Publisher
from edged.sinks.mqtt import MqttSink

BLOCKS, RUNS = 9, 500
BURST, PAUSE = 10, 0.001

PUT = "outbox: put"
SEND = "of it, the kernel's sending"

Stage = Callable[[], object]


def measure(rounds: int, runs: int = RUNS) -> list[Figure | Skipped]:
    figure = Figure("warm CPU of each stage of a message", "us", {})
    for _ in range(rounds):
        for name, stage in _stages().items():
            figure.variants.setdefault(name, []).append(_least(stage, runs))
        if BROKER is not None:
            figure.variants.setdefault(PUT, []).append(_put(runs))
            figure.variants.setdefault(SEND, []).append(_send(runs))
    return [figure]


def _stages() -> dict[str, Stage]:
    """Return a function for each stage, which takes the stage once."""
    bundle = Store(FACTORY).find("motion")
    manifest, runner, preprocess, postprocess, *_ = served(bundle)
    bare = Bare(bundle.model)
    samples = recorded()
    sample, window = samples[:1], samples[: manifest.window.length]
    source = LineSource(burst=1 << 30, every=0.0).open()
    flat_line, health = FlatLine(), SourceHealth(Supervision(), None, time.monotonic())
    windower = Windower(manifest.window, None)
    inputs = preprocess(window)
    outputs = runner.run(inputs)
    outcome = postprocess(outputs, preprocess.prepared, 0.0)
    prediction = Prediction("motion", manifest.name, manifest.version, 1, 0.0, 4.0, 0.001, 0.001, outcome)
    sink = MqttSink().open(sink_context(Counter()))

    def observe() -> None:
        now = time.monotonic()
        health.observe(1, 0, 0, flat_line.same(sample), now, now)

    times = count(0, 0.1)
    return {
        "source: decode a line": lambda: source.read(0.0),
        "source: health": observe,
        "window: push a sample": lambda: list(windower.push(sample, next(times), 0, None)),
        "preprocess": lambda: preprocess(window),
        "model, interpreter alone": lambda: bare.run(inputs, 1),
        "model, all of the runner": lambda: runner.run(inputs),
        "postprocess": lambda: postprocess(outputs, preprocess.prepared, next(times)),
        "sink: record and message": lambda: sink.send(prediction),
    }


def _least(stage: Stage, runs: int) -> float:
    """Return the microseconds of a run in the best block."""

    def block() -> float:
        begun = time.thread_time()
        for _ in range(runs):
            stage()
        return time.thread_time() - begun

    return min(block() for _ in range(BLOCKS)) / runs * 1e6


def _put(runs: int) -> float:
    """Return the microseconds of a put in the best block, with a connected broker."""
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name, broker(Path(name)) as port:
        spool = unopened(Path(name))
        publisher = Publisher(MqttOptions(host="127.0.0.1", port=port), TOPICS, spool, quiet("mqtt"))
        publisher.start()
        publisher.put(message(0))
        while not publisher.sent:
            time.sleep(0.01)
        least = _least_of_bursts(publisher.put, [message(seq) for seq in range(BURST)], runs)
        publisher.stop(5)
        publisher.join(5)
        spool.close(60)
    return least


def _send(runs: int) -> float:
    """Return the microseconds of a message of the same size in the best block, sent to a broker by a bare socket."""
    with (
        tempfile.TemporaryDirectory(prefix="edged-bench-") as name,
        broker(Path(name)) as port,
        socket.create_connection(("127.0.0.1", port)) as connection,
    ):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04bare")
        connection.recv(4)
        packet = publish(TOPICS.result("motion"), message(0).payload, qos=0, retain=False, properties=b"").packet(0)
        return _least_of_bursts(connection.sendall, [packet] * BURST, runs)


def _least_of_bursts(send: Callable[[Any], None], burst: list[Any], runs: int) -> float:
    """Return the microseconds of a message in the best block, in bursts with pauses for the acknowledgements."""

    def block() -> float:
        spent = 0.0
        for _ in range(max(1, runs // BURST)):
            begun = time.thread_time()
            for each in burst:
                send(each)
            spent += time.thread_time() - begun
            time.sleep(PAUSE)
        return spent / max(1, runs // BURST)

    return min(block() for _ in range(BLOCKS)) / BURST * 1e6
