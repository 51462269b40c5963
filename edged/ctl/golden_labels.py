"""Known labels of golden windows, from a file with a line for each window; "-" for no label.

For a detection a line holds the labels of all objects in the window, separated by commas, or "nothing".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edged.api import Anomaly, Classification, ControlError, Detections, Outcome
from edged.core.detection_spec import DetectObjects, counted_labels
from edged.core.errors import some
from edged.core.manifest import Classify, DetectAnomaly, Manifest
from edged.core.manifest_outcomes import ClassifyMany, Embed, FindKeypoints, SegmentPicture
from edged.core.references import References
from edged.core.types import Embedding, Keypoints, Labels, Segmentation

MAX_BYTES = 16 << 20
ANOMALY, NORMAL = "anomaly", "normal"
NOTHING = "nothing"
PRESENT, ABSENT = "present", "absent"


class GoldenLabels:
    """Known labels by the number of the window."""

    def __init__(self, file: Path, manifest: Manifest, vectors: Mapping[str, References]) -> None:
        """Read the file; `vectors` are the references of embeddings, by their file.

        Raises:
            ControlError: the file cannot be read, or names a label unknown to the model.
        """
        self.vectors = vectors
        self._file = file
        self._lines = _lines(file)
        self._several = isinstance(manifest.postprocess, DetectObjects)
        match manifest.postprocess:
            case Classify():
                known: tuple[str, ...] = manifest.labels
            case DetectAnomaly():
                known = (ANOMALY, NORMAL)
            case DetectObjects():
                known = (*counted_labels(manifest.labels, manifest.postprocess.decision), NOTHING)
            case ClassifyMany() | SegmentPicture():
                known = manifest.labels
            case Embed(references=str() as references) if references in vectors:
                known = vectors[references].names
            case FindKeypoints():
                known = (PRESENT, ABSENT)
            case post:
                kind = post.__struct_config__.tag
                raise ControlError(
                    f"{file}: results of the kind {kind!r} have no labels to be held to", hint="leave out --expect"
                )
        names = ((number, name) for number, line in self._labels() for name in self._names(line))
        unknown = next(((number, name) for number, name in names if name not in known), None)
        if unknown is not None:
            raise ControlError(
                f"{file}, line {unknown[0] + 1}: the model has no label {unknown[1][:80]!r}",
                hint=f"its labels: {some(known)}; - for a window that is not to be held to one",
            )

    def windows(self, count: int, golden: Path) -> list[int]:
        """Return the numbers of the windows with a label. Raises ControlError unless the file has `count` lines."""
        if len(self._lines) != count:
            raise ControlError(
                f"{self._file} has {len(self._lines)} lines, and {golden} {count} windows",
                hint="write the label of a window on each line, and - for a window that is not to be held to one",
            )
        return [number for number, _ in self._labels()]

    def hold(self, window: int, outcome: Outcome) -> None:
        """Compare the result of a window with the known label. Raises ControlError for a difference.

        Of many labels one is known, and of a segmentation the class with the greatest share.
        """
        label = self._lines[window]
        said: str | None
        match outcome:
            case Classification(label=said, score=score):
                words = f"{said!r} ({score:.3f})"
            case Anomaly(score=score, threshold=threshold):
                said = ANOMALY if score >= threshold else NORMAL
                words = f"{said!r} ({score:.4g}, the threshold is {threshold:.4g})"
            case Detections(objects=found):
                said = ",".join(sorted({each.label for each in found})) or NOTHING
                label = ",".join(sorted(set(self._names(label))))
                words = f"{said!r}"
            case Labels(scores=scores):
                words = f"{some([each.label for each in scores]) or 'nothing'!r}"
                said = label if label in {each.label for each in scores} else None
            case Segmentation(shares=shares):
                said = shares[0].label if shares else None
                words = f"{said!r}"
            case Embedding(nearest=said, distance=float() as distance):
                words = f"{said!r} (at {distance:.4g})"
            case Keypoints(score=score, threshold=threshold):
                said = PRESENT if score >= threshold else ABSENT
                words = f"{said!r} ({score:.3f}, the threshold is {threshold:.4g})"
            case _:
                return
        if said != label:
            raise ControlError(
                f"the model says {words} of window {window}, and {self._file}, line {window + 1}, has {label!r}",
                hint="check `preprocess`, the units and the order of the labels; - if the model may be wrong there",
            )

    def _names(self, line: str) -> list[str]:
        return [name.strip() for name in line.split(",")] if self._several else [line]

    def _labels(self) -> list[tuple[int, str]]:
        return [(number, label) for number, label in enumerate(self._lines) if label != "-"]


def _lines(file: Path) -> list[str]:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
        lines = [line.strip() for line in data.decode("utf-8-sig").rstrip("\n").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise ControlError(f"{file} cannot be read: {error}", hint="write a text file with a label a line") from error
    if len(data) > MAX_BYTES or not any(line not in ("", "-") for line in lines):
        raise ControlError(f"{file} has no labels, or too many", hint="write a text file with a label a line")
    return lines
