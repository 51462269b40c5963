import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edged.core.errors import BundleError, ModelError
from edged.core.manifest_outcomes import ReadTensor, check_tensor
from edged.core.raw_tensor import TensorRule
from edged.core.types import Tensor, TensorSpec

BYTES = TensorSpec(name="out", shape=(1, 2, 2), dtype="int8", scale=0.5, zero_point=10)
FLOATS = TensorSpec(name="out", shape=(1, 2), dtype="float32")
STORED = np.array([[[10, 12], [8, -10]]], np.int8)


def test_stored_values_become_real() -> None:
    found = TensorRule(ReadTensor(), (BYTES,))([STORED], None, 0.0, None)
    assert found == Tensor("float32", (1, 2, 2), [0.0, 1.0, -1.0, -10.0])


def test_stored_values_are_told_as_stored() -> None:
    found = TensorRule(ReadTensor(values="stored"), (BYTES,))([STORED], None, 0.0, None)
    assert found == Tensor("int8", (1, 2, 2), [10, 12, 8, -10])


@pytest.mark.parametrize("dtype", ["bool", "int64", "float16", "float32", "float64"])
def test_values_without_a_scale_keep_their_type(dtype: str) -> None:
    spec = TensorSpec(name="out", shape=(2,), dtype=dtype)
    found = TensorRule(ReadTensor(), (spec,))([np.array([1, 0], dtype)], None, 0.0, None)
    assert found == Tensor(dtype, (2,), [1, 0])


def test_what_is_not_finite_is_an_error() -> None:
    with pytest.raises(ModelError, match="infinite"):
        TensorRule(ReadTensor(), (FLOATS,))([np.array([[0, np.inf]], np.float32)], None, 0.0, None)


@given(arrays(np.int8, (1, 2, 2)))
def test_the_values_are_the_whole_tensor(stored: NDArray[np.int8]) -> None:
    found = TensorRule(ReadTensor(values="stored"), (BYTES,))([stored], None, 0.0, None)
    assert np.array_equal(np.array(found.values, found.dtype).reshape(found.shape), stored)


def test_too_big_a_tensor_is_refused() -> None:
    with pytest.raises(BundleError, match="has 100001 values, and 100000 are allowed"):
        check_tensor(ReadTensor(), (TensorSpec(name="out", shape=(100_001,), dtype="int8"),))
    with pytest.raises(BundleError, match="no output 1 exists"):
        check_tensor(ReadTensor(output=1), (FLOATS,))
