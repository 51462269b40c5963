import os
import subprocess
from pathlib import Path

import pytest

from edged.core.errors import StoreError
from edged.ctl.doctor import check_state
from edged.models.atomic_files import Disk
from edged.outbox.segment_file import SegmentFile, SegmentFileError, open_database
from edged.sinks.jsonl import JsonlSink
from edged.system.disk_space import NO_INODES, room_hint
from edged.testing.fakes import context
from edged.transfer.partial_files import PartialFiles


@pytest.fixture
def disk(tmp_path):
    """A disk with room for any bytes and for no further file."""
    (tmp_path / "disk").mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=16m,nr_inodes=8", "tmpfs", str(tmp_path / "disk")]
    if os.geteuid() or subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("may not mount here")
    try:
        for number in range(7):  # the folder itself takes an inode
            (tmp_path / "disk" / str(number)).touch()
        yield tmp_path / "disk"
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def hint_of(kind, do):
    with pytest.raises(kind) as caught:
        do()
    return caught.value.hint


def test_a_disk_without_inodes_is_not_said_to_have_no_space(disk):
    hints = {
        hint_of(StoreError, lambda: Disk().replace(disk / "state.json", b"{}")),
        hint_of(StoreError, lambda: Disk().make_folder(disk / "models" / "motion")),
        hint_of(StoreError, lambda: PartialFiles(disk / "incoming", 1 << 20, 8).open("a" * 64)),
        hint_of(SegmentFileError, lambda: SegmentFile(disk / "spool.db", open_database)),
        hint_of(StoreError, lambda: JsonlSink(path=disk / "results.jsonl").open(context())),
    }
    assert hints == {NO_INODES}
    check = check_state(disk, Path("/dev/null"), least=1)
    assert (check.verdict, check.found, check.remedy) == ("fail", f"{disk}: no inodes free", NO_INODES)


def test_a_spool_whose_log_has_no_inode_says_so(disk):
    (disk / "0").unlink()
    assert hint_of(SegmentFileError, lambda: SegmentFile(disk / "spool.db", open_database)) == NO_INODES


def test_a_disk_with_inodes_is_short_of_bytes(tmp_path):
    assert room_hint(tmp_path / "not" / "there", "free some space") == "free some space"
