"""Tuning records on a disk with power cuts, and in foreign files."""

import logging

import pytest

from edged.core.errors import StoreError
from edged.core.tuning import MAX_RECORD_BYTES
from edged.models.atomic_files import Disk, Kernel
from edged.models.tuning_records import Tunings
from tests.core.test_tuning import cpu, record


def test_a_record_is_kept_by_the_name_of_its_model(tmp_path):
    tunings = Tunings(tmp_path / "state" / "tuning")
    assert tunings.read("motion") is None
    tunings.write(record(cpu(1)))
    tunings.write(record(cpu(2)))
    assert tunings.read("motion") == record(cpu(2))
    assert tunings.read("other") is None
    assert [file.name for file in (tmp_path / "state" / "tuning").iterdir()] == ["motion.json"]


@pytest.mark.parametrize("data", [b"", b"{}", b"\0" * 5000, b" " * (MAX_RECORD_BYTES + 1)])
def test_a_damaged_one_is_as_none_and_that_is_said(tmp_path, caplog, data):
    (tmp_path / "motion.json").write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert Tunings(tmp_path).read("motion") is None
    assert "motion.json: the tuning record is damaged" in caplog.text


def test_one_that_cannot_be_read_is_as_none_too(tmp_path, caplog):
    (tmp_path / "motion.json").mkdir()
    assert Tunings(tmp_path).read("motion") is None
    assert "motion.json cannot be read: Is a directory" in caplog.text


class Cut(Kernel):
    """Disk that is full after the first file."""

    def sync_file(self, path):
        raise OSError(28, "No space left on device")


def test_a_disk_that_fails_leaves_the_record_there_was(tmp_path):
    Tunings(tmp_path).write(record(cpu(1)))
    with pytest.raises(StoreError, match="No space left"):
        Tunings(tmp_path, Disk(Cut())).write(record(cpu(2)))
    assert Tunings(tmp_path).read("motion") == record(cpu(1))
