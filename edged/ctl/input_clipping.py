"""Count the input values beyond the range of quantised tensors, a sign of a wrong unit or normalisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from edged.api import ControlError, TensorSpec
from edged.core.manifest import Manifest, NoStep
from edged.core.preprocess import Preprocessor

MAX_SHARE = 0.2


class Clipping:
    """The share of values beyond the range of the tensors, over all added windows."""

    def __init__(self, manifest: Manifest) -> None:
        self.clipped = self.values = 0
        self.worst: TensorSpec | None = None
        real = tuple(
            replace(each, tensor=replace(each.tensor, dtype="float32", scale=0.0, zero_point=0))
            if each.feed == "window"
            else each
            for each in manifest.inputs
        )
        self._tensors = [each.tensor for each in manifest.inputs]
        self._fed = [index for index, each in enumerate(manifest.inputs) if _may_clip(manifest, index)]
        self._preprocess = Preprocessor(replace(manifest, inputs=real)) if self._fed else None

    @property
    def is_bad(self) -> bool:
        """Return whether the share is more than a fifth."""
        return self.clipped > MAX_SHARE * self.values

    def add(self, window: NDArray[Any]) -> None:
        """Count the values of a window."""
        if self._preprocess is None:
            return
        inputs = self._preprocess(window)
        for index in self._fed:
            tensor = self._tensors[index]
            limits = np.iinfo(tensor.numpy_dtype)
            stored = np.rint(inputs[index].astype(np.float64) / (tensor.scale or 1.0) + tensor.zero_point)
            clipped = int(np.count_nonzero((stored < limits.min) | (stored > limits.max)))
            self.clipped += clipped
            self.values += stored.size
            if clipped:
                self.worst = tensor

    def refuse(self, file: Path) -> None:
        """Raise ControlError if the share is more than a fifth."""
        if self.is_bad:
            raise ControlError(
                f"{file}: {self.words()}: results of the model would prove nothing",
                hint='correct the units of the recording, or `preprocess` in --manifest: [{"step":"none"}] lets the '
                "pixels of a picture in as they are",
            )

    def words(self) -> str:
        """Return the share and the range of the tensor, in words."""
        assert self.worst is not None
        limits = np.iinfo(self.worst.numpy_dtype)
        low, high = ((bound - self.worst.zero_point) * (self.worst.scale or 1.0) for bound in (limits.min, limits.max))
        return (
            f"{self.clipped / self.values:.0%} of the input values are clipped, beyond "
            f"{low:.4g} to {high:.4g}, the range of the input {self.worst.name!r}"
        )


def _may_clip(manifest: Manifest, index: int) -> bool:
    """Return whether an input is fed with real values, possibly beyond the range of the integers."""
    each = manifest.inputs[index]
    as_they_are = manifest.preprocess == (NoStep(),) and manifest.window.is_picture
    return each.feed == "window" and each.tensor.numpy_dtype.kind in "iu" and not as_they_are
