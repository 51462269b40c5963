import io
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edged.api import BundleError, ModelError, TensorSpec
from edged.backends.fake import FakeRunner
from edged.backends.tflite import TfliteBackend
from edged.models.bundle import Bundle, open_folder
from edged.models.selftest import Proof, SelfTest, check_tensors, prove
from tests.bundles import write_bundle

X = TensorSpec(name="x", shape=(1, 4), dtype="float32")
Y = TensorSpec(name="y", shape=(1, 3), dtype="float32")
INPUTS = np.array([[[1, 2, 3, 4]], [[0, 0, 0, 0]], [[-1, 1, 2, 3]]], np.float32)
OUTPUTS = INPUTS[:, :, :3] / 2 + 1


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def bundle(folder: Path, golden: bytes | None = None, **parts: Any) -> Bundle:
    content = npz(input_0=INPUTS, output_0=OUTPUTS) if golden is None else golden
    return open_folder(write_bundle(folder, files={"golden.npz": content}, golden={}, **parts))


def computes(factor: float = 0.5, **options: Any) -> FakeRunner:
    return FakeRunner((X,), (Y,), lambda inputs: [inputs[0][:, :3] * np.float32(factor) + 1], **options)


def test_a_real_model_proves_itself(tmp_path):
    proved = bundle(tmp_path)
    runner = TfliteBackend().load(proved.model)
    proof = prove(proved, runner)
    assert proof.samples == 3
    assert proof.worst < 1e-5


def test_a_model_with_no_golden_samples_proves_its_tensors_only(tmp_path):
    assert prove(open_folder(write_bundle(tmp_path)), computes()) == Proof(samples=0, worst=0.0)


def test_the_worst_difference_is_told(tmp_path):
    proof = prove(bundle(tmp_path, golden=None), computes(0.5002))
    assert proof.worst == pytest.approx(0.0006, rel=0.01)


def test_a_model_that_computes_something_else_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"colours 1\.0 fails its self-test on fake: golden sample 0: the output 'y'"):
        prove(bundle(tmp_path), computes(0.6))


def test_the_golden_samples_are_read_once_and_each_runner_is_proven(tmp_path):
    proved = bundle(tmp_path)
    test = SelfTest(proved)
    assert test.prove(computes()) == Proof(samples=3, worst=0.0)
    (proved.folder / "golden.npz").unlink()
    assert test.prove(computes()) == Proof(samples=3, worst=0.0)
    with pytest.raises(ModelError, match="golden sample 0"):
        test.prove(computes(0.6))


def test_a_model_that_fails_is_refused(tmp_path):
    with pytest.raises(ModelError, match="run 2 failed"):
        prove(bundle(tmp_path), computes(fail_on=[2]))


def test_a_stateful_model_starts_from_rest_and_is_left_at_rest(tmp_path):
    manifest = {
        "model": "stateful.tflite",
        "window": {"length": 1, "hop": 1, "channels": [{"name": "a"}]},
        "inputs": [{"tensor": {"name": "x", "shape": [1, 1], "dtype": "float32"}}],
        "outputs": [{"name": "total", "shape": [1, 1], "dtype": "float32"}],
        "labels": None,
        "postprocess": {"kind": "regression", "names": ["total"]},
    }
    golden = npz(input_0=np.ones((3, 1, 1), np.float32), output_0=np.array([1, 2, 3], np.float32).reshape(3, 1, 1))
    model = manifest.pop("model")
    folder = write_bundle(tmp_path, model=model, files={"golden.npz": golden}, golden={}, **manifest)
    proved = open_folder(folder)
    runner = TfliteBackend().load(proved.model)
    one = [np.ones((1, 1), np.float32)]
    runner.run(one)
    assert prove(proved, runner).samples == 3
    assert runner.run(one)[0].item() == 1


