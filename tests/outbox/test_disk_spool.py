"""The spool with a file: survival, and behaviour on a bad disk."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from edged.core.health import Status
from edged.outbox import keeper, spool_file
from edged.outbox.backlog import MAX_PARKED
from edged.outbox.disk_spool import DiskSpool
from edged.outbox.keeper import HUNG_SECONDS
from edged.outbox.options import Policy, SpoolOptions
from edged.outbox.origin_queue import Entry, OriginQueue
from edged.outbox.residency import SOON
from edged.outbox.segment_file import Segment, SegmentFile, Stamp, open_database
from edged.outbox.spool import SetAsideFile
from tests.contracts.spool import SpoolContract, message, numbers
from tests.patience import PATIENCE

Make = Callable[..., DiskSpool]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Return a function that makes spools with immediate commits in one folder; each new spool closes the last."""
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
    """Wait until the condition holds."""
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
    """Take and acknowledge `count` messages."""
    taken: list[Entry] = []

    def some() -> bool:
        entries = spool.take(200)
        spool.ack([entry.id for entry in entries])
        taken.extend(entries)
        return len(taken) >= count

    until(some)
    return taken


class TestDiskSpool(SpoolContract):
    @pytest.fixture
    def spool(self, make: Make) -> DiskSpool:
        return make()

    @pytest.fixture
    def newest_first(self, make: Make) -> DiskSpool:
        return make(drain="newest")

    @property
    def now(self) -> float:
        return time.monotonic()


def test_what_waits_survives_a_restart_in_its_order(make: Make) -> None:
    spool = make()
    fill(spool, 30)
    assert spool.close(PATIENCE) == []
    again = make()
    fill(again, 5, first=30)
    entries = drain(again, 35)

    assert numbers(entries) == list(range(35))
    assert [entry.replayed for entry in entries] == [True] * 30 + [False] * 5


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
    assert not any(entry.replayed for entry in entries[-10:])
    assert spool.stats.depth == 0


def test_a_lost_connection_in_the_midst_of_a_long_backlog_changes_nothing_in_its_order(make: Make) -> None:
    spool = make()
    fill(spool, 3 * SOON)
    until(lambda: saved(spool) and spool.stats.on_disk)
    spool.resume()
    seen: list[int] = []
    while len(seen) < 3 * SOON:
        entries = spool.take(20)
        seen += numbers(entries[:7])
        spool.ack([entry.id for entry in entries[:7]])
        spool.release()
        spool.resume()

    assert seen == list(range(3 * SOON))


def test_the_newest_go_first_also_of_a_long_backlog_and_after_a_restart(make: Make) -> None:
    spool = make(drain="newest")
    for first in range(0, 3 * SOON, 500):
        fill(spool, 500, first=first)
        until(lambda: saved(spool))
    assert spool.stats.on_disk > SOON
    newest = drain(spool, 1500)
    spool.release()
    spool.close(PATIENCE)
    rest = drain(make(drain="newest"), 3 * SOON - len(newest))

    assert numbers([*newest, *rest]) == list(range(3 * SOON))[::-1]


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


def test_a_message_parked_just_before_the_end_does_not_wait_again_after_a_restart(make: Make) -> None:
    spool = make({"a": Policy(durability="always")})
    fill(spool, 2)  # on disk in one segment
    spool.park(spool.take(1)[0].id, "not authorised")
    spool.close(PATIENCE)
    again = make()

    assert [each.entry.message.seq for each in again.parked()] == [0]
    assert numbers(drain(again, 1)) == [1]
    assert again.depth == 0


def test_a_file_that_fails_while_it_is_first_read_is_taken_over_once(make: Make) -> None:
    spool = make()
    fill(spool, 3)
    spool.park(spool.take(1)[0].id, "not authorised")
    spool.close(PATIENCE)
    broken, connect = failing("disk I/O error", "SELECT boot")
    broken.set()
    again = make(connect=connect, patient=False, clock=lambda: time.monotonic() * 10)
    until(lambda: again.health.state == "degraded")
    broken.clear()
    until(lambda: again.health.state == "running")

    assert again.depth == 2
    assert [each.number for each in again.parked()] == [1]


