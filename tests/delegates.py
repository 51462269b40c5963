"""A delegate that fails to order, in C and loaded by the real runtime; delegates/faulty.c says what its options are."""

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

from edged.backends.tflite import DelegatedTflite

SOURCE = Path(__file__).parent / "delegates" / "faulty.c"
_FOLDER = tempfile.TemporaryDirectory(prefix="edged-delegates-")


@cache
def faulty_library() -> str:
    """The path of the shared library, built once in a run; the test is skipped where there is no compiler."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    library = Path(_FOLDER.name) / "libfaulty.so"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(SOURCE), "-lm"], check=True)
    return str(library)


def faulty(**options: str) -> DelegatedTflite:
    """A backend on the faulty delegate, with these orders: faulty(fail="abort", after="3")."""
    return DelegatedTflite(delegate="faulty", library=faulty_library(), options=options)
