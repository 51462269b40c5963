"""Masks of segmentations to the broker, on topics of their own, at most one mask in a number of seconds.

An old mask is worthless: without a connection no mask is made, and no mask is kept on disk.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from math import inf
from typing import Protocol

from edged.api import Message, Outcome, Prediction, Recorder, Topics
from edged.core.masks import MaskForm, SegmentMask, mask_origin
from edged.core.types import Outcomes, Segmentation

log = logging.getLogger("edged.flow")

MAX_RUNS = 50_000
"""Most runs of a mask as run lengths; a PNG has no limit."""

EXPIRY_SECONDS = 10


class MaskOutbox(Protocol):
    """Connection to a broker."""

    connected: bool

    def put(self, message: Message) -> None:
        """Send a message."""


class MaskSender:
    """Sender of the masks of a pipeline, called with each prediction."""

    def __init__(
        self, form: MaskForm, seconds: float, *, recorder: Recorder, topics: Topics, outbox: MaskOutbox
    ) -> None:
        self._form = form
        self._seconds = seconds
        self._recorder = recorder
        self._topics = topics
        self._outbox = outbox
        self._next = -inf
        self._has_warned = False

    def send(self, prediction: Prediction) -> None:
        """Send the masks of a prediction if due."""
        if prediction.time < self._next or not self._outbox.connected:
            return
        for outcome, mask in _masks(prediction.outcome):
            self._next = prediction.time + self._seconds
            if self._fits(prediction.pipeline, mask):
                self._send(prediction, outcome, mask)

    def _fits(self, pipeline: str, mask: SegmentMask) -> bool:
        if not all(mask.size):
            return False
        if self._form == "png" or mask.changes < MAX_RUNS:
            return True
        if not self._has_warned:
            self._has_warned = True
            log.warning('pipeline %s: a mask has too many runs, and is left out: set publish_mask = "png"', pipeline)
        return False

    def _send(self, prediction: Prediction, outcome: str, mask: SegmentMask) -> None:
        self._outbox.put(
            Message(
                topic=self._topics.mask(prediction.pipeline, outcome),
                payload=self._recorder.mask(prediction, outcome, mask, self._form),
                origin=mask_origin(prediction.pipeline),
                seq=prediction.seq,
                created=prediction.time + prediction.latency,
                qos=0,
                expiry=EXPIRY_SECONDS,
                properties=(("schema", "edged.mask/1"),),
            )
        )


def _masks(outcome: Outcome) -> Iterator[tuple[str, SegmentMask]]:
    if isinstance(outcome, Segmentation):
        yield "", outcome.mask
    elif isinstance(outcome, Outcomes):
        for name, part in outcome.outcomes.items():
            if isinstance(part, Segmentation):
                yield name, part.mask
