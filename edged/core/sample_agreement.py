"""Agreement of a model's outputs with expected outputs, as the manifest's postprocessing demands.

Outputs are compared element by element, and the decision of a classification must be the same. Outputs sorted by score,
as of the op TFLite_Detection_PostProcess, are compared by box: see `box_agreement`.
"""

from __future__ import annotations

import numpy as np

from edged.core.detection_spec import DetectObjects, SsdPostprocess
from edged.core.manifest import Classify, Golden, Manifest
from edged.core.tensors import decides_otherwise, difference, disagreement
from edged.core.types import Arrays


class SampleAgreement:
    """Comparison for a model; `elementwise` are the indices of the outputs compared element by element."""

    def __init__(self, manifest: Manifest) -> None:
        post = manifest.postprocess
        self._specs = manifest.outputs
        self._deciding = post.output if isinstance(post, Classify) else None
        self._boxes: BoxAgreement | None = None
        by_box: tuple[int, ...] = ()
        if isinstance(post, DetectObjects) and isinstance(post.decoder, SsdPostprocess):
            from edged.core.box_agreement import BoxAgreement

            self._boxes, by_box = BoxAgreement(manifest, post, post.decoder), post.decoder.outputs
        self.elementwise = tuple(index for index in range(len(self._specs)) if index not in by_box)

    def problem(self, golden: Golden, got: Arrays, expected: Arrays, *, decides: bool = True) -> str:
        """Return the first disagreement in words, or "". `decides` means that a classification's label must agree."""
        for index in self.elementwise:
            is_decision = decides and index == self._deciding
            if found := disagreement(self._specs[index], got[index], expected[index], golden, decides=is_decision):
                return found
        return self._boxes.problem(golden, got, expected) if self._boxes else ""

    def worst(self, got: Arrays, expected: Arrays) -> float:
        """Return the largest difference of an element compared as such; NaN if any element is NaN."""
        worst = 0.0
        for index in self.elementwise:
            worst = float(np.maximum(worst, difference(got[index], expected[index])))
        return worst

    def decides_otherwise(self, golden: Golden, got: Arrays, expected: Arrays) -> bool | None:
        """Return whether the label or the boxes differ; None for a model that decides nothing."""
        if self._deciding is not None:
            return decides_otherwise(got[self._deciding], expected[self._deciding])
        if self._boxes:
            return bool(self._boxes.problem(golden, got, expected))
        return None
