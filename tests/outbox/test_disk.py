"""The spool that keeps a file: what survives what, and what happens when the disk is of no use."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from edged.core.health import Status
from edged.outbox.disk import SOON, DiskSpool
from edged.outbox.options import Policy, SpoolOptions
from edged.outbox.spool import Entry
from tests.broker import PATIENCE
from tests.contracts.spool import SpoolContract, message, numbers

Make = Callable[..., DiskSpool]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes spools on one folder, which commit at once; the one before is closed by whoever makes the next."""
    made: list[DiskSpool] = []

    def make_one(policies: Any = None, *, patient: bool = True, **given: Any) -> DiskSpool:
        own = {key: given.pop(key) for key in ("clock", "connect", "boot", "wall") if key in given}
        options = SpoolOptions(**{"commit_seconds": 0, **given})
        status = Status("spool", time.monotonic, lambda name, health: None)
        spool = DiskSpool(tmp_path / "spool", options, policies, status=status, **own)
        looked = Event()
        spool.start(looked.set)
        made.append(spool)
        assert not patient or looked.wait(PATIENCE)
        return spool

    yield make_one
    for spool in made:
        spool.close(PATIENCE)


def until(condition: Callable[[], Any]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.005)


def fill(spool: DiskSpool, count: int, origin: str = "a", first: int = 0, **fields: Any) -> None:
    for seq in range(first, first + count):
        spool.put(message(seq, origin, created=time.monotonic(), **fields))


def saved(spool: DiskSpool) -> bool:
    assert spool.stats.disk is not None
    return spool.stats.disk.unsaved == 0


def drain(spool: DiskSpool, count: int) -> list[Entry]:
    """Take and acknowledge until there were so many."""
    taken: list[Entry] = []

    def some() -> bool:
        entries = spool.take(20)
        spool.ack([entry.id for entry in entries])
        taken.extend(entries)
        return len(taken) >= count

    until(some)
    return taken


class TestDiskSpool(SpoolContract):
    @pytest.fixture
    def spool(self, make: Make) -> DiskSpool:
        return make()


def test_what_waits_survives_a_restart_in_its_order(make: Make) -> None:
    spool = make()
    fill(spool, 30)
    assert spool.close(PATIENCE) == []
    again = make()
    fill(again, 5, first=30)
    entries = drain(again, 35)

    assert numbers(entries) == list(range(35))
    assert all(entry.replayed for entry in entries)


def test_a_message_comes_back_as_it_was(make: Make) -> None:
    put = message(7, payload=b"\x00\xff", qos=0, expiry=99, created=time.monotonic(), properties=(("k", "v"),))
    spool = make()
    spool.put(put)
    spool.close(PATIENCE)
    [entry] = drain(make(), 1)

    assert entry.message == put


def test_what_was_acknowledged_before_a_stop_does_not_come_back(make: Make) -> None:
    spool = make()
    fill(spool, 10)
    until(lambda: saved(spool))
    spool.resume()
    entries = spool.take(4)
    spool.ack([entry.id for entry in entries])
    spool.close(PATIENCE)

    assert numbers(drain(make(), 6)) == [4, 5, 6, 7, 8, 9]


def test_a_long_backlog_is_on_disk_only_and_comes_back_in_order(make: Make) -> None:
    spool = make()
    fill(spool, 3 * SOON)
    until(lambda: saved(spool))

    assert spool.stats.on_disk > SOON
    assert spool.stats.depth == 3 * SOON
    spool.resume()
    fill(spool, 10, first=3 * SOON)
    entries = drain(spool, 3 * SOON + 10)
    assert numbers(entries) == list(range(3 * SOON + 10))
    assert [entry.replayed for entry in entries[-11:]] == [True] + [False] * 10
    assert spool.stats.depth == 0


def test_parked_messages_survive_a_restart_with_their_reason(make: Make) -> None:
    spool = make()
    fill(spool, 3)
    spool.park(spool.take(1)[0].id, "not authorised")
    spool.close(PATIENCE)
    again = make()
    until(lambda: again.depth == 2)

    assert [(each.number, each.entry.message.seq, each.reason) for each in again.parked()] == [(1, 0, "not authorised")]
    assert again.retry() == 1
    again.close(PATIENCE)
    assert sorted(numbers(drain(make(), 3))) == [0, 1, 2]


def test_memory_is_never_written_and_is_given_back_at_the_end(make: Make) -> None:
    spool = make({"a": Policy(durability="memory")})
    fill(spool, 3)
    left = spool.close(PATIENCE)

    assert [each.seq for each in left] == [0, 1, 2]
    assert not spool.file.exists()


def test_spilling_writes_nothing_while_there_is_a_connection(make: Make) -> None:
    spool = make()
    spool.resume()
    for seq in range(100):
        fill(spool, 1, first=seq)
        spool.ack([entry.id for entry in spool.take(10)])

    assert not spool.file.exists()


def test_it_spills_what_waits_too_long_though_there_is_a_connection(make: Make) -> None:
    spool = make(spill_seconds=0.05)
    spool.resume()
    fill(spool, 3)
    until(lambda: saved(spool))

    assert spool.file.exists()


def test_always_means_on_disk_before_it_is_taken(make: Make, tmp_path: Path) -> None:
    gate = Event()

    def connect(file: str) -> sqlite3.Connection:
        assert gate.wait(PATIENCE)
        return sqlite3.connect(file, isolation_level=None)

    spool = make({"a": Policy(durability="always")}, connect=connect, patient=True)
    spool.resume()
    fill(spool, 1)
    assert spool.take(1) == []
    gate.set()

    [entry] = drain(spool, 1)
    assert not entry.replayed
