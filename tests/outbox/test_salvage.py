"""Spools with really damaged files open, report the damage, and lose no message on a sound page.

The file holds 600 segments of four messages. Bodies are located in the file by their bytes, so that the owner of a
damaged page is known.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.core.health import Status
from edged.core.types import Message
from edged.outbox import salvage
from edged.outbox.disk_spool import DiskSpool
from edged.outbox.options import SpoolOptions
from edged.outbox.segment_file import MAX_SEGMENT, Segment, SegmentFile, SegmentFileError, Stamp, open_database
from tests.contracts.spool import message
from tests.patience import PATIENCE

PAGE = 4096
SEGMENTS, EACH = 600, 4


class Whole(bytes):
    """A sound file, and the page of each segment's body, by key from 1 on."""

    pages: dict[int, int]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    file = tmp_path_factory.mktemp("whole") / "spool.db"
    segments, chance = SegmentFile(file, open_database), random.Random(7)
    with segments.transaction():
        for key in range(1, SEGMENTS + 1):
            segments.put(Segment(key, "abc"[key % 3], Stamp("boot", 0.0, None), [said(seq, chance) for seq in of(key)]))
    bodies = dict(segments._db.execute("SELECT key, data FROM body"))
    segments.close()
    found = Whole(file.read_bytes())
    found.pages = {key: found.index(body) // PAGE for key, body in bodies.items()}
    return found


def of(key: int) -> range:
    """The numbers of a segment's messages."""
    return range((key - 1) * EACH, key * EACH)


def said(seq: int, chance: random.Random) -> Message:
    return message(seq, "abc"[(seq // EACH + 1) % 3], payload=b"%d " % seq + chance.randbytes(100))


@contextmanager
def opened(content: bytes, clock: Callable[[], float] = time.monotonic) -> Iterator[DiskSpool]:
    """Open a spool on this file."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "spool.db").write_bytes(content)
        status = Status("spool", time.monotonic, lambda name, health: None)
        spool = DiskSpool(Path(folder), SpoolOptions(commit_seconds=0), status=status, boot="boot", clock=clock)
        spool.start(lambda: None)
        try:
            yield spool
        finally:
            assert spool.close(PATIENCE) == []


def everything(spool: DiskSpool, first: list[int] | None = None) -> list[int]:
    """Return the numbers of all messages taken and acknowledged, up to a message put now and a sound file."""
    spool.put(message(1_000_000, "late", created=time.monotonic()))
    spool.resume()
    numbers = first or []
    deadline = time.monotonic() + PATIENCE
    while spool.depth or spool.health.state != "running" or 1_000_000 not in numbers:
        assert time.monotonic() < deadline, spool.health
        entries = spool.take(50)
        spool.ack([entry.id for entry in entries])
        for entry in entries:
            assert entry.message.payload.startswith(b"%d" % entry.message.seq)
            numbers.append(entry.message.seq)
        if not entries:
            time.sleep(0.001)
    for origin in range(3):
        ours = [number for number in numbers if (number // EACH + 1) % 3 == origin and number < 1_000_000]
        assert ours == sorted(set(ours)), "not in order, or twice"
    return numbers


def sound(whole: Whole, hit: set[int]) -> set[int]:
    """Return the numbers of all messages on undamaged pages."""
    return {seq for key, page in whole.pages.items() if page not in hit for seq in of(key)}


def zeroed(data: bytearray, page: int) -> None:
    data[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)


def flipped(data: bytearray, page: int) -> None:
    for place in range(page * PAGE, (page + 1) * PAGE, 97):
        data[place] ^= 0xFF


@pytest.mark.parametrize("harm", [zeroed, flipped])
@pytest.mark.parametrize("which", [0.0, 0.3, 0.5, 0.9])
def test_of_a_page_of_bodies_only_what_is_on_it_is_lost(
    whole: Whole, harm: Callable[[bytearray, int], None], which: float
) -> None:
    pages = sorted(set(whole.pages.values()))
    page = pages[int(which * len(pages))]
    data = bytearray(whole)
    harm(data, page)
    with opened(bytes(data)) as spool:
        numbers = everything(spool)
        aside = spool.stats.disk.set_aside if spool.stats.disk else ()
    assert sound(whole, {page}) <= set(numbers)
    assert sound(whole, set()) - set(numbers)
    for each in aside:
        assert Path(each.path).name == "damaged-1.db"
        assert 0 < each.saved < len(numbers)  # some messages were sent before the damage was found


def test_a_name_that_is_no_text_any_more_is_damage(whole: Whole, caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(whole)
    data[3885] = 0x80  # in the schema on the first page
    with opened(bytes(data)) as spool:
        everything(spool)
    assert "spool.db cannot be used: 'utf-8' codec can't decode byte 0x80" in caplog.text


def test_a_page_number_beyond_all_that_can_be_is_no_disk_that_is_full(
    whole: Whole, caplog: pytest.LogCaptureFixture
) -> None:
    """The damage points a cell to a wrong place, and SQLite has no room for the page of the continuation."""
    data = bytearray(whole)
    for place, piece in ((5 * PAGE + 1, b"\0"), (5 * PAGE + 15, b"\0"), (15 * PAGE + 12, b"\x17{")):
        data[place : place + len(piece)] = piece
    with opened(bytes(data)) as spool:
        numbers = everything(spool)
    assert sound(whole, {5, 15}) <= set(numbers)
    assert "spool.db is damaged; the file is now" in caplog.text


def test_a_body_that_is_no_bytes_any_more_is_lost_alone(whole: Whole) -> None:
    """A cell that begins a byte too early is a row of NULL columns, which SQLite reads silently."""
    data = bytearray(whole)
    for page, place in ((5, 1), (48, 94)):
        data[page * PAGE + place] = 0
    with opened(bytes(data)) as spool:
        assert sound(whole, {5, 48}) <= set(everything(spool))


def test_a_fault_of_ours_while_saving_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(salvage, "replace", fail)
    with opened(b"not a database" * 1000, lambda: 20 * time.monotonic()) as spool:
        deadline = time.monotonic() + PATIENCE
        while "a bug" not in spool.health.reason:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        monkeypatch.undo()
        assert everything(spool) == [1_000_000]


def test_results_go_on_while_a_damaged_file_cannot_be_saved_for_long(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room for a copy, for example; for a large file on a slow card the next attempt follows in minutes."""

    def fail(*_: object) -> None:
        now[0] += 6.0
        raise SegmentFileError("no room", hint="")

    now = [1000.0]
    monkeypatch.setattr(salvage, "replace", fail)
    data = bytearray(whole)
    zeroed(data, whole.pages[300])
    with opened(bytes(data), lambda: now[0]) as spool:
        spool.resume()
        spool.put(message(-1, created=now[0]))
        numbers: list[int] = []
        deadline = time.monotonic() + PATIENCE
        while -1 not in numbers:
            assert time.monotonic() < deadline
            entries = spool.take(100)
            spool.ack([entry.id for entry in entries])
            numbers += [entry.message.seq for entry in entries]
            time.sleep(0.001)
        assert len(sound(whole, set()) - set(numbers)) > 100


def test_of_a_page_of_rows_only_those_on_it_are_lost(whole: Whole) -> None:
    """In the table of rows, a page without bodies holds a hundred segments or more."""
    bodies = set(whole.pages.values())
    leaves = [page for page in range(2, len(whole) // PAGE) if page not in bodies and whole[page * PAGE] == 13]
    assert len(leaves) > 3
    for page in leaves:
        data = bytearray(whole)
        zeroed(data, page)
        with opened(bytes(data)) as spool:
            assert len(everything(spool)) > EACH * SEGMENTS * 0.6


@pytest.mark.parametrize("harm", [zeroed, flipped])
def test_without_its_first_page_a_file_loses_nothing(whole: Whole, harm: Callable[[bytearray, int], None]) -> None:
    data = bytearray(whole)
    harm(data, 0)
    with opened(bytes(data)) as spool:
        assert set(everything(spool)) == {*range(EACH * SEGMENTS), 1_000_000}
        assert {path.name for path in spool.file.parent.iterdir()} <= {"spool.db", "spool.db-wal", "damaged-1.db"}


def test_a_file_that_is_cut_off_keeps_what_was_before_the_cut(whole: Whole) -> None:
    with opened(whole[: len(whole) * 3 // 4]) as spool:
        assert len(everything(spool)) > EACH * SEGMENTS * 0.6


@settings(max_examples=20, deadline=None)
@given(harm=st.data())
def test_whatever_happens_to_bodies_all_others_come(whole: Whole, harm: st.DataObject) -> None:
    pages = harm.draw(st.lists(st.sampled_from(sorted(set(whole.pages.values()))), min_size=1, max_size=4))
    data = bytearray(whole)
    for page in pages:
        start = harm.draw(st.integers(0, PAGE - 1))
        piece = harm.draw(st.binary(min_size=1, max_size=400))[: PAGE - start]
        data[page * PAGE + start : page * PAGE + start + len(piece)] = piece
    with opened(bytes(data)) as spool:
        assert sound(whole, set(pages)) <= set(everything(spool))


@settings(max_examples=40, deadline=None)
@given(harm=st.data())
def test_whatever_happens_to_a_file_it_is_not_stuck(whole: Whole, harm: st.DataObject) -> None:
    data = bytearray(whole)
    for _ in range(harm.draw(st.integers(1, 5))):
        start = harm.draw(st.integers(0, len(data) - 1) | st.integers(0, 2 * PAGE))
        piece = harm.draw(st.binary(min_size=1, max_size=200) | st.just(bytes(3 * PAGE)))[: len(data) - start]
        data[start : start + len(piece)] = piece
    with opened(bytes(data[: harm.draw(st.just(len(data)) | st.integers(0, len(data)))])) as spool:
        everything(spool)


def test_a_page_that_goes_bad_while_it_is_in_use_costs_no_other(whole: Whole) -> None:
    with opened(whole) as spool:
        spool.resume()
        first: list[int] = []
        while len(first) < 40:
            entries = spool.take(40 - len(first))
            first += [entry.message.seq for entry in entries]
            spool.ack([entry.id for entry in entries[::2]])
        spool.release()
        again = set(first) - set(first[::2])
        page = sorted(set(whole.pages.values()))[-30]
        with spool.file.open("r+b") as file:
            file.seek(page * PAGE)
            file.write(bytes(PAGE))
        numbers = everything(spool)
        lost = spool.stats.drops
    assert sound(whole, {page}) - (set(first) - again) <= set(numbers)
    assert sum(lost[origin]["damaged"] for origin in lost) == EACH * SEGMENTS - len(set(first[::2])) - len(numbers) + 1


def test_a_segment_that_has_grown_is_not_taken_for_damaged(tmp_path: Path) -> None:
    """A segment with one message missing may grow up to a full segment."""
    segments, grown = (
        SegmentFile(tmp_path / "spool.db", open_database),
        [message(seq) for seq in range(2 * MAX_SEGMENT - 1)],
    )
    with segments.transaction():
        segments.put(Segment(1, "a", Stamp("boot", 0.0, None), grown))
    assert segments.contents().waiting == {"a": 2 * MAX_SEGMENT - 1}
    segments.close()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"salvaging.db": b"half", "mending.db": b"half"}, {}),
        ({"spool.db": b"bad", "salvaging.db": b"half"}, {"spool.db": b"bad"}),
        ({"spool.db": b"bad", "salvaged.db": b"good"}, {"spool.db": b"good", "damaged-1.db": b"bad"}),
        ({"damaged-1.db": b"bad", "salvaged.db": b"good"}, {"spool.db": b"good", "damaged-1.db": b"bad"}),
    ],
)
def test_a_power_cut_in_the_midst_of_it_is_made_good(
    tmp_path: Path, before: dict[str, bytes], after: dict[str, bytes]
) -> None:
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)

    assert salvage.finish_replacement(tmp_path / "spool.db") == ("spool.db" in after)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == after
