"""Probation counts watched time only: the real daemon in a standstill, and after removal of the pipeline."""

import json
import signal
import time
from pathlib import Path

from tests.edged_process import Edged
from tests.motion import FACTORY, Call, bundle, config, edgectl, ledger, serving

STANDS_STILL = 5.5

WINDOW = {**json.loads((FACTORY / "manifest.json").read_text())["window"], "hop": 1}
"""A window at every sample: ten a second."""

OTHER = """
[device]
name = "board"
[sources.one]
kind = "synthetic"
channels = ["c0"]
rate = 10
"""


def suspended(daemon: Edged, times: int) -> bool:
    daemon.wait_for_log("the probation of version 1.1.0 is suspended: no pipeline uses motion any more", times)
    now = ledger(daemon)
    return (now.floor, now.active, now.candidate and now.candidate.phase) == ("0", None, "probation")


def test_a_daemon_that_stands_still_for_a_whole_probation_has_not_watched_it(tmp_path: Path, edged):
    daemon = edged(config(pace=10))
    new = bundle(tmp_path, "1.1.0", window=WINDOW, probation={"seconds": 5, "windows": 5})
    update = Call(daemon, "update-model", new)
    daemon.wait_for_log("version 1.1.0 serves")
    daemon.process.send_signal(signal.SIGSTOP)
    time.sleep(STANDS_STILL)  # the daemon's own clock is to go on for so long
    daemon.process.send_signal(signal.SIGCONT)
    woken = time.monotonic()
    daemon.wait_for_log("version 1.1.0 is confirmed")
    assert time.monotonic() - woken > 2  # of the five seconds, some may have passed before
    assert update.end().code == 0


def test_a_reload_that_takes_the_pipeline_away_suspends_the_probation(tmp_path: Path, edged):
    daemon = edged(config())
    update = Call(daemon, "update-model", bundle(tmp_path, "1.1.0", probation={"seconds": 3600, "windows": 5}))
    daemon.wait_for_log("version 1.1.0 serves")
    daemon.configure(OTHER)
    daemon.reload()
    assert suspended(daemon, times=1)
    (model,) = (each for each in daemon.call("models") if each["name"] == "motion")
    assert model["versions"][0]["roles"] == ["under way", "suspended"]
    assert daemon.stop() == 0
    update.end()
    daemon.start()
    assert suspended(daemon, times=2)
    daemon.configure(config())
    daemon.reload()
    daemon.wait_for_log("version 1.1.0 serves", times=2)
    assert serving(daemon) == "1.1.0"
    assert edgectl(daemon, "rollback", "motion").code == 0
    assert serving(daemon) == "1.0.0"
    assert daemon.stop() == 0


def test_a_reload_that_rebuilds_the_pipeline_is_announced_in_the_probation(tmp_path: Path, edged):
    daemon = edged(config(pace=100))
    new = bundle(tmp_path, "1.1.0", window=WINDOW, probation={"seconds": 3600, "windows": 5})
    update = Call(daemon, "update-model", new)
    daemon.wait_for_log("version 1.1.0 serves")
    until = time.monotonic() + 120
    while daemon.call("pipelines")[0]["predictions"] < 50:
        assert time.monotonic() < until
        time.sleep(0.05)
    daemon.call("models")  # inspects the probation
    daemon.configure(config(pace=100).replace("queue = 1000", "queue = 999"))
    daemon.reload()
    daemon.wait_for_log("the probation of version 1.1.0 continues from 0 s, since a pipeline of motion was rebuilt")
    assert daemon.stop() == 0
    update.end()
