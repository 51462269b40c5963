import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from edged.core.masks import NONE, ClassMap, palette, png, run_lengths

SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)


@pytest.mark.parametrize(
    ("rows", "lengths"),
    [
        ([[0, 0], [0, 0]], [4]),
        ([[1, 1], [1, 1]], [0, 4]),
        ([[0, 1], [0, 1]], [2, 2]),
        ([[0, 0], [1, 1]], [1, 1, 1, 1]),
    ],
)
def test_runs_are_counted_column_by_column_and_begin_outside(rows: list[list[int]], lengths: list[int]) -> None:
    assert run_lengths(np.array(rows, bool)) == lengths


@given(arrays(bool, SHAPES))
def test_run_lengths_hold_the_whole_mask(mask: NDArray[np.bool_]) -> None:
    lengths = run_lengths(mask)
    inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    assert np.array_equal(inside.reshape(mask.shape[::-1]).T, mask)
    assert all(lengths[1:])


@given(arrays(np.uint8, SHAPES), st.binary(max_size=20))
def test_a_png_holds_the_whole_mask(mask: ClassMap, text: bytes) -> None:
    image = pytest.importorskip("PIL.Image")
    with image.open(io.BytesIO(png(mask, b"{}" + text.hex().encode()))) as picture:
        assert (picture.format, picture.mode) == ("PNG", "P")
        assert picture.text["edged"] == "{}" + text.hex()
        assert np.array_equal(np.asarray(picture), mask)


def test_pixels_without_a_class_are_transparent() -> None:
    image = pytest.importorskip("PIL.Image")
    with image.open(io.BytesIO(png(np.array([[0, 1, NONE]], np.uint8)))) as picture:
        assert np.asarray(picture.convert("RGBA")).tolist() == [[[0, 0, 0, 255], [128, 0, 0, 255], [224, 224, 192, 0]]]


def test_each_class_has_a_colour_of_its_own() -> None:
    colours = palette()
    assert len({colours[start : start + 3] for start in range(0, len(colours), 3)}) == 256
