import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edged.api import Detections, DeviceError, Outcome
from edged.core.types import FoundObject
from edged.sinks.stdout import StdoutSink
from edged.testing.fakes import LEVELS, STRANGE, WALKING, FixedClock, context, prediction
from edged.testing.sink_contract import SinkContract

FOUND = Detections(
    (FoundObject("cat", 0.75, (0, 0, 9, 9)), FoundObject("dog", 0.5, (0, 0, 9, 9))),
    {"door": {"cat": 1}, "street": {"cat": 1, "dog": 1}},
    {"door": ("cat",), "street": ("cat", "dog")},
    True,
    (9, 9),
)


NOTHING = Detections((), {"picture": {}}, {"picture": ()}, False, (9, 9))


class TestStdoutSink(SinkContract):
    @pytest.fixture(params=["text", "json"])
    def config(self, tmp_path: Path, request: pytest.FixtureRequest) -> StdoutSink:
        return StdoutSink(format=request.param)


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (WALKING, "2023-11-14T22:13:32.000Z motion walking 0.75, now walking (7.8 ms)\n"),
        (LEVELS, "2023-11-14T22:13:32.000Z motion level=1.5 flow=-2 (7.8 ms)\n"),
        (
            FOUND,
            "2023-11-14T22:13:32.000Z motion cat 0.75, dog 0.50, now cat in door; cat, dog in street (7.8 ms)\n",
        ),
        (
            Detections((), {"picture": {}}, {"picture": ()}, False, (9, 9)),
            "2023-11-14T22:13:32.000Z motion nothing (7.8 ms)\n",
        ),
        (STRANGE, "2023-11-14T22:13:32.000Z motion anomalous 0.5 (threshold 0.125) (7.8 ms)\n"),
    ],
)
def test_a_line_for_people(outcome: Outcome, line: str, capfd: pytest.CaptureFixture[str]) -> None:
    StdoutSink().open(context()).send(prediction(outcome=outcome))
    assert capfd.readouterr().out == line


def test_a_time_that_nobody_vouches_for_is_marked(capfd: pytest.CaptureFixture[str]) -> None:
    StdoutSink().open(context(clock=FixedClock(0, synchronised=False))).send(prediction())
    assert capfd.readouterr().out.startswith("~1970-01-01T00:00:12.000Z motion")


def test_a_line_for_programs(capfd: pytest.CaptureFixture[str]) -> None:
    StdoutSink(format="json").open(context()).send(prediction(3))
    assert json.loads(capfd.readouterr().out)["seq"] == 3


@contextmanager
def closed_pipe() -> Iterator[None]:
    """Replace standard output by a pipe without a reader."""
    kept = os.dup(1)
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(reader)
    os.close(writer)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def test_a_reader_that_has_gone_is_an_error_with_a_hint() -> None:
    with closed_pipe(), pytest.raises(DeviceError, match="Broken pipe") as caught:
        StdoutSink().open(context()).send(prediction())
    assert caught.value.hint
