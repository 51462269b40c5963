"""The factory models: whole, small, and saying what their cards say."""

from __future__ import annotations

import csv
import importlib.util
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edged.api import Anomaly, Arrays, Classification, Outcome, Runner
from edged.backends.tflite import TfliteBackend
from edged.core.manifest import Golden, Manifest
from edged.core.postprocess import Postprocessor
from edged.core.preprocess import Preprocessor
from edged.core.tensors import dequantise, disagreement
from edged.models.bundle import Bundle, open_folder

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(manifest.parent for manifest in ROOT.glob("firmware_models/*/*/manifest.json"))
CHANNELS = ("ax", "ay", "az", "gx", "gy", "gz")

each_model = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")


def bundle_of(name: str) -> Bundle:
    return open_folder(ROOT / "firmware_models" / name / "1.0.0")


def golden_of(bundle: Bundle) -> tuple[Arrays, Arrays]:
    with np.load(bundle.file("golden.npz"), allow_pickle=False) as arrays:
        return arrays["input_0"], arrays["output_0"]


def replay(manifest: Manifest, runner: Runner, samples: NDArray[np.float32]) -> list[Outcome]:
    window, preprocess, postprocess = manifest.window, Preprocessor(manifest), Postprocessor(manifest, None)
    starts = range(0, len(samples) - window.length + 1, window.hop)
    return [
        postprocess(runner.run(preprocess(samples[start : start + window.length])), preprocess.prepared, float(start))
        for start in starts
    ]


