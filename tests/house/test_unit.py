"""The unit file is valid for systemd."""

import shutil
import subprocess
from pathlib import Path

import pytest

from edged.__main__ import EX_CONFIG

UNIT = Path(__file__).parents[2] / "systemd" / "edged.service"


@pytest.fixture
def analyze(tmp_path):
    """Return a function that runs `systemd-analyze` on the unit, with programs that exist."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "edged.service"
    there = str(shutil.which("true"))

    def run(verb, *options, text=None):
        unit.write_text((text or UNIT.read_text()).replace("/usr/bin/edged", there).replace("/usr/bin/edgectl", there))
        return subprocess.run([program, verb, *options, str(unit)], capture_output=True, text=True, timeout=120)

    return run


def test_systemd_understands_every_line(analyze):
    result = analyze("verify", "--man=no", "--recursive-errors=yes")
    assert (result.returncode, result.stderr) == (0, "")


def test_a_line_it_did_not_understand_would_show(analyze):
    result = analyze(
        "verify", "--man=no", "--recursive-errors=yes", text=UNIT.read_text().replace("Watchdog", "Watchdgo")
    )
    assert "WatchdgoSec" in result.stderr


def test_the_sandbox_is_tight(analyze):
    """On systemd's scale, 100 is a service without any sandbox."""
    assert analyze("security", "--offline=yes", "--threshold=15").returncode == 0


def test_what_would_break_inference_or_leave_a_board_dead_is_not_there():
    lines = {line.partition("=")[0]: line for line in UNIT.read_text().splitlines() if not line.startswith("#")}
    assert lines["SystemCallErrorNumber"] == "SystemCallErrorNumber=EPERM"
    assert lines["StartLimitIntervalSec"] == "StartLimitIntervalSec=0"
    assert not lines.keys() & {"ProcSubset", "ProtectClock", "RestartSteps"}


def test_it_gives_up_only_where_the_configuration_is_wrong_and_is_tried_again():
    assert f"RestartPreventExitStatus={EX_CONFIG}\n" in UNIT.read_text()
    assert "OnFailure=edged-retry.timer\n" in UNIT.read_text()
    assert "RemainAfterElapse=no\n" in UNIT.with_name("edged-retry.timer").read_text(), "it would elapse only once"
