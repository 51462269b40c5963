"""Devices requested by a plug-in are checked before use."""

from pathlib import Path
from typing import Any

import pytest

from edged.core.device_requirements import DeviceRequirements, check
from edged.core.errors import ConfigError


def test_a_path_may_be_a_path_object():
    found: Any = (Path("/dev/i2c-1"),)
    assert check(DeviceRequirements(paths=found)).paths == ("/dev/i2c-1",)


@pytest.mark.parametrize(
    "required",
    [
        DeviceRequirements(),
        DeviceRequirements(paths=("/dev/i2c-1",), groups=("i2c",)),
        DeviceRequirements(drivers={"usb_device": ""}, hotplug=True, udev_rule='SUBSYSTEM=="usb", GROUP="edged"'),
        DeviceRequirements(paths=tuple(f"/dev/video{number}" for number in range(16))),
    ],
)
def test_what_a_source_may_ask_for(required):
    assert check(required) == required


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "devices() returns NoneType in place of DeviceRequirements"),
        (["/dev/i2c-1"], "devices() returns list in place of DeviceRequirements"),
        (DeviceRequirements(paths=("i2c-1",)), "'i2c-1' is no absolute path of a device"),
        (DeviceRequirements(paths=("/dev/../etc/shadow",)), "is no absolute path of a device"),
        (DeviceRequirements(paths=("/dev/i2c\n",)), "is no absolute path of a device"),
        (DeviceRequirements(paths=("",)), "`$.paths[0]`"),
        (DeviceRequirements(paths="/dev/i2c-1"), "Expected `array`, got `str` - at `$.paths`"),
        (DeviceRequirements(paths=("/dev/null",) * 17), "of length <= 16 - at `$.paths`"),
        (DeviceRequirements(paths=("/dev/null",), groups=("a b",)), "at `$.groups[0]`"),
        (DeviceRequirements(drivers={"*": ""}), "at `key` in `$.drivers`"),
        (DeviceRequirements(drivers={"i2c": "i2c dev"}), "at `$.drivers[...]`"),
        (DeviceRequirements(drivers={"i2c": object()}), "at `$.drivers[...]`"),
        (DeviceRequirements(paths=("/dev/null",), udev_rule="a\nb"), "at `$.udev_rule`"),
        (DeviceRequirements(groups=("i2c",)), "names groups or a udev rule, but neither paths nor drivers"),
    ],
)
def test_nonsense_is_refused(found, reason):
    with pytest.raises(ConfigError) as refused:
        check(found)
    assert reason in refused.value.message
