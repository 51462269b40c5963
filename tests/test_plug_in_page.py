"""Check the sensor of docs/plug-ins.md; tests/packaging/test_wheel.py installs the package and runs the suite."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/plug-ins.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture
def package(tmp_path):
    """Return a folder with the page's module and the metadata that an installer makes of its entry point."""
    (tmp_path / "thermal_zone.py").write_text(blocks("python")[0])
    (tmp_path / "thermal_zone-1.0.dist-info").mkdir()
    (tmp_path / "thermal_zone-1.0.dist-info/entry_points.txt").write_text(
        "[edged.sources]\nthermal-zone = thermal_zone:ThermalZone\n"
    )
    (tmp_path / "thermal_zone-1.0.dist-info/METADATA").write_text("Name: thermal-zone\nVersion: 1.0\n")
    return tmp_path


def run(package, *command):
    environment = {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, *command], cwd=package, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_table_is_understood(package):
    (package / "edged.toml").write_text(blocks("toml")[1])
    run(package, "-m", "edged.ctl", "config", "check", "edged.toml")


def test_the_device_of_its_second_sensor_is_allowed(package):
    barometer = blocks("python")[1]
    (package / "thermal_zone.py").write_text(
        "from edged.api import DeviceRequirements, SourceConfig, SourceInfo\n"
        + barometer.replace('"i2c"', '"daemon"', 1).replace("Barometer", "ThermalZone")
        + "    def describe(self):\n        return SourceInfo(shape=(1,))\n"
    )
    (package / "edged.toml").write_text('[sources.attic]\nkind = "thermal-zone"\n')
    options = ("--dry-run", "--config", "edged.toml", "--state-dir", ".")
    text = run(package, "-m", "edged.ctl", "devices", "allow", *options)
    assert {"DeviceAllow=char-i2c rw", "Wants=modprobe@i2c_dev.service", "SupplementaryGroups=daemon"} <= {
        *text.splitlines()
    }


def test_it_has_some_forty_lines():
    assert 30 <= len([line for line in blocks("python")[0].splitlines() if line.strip()]) <= 45
