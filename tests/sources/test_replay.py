import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged.api import Chunk, ConfigError, DeviceError, EdgedError
from edged.core.framing import Signal
from edged.sources.replay import MAX_BYTES, ArrayRecording, Player, ReplaySource
from edged.testing.source_contract import SourceContract

PATH = "walk.csv"


class TestCsvContract(SourceContract):
    @pytest.fixture
    def config(self, tmp_path: Path) -> ReplaySource:
        file = written(tmp_path / "walk.csv", "x,truth,y\n" + "".join(f"{n},walking,{-n}\n" for n in range(100)))
        return ReplaySource(path=file, channels=("x", "y"), units=("g", "g"), rate=1000.0)


class TestNpyContract(SourceContract):
    @pytest.fixture
    def config(self, tmp_path: Path) -> ReplaySource:
        np.save(tmp_path / "walk.npy", np.arange(200.0).reshape(100, 2))
        return ReplaySource(path=tmp_path / "walk.npy", channels=("x", "y"), pace="fast")


class TestPicturesContract(SourceContract):
    @pytest.fixture
    def config(self, tmp_path: Path) -> ReplaySource:
        np.savez_compressed(tmp_path / "digits.npz", pictures=np.ones((20, 8, 8), np.uint8))
        return ReplaySource(path=tmp_path / "digits.npz", pace=500.0)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def saved(path: Path, array: Any) -> Path:
    np.save(path, np.asarray(array))
    return path


def played(**options: Any) -> list[tuple[list[Any], int]]:
    """Return the whole recording at full speed: the values of each chunk, and the samples lost before."""
    source = ReplaySource(**({"pace": "fast"} | options)).open()
    found: list[tuple[list[Any], int]] = []
    while (chunk := next_chunk(source)) is not None:
        found.append((chunk.samples.tolist(), chunk.lost))
    source.close()
    return found


def next_chunk(source: Any) -> Chunk | None:
    try:
        chunk = source.read(1.0)
    except EOFError:
        return None
    assert chunk is not None
    return chunk


def test_channels_are_found_by_the_first_line(tmp_path: Path) -> None:
    file = written(tmp_path / PATH, '"y",label,x\n2,"walking",1\n4,running,3\n')
    assert played(path=file, channels=("x", "y")) == [([[1.0, 2.0], [3.0, 4.0]], 0)]


def test_the_last_line_may_lack_its_end(tmp_path: Path) -> None:
    assert played(path=written(tmp_path / PATH, "x\n1\n2"), channels=("x",)) == [([[1.0]], 0), ([[2.0]], 0)]


def test_a_file_without_such_a_line_needs_columns(tmp_path: Path) -> None:
    file = written(tmp_path / PATH, "1,2\n3,4\n")
    assert played(path=file, channels=("y",), columns=("x", "y")) == [([[2.0], [4.0]], 0)]


def test_an_array_with_named_columns(tmp_path: Path) -> None:
    file = saved(tmp_path / "walk.npy", [[1.0, 9.0, 2.0], [3.0, 9.0, 4.0]])
    assert played(path=file, channels=("y", "x"), columns=("x", "truth", "y")) == [([[2.0, 1.0], [4.0, 3.0]], 0)]


def test_one_channel_may_be_a_flat_array(tmp_path: Path) -> None:
    assert played(path=saved(tmp_path / "ecg.npy", [1.0, 2.0]), channels=("mv",)) == [([[1.0], [2.0]], 0)]


def test_the_only_array_of_an_archive_or_the_one_that_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.ones((1, 1)))
    assert played(path=tmp_path / "one.npz", channels=("x",)) == [([[1.0]], 0)]
    np.savez(tmp_path / "two.npz", train=np.ones((1, 1)), test=np.zeros((1, 1)))
    assert played(path=tmp_path / "two.npz", array="test", channels=("x",)) == [([[0.0]], 0)]
    with pytest.raises(DeviceError, match="holds 2 arrays") as error:
        played(path=tmp_path / "two.npz", channels=("x",))
    assert error.value.hint == "set array to one of test, train"


def test_pictures_stay_what_they_are(tmp_path: Path) -> None:
    file = saved(tmp_path / "pictures.npy", np.arange(12, dtype=np.uint8).reshape(3, 2, 2))
    config = ReplaySource(path=file, pace="fast", chunk=2)
    assert config.describe().shape == (2, 2)
    chunk = config.open().read(1.0)
    assert chunk is not None
    assert chunk.samples.dtype == np.uint8
    assert chunk.samples.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


@pytest.mark.parametrize("bad", ["nan", "inf", "oops"])
def test_a_row_that_cannot_be_used_is_a_break(tmp_path: Path, bad: str) -> None:
    file = written(tmp_path / PATH, f"x\n1\n{bad}\n3\n")
    assert played(path=file, channels=("x",)) == [([[1.0]], 0), ([[3.0]], 1)]


