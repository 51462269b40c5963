"""`edgectl pack`: from a model or a folder to a bundle accepted by a board."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edged.api import StoreError
from edged.core.anchors import generate, layers
from edged.core.manifest import Classify, Normalise, NoStep, Variant
from edged.ctl.bundle_file import save
from edged.ctl.main import main
from edged.models.bundle import examine, open_folder, unpack
from edged.models.store import FACTORY
from tests.bundles import DATA, write_bundle
from tests.containers import PlainDisk
from tests.real_models import real_model

RECORDING = Path(__file__).parents[2] / "demo" / "recording.csv"
MOTION = FACTORY / "motion" / "1.0.0"


@pytest.fixture
def pack(tmp_path, capsys, monkeypatch):
    """Return a function that packs, and returns the opened bundle or the error."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")

    def run(*args, code=0):
        out = tmp_path / "out.edgm"
        out.unlink(missing_ok=True)
        assert main(["pack", *map(str, args), "-o", str(out)]) == code, capsys.readouterr().err
        complaints = capsys.readouterr().err
        if code:
            assert not out.exists()
            return complaints
        shutil.rmtree(tmp_path / "unpacked", ignore_errors=True)
        unpack(io.BytesIO(out.read_bytes()), tmp_path / "unpacked", PlainDisk())
        return open_folder(tmp_path / "unpacked")

    return run


def part(tmp_path, **fields):
    file = tmp_path / "part.json"
    file.write_text(json.dumps(fields))
    return file


def golden(bundle):
    with np.load(bundle.file("golden.npz")) as arrays:
        return dict(arrays)


# The date


@pytest.mark.parametrize(
    ("epoch", "synchronised", "said"),
    [
        ("2040000000", True, "2034-08-24, is in the future: boards with the right time refuse the bundle"),
        ("", False, "is not synchronised: boards refuse dates more than a day ahead"),
        ("", True, ""),
        ("1700000000", False, ""),
    ],
)
def test_a_clock_that_may_be_wrong_is_told(tmp_path, capsys, monkeypatch, epoch, synchronised, said):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    monkeypatch.setattr("edged.ctl.pack.kernel_synchronised", lambda: synchronised)
    assert main(["pack", str(DATA / "metadata.tflite"), "--version", "1", "-o", str(tmp_path / "out.edgm")]) == 0
    told = capsys.readouterr().err
    assert said in told
    assert bool(said) == ("boards" in told)


# Reference statistics


def test_reference_statistics_are_those_of_the_recording(pack, tmp_path, capsys):
    said = {**json.loads((MOTION / "manifest.json").read_bytes()), "probation": {"max_label_shift": 0.2}}
    manifest = part(tmp_path, **{key: said[key] for key in said if key not in ("files", "golden", "schema")})
    options = ("--manifest", manifest, "--version", "1.1", "--golden", RECORDING, "--reference", RECORDING)
    found = pack(MOTION / "model.tflite", *options).manifest
    samples = np.loadtxt(RECORDING, delimiter=",", skiprows=1, usecols=range(1, 7))
    assert found.reference.min == pytest.approx(samples.min(axis=0), rel=0.5)
    assert found.reference.windows > 10
    assert sum(found.reference.shares.values()) == pytest.approx(1.0, abs=1e-4)
    assert found.probation.max_label_shift == 0.2
    assert main(["inspect", str(tmp_path / "out.edgm")]) == 0
    output = capsys.readouterr().out
    assert f"reference     {found.reference.windows} windows\n              ax: " in output
    assert "walking: " in output


# A folder


def test_a_factory_model_is_packed_as_it_is(pack):
    bundle = pack(MOTION)
    packed, factory = bundle.manifest, open_folder(MOTION).manifest
    assert (packed.name, packed.labels, packed.golden) == (factory.name, factory.labels, factory.golden)
    for name, file in factory.files.items():
        assert (packed.files[name].bytes, packed.files[name].sha256) == (file.bytes, file.sha256)
        assert bundle.file(name).read_bytes() == (MOTION / name).read_bytes()


def test_packing_again_gives_the_same_bundle(pack, tmp_path):
    pack(MOTION)
    first = (tmp_path / "out.edgm").read_bytes()
    pack(tmp_path / "unpacked")
    assert (tmp_path / "out.edgm").read_bytes() == first


def test_a_signed_folder_stays_signed(pack, tmp_path):
    pack(MOTION)
    shutil.copytree(tmp_path / "unpacked", tmp_path / "signed")
    (tmp_path / "signed" / "manifest.json.sig").write_text("signed by Alice")
    pack(tmp_path / "signed")
    assert examine(tmp_path / "out.edgm").signatures == b"signed by Alice"


def test_a_folder_speaks_for_itself(pack, tmp_path):
    complaint = pack(MOTION, "--name", "walk", "--rate", "20", code=4)
    assert "is complete: --name, --rate cannot be given" in complaint


def test_a_delta_is_written_where_it_is_worth_it(pack, tmp_path):
    pack(MOTION, "--delta-from", MOTION)
    assert (tmp_path / "out.edgd").stat().st_size < (tmp_path / "out.edgm").stat().st_size / 2


