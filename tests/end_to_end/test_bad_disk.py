"""The whole daemon with the state folder on a disk that fills up, turns read-only, fails or hangs.

The daemon continues to infer and publish, reports fault and remedy in `edgectl status`, and saves again once the disk
is well. The errors come from a FUSE file system of the tests (power/faulty_folder.py).
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.accounting import UNBOUNDED, Auditor
from tests.broker import Broker
from tests.edged_process import Edged
from tests.flaky_proxy import FlakyProxy
from tests.motion import long_recording
from tests.patience import PATIENCE
from tests.power.block_log import missing
from tests.power.faulty_folder import FaultyFolder

pytest.importorskip("mfusepy")
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

CONFIG = """
[device]
name = "board"
[mqtt]
host = "127.0.0.1"
port = {port}
[spool]
commit_seconds = 0.1
[sources.wrist]
kind = "replay"
path = "{recording}"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10
pace = 200
chunk = 10
loop = true
[pipelines.spilled]
source = "wrist"
model = "motion"
"""

REMEDIES = {
    "ENOSPC": "make room",
    "EROFS": "replace",
    "EIO on write": "replace the card",
    "hangs": "replace the card",
}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 2 * PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def status(daemon: Edged) -> str:
    """Return the output of `edgectl status`."""
    command = [sys.executable, "-m", "edged.ctl", "--runtime-dir", str(daemon.runtime_dir), "status"]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE).stdout


def test_a_bad_disk_stops_neither_inferring_nor_publishing(tmp_path: Path):
    with (
        FaultyFolder(tmp_path) as disk,
        Broker(tmp_path, lines=UNBOUNDED) as broker,
        FlakyProxy(broker.port) as link,
    ):
        auditor = Auditor(broker.port)
        auditor.connect()
        daemon = Edged(tmp_path, CONFIG.format(port=link.port, recording=long_recording(tmp_path)))
        daemon.state_dir = disk.mount / "state"
        with daemon:
            assert auditor.hears_more(PATIENCE)
            for fault, remedy in REMEDIES.items():
                disk.fault = fault
                link.listen(False)
                until(lambda: daemon.call("spool")["health"]["state"] == "degraded")
                said = status(daemon)
                assert "memory only" in said, said
                assert remedy in said, said
                before = daemon.call("spool")["depth"]
                until(lambda before=before: daemon.call("spool")["depth"] > before)
                link.listen(True)
                assert auditor.hears_more(PATIENCE), f"{fault}: it does not publish"
                disk.fault = ""
                link.listen(False)
                until(
                    lambda: (
                        (spool := daemon.call("spool"))["health"]["state"] == "running"
                        and spool["disk"]["file_bytes"] > 0
                    )
                )
                link.listen(True)
                assert auditor.hears_more(PATIENCE), f"{fault}: it does not publish again"
            assert daemon.stop() == 0
        auditor.disconnect()
    numbers = [result["seq"] for result in auditor.heard]
    assert list(dict.fromkeys(numbers)) == list(range(len(set(numbers))))
