"""The power is cut while a spool writes to a real ext4, and all possible states of the disk are tried.

A device under the file system logs all writes and flushes (see block_log.py). The log gives the states that a cut may
leave at any moment. In each state the journal is replayed, and the spool opened there must hold all messages older than
the commit interval, in order, and accept more.

A few moments are tried, with `EDGED_SOAK=1` fifty of each kind; `EDGED_SEED` repeats a run.
"""

import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest

from edged.core.health import Status
from edged.outbox.disk_spool import DiskSpool
from edged.outbox.options import Durability, Policy, SpoolOptions
from tests.outbox.test_disk_spool import drain, fill, until
from tests.patience import PATIENCE
from tests.power.block_log import Cut, LoggedDisk, apply, check, cuts, missing, mounted

pytest.importorskip("mfusepy")
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

MOMENTS = 50 if os.environ.get("EDGED_SOAK") else 12


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("EDGED_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"EDGED_SEED={seed}")
    return random.Random(seed)


@contextmanager
def opened(folder: Path, durability: Durability) -> Iterator[DiskSpool]:
    """Open a spool with the messages left behind; closing loses none."""
    status = Status("spool", time.monotonic, lambda name, health: None)
    spool = DiskSpool(
        folder / "spool", SpoolOptions(commit_seconds=0.02), {"a": Policy(durability=durability)}, status=status
    )
    looked = Event()
    spool.start(looked.set)
    assert looked.wait(PATIENCE)
    try:
        yield spool
    finally:
        left = spool.close(PATIENCE)
    assert left == []


def saved_until(spool: DiskSpool, put: int) -> int:
    """Return the number of messages on disk, among `put` messages, by the spool's own figures."""
    assert spool.stats.disk is not None
    return put - spool.stats.disk.unsaved


def spill(disk: LoggedDisk, chance: random.Random) -> None:
    """Put messages without a broker; messages reported as saved are marked as promised."""
    put = 0
    with opened(disk.mount, "spill") as spool:
        disk.begin()
        for _ in range(40):
            burst = chance.randrange(1, 60)
            fill(spool, burst, first=put)
            put += burst
            time.sleep(chance.choice((0.0, 0.005, 0.03)))
            disk.mark(f"{saved_until(spool, put)} 0")
    disk.mark(f"{put} 0")


def send(disk: LoggedDisk, chance: random.Random) -> None:
    """Put messages with durability `always`, and take some: sent messages may be missing after a cut."""
    sent = 0
    with opened(disk.mount, "always") as spool:
        disk.begin()
        spool.resume()
        for put in range(1, 61):
            fill(spool, 1, first=put - 1)
            disk.mark(f"{put} {sent}")
            entries = spool.take(chance.randrange(3))
            sent += len(entries)
            disk.mark(f"{put} {sent}")
            spool.ack([entry.id for entry in entries])


def promised(cut: Cut) -> tuple[int, int]:
    """Return the number of messages required on disk, and the number that may be missing at the beginning."""
    *_, last = ("0 0", *(mark for mark in cut.marks if mark[0].isdigit()))
    return int(last.split()[0]), int(last.split()[1])


@pytest.mark.parametrize(("work", "durability"), [(spill, "spill"), (send, "always")])
def test_after_a_cut_it_opens_and_has_what_was_promised(tmp_path: Path, chance: random.Random, work, durability):
    with LoggedDisk(tmp_path) as disk:
        work(disk, chance)
    found = cuts(disk.log, chance)
    assert len(found) > MOMENTS
    for cut in chance.sample(found, MOMENTS):
        kept, sent = promised(cut)
        image = shutil.copy(disk.image, tmp_path / "cut")
        apply(image, cut.blocks)
        with mounted(image, tmp_path / "after") as folder, opened(folder, durability) as spool:
            fill(spool, 1, first=10_000)
            *numbers, _ = [entry.message.seq for entry in drain(spool, spool.depth)]
            first = numbers[0] if numbers else sent
            assert numbers == list(range(first, first + len(numbers)))
            assert first <= sent
            assert kept <= first + len(numbers)
            until(lambda spool=spool: spool.health.state == "running")
            assert (spool.stats.dropped, spool.stats.disk.set_aside) == (0, ())
        check(image)