def test_no_delta_is_written_where_it_is_not(pack, tmp_path):
    pack(MOTION, "--delta-from", MOTION.parents[1] / "digits" / "1.0.0")
    assert not (tmp_path / "out.edgd").exists()


def test_a_model_that_fails_its_own_samples_is_not_packed(pack, tmp_path):
    wrong = io.BytesIO()
    np.savez(wrong, input_0=np.ones((1, 1, 4), np.float32), output_0=np.zeros((1, 1, 3), np.float32))
    folder = write_bundle(tmp_path / "wrong", files={"golden.npz": wrong.getvalue()}, golden={})
    assert "fails its self-test" in pack(folder, code=4)


# A model file


def test_a_model_with_metadata_needs_little_said(pack):
    bundle = pack(DATA / "metadata.tflite", "--version", "1.2", "--name", "colours")
    manifest = bundle.manifest
    assert (manifest.name, manifest.version, manifest.created) == ("colours", "1.2", 1_700_000_000)
    assert manifest.labels == ("red", "green", "blue")
    assert manifest.preprocess == (Normalise(mean=(2.0,), std=(4.0,)),)
    assert sorted(manifest.files) == ["golden.npz", "model.tflite"]
    assert manifest.files["model.tflite"].chunks == (manifest.files["model.tflite"].sha256,)


def test_labels_a_card_and_channels(pack, tmp_path):
    (tmp_path / "labels.txt").write_text("rot\ngrün\n\nblau \n", encoding="utf-8")
    (tmp_path / "about.md").write_text("# Colours")
    bundle = pack(
        *(DATA / "float.tflite", "--version", "1", "--labels", tmp_path / "labels.txt"),
        *("--card", tmp_path / "about.md", "--channels", "warm, cold", "--rate", "5", "--hop", "1"),
    )
    window = bundle.manifest.window
    assert bundle.manifest.labels == ("rot", "grün", "blau")
    assert [channel.name for channel in window.channels] == ["warm", "cold"]
    assert (window.length, window.hop, window.rate) == (2, 1, 5.0)
    assert bundle.file("CARD.md").read_text() == "# Colours"


def test_golden_samples_of_a_recording(pack):
    """Packed from the manifest of the version before, as after training again."""
    bundle = pack(
        *(MOTION / "model.tflite", "--manifest", MOTION / "manifest.json", "--version", "1.1", "--golden", RECORDING)
    )
    manifest = bundle.manifest
    assert (manifest.name, manifest.version, manifest.window.hop) == ("motion", "1.1", 10)
    assert manifest.postprocess == open_folder(MOTION).manifest.postprocess
    arrays = golden(bundle)
    assert (arrays["input_0"].shape, arrays["output_0"].shape) == ((16, 1, 40, 6), (16, 1, 4))
    assert len(set(arrays["output_0"].argmax(-1).ravel())) == 4  # spread over all four activities


COLOURS = DATA / "colours.txt"
COLOURS_OF_A_AND_B = (
    *(DATA / "float.tflite", "--version", "1", "--channels", "a,b"),
    *("--labels", COLOURS),
)


