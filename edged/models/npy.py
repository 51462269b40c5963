"""Arrays in an .npz file from outside, read within bounds. Data are never unpickled."""

from __future__ import annotations

import tokenize
import zlib
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.api import BundleError
from edged.system.later import zipfile

Refusal = Callable[[tuple[int, ...], np.dtype[Any], bool], str]
"""Function from shape, dtype and order (True for Fortran's) of an array to the reason to refuse it, or ""."""


def unreadable() -> tuple[type[Exception], ...]:
    """Return the exceptions of a damaged .npz file."""
    return (
        *(OSError, EOFError, KeyError, ValueError, RuntimeError, SyntaxError),
        *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
    )


def read_array(archive: zipfile.ZipFile, file: str, problem: Refusal) -> NDArray[Any]:
    """Return the array in a file of an archive; a wrong header is refused before the data are read.

    Raises:
        BundleError: the array is refused, or has another size than stated.
    """
    name = file.removesuffix(".npy")
    with archive.open(file) as opened:
        if np.lib.format.read_magic(opened) != (1, 0):
            raise BundleError(f"{name} is in another version of the .npy format than 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(opened)
        if refusal := problem(shape, dtype, fortran):
            raise BundleError(f"{name} holds {refusal}")
        size = prod(shape) * dtype.itemsize
        data = opened.read(size + 1)
    if len(data) != size:
        raise BundleError(f"{name} has not the size its header says")
    return np.frombuffer(data, dtype).reshape(shape)
