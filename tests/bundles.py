"""Makes bundles on disk, of the small models in tests/data."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).resolve().parent / "data"

COLOURS: dict[str, Any] = {
    "schema": "edged.manifest/1",
    "name": "colours",
    "version": "1.0",
    "window": {"length": 1, "hop": 1, "channels": [{"name": f"c{index}"} for index in range(4)]},
    "inputs": [{"tensor": {"name": "x", "shape": [1, 4], "dtype": "float32"}}],
    "outputs": [{"name": "y", "shape": [1, 3], "dtype": "float32"}],
    "labels": ["red", "green", "blue"],
    "postprocess": {"kind": "classification"},
}
"""Manifest of tests/data/float.tflite, without files; the model computes y = x[:3] / 2 + 1."""


def write_bundle(
    folder: Path, *, model: str = "float.tflite", files: dict[str, bytes] | None = None, **parts: Any
) -> Path:
    """Write a sound bundle: COLOURS with `parts` replaced (None removes a part), the model, and further files."""
    contents = {"model.tflite": (DATA / model).read_bytes(), **(files or {})}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    digests = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    manifest = {**COLOURS, "files": digests, **parts}
    (folder / "manifest.json").write_text(
        json.dumps({key: value for key, value in manifest.items() if value is not None})
    )
    return folder


KILLERS = {"load": (1000, 0), "run": (1415, 2)}
"""Position and value of a byte of tests/data/stateful.tflite that crashes the runtime at load or run."""


def killer(folder: Path, stage: str) -> Path:
    """Return a bundle whose model, `killer`, crashes the process at load or run by SIGSEGV.

    The test is skipped if this version of the runtime does not crash.
    """
    offset, value = KILLERS[stage]
    data = bytearray((DATA / "stateful.tflite").read_bytes())
    data[offset] = value
    bundle = write_bundle(
        folder / "killer",
        files={"model.tflite": bytes(data)},
        name="killer",
        window={"length": 1, "hop": 1, "channels": [{"name": "c0"}]},
        inputs=[{"tensor": {"name": "x", "shape": [1, 1], "dtype": "float32"}}],
        outputs=[{"name": "total", "shape": [1, 1], "dtype": "float32"}],
        labels=[],
        postprocess={"kind": "regression", "names": ["total"]},
    )
    command = [sys.executable, "-c", _LOAD_AND_RUN, str(bundle / "model.tflite")]
    if subprocess.run(command, check=False).returncode != -signal.SIGSEGV:
        pytest.skip("this version of the runtime does not die of it")
    return bundle


_LOAD_AND_RUN = """
import sys
from pathlib import Path
import numpy as np
from edged.backends.tflite import TfliteBackend
runner = TfliteBackend().load(Path(sys.argv[1]))
runner.run([np.zeros(spec.shape, spec.dtype) for spec in runner.inputs])
"""