def test_golden_samples_of_windows(pack, tmp_path):
    np.save(tmp_path / "windows.npy", np.arange(3 * 2 * 2, dtype=np.float32).reshape(3, 2, 2))
    bundle = pack(*COLOURS_OF_A_AND_B, "--golden", tmp_path / "windows.npy")
    arrays = golden(bundle)
    assert arrays["input_0"].reshape(3, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert arrays["output_0"].reshape(3, 3) == pytest.approx(arrays["input_0"].reshape(3, 4)[:, :3] / 2 + 1)


def test_a_recording_in_an_array(pack, tmp_path):
    np.save(tmp_path / "samples.npy", np.arange(5 * 2, dtype=np.float32).reshape(5, 2))
    bundle = pack(*COLOURS_OF_A_AND_B, "--golden", tmp_path / "samples.npy")
    assert golden(bundle)["input_0"].reshape(2, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_random_samples_are_said_to_prove_less(tmp_path, capsys):
    line = ["pack", str(DATA / "metadata.tflite"), "--version", "1", "-o", str(tmp_path / "out.edgm"), "--json"]
    assert main(line) == 0
    said = capsys.readouterr()
    assert "without --golden the samples are random, a weaker proof" in said.err
    packed = json.loads(said.out)
    assert packed["digest"] == examine(tmp_path / "out.edgm").digest
    assert (packed["bytes"], packed["proof"]["samples"]) == ((tmp_path / "out.edgm").stat().st_size, 16)


def test_a_manifest_for_a_model_that_does_not_speak_for_itself(pack, tmp_path):
    manifest = part(
        tmp_path,
        window={"length": 3, "hop": 3, "channels": [{"name": "p", "unit": "Pa"}, {"name": "q"}]},
        inputs=[{"channels": ["p"]}, {"channels": ["q"]}],
        postprocess={"kind": "regression", "names": ["x", "y", "z"], "output": 1},
        golden={"absolute": 0.01},
        limits={"latency_p99": 0.1},
    )
    bundle = pack(DATA / "two_by_two.tflite", "--version", "3", "--manifest", manifest)
    packed = bundle.manifest
    assert [each.channels for each in packed.inputs] == [("p",), ("q",)]
    assert [each.tensor.shape for each in packed.inputs] == [(1, 3), (1, 3)]
    assert (packed.labels, packed.limits.latency_p99) == ((), 0.1)
    assert packed.golden is not None
    assert packed.golden.absolute == 0.01


def test_a_stateful_model_proves_itself_in_order(pack, tmp_path):
    manifest = part(tmp_path, postprocess={"kind": "regression", "names": ["sum"]})
    bundle = pack(DATA / "stateful.tflite", "--version", "1", "--channels", "x", "--manifest", manifest)
    arrays = golden(bundle)
    assert arrays["output_0"].ravel() == pytest.approx(np.cumsum(arrays["input_0"].ravel()), abs=1e-5)


def test_options_win_over_the_manifest_and_that_over_the_file(pack, tmp_path):
    manifest = part(
        tmp_path,
        version="7",
        postprocess={"kind": "classification", "decision": {"threshold": 0.9}},
        preprocess=[{"step": "clip", "low": 0, "high": 1}],
    )
    packed = pack(DATA / "metadata.tflite", "--version", "8", "--manifest", manifest).manifest
    assert packed.version == "8"
    assert isinstance(packed.postprocess, Classify)
    assert packed.postprocess.decision.threshold == 0.9
    assert packed.labels == ("red", "green", "blue")
    assert len(packed.preprocess) == 1


# The worth of golden samples


def test_the_tolerance_is_what_the_runtimes_own_kernels_differ_by(pack, tmp_path, capsys):
    """Two steps were too tight for this model on boards without XNNPACK."""
    pictures = np.stack([picture(name, 32) for name in ("cat.bmp", "parrot.jpg", "hot_dog.jpg")])
    np.save(tmp_path / "windows.npy", pictures[:, None])
    line = ["pack", real_model("mlperf_tiny_resnet_cifar10_int8.tflite"), "--version", "1"]
    assert main([*map(str, [*line, "--golden", tmp_path / "windows.npy", "-o", tmp_path / "x.edgm"])]) == 0
    golden = examine(tmp_path / "x.edgm").manifest.golden
    assert golden is not None
    assert 5 < golden.steps < 100
    said = capsys.readouterr().err
    assert "(XNNPACK, built-in, reference) differ by up to " in said
    assert f"the outputs of a board may be off by {golden.steps:g} quantisation step" in said


def test_samples_on_which_the_kernels_are_far_apart_are_said_to_prove_little(tmp_path, capsys):
    """A pose of noise: without a person, the kernels find keypoints anywhere."""
    names = [f"v{index}" for index in range(51)]
    said = part(tmp_path, postprocess={"kind": "regression", "names": names})
    line = ["pack", real_model("movenet_single_pose_lightning_ptq.tflite"), "--version", "1", "--manifest", said]
    assert main([*map(str, [*line, "-o", tmp_path / "x.edgm"])]) == 0
    assert "and proves little" in capsys.readouterr().err


def test_a_model_that_all_kernels_compute_alike_is_held_more_tightly(pack):
    golden = pack(DATA / "metadata.tflite", "--version", "1").manifest.golden
    assert 1e-6 <= golden.absolute <= 1e-3


@pytest.mark.parametrize(("stated", "taken"), [(0.5, 0.5), (1e-9, None)])
def test_a_tolerance_that_is_stated_is_kept_unless_the_kernels_need_more(pack, tmp_path, stated, taken):
    manifest = part(tmp_path, golden={"absolute": stated})
    golden = pack(DATA / "metadata.tflite", "--version", "1", "--manifest", manifest).manifest.golden
    assert golden.absolute == taken if taken else golden.absolute > stated


def test_a_folder_that_allows_less_than_the_kernels_need_is_told(tmp_path, capsys):
    inputs = np.full((1, 1, 4), 0.3, np.float32)
    outputs = np.array([[[1.15, 1.1501, 1.15]]], np.float32)
    golden = io.BytesIO()
    np.savez(golden, input_0=inputs, output_0=outputs)
    folder = write_bundle(tmp_path / "b", files={"golden.npz": golden.getvalue()}, golden={"absolute": 1e-5})
    assert main(["pack", str(folder), "-o", str(tmp_path / "x.edgm")]) == 4
    assert "and the manifest allows less: other boards may refuse the bundle" in capsys.readouterr().err


def test_values_that_the_model_cannot_store_are_refused_above_a_fifth(pack, tmp_path):
    """Pixels from 0 to 255 in a model for -1 to 1 are white pictures."""
    manifest = part(tmp_path, labels=["red", "green", "blue"], postprocess={"kind": "classification"})
    line = (DATA / "int8.tflite", "--version", "1", "--channels", "a,b,c,d", "--manifest", manifest, "--golden")
    np.save(tmp_path / "pixels.npy", np.full((5, 4), 100.0))
    complaint = pack(*line, tmp_path / "pixels.npy", code=4)
    assert "pixels.npy: 100% of the input values are clipped, beyond -0.9924 to 1, the range" in complaint
    assert '[{"step":"none"}] lets the pixels of a picture in as they are' in complaint
    np.save(tmp_path / "few.npy", [[100.0, 0.5, 0.25, 0.0], [0.5, 0.25, 0.0, 0.0]])
    pack(*line, tmp_path / "few.npy")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ([1000, 300, 256, 7], "75% of the values are beyond 0 to 255, and the model's windows are of uint8"),
        ([-1, -0.9, 0.25, 1], "50% of the values are beyond 0 to 255, and the model's windows are of uint8"),
        ([0, 0.5, 0.25, 1], "the values are fractions from -1 to 1, and the model's windows are of uint8"),
        ([0, 127.5, 255, 1], None),
        ([0, 1, 0, 1], None),
    ],
)
def test_a_recording_on_another_scale_than_windows_of_integers_is_refused(pack, tmp_path, values, complaint):
    window = {"length": 1, "hop": 1, "dtype": "uint8", "channels": [{"name": name} for name in "abcd"]}
    stated = {"labels": ["red", "green", "blue"], "postprocess": {"kind": "classification"}}
    manifest = part(tmp_path, window=window, preprocess=[{"step": "normalise", "mean": [0], "std": [300]}], **stated)
    np.save(tmp_path / "pixels.npy", [values] * 5)
    line = (DATA / "int8.tflite", "--version", "1", "--manifest", manifest, "--golden", tmp_path / "pixels.npy")
    if complaint is None:
        pack(*line)
    else:
        assert f"pixels.npy: {complaint}" in pack(*line, code=4)


