"""Reference vectors of an embedding, and the distances of a vector to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MAX_VECTORS = 10_000
MAX_REFERENCE_BYTES = 16 << 20
"""Most bytes of all vectors."""

MAX_REFERENCE_FILE = 16 << 20
"""Most bytes of a file of vectors."""

MAX_REFERENCE_JSON = 4 << 20
"""Most bytes of a file in JSON: each number takes 32 bytes while the file is read."""

MAX_NAME = 200

Vectors = NDArray[np.float32]


class References:
    """Named vectors of one size; a name may have several."""

    def __init__(self, vectors: Mapping[str, Vectors]) -> None:
        """Set up with an array of one or more rows for each name. Raises ValueError, with the reason."""
        self.names = tuple(vectors)
        _check(vectors)
        self.vectors: Vectors = np.concatenate(list(vectors.values()))
        self.counts = tuple(len(rows) for rows in vectors.values())

    @property
    def size(self) -> int:
        """Number of elements of a vector."""
        return len(self.vectors[0])


def _check(vectors: Mapping[str, Vectors]) -> None:
    if not vectors:
        raise ValueError("there are no vectors")
    size = next(iter(vectors.values())).shape[-1]
    for name, rows in vectors.items():
        if not 1 <= len(name) <= MAX_NAME:
            raise ValueError(f"a name has {len(name)} characters, and 1 to {MAX_NAME} are allowed")
        if rows.ndim != 2 or not rows.size:
            raise ValueError(f"{name!r} is neither a vector nor rows of vectors")
        if rows.shape[1] != size:
            raise ValueError(f"{name!r} has {rows.shape[1]} elements, and others have {size}")
        if not np.isfinite(rows).all():
            raise ValueError(f"{name!r} has values that are NaN or infinite")
    if sum(len(rows) for rows in vectors.values()) > MAX_VECTORS:
        raise ValueError(f"there are more than {MAX_VECTORS} vectors")


def unit(vectors: Vectors) -> Vectors:
    """Return vectors scaled to length 1; a vector of zeros stays."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, np.where(length > 0, length, 1), dtype=np.float32)


class Neighbours:
    """Distances of a vector to the nearest reference vector of each name."""

    def __init__(self, references: References, metric: Literal["cosine", "euclidean"], *, normalise: bool) -> None:
        """Set up for vectors that are scaled to length 1, if `normalise`."""
        self.names = references.names
        self._cosine = metric == "cosine"
        self._rows = unit(references.vectors) if self._cosine or normalise else references.vectors
        self._starts = np.cumsum((0, *references.counts[:-1]))
        self._between = np.empty_like(self._rows)

    def distances(self, vector: Vectors) -> Vectors:
        """Return the distance to each name."""
        if self._cosine:
            each = np.maximum(1 - self._rows @ unit(vector), np.float32(0))
        else:
            np.subtract(self._rows, vector, out=self._between)
            each = np.sqrt(np.einsum("ij,ij->i", self._between, self._between))
        return np.minimum.reduceat(each, self._starts)
