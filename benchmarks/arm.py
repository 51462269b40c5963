"""Instructions of a message and of a start on an emulated 64-bit ARM processor: python -m benchmarks.arm

Counts are not times: an instruction may take half a cycle or, after a cache miss, a hundred. The kernel's instructions
are not counted, but the calls of the kernel are. Sensor, broker and subscriber are not emulated. Each sample completes
a window, and is sent when the program has nothing left to do, as at 100 Hz on a board.
"""

from __future__ import annotations

import argparse
import json
import queue
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from operator import sub
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt

from benchmarks import start
from benchmarks.counters import Trace
from benchmarks.emulator import Board, Counter, Counts, describe, why_not
from benchmarks.processes import BROKER, RECORDED, ROOT, Sensor, broker, edged_command
from benchmarks.report import Figure, Skipped, Target, plain, table
from benchmarks.wire import Variant, variants
from edged.models.store import FACTORY, Store

NAME = "instructions on an emulated 64-bit ARM processor"

PATIENCE = 120.0
"""Seconds for a result of an emulated program that compiles its modules, on a busy machine."""

LONGEST_FILL = 100
"""More samples than a window has."""

EDGED = """
from edged.flow import pipeline
pipeline.BRISK_SECONDS = 0.1
from edged.__main__ import main
main()
"""
"""The daemon, which takes the tiny model for brisk although an emulator is some twenty times slower than a board."""

Results = queue.SimpleQueue[dict[str, Any]]


def measure(rounds: int, messages: int = 50, before: Path | None = None) -> list[Figure | Skipped]:
    """Count for the interpreter, the script and edged; and for the edged of another checkout, `before`."""
    if reason := why_not() or ("" if BROKER else "mosquitto is not installed"):
        return [Skipped(NAME, reason)]
    checkouts = ({"before": before} if before else {}) | {"edged": ROOT}
    runs: dict[str, list[Counts]] = {}
    starts: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name, broker(Path(name)) as port:
        try:
            board = Board(Path(name))
        except RuntimeError as error:
            return [Skipped(NAME, str(error))]
        programs = variants(board.folder, port)
        _start_bare(board)  # to compile the modules
        starts["bare"] = [_start_bare(board) for _ in range(rounds)]
        runs["bare"] = _run_bare(board, rounds, messages)
        runs["script"] = _run(board, programs["script"], ROOT, port, rounds, messages)
        for variant, checkout in checkouts.items():
            _start_edged(board, checkout, port)  # to compile the modules, and to prove the model
            starts[variant] = [_start_edged(board, checkout, port) for _ in range(rounds)]
            runs[variant] = _run(board, programs["edged"], checkout, port, rounds, messages)

    def figure(name: str, unit: str, of: Callable[[Counts], float]) -> Figure:
        return Figure(name, unit, {who: [of(each) / messages for each in counts] for who, counts in runs.items()})

    message = figure("instructions of a message", "thousand", lambda counts: counts.instructions / 1e3)
    calls = figure("system calls of a message", "calls", lambda counts: counts.calls)
    first = Figure("instructions to the first inference", "million", starts)
    message.targets.append(Target("edged at most 0.6x script", message.ratios("edged", "script"), 0.6))
    first.targets.append(Target("edged at most 1.6x bare", first.ratios("edged", "bare"), 1.6))
    return [message, calls, first]


def _start_bare(board: Board) -> float:
    with _bare(board) as (_, counter):
        return counter.read().instructions / 1e6


def _run_bare(board: Board, rounds: int, inferences: int) -> list[Counts]:
    with _bare(board) as (infer, counter):
        return _blocks(counter, rounds, lambda: infer(inferences))


@contextmanager
def _bare(board: Board) -> Iterator[tuple[Callable[[int], None], Counter]]:
    """Start the interpreter alone, which has run once; yield a function for further runs, and the counter."""
    model = Store(FACTORY).find("motion").model
    with board.python("-m", "benchmarks.bare", str(model)) as (process, counter):
        assert process.stdin is not None
        assert process.stdout is not None
        lines = process.stdout

        def infer(times: int) -> None:
            print(times, file=process.stdin, flush=True)
            lines.readline()

        lines.readline()
        yield infer, counter


def _start_edged(board: Board, checkout: Path, port: int) -> float:
    command = edged_command(board.folder, start.CONFIG.format(broker=port) + RECORDED)
    with (
        _subscribed(port, "edged/bench/pipelines/motion/result") as results,
        board.python(*command[1:], checkout=checkout) as (_, counter),
        Trace(lambda: counter.read().instructions) as trace,
    ):
        first = _next(results, board)
    return trace.at(first["time"] + first["latency"]) / 1e6


def _run(board: Board, program: Variant, checkout: Path, port: int, rounds: int, messages: int) -> list[Counts]:
    """Return the counts of blocks of messages, after one to warm up."""

    def words(sensor: Sensor) -> list[str]:
        _python, *words = program.command(sensor)
        return ["-c", EDGED, *words[2:]] if words[:2] == ["-m", "edged"] else words

    with (
        closing(Sensor()) as sensor,
        _subscribed(port, program.topic) as results,
        board.python(*words(sensor), checkout=checkout) as counted,
    ):

        def send() -> None:
            counted.await_rest()
            sensor.play(rate=1000, seconds=0.001)

        def exchange() -> None:
            for _ in range(messages):
                send()
                last = sensor.next - 1
                while program.sample(_next(results, board)) < last:
                    pass
            counted.await_rest()

        sensor.await_reader(PATIENCE)
        while results.empty() and sensor.next < LONGEST_FILL:
            send()
        exchange()
        return _blocks(counted.counter, rounds, exchange)


@contextmanager
def _subscribed(port: int, topic: str) -> Iterator[Results]:
    """Yield the results of a topic as they come."""
    results: Results = queue.SimpleQueue()
    subscribed = queue.SimpleQueue[None]()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_message = lambda _client, _data, message: results.put(json.loads(message.payload))
    client.on_subscribe = lambda *_: subscribed.put(None)
    client.connect("127.0.0.1", port)
    client.subscribe(topic)
    client.loop_start()
    try:
        subscribed.get(timeout=PATIENCE)
        yield results
    finally:
        client.disconnect()
        client.loop_stop()


def _next(results: Results, board: Board) -> dict[str, Any]:
    try:
        return results.get(timeout=PATIENCE)
    except queue.Empty:
        raise RuntimeError(f"no result came: {board.log.read_text()[-2000:]}") from None


def _blocks(counter: Counter, rounds: int, run: Callable[[], None]) -> list[Counts]:
    """Return the counts of each of several runs."""
    reached = [counter.read()]
    for _ in range(rounds):
        run()
        reached.append(counter.read())
    return [Counts(*map(sub, after, before)) for before, after in pairwise(reached)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arm", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="starts, and blocks of 50 messages (%(default)s)")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="count for the edged of this checkout as well")
    parser.add_argument("--json", type=Path, help="write the figures of all rounds to this file")
    args = parser.parse_args()
    about = describe()
    for name, value in about.items():
        print(f"{name:<16} {value}")
    results = measure(args.rounds, before=args.before)
    print(f"\n{table(results)}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**about, "results": [plain(each) for each in results]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
