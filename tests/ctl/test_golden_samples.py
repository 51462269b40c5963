"""Golden samples: their number, and random samples."""

import io

import numpy as np
import pytest

from edged.api import TensorSpec
from edged.backends.fake import FakeRunner
from edged.ctl.golden_samples import npz, random_samples


def samples(*inputs):
    """Return random samples for a model with these inputs, with the largest first element of the first input."""
    output = TensorSpec(name="y", shape=(1,), dtype="float32")
    runner = FakeRunner(inputs, (output,), lambda arrays: [arrays[0].reshape(-1)[:1].astype(np.float32)])
    return np.load(io.BytesIO(npz(random_samples(runner))))


@pytest.mark.parametrize(("side", "count"), [(64, 16), (180, 8), (256, 3), (1000, 2)])
def test_large_samples_are_few_as_they_travel_with_the_model(side, count):
    picture = TensorSpec(name="x", shape=(1, side, side), dtype="uint8", scale=0.1)
    assert samples(picture)["input_0"].shape == (count, 1, side, side)


def test_random_samples_are_the_same_each_time():
    numbers = TensorSpec(name="x", shape=(1, 8), dtype="float32")
    assert np.array_equal(samples(numbers)["input_0"], samples(numbers)["input_0"])
    assert len(np.unique(samples(numbers)["input_0"])) == 16 * 8


def test_random_samples_use_the_whole_range_of_what_is_quantised():
    stored = samples(TensorSpec(name="x", shape=(1, 500), dtype="int8", scale=0.1))["input_0"]
    assert (stored.min(), stored.max(), stored.dtype) == (-128, 127, np.int8)


def test_other_integers_stay_small_as_they_may_be_indices():
    stored = samples(TensorSpec(name="x", shape=(1, 50), dtype="int32"))["input_0"]
    assert set(stored.ravel().tolist()) == {0, 1}


def test_of_a_model_that_decides_those_are_taken_that_it_is_surest_of():
    """Of nearly equal scores another processor may well take the other for the greatest."""
    numbers = TensorSpec(name="x", shape=(1, 3), dtype="float32")
    runner = FakeRunner((numbers,), (numbers,), lambda arrays: [arrays[0]])
    by_chance = np.sort(np.load(io.BytesIO(npz(random_samples(runner))))["output_0"].reshape(16, 3))
    surest = np.sort(np.load(io.BytesIO(npz(random_samples(runner, 0))))["output_0"].reshape(16, 3))
    assert (by_chance[:, 2] - by_chance[:, 1]).min() < 0.25 < 1.0 < (surest[:, 2] - surest[:, 1]).min()
