"""Rule for "embedding": an output as a vector, and the nearest of stored reference vectors."""

from __future__ import annotations

from math import inf

import numpy as np
from msgspec.structs import replace

from edged.core.decider import Decider
from edged.core.errors import ConfigError
from edged.core.manifest_outcomes import Embed
from edged.core.manifest_parts import Decision
from edged.core.outputs import all_sound
from edged.core.pictures import Placement
from edged.core.references import Neighbours, References, Vectors, unit
from edged.core.tensors import dequantise
from edged.core.types import Arrays, Embedding, Prepared, TensorSpec

_NOBODY = ""
"""Label of a vector that is far from all references; no reference has an empty name."""


class EmbeddingRule:
    """Vectors and their nearest references.

    The decider sees distances with the sign changed, and the threshold as the score of `_NOBODY`: the best label is the
    nearest reference, or nobody if that is too far.
    """

    def __init__(
        self, embed: Embed, outputs: tuple[TensorSpec, ...], decision: Decision, references: References | None
    ) -> None:
        """Raise ConfigError if the decision has rules for labels, or a vector another size than the references."""
        self._index = embed.output
        self._spec = outputs[embed.output]
        self._normalise = embed.normalise
        self._form = embed.vector
        self._nearest = None if references is None else _Nearest(embed, decision, references)

    def __call__(self, outputs: Arrays, prepared: Prepared, time: float, placement: Placement | None) -> Embedding:
        """Return the vector of a window, and the nearest reference."""
        vector = dequantise(self._spec, outputs[self._index].reshape(-1))
        all_sound(vector)
        if self._normalise:
            vector = unit(vector)
        if self._nearest is None:
            return Embedding(self._shown(vector))
        return self._nearest(vector, self._shown(vector), time)

    def reset(self) -> None:
        """Forget all earlier windows."""
        if self._nearest is not None:
            self._nearest.decider.reset()

    def _shown(self, vector: Vectors) -> bytes | list[float] | None:
        match self._form:
            case "base64":
                return vector.astype("<f4", copy=False).tobytes()
            case "array":
                numbers: list[float] = vector.tolist()
                return numbers
        return None


class _Nearest:
    def __init__(self, embed: Embed, decision: Decision, references: References) -> None:
        if decision.thresholds or decision.background:
            raise ConfigError("an embedding has no labels to decide by", hint="give the decision a `threshold` alone")
        self._neighbours = Neighbours(references, embed.metric, normalise=embed.normalise)
        self._labels = (*references.names, _NOBODY)
        self._scores = np.full(len(self._labels), -(decision.threshold or inf), np.float32)
        self.decider = Decider(replace(decision, threshold=0.0), self._labels)

    def __call__(self, vector: Vectors, shown: bytes | list[float] | None, time: float) -> Embedding:
        distances = self._neighbours.distances(vector)
        nearest = int(distances.argmin())
        self._scores[:-1] = -distances
        changed = self.decider.update(self._scores, int(self._scores.argmax()), time)
        decided = self.decider.decided
        label = None if decided is None else self._labels[decided]
        return Embedding(
            shown, self._labels[nearest], distances.item(nearest), label or None, label == _NOBODY, changed
        )
