"""Postprocessing: from output tensors to outcomes.

`_rule` chooses the rule for the manifest's kind. A rule that most boards do not need is a module of its own, imported
when chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import hypot, inf, prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edged.core.decider import Decider, Scores
from edged.core.detection_spec import DetectObjects
from edged.core.errors import ConfigError
from edged.core.manifest import Classify, DetectAnomaly, Manifest, Regress, Several
from edged.core.manifest_outcomes import ClassifyMany, Embed, FindKeypoints, ReadTensor, SegmentPicture
from edged.core.manifest_parts import Decision
from edged.core.outputs import BYTES, FEW, activate, best, real_values, sound, values_of
from edged.core.pictures import Placement
from edged.core.references import References
from edged.core.tensors import dequantise
from edged.core.types import (
    Anomaly,
    Arrays,
    Classification,
    Outcome,
    Outcomes,
    Prepared,
    Regression,
    Score,
    SingleOutcome,
)


class _Rule(Protocol):
    def __call__(
        self, outputs: Arrays, prepared: Prepared, time: float, placement: Placement | None
    ) -> SingleOutcome: ...

    def reset(self) -> None: ...


NO_REFERENCES: Mapping[str, References] = {}


class Postprocessor:
    """Conversion of a model's outputs to outcomes."""

    def __init__(
        self,
        manifest: Manifest,
        decision: Decision | None,
        references: Mapping[str, References] = NO_REFERENCES,
    ) -> None:
        """Set up for a checked manifest; `decision` overrides the manifest's own, unless None.

        `references` are those of the bundle, by the name of their file.

        Raises:
            ConfigError: the decision names labels unknown to the model, or can never be reached.
        """
        several = isinstance(manifest.postprocess, Several)
        if several and decision is not None:
            raise ConfigError(
                f"the model {manifest.name!r} has several outcomes, each with a decision of its own",
                hint="delete the table `decision` of the pipeline",
            )
        self._rules = {name: _rule(part, decision, references) for name, part in manifest.parts.items()}
        self._rule = None if several else self._rules[""]

    def __call__(self, outputs: Arrays, prepared: Prepared, time: float, placement: Placement | None = None) -> Outcome:
        """Return the outcome of a window whose last sample arrived at `time`, in monotonic seconds.

        `prepared` comes from the preprocessor, for a model whose score needs the preprocessed input.
        `placement` leads from the model's picture to the source's; None for a window that is not from a picture.

        Raises:
            ModelError: an output is NaN or infinite.
        """
        if self._rule is not None:
            return self._rule(outputs, prepared, time, placement)
        return Outcomes({name: rule(outputs, prepared, time, placement) for name, rule in self._rules.items()})

    def reset(self) -> None:
        """Forget all earlier windows."""
        for rule in self._rules.values():
            rule.reset()


def _rule(manifest: Manifest, decision: Decision | None, references: Mapping[str, References]) -> _Rule:
    outputs, labels = manifest.outputs, manifest.labels
    match manifest.postprocess:
        case Classify() as classify:
            return _Classifier(manifest, classify, decision or classify.decision)
        case DetectAnomaly() as detect:
            return _Detector(manifest, detect, decision or detect.decision)
        case DetectObjects() as objects:
            from edged.core.detection import ObjectDetector

            return ObjectDetector(manifest, objects, decision or objects.decision)
        case Regress() as regress:
            _refuse_decision(manifest, decision)
            return _Regressor(manifest, regress)
        case ClassifyMany() as many:
            from edged.core.multilabel import LabelRule

            return LabelRule(many, outputs, labels, decision or many.decision)
        case Embed() as embed:
            from edged.core.embedding import EmbeddingRule

            if embed.references is None:
                _refuse_decision(manifest, decision)
            stored = references.get(embed.references or "")
            return EmbeddingRule(embed, outputs, decision or embed.decision, stored)
        case FindKeypoints() as find:
            from edged.core.keypoints import KeypointRule

            height, width = manifest.window.sample_shape[:2]
            return KeypointRule(find, outputs, (width, height), decision or find.decision)
        case SegmentPicture() as segment:
            from edged.core.segmentation import SegmentRule

            return SegmentRule(segment, outputs, labels, decision or segment.decision)
        case ReadTensor() as read:
            from edged.core.raw_tensor import TensorRule

            _refuse_decision(manifest, decision)
            return TensorRule(read, outputs)
        case Several():
            raise AssertionError("several outcomes are not nested")


