"""Train `anomaly`: an autoencoder of a pulse wave, with a large error on other signals.

Run it with `python firmware_models/anomaly/train.py`; `--out` names another folder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for training.py, which the models share

import keras
import numpy as np
from aeon.datasets import load_kdd_tsad_135
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from sklearn.metrics import precision_score, recall_score, roc_auc_score
from training import (
    Floats,
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
from edged.core.manifest import SCHEMA, Channel, Decision, Detect, Golden, Input, Manifest, Normalise, WindowSpec

HERE = Path(__file__).parent
VERSION = "1.0.0"
LENGTH = 64  # samples: about a third of a beat
HOP = 8
TRAINING_END = 1200  # the archive's own training part
CALIBRATION_END = 2700  # then eight beats to set the threshold on; the rest is held out
QUANTILE = 0.999


def windows(signal: NDArray) -> NDArray:
    """Return the windows at every offset of a signal: (n, LENGTH, 1)."""
    return sliding_window_view(signal, LENGTH)[..., None]


def train(inputs: Floats) -> keras.Model:
    """Return an autoencoder that rebuilds 64 numbers from six."""
    network = keras.Sequential(
        [
            keras.Input((LENGTH, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(6),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(LENGTH),
            keras.layers.Reshape((LENGTH, 1)),
        ]
    )
    network.compile(keras.optimizers.Adam(2e-3), "mse")
    network.fit(inputs, inputs, epochs=150, batch_size=32, verbose=0)
    return network


def describe(runner: Runner, step: Normalise, threshold: float) -> Manifest:
    """Return the manifest without the digests of the files."""
    return Manifest(
        schema=SCHEMA,
        name="anomaly",
        version=VERSION,
        description="Distance of a signal from the pulse wave of the training data",
        licence="Apache-2.0; trained on a recording from the UCR anomaly archive, see CARD.md",
        files={},
        window=WindowSpec(length=LENGTH, hop=HOP, channels=(Channel(name="value"),)),
        inputs=(Input(tensor=runner.inputs[0]),),
        outputs=runner.outputs,
        preprocess=(step,),
        postprocess=Detect(score="mean_squared_error", decision=Decision(threshold=threshold, k=2, n=3)),
        golden=Golden(steps=3.0),  # rounding adds up over four layers: tflite-runtime 2.14 is 2 steps from LiteRT
    )


def float_scores(network: keras.Model, inputs: Floats) -> Floats:
    """Return the mean squared error of each rebuilt window."""
    return ((inputs - network.predict(inputs, verbose=0)) ** 2).mean((1, 2))


def int8_scores(manifest: Manifest, runner: Runner, samples: NDArray) -> Floats:
    """Return the mean squared error of each window that the int8 model rebuilt."""
    return np.float32([outcome.score for outcome in replay(manifest, runner, samples)])


def threshold_of(scores: Floats) -> float:
    """Return a threshold above nearly all normal scores."""
    return round(float(np.quantile(scores, QUANTILE)), 6)


def row(name: str, scores: Floats, anomalous: NDArray[np.bool_], threshold: float) -> str:
    """Return a row of the table in the card."""
    alarms = scores >= threshold
    figures = precision_score(anomalous, alarms), recall_score(anomalous, alarms), roc_auc_score(anomalous, scores)
    return f"| {name} | {threshold} | {' | '.join(f'{x:.4f}' for x in figures)} | {share(alarms[~anomalous])} |"


def alarms_raised(manifest: Manifest, runner: Runner, samples: NDArray, anomalous: NDArray[np.bool_]) -> dict[str, int]:
    """Count the alarms on the held-out signal, within n windows of the event and elsewhere."""
    outcomes = replay(manifest, runner, samples[::HOP])
    begins = [number for number, outcome in enumerate(outcomes) if outcome.anomalous and outcome.changed]
    memory = manifest.postprocess.decision.n
    right = sum(anomalous[::HOP][max(0, number - memory + 1) : number + 1].any() for number in begins)
    return {"played_windows": len(outcomes), "right_alarms": right, "false_alarms": len(begins) - right}


def with_noise(samples: NDArray) -> NDArray:
    """Return windows with noise of deviation 4 on the middle 12 samples, like the labelled event."""
    disturbed = samples.copy()
    disturbed[:, 26:38] += np.random.default_rng(2).normal(0, 4, (len(samples), 12, 1))
    return disturbed


def frozen(samples: NDArray) -> NDArray:
    """Return windows of a sensor that stops half-way and repeats the last value."""
    disturbed = samples.copy()
    disturbed[:, LENGTH // 2 :] = disturbed[:, LENGTH // 2 - 1, None]
    return disturbed


def main() -> None:
    """Train, export, set the threshold, measure, write."""
    folder = output_folder("Train the anomaly model.", HERE) / VERSION
    make_deterministic(1)
    signal, labels = (column.ravel() for column in load_kdd_tsad_135(split="test"))
    normal = signal[:TRAINING_END]  # the "test" file begins with the whole "train" file
    step = Normalise(mean=(round(float(normal.mean()), 4),), std=(round(float(normal.std()), 4),))
    inputs = normalise(windows(normal), step)
    network = train(inputs)
    runner = export(network, inputs, folder)

    calibration = windows(signal[TRAINING_END:CALIBRATION_END])
    float_threshold = threshold_of(float_scores(network, normalise(calibration, step)))
    threshold = threshold_of(int8_scores(describe(runner, step, 1.0), runner, calibration))
    manifest = describe(runner, step, threshold)

    held_out = windows(signal[CALIBRATION_END:])
    anomalous = windows(labels[CALIBRATION_END:]).any((1, 2))
    real, quantised = float_scores(network, normalise(held_out, step)), int8_scores(manifest, runner, held_out)
    untouched = held_out[~anomalous][::HOP]
    figures = {
        "training_windows": len(inputs),
        "calibration_windows": len(calibration),
        "held_out_windows": len(held_out),
        "anomalous_windows": np.count_nonzero(anomalous),
        "threshold": threshold,
        "float_row": row("float32", real, anomalous, float_threshold),
        "int8_row": row("int8", quantised, anomalous, threshold),
        "usual_score": f"{np.median(quantised[~anomalous]):.5f}",
        "anomalous_score": f"{np.median(quantised[anomalous]):.5f}",
        "noise": share(int8_scores(manifest, runner, with_noise(untouched)) >= threshold),
        "frozen": share(int8_scores(manifest, runner, frozen(untouched)) >= threshold),
        "made_with": made_with("aeon", "scikit-learn"),
        **alarms_raised(manifest, runner, held_out, anomalous),
    }
    event = np.flatnonzero(anomalous)
    chosen = np.concatenate((spread(event[0], 12), event[spread(len(event), 6)[1:-1]]))
    finish(folder, manifest, golden_samples(manifest, runner, held_out[chosen]), HERE / "card.md", figures)


if __name__ == "__main__":
    main()
