"""Real public models, kept outside the project: the folder EDGED_TEST_MODELS, or ../shared/models beside it."""

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "models"
FOLDER = Path(os.environ.get("EDGED_TEST_MODELS", _BESIDE))


def real_model(name: str) -> Path:
    """The path of a real model, or of a file beside it; the test is skipped where the folder is missing."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{name} is not there: set EDGED_TEST_MODELS to a folder of real models")
    return path
