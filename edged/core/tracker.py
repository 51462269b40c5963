"""Numbers for objects seen in consecutive windows: a box takes over the number of the box with the most overlap.

The memory is bounded: an object is forgotten after some windows without a sight of the object.
"""

from __future__ import annotations

from collections.abc import Sequence

from edged.core.boxes import overlap

MAX_OBJECTS = 1000
"""Most objects remembered; of more, the objects out of sight for the longest time are forgotten."""

Corners = tuple[float, float, float, float]


class TrackedObject:
    """Object with a number: label, latest box, and number of windows since the last sight."""

    __slots__ = ("box", "label", "missed", "number")

    def __init__(self, number: int, label: str, box: Corners) -> None:
        self.number = number
        self.label = label
        self.box = box
        self.missed = 0


class Tracker:
    """Numbers of the objects of a pipeline, counted from 1."""

    def __init__(self, windows: int, least_overlap: float) -> None:
        """Forget an object not seen for more than `windows` windows."""
        self._windows = windows
        self._least = least_overlap
        self._objects: list[TrackedObject] = []
        self._last = 0

    def numbers(self, labels: Sequence[str], boxes: Sequence[Corners]) -> list[int]:
        """Return the numbers of the objects in a window."""
        pairs = [
            (shared, index, known)
            for index, (label, box) in enumerate(zip(labels, boxes, strict=True))
            for known in self._objects
            if known.label == label and (shared := overlap(known.box, box)) >= self._least
        ]
        pairs.sort(key=lambda pair: (-pair[0], pair[2].missed, pair[1]))
        taken: dict[int, TrackedObject] = {}
        seen = set()
        for _, index, known in pairs:
            if index not in taken and known.number not in seen:
                taken[index] = known
                seen.add(known.number)
        numbers = [self._see(taken.get(index), labels[index], box) for index, box in enumerate(boxes)]
        self._forget({*numbers})
        return numbers

    def reset(self) -> None:
        """Forget all objects; numbers are not used again."""
        self._objects.clear()

    def _see(self, known: TrackedObject | None, label: str, box: Corners) -> int:
        if known is None:
            self._last += 1
            known = TrackedObject(self._last, label, box)
            self._objects.append(known)
        known.box = box
        return known.number

    def _forget(self, seen: set[int]) -> None:
        for known in self._objects:
            known.missed = 0 if known.number in seen else known.missed + 1
        self._objects = [known for known in self._objects if known.missed <= self._windows]
        if len(self._objects) > MAX_OBJECTS:
            self._objects = sorted(self._objects, key=lambda known: known.missed)[:MAX_OBJECTS]
