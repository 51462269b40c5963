"""Transfers that are cut, crash, collide and run out of space, and never claim a byte that is not on disk."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edged.core.container import Head
from edged.core.errors import BundleError, ConfigError, ControlError, StoreError
from edged.models.container_check import ContainerCheck
from edged.transfer.partial_files import PartialFiles, Transfer
from tests.containers import CHUNK, colours, container, entry

ID = "5e" * 32
KIB = bytes(range(256)) * 4


def incoming(folder: Path, *, max_bytes: int = 1 << 20, max_transfers: int = 3, **options: object) -> PartialFiles:
    return PartialFiles(folder, max_bytes, max_transfers, **{"reserve": 0, "window": 4096, **options})  # type: ignore[arg-type]


def approve(_head: Head) -> None:
    pass


def check() -> ContainerCheck:
    return ContainerCheck(approve)


def test_bytes_are_durable_a_window_at_a_time(tmp_path: Path) -> None:
    with incoming(tmp_path).open(ID) as transfer:
        assert [transfer.append(KIB) for _ in range(5)] == [0, 0, 0, 4096, 4096]
        assert transfer.received == 5120
        assert transfer.sync() == 5120


def test_the_last_bytes_are_durable_at_once(tmp_path: Path) -> None:
    with incoming(tmp_path).open(ID, total=1024) as transfer:
        assert transfer.append(KIB) == 1024
        assert transfer.complete().read_bytes() == KIB


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    with incoming(tmp_path).open(ID) as transfer:
        transfer.begin(2048, '"first"')
        transfer.append(KIB)
    with incoming(tmp_path).open(ID) as transfer:
        assert (transfer.received, transfer.total, transfer.tag) == (1024, 2048, '"first"')
        transfer.append(KIB)
        assert transfer.complete().read_bytes() == KIB * 2


def test_a_complete_transfer_stays_complete(tmp_path: Path) -> None:
    for _ in range(2):
        with incoming(tmp_path).open(ID, total=1024) as transfer:
            transfer.append(KIB[transfer.received :])
            assert transfer.complete().read_bytes() == KIB


def test_what_was_not_recorded_is_not_trusted(tmp_path: Path) -> None:
    with incoming(tmp_path).open(ID) as transfer:
        transfer.append(KIB)
    with transfer.path.open("ab") as file:
        file.write(b"not synced when the power went")
    with incoming(tmp_path).open(ID) as transfer:
        assert transfer.received == 1024
        assert transfer.path.read_bytes() == KIB


@pytest.mark.parametrize(
    "record", [b"", b"{", b"\xff", b'{"durable": -1}', b'{"durable": 9, "total": 3}', b'{"durable": 1, "who": 2}']
)
def test_a_damaged_record_vouches_for_nothing(tmp_path: Path, record: bytes) -> None:
    with incoming(tmp_path).open(ID) as transfer:
        transfer.append(KIB)
    (tmp_path / ID / "transfer.json").write_bytes(record)
    with incoming(tmp_path).open(ID) as transfer:
        assert transfer.received == 0


def test_a_file_shorter_than_its_record_counts_as_it_is(tmp_path: Path) -> None:
    with incoming(tmp_path).open(ID) as transfer:
        transfer.append(KIB)
    os.truncate(transfer.path, 100)
    with incoming(tmp_path).open(ID) as transfer:
        assert (transfer.received, transfer.offset) == (100, 100)


def test_another_size_is_another_file(tmp_path: Path) -> None:
    with incoming(tmp_path).open(ID, total=2048) as transfer:
        transfer.append(KIB)
    with incoming(tmp_path).open(ID, total=4096) as transfer:
        assert (transfer.received, transfer.total) == (0, 4096)


def test_a_size_that_was_unknown_may_be_told_later(tmp_path: Path) -> None:
    with incoming(tmp_path).open(ID) as transfer:
        transfer.append(KIB)
    with incoming(tmp_path).open(ID, total=4096) as transfer:
        assert (transfer.received, transfer.total) == (1024, 4096)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "A", "x" * 101, "ä", "a\n"])
def test_names_that_could_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ControlError, match="no name of a transfer"):
        incoming(tmp_path).open(name)


def test_a_link_in_the_place_of_a_transfer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / ID).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="cannot be written"):
        incoming(tmp_path / "incoming").open(ID)
    assert not list((tmp_path / "elsewhere").iterdir())


# Two at once


def test_a_transfer_has_one_writer(tmp_path: Path) -> None:
    first = incoming(tmp_path).open(ID)
    with pytest.raises(ControlError, match=f"another transfer of {ID} is under way") as refusal:
        incoming(tmp_path).open(ID)
    assert refusal.value.retryable
    incoming(tmp_path).open("another").close()
    first.close()
    incoming(tmp_path).open(ID).close()


def test_a_refused_writer_does_no_harm(tmp_path: Path) -> None:
    with incoming(tmp_path).open(ID, total=2048) as transfer:
        transfer.append(KIB)
        with pytest.raises(ControlError):
            incoming(tmp_path).open(ID, total=4096)
        transfer.append(KIB)
        assert transfer.complete().read_bytes() == KIB * 2


def test_a_complete_transfer_is_locked_while_it_is_used(tmp_path: Path) -> None:
    with incoming(tmp_path).open(ID, total=1024) as transfer:
        transfer.append(KIB)
        transfer.complete()
        assert incoming(tmp_path).collect(now=1e12, max_age=1) == ()
        assert transfer.path.exists()


def test_of_one_that_never_began_nothing_is_left(tmp_path: Path) -> None:
    incoming(tmp_path).open(ID, total=1000).close()
    assert incoming(tmp_path).ids() == ()


# Bounds


def begin(folder: Path, name: str) -> None:
    with incoming(folder).open(name) as transfer:
        transfer.append(b"x")


def test_the_oldest_goes_when_there_are_too_many(tmp_path: Path) -> None:
    for age, name in enumerate(["young", "middle", "old"]):
        begin(tmp_path, name)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    begin(tmp_path, "new")
    assert incoming(tmp_path).ids() == ("middle", "young", "new")


def test_what_is_open_is_never_thrown_away(tmp_path: Path) -> None:
    under_way = [incoming(tmp_path).open(name) for name in ("a", "b", "c")]
    with pytest.raises(ControlError, match="3 transfers are under way"):
        incoming(tmp_path).open("d")
    assert sorted(incoming(tmp_path).ids()) == ["a", "b", "c"]
    for transfer in under_way:
        transfer.close()


def test_stale_ones_are_collected(tmp_path: Path) -> None:
    for name, written in (("stale", 1000), ("fresh", 5000), ("open", 1000)):
        begin(tmp_path, name)
        os.utime(tmp_path / name, (written, written))
    with incoming(tmp_path).open("open"):
        os.utime(tmp_path / "open", (1000, 1000))
        assert incoming(tmp_path).collect(now=6000, max_age=3000) == ("stale",)
    assert sorted(incoming(tmp_path).ids()) == ["fresh", "open"]


def test_a_clock_in_1970_collects_nothing(tmp_path: Path) -> None:
    begin(tmp_path, ID)
    assert incoming(tmp_path).collect(now=0.0, max_age=3000) == ()


def test_too_much_is_refused_before_it_comes(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="2000000 bytes are too many: at most 1048576 are allowed"):
        incoming(tmp_path).open(ID, total=2_000_000)
    assert incoming(tmp_path).ids() == ()


def test_a_sender_without_an_end_is_stopped(tmp_path: Path) -> None:
    transfer = incoming(tmp_path, max_bytes=4000).open(ID)
    with pytest.raises(StoreError, match="too many"):
        send(KIB * 5, transfer.append, piece=1024)
    assert incoming(tmp_path).ids() == ()


def test_never_more_than_was_announced(tmp_path: Path) -> None:
    with incoming(tmp_path).open(ID, total=1500) as transfer:
        transfer.append(KIB)
        with pytest.raises(BundleError, match="more than the 1500 bytes that were announced"):
            transfer.append(KIB)
        assert transfer.received == 1024


def test_less_than_was_announced_is_not_complete(tmp_path: Path) -> None:
    with incoming(tmp_path).open(ID, total=1500) as transfer:
        transfer.append(KIB)
        with pytest.raises(BundleError, match="ends after 1024 bytes"):
            transfer.complete()


# Failing disks


def test_what_does_not_say_how_long_it_is_leaves_the_reserve_alone(tmp_path: Path) -> None:
    with (
        incoming(tmp_path, reserve=1 << 60).open(ID) as transfer,
        pytest.raises(StoreError, match="1024 bytes and a reserve of"),
    ):
        transfer.append(KIB)
    assert incoming(tmp_path).ids() == ()


def test_an_order_is_remembered_until_it_is_given_up_or_the_transfer_thrown_away(tmp_path: Path) -> None:
    for id_, end in (("a", Transfer.close), ("b", Transfer.give_up), ("c", Transfer.discard)):
        transfer = incoming(tmp_path).open(id_)
        transfer.keep_order(b"bring it")
        assert incoming(tmp_path).orders() == {"a": b"bring it", id_: b"bring it"}
        end(transfer)
    assert incoming(tmp_path).orders() == {"a": b"bring it"}
    assert incoming(tmp_path).ids() == ("a",)  # no bytes had arrived for the others


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_and_nothing_is_left(small_disk: Path) -> None:
    transfer = incoming(small_disk).open(ID, total=40_000)
    (small_disk / "another").write_bytes(bytes(40_000))
    with pytest.raises(StoreError, match=rf"{small_disk} is full: [1-9]\d+ more bytes are needed"):
        send(KIB * 39, transfer.append, piece=1024)
    assert [file.name for file in small_disk.iterdir()] == ["another"]


def test_room_is_made_by_throwing_away_the_oldest_but_not_in_vain(small_disk: Path) -> None:
    for name in ("one", "two"):
        with incoming(small_disk).open(name) as transfer:
            send(KIB * 16, transfer.append, piece=1024)
    with pytest.raises(StoreError, match="100000 bytes and a reserve of 0 are needed") as refusal:
        incoming(small_disk).open(ID, total=100_000)
    assert "free some space" in refusal.value.hint
    assert incoming(small_disk).ids() == ("one", "two")
    with incoming(small_disk).open(ID, total=30_000):
        assert incoming(small_disk).ids() == ("two", ID)


def test_a_disk_too_small_is_told_before_anything_is_sent(small_disk: Path) -> None:
    with pytest.raises(StoreError, match="100000 bytes and a reserve of 0 are needed, and 65536 are free"):
        incoming(small_disk).open(ID, total=100_000)
    assert not list(small_disk.iterdir())


def test_a_failed_sync_loses_the_file_and_is_not_tried_again(tmp_path: Path) -> None:
    synced: list[str] = []

    def sync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        if synced[-1] == "part":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    transfer = incoming(tmp_path, sync=sync).open(ID)
    transfer.append(KIB)
    with pytest.raises(StoreError, match=rf"{tmp_path} cannot be written: Input/output error"):
        transfer.sync()
    transfer.close()
    assert synced.count("part") == 1
    assert incoming(tmp_path).ids() == ()


class PowerCut(BaseException):
    """Power cut, after which no code runs."""


class Disk:
    """Disk that cuts the power in place of the n-th sync, and knows the safe bytes of the transfer."""

    def __init__(self, cut: int) -> None:
        self._left = cut
        self._safe = b""

    def sync(self, descriptor: int) -> None:
        self._left -= 1
        if self._left < 0:
            raise PowerCut
        file = Path(f"/proc/self/fd/{descriptor}").readlink()
        if file.name == "part":
            self._safe = file.read_bytes()

    def after_the_cut(self, folder: Path, new: Path) -> None:
        """Make a possible state after the cut: every byte written but not synced is changed."""
        shutil.copytree(folder, new)
        for part in new.glob("*/part"):
            now = part.read_bytes()
            safe = self._safe.ljust(len(now), b"?")
            part.write_bytes(bytes(one if one == other else 0xEE for one, other in zip(now, safe, strict=False)))


def receive_twice(transfers: PartialFiles) -> None:
    """A file, most of another, then again, each with a sync in between."""
    with transfers.open(ID) as transfer:
        transfer.begin(2048, "a")
        transfer.append(b"a" * 1000)
        transfer.append(b"a" * 1000)
        transfer.begin(1500, "b")
        transfer.append(b"b" * 700)
        transfer.append(b"b" * 100)
    with transfers.open(ID) as transfer:
        transfer.append(b"b" * 700)


def test_a_power_cut_at_any_sync_leaves_nothing_but_true_bytes(tmp_path: Path) -> None:
    seen = set()
    for cut in range(100):
        disk, folder, survivor = Disk(cut), tmp_path / f"{cut}", tmp_path / f"{cut}-after"
        try:
            receive_twice(incoming(folder, window=900, sync=disk.sync))
        except PowerCut:
            disk.after_the_cut(folder, survivor)
        else:
            break
        with incoming(survivor).open(ID) as transfer:
            content = transfer.path.read_bytes()
            assert content == transfer.tag.encode() * transfer.received
            seen.add((transfer.tag, transfer.received))
    assert seen >= {("", 0), ("a", 0), ("a", 1000), ("a", 2000), ("b", 0), ("b", 800)}


# Reading along

NOTES = bytes(index * 7 % 253 for index in range(3 * CHUNK))
MODEL = (b"model" * 100)[:400]


def bundle() -> bytes:
    files = {"model.tflite": entry(MODEL), "notes.bin": entry(NOTES)}
    return container(colours(files=files), body=MODEL + NOTES)


def send(data: bytes, append: Callable[[bytes], int], piece: int = 50_000) -> None:
    for start in range(0, len(data), piece):
        append(data[start : start + piece])


def test_a_container_tells_its_own_size(tmp_path: Path) -> None:
    data = bundle()
    with incoming(tmp_path).open(ID, check=check) as transfer:
        send(data, transfer.append)
        assert transfer.total == len(data)
        assert transfer.complete().read_bytes() == data


def test_a_bad_byte_costs_a_chunk(tmp_path: Path) -> None:
    data = bundle()
    start = len(data) - 2 * CHUNK  # of the second chunk of the notes
    bad = start + 1000
    with incoming(tmp_path).open(ID, check=check) as transfer:
        with pytest.raises(BundleError, match=f"the {CHUNK} bytes from {CHUNK} on are damaged"):
            send(data[:bad] + b"\0" + data[bad + 1 :], transfer.append)
        assert transfer.received == start
        send(data[start:], transfer.append)
        assert transfer.complete().read_bytes() == data


def test_one_piece_may_hold_good_and_bad_chunks(tmp_path: Path) -> None:
    data = bundle()
    with incoming(tmp_path).open(ID, check=check) as transfer:
        with pytest.raises(BundleError, match="damaged"):
            transfer.append(data[:-1] + b"\0")
        assert transfer.received == len(data) - CHUNK
        transfer.append(data[-CHUNK:])
        assert transfer.complete().read_bytes() == data


def test_damage_on_disk_is_found_when_it_goes_on(tmp_path: Path) -> None:
    data = bundle()
    start = len(data) - 2 * CHUNK
    with incoming(tmp_path).open(ID, check=check) as transfer:
        send(data[:-1000], transfer.append)
    with transfer.path.open("r+b") as file:
        file.seek(start + 7)
        file.write(b"?")
    with incoming(tmp_path).open(ID, check=check) as transfer:
        assert (transfer.received, transfer.offset) == (start, start)
        send(data[start:], transfer.append)
        assert transfer.complete().read_bytes() == data


def test_a_container_is_complete_with_its_last_chunk_only(tmp_path: Path) -> None:
    data = bundle()
    with incoming(tmp_path).open(ID, check=check) as transfer:
        send(data[:-1], transfer.append)
        with pytest.raises(BundleError, match="incomplete: "):
            transfer.complete()


def test_nothing_is_taken_after_the_end(tmp_path: Path) -> None:
    data = bundle()
    with incoming(tmp_path).open(ID, check=check) as transfer:
        send(data, transfer.append)
        with pytest.raises(BundleError, match="more than the"):
            transfer.append(b"more")
        assert transfer.complete().read_bytes() == data


def test_a_head_that_is_not_approved_ends_it_before_the_files_come(tmp_path: Path) -> None:
    def refuse(head: Head) -> None:
        raise BundleError(f"{head.manifest.name}: nobody we trust signed this")

    data = bundle()
    with incoming(tmp_path).open(ID, check=lambda: ContainerCheck(refuse)) as transfer:
        with pytest.raises(BundleError, match="colours: nobody we trust"):
            send(data, transfer.append, piece=500)
        assert transfer.received == 0
    assert incoming(tmp_path).ids() == ()


def test_while_nobody_can_judge_it_what_came_before_is_kept_for_whoever_can(tmp_path: Path) -> None:
    def give_up(_head: Head) -> None:
        raise ConfigError("the file of allowed signers cannot be read")

    with incoming(tmp_path).open(ID, check=check) as transfer:
        transfer.append(bundle()[:100_000])
    with pytest.raises(ConfigError, match="allowed signers"):
        incoming(tmp_path).open(ID, check=lambda: ContainerCheck(give_up))
    with incoming(tmp_path).open(ID, check=check) as transfer:
        assert transfer.received == 100_000


def test_what_nobody_could_judge_can_be_sent_again(tmp_path: Path) -> None:
    judges = iter([ConfigError("ssh-keygen gave no answer", retryable=True), None])

    def judge(_head: Head) -> None:
        if (error := next(judges)) is not None:
            raise error

    with incoming(tmp_path).open(ID, check=lambda: ContainerCheck(judge)) as transfer:
        transfer.append(bundle()[:50])
        with pytest.raises(ConfigError, match="no answer"):
            transfer.append(bundle()[50:])
        assert transfer.received == 0
        transfer.append(bundle())
        assert transfer.complete().read_bytes() == bundle()


def test_what_is_no_container_is_not_kept(tmp_path: Path) -> None:
    with incoming(tmp_path).open(ID, check=check) as transfer:
        with pytest.raises(BundleError, match="not a container"):
            transfer.append(b"<!DOCTYPE html><title>Welcome to the hotel's network</title>")
        assert transfer.received == 0
        send(bundle(), transfer.append)
        assert transfer.complete().read_bytes() == bundle()


def test_sender_and_container_must_agree_on_the_size(tmp_path: Path) -> None:
    data = bundle()
    with incoming(tmp_path).open(ID, total=len(data) + 1, check=check) as transfer:
        with pytest.raises(BundleError, match=f"the file states {len(data)} bytes, and {len(data) + 1} were announced"):
            send(data, transfer.append)
        assert transfer.received == 0
        send(data, transfer.append)
        assert transfer.complete().read_bytes() == data


def test_a_container_too_big_is_refused_at_its_head(tmp_path: Path) -> None:
    data = bundle()
    transfer = incoming(tmp_path, max_bytes=500_000).open(ID, check=check)
    with pytest.raises(StoreError, match=f"{len(data)} bytes are too many"):
        send(data, transfer.append)
    assert incoming(tmp_path).ids() == ()
