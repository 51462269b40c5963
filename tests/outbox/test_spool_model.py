"""Both spools against one simple model: whatever is done to them, each origin keeps its order and nothing is lost.

The disk spool is also closed and opened again, which the model takes for a lost connection.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edged.core.health import Status
from edged.outbox.disk import DiskSpool
from edged.outbox.options import Policy, SpoolOptions
from edged.outbox.spool import MemorySpool, Spool
from tests.broker import PATIENCE
from tests.contracts.spool import message

POLICIES = {"a": Policy(durability="always"), "b": Policy()}


class MemoryMachine(RuleBasedStateMachine):
    """`waiting` is what each origin has left, oldest first, and `flying` what was taken of that, with its id."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[str, list[int]] = {"a": [], "b": []}
        self.flying: list[tuple[str, int, int]] = []
        self.put_so_far = 0
        self.spool = self.open()

    def open(self) -> Spool:
        return MemorySpool(SpoolOptions(), POLICIES)

    @rule(origin=st.sampled_from("ab"), count=st.integers(1, 30))
    def put(self, origin: str, count: int) -> None:
        for _ in range(count):
            self.spool.put(message(self.put_so_far, origin, created=time.monotonic()))
            self.waiting[origin].append(self.put_so_far)
            self.put_so_far += 1

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

    @rule()
    def lose_the_connection(self) -> None:
        self.spool.release()
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
        spool.start(lambda: None)
        return spool

    @rule()
    def open_again(self) -> None:
        self.lose_the_connection()
        assert self.spool.close(PATIENCE) == []
        self.spool = self.open()

    def teardown(self) -> None:
        self.spool.close(PATIENCE)
        self.folder.cleanup()


class TestMemorySpool(MemoryMachine.TestCase):
    settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


class TestDiskSpool(DiskMachine.TestCase):
    settings = settings(max_examples=10, stateful_step_count=20, deadline=None)