def test_no_more_parked_messages_stay_on_disk_than_are_kept(make: Make, tmp_path: Path) -> None:
    """A power cut may leave such a state, between parking a message and deleting the oldest."""
    file = SegmentFile(tmp_path / "spool" / "spool.db", open_database)
    with file.transaction():
        for key in range(1, MAX_PARKED + 6):
            file.put(Segment(key, "a", Stamp("boot", 0.0, None), [message(key)], reason="not authorised"))
    file.close()
    make().close(PATIENCE)

    file = SegmentFile(tmp_path / "spool" / "spool.db", open_database)
    assert [segment.key for segment in file.contents().parked] == list(range(6, MAX_PARKED + 6))
    file.close()


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


def test_always_means_on_disk_when_put_returns_whatever_the_interval(make: Make) -> None:
    spool = make({"a": Policy(durability="always")}, commit_seconds=3600)
    for seq in range(20):
        fill(spool, 1, first=seq)
        assert saved(spool)

    disk = spool.stats.disk
    assert disk is not None
    assert (disk.loss_seconds, disk.loss_messages, disk.late) == (0.0, 0, 0)
    assert disk.commit["p50"] is not None


class Gate:
    """Opener of databases whose commits wait while the gate is shut."""

    def __init__(self) -> None:
        self.reached = Event()
        self.open = Event()

    def __call__(self, file: str) -> sqlite3.Connection:
        gate = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
                if sql == "BEGIN IMMEDIATE":
                    gate.reached.set()
                    assert gate.open.wait(PATIENCE)
                return super().execute(sql, *rest)

        return sqlite3.connect(file, isolation_level=None, factory=Connection)


def test_until_then_it_is_not_sent_and_put_does_not_return(make: Make) -> None:
    gate = Gate()
    spool = make({"a": Policy(durability="always")}, connect=gate)
    spool.resume()
    with ThreadPoolExecutor(1) as thread:
        put = thread.submit(fill, spool, 1)
        assert gate.reached.wait(PATIENCE)
        assert spool.take(1) == []
        assert not put.done()
        gate.open.set()
        put.result(PATIENCE)

    [entry] = drain(spool, 1)
    assert not entry.replayed


def test_a_disk_that_hangs_is_waited_for_once_and_no_more(make: Make) -> None:
    gate = Gate()
    shift = [0.0]
    spool = make({"a": Policy(durability="always")}, connect=gate, clock=lambda: time.monotonic() + shift[0])
    with ThreadPoolExecutor(1) as thread:
        thread.submit(fill, spool, 1)
        assert gate.reached.wait(PATIENCE)
        shift[0] = 2 * HUNG_SECONDS
        fill(spool, 1, first=1)

        assert numbers(drain(spool, 2)) == [0, 1]
        assert "does not answer" in spool.health.reason
        assert spool.stats.disk is not None
        assert spool.stats.disk.late == 1
        assert spool.stats.disk.loss_seconds is None
        gate.open.set()


# -- bounded room ----------------------------------------------------------------------------------------------------


def offline_backlog(make: Make, drop: str, **options: Any) -> tuple[DiskSpool, list[int]]:
    """Put 3000 messages into room for 1500, and return the spool and the remaining numbers."""
    spool = make({"a": Policy(drop=drop)}, messages=1500, **options)  # type: ignore[arg-type]
    for first in range(0, 3000, 100):
        fill(spool, 100, first=first)
        until(lambda: saved(spool))
    until(lambda: spool.depth <= 1500)
    return spool, numbers(drain(spool, spool.depth))


@pytest.mark.parametrize(("drop", "reason"), [("oldest", "full"), ("newest", "full"), ("thin", "thinned")])
def test_what_does_not_fit_is_dropped_by_the_rule_and_counted(make: Make, drop: str, reason: str) -> None:
    spool, left = offline_backlog(make, drop)

    assert left == sorted(set(left))
    assert spool.stats.drops == {"a": {reason: 3000 - len(left)}}
    assert 1000 < len(left) <= 1500
    if drop == "newest":
        assert left[:1000] == list(range(1000))
    if drop == "oldest":
        assert left[-400:] == list(range(2600, 3000))
    if drop == "thin":
        assert max(right - left for left, right in itertools.pairwise(left)) <= 16
        assert left[-1] == 2999


