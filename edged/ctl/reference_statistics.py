"""Compute reference statistics: inputs and results of a model over a recording of normal use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edged.api import Anomaly, Classification, ControlError, Runner
from edged.core.manifest import Manifest, Reference
from edged.core.postprocess import Postprocessor
from edged.core.preprocess import Preprocessor
from edged.core.references import References
from edged.core.types import Embedding
from edged.ctl.golden_samples import windows_of

_QUARTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
_DIGITS = 6


def reference_of(file: Path, manifest: Manifest, runner: Runner, references: Mapping[str, References]) -> Reference:
    """The statistics over every window of a file.

    Raises:
        EdgedError: the file cannot be read, does not fit the model, or is shorter than a window.
    """
    inputs = _Moments(manifest.window.shape[-1])
    labels: Counter[str] = Counter()
    scores: list[float] = []
    preprocess, postprocess = Preprocessor(manifest), Postprocessor(manifest, None, references)
    runner.reset()
    windows = 0
    for window in windows_of(file, manifest):
        inputs.add(window)
        outputs = runner.run(preprocess(window))
        preprocess.feed_back(outputs)
        match postprocess(outputs, preprocess.prepared, float(windows)):
            case Classification(label=label):
                labels[label] += 1
            case Anomaly(score=score) | Embedding(distance=float() as score):
                scores.append(score)
        windows += 1
    if not windows:
        raise ControlError(f"there is no whole window in {file}", hint="record more, without gaps")
    return Reference(
        windows=windows,
        mean=_rounded(inputs.mean),
        std=_rounded(inputs.std),
        min=_rounded(inputs.least),
        max=_rounded(inputs.greatest),
        shares={label: round(count / windows, _DIGITS) for label, count in sorted(labels.items())},
        scores=_rounded(np.quantile(scores, _QUARTILES)) if scores else (),
    )


class _Moments:
    """Mean, deviation and bounds of each channel, over all added samples."""

    def __init__(self, channels: int) -> None:
        self.least = np.full(channels, np.inf)
        self.greatest = np.full(channels, -np.inf)
        self._count = 0
        self._sum = np.zeros(channels)
        self._squares = np.zeros(channels)

    @property
    def mean(self) -> NDArray[np.float64]:
        return self._sum / self._count

    @property
    def std(self) -> NDArray[np.float64]:
        return np.sqrt(np.maximum(self._squares / self._count - self.mean**2, 0.0))

    def add(self, window: NDArray[np.generic]) -> None:
        samples = window.reshape(-1, len(self._sum)).astype(np.float64)
        self._count += len(samples)
        self._sum += samples.sum(axis=0)
        self._squares += (samples**2).sum(axis=0)
        self.least = np.minimum(self.least, samples.min(axis=0))
        self.greatest = np.maximum(self.greatest, samples.max(axis=0))


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)