def _refuse_decision(manifest: Manifest, decision: Decision | None) -> None:
    if decision is not None:
        kind = manifest.postprocess.__struct_config__.tag
        raise ConfigError(
            f"the model {manifest.name!r} has results of the kind {kind!r}, and makes no decisions",
            hint="delete the table `decision` of the pipeline",
        )


class _Classifier:
    def __init__(self, manifest: Manifest, classify: Classify, decision: Decision) -> None:
        self._index = classify.output
        self._spec = manifest.outputs[classify.output]
        self._activation = classify.activation
        self._top_k = classify.top_k
        count = prod(self._spec.shape)
        self._labels = (*manifest.labels, *map(str, range(len(manifest.labels), count)))
        self._values = values_of(self._spec, self._activation) if count <= FEW else None
        self._decider = Decider(decision, self._labels)
        self.reset = self._decider.reset
        needs_best = self._decider.at_once and self._activation == "none" and self._spec.dtype in BYTES
        self._real_of = real_values(self._spec) if needs_best else None
        self._best = np.zeros(count, np.float32)

    def __call__(self, outputs: Arrays, prepared: Prepared, time: float, placement: Placement | None) -> Classification:
        stored = outputs[self._index].reshape(-1)
        real, order = self._few(stored) or self._many(stored)
        labels = self._labels
        scores = tuple([Score(labels[index], float(real[index])) for index in order])
        changed = self._decider.update(real, order[0], time)
        decided = self._decider.decided
        return Classification(
            scores[0].label, scores[0].score, scores, None if decided is None else labels[decided], changed
        )

    def _few(self, stored: NDArray[Any]) -> tuple[Scores, list[int]] | None:
        """Return the scores and the indices of the best; None if there are many, or one is not finite."""
        if self._values is None:
            return None
        real = self._values(stored)
        if not hypot(*real) < inf:
            return None
        codes = stored.tolist()
        return real, sorted(range(len(codes)), key=codes.__getitem__, reverse=True)[: self._top_k]

    def _many(self, stored: NDArray[Any]) -> tuple[Scores, list[int]]:
        order = best(stored, self._top_k)
        if self._real_of is None:
            real = activate(self._activation, dequantise(self._spec, stored))
        else:
            real = self._best  # the other elements are never read
            for index in order:
                real[index] = self._real_of[stored.item(index)]
        for index in order:
            sound(real.item(index))
        return real, order


class _Regressor:
    def __init__(self, manifest: Manifest, regress: Regress) -> None:
        self._index = regress.output
        self._values = values_of(manifest.outputs[regress.output])
        self._names = regress.names

    def __call__(self, outputs: Arrays, prepared: Prepared, time: float, placement: Placement | None) -> Regression:
        values = self._values(outputs[self._index].reshape(-1))
        if not self._names:
            return Regression([sound(value) for value in values])
        return Regression({name: sound(value) for name, value in zip(self._names, values, strict=True)})

    def reset(self) -> None:
        """Do nothing: a regression keeps no state."""


class _Detector:
    def __init__(self, manifest: Manifest, detect: DetectAnomaly, decision: Decision) -> None:
        self._index = detect.output
        self._spec = manifest.outputs[detect.output]
        self._score = detect.score
        self._values = values_of(self._spec)
        self._threshold = decision.threshold
        self._decider = Decider(decision, ("anomaly",))
        self.reset = self._decider.reset

    def __call__(self, outputs: Arrays, prepared: Prepared, time: float, placement: Placement | None) -> Anomaly:
        stored = outputs[self._index].reshape(-1)
        score = self._values(stored[:1])[0] if self._score == "output" else self._error(stored, prepared)
        value = sound(score)
        changed = self._decider.update([value], 0, time)
        return Anomaly(value, self._threshold, self._decider.decided is not None, changed)

    def _error(self, stored: NDArray[Any], prepared: Prepared) -> float:
        assert prepared is not None, "the preprocessor keeps the values for these models"
        rebuilt = dequantise(self._spec, stored)
        error = np.subtract(rebuilt, prepared.reshape(-1), out=rebuilt)
        if self._score == "mean_squared_error":
            np.multiply(error, error, out=error)
        else:
            np.abs(error, out=error)
        return float(np.add.reduce(error) / np.float32(error.size))
