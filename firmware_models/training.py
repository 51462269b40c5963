"""Shared parts of the training scripts: from a trained Keras network to a finished version folder.

A script loads data and trains a float network. `export` then makes the int8 file and loads the file with the backend of
edged. `replay` runs windows through the pre- and postprocessing of edged, so that the figures of the card hold on a
board. `finish` writes the rest of the folder.

Needs the extra: `pip install -e '.[train]'`. Two runs on a machine give the same bytes; other processors and TensorFlow
versions round differently and give a slightly different model.
"""

import argparse
import hashlib
import io
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import msgspec
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from edged.api import Outcome, Runner
from edged.backends.tflite import TfliteBackend
from edged.core.manifest import File, Manifest, Normalise, encode
from edged.core.postprocess import Postprocessor
from edged.core.preprocess import Preprocessor

Floats = NDArray[np.float32]


def output_folder(description: str, default: Path) -> Path:
    """Return the version folder of the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=default, metavar="DIR", help="write DIR/<version>/ (%(default)s)")
    return parser.parse_args().out


def make_deterministic(seed: int) -> None:
    """Seed Python, numpy and TensorFlow, and restrict TensorFlow to deterministic kernels."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def normalise(samples: NDArray, step: Normalise) -> Floats:
    """Normalise many windows at once, as the step of the manifest does for each window."""
    return ((samples - np.float32(step.mean)) / np.float32(step.std)).astype(np.float32)


def export(network: keras.Model, inputs: Floats, folder: Path) -> Runner:
    """Write the network to model.tflite, int8 throughout, and load it; 300 of `inputs` give the ranges."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.tflite"
    file.write_bytes(_to_int8(network, inputs[spread(len(inputs), 300)]))
    return TfliteBackend().load(file)


def _to_int8(network: keras.Model, inputs: Floats) -> bytes:
    signature = [tf.TensorSpec((1, *network.input_shape[1:]), tf.float32, "window")]
    with TemporaryDirectory() as saved:
        network.export(saved, input_signature=signature, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([sample[None]] for sample in inputs)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        return converter.convert()


def replay(manifest: Manifest, runner: Runner, windows: Iterable[NDArray]) -> list[Outcome]:
    """Return the outcomes of edged for windows a second apart; `manifest` may still lack its files."""
    preprocess, postprocess = Preprocessor(manifest), Postprocessor(manifest, None)
    samples = (np.ascontiguousarray(window, manifest.window.dtype) for window in windows)
    return [
        postprocess(runner.run(preprocess(window)), preprocess.prepared, float(time))
        for time, window in enumerate(samples)
    ]


def golden_samples(manifest: Manifest, runner: Runner, windows: Iterable[NDArray]) -> bytes:
    """Return the golden samples as .npz: input tensors of the windows, and the output tensors."""
    preprocess = Preprocessor(manifest)
    inputs = [preprocess(np.ascontiguousarray(window, manifest.window.dtype))[0].copy() for window in windows]
    outputs = [runner.run([array])[0] for array in inputs]
    file = io.BytesIO()
    np.savez(file, input_0=np.stack(inputs), output_0=np.stack(outputs))
    return file.getvalue()


def finish(folder: Path, manifest: Manifest, golden: bytes, card: Path, figures: dict[str, object]) -> None:
    """Write the golden samples, the card with its figures, and the manifest with all digests."""
    model = (folder / manifest.model).read_bytes()
    text = card.read_text(encoding="utf-8").format_map({**figures, "version": manifest.version, "size": len(model)})
    files = {manifest.model: model, "golden.npz": golden, "CARD.md": text.encode()}
    digests = {name: File(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in files.items()}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_bytes(encode(msgspec.structs.replace(manifest, files=digests)))


def spread(number: int, count: int) -> NDArray[np.intp]:
    """Return `count` indices spread evenly over `number` samples: no sample is picked by hand."""
    return np.linspace(0, number - 1, count).round().astype(np.intp)


def share(hits: NDArray[np.bool_]) -> str:
    """Return a proportion for the card, with its counts, since the sets are small."""
    return f"{hits.mean():.4f} ({np.count_nonzero(hits)} of {hits.size})"


def accuracy(truth: NDArray, real: NDArray, quantised: NDArray, labels: tuple[str, ...]) -> dict[str, str]:
    """Return the figures of a classifier, from the classes of the float network and the int8 model."""
    return {
        "float_accuracy": share(real == truth),
        "int8_accuracy": share(quantised == truth),
        "agreement": share(real == quantised),
        "confusion": _confusion(truth, quantised, labels),
    }


def _confusion(truth: NDArray, guess: NDArray, labels: tuple[str, ...]) -> str:
    rows = [f"| | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
    for index, label in enumerate(labels):
        counts = [np.count_nonzero((truth == index) & (guess == other)) for other in range(len(labels))]
        rows.append(f"| **{label}** | {' | '.join(map(str, counts))} |")
    return "\n".join(rows)


def made_with(*packages: str) -> str:
    """Return the versions of the packages behind the model."""
    return ", ".join(f"{package} {version(package)}" for package in ("tensorflow-cpu", "keras", *packages))
