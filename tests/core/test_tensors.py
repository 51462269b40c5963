from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edged.core.manifest import Golden
from edged.core.tensors import MAX_STEPS, at_rest, dequantise, difference, disagreement, lookup, quantiser
from edged.core.types import TensorSpec


def tensor(dtype: str, scale: float = 0.0, zero_point: int = 0, shape: tuple[int, ...] = (4,)) -> TensorSpec:
    return TensorSpec(name="t", shape=shape, dtype=dtype, scale=scale, zero_point=zero_point)


def encode(spec: TensorSpec, values: list[float]) -> list[Any]:
    stored = quantiser(spec, (len(values),))(np.array(values, dtype=np.float32))
    assert stored.dtype == spec.dtype
    assert stored.shape == spec.shape
    return stored.tolist()


@pytest.mark.parametrize(
    ("spec", "real", "stored"),
    [
        (tensor("int8", 0.5, -1), [0.0, 0.5, -1.0, 10.0], [-1, 0, -3, 19]),
        (tensor("int8", 1.0, 3), [0.5, 1.5, 2.5, -0.5], [3, 5, 5, 3]),
        (tensor("int8", 1.0, -128), [0.0, 255.0, 256.0, -1.0], [-128, 127, 127, -128]),
        (tensor("uint8", 0.25, 10), [-3.0, 0.0, 61.25, 1e9], [0, 10, 255, 255]),
        (tensor("int16", 0.5), [16383.5, 16384.0, -16384.0, -1e9], [32767, 32767, -32768, -32768]),
        (tensor("int8", 0.5, 7), [np.nan, np.inf, -np.inf, 0.5], [7, 127, -128, 8]),
        (tensor("int32", 0.5, 2), [1.0, 1e30, -1e30, np.nan], [4, 2**31 - 1, -(2**31), 2]),
        (tensor("int64"), [3.0, 1e30, -1e30, np.nan], [3, 2**63 - 1024, -(2**63), 0]),
        (tensor("int8"), [3.0, 127.6, -200.0, np.nan], [3, 127, -128, 0]),
        (tensor("bool"), [0.0, 1.0, -0.5, 0.0], [False, True, True, False]),
        (tensor("float32"), [0.1, -2.0, np.inf, 0.0], [np.float32(0.1), -2.0, np.inf, 0.0]),
        (tensor("float16"), [0.5, -2.0, 3.0, 0.0], [0.5, -2.0, 3.0, 0.0]),
    ],
)
def test_real_values_become_what_the_tensor_stores(spec: TensorSpec, real: list[float], stored: list[Any]) -> None:
    assert encode(spec, real) == stored


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "float32"])
def test_integers_are_taken_as_they_are(dtype: str) -> None:
    quantise = quantiser(tensor(dtype), (4,))
    assert quantise(np.array([0, 1, 7, 255], dtype=np.uint8)).tolist() == [0, 1, 7, 255]


def test_the_tensor_may_have_more_axes_than_the_values() -> None:
    quantise = quantiser(tensor("int8", 1.0, shape=(1, 3, 2, 1)), (3, 2))
    assert quantise(np.arange(6, dtype=np.float32).reshape(3, 2)).tolist() == [[[[0], [1]], [[2], [3]], [[4], [5]]]]


def test_a_buffer_is_used_again_without_a_trace_of_what_was_in_it() -> None:
    quantise = quantiser(tensor("int8", 1.0), (4,))
    first = quantise(np.array([np.nan, 500.0, -500.0, 1.0], dtype=np.float32))
    second = quantise(np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32))
    assert second is first
    assert second.tolist() == [1, 2, 3, 4]


def test_values_that_float16_holds_only_when_they_are_normalised() -> None:
    encode = quantiser(tensor("float16", shape=(2,)), (2,), [325.0], [101_000.0])
    assert encode(np.array([101_325.0, 325.0], dtype=np.float32)).tolist() == [1.0, 0.0]