def test_nan_rows_of_an_array_are_breaks_wherever_they_are(tmp_path: Path) -> None:
    file = saved(tmp_path / "walk.npy", [[1.0], [np.nan], [np.nan], [4.0], [np.inf]])
    source = ReplaySource(path=file, channels=("x",), pace="fast", chunk=2).open()
    chunks = [next_chunk(source), next_chunk(source)]
    assert [(chunk.samples.tolist(), chunk.lost) for chunk in chunks if chunk] == [([[1.0]], 0), ([[4.0]], 1)]
    assert next_chunk(source) is None
    assert source.faults == {"not a finite number": 3}


def test_the_end_stays_the_end(tmp_path: Path) -> None:
    source = ReplaySource(path=written(tmp_path / PATH, "x\n1\n"), channels=("x",), pace="fast").open()
    source.read(1.0)
    for _ in range(2):
        with pytest.raises(EOFError):
            source.read(1.0)


@pytest.mark.parametrize("suffix", ["csv", "npy"])
def test_each_round_of_a_loop_is_a_stream_of_its_own_and_nothing_is_lost(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"walk.{suffix}"
    if suffix == "csv":
        written(file, "x\n1\n2\n3")
    else:
        saved(file, [[1.0], [2.0], [3.0]])
    source = ReplaySource(path=file, channels=("x",), pace="fast", chunk=2, loop=True).open()
    chunks = [next_chunk(source) for _ in range(5)]
    assert [(chunk.samples[:, 0].tolist(), chunk.lost, chunk.anew) for chunk in chunks if chunk] == [
        ([1.0, 2.0], 0, False),
        ([3.0], 0, False),
        ([1.0, 2.0], 0, True),
        ([3.0], 0, False),
        ([1.0, 2.0], 0, True),
    ]


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_lines_of_a_file_end_in_cr_lf_or_both(tmp_path: Path, end: str) -> None:
    file = tmp_path / "walk.csv"
    file.write_bytes(end.join(["x,y", "1,2", "# a remark", "3,1_0", "5,6"]).encode())
    source = ReplaySource(path=file, channels=("y",), pace="fast").open()
    chunks = [(chunk.samples.ravel().tolist(), chunk.lost) for chunk in iter(lambda: next_chunk(source), None)]
    assert chunks == [([2.0], 0), ([6.0], 1)]
    assert source.faults == {"not a number": 1}
    assert source.refused == "3,1_0"


class Time:
    """Clock that moves only during sleep."""

    now = 50.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def timed_player(rows: list[list[float]], **options: Any) -> tuple[Player, Time]:
    clock = Time()
    columns = tuple("xyz"[: len(rows[0])])
    recording = ArrayRecording(np.array(rows), Signal(channels=columns), columns, 10)
    given = {"chunk": 2, "pace": None, "timed": False, "loop": False} | options
    return Player(recording, clock=clock, sleep=clock.sleep, **given), clock


def test_by_rate_a_chunk_comes_when_its_last_sample_is_due() -> None:
    player, clock = timed_player([[1.0], [2.0], [3.0]], pace=10.0)
    times = [(chunk.time, clock.now) for chunk in iter(lambda: next_chunk(player), None)]
    assert times == [(50.2, 50.2), (50.3, 50.3)]


def test_by_its_own_seconds() -> None:
    player, clock = timed_player([[1.0, 1000.0], [2.0, 1000.25], [3.0, 1000.5], [4.0, 1002.0]], timed=True)
    chunk = player.read(1.0)
    assert chunk is not None
    assert (chunk.samples.tolist(), chunk.time) == ([[1.0], [2.0]], 50.25)
    assert player.read(1.0) is None  # not due for 1.75 s
    assert clock.now == 51.25
    assert next_chunk(player) == (pytest.approx(np.array([[3.0], [4.0]])), 52.0, 0, False, None)


def test_a_chunk_that_fell_due_while_the_board_was_busy_comes_at_once() -> None:
    player, clock = timed_player([[1.0], [2.0]], pace=0.5)
    player.read(0.0)
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + 60.0)  # type: ignore[method-assign]
    player._sleep = clock.sleep
    chunk = player.read(1.0)
    assert chunk is not None
    assert chunk.time == 54.0


def test_seconds_that_go_back_are_played_at_once() -> None:
    player, clock = timed_player([[1.0, 5.0], [2.0, 6.0], [3.0, 0.0]], timed=True)
    assert [chunk.time for chunk in iter(lambda: next_chunk(player), None)] == [51.0, 51.0]
    assert clock.now == 51.0


def test_rows_that_were_lost_took_their_time() -> None:
    player, _ = timed_player([[1.0], [np.nan], [3.0]], pace=4.0)
    assert [chunk.time for chunk in iter(lambda: next_chunk(player), None)] == [50.25, 50.75]


