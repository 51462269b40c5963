"""Agreement of a model's outputs with expected outputs, as the manifest's postprocessing demands.

Outputs are compared element by element, and the decision of a classification must be the same. Outputs sorted by score,
as of the op TFLite_Detection_PostProcess, are compared by box: see `box_agreement`. Of an output with the class of each
pixel, a share of the pixels may differ.
"""

from __future__ import annotations

import numpy as np

from edged.core.detection_spec import DetectObjects, SsdPostprocess
from edged.core.manifest import Classify, Golden, Manifest
from edged.core.tensors import decides_otherwise, difference, disagreement, other_share
from edged.core.types import Arrays


class SampleAgreement:
    """Comparison for a model; `elementwise` are the indices of the outputs compared element by element, and
    `class_maps` those with the class of each pixel.
    """

    def __init__(self, manifest: Manifest) -> None:
        post = manifest.postprocess
        self._specs = manifest.outputs
        posts = [part.postprocess for part in manifest.parts.values()]
        self._deciding = frozenset(post.output for post in posts if isinstance(post, Classify))
        self.class_maps = manifest.class_maps
        self._boxes: BoxAgreement | None = None
        by_box: tuple[int, ...] = ()
        if isinstance(post, DetectObjects) and isinstance(post.decoder, SsdPostprocess):
            from edged.core.box_agreement import BoxAgreement

            self._boxes, by_box = BoxAgreement(manifest, post, post.decoder), post.decoder.outputs
        self.elementwise = tuple(
            index for index in range(len(self._specs)) if index not in by_box and index not in self.class_maps
        )

    def problem(self, golden: Golden, got: Arrays, expected: Arrays, *, decides: bool = True) -> str:
        """Return the first disagreement in words, or "". `decides` means that a classification's label must agree."""
        for index in self.elementwise:
            is_decision = decides and index in self._deciding
            if found := disagreement(self._specs[index], got[index], expected[index], golden, decides=is_decision):
                return found
        for index in self.class_maps:
            others = other_share(got[index], expected[index])
            if others > golden.pixels:
                problem = f"{others:.1%} of the pixels are of another class, and {golden.pixels:.1%} are allowed"
                return f"the output {self._specs[index].name!r}: {problem}"
        return self._boxes.problem(golden, got, expected) if self._boxes else ""

    def worst(self, got: Arrays, expected: Arrays) -> float:
        """Return the largest difference of an element compared as such; NaN if any element is NaN."""
        worst = 0.0
        for index in self.elementwise:
            worst = float(np.maximum(worst, difference(got[index], expected[index])))
        return worst

    def decides_otherwise(self, golden: Golden, got: Arrays, expected: Arrays) -> bool | None:
        """Return whether the label or the boxes differ; None for a model that decides nothing."""
        if self._deciding:
            return any(decides_otherwise(got[index], expected[index]) for index in self._deciding)
        if self._boxes:
            return bool(self._boxes.problem(golden, got, expected))
        return None
