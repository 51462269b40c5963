from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edged.core.errors import DeviceError
from edged.core.manifest import Channel, WindowSpec
from edged.core.pictures import PictureForm, PictureSpec, Placement, place
from edged.core.types import Chunk
from edged.core.window import Windower


def spec(
    length: int, hop: int, *, rate: float | None = None, channels: str = "x", dtype: str = "float32"
) -> WindowSpec:
    return WindowSpec(
        length=length, hop=hop, rate=rate, channels=tuple(Channel(name=name) for name in channels), dtype=dtype
    )


def row(*values: float, dtype: str = "float32") -> NDArray:
    """Return samples of one channel."""
    return np.array(values, dtype=dtype).reshape(-1, 1)


def cut(windower: Windower, samples: NDArray, time: float = 0.0, lost: int = 0) -> list[tuple[int, list[float]]]:
    """Number and values of the windows a push completes."""
    return [(window.seq, window.samples.ravel().tolist()) for window in windower.push(samples, time, lost)]


def test_windows_overlap_where_the_hop_is_shorter_than_they_are() -> None:
    assert cut(Windower(spec(3, 1), None), row(1, 2, 3, 4, 5)) == [(0, [1, 2, 3]), (1, [2, 3, 4]), (2, [3, 4, 5])]


def test_windows_leave_samples_out_where_the_hop_is_longer_than_they_are() -> None:
    assert cut(Windower(spec(2, 5), None), row(*range(13))) == [(0, [0, 1]), (1, [5, 6]), (2, [10, 11])]


def test_a_window_grows_over_several_chunks() -> None:
    windower = Windower(spec(3, 3), None)
    assert cut(windower, row(1)) == []
    assert cut(windower, row(2)) == []
    assert cut(windower, row(3, 4)) == [(0, [1, 2, 3])]
    assert cut(windower, row(5, 6)) == [(1, [4, 5, 6])]


def test_a_chunk_far_larger_than_the_ring_yields_every_window() -> None:
    windows = cut(Windower(spec(4, 3), None), row(*range(1000)))
    assert windows == [(n, [3 * n, 3 * n + 1, 3 * n + 2, 3 * n + 3]) for n in range(333)]


def test_no_window_is_stitched_over_lost_samples() -> None:
    windower = Windower(spec(3, 1), None)
    assert cut(windower, row(1, 2, 3)) == [(0, [1, 2, 3])]
    assert cut(windower, row(10, 11), lost=6) == []
    assert cut(windower, row(12)) == [(2, [10, 11, 12])]


def test_a_loss_shows_as_a_jump_in_seq_unless_there_was_nothing_before() -> None:
    windower = Windower(spec(2, 2), None)
    assert cut(windower, row(1, 2), lost=1) == [(0, [1, 2])]
    assert cut(windower, row(3, 4)) == [(1, [3, 4])]
    assert cut(windower, row(7, 8), lost=2) == [(3, [7, 8])]


def test_a_window_has_the_time_of_its_own_last_sample() -> None:
    windower = Windower(spec(2, 2, rate=10.0), None)
    times = [window.time for window in windower.push(row(1, 2, 3, 4, 5), 100.0)]
    assert times == [pytest.approx(99.7), pytest.approx(99.9)]


def times(windower: Windower, samples: NDArray, rate: float | None = None) -> list[tuple[float, float | None]]:
    """Return start and time of the windows completed by samples whose last arrives at second 100."""
    return [
        (window.start and pytest.approx(window.start), pytest.approx(window.time))
        for window in windower.push(samples, 100.0, rate=rate)
    ]


def test_a_window_starts_as_many_periods_before_its_end_as_it_has_samples_but_one() -> None:
    assert times(Windower(spec(3, 2, rate=10.0), None), row(1, 2, 3, 4, 5)) == [(99.6, 99.8), (99.8, 100.0)]


def test_the_rate_at_which_samples_arrive_serves_where_it_is_told() -> None:
    assert times(Windower(spec(3, 2), None), row(1, 2, 3, 4, 5), 10.0) == [(99.6, 99.8), (99.8, 100.0)]
    assert times(Windower(spec(3, 2, rate=10.0), None), row(1, 2, 3), 100.0) == [(99.98, 100.0)]


def test_a_window_has_the_time_of_its_chunk_and_no_start_where_no_rate_is_known() -> None:
    assert times(Windower(spec(2, 2), None), row(1, 2, 3, 4, 5)) == [(None, 100.0), (None, 100.0)]


def test_a_window_of_one_sample_starts_as_it_ends() -> None:
    assert times(Windower(spec(1, 1), None), row(1)) == [(100.0, 100.0)]


def test_columns_are_picked_in_the_order_of_the_model() -> None:
    samples = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)
    windower = Windower(spec(2, 2, channels="ca"), np.array([2, 0]))
    assert cut(windower, samples) == [(0, [3, 1, 6, 4])]


def test_pictures_are_windows_of_one_sample() -> None:
    picture = WindowSpec(length=1, hop=1, sample_shape=(8, 8), dtype="uint8")
    chunk = np.arange(128, dtype=np.uint8).reshape(2, 8, 8)
    windows = [window.samples.copy() for window in Windower(picture, None).push(chunk, 0.0)]
    assert [window.shape for window in windows] == [(1, 8, 8), (1, 8, 8)]
    assert np.array_equal(np.concatenate(windows), chunk)


