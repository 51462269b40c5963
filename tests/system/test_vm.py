"""The real package in a whole virtual machine whose power is cut while results are spooled: `make vm-test`."""

import json
import os
import subprocess

import pytest

from tests.accounting import UNBOUNDED, Auditor
from tests.broker import Broker
from tests.debian_package import build
from tests.flaky_proxy import FlakyProxy
from tests.virtual_machine import HOST, Machine, why_not

pytestmark = [
    pytest.mark.skipif(not os.environ.get("EDGED_VM"), reason="takes minutes: make vm-test"),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

COMMIT_SECONDS = 1.0
BUSY_SECONDS = 2.0
"""An emulated machine's keeper may come so much later."""
SPOOLED = 100
CUTS = int(os.environ.get("EDGED_VM_CUTS", "1"))

CONFIG = """
[mqtt]
host = "{host}"
port = {port}
[spool]
commit_seconds = {commit}
[sources.pulse]
kind = "synthetic"
channels = ["value"]
rate = 100
[pipelines.spilled]
source = "pulse"
model = "anomaly"
[pipelines.careful]
source = "pulse"
model = "anomaly"
durability = "always"
"""


def test_a_power_cut_while_results_are_spooled_costs_a_commit_interval_at_most(tmp_path):
    with Broker(tmp_path, lines=UNBOUNDED) as broker, FlakyProxy(broker.port) as link:
        config = CONFIG.format(host=HOST, port=link.port, commit=COMMIT_SECONDS)
        files = {"/etc/edged/conf.d/test.toml": config}
        machine = Machine(tmp_path, build("amd64", "bookworm"), "bookworm", files)
        auditor = Auditor(broker.port)
        auditor.connect()
        try:
            machine.boot()
            for _ in range(CUTS):
                assert auditor.hears_more(120)
                link.listen(False)
                owed = spool_and_cut(machine)
                assert_sound(machine.image)
                machine.boot()
                link.listen(True)
                assert auditor.hears_all(owed)
            assert_well(machine)
        finally:
            machine.close()
            auditor.disconnect()
    print(f"{len(owed)} results owed after the last cut; {len(auditor.heard)} heard")


def spool_and_cut(machine):
    """Let results wait on disk, cut the power, and say which must not be lost."""
    machine.watched.clear()
    machine.await_watched(lambda watched: len(watched) >= SPOOLED)
    machine.cut_power()
    cut = machine.watched[-1]["time"]  # by the machine's own clock
    return {
        result["id"]
        for result in machine.watched
        if result["pipeline"] == "careful" or result["time"] < cut - COMMIT_SECONDS - BUSY_SECONDS
    }


def assert_sound(image):
    """The file system is sound once its journal has been replayed, as every boot does."""
    replayed = subprocess.run(["e2fsck", "-p", image], capture_output=True, text=True)
    assert replayed.returncode in (0, 1), replayed.stdout
    checked = subprocess.run(["e2fsck", "-f", "-n", image], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def assert_well(machine):
    """The service runs, and everything it has on disk is as it should be."""
    assert machine.run("systemctl is-active edged") == "active\n"
    checks = json.loads(machine.run("edgectl --json doctor"))["checks"]
    assert [check for check in checks if check["verdict"] == "fail"] == []
    assert {check["name"] for check in checks} >= {"config", "model", "state"}
