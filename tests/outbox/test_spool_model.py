"""Both spools against a simple model: each origin keeps its order without loss, under any operations.

Messages are put and taken, or entered straight into flight, at random. The disk spool is also closed and opened again,
which is a lost connection for the model. In bounded room, losses are counted exactly, and follow the policies.
`EDGED_SOAK=1` tries fifty times as many sequences (`make soak`).
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from pathlib import Path
from random import randbytes
from threading import Event

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edged.core.health import Status
from edged.outbox.disk_spool import DiskSpool
from edged.outbox.options import Policy, SpoolOptions
from edged.outbox.spool import MemorySpool, Spool
from tests.contracts.spool import message
from tests.patience import PATIENCE

LONGER = 50 if os.environ.get("EDGED_SOAK") else 1

POLICIES = {"a": Policy(durability="always"), "b": Policy()}


class MemoryMachine(RuleBasedStateMachine):
    """`waiting` is the rest of each origin, oldest first, and `flying` the taken part, with ids."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[str, list[int]] = {"a": [], "b": []}
        self.flying: list[tuple[str, int, int]] = []
        self.put_so_far = 0
        self.connected = False
        self.spool = self.open()

    def open(self) -> Spool:
        return MemorySpool(SpoolOptions(), POLICIES)

    @rule(origin=st.sampled_from("ab"), count=st.integers(1, 30))
    def put(self, origin: str, count: int) -> None:
        for _ in range(count):
            self.spool.put(message(self.put_so_far, origin, created=time.monotonic()))
            self.waiting[origin].append(self.put_so_far)
            self.put_so_far += 1

    @rule(origin=st.sampled_from("ab"), count=st.integers(1, 30))
    def send_directly(self, origin: str, count: int) -> None:
        """As a publisher does: a message not entered is put."""
        for _ in range(count):
            sent = message(self.put_so_far, origin, created=time.monotonic())
            entry_id = self.spool.enter(sent)
            if entry_id is None:
                self.spool.put(sent)
                self.waiting[origin].append(self.put_so_far)
            else:
                assert self.connected
                assert not any(self.waiting.values())
                assert POLICIES[origin].durability != "always" or isinstance(self.spool, MemorySpool)
                self.flying.append((origin, self.put_so_far, entry_id))
            self.put_so_far += 1

    @precondition(lambda self: self.flying)
    @rule(index=st.integers(0, 100))
    def park(self, index: int) -> None:
        _, _, entry = self.flying.pop(index % len(self.flying))
        self.spool.park(entry, "refused")

    @precondition(lambda self: any(self.waiting.values()))
    @rule(count=st.integers(1, 40))
    def take(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while not (entries := self.spool.take(count)):
            assert time.monotonic() < deadline, "what waits does not come"
            time.sleep(0.001)
        for entry in entries:
            origin = entry.message.origin
            assert entry.message.seq == self.waiting[origin].pop(0)
            self.flying.append((origin, entry.message.seq, entry.id))

    @precondition(lambda self: self.flying)
    @rule(index=st.integers(0, 100))
    def acknowledge(self, index: int) -> None:
        _, _, entry = self.flying.pop(index % len(self.flying))
        self.spool.ack([entry])

    @rule()
    def connect(self) -> None:
        self.spool.resume()
        self.connected = True

    @rule()
    def lose_the_connection(self) -> None:
        self.spool.release()
        self.connected = False
        for origin, seq, _ in reversed(self.flying):
            self.waiting[origin].insert(0, seq)
        self.flying.clear()

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.spool.stats.dropped == 0
        assert self.spool.stats.in_flight == len(self.flying)


class DiskMachine(MemoryMachine):
    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        super().__init__()

    def open(self) -> Spool:
        status = Status("spool", time.monotonic, lambda name, health: None)
        spool = DiskSpool(Path(self.folder.name), SpoolOptions(commit_seconds=0), POLICIES, status=status)
        looked = Event()
        spool.start(looked.set)
        assert looked.wait(PATIENCE)  # a file deleted before the opening is lost
        return spool

    @rule()
    def open_again(self) -> None:
        self.lose_the_connection()
        assert self.spool.close(PATIENCE) == []
        self.spool = self.open()

    @rule(names=st.sampled_from([("spool.db", "spool.db-wal"), ("spool.db",), ("spool.db-wal",)]))
    def delete(self, names: tuple[str, ...]) -> None:
        for name in names:
            (Path(self.folder.name) / name).unlink(missing_ok=True)

    def teardown(self) -> None:
        self.spool.close(PATIENCE)
        self.folder.cleanup()


BOUNDED = {
    "first": Policy(priority=1),
    "oldest": Policy(durability="always"),
    "newest": Policy(drop="newest"),
    "thin": Policy(drop="thin", keep_every=3),
}
REASONS = {
    "first": {"full", "expired"},
    "oldest": {"full", "expired"},
    "newest": {"full", "expired"},
    "thin": {"thinned", "full", "expired"},
}
MESSAGES, MEMORY, FILE, SECONDS = 60, 40_000, 30_000, 100


class BoundedMachine(RuleBasedStateMachine):
    """Bounded room by count, bytes and age. `waiting` holds put messages not taken; some of them may be gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.put_so_far = 0
        self.waiting: dict[str, list[int]] = {origin: [] for origin in BOUNDED}
        self.missing = dict.fromkeys(BOUNDED, 0)
        self.flying: list[tuple[str, int, int]] = []
        self.spool = self.open()

    def options(self) -> SpoolOptions:
        return SpoolOptions(messages=MESSAGES, memory_bytes=MEMORY, bytes=FILE, seconds=SECONDS, commit_seconds=0)

    def open(self) -> Spool:
        return MemorySpool(self.options(), BOUNDED, clock=lambda: self.now)

    def is_accounted_for(self, counted: int, lost: int) -> None:
        raise NotImplementedError

    @rule(origin=st.sampled_from(sorted(BOUNDED)), count=st.integers(1, 40), bytes_=st.sampled_from([1, 100, 3000]))
    def put(self, origin: str, count: int, bytes_: int) -> None:
        for _ in range(count):
            self.spool.put(message(self.put_so_far, origin, created=self.now, payload=randbytes(bytes_)))
            self.waiting[origin].append(self.put_so_far)
            self.put_so_far += 1

    @rule(origin=st.sampled_from(sorted(BOUNDED)), count=st.integers(1, 40), bytes_=st.sampled_from([1, 100, 3000]))
    def send_directly(self, origin: str, count: int, bytes_: int) -> None:
        for _ in range(count):
            sent = message(self.put_so_far, origin, created=self.now, payload=randbytes(bytes_))
            entry_id = self.spool.enter(sent)
            if entry_id is None:
                self.put(origin, 1, bytes_)
                continue
            stats = self.spool.stats
            assert stats.depth == stats.in_flight <= MESSAGES
            assert stats.bytes <= MEMORY
            self.flying.append((origin, self.put_so_far, entry_id))
            self.missing[origin] += len(self.waiting[origin])  # older ones are gone, or the message overtook them
            self.waiting[origin].clear()
            self.put_so_far += 1

    @rule(count=st.integers(1, 40))
    def take(self, count: int) -> None:
        for entry in self.spool.take(count):
            origin, seq = entry.message.origin, entry.message.seq
            gone = self.waiting[origin].index(seq)  # otherwise the message overtook an older message
            self.missing[origin] += gone
            del self.waiting[origin][: gone + 1]
            self.flying.append((origin, seq, entry.id))
            assert entry.message.created >= self.now - SECONDS

    @rule(count=st.integers(1, 40))
    def acknowledge(self, count: int) -> None:
        self.spool.ack([entry for _, _, entry in self.flying[:count]])
        del self.flying[:count]

    @rule()
    def connect(self) -> None:
        self.spool.resume()

    @rule()
    def lose_the_connection(self) -> None:
        self.spool.release()
        for origin, seq, _ in reversed(self.flying):
            self.waiting[origin].insert(0, seq)
        self.flying.clear()

    @rule(seconds=st.sampled_from([1.0, 50.0]))
    def grow_older(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def it_is_bounded(self) -> None:
        stats = self.spool.stats
        assert stats.in_flight == len(self.flying)
        assert stats.bytes <= MEMORY or stats.depth == stats.in_flight + stats.on_disk

    def teardown(self) -> None:
        """Take the rest; missing messages must have been counted."""
        self.lose_the_connection()
        self.connect()
        deadline = time.monotonic() + PATIENCE
        while self.spool.depth:
            assert time.monotonic() < deadline, "what waits does not come"
            self.take(20)
            self.acknowledge(40)
        drops = self.spool.stats.drops
        for origin, left in self.waiting.items():
            self.is_accounted_for(sum(drops.get(origin, {}).values()), self.missing[origin] + len(left))
            assert drops.get(origin, {}).keys() <= REASONS[origin]


class BoundedMemoryMachine(BoundedMachine):
    def is_accounted_for(self, counted: int, lost: int) -> None:
        assert counted == lost

    @invariant()
    def no_more_wait_than_there_is_room_for(self) -> None:
        assert self.spool.depth <= max(MESSAGES, len(self.flying))

    @rule()
    def take_by_priority(self) -> None:
        self.put("oldest", 5, 1)
        self.put("first", 5, 1)
        taken = len(self.flying)
        self.take(MESSAGES)
        origins = [origin for origin, _, _ in self.flying[taken:]]
        assert origins == sorted(origins, key=lambda origin: origin != "first")

    @precondition(lambda self: not self.flying)
    @rule(origin=st.sampled_from(["oldest", "newest", "thin"]))
    def overflow(self, origin: str) -> None:
        """Of an origin with all the room, the newest, the oldest, or a thinned selection is kept."""
        self.lose_the_connection()
        while self.spool.depth:
            self.take(MESSAGES)
            self.acknowledge(MESSAGES)
        first = self.put_so_far
        self.put(origin, MESSAGES + 20, 1)
        self.take(MESSAGES)
        kept = [seq - first for _, seq, _ in self.flying]
        self.acknowledge(MESSAGES)
        if origin == "oldest":
            assert kept == list(range(20, MESSAGES + 20))
        elif origin == "newest":
            assert kept[: MESSAGES - 1] == list(range(MESSAGES - 1))
        else:
            assert kept[0] == 0
            assert kept[-1] == MESSAGES + 19
            assert max(after - before for before, after in itertools.pairwise(kept)) <= 9


class BoundedDiskMachine(BoundedMachine):
    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        super().__init__()

    def open(self) -> Spool:
        status = Status("spool", time.monotonic, lambda name, health: None)
        spool = DiskSpool(Path(self.folder.name), self.options(), BOUNDED, status=status, clock=lambda: self.now)
        spool.start(lambda: None)
        return spool

    def is_accounted_for(self, counted: int, lost: int) -> None:
        """A message dropped during its save is counted, and arrives all the same."""
        assert counted >= lost

    def teardown(self) -> None:
        super().teardown()
        self.spool.close(PATIENCE)
        self.folder.cleanup()


class TestMemorySpool(MemoryMachine.TestCase):
    settings = settings(max_examples=50 * LONGER, stateful_step_count=30, deadline=None)


class TestDiskSpool(DiskMachine.TestCase):
    settings = settings(max_examples=10 * LONGER, stateful_step_count=20, deadline=None)


class TestBoundedMemorySpool(BoundedMemoryMachine.TestCase):
    settings = settings(max_examples=50 * LONGER, stateful_step_count=30, deadline=None)


class TestBoundedDiskSpool(BoundedDiskMachine.TestCase):
    settings = settings(max_examples=15 * LONGER, stateful_step_count=20, deadline=None)
