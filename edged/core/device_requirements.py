"""The devices that a source asks for: stated by a plug-in, and checked before anybody acts on the statement."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from edged.core.errors import ConfigError

MAX_PATHS = 16

DevicePath = Annotated[str, Meta(min_length=1, max_length=4096)]
Group = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,31}\Z")]
Driver = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")]
KernelModule = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{0,64}\Z")]


class DeviceRequirements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices that the service's sandbox must let a source open. Without paths and drivers: none.

    `paths` are the files that the source opens, absolute and below /dev, or links to such files. `drivers` are for
    devices that come and go: kernel drivers as in /proc/devices, each with the kernel module that registers it, "" for
    a driver built into the kernel. A path that is not there is taken for a device of any of these drivers. `groups` may
    open the devices, in addition to the group of each file that is there. A source with `hotplug` hears from the kernel
    about devices that are plugged in, as libusb and libudev do. `udev_rule` gives the service access to a device that
    belongs to root alone; `edgectl doctor` shows the rule.
    """

    paths: Annotated[tuple[DevicePath, ...], Meta(max_length=MAX_PATHS)] = ()
    groups: Annotated[tuple[Group, ...], Meta(max_length=16)] = ()
    drivers: Annotated[dict[Driver, KernelModule], Meta(max_length=16)] = {}
    hotplug: bool = False
    udev_rule: Annotated[str, Meta(pattern=r"^[ -~]{0,500}\Z")] = ""


def check(found: object) -> DeviceRequirements:
    """Return the requirements that `devices()` of a source has returned, with every field of the right type and size.

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
