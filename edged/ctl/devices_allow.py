"""What the service must be let at, so that it can open what its configuration names, as a drop-in for systemd.

The unit sees no device at all. `wanted` says which it needs, `drop_in` how systemd is told, and `put` has the drop-in
say so and nothing else. Adapters that come and go are let in by their driver, as DeviceAllow= forgets a file that was
not there when the service started; what is soldered in is let in by its file. Which driver a file belongs to is asked
of the kernel, which tests replace.
"""

from __future__ import annotations

import argparse
import grp
import os
import pwd
import re
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from edged.backends.delegates import Delegate, Usb, delegates, devices
from edged.config.check import find_bundle
from edged.config.load import load
from edged.config.options import Config
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

_PLUGGABLE = {"ttyUSB": "usbserial", "ttyACM": "cdc_acm"}
"""Drivers of serial ports that come and go, and the module without which the kernel does not know them."""

_SEVERAL = "misc"
"""A driver's number that stands for files of all kinds: of these one is let in, and not all."""

_FILE = re.compile(r"/dev/[!-~]{1,200}")

_HEAD = """\
# Made by `edgectl devices allow`, of what the configuration names; it makes this file anew. What you change yourself
# belongs into another file beside it: `systemctl edit edged`.
"""


class Access(NamedTuple):
    """One thing to be let at: `allow` as DeviceAllow= has it, and what wants it.

    `module` must be loaded before the service for systemd to know the driver, `group` is whose the file is where the
    service's user is not in it, and `netlink` says that the kernel must be heard telling what is plugged in.
    """

    allow: str
    wanted_by: str
    module: str = ""
    group: str = ""
    netlink: bool = False


Driver = Callable[[Path], str]
"""The name of the driver a device's file belongs to, as in /proc/devices; "" where there is no such device."""


def run(args: argparse.Namespace) -> int:
    """Do what `edgectl devices allow` is asked for, and say what was done."""
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


_NOTHING = "the configuration names no device, and the service sees none"


def _done(needs: list[Access], changed: bool, restarted: bool) -> Iterator[str]:
    """What was done, and what is left to do."""
    for need in needs:
        yield f"{need.allow} for {need.wanted_by}"
    if not needs:
        yield _NOTHING
    yield f"{DROP_IN}: {('written' if needs else 'removed') if changed else 'nothing to change'}"
    if restarted:
        yield "edged was restarted with it"
    elif changed:
        yield "      -> to take effect: sudo systemctl daemon-reload && sudo systemctl restart edged"


# What is needed


def wanted(config: Config, store: Store, root: Path = Path("/"), driver: Driver | None = None) -> list[Access]:
    """All that the sources and the accelerators of a configuration need, each once. Raises ControlError."""
    driver = driver or driver_of
    found: dict[str, Access] = {}
    for access in (*_ports(config, driver), *_accelerators(config, store, root, driver)):
        found.setdefault(access.allow, access)
    return list(found.values())


def _ports(config: Config, driver: Driver) -> Iterator[Access]:
    for name, entry in config.sources.items():
        if entry.kind == "serial":
            yield from _port(f"source {name}", Path(entry.options.port), driver)  # type: ignore[attr-defined]


def _port(source: str, port: Path, driver: Driver) -> Iterator[Access]:
    """A port that is not there now and does not say what it will be may be either kind of adapter."""
    node = port.resolve()
    named = next((kind for kind in _PLUGGABLE if re.fullmatch(rf"/dev/{kind}\d+", str(node))), "")
    kind = driver(node) or named
    if kind in _PLUGGABLE:
        yield _adapter(kind, source, node)
    elif kind:
        yield Access(_file(port if str(port).startswith("/dev/") else node, source), source, group=_lacking(node))
    elif re.fullmatch(r"/dev/[A-Za-z]+\d+", str(port)):
        yield Access(_file(port, source), source)
    else:
        yield from (_adapter(kind, source, node) for kind in _PLUGGABLE)


def _adapter(kind: str, source: str, node: Path) -> Access:
    return Access(f"char-{kind}", source, module=_PLUGGABLE[kind], group=_lacking(node))


def _accelerators(config: Config, store: Store, root: Path, driver: Driver) -> Iterator[Access]:
    for delegate in delegates(config.delegates).values():
        if delegate.name in config.delegates or any(_may_use(config, store, delegate)):
            yield from _accelerator(delegate, root, driver)