def test_the_file_is_bounded_and_gives_its_space_back(make: Make) -> None:
    spool = make(bytes=1 << 20)
    rows = bytes(range(256)) * 40
    for first in range(0, 3000, 100):
        for seq in range(first, first + 100):
            noise = random.Random(seq).randbytes(2000)
            spool.put(message(seq, created=time.monotonic(), payload=noise + rows[:10]))
        until(lambda: saved(spool))
    assert spool.stats.disk is not None
    assert spool.stats.disk.file_bytes <= 1.5 * (1 << 20)
    assert spool.stats.drops["a"]["full"] > 1000
    drain(spool, spool.depth)
    until(lambda: spool.stats.disk.file_bytes < 200_000)


@pytest.mark.parametrize("durability", ["spill", "always"])
def test_a_day_has_so_many_bytes_and_what_comes_beyond_them_stays_in_memory(make: Make, durability: str) -> None:
    spool = make({"a": Policy(durability=durability)}, daily_bytes=1)  # type: ignore[arg-type]
    fill(spool, 1)
    until(lambda: spool.health.state == "degraded")
    disk = spool.stats.disk
    assert disk is not None
    assert "daily_bytes" in spool.health.hint
    assert disk.loss_seconds is None
    fill(spool, 3, first=1)
    spool.resume()

    assert numbers(drain(spool, 4)) == list(range(4))
    assert spool.stats.disk.written == disk.written
    assert spool.stats.disk.late == (3 if durability == "always" else 0)


def test_what_may_not_be_written_any_more_today_keeps_within_the_same_number_of_messages(make: Make) -> None:
    spool = make(daily_bytes=1, messages=1200)
    fill(spool, 1000)
    until(lambda: spool.health.state == "degraded")
    fill(spool, 1000, first=1000)

    assert spool.depth == 1200
    assert spool.stats.drops == {"a": {"full": 800}}


@pytest.mark.parametrize(("origins", "commit_seconds"), [("a", 0), ("abcdefghijkl", 0), ("a", 3600)])
def test_nothing_that_the_disk_has_room_for_is_dropped_for_want_of_memory(
    make: Make, origins: str, commit_seconds: float
) -> None:
    spool = make(memory_bytes=2_000_000, commit_seconds=commit_seconds)
    each = 6000 // len(origins)
    for first in range(0, each, 100):
        for origin in origins:
            fill(spool, 100, origin, first)
            until(lambda: spool.stats.bytes <= 1_500_000)
    assert (spool.stats.drops, spool.stats.depth) == ({}, 6000)
    spool.resume()

    entries = drain(spool, 6000)
    for origin in origins:
        assert [entry.message.seq for entry in entries if entry.message.origin == origin] == list(range(each))


# -- trouble ---------------------------------------------------------------------------------------------------------


def ruin(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def foreign() -> bytes:
    with sqlite3.connect(":memory:") as database:
        database.execute("CREATE TABLE photographs (id INTEGER)")
        return database.serialize()


def marked(schema: int) -> bytes:
    """A spool of another edged."""
    with sqlite3.connect(":memory:") as database:
        database.execute("CREATE TABLE message (id INTEGER)")
        database.execute("PRAGMA application_id = 0x65646764")
        database.execute(f"PRAGMA user_version = {schema}")
        return database.serialize()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"not a database at all" * 1000, "damaged-1.db"),
        (foreign(), "other-1.db"),
        (marked(0), "other-1.db"),
        (marked(2), "other-1.db"),
    ],
    ids=["garbage", "foreign", "older", "newer"],
)
def test_a_file_that_is_of_no_use_is_set_aside_and_a_new_one_begun(
    make: Make, tmp_path: Path, content: bytes, name: str
) -> None:
    ruin(tmp_path / "spool" / "spool.db", content)
    spool = make()
    fill(spool, 3)
    until(lambda: saved(spool) and spool.health.state == "running")

    assert (tmp_path / "spool" / name).read_bytes() == content
    assert spool.stats.disk is not None
    assert spool.stats.disk.set_aside == (SetAsideFile(str(tmp_path / "spool" / name), saved=0),)
    spool.close(PATIENCE)
    assert numbers(drain(make(), 3)) == [0, 1, 2]


