"""A spool on a disk that fills up, fails, turns read-only or hangs, while the broker is lost.

The publisher continues from memory without loss, the spool reports fault and remedy, and once the disk is well the
spool writes again. The errors come from a FUSE file system of the tests (faulty_folder.py), and from real ext4s. The
spool's clock runs ten times as fast as others, so that the first retry follows after half a second.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from edged.core.health import Status
from edged.core.topics import Topics
from edged.core.types import Message
from edged.outbox.disk_spool import DiskSpool
from edged.outbox.options import MqttOptions, Policy, SpoolOptions
from edged.outbox.publisher import Publisher
from tests.accounting import UNBOUNDED, Auditor
from tests.broker import Broker, free_port
from tests.flaky_proxy import FlakyProxy
from tests.outbox.test_disk_spool import until
from tests.patience import PATIENCE
from tests.power.block_log import LoggedDisk, ext4, missing, mounted
from tests.power.faulty_folder import FaultyFolder

pytest.importorskip("mfusepy")
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

TOPICS = Topics("edged", "board")
TOPIC = TOPICS.result("motion")


class Bad(NamedTuple):
    """A disk with a fault and a cure, and the expected report."""

    folder: Path
    strike: Callable[[], object]
    heal: Callable[[], object]
    hint: str


def clock() -> float:
    return time.monotonic() * 10


@contextmanager
def fuse(folder: Path, fault: str, hint: str) -> Iterator[Bad]:
    with FaultyFolder(folder) as disk:

        def become(fault: str) -> None:
            disk.fault = fault

        yield Bad(disk.mount, lambda: become(fault), lambda: become(""), hint)


@contextmanager
def full_ext4(folder: Path, _fault: str, hint: str) -> Iterator[Bad]:
    with mounted(ext4(folder / "image", 8 << 20), folder / "small") as disk:
        filler = disk / "filler"

        def fill() -> None:
            with filler.open("ab", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(4096))

        yield Bad(disk, fill, filler.unlink, hint)


@contextmanager
def dead_ext4(folder: Path, _fault: str, hint: str) -> Iterator[Bad]:
    """A device that refuses writes; after the cure only a new mount makes ext4 writable."""
    with LoggedDisk(folder) as disk:

        def mounted_again() -> bool:
            try:
                disk.mount_again()
            except RuntimeError:  # the spool may close an open file a moment later
                return False
            return True

        def heal() -> None:
            disk.fail(False)
            until(mounted_again)

        yield Bad(disk.mount, disk.fail, heal, hint)


ROOM, DYING, SILENT = "make room", "the disk fails", "replace the card"
WRITABLE = "replace"
"""SQLite reports either read-only or an I/O error; a card that has turned read-only is to be replaced."""

DISKS = [
    (fuse, "ENOSPC", ROOM),
    (fuse, "EROFS", WRITABLE),
    (fuse, "EIO on write", DYING),
    (fuse, "EIO on fsync", DYING),
    (fuse, "hangs", SILENT),
    (full_ext4, "", ROOM),
    (dead_ext4, "", DYING),
]


class Board:
    """A publisher and its spool, a broker, and a subscriber."""

    def __init__(self, folder: Path, durability: str, port: int) -> None:
        status = Status("spool", time.monotonic, lambda name, health: None)
        policies = {"motion": Policy(durability=durability)}  # type: ignore[arg-type]
        self.spool = DiskSpool(folder, SpoolOptions(commit_seconds=0.5), policies, status=status, clock=clock)
        options = MqttOptions(host="127.0.0.1", port=port)
        self.publisher = Publisher(options, TOPICS, self.spool, Status("mqtt", time.monotonic, lambda *_: None))
        self.publisher.start()

    def say(self, numbers: range) -> set[str]:
        """Put messages as a pipeline does, regardless of the disk."""
        for seq in numbers:
            payload = json.dumps({"id": f"b:motion:{seq}", "boot": "b", "pipeline": "motion", "seq": seq}).encode()
            self.publisher.put(Message(topic=TOPIC, payload=payload, origin="motion", seq=seq, created=clock()))
        return {f"b:motion:{seq}" for seq in numbers}

    @property
    def saved(self) -> bool:
        assert self.spool.stats.disk is not None
        return self.spool.health.state == "running" and not self.spool.stats.disk.unsaved

    def stop(self, seconds: float) -> None:
        self.publisher.stop(seconds)
        assert self.publisher.join(PATIENCE)
        assert self.spool.close(PATIENCE) == []


@pytest.mark.parametrize("durability", ["spill", "always"])
@pytest.mark.parametrize(("make", "fault", "hint"), DISKS, ids=lambda each: getattr(each, "__name__", each))
def test_a_bad_disk_costs_no_result(tmp_path: Path, durability: str, make, fault: str, hint: str):
    with ExitStack() as stack:
        disk: Bad = stack.enter_context(make(tmp_path, fault, hint))
        broker = stack.enter_context(Broker(tmp_path, lines=UNBOUNDED))
        link = stack.enter_context(FlakyProxy(broker.port))
        auditor = Auditor(broker.port)
        auditor.connect()
        stack.callback(auditor.disconnect)
        board = Board(disk.folder / "spool", durability, link.port)
        owed = board.say(range(20))
        assert auditor.hears_all(owed)

        disk.strike()
        link.listen(False)
        owed |= board.say(range(20, 300))
        until(lambda: board.spool.health.state == "degraded" and disk.hint in board.spool.health.hint)
        link.listen(True)
        assert auditor.hears_all(owed), "it does not publish from memory"

        link.listen(False)
        owed |= board.say(range(300, 320))
        disk.heal()
        until(lambda: board.saved)
        board.stop(0)
        link.listen(True)
        again = Board(disk.folder / "spool", durability, link.port)
        assert auditor.hears_all(owed), "what was saved after the fault is not there"
        again.stop(PATIENCE)
    numbers = [result["seq"] for result in auditor.heard]
    assert list(dict.fromkeys(numbers)) == list(range(320))
    assert board.spool.stats.dropped == 0


def test_a_file_system_that_is_merely_read_only_is_not_said_to_die(tmp_path: Path):
    with mounted(ext4(tmp_path / "image", 16 << 20), tmp_path / "disk") as disk:

        def remount(how: str) -> None:
            subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)

        (disk / "spool").mkdir()
        before = Board(tmp_path / "sound", "always", free_port())
        before.say(range(20))
        for file in (tmp_path / "sound").iterdir():  # as after a power cut, with a write-ahead log
            shutil.copy(file, disk / "spool")
        assert (disk / "spool" / "spool.db-wal").stat().st_size > 0
        before.stop(0)

        remount("ro")
        board = Board(disk / "spool", "spill", free_port())
        until(lambda: board.spool.health.state == "degraded")
        assert "make it writable" in board.spool.health.hint
        board.say(range(20, 30))
        remount("rw")
        until(lambda: board.saved)
        assert board.spool.depth == 30
        board.stop(0)
