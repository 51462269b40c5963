"""Devices of a source: the statement of a plug-in, and its check."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from edged.core.errors import ConfigError

MAX_PATHS = 16

DevicePath = Annotated[str, Meta(min_length=1, max_length=4096)]
Group = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,31}\Z")]
DriverName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")]
KernelModule = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{0,64}\Z")]


class DeviceRequirements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices of a source, to be opened within the service's sandbox. The default is no device.

    `paths` are the device files of the source, absolute and below /dev, or links to such files. `drivers` are for
    devices that come and go: kernel drivers as in /proc/devices, each with the kernel module for the driver, "" for a
    driver built into the kernel. A missing path counts as a device of any of these drivers. `groups` may open the
    devices, beside the group of each file. A source with `hotplug` hears from the kernel about devices being plugged
    in, as libusb and libudev do. `udev_rule` gives the service access to a device of root; `edgectl doctor` shows the
    rule.
    """

    paths: Annotated[tuple[DevicePath, ...], Meta(max_length=MAX_PATHS)] = ()
    groups: Annotated[tuple[Group, ...], Meta(max_length=16)] = ()
    drivers: Annotated[dict[DriverName, KernelModule], Meta(max_length=16)] = {}
    hotplug: bool = False
    udev_rule: Annotated[str, Meta(pattern=r"^[ -~]{0,500}\Z")] = ""


def check(found: object) -> DeviceRequirements:
    """Return the result of a source's `devices()`, with every field of the right type and size.

    Raises:
        ConfigError: the value is no DeviceRequirements, or a field of it is out of bounds.
    """
    if not isinstance(found, DeviceRequirements):
        raise ConfigError(f"devices() returns {type(found).__name__} in place of DeviceRequirements")
    try:
        checked = msgspec.convert(msgspec.to_builtins(found, enc_hook=str), DeviceRequirements)
    except (msgspec.ValidationError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"devices() is refused: {error}") from error
    for path in checked.paths:
        if not path.startswith("/") or not path.isprintable() or ".." in path.split("/"):
            raise ConfigError(f"{path!r} is no absolute path of a device", hint="name the device by its path in /dev")
    if (checked.groups or checked.udev_rule) and not (checked.paths or checked.drivers):
        raise ConfigError("devices() names groups or a udev rule, but neither paths nor drivers")
    return checked
