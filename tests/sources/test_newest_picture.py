"""The newest picture, at most at a rate."""

from edged.core.framing import Faults
from edged.core.source_health import DROPPED
from edged.pictures.encoded import EncodedPicture
from edged.sources.newest_picture import NewestPicture


def given(newest: NewestPicture, now: float) -> bytes | None:
    """Return the bytes of the picture given out."""
    chunk = newest.take(now)
    return None if chunk is None else chunk.samples.tobytes()


def test_a_picture_is_given_out_once_with_the_time_of_its_arrival() -> None:
    newest = NewestPicture(None, EncodedPicture, Faults())
    assert newest.due is None
    newest.offer([b"a"], 1000.0)
    chunk = newest.take(1001.0)
    assert chunk is not None
    assert (chunk.samples.tolist(), chunk.time, chunk.lost) == ([[97]], 1000.0, 0)
    assert newest.take(1001.0) is None


def test_the_rate_is_held_on_the_average() -> None:
    """A camera of 10 pictures a second, each early or late by a little, and a rate of 10."""
    newest, times = NewestPicture(10.0, EncodedPicture, Faults()), []
    for number in range(100):
        now = 1000.0 + number / 10 + (-0.02 if number % 2 else 0.0)
        newest.offer([b"a"], now)
        if newest.due is not None and newest.take(max(now, newest.due)):
            times.append(max(now, newest.due or now))
    assert len(times) == 100


def test_pictures_held_back_by_the_rate_are_no_faults() -> None:
    faults = Faults()
    newest = NewestPicture(1.0, EncodedPicture, faults)
    newest.offer([b"a"], 1000.0)
    assert given(newest, 1000.0) == b"a"
    newest.offer([b"b"], 1000.3)
    newest.offer([b"c", b"d"], 1000.6)
    assert newest.due == 1001.0
    assert given(newest, 1000.9) is None
    assert given(newest, 1001.0) == b"d"
    assert faults == {}


def test_pictures_that_came_too_late_are_dropped() -> None:
    faults = Faults()
    newest = NewestPicture(1.0, EncodedPicture, faults)
    newest.offer([b"a", b"b"], 1000.0)
    newest.offer([b"c"], 1000.5)
    assert given(newest, 1000.5) == b"c"
    assert faults == {DROPPED: 2}


def test_a_reader_that_was_late_does_not_hurry_afterwards() -> None:
    newest = NewestPicture(1.0, EncodedPicture, Faults())
    for now, expected in ((1000.0, b"a"), (1005.5, b"a"), (1006.0, None), (1006.5, b"a")):
        newest.offer([b"a"], now)
        assert given(newest, now) == expected
