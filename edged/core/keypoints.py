"""Rule for "keypoints": named points in the source's picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edged.core.decider import Decider
from edged.core.manifest_outcomes import FindKeypoints
from edged.core.manifest_parts import Decision
from edged.core.outputs import activate, all_sound
from edged.core.pictures import Placement
from edged.core.tensors import dequantise
from edged.core.types import Arrays, Keypoint, Keypoints, Prepared, TensorSpec


class KeypointRule:
    """Keypoints from a row of values for each."""

    def __init__(
        self, find: FindKeypoints, outputs: tuple[TensorSpec, ...], size: tuple[int, int], decision: Decision
    ) -> None:
        """Set up for a model's picture of this width and height. Raises ConfigError for an impossible decision."""
        self._outputs = outputs
        self._index = find.output
        self._columns = find.columns
        self._scores = find.scores
        self._activation = find.activation
        self._names = find.points
        self._least = find.threshold
        self._scale = size if find.units == "share" else (1, 1)
        self._size = size
        self._threshold = decision.threshold
        self._decider = Decider(decision, ("present",))
        self.reset = self._decider.reset

    def __call__(self, outputs: Arrays, prepared: Prepared, time: float, placement: Placement | None) -> Keypoints:
        """Return the keypoints of a window."""
        rows = self._real(outputs, self._index).reshape(len(self._names), len(self._columns))
        all_sound(rows)
        scores = self._scores_of(rows, outputs).tolist()
        across, down = (rows[:, self._columns.index(axis)].tolist() for axis in ("x", "y"))
        place = placement or Placement(*self._size, 0.0, 0.0, 1.0, 1.0)
        points = tuple(
            Keypoint(name, *place.point(x * self._scale[0], y * self._scale[1]), score)
            for name, x, y, score in zip(self._names, across, down, scores, strict=True)
            if score >= self._least
        )
        mean = sum(scores) / len(scores)
        changed = self._decider.update([mean], 0, time)
        picture = None if placement is None else (placement.width, placement.height)
        return Keypoints(mean, self._threshold, self._decider.decided is not None, changed, points, picture)

    def _real(self, outputs: Arrays, index: int) -> NDArray[np.float32]:
        return dequantise(self._outputs[index], outputs[index].reshape(-1))

    def _scores_of(self, rows: NDArray[np.float32], outputs: Arrays) -> NDArray[np.float32]:
        """Return the score of each keypoint."""
        if self._scores is not None:
            scores = self._real(outputs, self._scores)
        elif "score" in self._columns:
            scores = rows[:, self._columns.index("score")]
        else:
            return np.ones(len(rows), np.float32)
        all_sound(scores)
        return np.broadcast_to(activate(self._activation, scores.copy()), len(rows))