EXPECTED = "red\n-\nblue\n"
WINDOWS = [[4, 0, 0, 0], [0, 0, 0, 0], [0, 0, 4, 0]]


@pytest.fixture
def held(pack, tmp_path):
    """Return a function that packs with these windows and their known labels."""

    def run(labels, code=0, **said):
        np.save(tmp_path / "windows.npy", np.array(WINDOWS, np.float32))
        (tmp_path / "expected.txt").write_text(labels)
        manifest = part(tmp_path, **({"preprocess": [{"step": "none"}]} | said))
        options = ("--manifest", manifest, "--expect", tmp_path / "expected.txt")
        return pack(
            DATA / "metadata.tflite", "--version", "1", "--golden", tmp_path / "windows.npy", *options, code=code
        )

    return run


def test_golden_samples_are_held_to_the_labels_that_they_are_known_to_have(held):
    assert golden(held(EXPECTED))["input_0"].reshape(2, 4).tolist() == [WINDOWS[0], WINDOWS[2]]
    complaint = held("blue\n-\nblue\n", code=4)
    assert "the model says 'red' (3.000) of window 0, and " in complaint
    assert "expected.txt, line 1, has 'blue'" in complaint


def test_a_wrong_path_to_the_model_does_not_prove_itself(held):
    turned = [{"step": "normalise", "mean": [2], "std": [-1e-3]}]
    assert "std" in held(EXPECTED, code=4, preprocess=turned)
    clipped = [{"step": "clip", "low": -1, "high": 0}]
    assert "the model says 'red' (1.000) of window 2" in held(EXPECTED, code=4, preprocess=clipped)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ("red\nblue\n", "expected.txt has 2 lines, and "),
        ("red\n-\nviolet\n", "expected.txt, line 3: the model has no label 'violet'"),
        ("-\n-\n-\n", "expected.txt has no labels"),
    ],
)
def test_labels_that_cannot_be_held(held, labels, complaint):
    assert complaint in held(labels, code=4)


def test_anomalies_are_held_too(pack, tmp_path):
    np.save(tmp_path / "windows.npy", np.array([[0.0], [9.0]], np.float32))
    said = {"kind": "anomaly", "score": "output", "decision": {"threshold": 5.0}}
    line = (DATA / "stateful.tflite", "--version", "1", "--channels", "x", "--golden", tmp_path / "windows.npy")
    for labels, code in (("normal\nanomaly\n", 0), ("normal\nnormal\n", 4)):
        (tmp_path / "expected.txt").write_text(labels)
        pack(*line, "--manifest", part(tmp_path, postprocess=said), "--expect", tmp_path / "expected.txt", code=code)


def test_labels_without_windows_or_of_a_regression(pack, tmp_path):
    (tmp_path / "expected.txt").write_text("red\n")
    options = ("--version", "1", "--expect", tmp_path / "expected.txt")
    assert "give --golden too" in pack(DATA / "metadata.tflite", *options, code=4)
    np.save(tmp_path / "windows.npy", np.zeros((1, 4), np.float32))
    manifest = part(tmp_path, postprocess={"kind": "regression", "names": ["a", "b", "c"]})
    complaint = pack(
        *(DATA / "metadata.tflite", *options, "--golden", tmp_path / "windows.npy", "--manifest", manifest), code=4
    )
    assert "results of the kind 'regression' have no labels to be held to" in complaint


