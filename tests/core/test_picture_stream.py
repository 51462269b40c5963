"""Splitting streams into pictures, by literal pictures and by streams cut anywhere."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edged.core.framing import Faults
from edged.core.picture_stream import (
    DAMAGED,
    NO_PICTURE,
    TOO_LARGE,
    TRUNCATED,
    FrameSplitter,
    JpegSplitter,
    WholePicture,
)


def jpeg(shade: int = 0, size: tuple[int, int] = (8, 8), **options: object) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, shade).save(file, "JPEG", **options)  # type: ignore[arg-type]
    return file.getvalue()


SMALLEST = b"\xff\xd8\xff\xd9"
WITH_THUMBNAIL = b"\xff\xd8\xff\xe1\x00\x06" + SMALLEST + b"\xff\xda\x00\x02data\xff\x00\xff\xd0\xff\xd9"
WITH_FILL_BYTES = b"\xff\xd8\xff\xff\xda\x00\x02a\xff\xff\xd9"
WITH_RESTARTS = jpeg(80, (64, 64), quality=95, restart_marker_blocks=1)
PROGRESSIVE = jpeg(60, (40, 40), progressive=True)
PLAIN = jpeg(90, (50, 30), quality=90)
PICTURES = [SMALLEST, WITH_THUMBNAIL, WITH_FILL_BYTES, WITH_RESTARTS, PROGRESSIVE, PLAIN]

BOUNDARIES = [
    b"",
    b"\r\n--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 99999\r\n\r\n",
    b"--frame--\r\n",
    b"\x00" * 100,
]


@pytest.mark.parametrize("picture", PICTURES)
def test_a_picture_ends_at_its_own_end(picture: bytes) -> None:
    assert JpegSplitter(Faults()).feed(picture + picture) == [picture, picture]


@given(
    st.lists(st.tuples(st.sampled_from(BOUNDARIES), st.sampled_from(PICTURES)), max_size=6),
    st.lists(st.integers(1, 3000), min_size=1, max_size=20),
)
def test_a_stream_cut_anywhere_gives_the_same_pictures(parts: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    stream = b"".join(boundary + picture for boundary, picture in parts)
    splitter, pictures, at = JpegSplitter(Faults()), [], 0
    while at < len(stream):
        size = cuts[at % len(cuts)]
        pictures += splitter.feed(stream[at : at + size])
        at += size
    assert pictures == [picture for _, picture in parts]
    assert splitter.faults == {}


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_nothing_makes_the_splitter_fail(first: bytes, second: bytes) -> None:
    splitter = JpegSplitter(Faults())
    splitter.feed(b"\xff\xd8\xff" + first)
    for picture in splitter.feed(second + b"\xff\xd9"):
        assert picture.startswith(b"\xff\xd8\xff")
        assert picture.endswith(b"\xff\xd9")


def test_a_truncated_picture_costs_no_other() -> None:
    splitter = JpegSplitter(Faults())
    assert splitter.feed(PLAIN[:-400] + b"\r\n--frame\r\n\r\n" + PROGRESSIVE) == [PROGRESSIVE]
    assert splitter.faults == {TRUNCATED: 1}


def test_a_damaged_segment_ends_a_picture() -> None:
    splitter = JpegSplitter(Faults())
    assert splitter.feed(b"\xff\xd8\xff\xe0\x00\x04ab12" + PLAIN) == [PLAIN]
    assert splitter.faults == {DAMAGED: 1}


def test_a_picture_without_end_takes_bounded_memory() -> None:
    splitter = JpegSplitter(Faults(), limit=10_000)
    assert splitter.feed(PLAIN[:-2]) == []
    for _ in range(100):
        assert splitter.feed(b"a" * 1000) == []
    assert splitter.faults[TOO_LARGE] == 1
    assert len(splitter._buffer) <= 11_000
    assert splitter.feed(PLAIN) == [PLAIN]


def test_other_content_is_a_fault_every_16_kib_and_takes_no_memory() -> None:
    splitter = JpegSplitter(Faults())
    for _ in range(40):
        assert splitter.feed(b"<html>" * 200) == []
    assert splitter.faults == {NO_PICTURE: 2}
    assert "<html><html>" in splitter.faults.last
    assert len(splitter._buffer) <= 2


def test_frames_of_a_known_size() -> None:
    splitter = FrameSplitter(Faults(), 3)
    assert [splitter.feed(piece) for piece in (b"ab", b"cdefg", b"", b"hi")] == [[], [b"abc", b"def"], [], [b"ghi"]]


def test_the_end_of_a_stream_truncates_a_picture() -> None:
    splitter = JpegSplitter(Faults())
    assert splitter.feed(PLAIN[:-1]) == []
    assert splitter.end() == []
    assert splitter.end() == []
    assert splitter.faults == {TRUNCATED: 1}


def test_a_picture_of_any_format_is_a_whole_stream() -> None:
    picture = WholePicture(Faults())
    assert picture.feed(b"\x89PNG") + picture.feed(b"...") == []
    assert picture.end() == [b"\x89PNG..."]


def test_a_whole_stream_is_bounded_and_not_empty() -> None:
    large, empty = WholePicture(Faults(), limit=100), WholePicture(Faults())
    for _ in range(100):
        large.feed(b"a" * 60)
    assert len(large._buffer) == 120
    assert large.end() + empty.end() == []
    assert (large.faults, empty.faults) == ({TOO_LARGE: 1}, {NO_PICTURE: 1})
