"""Train `motion`: four activities of the wearer of a 6-axis motion sensor.

Run it with `python firmware_models/motion/train.py`; `--out` names another folder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for training.py, which the models share

import keras
import numpy as np
from numpy.typing import NDArray
from recording import CHANNELS, DEMO_ORDER, LABELS, RATE, demo_recording, recordings
from training import (
    Floats,
    accuracy,
    export,
    finish,
    golden_samples,
    made_with,
    make_deterministic,
    normalise,
    output_folder,
    replay,
    share,
    spread,
)

from edged.api import Runner
from edged.core.manifest import SCHEMA, Channel, Classify, Decision, Golden, Input, Manifest, Normalise, WindowSpec

HERE = Path(__file__).parent
VERSION = "1.0.0"
LENGTH = 40  # samples: four seconds hold several steps or a whole rally stroke
HOP = 10
TRAINING_HOP = 2  # windows overlap more in training, so that the network sees every phase of a stride
SMOOTHING = 0.05  # of the labels: keeps scores off the ends of the int8 range, where differences vanish


def windows(samples: NDArray, hop: int) -> NDArray:
    """Return the windows of a recording: (n, LENGTH, 6)."""
    return np.stack([samples[start : start + LENGTH] for start in range(0, len(samples) - LENGTH + 1, hop)])


def all_windows(split: str, hop: int) -> tuple[NDArray, NDArray]:
    """Return the windows of every recording of a split, and the index in LABELS of each."""
    samples, activities = recordings(split)
    cut = [windows(recording, hop) for recording in samples]
    return np.concatenate(cut), np.repeat(activities, len(cut[0]))


def train(inputs: Floats, truth: NDArray) -> keras.Model:
    """Return a small convolutional network: strides save time, pooling over time hides the phase."""
    network = keras.Sequential(
        [
            keras.Input((LENGTH, len(CHANNELS))),
            keras.layers.Conv1D(12, 5, strides=2, activation="relu"),
            keras.layers.Conv1D(16, 5, strides=2, activation="relu"),
            keras.layers.Conv1D(16, 3, activation="relu"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(len(LABELS), activation="softmax"),
        ]
    )
    network.compile("adam", keras.losses.CategoricalCrossentropy(label_smoothing=SMOOTHING))
    network.fit(inputs, np.eye(len(LABELS))[truth], epochs=30, batch_size=32, verbose=0)
    return network


def describe(runner: Runner, step: Normalise) -> Manifest:
    """Return the manifest without the digests of the files."""
    return Manifest(
        schema=SCHEMA,
        name="motion",
        version=VERSION,
        description="Standing, walking, running or badminton, from four seconds of a 6-axis motion sensor on the wrist",
        licence="Apache-2.0; trained on BasicMotions from the UEA archive, see CARD.md",
        files={},
        window=WindowSpec(
            length=LENGTH, hop=HOP, rate=RATE, channels=tuple(Channel(name=channel) for channel in CHANNELS)
        ),
        inputs=(Input(tensor=runner.inputs[0]),),
        outputs=runner.outputs,
        preprocess=(step,),
        labels=LABELS,
        postprocess=Classify(top_k=len(LABELS), decision=Decision(threshold=0.6, hysteresis=0.1, k=2, n=3)),
        golden=Golden(),
    )


def guesses(manifest: Manifest, runner: Runner, samples: NDArray) -> NDArray:
    """Return the index in LABELS of the answer of the int8 model to each window."""
    return np.array([LABELS.index(outcome.label) for outcome in replay(manifest, runner, samples)])


def demo_accuracy(manifest: Manifest, runner: Runner) -> dict[str, str]:
    """Count right answers on the recording of the demo: windows within an activity, and windows across a change."""
    samples, activities = demo_recording()
    truth = windows(activities, HOP)
    hits = guesses(manifest, runner, windows(samples, HOP)) == truth[:, -1]
    pure = (truth == truth[:, :1]).all(1)
    return {"demo_pure": share(hits[pure]), "demo_mixed": share(hits[~pure])}


def main() -> None:
    """Train, export, measure, write."""
    folder = output_folder("Train the motion model.", HERE) / VERSION
    make_deterministic(1)
    samples, truth = all_windows("train", TRAINING_HOP)
    mean, std = samples.mean((0, 1)).round(4), samples.std((0, 1)).round(4)
    step = Normalise(mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    inputs = normalise(samples, step)
    network = train(inputs, truth)
    runner = export(network, inputs, folder)
    manifest = describe(runner, step)

    held_out, held_out_truth = all_windows("test", HOP)
    real = network.predict(normalise(held_out, step), verbose=0).argmax(1)
    figures = {
        "training_windows": len(samples),
        "held_out_windows": len(held_out),
        "demo_order": ", ".join(f"{label} {nth + 1}" for label, nth in DEMO_ORDER),
        "made_with": made_with("aeon"),
        **accuracy(held_out_truth, real, guesses(manifest, runner, held_out), LABELS),
        **demo_accuracy(manifest, runner),
    }
    golden = golden_samples(manifest, runner, held_out[spread(len(held_out), 16)])
    finish(folder, manifest, golden, HERE / "card.md", figures)


if __name__ == "__main__":
    main()