@pytest.mark.parametrize(
    ("given", "dtype", "kept"),
    [
        (row(1.5, 2.5, dtype="float64"), "float32", [1.5, 2.5]),
        (row(1, -2, dtype="int16"), "float32", [1.0, -2.0]),
        (row(1e300, -1e300, dtype="float64"), "float32", [np.inf, -np.inf]),
        (row(7, 255, dtype="uint8"), "int16", [7, 255]),
        (row(0.5, 1.5, 2.5), "int16", [0, 2, 2]),
        (row(70000, -70000, dtype="int32"), "int16", [32767, -32768]),
        (row(np.nan, np.inf, -np.inf, 300.0), "uint8", [0, 255, 0, 255]),
    ],
)
def test_samples_take_the_dtype_of_the_window(given: NDArray, dtype: str, kept: list[float]) -> None:
    (window,) = Windower(spec(len(given), 1, dtype=dtype), None).push(given, 0.0)
    assert window.samples.dtype == dtype
    assert window.samples.ravel().tolist() == kept


@pytest.mark.parametrize("samples", [np.zeros((4, 2)), np.zeros((4, 1, 1)), np.zeros(4)])
def test_samples_of_another_shape_are_the_fault_of_the_source(samples: NDArray) -> None:
    with pytest.raises(DeviceError, match="against its own description"):
        cut(Windower(spec(2, 2, channels="abc"), None), samples)


@pytest.mark.parametrize("samples", [np.zeros((4, 2)), np.zeros(4)])
def test_too_few_columns_to_pick_from_are_the_fault_of_the_source(samples: NDArray) -> None:
    with pytest.raises(DeviceError, match="against its own description"):
        cut(Windower(spec(2, 2, channels="a"), np.array([2])), samples)


def test_a_window_stays_as_it_is_while_others_are_cut() -> None:
    windower = Windower(spec(3, 1), None)
    kept = [window for n in range(50_000) for window in windower.push(row(n), 0.0)]
    assert [window.samples.ravel().tolist() for window in kept] == [[n, n + 1, n + 2] for n in range(49_998)]


# A stream is a list of unbroken runs, each a list of chunk lengths.
STREAMS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=8), min_size=1, max_size=4)


@given(st.integers(1, 12), st.integers(1, 30), STREAMS)
def test_windows_do_not_depend_on_how_the_stream_was_cut_into_chunks(
    length: int, hop: int, stream: list[list[int]]
) -> None:
    windower = Windower(spec(length, hop), None)
    got = [window for samples, lost in chunks(stream) for window in windower.push(samples, 0.0, lost)]
    assert [window.samples.ravel().tolist() for window in got] == list(expected(length, hop, stream))
    breaks = len(stream) - 1
    numbers = [window.seq for window in got]
    assert numbers == sorted(set(numbers))
    assert not numbers or numbers[-1] <= len(numbers) - 1 + breaks
    assert breaks or numbers == list(range(len(numbers)))


def chunks(stream: list[list[int]]) -> Iterable[tuple[NDArray, int]]:
    at = 0
    for number, run in enumerate(stream):
        for position, count in enumerate(run):
            yield row(*range(at, at + count)), 1 if number and not position else 0
            at += count


def expected(length: int, hop: int, stream: list[list[int]]) -> Iterable[list[int]]:
    at = 0
    for run in stream:
        for begin in range(at, at + sum(run) - length + 1, hop):
            yield list(range(begin, begin + length))
        at += sum(run)


def test_a_stream_that_goes_on_from_another_goes_on_counting():
    windower = Windower(WindowSpec(length=1, hop=1, channels=(Channel(name="x"),)), None, next_seq=7)
    seqs = [window.seq for window in windower.push(np.zeros((3, 1), np.float32), 0.0)]
    assert seqs == [7, 8, 9]
    assert windower.next_seq == 10


class Painted:
    """Picture of one brightness."""

    width, height = 640, 480

    def fitted(self, form):
        return np.full(form.spec.shape, 9, np.uint8)

    def placement(self, form):
        return place(form, self.width, self.height)


def test_a_window_of_a_picture_has_the_picture_and_the_place_in_it():
    spec = WindowSpec(length=1, hop=1, sample_shape=(2, 4, 3), dtype="uint8")
    form = PictureForm(PictureSpec(width=4, height=2))
    windower = Windower(spec, None, form=form)
    picture = Painted()
    (window,) = windower.cut(Chunk(np.zeros((1, 99), np.uint8), 5.0, picture=picture))
    assert window.samples.tolist() == np.full((1, 2, 4, 3), 9).tolist()
    assert (window.seq, window.time, window.picture) == (0, 5.0, picture)
    assert window.placement == Placement(640, 480, 0.0, 0.0, 160.0, 240.0, form)


def test_a_gray_picture_fits_samples_without_an_axis_of_channels():
    spec = WindowSpec(length=1, hop=1, sample_shape=(2, 4), dtype="uint8")
    windower = Windower(spec, None, form=PictureForm(PictureSpec(width=4, height=2, colour="gray")))
    (window,) = windower.cut(Chunk(np.zeros((1, 99), np.uint8), 5.0, picture=Painted()))
    assert window.samples.shape == (1, 2, 4)


def test_a_hop_takes_some_pictures_only():
    spec = WindowSpec(length=1, hop=3, sample_shape=(2, 4, 3), dtype="uint8")
    windower = Windower(spec, None, form=PictureForm(PictureSpec(width=4, height=2)))
    chunks = [Chunk(np.zeros((1, 9), np.uint8), float(time), picture=Painted()) for time in range(7)]
    assert [window.time for chunk in chunks for window in windower.cut(chunk)] == [0.0, 3.0, 6.0]