def test_not_many_damaged_files_are_kept(make: Make, tmp_path: Path) -> None:
    for turn in range(5):
        (tmp_path / "spool").mkdir(exist_ok=True)
        for name in ("spool.db", "spool.db-wal"):
            (tmp_path / "spool" / name).unlink(missing_ok=True)
        (tmp_path / "spool" / "spool.db").write_bytes(b"%d" % turn * 5000)
        spool = make()
        until(lambda spool=spool: spool.health.state == "running")
        spool.close(PATIENCE)

    assert sorted(path.name for path in (tmp_path / "spool").glob("damaged-*")) == [
        "damaged-1.db",
        "damaged-2.db",
        "damaged-3.db",
    ]


def test_files_of_others_are_never_deleted(make: Make, tmp_path: Path) -> None:
    for turn in range(4):
        ruin(tmp_path / "spool" / "spool.db", marked(2 + turn))
        spool = make()
        expected = "running" if turn < 3 else "degraded"
        until(lambda spool=spool, expected=expected: spool.health.state == expected)
        spool.close(PATIENCE)

    assert "3 such files are set aside already" in spool.health.reason
    assert "move other-*.db out of the folder" in spool.health.hint
    folder = tmp_path / "spool"
    assert [(folder / f"other-{n}.db").read_bytes() for n in (1, 2, 3)] == [marked(2), marked(3), marked(4)]
    assert (folder / "spool.db").read_bytes() == marked(5)


class BrokenDisk:
    """Opener of databases whose writes fail while `error` is set."""

    def __init__(self) -> None:
        self.error: str | None = None

    def __call__(self, file: str) -> sqlite3.Connection:
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
                if disk.error and sql == "COMMIT":
                    raise sqlite3.OperationalError(disk.error)
                return super().execute(sql, *rest)

        return sqlite3.connect(file, isolation_level=None, factory=Connection)


