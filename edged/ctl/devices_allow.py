"""Devices of the service's sandbox: the requirements of a configuration, written down as a drop-in for systemd.

The unit sees no device. `wanted` returns the devices of a configuration, `drop_in` makes the text for systemd, and
`put` writes the file. DeviceAllow= ignores a file absent at the start of the service: a device that comes and goes is
allowed by the driver, a device that is soldered in by the file. The kernel names the driver of a file; tests replace
the kernel.
"""

from __future__ import annotations

import argparse
import grp
import os
import pwd
import re
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from edged.backends.delegates import Delegate, Usb, delegates, devices
from edged.config.check import find_bundle, required_devices
from edged.config.load import load
from edged.config.options import Config
from edged.core.device_requirements import DeviceRequirements
from edged.core.errors import ControlError, EdgedError
from edged.core.manifest import NO_DELEGATES
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.local_model import models_of
from edged.models.atomic_files import Disk
from edged.models.store import Store

DROP_IN = Path("/etc/systemd/system/edged.service.d/devices.conf")
USER = "edged"
COMMAND = "sudo edgectl devices allow --restart"

_SEVERAL = "misc"
"""Name of a driver number shared by unrelated devices: a device of this number is allowed by the file."""

_FILE = re.compile(r"/dev/[!-~]{1,200}")

_HEAD = """\
# Made by `edgectl devices allow` from the devices of the configuration. The command overwrites this file: put other
# settings into a file beside this file, with `systemctl edit edged`.
"""


class Access(NamedTuple):
    """Access to a device, or to all devices of a driver: `allow` in the notation of DeviceAllow=, and the part in need.

    `module` must be loaded before the service, for systemd to know the driver. `groups` may open the device, and lack
    the service's user. With `netlink` the service hears from the kernel about devices being plugged in.
    """

    allow: str
    wanted_by: str
    module: str = ""
    groups: tuple[str, ...] = ()
    netlink: bool = False


Driver = Callable[[Path], str]
"""Returns the name in /proc/devices for the driver of a device's file, "" without such a device."""


def run(args: argparse.Namespace) -> int:
    """Run `edgectl devices allow`."""
    needs = wanted(load([Path(file) for file in args.config]), models_of(args))
    text = drop_in(needs)
    changed = not args.dry_run and put(text)
    restarted = args.restart and not args.dry_run
    if restarted:
        restart()
    if args.json:
        allowed = [{"device": need.allow, "for": need.wanted_by} for need in needs]
        answer = {"file": str(DROP_IN), "allowed": allowed, "changed": changed, "restarted": restarted}
        tables.show_json({**answer, "text": text})
    else:
        tables.show([text.rstrip() or _NOTHING] if args.dry_run else _done(needs, changed, restarted))
    return exits.DONE


_NOTHING = "the configuration names no device, and the sandbox hides all devices"


def _done(needs: list[Access], changed: bool, restarted: bool) -> Iterator[str]:
    """Yield the changes, and the command to put the changes into effect."""
    for need in needs:
        yield f"{need.allow} for {need.wanted_by}"
    if not needs:
        yield _NOTHING
    yield f"{DROP_IN}: {('written' if needs else 'removed') if changed else 'nothing to change'}"
    if restarted:
        yield "edged was restarted with the drop-in"
    elif changed:
        yield "      -> to take effect: sudo systemctl daemon-reload && sudo systemctl restart edged"


# Requirements


def wanted(config: Config, store: Store, root: Path = Path("/"), driver: Driver | None = None) -> list[Access]:
    """Return the devices for the sources and the accelerators of a configuration, each device once.

    Raises:
        ConfigError: a source does not state its devices.
        ControlError: a device cannot be allowed.
    """
    driver = driver or driver_of
    found: dict[str, Access] = {}
    for access in (*_sources(config, driver), *_accelerators(config, store, root, driver)):
        first = found.setdefault(access.allow, access)
        groups = tuple(dict.fromkeys(first.groups + access.groups))
        found[access.allow] = first._replace(groups=groups, netlink=first.netlink or access.netlink)
    return list(found.values())


