from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Event

import pytest

from edged.app.announced import Announced
from edged.models.atomic_files import Disk, Kernel
from tests.broker import PATIENCE


def told(folder: Path, boot: str, broker: str, *topics: str) -> Announced:
    """A board that has told a broker of these topics, and kept them."""
    announced = Announced(folder, boot)
    announced.expect(broker, set(topics))
    assert announced.flush(PATIENCE)
    return announced


def test_what_was_told_under_another_configuration_is_over(tmp_path: Path):
    told(tmp_path, "b1", "broker:1883", "edged/old/state", "edged/old/availability")
    renamed = Announced(tmp_path, "b2")
    assert renamed.expect("broker:1883", {"edged/new/state"}) == {"edged/old/state", "edged/old/availability"}
    assert renamed.topics == {"edged/new/state", "edged/old/state", "edged/old/availability"}


def test_it_is_kept_until_the_broker_has_cleared_it(tmp_path: Path):
    told(tmp_path, "b1", "broker:1883", "old/state", "old/availability")
    renamed = told(tmp_path, "b2", "broker:1883", "new/state")
    renamed.settle(lambda topic: topic != "old/state", {"state": "sensor"})
    assert renamed.flush(PATIENCE)
    again = Announced(tmp_path, "b3")
    assert (again.topics, again.components) == ({"new/state", "old/state"}, {"state": "sensor"})


def test_another_broker_was_told_nothing(tmp_path: Path):
    told(tmp_path, "b1", "broker:1883", "old/state")
    assert Announced(tmp_path, "b2").expect("other:1883", {"new/state"}) == set()


def test_a_board_knows_its_own_boots_and_has_one_client_id_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edged.app.announced.MAX_BOOTS", 5)
    first = told(tmp_path, "b1", "broker:1883")
    second = Announced(tmp_path, "b2")
    assert list(second.boots) == ["b1", "b2"]
    assert second.client == first.client
    assert Announced(tmp_path / "another", "b3").client != first.client
    for _ in range(5):
        told(tmp_path, "b4", "broker:1883")
    assert len(Announced(tmp_path, "b5").boots) == 5


@pytest.mark.parametrize("change", [Path.unlink, lambda file: file.write_bytes(b"of a backup")])
def test_a_record_that_somebody_deletes_or_replaces_is_written_again(change: Callable[[Path], object], tmp_path: Path):
    announced = told(tmp_path, "b1", "broker:1883", "old/state")
    before = (tmp_path / "announced.json").read_bytes()
    change(tmp_path / "announced.json")
    announced.keep()
    assert announced.flush(PATIENCE)
    assert (tmp_path / "announced.json").read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"client": "zz"}', b"\xff", b'{"client": "a1b2c3", "topics": 1}']
)
def test_a_damaged_record_is_none(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "announced.json").write_bytes(content)
    assert Announced(tmp_path, "b1").topics == set()
    assert "cannot be read" in caplog.text


def test_a_folder_that_cannot_be_written_is_told_of_once_and_does_not_matter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_bytes(b"")
    announced = Announced(tmp_path / "file" / "state", "b1")
    announced.expect("broker:1883", {"a/state"})
    assert announced.expect("broker:1883", {"b/state"}) == {"a/state"}
    assert announced.flush(PATIENCE)
    assert caplog.text.count("cannot be written") == 1


def test_a_disk_that_hangs_holds_up_nobody(tmp_path: Path):
    let_go = Event()

    class Hanging(Kernel):
        def write(self, path: Path, chunks: Iterable[bytes | memoryview]) -> None:
            let_go.wait(PATIENCE)
            super().write(path, chunks)

    announced = Announced(tmp_path, "b1", Disk(Hanging()))
    announced.expect("broker:1883", {"a/state"})
    assert not announced.flush(0.0)
    announced.expect("broker:1883", {"b/state"})
    let_go.set()
    assert announced.flush(PATIENCE)
    assert Announced(tmp_path, "b2").topics == {"a/state", "b/state"}
