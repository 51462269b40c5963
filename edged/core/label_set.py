"""Decisions over several windows for each label by itself: any number of labels may be decided at a time."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import numpy as np
from numpy.typing import NDArray

from edged.core.decider import Track, check_labels
from edged.core.manifest_parts import Decision


class LabelSetDecider:
    """Decider of the set of decided labels, by the rules of `Decision`.

    A label without a threshold is never decided. `thresholds` are in the order of the labels.
    """

    def __init__(self, decision: Decision, labels: tuple[str, ...]) -> None:
        """Raise ConfigError if the decision and the labels contradict each other."""
        check_labels(decision, labels)
        exact = np.array([decision.thresholds.get(label, decision.threshold) or inf for label in labels])
        self.thresholds: NDArray[np.float32] = exact.astype(np.float32)
        self.decided: tuple[str, ...] = ()
        self._bounds: NDArray[np.float32] = (exact - decision.hysteresis).astype(np.float32)
        self._labels = labels
        self._decision = decision
        background = set(decision.background)
        self._background = frozenset(index for index, label in enumerate(labels) if label in background)
        self._tracks: dict[int, Track] = {}

    def update(self, scores: NDArray[np.float32], over: Iterable[int], time: float) -> bool:
        """Add the scores of all labels; `over` are the labels to count as over their threshold.

        Returns whether `decided` has changed.
        """
        for index in over:
            if index not in self._background and index not in self._tracks:
                self._tracks[index] = Track(self._decision)
        before, decided = self.decided, []
        for index, track in sorted(self._tracks.items()):
            least = self._bounds if track.candidate else self.thresholds
            if track.follow(scores.item(index) >= least.item(index), time):
                decided.append(self._labels[index])
            elif track.is_idle(time):
                del self._tracks[index]
        self.decided = tuple(decided)
        return self.decided != before

    def reset(self) -> None:
        """Forget all earlier windows."""
        self.decided = ()
        self._tracks.clear()