def _sources(config: Config, driver: Driver) -> Iterator[Access]:
    for name, entry in config.sources.items():
        yield from _source(f"source {name}", required_devices(name, entry), driver)


def _source(source: str, required: DeviceRequirements, driver: Driver) -> Iterator[Access]:
    extra = tuple(group for group in required.groups if _lacks(source, group))
    paths = [Path(path) for path in required.paths]
    found = [access for path in paths for access in _device(source, path, required.drivers, driver)]
    for access in found if paths else _adapters(source, required.drivers):
        yield access._replace(groups=access.groups + extra, netlink=required.hotplug)


def _device(source: str, path: Path, drivers: Mapping[str, str], driver: Driver) -> Iterator[Access]:
    """Yield the access to a path. A missing link may become a device of any of the drivers."""
    node = path.resolve()
    named = next((kind for kind in drivers if re.fullmatch(rf"/dev/{_file_name(kind)}[-\d]*\d", str(node))), "")
    kind = driver(node) or named
    if kind in drivers:
        yield from _adapters(source, {kind: drivers[kind]}, node)
    elif kind or not drivers or re.fullmatch(r"/dev/[A-Za-z]+\d+", str(path)):
        yield Access(_file(path if str(path).startswith("/dev/") else node, source), source, groups=_lacking(node))
    else:
        yield from _adapters(source, drivers, node)


def _file_name(driver: str) -> str:
    """Return the beginning of the names of a driver's device files, as a regular expression."""
    return "video" if driver == "video4linux" else re.escape(driver)


def _adapters(source: str, drivers: Mapping[str, str], node: Path | None = None) -> Iterator[Access]:
    groups = _lacking(node) if node else ()
    for kind, module in drivers.items():
        yield Access(f"char-{kind}", source, module=module, groups=groups)


def _accelerators(config: Config, store: Store, root: Path, driver: Driver) -> Iterator[Access]:
    for delegate in delegates(config.delegates).values():
        if delegate.name in config.delegates or any(_may_use(config, store, delegate)):
            yield from _accelerator(delegate, root, driver)


def _may_use(config: Config, store: Store, delegate: Delegate) -> Iterator[bool]:
    """Yield for each model True if the model runs on a delegate, or may run on the delegate with a variant."""
    for name, entry in config.models.items():
        if entry.delegate not in NO_DELEGATES:
            yield entry.delegate == delegate.name
        elif entry.delegate == "auto":
            try:
                variants = find_bundle(name, entry, store).manifest.variants
            except EdgedError:
                continue  # reported by `edgectl config check`
            yield any(delegate.runs(variant.delegate) for variant in variants)


def _accelerator(delegate: Delegate, root: Path, driver: Driver) -> Iterator[Access]:
    """Yield the present devices of a delegate, and all of USB for a device that comes back with new firmware."""
    who = f"delegate {delegate.name}"
    there = [device for device in devices(delegate, root) if device.state != "no driver"]
    on_usb = any(isinstance(rule, Usb) for rule in delegate.known.rules)
    if on_usb and (not there or any(device.id.startswith("usb") for device in there)):
        groups = [_lacking(Path(device.node)) for device in there if device.id.startswith("usb")]
        yield Access("char-usb_device", who, groups=next(filter(None, groups), ()), netlink=True)
    for device in there:
        if not device.id.startswith("usb"):
            node = Path(device.node)
            kind = driver(node)
            if kind == _SEVERAL:
                yield Access(_file("/" / node.relative_to(root), who), who, groups=_lacking(node))
            elif kind:
                yield Access(f"char-{kind}", who, module=module_of(node), groups=_lacking(node))


def _file(node: Path, who: str) -> str:
    if not _FILE.fullmatch(str(node)):
        raise ControlError(
            f"{who} uses {str(node)!r}, and systemd allows device files only",
            hint="name a device below /dev, without spaces",
        )
    return str(node).replace("%", "%%")


# The kernel's answers


