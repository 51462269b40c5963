"""Makes bundles on disk, of the small models in tests/data."""

import hashlib
import json
from pathlib import Path
from typing import Any

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
"""The manifest of tests/data/float.tflite, which computes y = x[:3] / 2 + 1, but for its files."""


def write_bundle(
    folder: Path, *, model: str = "float.tflite", files: dict[str, bytes] | None = None, **parts: Any
) -> Path:
    """A sound bundle: COLOURS with `parts` replaced (None takes one out), the model, and further files."""
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
