import select

import pytest

from edged.system.folder_watch import FolderWatch


@pytest.fixture
def watch(tmp_path):
    made = FolderWatch()
    made.follow({tmp_path: "", tmp_path / "not there": ""})
    yield made
    made.close()


def heard(watch):
    """Return whether an event is readable, and whether it matters."""
    readable, _, _ = select.select([watch.descriptor], [], [], 0)
    return bool(readable), watch.take()


def test_nothing_is_heard_of_what_is_written_into_files(tmp_path, watch):
    with (tmp_path / "file").open("w") as file:
        assert heard(watch) == (True, True)
        file.write("x")
        file.flush()
        assert heard(watch) == (False, False)


@pytest.mark.parametrize(
    "happen",
    [
        lambda folder: (folder / "file").unlink(),
        lambda folder: (folder / "file").rename(folder.parent / "file"),
        lambda folder: (folder / "file").rename(folder / "other"),
        lambda folder: (folder / "new").mkdir(),
        lambda folder: folder.rename(folder.with_name("moved")),
    ],
)
def test_a_name_that_comes_or_goes_is_heard_of(tmp_path, happen):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").touch()
    watch = FolderWatch()
    watch.follow({folder: ""})
    assert heard(watch) == (False, False)
    happen(folder)
    assert heard(watch) == (True, True)
    watch.close()


def test_of_a_folder_watched_for_one_name_the_others_are_of_no_concern(tmp_path, watch):
    watch.follow({tmp_path: "state"})
    (tmp_path / "other").touch()
    assert heard(watch) == (True, False)
    (tmp_path / "state").touch()
    assert heard(watch) == (True, True)


def test_a_folder_that_is_not_followed_any_more_is_not_heard_of(tmp_path, watch):
    (tmp_path / "new").mkdir()
    watch.follow({tmp_path / "new": ""})
    watch.take()
    (tmp_path / "file").touch()
    assert heard(watch) == (False, False)
    (tmp_path / "new" / "file").touch()
    assert heard(watch) == (True, True)