def driver_of(node: Path, table: Path = Path("/proc/devices")) -> str:
    """Return the driver of a character device, "" without such a device."""
    try:
        status = node.stat()
        lines = table.read_text().partition("Block devices")[0].splitlines()
    except OSError:
        return ""
    if not stat.S_ISCHR(status.st_mode):
        return ""
    numbers = (line.strip().partition(" ") for line in lines)
    names = [name for number, _, name in numbers if number == str(os.major(status.st_rdev))]
    return names[0] if len(names) == 1 else _SEVERAL


def module_of(node: Path, sys: Path = Path("/sys")) -> str:
    """Return the kernel module of a device's driver, "" for a driver built in or not known."""
    try:
        number = node.stat().st_rdev
        module = (sys / f"dev/char/{os.major(number)}:{os.minor(number)}/device/driver/module").readlink().name
    except OSError:
        return ""
    return module if re.fullmatch(r"[A-Za-z0-9_]+", module) else ""


def _lacking(node: Path) -> tuple[str, ...]:
    """Return the group of a device's file, if members may open the file and the service's user is no member."""
    try:
        status = node.stat()
        group = grp.getgrgid(status.st_gid)
        lacks = not _is_member(group.gr_gid)
    except (OSError, KeyError):
        return ()
    opens = status.st_mode & 0o060 == 0o060 and status.st_mode & 0o006 != 0o006 and status.st_gid != 0
    return (group.gr_name,) if opens and lacks else ()


def _lacks(source: str, group: str) -> bool:
    """Return whether the service's user is not in a group. Raises ControlError for an unknown group."""
    try:
        number = grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ControlError(
            f"{source} needs the group {group}, and this board has no such group",
            hint=f"create the group: sudo groupadd --system {group}\nand give the device to the group by a udev rule",
        ) from error
    try:
        return not _is_member(number)
    except KeyError:  # the package is not installed, and so has made no user yet
        return True


def _is_member(group: int) -> bool:
    """Return whether the service's user is in a group. Raises KeyError without such a user."""
    return group in os.getgrouplist(USER, pwd.getpwnam(USER).pw_gid)


# The drop-in


def drop_in(needs: Iterable[Access]) -> str:
    """Return the text of the drop-in, "" for no device."""
    needs = list(needs)
    if not needs:
        return ""
    modules = " ".join(f"modprobe@{module}.service" for module in sorted({need.module for need in needs} - {""}))
    groups = " ".join(sorted({group for need in needs for group in need.groups}))
    lines = [
        *(["[Unit]", f"Wants={modules}", f"After={modules}", ""] if modules else []),
        *("[Service]", "PrivateDevices=no", "DevicePolicy=closed"),
        *(f"DeviceAllow={need.allow} rw" for need in needs),
        *([f"SupplementaryGroups={groups}"] if groups else []),
        *(["RestrictAddressFamilies=AF_NETLINK"] if any(need.netlink for need in needs) else []),
    ]
    return _HEAD + "\n".join(lines) + "\n"


def put(text: str, file: Path = DROP_IN) -> bool:
    """Write the drop-in, or remove the file if the text is empty. Return whether the file has changed.

    Raises:
        ControlError: the caller is not root.
        StoreError: the disk refused.
    """
    if (file.read_text() if file.exists() else "") == text:
        return False
    if os.geteuid() != 0 and not os.access(next(filter(Path.is_dir, file.parents)), os.W_OK):
        raise ControlError(f"{file} cannot be written without root", hint="run sudo edgectl devices allow")
    disk = Disk()
    if not text:
        disk.remove(file)
        return True
    disk.make_folder(file.parent)
    file.parent.chmod(0o755)
    disk.replace(file, text.encode())
    file.chmod(0o644)  # `systemctl cat` works without root
    return True


def restart() -> None:
    """Restart the service with the drop-in. Raises ControlError."""
    for words in (("daemon-reload",), ("restart", "edged")):
        done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ControlError(
                f"systemctl {' '.join(words)} failed: {done.stderr.strip()}", hint="see: systemctl status edged"
            )
