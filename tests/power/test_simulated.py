"""The simulated disk forgets the same data as a real disk."""

from edged.models.atomic_files import Disk
from tests.power.simulated import SimulatedDisk, read_state, write_state


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    (tmp_path / "a").write_text("old")
    disk = SimulatedDisk(tmp_path)
    Disk(disk).replace(tmp_path / "a", b"new")
    assert disk.effects == 4
    assert disk.cuts == [
        {"a": b"old"},
        {"a": b"old", "a.aside": b""},
        {"a": b"old", "a.aside": b"new"},
        {"a": b"new"},
    ]


def test_it_shows_what_is_renamed_without_being_synced(tmp_path):
    disk = SimulatedDisk(tmp_path)
    disk.write(tmp_path / "a.aside", [b"new"])
    disk.rename(tmp_path / "a.aside", tmp_path / "a")
    assert {"a": b""} in disk.cuts
    assert {} in disk.cuts


def test_it_shows_what_is_removed_without_being_synced(tmp_path):
    (tmp_path / "a").write_text("old")
    disk = SimulatedDisk(tmp_path)
    disk.remove_file(tmp_path / "a")
    assert disk.cuts == [{"a": b"old"}, {}]


def test_a_state_is_written_as_it_was_read(tmp_path):
    (tmp_path / "one" / "two").mkdir(parents=True)
    (tmp_path / "one" / "file").write_text("x")
    (tmp_path / "link").symlink_to("one/two")
    state = read_state(tmp_path)
    assert state == {"link": "one/two", "one": None, "one/file": b"x", "one/two": None}
    other = tmp_path / "one" / "two"
    write_state(other, state)
    assert read_state(other) == state
