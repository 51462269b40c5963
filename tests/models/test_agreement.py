"""Comparison of an accelerated model with its twin, on golden samples or on noise."""

import numpy as np
import pytest

from edged.api import BundleError, ModelError, TensorSpec
from edged.backends.fake import FakeRunner
from edged.backends.tflite import TfliteBackend
from edged.models.agreement import SAMPLES, agreement
from edged.models.bundle import open_folder
from edged.models.selftest import Proof
from tests.bundles import write_bundle
from tests.models.test_selftest import OUTPUTS, X, Y, bundle, computes


def answers(output):
    """Return a runner with a constant output."""
    return FakeRunner((X,), (Y,), lambda inputs: [np.asarray(output, np.float32).reshape(1, 3)])


def test_a_model_agrees_with_itself(tmp_path):
    folder = bundle(tmp_path)
    twin = TfliteBackend().load(folder.model)
    assert agreement(folder, twin).prove(computes()) == Proof(samples=3, worst=0.0)


def test_it_is_the_twin_that_counts_and_not_what_the_golden_samples_expect(tmp_path):
    other = computes(0.6)
    assert agreement(bundle(tmp_path), other).prove(computes(0.6)).worst == 0.0


def test_without_golden_samples_noise_tells_the_difference(tmp_path):
    folder = open_folder(write_bundle(tmp_path))
    agreed = agreement(folder, computes())
    assert agreed.prove(computes()).samples == SAMPLES
    with pytest.raises(ModelError, match="disagrees with the CPU on sample 0"):
        agreed.prove(computes(0.6))


def test_what_is_decided_of_noise_means_nothing(tmp_path):
    nearly = agreement(open_folder(write_bundle(tmp_path)), answers([0.5, 0.4996, 0]))
    assert nearly.prove(answers([0.4996, 0.5, 0])).worst == pytest.approx(4e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("runner", "named"),
    [
        (answers([0, 0, 0]), "zero"),
        (answers([np.nan, 1, 2]), "NaN"),
        (answers([5, 5, 5]), "same"),
        (computes(0.6), "the output 'y'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, runner, named):
    with pytest.raises(ModelError, match=f"colours 1.0 on cpu disagrees .*{named}"):
        agreement(bundle(tmp_path), computes()).prove(runner)


def test_other_tensors_are_no_twin(tmp_path):
    wide = TensorSpec(name="y", shape=(1, 9), dtype="float32")
    with pytest.raises(BundleError, match="output 0"):
        agreement(bundle(tmp_path), computes()).prove(FakeRunner((X,), (wide,), lambda inputs: []))


def test_a_check_takes_one_sample_from_rest_and_leaves_at_rest(tmp_path):
    agreed = agreement(bundle(tmp_path), computes())
    runner = computes(fail_on=[2])
    agreed.check(runner)
    assert (runner.runs, runner.resets) == (1, 2)


def test_a_comparison_goes_on_where_a_proof_ends(tmp_path):
    found = list(agreement(bundle(tmp_path), computes()).compare(computes(0.6)))
    assert len(found) == len(OUTPUTS)
    assert [bool(each.problem) for each in found] == [True, False, True]
    assert found[1].worst == 0.0


@pytest.mark.parametrize(
    ("output", "same"),
    [([2, 1.5, 1], True), ([1, 1.5, 2], False), ([np.nan, 1.5, 1], False)],
)
def test_a_comparison_says_whether_the_same_is_decided(tmp_path, output, same):
    first = next(iter(agreement(bundle(tmp_path), answers([2, 1.5, 1])).compare(answers(output))))
    assert first.same is same


def test_what_decides_nothing_decides_neither_the_same_nor_otherwise(tmp_path):
    regression = {"kind": "regression", "names": ["a", "b", "c"]}
    folder = open_folder(write_bundle(tmp_path, labels=None, postprocess=regression))
    first = next(iter(agreement(folder, answers([1, 2, 3])).compare(answers([3, 2, 1]))))
    assert (first.same, first.worst) == (None, 2.0)


def test_where_there_is_nan_the_worst_is_nan_whatever_the_rest_is(tmp_path):
    first = next(iter(agreement(bundle(tmp_path), answers([1, 2, 3])).compare(answers([np.nan, 2, 9]))))
    assert np.isnan(first.worst)


def test_times_are_of_so_many_runs_or_of_those_there_is_time_for(tmp_path):
    agreed, runner = agreement(bundle(tmp_path), computes()), computes()
    assert len(agreed.times(runner, 5)) == 5
    assert agreed.times(runner, 5, within=-1.0) == []


def test_large_samples_are_fewer_but_one_is_kept(tmp_path):
    channels = [{"name": f"c{index}"} for index in range(4)]
    big = {"name": "x", "shape": [1, 500_000, 4], "dtype": "float32"}
    folder = write_bundle(
        tmp_path,
        window={"length": 500_000, "hop": 1, "channels": channels},
        inputs=[{"tensor": big}],
    )
    spec = TensorSpec(name="x", shape=(1, 500_000, 4), dtype="float32")
    twin = FakeRunner((spec,), (Y,), lambda inputs: [inputs[0][:, 0, :3]])
    assert agreement(open_folder(folder), twin).prove(twin).samples == 1
