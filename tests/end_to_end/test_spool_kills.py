"""The real daemon is killed at random moments, with and without a broker, and must keep its promises.

A pipeline with durability `always` owes every result seen by anyone; here the witness is a file written by a second
sink. A pipeline that spills owes, without a broker, all results older than the commit interval. With a broker results
stay in memory until acknowledged, and a kill may lose the last. All owed results must arrive in the end, in order, and
repetitions must be marked.

The daemon is killed 12 times, with `EDGED_SOAK=1` 200 times (`make soak`); `EDGED_SEED` repeats a run.
"""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.accounting import PROMISES, UNBOUNDED, Auditor, balance, said
from tests.broker import Broker
from tests.edged_process import Edged
from tests.flaky_proxy import FlakyProxy
from tests.motion import long_recording

KILLS = 200 if os.environ.get("EDGED_SOAK") else 12

COMMIT_SECONDS = 0.1
BUSY_SECONDS = 1.0
"""A busy machine's keeper may come so much later."""

CONFIG = (
    """
[device]
name = "board"
[mqtt]
host = "127.0.0.1"
port = {port}
[spool]
commit_seconds = {commit}
[sources.wrist]
kind = "replay"
path = "{recording}"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10
pace = 1000
chunk = 10
"""
    + PROMISES
)


class Life(NamedTuple):
    """Results of a daemon before a kill at a moment of Unix time, and the presence of a broker."""

    online: bool
    made: list[dict[str, object]]
    killed: float

    def owed(self, pipeline: str) -> list[int]:
        """Return the numbers of the results that must not be lost."""
        if pipeline == "careful":
            until = self.killed
        else:
            until = 0.0 if self.online else self.killed - COMMIT_SECONDS - BUSY_SECONDS
        return [each["seq"] for each in self.made if each["pipeline"] == pipeline and each["time"] < until]


@pytest.fixture
def auditor(tmp_path: Path) -> Iterator[tuple[Auditor, FlakyProxy]]:
    with Broker(tmp_path, lines=UNBOUNDED) as broker, FlakyProxy(broker.port) as link:
        auditor = Auditor(broker.port)
        auditor.connect()
        yield auditor, link
        auditor.disconnect()


def live(daemon: Edged, book: Path, chance: random.Random, lives: list[Life], *, online: bool) -> None:
    """Start, be killed some time after the first result, and leave a book."""
    book.unlink(missing_ok=True)
    with daemon:
        daemon.wait_for_log("sink book is running", times=1 + len(lives))
        time.sleep(chance.uniform(0.0, 0.5 if online else 2 * BUSY_SECONDS))
        killed = time.time()
        daemon.stop(signal.SIGKILL)
    lives.append(Life(online, said(book), killed))


def test_killed_at_any_moment_it_keeps_what_it_promised(auditor: tuple[Auditor, FlakyProxy], tmp_path: Path):
    subscriber, link = auditor
    seed = int(os.environ.get("EDGED_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"EDGED_SEED={seed}")
    chance, book = random.Random(seed), tmp_path / "book.jsonl"
    where = {"port": link.port, "commit": COMMIT_SECONDS, "recording": long_recording(tmp_path), "book": book}
    daemon = Edged(tmp_path, CONFIG.format(**where))
    lives: list[Life] = []
    for number in range(KILLS):
        link.listen(online := number % 2 == 1)
        live(daemon, book, chance, lives, online=online)
    link.listen(True)
    daemon.configure(f'[device]\nname = "board"\n[mqtt]\nhost = "127.0.0.1"\nport = {link.port}\n')
    with daemon:
        owed = {(life.made[0]["boot"], name): life.owed(name) for life in lives for name in ("careful", "spilled")}
        ids = {f"{boot}:{pipeline}:{seq}" for (boot, pipeline), numbers in owed.items() for seq in numbers}
        assert subscriber.hears_all(ids), f"EDGED_SEED={seed}"
        daemon.wait_for_log(" serves: 0 of 0 pipelines running")  # unlike the lives that were killed
        assert daemon.stop() == 0

    books = balance(subscriber.heard)
    print(f"{len(ids)} results owed, {sum(map(len, books.arrived.values()))} arrived, {books.again} of them again")
    for line, numbers in books.arrived.items():
        assert numbers == list(range(len(numbers))), f"EDGED_SEED={seed}: a gap or no order in {line}"