def _may_use(config: Config, store: Store, delegate: Delegate) -> Iterator[bool]:
    """Whether a model is to run on a delegate, or may, having a variant for it."""
    for name, entry in config.models.items():
        if entry.delegate not in NO_DELEGATES:
            yield entry.delegate == delegate.name
        elif entry.delegate == "auto":
            try:
                variants = find_bundle(name, entry, store).manifest.variants
            except EdgedError:
                continue  # told by `edgectl config check`
            yield any(delegate.runs(variant.delegate) for variant in variants)


def _accelerator(delegate: Delegate, root: Path, driver: Driver) -> Iterator[Access]:
    """Those of its devices that are there; on USB also those that are not, as they go and come with their firmware."""
    who = f"delegate {delegate.name}"
    there = [device for device in devices(delegate, root) if device.state != "no driver"]
    on_usb = any(isinstance(rule, Usb) for rule in delegate.known.rules)
    if on_usb and (not there or any(device.id.startswith("usb") for device in there)):
        groups = [_lacking(Path(device.node)) for device in there if device.id.startswith("usb")]
        yield Access("char-usb_device", who, group=next(filter(None, groups), ""), netlink=True)
    for device in there:
        if not device.id.startswith("usb"):
            node = Path(device.node)
            kind = driver(node)
            if kind == _SEVERAL:
                yield Access(_file("/" / node.relative_to(root), who), who, group=_lacking(node))
            elif kind:
                yield Access(f"char-{kind}", who, module=module_of(node), group=_lacking(node))


def _file(node: Path, who: str) -> str:
    if not _FILE.fullmatch(str(node)):
        raise ControlError(
            f"{who} is to use {str(node)!r}, which cannot be let in", hint="name a device below /dev, without spaces"
        )
    return str(node).replace("%", "%%")


# What the kernel says


def driver_of(node: Path, table: Path = Path("/proc/devices")) -> str:
    """The driver of a character device that is there, "" where there is none."""
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
    """The kernel module that drives a device, "" where it is built in or nobody knows."""
    try:
        number = node.stat().st_rdev
        module = (sys / f"dev/char/{os.major(number)}:{os.minor(number)}/device/driver/module").readlink().name
    except OSError:
        return ""
    return module if re.fullmatch(r"[A-Za-z0-9_]+", module) else ""


def _lacking(node: Path) -> str:
    """The group of a device's file, where that is what opens it and the service's user is not in it."""
    try:
        status = node.stat()
        user = pwd.getpwnam(USER)
        group = grp.getgrgid(status.st_gid)
    except (OSError, KeyError):
        return ""
    opens = status.st_mode & 0o060 == 0o060 and status.st_mode & 0o006 != 0o006 and status.st_gid != 0
    return group.gr_name if opens and group.gr_gid not in os.getgrouplist(USER, user.pw_gid) else ""


# What systemd is told


def drop_in(needs: Iterable[Access]) -> str:
    """The text of the drop-in, "" where nothing is needed."""
    needs = list(needs)
    if not needs:
        return ""
    modules = " ".join(f"modprobe@{module}.service" for module in sorted({need.module for need in needs} - {""}))
    groups = " ".join(sorted({need.group for need in needs} - {""}))
    lines = [
        *(["[Unit]", f"Wants={modules}", f"After={modules}", ""] if modules else []),
        *("[Service]", "PrivateDevices=no", "DevicePolicy=closed"),
        *(f"DeviceAllow={need.allow} rw" for need in needs),
        *([f"SupplementaryGroups={groups}"] if groups else []),
        *(["RestrictAddressFamilies=AF_NETLINK"] if any(need.netlink for need in needs) else []),
    ]
    return _HEAD + "\n".join(lines) + "\n"


def put(text: str, file: Path = DROP_IN) -> bool:
    """Have the drop-in say this, or be gone where there is nothing to say; whether that changed anything.

    Raises:
        ControlError: we are not root.
        StoreError: the disk refused.
    """
    if (file.read_text() if file.exists() else "") == text:
        return False
    if os.geteuid() != 0 and not os.access(next(filter(Path.is_dir, file.parents)), os.W_OK):
        raise ControlError(f"{file} is not ours to write", hint="as root: sudo edgectl devices allow")
    disk = Disk()
    if not text:
        disk.remove(file)
        return True
    disk.make_folder(file.parent)
    file.parent.chmod(0o755)
    disk.replace(file, text.encode())
    file.chmod(0o644)  # there is no secret in it, and `systemctl cat` is for all
    return True


def restart() -> None:
    """Have systemd read it, and the service begin anew with it. Raises ControlError."""
    for words in (("daemon-reload",), ("restart", "edged")):
        done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ControlError(
                f"systemctl {' '.join(words)} failed: {done.stderr.strip()}", hint="see: systemctl status edged"
            )
