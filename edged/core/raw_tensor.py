"""Rule for "tensor": an output as an array."""

from __future__ import annotations

import numpy as np

from edged.core.manifest_outcomes import ReadTensor
from edged.core.outputs import all_sound
from edged.core.pictures import Placement
from edged.core.tensors import dequantise
from edged.core.types import Arrays, Prepared, Tensor, TensorSpec


class TensorRule:
    """Values of an output in row-major order, with their type and shape."""

    def __init__(self, read: ReadTensor, outputs: tuple[TensorSpec, ...]) -> None:
        self._index = read.output
        self._spec = outputs[read.output]
        self._real = read.values == "real" and bool(self._spec.scale)

    def __call__(self, outputs: Arrays, prepared: Prepared, time: float, placement: Placement | None) -> Tensor:
        """Return the tensor of a window."""
        values = outputs[self._index].reshape(-1)
        if self._real:
            values = dequantise(self._spec, values)
        if values.dtype.kind == "f":
            all_sound(values)
        numbers: list[float] = (values.view(np.uint8) if values.dtype.kind == "b" else values).tolist()
        return Tensor(str(values.dtype), self._spec.shape, numbers)

    def reset(self) -> None:
        """Do nothing: a tensor keeps no state."""