def picture(name, side):
    with Image.open(real_model(f"images/{name}")) as opened:
        return np.asarray(opened.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))


def test_labels_that_are_there_twice_are_numbered_and_that_is_said(pack, tmp_path, capsys):
    """Two cranes, a bird and a machine: one had been lost in `scores`, and contradicted `score`."""
    out = str(tmp_path / "x.edgm")
    model = str(real_model("mobilenet_v2_1.0_224_quant.tflite"))
    assert main(["pack", model, "--version", "1", "-o", out]) == 0
    assert "labels that are not unique are numbered: 'crane' is 'crane (2)'" in capsys.readouterr().err
    (tmp_path / "labels.txt").write_text("red\nblue\nred\n")
    line = ["pack", str(DATA / "metadata.tflite"), "--version", "1", "--labels", str(tmp_path / "labels.txt")]
    assert main([*line, "-o", out]) == 0
    assert "labels that are not unique are numbered: 'red' is 'red (2)'" in capsys.readouterr().err
    assert examine(tmp_path / "x.edgm").manifest.labels == ("red", "blue", "red (2)")


@pytest.mark.parametrize("window", [None, {"length": 1, "hop": 1, "sample_shape": [128, 128, 3], "dtype": "uint8"}])
def test_pixels_go_in_as_they_are_whoever_describes_the_picture(pack, tmp_path, window):
    parrot = picture("parrot.jpg", 128)
    np.save(tmp_path / "windows.npy", parrot[None, None])
    (tmp_path / "expected.txt").write_text("macaw\n")
    said = ("--manifest", part(tmp_path, window=window)) if window else ()
    model = real_model("mobilenet_v1_0.25_128_quant.tflite")
    line = ("--version", "1", "--golden", tmp_path / "windows.npy", "--expect", tmp_path / "expected.txt")
    bundle = pack(model, *line, *said)
    assert bundle.manifest.preprocess == (NoStep(),)
    assert np.array_equal(golden(bundle)["input_0"][0, 0], parrot)


DETECTIONS = [f"score{index}" for index in range(10)]


@pytest.mark.parametrize(("name", "best"), [("cat.bmp", 0.719), ("grace_hopper.bmp", 0.711)])
def test_a_real_detector_sees_the_picture_that_it_is_shown(pack, tmp_path, name, best):
    """Quantised by the tensor's scale all pictures were white: 0.113, "proven on 2 samples"."""
    np.save(tmp_path / "windows.npy", picture(name, 300)[None, None])
    said = part(tmp_path, postprocess={"kind": "regression", "output": 2, "names": DETECTIONS})
    model = real_model("coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite")
    bundle = pack(model, "--version", "1", "--manifest", said, "--golden", tmp_path / "windows.npy")
    assert golden(bundle)["output_2"][0, 0, 0] == pytest.approx(best, abs=0.1)


def test_a_float_picture_whose_normalisation_nobody_states_is_not_packed(pack, tmp_path):
    window = {"length": 1, "hop": 1, "sample_shape": [32, 32, 3], "dtype": "uint8"}
    model = real_model("mlperf_tiny_resnet_cifar10_fp32.tflite")
    complaint = pack(model, "--version", "1", "--manifest", part(tmp_path, window=window), code=4)
    assert "the preprocessing of a picture of shape [32, 32, 3] for a float32 tensor is not stated" in complaint
    assert '{"preprocess":[{"step":"normalise","mean":["MEAN"],"std":["STD"]}]}' in complaint
    said = part(tmp_path, window=window, preprocess=[{"step": "none"}])
    assert pack(model, "--version", "1", "--manifest", said).manifest.preprocess == (NoStep(),)


# Open shapes


