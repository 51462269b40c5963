import errno
import os
from pathlib import Path

import pytest

from edged.core.errors import StoreError
from edged.models.atomic_files import Disk, Kernel


class Refusing(Kernel):
    """Disk on which an effect fails from some call on."""

    def __init__(self, effect, number, calls=1):
        self.calls = 0

        def refuse(*_args):
            self.calls += 1
            if self.calls >= calls:
                raise OSError(number, os.strerror(number))

        setattr(self, effect, refuse)


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_file_is_replaced(tmp_path):
    for content in (b"one", b"two"):
        Disk().replace(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    assert names(tmp_path) == ["file"]


def test_a_file_is_made_of_pieces(tmp_path):
    Disk().write(tmp_path / "file", [b"one", b"two"])
    assert (tmp_path / "file").read_bytes() == b"onetwo"


def test_a_link_leads_elsewhere_or_nowhere(tmp_path):
    for to in ("one", "two"):
        Disk().point(tmp_path / "link", to)
        assert (tmp_path / "link").readlink() == Path(to)
    Disk().point(tmp_path / "link", None)
    Disk().point(tmp_path / "link", None)
    assert names(tmp_path) == []


def test_folders_are_made_and_moved_and_removed(tmp_path):
    one, two = tmp_path / "one" / "deep", tmp_path / "two"
    Disk().make_folder(one)
    Disk().make_folder(one)
    Disk().write(one / "file", [b"x"])
    Disk().place(one, two)
    assert (two / "file").read_bytes() == b"x"
    assert not one.exists()
    Disk().remove(two)
    Disk().remove(two)
    assert names(tmp_path) == ["one"]


def test_the_folder_it_is_all_in_may_be_a_link(tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "state").symlink_to("private")
    Disk().make_folder(tmp_path / "state" / "models" / "motion")
    Disk().replace(tmp_path / "state" / "file", b"new")
    assert (tmp_path / "private" / "file").read_bytes() == b"new"
    assert (tmp_path / "private" / "models" / "motion").is_dir()


def test_what_is_removed_is_the_link_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to("../kept")
    Disk().remove(tmp_path / "folder")
    assert names(tmp_path) == ["kept"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "No space left on device (free some space on this disk"),
        (errno.EDQUOT, "Disk quota exceeded (free some space on this disk"),
        (errno.EIO, "Input/output error (the disk or card may be failing"),
        (errno.EROFS, "Read-only file system (the file system is read-only"),
        (errno.EACCES, "Permission denied (give the state folder to the user"),
    ],
)
@pytest.mark.parametrize("effect", ["write", "sync_file", "rename", "sync_folder"])
def test_a_disk_that_refuses_is_explained_and_the_old_file_stays(tmp_path, effect, number, message):
    file = tmp_path / "file"
    file.write_bytes(b"old")
    with pytest.raises(StoreError) as caught:
        Disk(Refusing(effect, number)).replace(file, b"new")
    assert message in str(caught.value)
    assert caught.value.retryable == (number in (errno.ENOSPC, errno.EDQUOT))
    assert file.read_bytes() == (b"new" if effect == "sync_folder" else b"old")


def test_a_sync_that_fails_is_not_tried_again(tmp_path):
    refusing = Refusing("sync_file", errno.EIO)
    with pytest.raises(StoreError):
        Disk(refusing).replace(tmp_path / "file", b"new")
    assert refusing.calls == 1
