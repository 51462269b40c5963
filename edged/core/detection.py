"""Detection of objects: from the outputs of a model to boxes in the source's picture, and decisions by zone and label.

`detection_decoders` finds the candidates; everything here handles at most `max_boxes` of them.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import numpy as np

from edged.core.boxes import Floats, is_inside
from edged.core.decider import Track, refuse_impossible, refuse_strangers
from edged.core.detection_decoders import Candidates, decoder
from edged.core.detection_spec import WHOLE, DetectObjects, ObjectDecision, counted_labels
from edged.core.errors import ConfigError, some
from edged.core.labels import GAP
from edged.core.manifest import Manifest
from edged.core.manifest_parts import Decision
from edged.core.pictures import Placement
from edged.core.tracker import Tracker
from edged.core.types import Arrays, Detections, FoundObject

_EDGE = 1e-6
"""Distance from the edges of the picture, in fractions, of the points held against zones: no point is on an edge."""


class ObjectDetector:
    """Rule for a manifest of kind "detection"."""

    def __init__(self, manifest: Manifest, detect: DetectObjects, decision: Decision) -> None:
        """Set up for a checked manifest. Raises ConfigError if the decision does not fit the model."""
        assert isinstance(decision, ObjectDecision), "config.check makes it of the manifest's own"
        height, width = manifest.window.sample_shape[:2]
        self._decision = decision
        self._labels = manifest.labels[detect.label_offset :]
        self._untouched = Placement(width, height, 0.0, 0.0, 1.0, 1.0)
        least = _least(decision, manifest.labels, self._labels)
        self._decode = decoder(detect.decoder, manifest.outputs, least, width, height)
        self._zones = _Zones(decision, self._labels)
        self._tracker = Tracker(decision.track, decision.track_overlap) if decision.track else None

    def __call__(self, outputs: Arrays, prepared: object, time: float, placement: Placement | None) -> Detections:
        """Return the objects in a window. Raises ModelError for outputs that are NaN or infinite."""
        placement = placement or self._untouched
        found = self._placed(self._decode(outputs), placement)
        numbers = self._tracker and self._tracker.numbers([each.label for each in found], [each.box for each in found])
        zones = [self._zones.of(each, placement) for each in found]
        present, changed = self._zones.decide(found, zones, time)
        return Detections(
            tuple(
                FoundObject(each.label, each.score, each.box, names, numbers[index] if numbers else None)
                for index, (each, names) in enumerate(zip(found, zones, strict=True))
            ),
            self._zones.counts(found, zones),
            present,
            changed,
            (placement.width, placement.height),
        )

    def reset(self) -> None:
        """Forget all earlier windows."""
        self._zones.reset()
        if self._tracker:
            self._tracker.reset()

    def _placed(self, candidates: Candidates, placement: Placement) -> list[_Placed]:
        """Return the best boxes of sufficient size, in the source's picture."""
        least = self._decision.min_size
        found: list[_Placed] = []
        for corners, score, index in zip(
            candidates.boxes.tolist(), candidates.scores.tolist(), candidates.classes.tolist(), strict=True
        ):
            box = placement.box(*corners)
            width, height = box[2] - box[0], box[3] - box[1]
            if width > 0 and height > 0 and min(width / placement.width, height / placement.height) >= least:
                found.append(_Placed(self._labels[index], score, box))
                if len(found) == self._decision.max_boxes:
                    break
        return found


class _Placed(NamedTuple):
    label: str
    score: float
    box: tuple[float, float, float, float]


class _Zones:
    """Zones of a picture, and a decision for each label in each zone."""

    def __init__(self, decision: ObjectDecision, labels: tuple[str, ...]) -> None:
        self._decision = decision
        self._polygons = decision.zones
        self._names = tuple(decision.zones) or (WHOLE,)
        self._positions = {label: index for index, label in enumerate(labels)}
        self._exact = {label: float(np.float32(decision.thresholds.get(label, decision.threshold))) for label in labels}
        self._tracks: dict[tuple[str, str], Track] = {}
        self._present: dict[str, tuple[str, ...]] = dict.fromkeys(self._names, ())

    def of(self, found: _Placed, placement: Placement) -> tuple[str, ...]:
        """Return the names of the zones that hold an object."""
        if not self._polygons:
            return self._names
        left, top, right, bottom = found.box
        y = bottom if self._decision.zone_point == "bottom" else (top + bottom) / 2
        across, down = (
            min(max(value, _EDGE), 1 - _EDGE) for value in ((left + right) / 2 / placement.width, y / placement.height)
        )
        return tuple(name for name, polygon in self._polygons.items() if is_inside(across, down, polygon))

    def counts(self, found: list[_Placed], zones: list[tuple[str, ...]]) -> dict[str, dict[str, int]]:
        """Return the number of objects by zone and label."""
        counts: dict[str, dict[str, int]] = {name: {} for name in self._names}
        for each, names in zip(found, zones, strict=True):
            for name in names:
                counts[name][each.label] = counts[name].get(each.label, 0) + 1
        return counts

    def decide(
        self, found: list[_Placed], zones: list[tuple[str, ...]], time: float
    ) -> tuple[dict[str, tuple[str, ...]], bool]:
        """Return the decided labels by zone, and whether they have changed."""
        best: dict[tuple[str, str], float] = {}
        for each, names in zip(found, zones, strict=True):  # best first
            for name in names:
                best.setdefault((name, each.label), each.score)
        for key, score in best.items():
            if key not in self._tracks and score >= self._exact[key[1]]:
                self._tracks[key] = Track(self._decision)
        present: dict[str, list[str]] = {name: [] for name in self._names}
        for key, track in list(self._tracks.items()):
            zone, label = key
            score = best.get(key, -inf)  # a box between the bound and the threshold keeps a candidate
            if track.follow(score > -inf if track.candidate else score >= self._exact[label], time):
                present[zone].append(label)
            elif track.is_idle(time):
                del self._tracks[key]
        before = self._present
        self._present = {zone: tuple(sorted(found, key=self._positions.__getitem__)) for zone, found in present.items()}
        return self._present, self._present != before

    def reset(self) -> None:
        self._tracks.clear()
        self._present = dict.fromkeys(self._names, ())


def _least(decision: ObjectDecision, all_labels: tuple[str, ...], labels: tuple[str, ...]) -> Floats:
    """Return the least score of a reported box by class, infinite for a label that does not count.

    Raises:
        ConfigError: the decision does not fit the labels, or can never be reached.
    """
    refuse_strangers({*decision.thresholds, *decision.background, *decision.labels} - {GAP}, all_labels)
    refuse_impossible(decision)
    if not decision.threshold or not all(decision.thresholds.values()):
        raise ConfigError(
            "the decision has a threshold of 0, and any part of a picture would be an object",
            hint="set `threshold` to the least score that counts",
        )
    if decision.hysteresis >= min([decision.threshold, *decision.thresholds.values()]):
        raise ConfigError(
            f"the decision's hysteresis of {decision.hysteresis:g} leaves nothing of a threshold",
            hint="make `hysteresis` less than each threshold",
        )
    counted = set(counted_labels(labels, decision))
    if not counted:
        raise ConfigError(
            "the decision drops every label", hint=f"leave some of the model's labels: {some(all_labels, 20)}"
        )
    least = [
        decision.thresholds.get(label, decision.threshold) - decision.hysteresis if label in counted else inf
        for label in labels
    ]
    return np.array(least, np.float32)
