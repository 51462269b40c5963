"""The real package in a whole virtual machine whose power is cut while results are spooled: `make vm-test`.

Each cut takes another boot, a minute or more under full emulation: one cut, unless EDGED_VM_CUTS states a number.
"""

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
PATIENCE = 300
SPOOLED = 300
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
            await_news(auditor, set())
            for _ in range(CUTS):
                link.listen(False)
                said = spool_and_cut(machine)
                assert_sound(machine.image)
                boots = {result["boot"] for result in [*said, *auditor.heard]}
                machine.boot()
                link.listen(True)
                await_news(auditor, boots)
                owed, heard = owed_of(said), {result["id"] for result in auditor.heard}
                print(f"{len(said)} results were said, {len(owed)} are owed, {len(owed - heard)} of them lost")
                assert owed - heard == set()
            assert_well(machine)
        finally:
            machine.close()
            auditor.disconnect()


def await_news(auditor, boots):
    """Wait for a result of each pipeline in a life outside of `boots`: spooled results are sent before."""
    while {result["pipeline"] for result in auditor.heard if result["boot"] not in boots} < {"spilled", "careful"}:
        assert auditor.hears_more(PATIENCE)


def spool_and_cut(machine):
    """Let results wait on disk, cut the power, and return the results written meanwhile."""
    machine.watched.clear()
    machine.await_watched(lambda watched: len(watched) >= SPOOLED)
    machine.cut_power()
    return list(machine.watched)


def owed_of(said):
    """Return the results that a cut after these must not lose, by the machine's own clock."""
    until = said[-1]["time"] - COMMIT_SECONDS - BUSY_SECONDS
    return {result["id"] for result in said if result["pipeline"] == "careful" or result["time"] < until}


def assert_sound(image):
    """Check the file system after replay of the journal, as done by every boot."""
    replayed = subprocess.run(["e2fsck", "-p", image], capture_output=True, text=True)
    assert replayed.returncode in (0, 1), replayed.stdout
    checked = subprocess.run(["e2fsck", "-f", "-n", image], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def assert_well(machine):
    """Check that the service runs with an intact state folder; the service may be slow, like the machine."""
    assert machine.run("systemctl is-active edged") == "active\n"
    checks = json.loads(machine.run("edgectl --json doctor || true"))["checks"]
    verdicts = {check["name"]: check["verdict"] for check in checks}
    assert {verdicts[name] for name in ("runtime", "config", "model", "state")} == {"ok"}, checks
    print(machine.run("edgectl status || true"))