def test_normalising_on_the_way_is_per_column_or_for_all() -> None:
    real = np.array([[10.0, 100.0], [12.0, 104.0]], dtype=np.float32)
    spec = tensor("int8", 0.5, 1, shape=(1, 2, 2))
    assert quantiser(spec, (2, 2), (10.0, 102.0), (1.0, 2.0))(real).tolist() == [[[1, -1], [5, 3]]]
    assert quantiser(spec, (2, 2), (11.0,), (0.5,))(real).tolist() == [[[-3, 127], [5, 127]]]
    floats = tensor("float32", shape=(1, 2, 2))
    assert quantiser(floats, (2, 2), (10.0, 102.0), (1.0, 2.0))(real).tolist() == [[[0.0, -1.0], [2.0, 1.0]]]
    flags = tensor("bool", shape=(1, 2, 2))
    assert quantiser(flags, (2, 2), (10.0, 102.0), (1.0, 2.0))(real).tolist() == [[[False, True], [True, True]]]
    assert real.tolist() == [[10.0, 100.0], [12.0, 104.0]]


SCALES = st.floats(2**-10, 2**6, width=32)
VALUES = arrays(np.float32, (5, 3), elements=st.floats(-1e4, 1e4, width=32))


def reference(spec: TensorSpec, real: NDArray[np.float64]) -> NDArray[np.float64]:
    """The textbook formula, in float64."""
    limits = np.iinfo(spec.dtype)
    return np.clip(np.rint(real / spec.scale) + spec.zero_point, limits.min, limits.max)


@given(st.sampled_from([("int8", -3), ("uint8", 128), ("int16", 0)]), SCALES, VALUES)
def test_quantising_follows_the_textbook(kind: tuple[str, int], scale: float, real: NDArray) -> None:
    spec = tensor(kind[0], scale, kind[1], shape=(1, 5, 3))
    off = quantiser(spec, (5, 3))(real).reshape(5, 3) - reference(spec, real.astype(np.float64))
    assert np.abs(off).max() <= 1


@given(st.integers(-10, 6), VALUES)
def test_quantising_is_exact_where_the_scale_is_a_power_of_two(exponent: int, real: NDArray) -> None:
    spec = tensor("int8", 2.0**exponent, -7, shape=(5, 3))
    assert np.array_equal(quantiser(spec, (5, 3))(real), reference(spec, real.astype(np.float64)))


@given(SCALES, VALUES, arrays(np.float32, 3, elements=st.floats(-1e4, 1e4, width=32)), st.floats(0.125, 100))
def test_normalising_on_the_way_is_normalising_before(scale: float, real: NDArray, mean: NDArray, std: float) -> None:
    spec = tensor("int8", scale, 5, shape=(5, 3))
    stds = (std, 2 * std, 3 * std)
    fused = quantiser(spec, (5, 3), mean.tolist(), stds)(real)
    before = reference(spec, (real.astype(np.float64) - mean.astype(np.float64)) / stds)
    assert np.abs(fused - before).max() <= 1


@given(arrays(np.int8, (1, 6)), st.floats(2**-10, 2**6, width=32), st.integers(-128, 127))
def test_what_was_quantised_comes_back(stored: NDArray, scale: float, zero_point: int) -> None:
    spec = tensor("int8", scale, zero_point, shape=(1, 6))
    real = dequantise(spec, stored)
    assert real.dtype == np.float32
    assert np.allclose(real, scale * (stored.astype(np.float64) - zero_point), rtol=1e-6, atol=0)
    assert np.array_equal(quantiser(spec, (1, 6))(real), stored)


def test_what_has_no_scale_is_real_as_it_is() -> None:
    assert dequantise(tensor("int32", zero_point=9), np.array([1, -2], dtype=np.int32)).tolist() == [1.0, -2.0]
    assert dequantise(tensor("float32"), np.array([0.5], dtype=np.float32)).tolist() == [0.5]


