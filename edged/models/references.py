"""Reference vectors of embeddings, read from files of a bundle."""

from __future__ import annotations

import io
from functools import partial
from math import prod
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.api import BundleError, TensorSpec
from edged.core.references import MAX_REFERENCE_BYTES, MAX_REFERENCE_JSON, MAX_VECTORS, References
from edged.models.npy import read_array, unreadable
from edged.system.later import zipfile

Numbers = list[float | list[float]]


def read_references(name: str, data: bytes, output: TensorSpec) -> References:
    """Return the vectors in the bytes of a file of this name, for an output tensor.

    Raises:
        BundleError: the file is damaged or too big, or the vectors have another size than the output.
    """
    try:
        arrays = _in_npz(data) if name.endswith(".npz") else _in_json(data)
        with np.errstate(over="ignore"):  # what is too great becomes infinite, and is refused
            references = References({each: np.atleast_2d(array).astype(np.float32) for each, array in arrays.items()})
    except unreadable() as error:
        raise BundleError(f"the references in {name} cannot be read: {error}", hint=_HINT) from error
    except BundleError as error:
        raise BundleError(f"the references in {name}: {error.message}", hint=_HINT) from error
    if references.size != prod(output.shape):
        problem = f"have {references.size} elements, and the output {output.name!r} {prod(output.shape)}"
        raise BundleError(f"the references in {name} {problem}", hint=_HINT)
    return references


_HINT = "make the references again, with the vectors of this model"


def _in_json(data: bytes) -> dict[str, NDArray[np.float64]]:
    if len(data) > MAX_REFERENCE_JSON:
        raise ValueError(f"{len(data)} bytes of JSON, and {MAX_REFERENCE_JSON} are allowed: make an .npz file")
    try:
        found = msgspec.json.decode(data, type=dict[str, Numbers])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(error) from error
    return {name: _rows(name, numbers) for name, numbers in found.items()}


def _rows(name: str, numbers: Numbers) -> NDArray[np.float64]:
    try:
        return np.asarray(numbers, np.float64)
    except ValueError as error:
        raise ValueError(f"{name!r} is neither a vector nor rows of equal length") from error


def _in_npz(data: bytes) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        if len(names) > MAX_VECTORS:
            raise ValueError(f"{len(names)} arrays, and {MAX_VECTORS} are allowed")
        left = MAX_REFERENCE_BYTES
        found = {}
        for name in names:
            array = read_array(archive, name, partial(_problem, left))
            left -= array.nbytes
            found[name.removesuffix(".npy")] = array
    return found


def _problem(limit: int, shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool) -> str:
    if dtype.kind not in "fiu" or not 1 <= len(shape) <= 2 or (fortran and len(shape) == 2):
        return f"{dtype} {list(shape)}, and vectors are rows of numbers"
    if prod(shape) * dtype.itemsize > limit:
        return f"more than is left of {MAX_REFERENCE_BYTES} bytes for all arrays"
    return ""
