"""Rule for "multilabel": all labels over their thresholds, each decided by itself."""

from __future__ import annotations

from math import prod

import numpy as np

from edged.core.label_set import LabelSetDecider
from edged.core.manifest_outcomes import ClassifyMany
from edged.core.manifest_parts import Decision
from edged.core.outputs import activate, all_sound
from edged.core.pictures import Placement
from edged.core.tensors import dequantise
from edged.core.types import Arrays, Labels, Prepared, Score, TensorSpec


class LabelRule:
    """Labels and their decisions from scores."""

    def __init__(
        self, many: ClassifyMany, outputs: tuple[TensorSpec, ...], labels: tuple[str, ...], decision: Decision
    ) -> None:
        """Raise ConfigError if the decision and the labels contradict each other."""
        self._index = many.output
        self._spec = outputs[many.output]
        self._activation = many.activation
        self._top_k = many.top_k
        self._labels = (*labels, *map(str, range(len(labels), prod(self._spec.shape))))
        self._decider = LabelSetDecider(decision, self._labels)
        self.reset = self._decider.reset

    def __call__(self, outputs: Arrays, prepared: Prepared, time: float, placement: Placement | None) -> Labels:
        """Return the labels of a window."""
        scores = activate(self._activation, dequantise(self._spec, outputs[self._index].reshape(-1)))
        all_sound(scores)
        over = np.flatnonzero(scores >= self._decider.thresholds)
        order = over[np.argsort(-scores[over], kind="stable")][: self._top_k].tolist()
        changed = self._decider.update(scores, order, time)
        best = tuple(Score(self._labels[index], scores.item(index)) for index in order)
        return Labels(best, self._decider.decided, changed)