@pytest.mark.parametrize(
    "said",
    [
        {"window": {"length": 3, "hop": 3, "channels": [{"name": name} for name in "abcd"]}},
        {
            "window": {"length": 3, "hop": 3, "channels": [{"name": name} for name in "abcd"]},
            "inputs": [{"tensor": {"shape": [3, 4]}}],
        },
    ],
)
def test_open_axes_are_resized_to_what_the_manifest_states(pack, tmp_path, capsys, said):
    names = [f"y{index}" for index in range(9)]
    np.save(tmp_path / "samples.npy", np.arange(24, dtype=np.float32).reshape(6, 4))
    manifest = part(tmp_path, **said, postprocess={"kind": "regression", "names": names})
    bundle = pack(DATA / "open.tflite", "--version", "1", "--manifest", manifest, "--golden", tmp_path / "samples.npy")
    assert bundle.manifest.inputs[0].tensor.shape == (3, 4)
    assert bundle.manifest.outputs[0].shape == (3, 3)
    assert golden(bundle)["output_0"][0].tolist() == [[1.0, 1.5, 2.0], [3.0, 3.5, 4.0], [5.0, 5.5, 6.0]]
    capsys.readouterr()
    assert main(["infer", str(tmp_path / "samples.npy"), "--model", str(bundle.folder), "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert [first["values"]["y0"], second["values"]["y0"]] == [1.0, 7.0]


def test_an_open_axis_that_nothing_states_is_asked_for(pack):
    complaint = pack(DATA / "open.tflite", "--version", "1", "--channels", "a,b,c", "--labels", COLOURS, code=4)
    assert "does not hold a window of" in complaint


# Variants


CORAL = "mobilenet_v1_0.25_128_quant.tflite", "mobilenet_v1_0.25_128_quant_edgetpu.tflite"


def test_a_variant_that_was_compiled_for_an_edge_tpu(pack):
    model, compiled = map(real_model, CORAL)
    bundle = pack(model, "--version", "1", "--variant", f"edgetpu={compiled}", "--variant", "soc:teflon")
    assert bundle.manifest.variants == (
        Variant(name="edgetpu", delegate="edgetpu", file="model_edgetpu.tflite"),
        Variant(name="soc", delegate="teflon", file="model.tflite"),
    )
    assert bundle.file("model_edgetpu.tflite").read_bytes() == compiled.read_bytes()
    assert bundle.file("model.tflite").read_bytes() == model.read_bytes()


def test_a_compiled_file_is_no_model_but_a_variant_of_one(pack):
    complaint = pack(real_model(CORAL[1]), "--version", "1", code=4)
    assert "is compiled for the Edge TPU and does not run on a CPU" in complaint
    assert "edgectl pack --variant" in complaint


@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        (
            "edgetpu={edgetpu}",
            "is of another model: metadata 1: the manifest says input 0 is float32 [1, 4]",
        ),
        ("teflon={edgetpu}", "the variant teflon (model_teflon.tflite) is compiled for edgetpu, not for teflon"),
        ("edgetpu={ethosu}", "the variant edgetpu (model_edgetpu.tflite) is compiled for ethosu, not for edgetpu"),
    ],
)
def test_a_compiled_file_of_something_else(pack, variant, complaint):
    files = {"edgetpu": real_model(CORAL[1]), "ethosu": real_model("tflm_person_detect_vela.tflite")}
    assert complaint in pack(DATA / "metadata.tflite", "--version", "1", "--variant", variant.format(**files), code=4)


def test_a_file_that_no_edge_tpu_will_take_anything_of(tmp_path, capsys):
    out = str(tmp_path / "out.edgm")
    assert main(["pack", str(DATA / "metadata.tflite"), "--version", "1", "--variant", "edgetpu", "-o", out]) == 0
    assert "the variant edgetpu (model.tflite) is not compiled for the Edge TPU" in capsys.readouterr().err


def test_variants_of_the_manifest_of_the_version_before(pack, tmp_path):
    before = part(
        tmp_path,
        model="old.tflite",
        variants=[
            {"name": "soc", "delegate": "vx", "file": "old.tflite", "options": {"device_id": "0"}},
            {"name": "usb", "delegate": "mine", "file": "usb.tflite", "options": {"speed": "high"}},
        ],
        limits={"delegated_share": 0.5},
    )
    line = (DATA / "metadata.tflite", "--version", "2", "--manifest", before)
    complaint = pack(*line, code=4)
    assert "the file usb.tflite of the variant usb is missing" in complaint
    assert "--variant usb:mine=FILE" in complaint
    bundle = pack(*line, "--variant", f"usb:mine={DATA / 'float.tflite'}")
    assert bundle.manifest.variants == (
        Variant(name="soc", delegate="vx", file="model.tflite", options={"device_id": "0"}),
        Variant(name="usb", delegate="mine", file="model_usb.tflite", options={"speed": "high"}),
    )
    assert bundle.manifest.limits.delegated_share == 0.5


def test_variants_in_a_folder_are_looked_at_too(pack, tmp_path):
    variants = [{"name": "usb", "delegate": "mine", "file": "usb.tflite"}]
    folder = write_bundle(tmp_path / "b", files={"usb.tflite": (DATA / "int8.tflite").read_bytes()}, variants=variants)
    assert "the variant usb (usb.tflite) is of another model: colours 1.0: the manifest says" in pack(folder, code=4)


