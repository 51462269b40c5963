"""Agreement of the boxes of the op TFLite_Detection_PostProcess with expected boxes.

The boxes are sorted by score, and nearly equal scores change places on another kernel. Each clear object must therefore
have a counterpart on the other side, wherever it stands.
"""

from __future__ import annotations

import numpy as np

from edged.core.boxes import overlap
from edged.core.detection_decoders import Candidates, decoder
from edged.core.detection_spec import DetectObjects, SsdPostprocess
from edged.core.manifest import Golden, Manifest
from edged.core.types import Arrays


class BoxAgreement:
    """Comparison of the boxes of a model."""

    def __init__(self, manifest: Manifest, detect: DetectObjects, roles: SsdPostprocess) -> None:
        self._labels = manifest.labels[detect.label_offset :]
        self._threshold = detect.decision.threshold
        height, width = manifest.window.sample_shape[:2]
        everything = np.zeros(len(self._labels), np.float32)
        self._decode = decoder(roles, manifest.outputs, everything, width, height)

    def problem(self, golden: Golden, got: Arrays, expected: Arrays) -> str:
        """Return the first clear object without a counterpart on the other side, in words, or ""."""
        here, there = self._decode(got), self._decode(expected)
        for side, other, words in ((there, here, "is missing"), (here, there, "is not expected")):
            for index in range(len(side.scores)):
                if not self._has_counterpart(golden, side, index, other):
                    label, score = self._labels[side.classes[index]], side.scores[index]
                    return f"the object {label!r} of score {score:.3f} {words}"
        return ""

    def _has_counterpart(self, golden: Golden, side: Candidates, index: int, other: Candidates) -> bool:
        """Return whether a clear object is on the other side. An object near the threshold may be missing there."""
        score, kind, box = side.scores[index], side.classes[index], side.boxes[index].tolist()
        if score < self._threshold + golden.score:
            return True
        return any(
            other.classes[each] == kind
            and abs(other.scores[each] - score) <= golden.score
            and overlap(other.boxes[each].tolist(), box) >= golden.overlap
            for each in range(len(other.scores))
        )