# Tensors


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        ((X, X), (Y,), "the manifest says 1 inputs, the model 2"),
        ((X,), (), "the manifest says 1 outputs, the model 0"),
        ((replace(X, shape=(1, 5)),), (Y,), r"input 0 is float32 \[1, 4\], the model float32 \[1, 5\]"),
        ((X,), (replace(Y, dtype="int8"),), r"output 0 is float32 \[1, 3\], the model int8 \[1, 3\]"),
        (
            (X,),
            (replace(Y, scale=0.5, zero_point=3),),
            r"output 0 is float32 \[1, 3\], the model float32 \[1, 3\] \(scale 0.5, zero point 3\)",
        ),
    ],
)
def test_tensors_that_are_not_the_manifest_s_are_refused_with_both_sides(tmp_path, inputs, outputs, reason):
    manifest = open_folder(write_bundle(tmp_path)).manifest
    with pytest.raises(BundleError, match=reason):
        check_tensors(manifest, FakeRunner(inputs, outputs, list))


def test_names_may_differ_and_scales_by_a_rounding(tmp_path):
    manifest = open_folder(write_bundle(tmp_path)).manifest
    quantised = replace(Y, dtype="int8", scale=0.1)
    manifest = replace(manifest, outputs=(quantised,))
    same = replace(quantised, name="other", scale=float(np.float32(0.1)))
    check_tensors(manifest, FakeRunner((replace(X, name="z"),), (same,), list))
    with pytest.raises(BundleError, match="zero point 0"):
        check_tensors(manifest, FakeRunner((X,), (replace(quantised, scale=0.1001),), list))


# Golden samples


def with_header(shape: str, data: bytes = b"") -> bytes:
    """Return an archive with this shape in the header of the input."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    file = io.BytesIO(npz(output_0=OUTPUTS))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(
            "input_0.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data
        )
    return file.getvalue()


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("golden", "reason"),
    [
        pytest.param(b"PK", "cannot be read", id="no archive"),
        pytest.param(npz(input_0=INPUTS), "cannot be read: .*output_0", id="an array is missing"),
        pytest.param(npz(input_0=INPUTS, output_0=OUTPUTS, output_1=OUTPUTS), "output_1.npy, which is no", id="extra"),
        pytest.param(npz(input_0=INPUTS[:2], output_0=OUTPUTS), "differ in their number", id="fewer inputs"),
        pytest.param(npz(input_0=INPUTS[:0], output_0=OUTPUTS[:0]), "holds 0 samples", id="no samples"),
        pytest.param(
            npz(input_0=INPUTS[:, :, :3], output_0=OUTPUTS), r"input_0 holds float32 \[1, 3\], and the", id="shape"
        ),
        pytest.param(npz(input_0=INPUTS.astype(np.float64), output_0=OUTPUTS), "input_0 holds float64", id="dtype"),
        pytest.param(npz(input_0=np.float32(1), output_0=OUTPUTS), "input_0 holds float32", id="no dimension"),
        pytest.param(with_header("(1000000000, 1, 4)"), "holds 1000000000 samples", id="huge by its header"),
        pytest.param(with_header("(3, 1, 4)", b"short"), "not the size its header says", id="shorter than its header"),
        pytest.param(with_header("(-1, 1, 4)"), "samples|cannot be read", id="negative"),
        pytest.param(
            npz(input_0=np.array([[Evil()] * 3], dtype=object), output_0=OUTPUTS), "input_0 holds object", id="pickled"
        ),
        pytest.param(pickle.dumps(Evil()), "cannot be read", id="a pickle"),
    ],
)
def test_golden_samples_that_are_not_sound_are_refused(tmp_path, capsys, golden, reason):
    with pytest.raises(BundleError, match=reason):
        prove(bundle(tmp_path, golden), computes())
    assert capsys.readouterr().out == ""


GOLDEN = npz(input_0=INPUTS, output_0=OUTPUTS)


@given(position=st.integers(0, len(GOLDEN) - 1), byte=st.integers(0, 255))
def test_golden_samples_with_a_byte_changed_prove_or_are_refused(tmp_path_factory, position, byte):
    folder = tmp_path_factory.mktemp("golden")
    damaged = GOLDEN[:position] + bytes([byte]) + GOLDEN[position + 1 :]
    with suppress(BundleError, ModelError):
        prove(bundle(folder, damaged), computes())
