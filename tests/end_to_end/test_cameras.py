"""The real daemon with cameras: streams by HTTP, and a program."""

import json
import os
import signal
import sys
import threading
from itertools import cycle
from pathlib import Path

import pytest

from tests.broker import Broker, Subscriber
from tests.edged_process import Edged
from tests.jpegs import jpeg
from tests.web_server import Handler, WebServer, status

CONFIG = """
[device]
name = "board"
[mqtt]
host = "127.0.0.1"
port = {port}
[sources.yard]
{source}
[sources.yard.supervision]
retry_max = 0.5
[pipelines.digits]
source = "yard"
model = "digits"
"""

RESULT = "edged/board/pipelines/digits/result"


@pytest.fixture
def broker(tmp_path: Path):
    with Broker(tmp_path) as broker:
        yield broker


def stream(until: threading.Event):
    """Return an order for a stream of pictures, which ends at an event."""

    def order(handler: Handler) -> None:
        handler.answer(200, {"Content-Type": "multipart/x-mixed-replace; boundary=x", "Content-Length": None})
        for shade in cycle(range(256)):
            handler.wfile.write(b"--x\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg(shade) + b"\r\n")
            if until.wait(0.02):
                return

    return order


def result(subscriber: Subscriber):
    return json.loads(subscriber.wait_for(RESULT).payload)


def test_a_camera_that_fails_is_a_state_and_is_read_again(tmp_path, edged, broker):
    first, second = threading.Event(), threading.Event()
    with WebServer(b"") as server, Subscriber(broker.port, RESULT) as subscriber:
        server.orders += [stream(first), status(401), stream(second)]
        source = f'kind = "http_camera"\nrate = 10\nurl = "{server.url("/cam")}"'
        daemon: Edged = edged(CONFIG.format(port=broker.port, source=source))
        before = result(subscriber)["seq"]
        first.set()
        daemon.wait_for_log(f"source yard is failed: 127.0.0.1:{server.port} has ended the stream")
        while daemon.call("sources")[0]["reconnects"] < 2:
            before = max(before, result(subscriber)["seq"])
        assert result(subscriber)["seq"] > before
        second.set()
        assert daemon.stop() == 0


def test_a_program_is_started_again_when_killed_and_ends_with_the_daemon(tmp_path, edged, broker):
    code = f"""
import os, sys, time
open({str(tmp_path / "pids")!r}, "a").write(f"{{os.getpid()}}\\n")
os.write(1, bytes.fromhex({jpeg(90).hex()!r}))
time.sleep(600)
"""
    command = json.dumps([sys.executable, "-S", "-c", code])
    with Subscriber(broker.port, RESULT) as subscriber:
        daemon: Edged = edged(CONFIG.format(port=broker.port, source=f'kind = "command"\ncommand = {command}'))
        result(subscriber)
        os.kill(pids(tmp_path)[0], signal.SIGKILL)
        name = Path(sys.executable).name
        daemon.wait_for_log(f"source yard is failed: {name} was ended by SIGKILL")
        result(subscriber)
        assert daemon.stop() == 0
    assert len(pids(tmp_path)) == 2
    for pid in pids(tmp_path):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def pids(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "pids").read_text().splitlines()]
