"""Output of real sensors on a pseudo-terminal to the real daemon: headers, other sentences, odd line ends."""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.edged_process import Edged, SerialPort
from tests.motion import FACTORY, RECORDING, edgectl

CONFIG = """
[device]
name = "board"
[sources.wrist]
kind = "serial"
port = "{port}"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10
{options}
[pipelines.motion]
source = "wrist"
model = "motion"
"""

OPENED = "source wrist is open"
SERVES = "pipeline motion is running"


class Board:
    """A daemon, and a sensor that sends as described by `options` of the source."""

    def __init__(self, folder: Path) -> None:
        self.sensor = SerialPort(folder / "imu")
        self.daemon = Edged(folder, "")

    def start(self, options: str = "") -> None:
        """Start the daemon, and wait until the port is read."""
        self.configure(options)
        self.daemon.start()
        self.daemon.wait_for_log(OPENED)

    def configure(self, options: str) -> None:
        """Write other options."""
        self.daemon.configure(CONFIG.format(port=self.sensor.link, options=options))

    def say(
        self, samples: int, end: bytes = b"\n", *, every: int = 1000, else_: bytes = b"", before: bytes = b""
    ) -> None:
        """Send `count` samples, each after `before`, and another line before each `every`th sample."""
        with RECORDING.open() as file:
            rows = [before + ",".join(row[1:7]).encode() for row in csv.reader(file)][1:]
        lines = [line for n in range(samples) for line in ([else_] if n % every == 0 else []) + [rows[n]]]
        self.sensor.write(end + b"".join(line + end for line in lines))

    def source(self) -> dict[str, Any]:
        """Return the state of the source."""
        (found,) = self.daemon.call("sources")
        return dict(found)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board(tmp_path)
    yield board
    board.daemon.__exit__()


@pytest.mark.parametrize(
    ("options", "end", "else_"),
    [
        ("", b"\n", b"ax,ay,az,gx,gy,gz"),
        ("", b"\r", b"# calibrated"),
        ('end = "00"\ncomment = ["#", "T="]', b"\0", b"T=21.5"),
        (
            'columns = ["kind", "ax", "ay", "az", "gx", "gy", "gz"]\nselect = {kind = "imu"}',
            b"\r\n",
            b"gps,1,2,3,4,5,6",
        ),
    ],
)
def test_lines_that_are_no_samples_tear_no_window(board: Board, options: str, end: bytes, else_: bytes) -> None:
    """Another line before each 30 samples of a window of 40 had prevented all results."""
    board.start(options)
    board.say(80, end, every=30, else_=else_, before=b"imu," if "select" in options else b"")
    board.daemon.wait_for_log(SERVES)
    source = board.source()
    assert (source["lost"], source["faults"]) == (0, {})


def test_a_window_starts_by_the_measured_rate_where_none_is_stated(board: Board, tmp_path: Path) -> None:
    """The start of a window had equalled the end."""
    model = tmp_path / "free"
    shutil.copytree(FACTORY, model)
    manifest = json.loads((model / "manifest.json").read_bytes())
    del manifest["window"]["rate"]
    (model / "manifest.json").write_text(json.dumps(manifest))
    config = CONFIG.replace("rate = 10\n", "").replace('model = "motion"', 'model = "free"')
    board.daemon.configure(config.format(port=board.sensor.link, options="") + f'[models.free]\npath = "{model}"\n')
    board.daemon.start()
    board.daemon.wait_for_log(OPENED)
    last: dict[str, Any] = {}
    while "start" not in last:  # until a rate has been measured, after a second
        board.say(10)
        last = board.daemon.call("pipelines")[0]["last"] or {}
    assert last["start"] < last["time"]


def test_a_pipeline_that_cannot_complete_a_window_says_why_and_edgectl_shows_what_was_refused(board: Board) -> None:
    board.start()
    board.say(130, every=30, else_=b"battery \x1b[31m3.7 V" + b"!" * 100)
    said = board.daemon.wait_for_log("pipeline motion is degraded")
    assert "no window is complete: 40 samples never arrive without a gap" in said
    assert "comment, prefix or select" in said
    shown = edgectl(board.daemon, "sources").output
    refused = "1 column instead of 6: battery \\x1b[31m3.7 V" + "!" * 100
    assert re.search(rf"last refused \d+ s ago: {re.escape(refused)}\n", shown)
    board.configure('comment = "battery"')
    board.daemon.reload()
    board.daemon.wait_for_log("reloaded: sources.wrist")
    board.daemon.wait_for_log(OPENED, times=2)
    board.say(80, every=30, else_=b"battery 3.7 V")
    board.daemon.wait_for_log(SERVES)


def test_a_pipeline_whose_model_has_passed_its_trial_no_longer_says_that_it_is_tried(board: Board) -> None:
    """The state had lasted until the first window, and forever with a silent sensor."""
    board.start()
    (pipeline,) = board.daemon.call("pipelines")
    assert (pipeline["health"]["state"], pipeline["health"]["reason"]) == ("starting", "")


def test_bytes_without_an_end_of_line_are_named(board: Board) -> None:
    board.start()
    board.sensor.write(b"1,2,3,4,5,6;" * 40)
    said = board.daemon.wait_for_log("source wrist is degraded")
    assert "480 bytes arrived without an end of a line" in said
    assert "set end to the line end in hexadecimal, and check baud" in said
