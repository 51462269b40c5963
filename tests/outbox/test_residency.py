"""Residency against a simple model: a dictionary of segments for the file, and a list of messages for each origin.

The model has neither queues nor segments in memory. A transaction is reported to the model as to a disk: segments to be
written and deleted. All steps are synchronous, so a failure is a short list of steps.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edged.core.types import Message
from edged.outbox import residency
from edged.outbox.disk_quota import Removed
from edged.outbox.options import Policy, SpoolOptions
from edged.outbox.residency import Residency
from edged.outbox.save_plan import Batch
from edged.outbox.segment_file import FileContents, Listing, Segment, Stamp
from tests.contracts.spool import message

ORIGINS = "ab"
POLICIES = {"a": Policy(durability="always"), "b": Policy()}
STAMP = Stamp("boot", 0.0, None)


def seqs(segment: Segment) -> list[int]:
    return [each.seq for each in segment.messages]


class ResidencyMachine(RuleBasedStateMachine):
    """`file` is the content of the disk by key. `owed` are messages by origin that are neither acknowledged nor
    dropped.

    `again` are messages that may be repeated: acknowledged during their save.
    """

    drain = "oldest"

    def __init__(self) -> None:
        super().__init__()
        self.soon, residency.SOON = residency.SOON, 8
        self.options = SpoolOptions(drain=self.drain)  # type: ignore[arg-type]
        self.residency = Residency(self.options, POLICIES)
        self.file: dict[int, Segment] = {}
        self.owed: dict[str, list[int]] = {origin: [] for origin in ORIGINS}
        self.flying: list[tuple[str, int, int]] = []
        self.put_so_far = 0
        self.saving: tuple[list[Batch], set[int]] | None = None
        self.again: set[int] = set()
        self.retried = False  # a message tried again may follow a younger one in flight

    def teardown(self) -> None:
        residency.SOON = self.soon

    # -- other threads -----------------------------------------------------------------------------------------------

    @rule(origin=st.sampled_from(ORIGINS), count=st.integers(1, 12), size=st.sampled_from([1, 900]))
    def put(self, origin: str, count: int, size: int) -> None:
        for _ in range(count):
            each = message(self.put_so_far, origin, created=float(self.put_so_far), payload=b"x" * size)
            assert self.residency.backlog.put(each, 0.0) is not None
            self.owed[origin].append(self.put_so_far)
            self.put_so_far += 1

    @rule(count=st.integers(1, 12))
    def take(self, count: int) -> None:
        for entry in self.residency.backlog.take(count, None, 0.0):
            self.flying.append((entry.message.origin, entry.message.seq, entry.id))
        if self.drain == "oldest" and not self.again and not self.retried:
            for origin in ORIGINS:
                flying = [seq for each, seq, _ in self.flying if each == origin]
                assert flying == sorted(flying)

    @precondition(lambda self: self.flying)
    @rule(index=st.integers(0, 99))
    def acknowledge(self, index: int) -> None:
        origin, seq, entry = self.flying.pop(index % len(self.flying))
        self.residency.backlog.ack([entry])
        self.settle(origin, seq)

    @precondition(lambda self: self.flying)
    @rule(index=st.integers(0, 99))
    def park(self, index: int) -> None:
        self.residency.backlog.park(self.flying.pop(index % len(self.flying))[2], "refused")

    @rule()
    def retry(self) -> None:
        self.retried = self.residency.backlog.retry(None) > 0 or self.retried

    @rule()
    def drop(self) -> None:
        for each in self.residency.backlog.chosen(None):
            self.settle(each.entry.message.origin, each.entry.message.seq)
        self.residency.backlog.drop(None)

    @rule()
    def connect(self) -> None:
        self.residency.backlog.resume()

    @rule()
    def lose_the_connection(self) -> None:
        self.residency.backlog.release()
        self.flying.clear()

    def settle(self, origin: str, seq: int) -> None:
        if seq in self.owed[origin]:
            self.owed[origin].remove(seq)
        if self.saving is not None:
            self.again.add(seq)

    # -- the keeper --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.saving is None)
    @rule(closing=st.booleans())
    def begin_to_save(self, closing: bool) -> None:
        self.residency.begin_save()
        due = self.residency.due(0.0, closing=closing and not self.flying)
        self.saving = due, self.residency.obsolete

    def write(self) -> None:
        assert self.saving is not None
        batches, deleted = self.saving
        for key in deleted:
            self.file.pop(key, None)
        for each in batches:
            reason = each.parked.reason if each.parked else None
            self.file[each.key] = Segment(each.key, each.origin, STAMP, each.messages, reason=reason)

    @precondition(lambda self: self.saving is not None)
    @rule()
    def finish(self) -> None:
        assert self.saving is not None
        self.write()
        batches, deleted = self.saving
        self.residency.finish_save(batches, [100 * len(each.messages) for each in batches], deleted, [])
        self.saving = None

    @precondition(lambda self: self.saving is not None)
    @rule(written=st.booleans())
    def fail(self, written: bool) -> None:
        assert self.saving is not None
        if written:
            self.write()
            self.again |= {each.seq for batch in self.saving[0] for each in batch.messages}
        self.residency.fail_save(self.saving[0])
        self.saving = None
        self.list_again()

    def list_again(self) -> None:
        waiting = {key: (each.origin, len(each.messages)) for key, each in self.file.items() if not each.reason}
        self.residency.keep_only(Listing(waiting, {key for key, each in self.file.items() if each.reason}))

    @precondition(lambda self: self.saving is None)
    @rule()
    def shed(self) -> None:
        self.residency.shed()

    @precondition(lambda self: self.saving is None)
    @rule()
    def fetch(self) -> None:
        while (origin := self.residency.hungriest(residency.SOON)) is not None:
            in_use = self.residency.in_use
            keys = sorted(
                key
                for key, each in self.file.items()
                if each.origin == origin and not each.reason and key not in in_use
            )
            key = keys[-1 if self.drain == "newest" else 0]
            self.residency.fetched(origin, key, len(self.file[key].messages), self.file[key])

    @precondition(lambda self: self.saving is None)
    @rule(origin=st.sampled_from(ORIGINS))
    def delete_one_for_want_of_room(self, origin: str) -> None:
        keys = [key for key, each in self.file.items() if each.origin == origin and not each.reason]
        if free := sorted(set(keys) - self.residency.in_use):
            gone = self.file.pop(free[0])
            self.residency.begin_save()
            self.residency.finish_save([], [], set(), [Removed(origin, "full", len(gone.messages))])
            self.owed[origin] = [seq for seq in self.owed[origin] if seq not in seqs(gone) or self.in_memory(seq)]

    @precondition(lambda self: self.saving is None)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """Lost segments cost only messages outside of memory."""
        if not self.file:
            return
        gone = self.file.pop(data.draw(st.sampled_from(sorted(self.file))))
        before = sum(counts.get("damaged", 0) for counts in self.residency.backlog.drops.values())
        on_disk_only = gone.key not in self.residency.in_use
        self.list_again()
        after = sum(counts.get("damaged", 0) for counts in self.residency.backlog.drops.values())
        assert after - before == (len(gone.messages) if on_disk_only else 0)
        self.owed[gone.origin] = [seq for seq in self.owed[gone.origin] if seq not in seqs(gone) or self.in_memory(seq)]

    @precondition(lambda self: self.saving is None)
    @rule(by=st.integers(1, 9))
    def copy_to_a_file_with_other_segments(self, by: int) -> None:
        self.file = {key + by: each._replace(key=key + by) for key, each in self.file.items()}
        self.residency.shift_keys(by)

    @precondition(lambda self: self.saving is None)
    @rule()
    def restart(self) -> None:
        """Unsaved messages are lost; saved messages return, acknowledged or not."""
        self.residency.backlog.release()
        self.flying.clear()
        on_disk = {origin: {seq for each in self.file.values() for seq in seqs(each)} for origin in ORIGINS}
        self.again |= {seq for origin in ORIGINS for seq in on_disk[origin]}
        for origin in ORIGINS:
            self.owed[origin] = [seq for seq in self.owed[origin] if seq in on_disk[origin]]
        self.residency = Residency(self.options, POLICIES)
        waiting: dict[str, int] = {}
        for each in self.file.values():
            if not each.reason:
                waiting[each.origin] = waiting.get(each.origin, 0) + len(each.messages)
        parked = [each for _, each in sorted(self.file.items()) if each.reason]
        self.residency.adopt(FileContents(waiting, parked, max(self.file, default=0)))

    # -- the invariant of residency.py -------------------------------------------------------------------------------

    def held(self) -> list[tuple[int, Message]]:
        backlog = self.residency.backlog
        return [
            *((entry.id, entry.message) for entry in backlog.entries()),
            *((entry_id, taken.message) for entry_id, taken in backlog.in_flight.items()),
            *((each.entry.id, each.entry.message) for each in backlog.parked.values()),
        ]

    def in_memory(self, seq: int) -> bool:
        return any(each.seq == seq for _, each in self.held())

    @invariant()
    def nothing_owed_is_lost(self) -> None:
        """Owed messages are in memory or only on disk, and memory holds no others."""
        in_use = self.residency.in_use
        on_disk_only = {seq for key, each in self.file.items() if key not in in_use for seq in seqs(each)}
        memory = [each.seq for _, each in self.held()]
        owed = {seq for each in self.owed.values() for seq in each}
        assert owed <= {*memory, *on_disk_only}
        assert {*memory, *on_disk_only} <= owed | self.again
        if not self.again:
            assert len(memory) == len(set(memory))
            assert not set(memory) & on_disk_only

    @invariant()
    def messages_on_disk_only_are_counted(self) -> None:
        in_use = self.residency.in_use
        for origin in ORIGINS:
            counted = self.residency.backlog.queue(origin).on_disk
            segments = [each for key, each in self.file.items() if key not in in_use and not each.reason]
            assert counted == sum(len(each.messages) for each in segments if each.origin == origin)

    @invariant()
    def saved_means_in_a_segment(self) -> None:
        stored = {seq for each in self.file.values() for seq in seqs(each)}
        for entry_id, each in self.held():
            assert not self.residency.is_saved(entry_id) or each.seq in stored

    @invariant()
    def counts_agree(self) -> None:
        backlog = self.residency.backlog
        assert backlog.waiting == len(backlog.entries())
        assert len(backlog.in_flight) == len(self.flying)
        assert backlog.bytes == sum(len(each.payload) + len(each.topic) + 500 for _, each in self.held())


class NewestFirstMachine(ResidencyMachine):
    drain = "newest"


class TestResidency(ResidencyMachine.TestCase):
    settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class TestResidencyNewestFirst(NewestFirstMachine.TestCase):
    settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_a_segment_that_grew_in_a_transaction_said_to_fail_is_not_taken_for_whole() -> None:
    machine = ResidencyMachine()
    machine.put("a", 2, 1)
    machine.begin_to_save(closing=False)
    machine.finish()
    machine.put("a", 2, 1)
    machine.begin_to_save(closing=False)
    machine.fail(written=True)
    machine.shed()
    machine.messages_on_disk_only_are_counted()
    machine.nothing_owed_is_lost()
    machine.teardown()
