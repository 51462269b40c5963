import errno
import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.api import StoreError
from edged.sinks.jsonl import JsonlSink
from edged.testing.fakes import context, prediction
from edged.testing.sink_contract import SinkContract


class TestJsonlSink(SinkContract):
    @pytest.fixture
    def config(self, tmp_path: Path) -> JsonlSink:
        return JsonlSink(path=tmp_path / "results.jsonl")


def seqs(file: Path) -> list[int]:
    return [json.loads(line)["seq"] for line in file.read_text().splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def test_each_prediction_is_a_line(file: Path) -> None:
    sink = JsonlSink(path=file).open(context())
    for seq in range(3):
        sink.send(prediction(seq))

    assert seqs(file) == [0, 1, 2]


def test_it_goes_on_where_an_earlier_run_stopped(file: Path) -> None:
    for seq in range(2):
        sink = JsonlSink(path=file).open(context())
        sink.send(prediction(seq))
        sink.close()

    assert seqs(file) == [0, 1]


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_files_stay_within_their_bounds_and_the_newest_lines_are_kept(file: Path, keep: int) -> None:
    sink = JsonlSink(path=file, max_bytes=4096, keep=keep).open(context())
    for seq in range(100):
        sink.send(prediction(seq))

    files = [file, *(file.with_name(f"results.jsonl.{number}") for number in range(1, keep + 1))]
    assert sorted(file.parent.iterdir()) == sorted(files)
    assert all(each.stat().st_size <= 4096 for each in files)
    kept = [seq for each in reversed(files) for seq in seqs(each)]
    assert kept == list(range(kept[0], 100))


def test_a_file_that_fails_as_it_is_closed_is_let_go_of(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS an error may come as late as close(); the descriptor is then closed, and its number may be reused soon."""
    sink = JsonlSink(path=file).open(context())
    sink.send(prediction(0))
    file.unlink()
    close = os.close

    def fail(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fail)
        with pytest.raises(StoreError, match="Input/output error"):
            sink.send(prediction(1))
    sink.send(prediction(2))

    assert seqs(file) == [2]


def test_a_file_that_is_deleted_or_moved_away_is_begun_anew(file: Path) -> None:
    sink = JsonlSink(path=file).open(context())
    sink.send(prediction(0))
    file.rename(file.with_name("taken.jsonl"))
    sink.send(prediction(1))
    assert seqs(file) == [1]
    file.unlink()
    sink.send(prediction(2))
    assert seqs(file) == [2]


def test_a_line_torn_by_a_power_cut_does_not_spoil_the_next(file: Path) -> None:
    file.write_text('{"seq": 1}\n{"se')
    JsonlSink(path=file).open(context()).send(prediction(2))

    assert file.read_text().splitlines()[:2] == ['{"seq": 1}', '{"se']
    assert json.loads(file.read_text().splitlines()[2])["seq"] == 2


@pytest.mark.parametrize("path", ["no/such/folder/file", "."])
def test_a_place_that_cannot_be_written_is_an_error_with_a_hint(tmp_path: Path, path: str) -> None:
    with pytest.raises(StoreError, match="cannot be written") as caught:
        JsonlSink(path=tmp_path / path).open(context())
    assert caught.value.hint.startswith("check the path")


def test_a_full_device_is_an_error_and_says_so() -> None:
    sink = JsonlSink(path=Path("/dev/full")).open(context())
    with pytest.raises(StoreError, match="No space left") as caught:
        sink.send(prediction())
    assert (caught.value.hint, caught.value.retryable) == ("free some space", True)


@pytest.fixture
def room_for_700_bytes() -> Iterator[None]:
    """Simulate a disk with room for a line and a half: the second write is cut short, the third fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_line_that_does_not_fit_is_not_left_torn_and_later_ones_are_written(
    file: Path, room_for_700_bytes: None
) -> None:
    sink = JsonlSink(path=file).open(context())
    sink.send(prediction(0))
    for seq in (1, 2):
        with pytest.raises(StoreError):
            sink.send(prediction(seq))
    assert seqs(file) == [0]

    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    sink.send(prediction(3))
    assert seqs(file) == [0, 3]


def test_it_writes_to_a_new_file_when_the_old_one_was_moved_away_after_an_error(file: Path) -> None:
    sink = JsonlSink(path=file).open(context())
    sink.send(prediction(0))
    sink.close()
    file.unlink()
    sink.send(prediction(1))

    assert seqs(file) == [1]