def test_with_no_folder_for_the_file_a_message_still_enters_flight_at_once(make: Make, tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("no folder")
    spool = make(patient=False)
    until(lambda: spool.health.state == "degraded")
    spool.resume()
    entered = spool.enter(message(0, created=time.monotonic()))
    assert entered is not None
    spool.release()
    assert [entry.id for entry in spool.take(1)] == [entered]


def test_a_disk_that_fails_costs_durability_and_nothing_else_until_it_works_again(make: Make) -> None:
    disk = BrokenDisk()
    now = [1000.0]
    spool = make(connect=disk, clock=lambda: now[0])
    disk.error = "disk I/O error"
    for seq in range(10):
        spool.put(message(seq, created=now[0]))
    until(lambda: spool.health.state == "degraded" and spool._keeper.next_commit > now[0])
    assert "disk I/O error: messages are kept in memory only" in spool.health.reason
    assert spool.stats.disk is not None
    assert spool.stats.disk.loss_seconds is None
    spool.resume()
    entries = spool.take(3)
    spool.ack([entry.id for entry in entries])
    spool.release()
    disk.error = None
    now[0] += 10
    until(lambda: spool.health.state == "running" and saved(spool))
    spool.close(PATIENCE)

    assert numbers(drain(make(), 7)) == list(range(3, 10))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_full_disk_is_said_and_survived(make: Make, tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path / "spool")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount here")
    try:
        shift = [0.0]
        spool = make(clock=lambda: time.monotonic() + shift[0])
        for seq in range(500):
            spool.put(message(seq, created=time.monotonic(), payload=random.Random(seq).randbytes(2000)))
        until(lambda: spool.health.state == "degraded")
        assert "full" in spool.health.reason
        assert "make room" in spool.health.hint
        assert numbers(drain(spool, 500)) == list(range(500))
        subprocess.run([*mount[:4], "remount,size=8m", *mount[5:]], check=True)
        fill(spool, 5, first=500)
        shift[0] = 10.0
        until(lambda: spool.health.state == "running" and saved(spool))
        spool.close(PATIENCE)
    finally:
        subprocess.run(["umount", str(tmp_path / "spool")], check=True)


def failing(error: str, statements: str) -> tuple[Event, Callable[[str], sqlite3.Connection]]:
    """Return an event, and an opener of databases in which such statements fail while the event is set."""
    broken = Event()

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
            if broken.is_set() and sql.startswith(statements):
                raise sqlite3.OperationalError(error)
            return super().execute(sql, *rest)

    return broken, lambda file: sqlite3.connect(file, isolation_level=None, factory=Connection)


def with_some_on_disk_only(make: Make, connect: Callable[[str], sqlite3.Connection]) -> DiskSpool:
    """A spool on a fast clock, with three times as many messages as are held in memory."""
    spool = make(connect=connect, clock=lambda: time.monotonic() * 10)
    for seq in range(3 * SOON):
        spool.put(message(seq, created=time.monotonic() * 10))
    until(lambda: saved(spool) and spool.stats.on_disk)
    return spool


def test_results_go_on_though_older_ones_are_on_a_disk_that_can_no_longer_be_read(make: Make) -> None:
    broken, connect = failing("disk I/O error", "SELECT")
    spool = with_some_on_disk_only(make, connect)
    broken.set()
    spool.resume()
    spool.put(message(3 * SOON, created=time.monotonic() * 10))
    first: list[int] = []
    until(lambda: 3 * SOON in first or first.extend(numbers(drain(spool, 0))))
    assert len(first) < 3 * SOON
    broken.clear()

    rest = numbers(drain(spool, 3 * SOON + 1 - len(first)))
    assert [*first[:-1], *rest] == list(range(3 * SOON))


def test_results_are_saved_though_older_ones_on_the_disk_can_no_longer_be_read(make: Make) -> None:
    broken, connect = failing("disk I/O error", "SELECT origin, level")
    spool = with_some_on_disk_only(make, connect)
    broken.set()
    spool.resume()
    sent: list[int] = []
    until(lambda: spool.health.state == "degraded" or sent.extend(numbers(drain(spool, 0))))
    spool.put(message(3 * SOON, created=time.monotonic() * 10))
    until(lambda: saved(spool))
    spool.put(message(3 * SOON + 1, created=time.monotonic() * 10))

    assert spool.close(PATIENCE) == []
    assert [*sent, *numbers(drain(make(), 3 * SOON + 2 - len(sent)))] == list(range(3 * SOON + 2))


def test_a_file_that_is_found_damaged_at_the_end_is_no_end_of_what_is_to_be_saved_then(make: Make) -> None:
    damaged = Event()

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
            if damaged.is_set() and sql.startswith("BEGIN"):
                damaged.clear()
                error = sqlite3.DatabaseError("database disk image is malformed")
                error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise error
            return super().execute(sql, *rest)

    connect = lambda file: sqlite3.connect(file, isolation_level=None, factory=Connection)  # noqa: E731
    spool = make({"b": Policy(durability="always")}, connect=connect, commit_seconds=3600)
    fill(spool, 1, "b")
    fill(spool, 10)
    damaged.set()

    assert spool.close(PATIENCE) == []
    assert sorted(numbers(drain(make(), 11))) == [0, *range(10)]


def test_a_file_that_is_full_and_fails_leaves_room_for_new_results_in_memory(make: Make) -> None:
    broken, connect = failing("disk I/O error", "BEGIN")
    spool = make({"a": Policy(drop="newest")}, connect=connect, bytes=1 << 20)
    for seq in range(1000):
        spool.put(message(seq, created=time.monotonic(), payload=random.Random(seq).randbytes(2000)))
        if seq % 100 == 99:
            until(lambda: saved(spool))
    spool.resume()
    until(lambda: spool.stats.drops)
    broken.set()
    drain(spool, 10)
    until(lambda: spool.health.state == "degraded")
    before = spool.stats.dropped
    fill(spool, 1, first=1000)

    assert spool.stats.dropped == before


def test_what_is_on_a_disk_that_is_full_is_sent_as_far_as_it_can_be_read(make: Make) -> None:
    full, connect = failing("database or disk is full", "BEGIN")
    spool = make(connect=connect, clock=lambda: time.monotonic() * 10)
    for seq in range(3 * SOON):
        spool.put(message(seq, created=time.monotonic() * 10))
    until(lambda: saved(spool) and spool.stats.on_disk)
    full.set()
    spool.resume()

    assert numbers(drain(spool, 3 * SOON)) == list(range(3 * SOON))
    assert "full" in spool.health.reason


def test_a_file_is_read_through_for_damage_once_and_not_whenever_a_full_disk_is_tried_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = [1000.0], []

    def look(file: Path, connect: Any) -> bool:
        looks.append(spool.health.state)
        now[0] += 60.0  # a large file on a slow card
        return False

    monkeypatch.setattr(spool_file, "is_damaged", look)
    full, connect = failing("", "BEGIN")
    spool = make(connect=connect, clock=lambda: now[0])
    full.set()
    for _ in range(3):
        spool.put(message(1, created=now[0]))
        until(lambda: spool.health.state == "degraded" and spool._keeper.next_commit > now[0])
        now[0] += 10.0
    until(lambda: spool._keeper.next_commit > now[0])

    assert looks == ["degraded"]


def test_a_folder_that_cannot_be_made_is_a_reason_and_no_end(make: Make, tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("in the way")
    spool = make()
    fill(spool, 3)
    until(lambda: spool.health.state == "degraded")

    assert numbers(drain(spool, 3)) == [0, 1, 2]


# -- time ------------------------------------------------------------------------------------------------------------


def after_a_kill(make: Make, spool: DiskSpool, count: int) -> list[Entry]:
    """Return the `count` messages of the next process if this process is killed now."""
    folder = spool.file.parent
    ours = folder.with_name("killed")
    shutil.copytree(folder, ours)
    spool.close(PATIENCE)
    shutil.rmtree(folder)
    ours.rename(folder)
    return drain(make(), count)


def in_place(spool: DiskSpool) -> bool:
    return spool.file.exists() and saved(spool) and spool.health.state == "running"


@pytest.mark.parametrize("names", [("spool.db", "spool.db-wal"), ("spool.db",), ("spool.db-wal",)])
def test_what_waits_is_saved_again_where_the_file_was_deleted(make: Make, names: tuple[str, ...]) -> None:
    spool = make()
    fill(spool, 3 * SOON)
    until(lambda: saved(spool) and spool.stats.on_disk)
    for name in names:
        (spool.file.parent / name).unlink()
    fill(spool, 10, first=3 * SOON)
    until(lambda: in_place(spool))

    assert spool.stats.dropped == 0
    assert numbers(after_a_kill(make, spool, 3 * SOON + 10)) == list(range(3 * SOON + 10))


class LockedQueues(dict[str, OriginQueue]):
    """Queues that only a holder of the lock may walk: another thread may add an origin meanwhile."""

    def __init__(self, lock: Any) -> None:
        super().__init__()
        self.lock = lock

    def values(self) -> Any:
        assert self.lock._is_owned()
        return super().values()


def test_the_keeper_counts_messages_only_while_no_other_thread_puts_any(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    spool = make({"m": Policy(durability="memory")})
    spool._residency.backlog.queues = LockedQueues(spool._lock)
    fill(spool, 1, "m")
    count_turns(spool)  # without a file
    fill(spool, 3)
    until(lambda: saved(spool))
    spool.file.unlink()
    until(lambda: in_place(spool))
    spool.close(PATIENCE)

    assert "the spool's keeper failed" not in caplog.text


def test_a_folder_swapped_for_a_backup_has_both_in_order(make: Make, tmp_path: Path) -> None:
    before = make()
    fill(before, 1500)
    before.close(PATIENCE)
    shutil.copytree(tmp_path / "spool", tmp_path / "backup")
    spool = make()
    drain(spool, 1500)
    fill(spool, 3 * SOON, first=1500)
    until(lambda: saved(spool) and spool.stats.on_disk)
    (tmp_path / "spool").rename(tmp_path / "old")
    (tmp_path / "backup").rename(tmp_path / "spool")
    fill(spool, 10, first=1500 + 3 * SOON)
    until(lambda: in_place(spool) and spool.depth == 1510 + 3 * SOON)

    expected = list(range(1510 + 3 * SOON))
    assert sorted(numbers(after_a_kill(make, spool, len(expected)))) == expected


def test_messages_under_way_while_the_file_is_replaced_are_acknowledged_all_the_same(make: Make) -> None:
    spool = make()
    fill(spool, 100)
    until(lambda: saved(spool))
    spool.resume()
    flying = spool.take(50)
    spool.file.unlink()
    until(lambda: in_place(spool))
    spool.ack([entry.id for entry in flying])
    spool.release()

    assert numbers(after_a_kill(make, spool, 50))[-50:] == list(range(50, 100))


def test_a_file_of_others_in_the_place_of_ours_is_set_aside(make: Make, tmp_path: Path) -> None:
    spool = make()
    fill(spool, 100)
    until(lambda: saved(spool))
    (tmp_path / "stranger").write_bytes(b"not a database, but longer than a header of one would be: " * 20)
    (tmp_path / "stranger").replace(spool.file)
    until(lambda: in_place(spool) and (tmp_path / "spool/other-1.db").exists())

    assert numbers(after_a_kill(make, spool, 100)) == list(range(100))


def test_a_file_that_cannot_be_replaced_yet_is_read_on(make: Make, tmp_path: Path) -> None:
    spool = make()
    fill(spool, 3 * SOON)
    until(lambda: saved(spool) and spool.stats.on_disk)
    (tmp_path / "spool").rename(tmp_path / "old")
    (tmp_path / "spool").write_bytes(b"a file is in the way of the folder")
    until(lambda: spool.health.state == "degraded" and "was deleted or replaced" in spool.health.reason)
    assert spool.stats.disk is not None
    assert spool.stats.disk.loss_seconds is None
    spool.resume()

    assert numbers(drain(spool, 3 * SOON)) == list(range(3 * SOON))


def test_a_folder_that_is_moved_away_and_back_has_lost_nothing(make: Make, tmp_path: Path) -> None:
    spool = make(clock=lambda: time.monotonic() * 10)
    spool.put(message(0, created=time.monotonic() * 10))
    until(lambda: saved(spool))
    (tmp_path / "spool").rename(tmp_path / "old")
    (tmp_path / "spool").write_bytes(b"a file is in the way of the folder")
    until(lambda: spool.health.state == "degraded" and "cannot be used" in spool.health.reason)
    (tmp_path / "spool").unlink()
    (tmp_path / "old").rename(tmp_path / "spool")
    until(lambda: spool.health.state == "running")

    assert spool.close(PATIENCE) == []
    assert numbers(drain(make(), 1)) == [0]


def test_a_file_that_was_deleted_while_it_could_not_be_used_is_missed(make: Make) -> None:
    fails, connect = failing("disk I/O error", "INSERT")
    spool = make(connect=connect)
    fill(spool, 100)
    until(lambda: saved(spool))
    fails.set()
    fill(spool, 1, first=100)
    until(lambda: spool.health.state == "degraded")
    for file in spool.file.parent.iterdir():
        file.unlink()
    fails.clear()
    until(lambda: in_place(spool))

    assert numbers(after_a_kill(make, spool, 101)) == list(range(101))


def cut_off(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def overwritten(file: Path) -> None:
    with file.open("r+b") as open_file:
        open_file.write(b"not a database at all" * 10_000)


def copied_onto(file: Path) -> None:
    """Replace the file by an earlier file with the same keys for other messages."""
    shutil.copyfile(file.parent.parent / "backup.db", file)


def without_its_log(file: Path) -> None:
    os.truncate(file.with_name("spool.db-wal"), 0)


@pytest.mark.parametrize("harm", [cut_off, emptied, overwritten, copied_onto, without_its_log])
def test_a_file_that_is_changed_in_place_costs_no_more_than_is_counted(
    make: Make, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    before = make()
    fill(before, 100, first=100_000)
    before.close(PATIENCE)
    shutil.copyfile(before.file, before.file.parent.parent / "backup.db")
    spool = make(clock=lambda: time.monotonic() * 10)
    for seq in range(3 * SOON):
        spool.put(message(seq, created=time.monotonic() * 10))
    until(lambda: saved(spool) and spool.stats.on_disk)
    sound_since = spool.health.since
    harm(spool.file)
    until(lambda: in_place(spool) and spool.health.since > sound_since)
    lost = spool.stats.drops.get("a", {}).get("damaged", 0)
    in_memory = spool.depth - spool.stats.on_disk
    came = numbers(drain(spool, spool.depth))

    assert "was changed by another program while in use" in caplog.text
    assert "of its messages were saved" in caplog.text or "they are lost" in caplog.text or not lost
    assert lost >= len({*range(3 * SOON), *range(100_000, 100_100)} - set(came))
    assert len(came) >= in_memory > 0


def test_a_file_that_is_merely_touched_is_used_on(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    spool = with_some_on_disk_only(make, open_database)
    sound_since = spool.health.since
    os.utime(spool.file, (1, 1))
    until(lambda: in_place(spool) and spool.health.since > sound_since)

    assert "was changed by another program while in use" in caplog.text
    assert spool.stats.disk is not None
    assert spool.stats.disk.set_aside == ()
    assert numbers(drain(spool, 3 * SOON)) == list(range(3 * SOON))
    assert spool.stats.drops == {}


@pytest.mark.parametrize("harm", [lambda file: os.utime(file, (1, 1)), copied_onto, emptied, overwritten])
def test_a_file_that_is_changed_in_place_before_a_stop_takes_what_is_still_to_be_saved(
    make: Make, harm: Callable[[Path], None]
) -> None:
    before = make()
    fill(before, 1, first=100)
    before.close(PATIENCE)
    shutil.copyfile(before.file, before.file.parent.parent / "backup.db")
    spool = make({"w": Policy(durability="always")}, commit_seconds=3600)
    fill(spool, 2, "w")
    fill(spool, 3)
    harm(spool.file)

    assert spool.close(PATIENCE) == []
    came = drain(make(), 5)
    assert {*range(3)} <= {entry.message.seq for entry in came if entry.message.origin == "a"}
    assert {*range(2)} == {entry.message.seq for entry in came if entry.message.origin == "w"}


def test_nothing_is_looked_at_while_nothing_is_owed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "LOOK_SECONDS", 0.01)
    spool = make()
    spool.resume()
    fill(spool, 10)
    drain(spool, 10)
    count_turns(spool, 100)  # turns that handle acknowledged messages
    asleep = count_turns(spool)
    fill(spool, 1)
    awake = count_turns(spool)

    assert (asleep, awake) == (0, 3)


def count_turns(spool: DiskSpool, most: int = 3) -> int:
    """Return the number of turns of the keeper, up to `most`, or until none comes for a hundred turns' time."""
    turns = 0
    with spool._lock:
        while turns < most and spool._keeper.turned.wait(1.0):
            turns += 1
    return turns


class Wall:
    """Wall clock, trusted or not."""

    def __init__(self, offset: float, *, synchronised: bool) -> None:
        self.offset = offset
        self.synchronised = synchronised

    def at(self, monotonic: float) -> float:
        return monotonic + self.offset

    def knows(self, monotonic: float) -> bool:
        return self.synchronised


def test_ages_of_an_earlier_boot_are_known_if_both_had_the_time(make: Make) -> None:
    first = make(clock=lambda: 500.0, boot="one", wall=Wall(1_000_000, synchronised=True))
    first.put(message(0, created=490.0, expiry=100))
    first.put(message(1, created=500.0, expiry=100))
    first.close(PATIENCE)
    later = make(clock=lambda: 20.0, boot="two", wall=Wall(1_000_000 + 500 + 95 - 20, synchronised=True))
    until(lambda: later.stats.depth)

    [entry] = drain(later, 1)
    assert entry.message.seq == 1
    assert not entry.message.estimated
    until(lambda: later.stats.drops == {"a": {"expired": 1}})


def test_without_the_time_nothing_is_thrown_away_too_early(make: Make) -> None:
    first = make(clock=lambda: 500.0, boot="one", wall=Wall(0, synchronised=False))
    first.put(message(0, created=490.0, expiry=100))
    first.close(PATIENCE)
    later = make(clock=lambda: 20.0, boot="two", wall=Wall(1_700_000_000, synchronised=True))

    [entry] = drain(later, 1)
    assert entry.message.created == pytest.approx(10.0)
    assert entry.message.estimated


def test_a_file_that_others_could_read_is_theirs_to_read_no_more(make: Make) -> None:
    spool = make()
    fill(spool, 1)
    spool.close(PATIENCE)
    spool.file.chmod(0o644)
    fill(again := make(), 1)
    until(lambda: saved(again))

    assert {file.stat().st_mode & 0o777 for file in again.file.parent.iterdir()} == {0o600}