@pytest.mark.parametrize(
    ("options", "rate", "patient"),
    [
        ({"rate": 100.0}, 100.0, False),
        ({"rate": 100.0, "pace": "fast"}, 100.0, True),
        ({"rate": 100.0, "pace": 400.0}, 100.0, False),
        ({"pace": 400.0}, 400.0, False),
        ({"time": "t"}, None, False),
    ],
)
def test_the_rate_is_that_of_the_recording(options: dict[str, Any], rate: float | None, patient: bool) -> None:
    info = ReplaySource(path=Path(PATH), channels=("x",), **options).describe()
    assert (info.rate, info.patient) == (rate, patient)


@pytest.mark.parametrize(("pace", "arrive"), [("recorded", None), ("fast", None), (400.0, 400.0)])
def test_a_recording_arrives_at_the_pace_it_is_played_at(pace: Any, arrive: float | None) -> None:
    assert ReplaySource(path=Path(PATH), channels=("x",), rate=100.0, pace=pace).describe().pace == arrive


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"path": Path("walk.wav")}, "is no recording"),
        ({"channels": ()}, "channels is empty"),
        ({"rate": None}, "pace of the recording is not known"),
        ({"array": "x"}, "array means nothing for a .csv file"),
        ({"columns": ("y",)}, "'x' is not in columns"),
        ({"units": ("g", "g")}, "units has 2 entries for 1 channels"),
        ({"path": Path("pictures.npy"), "channels": ()}, "cannot read pictures.npy"),
        ({"path": Path("pictures.npy"), "channels": (), "columns": ("x",)}, "nothing without channels"),
    ],
)
def test_options_that_contradict_one_another(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        ReplaySource(**({"path": Path(PATH), "channels": ("x",), "rate": 1.0} | options)).describe()
    assert error.value.hint


def sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "walk.csv", "No such file"),
        (lambda folder: sparse(folder / "walk.csv"), "has 256 MiB"),
        (lambda folder: sparse(folder / "walk.npy"), "has 256 MiB"),
        (lambda folder: written(folder / "walk.csv", "a,b\n1,2\n"), "'x' is not in columns"),
        (lambda folder: written(folder / "walk.npy", "x\n1\n"), "cannot read"),
        (lambda folder: written(folder / "walk.npz", "x\n1\n"), "cannot read"),
        (lambda folder: saved(folder / "walk.npy", [["a"]]), "not numbers"),
        (lambda folder: saved(folder / "walk.npy", [[1, 2]]), r"has the shape \(1, 2\), columns names 1"),
        (lambda folder: pickled(folder / "walk.npy"), "not numbers"),
    ],
)
def test_files_that_cannot_be_played(tmp_path: Path, make: Callable[[Path], Path], says: str) -> None:
    with pytest.raises(EdgedError, match=says) as error:
        played(path=make(tmp_path), channels=("x",))
    assert error.value.hint


def pickled(path: Path) -> Path:
    np.save(path, np.array([[{}]], dtype=object), allow_pickle=True)
    return path


def test_a_file_that_is_cut_short_as_it_is_played_is_an_error(tmp_path: Path) -> None:
    file = saved(tmp_path / "walk.npy", np.zeros((10_000, 1)))
    source = ReplaySource(path=file, channels=("x",), pace="fast").open()
    assert source.read(1.0) is not None
    os.truncate(file, 256)
    with pytest.raises(DeviceError, match="is truncated"):
        source.read(1.0)


def test_an_array_that_is_saved_column_after_column_is_played_row_by_row(tmp_path: Path) -> None:
    file = saved(tmp_path / "walk.npy", np.asfortranarray([[1.0, 2.0], [3.0, 4.0]]))
    assert played(path=file, channels=("x", "y")) == [([[1.0, 2.0], [3.0, 4.0]], 0)]


def test_a_loop_over_nothing_is_an_error(tmp_path: Path) -> None:
    source = ReplaySource(path=written(tmp_path / PATH, "x\noops\n"), channels=("x",), pace="fast", loop=True).open()
    with pytest.raises(DeviceError, match="no usable sample"):
        source.read(1.0)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_damaged_files_are_refused_or_played_but_nothing_worse(tmp_path: Path, suffix: str) -> None:
    chance = random.Random(7)
    file = tmp_path / f"walk.{suffix}"
    array = np.arange(120.0).reshape(60, 2)
    if suffix == "npy":
        np.save(file, array)
    else:
        np.savez_compressed(file, walk=array)
    sound = file.read_bytes()
    refused = 0
    for _ in range(400):
        damaged = bytearray(sound[: chance.randrange(len(sound))] if chance.random() < 0.3 else sound)
        for _ in range(chance.randrange(1, 5)):
            if damaged:
                damaged[chance.randrange(min(len(damaged), 400))] = chance.randrange(256)
        file.unlink()
        file.write_bytes(damaged)
        try:
            played(path=file, channels=("x", "y"))
        except EdgedError:
            refused += 1
    assert refused > 50
