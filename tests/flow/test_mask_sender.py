import json
import logging

import numpy as np
import pytest

from edged.api import Message, Recorder, Topics
from edged.core.description import Description, PipelineOutput
from edged.core.discovery import components
from edged.core.masks import MaskForm, SegmentMask
from edged.core.types import Outcome, Outcomes, Prediction, Regression, Segmentation
from edged.flow.mask_sender import MAX_RUNS, MaskSender
from edged.testing.fakes import FixedClock

TOPICS = Topics("edged", "board")
CAT = SegmentMask(np.array([[0, 1], [0, 1]], np.uint8), ("background", "cat"), (0.0, 10.04, 64.0, 38.0), (64, 48))


class FakeOutbox:
    def __init__(self) -> None:
        self.connected = True
        self.messages: list[Message] = []

    def put(self, message: Message) -> None:
        self.messages.append(message)


def segmented(mask: SegmentMask = CAT) -> Segmentation:
    return Segmentation((), (), False, mask)


def sent(outbox: FakeOutbox, *windows: tuple[float, Outcome], form: MaskForm = "rle") -> list[Message]:
    recorder = Recorder("board", "b00t", FixedClock(1000.0))
    sender = MaskSender(form, 1.0, recorder=recorder, topics=TOPICS, outbox=outbox)
    for seq, (time, outcome) in enumerate(windows):
        sender.send(Prediction("find", "finder", "1", seq, None, time, 0.5, 0.25, outcome))
    return outbox.messages


def test_a_mask_has_runs_and_a_place() -> None:
    (message,) = sent(FakeOutbox(), (12.0, segmented()))
    assert (message.topic, message.qos, message.origin) == ("edged/board/pipelines/find/mask", 0, "find/mask")
    record = json.loads(message.payload)
    assert record["id"] == "b00t:find:0"
    assert record["counts"] == {"background": [0, 2, 2], "cat": [2, 2]}
    assert (record["size"], record["box"], record["picture"]) == ([2, 2], [0.0, 10.0, 64.0, 38.0], [64, 48])


def test_masks_keep_to_their_rate() -> None:
    messages = sent(FakeOutbox(), *((time, segmented()) for time in (1.0, 1.5, 1.9, 2.0, 2.5, 3.5)))
    assert [message.seq for message in messages] == [0, 3, 5]


def test_no_mask_is_made_without_a_connection_or_a_segmentation() -> None:
    outbox = FakeOutbox()
    assert sent(outbox, (1.0, Regression([1.0]))) == []
    outbox.connected = False
    assert sent(outbox, (1.0, segmented())) == []


def test_one_of_several_outcomes_has_a_topic_of_its_own() -> None:
    (message,) = sent(FakeOutbox(), (1.0, Outcomes({"level": Regression([1.0]), "scene": segmented()})))
    assert message.topic == "edged/board/pipelines/find/mask/scene"
    assert json.loads(message.payload)["outcome"] == "scene"


def test_a_png_needs_no_runs() -> None:
    (message,) = sent(FakeOutbox(), (1.0, segmented()), form="png")
    assert message.payload.startswith(b"\x89PNG\r\n\x1a\n")


def test_a_mask_of_noise_is_left_out_as_runs(caplog: pytest.LogCaptureFixture) -> None:
    checks = SegmentMask((np.indices((400, 400)).sum(axis=0) % 2).astype(np.uint8), ("a", "b"))
    assert checks.changes >= MAX_RUNS
    with caplog.at_level(logging.WARNING):
        assert sent(FakeOutbox(), (1.0, segmented(checks)), (3.0, segmented(checks))) == []
    assert [record.message for record in caplog.records] == [
        'pipeline find: a mask has too many runs, and is left out: set publish_mask = "png"'
    ]
    assert len(sent(FakeOutbox(), (1.0, segmented(checks)), form="png")) == 1


def test_an_empty_mask_is_not_sent() -> None:
    assert sent(FakeOutbox(), (1.0, segmented(SegmentMask(np.zeros((0, 0), np.uint8), ("a",))))) == []


def test_home_assistant_shows_a_mask_in_png_as_a_picture() -> None:
    pipeline = PipelineOutput("scene", "segmentation", labels=("cat",), mask="png")
    found = components(Description(topics=TOPICS, version="1", pipelines=(pipeline,)))
    picture = found["pipeline_scene_mask"]
    assert (picture["p"], picture["image_topic"]) == ("image", "edged/board/pipelines/scene/mask")
