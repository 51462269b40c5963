"""System calls and waits of the real daemon for a message: counts that a busy machine can only raise.

Each sample is sent after the result of the sample before, and the cheapest of several blocks counts: then no timer of
the daemon has run out within the block, no thread has waited for another by chance, and the service was brisk enough to
stay on the thread of the source.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import NamedTuple

import pytest

from benchmarks.counters import waits
from benchmarks.processes import BROKER, Sensor, hasty_motion
from benchmarks.tracing import STRACE, calls, traced
from benchmarks.wire import config
from tests.broker import Broker, Subscriber
from tests.edged_process import Edged

BLOCKS, MESSAGES = 20, 20

pytestmark = pytest.mark.skipif(BROKER is None or STRACE is None, reason="mosquitto or strace is not installed")


class Serving(NamedTuple):
    """A daemon that has answered the first window, and its process."""

    pid: int
    send: Callable[[], None]


@contextmanager
def serving(folder: Path, within: Sequence[str] = ()) -> Iterator[Serving]:
    """Run a daemon with a window after every sample; `send` sends samples, each after the result of the last."""
    sensor = Sensor()
    model, length = hasty_motion(folder)
    topic = "edged/bench/pipelines/motion/result"
    with (
        Broker(folder, lines=["set_tcp_nodelay true"]) as broker,
        Subscriber(broker.port, topic) as subscriber,
        Edged(folder, config(broker.port, sensor, model), within=within) as daemon,
    ):
        daemon.wait_for_log("source wrist is open")
        sensor.await_reader()
        sensor.play(1000, (length - 1) / 1000)

        def send() -> None:
            for _ in range(MESSAGES):
                sensor.play(1000, 1 / 1000)
                subscriber.next()

        send()
        yield Serving(daemon.process.pid, send)
        daemon.stop()
    sensor.close()


def test_a_message_takes_at_most_four_and_a_half_system_calls(tmp_path: Path):
    log = tmp_path / "calls.log"
    blocks = []
    with serving(tmp_path, within=traced([], log)) as daemon:
        for _ in range(BLOCKS):
            began = time()
            daemon.send()
            blocks.append((began, time()))
    least = min((calls(log, *block) for block in blocks), key=Counter.total)
    assert least.total() / MESSAGES <= 4.5, least


def test_a_message_makes_the_daemon_wait_at_most_one_and_a_half_times(tmp_path: Path):
    blocks = []
    with serving(tmp_path) as daemon:
        for _ in range(BLOCKS):
            before = waits(daemon.pid)
            daemon.send()
            blocks.append(waits(daemon.pid) - before)
    assert min(blocks) / MESSAGES <= 1.5, blocks