def recording() -> tuple[NDArray[np.float32], list[str]]:
    with (ROOT / "demo" / "recording.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["seq"]) for row in rows] == list(range(len(rows)))
    return np.array([[float(row[name]) for name in CHANNELS] for row in rows], np.float32), [
        row["activity"] for row in rows
    ]


def test_the_three_are_there() -> None:
    assert [(folder.parent.name, folder.name) for folder in FOLDERS] == [
        ("anomaly", "1.0.0"),
        ("digits", "1.0.0"),
        ("motion", "1.0.0"),
    ]


@each_model
def test_folder_holds_what_its_manifest_vouches_for(folder: Path) -> None:
    bundle = open_folder(folder)
    assert (bundle.manifest.name, bundle.manifest.version) == (folder.parent.name, folder.name)
    assert set(bundle.manifest.files) == {"model.tflite", "golden.npz", "CARD.md"}


@each_model
def test_model_is_int8_throughout_and_small(folder: Path) -> None:
    bundle = open_folder(folder)
    runner = TfliteBackend().load(bundle.model)
    assert [spec.dtype for spec in (*runner.inputs, *runner.outputs)] == ["int8", "int8"]
    assert bundle.manifest.files["model.tflite"].bytes < 60_000


@each_model
def test_manifest_states_the_tensors_of_the_file(folder: Path) -> None:
    bundle = open_folder(folder)
    runner = TfliteBackend().load(bundle.model)
    assert tuple(each.tensor for each in bundle.manifest.inputs) == runner.inputs
    assert bundle.manifest.outputs == runner.outputs


@each_model
def test_golden_samples_agree(folder: Path) -> None:
    bundle = open_folder(folder)
    runner = TfliteBackend().load(bundle.model)
    inputs, outputs = golden_of(bundle)
    golden = bundle.manifest.golden
    assert golden is not None
    assert len(inputs) == len(outputs) >= 16
    for sample, expected in zip(inputs, outputs, strict=True):
        assert disagreement(runner.outputs[0], runner.run([sample])[0], expected, golden) == ""


@pytest.mark.parametrize("name", ["motion", "digits"])
def test_no_golden_decision_hangs_on_a_rounding(name: str) -> None:
    bundle = bundle_of(name)
    _, outputs = golden_of(bundle)
    ranked = np.sort(np.asarray(outputs, np.int16)[:, 0], axis=1)
    assert (ranked[:, -1] - ranked[:, -2]).min() > 2 * Golden().steps


def test_motion_knows_its_golden_samples() -> None:
    bundle = bundle_of("motion")
    _, outputs = golden_of(bundle)
    said = [bundle.manifest.labels[index] for index in np.asarray(outputs)[:, 0].argmax(1)]
    assert said == ["standing"] * 4 + ["running"] * 4 + ["walking"] * 4 + ["badminton"] * 4


def test_digits_knows_its_golden_samples() -> None:
    bundle = bundle_of("digits")
    _, outputs = golden_of(bundle)
    said = [bundle.manifest.labels[index] for index in np.asarray(outputs)[:, 0].argmax(1)]
    assert "".join(said) == "00112233445566778899"


def test_digits_reads_a_picture() -> None:
    bundle = bundle_of("digits")
    seven = [
        "..####..",
        "..#####.",
        ".....##.",
        ".....#..",
        "..#####.",
        "...###..",
        "...##...",
        "...#....",
    ]
    picture = np.array([[16 if dot == "#" else 0 for dot in row] for row in seven], np.uint8)[None]
    [outcome] = replay(bundle.manifest, TfliteBackend().load(bundle.model), picture)
    assert isinstance(outcome, Classification)
    assert (outcome.label, outcome.decision) == ("7", "7")


def test_anomaly_scores_its_golden_samples_on_the_right_side() -> None:
    bundle = bundle_of("anomaly")
    inputs, outputs = golden_of(bundle)
    window = dequantise(bundle.manifest.inputs[0].tensor, np.asarray(inputs))
    rebuilt = dequantise(bundle.manifest.outputs[0], np.asarray(outputs))
    scores = ((window - rebuilt) ** 2).reshape(len(window), -1).mean(1)
    threshold = bundle.manifest.postprocess.decision.threshold
    assert (scores >= threshold).tolist() == [False] * 12 + [True] * 4


def test_anomaly_takes_noise_for_one() -> None:
    bundle = bundle_of("anomaly")
    noise = np.random.default_rng(1).normal(70, 13, (200, 1)).astype(np.float32)
    outcomes = replay(bundle.manifest, TfliteBackend().load(bundle.model), noise)
    assert isinstance(outcomes[-1], Anomaly)
    assert outcomes[-1].anomalous


@each_model
def test_card_quotes_the_true_size(folder: Path) -> None:
    card = (folder / "CARD.md").read_text(encoding="utf-8")
    [quoted] = re.findall(r"`model\.tflite` has\s+([0-9]+)\s+bytes", card)
    assert int(quoted) == (folder / "model.tflite").stat().st_size


@each_model
def test_card_says_what_anybody_would_ask(folder: Path) -> None:
    card = (folder / "CARD.md").read_text(encoding="utf-8")
    assert re.findall("^## (.+)", card, re.MULTILINE) == [
        "Input",
        "Model",
        "Data",
        "What it scores",
        "Limits",
        "How to remake it",
    ]
    assert "licence" in card or "CC BY" in card


def test_recording_shows_every_activity_twice() -> None:
    samples, activities = recording()
    changes = [after for before, after in pairwise(["", *activities]) if after != before]
    assert samples.shape == (800, 6)
    assert sorted(changes) == sorted(2 * ["standing", "walking", "running", "badminton"])


def test_motion_recognises_the_recording() -> None:
    bundle = bundle_of("motion")
    samples, activities = recording()
    outcomes = replay(bundle.manifest, TfliteBackend().load(bundle.model), samples)
    spans = [set(activities[start : start + 40]) for start in range(0, 761, 10)]
    within_one = [(outcome, span) for outcome, span in zip(outcomes, spans, strict=True) if len(span) == 1]
    wrong = [outcome for outcome, span in within_one if {outcome.label} != span]
    assert len(within_one) == 56
    assert len(wrong) <= 2  # the card says 55 of 56; kernels of other processors may round one more away


def test_recording_was_not_trained_on() -> None:
    trained_on, held_out = basic_motions("TRAIN"), basic_motions("TEST")
    samples, _ = recording()
    played = [samples[start : start + 100].T for start in range(0, 800, 100)]
    assert all(any(np.allclose(each, one, atol=1e-5) for one in held_out) for each in played)
    assert not any(np.allclose(each, one, atol=1e-1) for each in played for one in trained_on)


def basic_motions(split: str) -> NDArray[np.float64]:
    """Half of the data set, as cases x channels x samples, from the files that aeon brings; it is not imported."""
    package = importlib.util.find_spec("aeon")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the recordings come with the package aeon")
    file = Path(package.submodule_search_locations[0], "datasets/data/BasicMotions", f"BasicMotions_{split}.ts")
    _, _, cases = file.read_text().partition("@data\n")
    return np.array([[channel.split(",") for channel in case.split(":")[:-1]] for case in cases.split()], float)