def test_a_variant_with_a_signature_of_its_own(pack, tmp_path):
    variants = [{"name": "usb", "delegate": "mine", "file": "model.tflite", "signature": "serve"}]
    folder = write_bundle(tmp_path / "b", variants=variants)
    assert "the variant usb (model.tflite) has no signature 'serve'" in pack(folder, code=4)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([DATA / "metadata.tflite"], "the version is missing"),
        ([DATA / "metadata.tflite", "--version", "1.0-beta"], "edgectl: manifest: "),
        ([DATA / "metadata.tflite", "--version", "1", "--window", "3"], "does not hold a window of [3, 4]"),
        ([DATA / "metadata.tflite", "--version", "1", "--golden", RECORDING], "c0"),
        (
            [DATA / "metadata.tflite", "--version", "1", "--labels", DATA / "float.tflite"],
            "float.tflite, line 1: not UTF-8 text",
        ),
        ([DATA / "metadata.tflite", "--version", "1", "--card", "absent.md"], "absent.md cannot be read: No such file"),
        ([DATA / "metadata.tflite", "--version", "1", "--manifest", DATA / "metadata.tflite"], "a part of a manifest"),
        ([DATA / "two_by_two.tflite", "--version", "1"], "the model has 2 inputs: "),
        ([DATA / "custom_op.tflite", "--version", "1"], "needs the custom op my-op"),
        (["absent.tflite", "--version", "1"], "absent.tflite cannot be read: No such file"),
        ([DATA], "manifest.json cannot be read"),
        (
            [DATA / "metadata.tflite", "--version", "1", "--variant", "cpu"],
            "'cpu' is reserved, and cannot name",
        ),
        (
            [DATA / "metadata.tflite", "--version", "1", "--variant", "Coral"],
            "edgectl: --variant: ",
        ),
        (
            [DATA / "metadata.tflite", "--version", "1", "--variant", f"x/y:edgetpu={DATA / 'float.tflite'}"],
            "edgectl: --variant: ",
        ),
        (
            [DATA / "metadata.tflite", "--version", "1", "--variant", "edgetpu=absent"],
            "absent cannot be read: No such file",
        ),
        ([FACTORY / "motion" / "1.0.0", "--variant", "edgetpu"], "--variant cannot be given"),
    ],
)
def test_what_cannot_be_packed_is_told_with_the_remedy(pack, options, complaint):
    assert complaint in pack(*options, code=4)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"window": 5}, "window: "),
        ({"inputs": [{}, {}]}, "the manifest has 2 inputs, and the model 1"),
        ({"colour": "red"}, "`colour`"),
        ({"golden": {"steps": -1}}, "golden: "),
        ({"labels": ["one"]}, "1 labels for 3 scores"),
        ({"backend": "tpu"}, "there is no kind 'tpu'"),
        ({"variants": [{"name": "usb", "file": "x"}]}, "variants: "),
    ],
)
def test_a_manifest_that_is_wrong(pack, tmp_path, fields, complaint):
    assert complaint in pack(DATA / "metadata.tflite", "--version", "1", "--manifest", part(tmp_path, **fields), code=4)


@pytest.mark.parametrize("words", ["", "coral:", "edgetpu=", "=x.tflite"])
def test_a_variant_that_is_not_understood(words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["pack", str(DATA / "metadata.tflite"), "--variant", words])
    assert "is not [NAME:]DELEGATE[=FILE]" in capsys.readouterr().err


def test_where_it_goes_by_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["pack", str(MOTION)]) == 0
    assert (tmp_path / "motion-1.0.0.edgm").exists()
    assert capsys.readouterr().out.startswith("motion-1.0.0.edgm: motion 1.0.0 (")


def test_a_folder_that_cannot_be_written_to(tmp_path, capsys):
    assert main(["pack", str(MOTION), "-o", str(tmp_path / "absent" / "x.edgm")]) == 4
    assert "x.edgm cannot be written: No such file" in capsys.readouterr().err


