"""Train `digits`: the digit on an 8x8 picture of handwriting.

Run it with `python firmware_models/digits/train.py`; `--out` names another folder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for training.py, which the models share

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
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
)

from edged.api import Runner
from edged.core.manifest import SCHEMA, Classify, Decision, Golden, Input, Manifest, Normalise, WindowSpec

HERE = Path(__file__).parent
VERSION = "1.0.0"
LABELS = tuple("0123456789")
SIDE = 8
STEP = Normalise(mean=(0.0,), std=(16.0,))  # pixels are 0 (paper) to 16 (ink)
SMOOTHING = 0.05  # of the labels: keeps scores off the ends of the int8 range, where differences vanish


def train(inputs: Floats, truth: NDArray) -> keras.Model:
    """Return a network of two convolutions and a dense layer, which keeps positions."""
    network = keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 1)),
            keras.layers.Conv2D(12, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(24, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(len(LABELS), activation="softmax"),
        ]
    )
    network.compile("adam", keras.losses.CategoricalCrossentropy(label_smoothing=SMOOTHING))
    network.fit(inputs, np.eye(len(LABELS))[truth], epochs=40, batch_size=32, verbose=0)
    return network


def describe(runner: Runner) -> Manifest:
    """Return the manifest without the digests of the files."""
    return Manifest(
        schema=SCHEMA,
        name="digits",
        version=VERSION,
        description="The digit on an 8x8 picture of handwriting, pixels 0 (paper) to 16 (ink)",
        licence="Apache-2.0; trained on handwritten digits from the UCI repository, see CARD.md",
        files={},
        window=WindowSpec(length=1, hop=1, sample_shape=(SIDE, SIDE), dtype="uint8"),
        inputs=(Input(tensor=runner.inputs[0]),),
        outputs=runner.outputs,
        preprocess=(STEP,),
        labels=LABELS,
        postprocess=Classify(top_k=3, decision=Decision(threshold=0.5)),
        golden=Golden(),
    )


def main() -> None:
    """Train, export, measure, write."""
    folder = output_folder("Train the digits model.", HERE) / VERSION
    make_deterministic(1)
    pictures, digits = load_digits(return_X_y=True)
    pictures, held_out, truth, held_out_truth = train_test_split(
        pictures.reshape(-1, SIDE, SIDE), digits, test_size=0.3, random_state=1, stratify=digits
    )
    inputs = normalise(pictures, STEP)[..., None]
    network = train(inputs, truth)
    runner = export(network, inputs, folder)
    manifest = describe(runner)

    windows = held_out[:, None]  # each of a single picture
    real = network.predict(normalise(held_out, STEP)[..., None], verbose=0).argmax(1)
    quantised = np.array([LABELS.index(outcome.label) for outcome in replay(manifest, runner, windows)])
    figures = {
        "training_pictures": len(pictures),
        "held_out_pictures": len(held_out),
        "made_with": made_with("scikit-learn"),
        **accuracy(held_out_truth, real, quantised, LABELS),
    }
    first_two = np.concatenate([np.flatnonzero(held_out_truth == digit)[:2] for digit in range(len(LABELS))])
    finish(folder, manifest, golden_samples(manifest, runner, windows[first_two]), HERE / "card.md", figures)


if __name__ == "__main__":
    main()