PIXELS = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize(
    ("dtype", "table"),
    [
        ("uint8", PIXELS),
        ("int8", PIXELS.view(np.int8)),
        ("int8", (PIXELS ^ 0x80).view(np.int8)),
        ("uint8", PIXELS[::-1].copy()),
        ("int8", (PIXELS // 2).astype(np.int8)),
    ],
)
def test_pixels_are_looked_up(dtype: str, table: NDArray) -> None:
    pixels = np.array([[0, 1, 127], [128, 254, 255]], dtype=np.uint8)
    stored = lookup(tensor(dtype, 1.0, shape=(1, 2, 3)), table)(pixels)
    assert stored.dtype == dtype
    assert stored.tolist() == table[pixels][None].tolist()


PICTURE_OF_ALL_PIXELS = np.tile(PIXELS, 80).reshape(1, 160, 128)


@given(
    st.integers(0, 255),
    st.lists(st.tuples(st.integers(1, 255), st.integers(0, 255) | st.sampled_from([1, 255])), max_size=MAX_STEPS + 1),
    st.sampled_from(["uint8", "int8"]),
)
def test_a_table_of_steps_is_a_lookup(first: int, steps: list[tuple[int, int]], dtype: str) -> None:
    table = PIXELS + np.uint8(first)
    for place, change in steps:
        table[place:] += np.uint8(change)
    look_up = lookup(tensor(dtype, 1.0, shape=(1, 20_480)), table.view(dtype))
    assert np.array_equal(look_up(PICTURE_OF_ALL_PIXELS).view(np.uint8), table[PICTURE_OF_ALL_PIXELS].reshape(1, -1))


def test_a_picture_keeps_its_pixels_and_leaves_no_trace_in_the_next() -> None:
    table = PIXELS + (PIXELS > 63).astype(np.uint8) + (PIXELS > 191).astype(np.uint8)
    look_up = lookup(tensor("uint8", 1.0, shape=(1, 160, 128)), table)
    dark, bright = np.zeros((1, 160, 128), np.uint8), np.full((1, 160, 128), 192, np.uint8)
    first = look_up(bright)
    assert (int(first.min()), int(first.max()), int(bright.max())) == (194, 194, 192)
    second = look_up(dark)
    assert second is first  # a buffer that is used again
    assert int(second.max()) == 0


def test_at_rest_a_tensor_holds_real_zero() -> None:
    assert at_rest(tensor("int8", 0.1, -5, shape=(1, 2))).tolist() == [[-5, -5]]
    assert at_rest(tensor("float32", shape=(2,))).tolist() == [0.0, 0.0]
    assert dequantise(tensor("uint8", 0.1, 77), at_rest(tensor("uint8", 0.1, 77))).tolist() == [0.0] * 4


QUANTISED = tensor("int8", 0.1, shape=(1, 3))
FLOAT = tensor("float32", shape=(1, 3))
PICTURE = tensor("int8", 0.1, shape=(1, 2, 2))
GOLDEN = Golden(steps=2.0, absolute=0.125)


@pytest.mark.parametrize(
    ("spec", "got", "expected", "words"),
    [
        (QUANTISED, [[1, 2, 3]], [[1, 2, 3]], ""),
        (QUANTISED, [[1, 2, 5]], [[1, 2, 3]], ""),
        (QUANTISED, [[-128, 0, 127]], [[127, 0, -128]], "is off by 255 steps, and 2 are allowed"),
        (QUANTISED, [[1, 2, 6]], [[1, 2, 3]], "is off by 3 steps, and 2 are allowed"),
        (QUANTISED, [[3, 2, 2]], [[1, 2, 3]], "decides for element 0, not 2"),
        (QUANTISED, [[4, 5, 1]], [[5, 5, 1]], ""),
        (QUANTISED, [[0, 0, 0]], [[1, 2, 9]], "is all zeros, as if the runtime had written no result"),
        (QUANTISED, [[4, 4, 4]], [[1, 2, 9]], "has the same value everywhere (4)"),
        (FLOAT, [[0.5, 0.25, 1.0]], [[0.5, 0.375, 1.0]], ""),
        (FLOAT, [[0.5, 0.25, 1.0]], [[0.5, 0.5, 1.0]], "is off by 0.25 absolute, and 0.125 are allowed"),
        (FLOAT, [[0.5, np.nan, 1.0]], [[0.5, 0.5, 1.0]], "has NaN or infinities"),
        (PICTURE, [[[1, 2], [3, 4]]], [[[2, 1], [4, 3]]], ""),
        (QUANTISED, [1, 2, 3], [[1, 2, 3]], "has the shape [3], not [1, 3]"),
    ],
)
def test_how_an_output_differs_from_the_golden_one(
    spec: TensorSpec, got: list[Any], expected: list[Any], words: str
) -> None:
    told = disagreement(
        spec, np.array(got, dtype=spec.dtype), np.array(expected, dtype=spec.dtype), GOLDEN, decides=spec is not PICTURE
    )
    assert told == (words and f"the output 't' {words}")


def test_the_difference_is_that_of_the_worst_element() -> None:
    got, expected = np.array([[-128, 3]], dtype=np.int8), np.array([[127, 1]], dtype=np.int8)
    assert difference(got, expected) == 255.0