def test_a_device_or_a_pipe_is_not_replaced_by_a_bundle(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(StoreError, match=r"pipe is not a regular file \(name a file\)"):
        save(pipe, [b"edgm"])
    assert pipe.is_fifo()


COCO = "coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite"


def test_objects_in_golden_pictures_are_held_to_known_labels(pack, tmp_path, capsys):
    np.save(tmp_path / "windows.npy", np.stack([picture(name, 300)[None] for name in ("cat.bmp", "grace_hopper.bmp")]))
    line = (real_model(COCO), "--version", "1", "--golden", tmp_path / "windows.npy", "--expect")
    (tmp_path / "right.txt").write_text("cat\ntie, person\n")
    bundle = pack(*line, tmp_path / "right.txt")
    assert (bundle.manifest.labels[0], bundle.manifest.labels[11]) == ("person", "???")
    (tmp_path / "wrong.txt").write_text("cat\nnothing\n")
    complaint = pack(*line, tmp_path / "wrong.txt", code=4)
    assert "the model says 'person,tie' of window 1, and " in complaint
    (tmp_path / "strange.txt").write_text("cat\ngiraffes\n")
    assert "line 2: the model has no label 'giraffes'" in pack(*line, tmp_path / "strange.txt", code=4)


def test_labels_of_a_detector_may_come_in_a_file_with_gaps(pack, tmp_path):
    labels = [f"thing {number}" for number in range(90)]
    labels[11] = labels[12] = "???"
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    bundle = pack(real_model(COCO), "--version", "1", "--labels", tmp_path / "labels.txt")
    assert bundle.manifest.labels == tuple(labels)
    assert bundle.manifest.postprocess.decision.threshold == 0.5


def test_a_label_map_shorter_than_the_classes_is_found_by_the_golden_samples(pack, tmp_path):
    np.save(tmp_path / "windows.npy", picture("cat.bmp", 300)[None, None])
    (tmp_path / "labels.txt").write_text("person\nbicycle\n")
    options = ("--version", "1", "--labels", tmp_path / "labels.txt", "--golden", tmp_path / "windows.npy")
    complaint = pack(real_model(COCO), *options, code=4)
    assert "and its label map has 2 classes" in complaint
    assert "complete `labels` in the manifest, or correct `label_offset`" in complaint


def test_a_file_of_anchors_is_packed_with_the_manifest(pack, tmp_path):
    anchors = generate(layers((8, 16), 0.5, 0.5, (1.0,), interpolated=False, reduced=False, fixed_size=True), 128, 128)
    np.save(
        tmp_path / "anchors.npy", np.concatenate((anchors[:256].repeat(2, axis=0), anchors[256:].repeat(6, axis=0)))
    )
    decoder = {
        "decoder": "ssd_anchors",
        "order": "cxcywh",
        "scales": [128, 128, 128, 128],
        "exponential": False,
        "anchors": {"from": "file", "file": "anchors.npy"},
    }
    said = part(
        tmp_path,
        labels=["face"],
        window={"length": 1, "hop": 1, "sample_shape": [128, 128, 3], "dtype": "uint8"},
        preprocess=[{"step": "normalise", "mean": [127.5], "std": [127.5]}],
        postprocess={"kind": "detection", "decoder": decoder, "decision": {"threshold": 0.5}},
    )
    np.save(tmp_path / "windows.npy", picture("grace_hopper.bmp", 128)[None, None])
    (tmp_path / "expected.txt").write_text("face\n")
    line = ("--version", "1", "--manifest", said, "--golden", tmp_path / "windows.npy")
    bundle = pack(real_model("face_detection_short_range.tflite"), *line, "--expect", tmp_path / "expected.txt")
    assert set(bundle.manifest.files) == {"anchors.npy", "golden.npz", "model.tflite"}
    assert len(bundle.manifest.postprocess.decoder.anchors.rows) == 896
    (tmp_path / "anchors.npy").unlink()
    assert "anchors.npy" in pack(real_model("face_detection_short_range.tflite"), *line, code=4)


# Kinds of results


def windows(tmp_path, name, side):
    np.save(tmp_path / "windows.npy", picture(name, side)[None, None])
    return tmp_path / "windows.npy"


def test_references_lie_beside_the_part_of_a_manifest_and_join_the_bundle(pack, tmp_path):
    (tmp_path / "known.json").write_text('{"alice": [1, 1, 1]}')
    said = part(tmp_path, labels=[], postprocess={"kind": "embedding", "references": "known.json"})
    bundle = pack(DATA / "float.tflite", "--version", "1", "--channels", "a,b,c,d", "--manifest", said)
    assert bundle.references["known.json"].names == ("alice",)
    assert "known.json" in bundle.manifest.files


def test_references_of_another_model_are_refused(pack, tmp_path):
    (tmp_path / "known.json").write_text('{"alice": [1, 1]}')
    said = part(tmp_path, labels=[], postprocess={"kind": "embedding", "references": "known.json"})
    complaint = pack(DATA / "float.tflite", "--version", "1", "--channels", "a,b,c,d", "--manifest", said, code=4)
    assert "the references in known.json have 2 elements, and the output" in complaint


def test_a_segmentation_may_differ_in_some_pixels_and_is_held_to_the_greatest_share(pack, tmp_path):
    labels = ["background", *(f"class_{index}" for index in range(1, 8)), "cat"]
    said = part(tmp_path, labels=labels, postprocess={"kind": "segmentation"})
    (tmp_path / "expect").write_text("background\n")
    line = [real_model("deeplabv3_mnv2_dm05_pascal_quant.tflite"), "--version", "1", "--manifest", said]
    line += ["--golden", windows(tmp_path, "cat.bmp", 513), "--expect", tmp_path / "expect"]
    golden = pack(*line).manifest.golden
    assert (golden.absolute, golden.pixels) == (1e-6, pytest.approx(0.02, abs=0.02))
    (tmp_path / "expect").write_text("cat\n")
    assert "the model says 'background' of window 0" in pack(*line, code=4)


def test_keypoints_are_held_to_presence(pack, tmp_path):
    said = part(tmp_path, labels=[], postprocess={"kind": "keypoints", "preset": "coco17"})
    (tmp_path / "expect").write_text("absent\n")
    line = [real_model("movenet_single_pose_lightning_ptq.tflite"), "--version", "1", "--manifest", said]
    line += ["--golden", windows(tmp_path, "person.bmp", 192), "--expect", tmp_path / "expect"]
    assert "the model says 'present'" in pack(*line, code=4)


def test_labels_of_many_come_from_the_metadata(pack, tmp_path):
    said = part(tmp_path, labels=[], postprocess={"kind": "multilabel", "decision": {"threshold": 0.3}})
    bundle = pack(real_model("yamnet_audio_classifier_with_metadata.tflite"), "--version", "1", "--manifest", said)
    assert (bundle.manifest.labels[0], len(bundle.manifest.labels)) == ("Speech", 521)
