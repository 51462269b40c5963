"""The delegates that are known, and which of them could work on this board: a table, and a look at the file system.

A delegate is a vendor's shared library, and needs a device most of the time. Whether the device is there and may be
opened can be read from sysfs and /dev; whether the library is there, from the folders where libraries are. No library
is loaded and no device opened here, so that it is cheap, and harmless while the daemon has them. Whether the library
fits this runtime is found out by loading it, in a child process: that is `probe`.

`survey` says how one delegate stands, and `resolve` gives what it takes to load one, or says why it cannot be had.
Everything is looked for below `root`, which is another folder in tests only.
"""

from __future__ import annotations

import grp
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, cast

import msgspec
from msgspec import Meta

from edged.core.errors import DeviceError
from edged.core.tables import did_you_mean, listed

DelegateKind = Literal["edgetpu", "teflon", "armnn", "vx", "ethosu", "neutron", "qnn", "gpu", "external"]
DeviceState = Literal["ready", "no device", "no driver", "no permission", "no library"]
MayOpen = Callable[[Path], bool]

_MULTIARCH = getattr(sys.implementation, "_multiarch", "")
_FOLDERS = tuple(f"{top}/lib{sub}" for sub in (f"/{_MULTIARCH}", "", "64") for top in ("usr/local", "usr", ""))
_OUR_RULES = "/etc/udev/rules.d/99-edged.rules"


# How devices are found


class DelegateFound(NamedTuple):
    """A device: what to call it, its file, what changes when it is plugged in anew, and what drives it if nothing."""

    id: str
    node: Path
    identity: str
    lacks_driver: str = ""


class Usb(NamedTuple):
    """Devices on USB, by vendor and product, as usb:0, usb:1 in the order of bus and number.

    The library counts them by itself. That it comes to the same order has not been seen with real ones.
    """

    ids: tuple[tuple[str, str], ...]
    group: str = "plugdev"

    def find(self, root: Path) -> Iterator[DelegateFound]:
        """Those there are now."""
        devices = []
        for entry in _listed(root / "sys/bus/usb/devices"):
            if (_read(entry / "idVendor"), _read(entry / "idProduct")) in self.ids:
                numbers = (_read(entry / "busnum"), _read(entry / "devnum"))
                if all(number.isdecimal() for number in numbers):
                    devices.append((*map(int, numbers), entry.name))
        for index, (bus, number, port) in enumerate(sorted(devices)):
            yield DelegateFound(f"usb:{index}", root / f"dev/bus/usb/{bus:03}/{number:03}", f"{port}/{number}")

    def rule(self, node: Path) -> str:
        """What a udev rule says to give them to a group."""
        return "\n".join(
            f'SUBSYSTEM=="usb", ATTR{{idVendor}}=="{vendor}", ATTR{{idProduct}}=="{product}", '
            f'GROUP="{self.group}", MODE="0660"'
            for vendor, product in self.ids
        )


class Pci(NamedTuple):
    """Devices on PCIe whose driver makes files `pattern` in /dev, as pci:0, pci:1."""

    vendor: str
    device: str
    pattern: str
    driver: str
    group: str = "render"

    def find(self, root: Path) -> Iterator[DelegateFound]:
        """Those there are now; for want of the driver they have no file."""
        nodes = _glob(root, f"dev/{self.pattern}")
        for index, node in enumerate(nodes):
            yield DelegateFound(f"pci:{index}", node, _identity(node))
        for index, slot in enumerate(self._slots(root)):
            if index >= len(nodes):
                yield DelegateFound(f"pci:{index}", slot, slot.name, self.driver)

    def _slots(self, root: Path) -> list[Path]:
        ids = (f"0x{self.vendor}", f"0x{self.device}")
        slots = _listed(root / "sys/bus/pci/devices")
        return [slot for slot in slots if (_read(slot / "vendor"), _read(slot / "device")) == ids]

    def rule(self, node: Path) -> str:
        """What a udev rule says to give them to a group."""
        return f'KERNEL=="{self.pattern}", GROUP="{self.group}", MODE="0660"'


class Node(NamedTuple):
    """Devices by the name of their file, and by their driver in /sys/class/`family` where others have such files too.

    They are called as their files are.
    """

    pattern: str
    family: str = ""
    drivers: tuple[str, ...] = ()
    group: str = "render"

    def find(self, root: Path) -> Iterator[DelegateFound]:
        """Those there are now."""
        for node in _glob(root, self.pattern):
            if not self.drivers or self._driver(root, node) in self.drivers:
                yield DelegateFound(node.name, node, _identity(node))

    def rule(self, node: Path) -> str:
        """What a udev rule says to give them to a group."""
        return f'KERNEL=="{node.name}", GROUP="{self.group}", MODE="0660"'

    def _driver(self, root: Path, node: Path) -> str:
        try:
            return (root / f"sys/class/{self.family}/{node.name}/device/driver").readlink().name
        except OSError:
            return ""


Rule = Usb | Pci | Node


# The table


class Known(NamedTuple):
    """A kind of delegate.

    `libraries` are the names of its library, looked for in `folders` and then where libraries usually are; `get` says
    where it comes from. It has `options` unless told otherwise; where it can be told which of several devices to take,
    `device_option` is the name of that option. With no `rules` it needs no device.
    """

    title: str
    libraries: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    options: Mapping[str, str] = {}
    device_option: str = ""
    rules: tuple[Rule, ...] = ()
    get: str = ""


KNOWN: Mapping[DelegateKind, Known] = {
    "edgetpu": Known(
        title="Coral Edge TPU",
        libraries=("libedgetpu.so.1", "libedgetpu.so.1.0", "libedgetpu.so"),
        device_option="device",
        rules=(
            # It goes by the first until it has been given its firmware, which happens when it is opened.
            Usb((("1a6e", "089a"), ("18d1", "9302"))),
            Pci("1ac1", "089a", "apex_[0-9]*", "gasket and apex"),
        ),
        get="install libedgetpu1-std, in the version that was built for this TFLite runtime",
    ),
    "teflon": Known(
        title="NPU by Mesa Teflon (Vivante, RK3588)",
        libraries=("libteflon.so",),
        folders=("usr/lib/teflon", f"usr/lib/{_MULTIARCH}/teflon"),
        rules=(Node("dev/dri/renderD*", "drm", ("etnaviv",)), Node("dev/accel/accel*", "accel", ("rocket",))),
        get="apt install mesa-teflon-delegate (Debian 13 or newer)",
    ),
    "armnn": Known(
        title="Arm CPU and Mali GPU by Arm NN",
        libraries=("libarmnnDelegate.so",),
        options={"backends": "CpuAcc,GpuAcc,CpuRef"},
        get="install Arm NN with its TFLite delegate",
    ),
    "vx": Known(
        title="NXP i.MX 8M Plus NPU",
        libraries=("libvx_delegate.so",),
        rules=(Node("dev/galcore"),),
        get="install tflite-vx-delegate from the board's NXP BSP",
    ),
    "ethosu": Known(
        title="Arm Ethos-U (NXP i.MX 93)",
        libraries=("libethosu_delegate.so",),
        rules=(Node("dev/ethosu[0-9]*"),),
        get="install tflite-ethosu-delegate from the board's NXP BSP",
    ),
    "neutron": Known(
        title="NXP eIQ Neutron (i.MX 95)",
        libraries=("libneutron_delegate.so",),
        rules=(Node("dev/neutron[0-9]*"),),
        get="install tflite-neutron-delegate from the board's NXP BSP",
    ),
    "qnn": Known(
        title="Qualcomm Hexagon by QNN",
        libraries=("libQnnTFLiteDelegate.so",),
        options={"backend_type": "htp"},
        rules=(Node("dev/fastrpc-cdsp"),),
        get="install the Qualcomm AI Runtime (QAIRT) with its TFLite delegate",
    ),
    "gpu": Known(
        title="GPU by the TFLite GPU delegate",
        libraries=("libtensorflowlite_gpu_delegate.so",),
        rules=(Node("dev/dri/renderD*"), Node("dev/mali[0-9]*"), Node("dev/kgsl-3d0")),
        get="build libtensorflowlite_gpu_delegate.so from the TensorFlow sources",
    ),
    "external": Known(title="external delegate", get="install it, or correct `library`"),
}


Printable = Annotated[str, Meta(pattern=r"^[ -~]{0,1000}\Z", description="printable text of at most 1000 characters")]
LibraryPath = Annotated[
    str, Meta(pattern=r"^(/[ -~]{1,1000}|[!-.0-~]{1,200})\Z", description="an absolute path, or a name with no slash")
]


class DelegateOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of [delegates.X]: an accelerator's library that edged does not know, or changes to a known one.

    Keys:
        kind: Known kind of delegate. Default: X itself.
        library: Shared library of the delegate: an absolute path, or a name looked for in the system's library folders.
        device: Device to use, as `edgectl devices` lists it, for example "usb:1"; with kind = "external", the path of a
            file that must exist.
        options: Table of options handed to the library unchanged.
    """

    kind: DelegateKind | None = None
    library: LibraryPath | None = None
    device: Printable = ""
    options: Annotated[dict[Printable, Printable], Meta(max_length=32)] = msgspec.field(default_factory=dict)


class Delegate(msgspec.Struct, frozen=True, kw_only=True):
    """A delegate as it is configured here; the fields are those of its table."""

    name: str
    kind: DelegateKind
    library: str | None = None
    device: str = ""
    options: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def known(self) -> Known:
        """What is known of its kind."""
        known = KNOWN[self.kind]
        if self.kind == "external" and self.device:
            return known._replace(rules=(Node(self.device.lstrip("/")),))
        return known

    def runs(self, named: str) -> bool:
        """Whether it is what a manifest means by a delegate's name: this one, or any of its kind."""
        return named in (self.name, self.kind)


def delegates(tables: Mapping[str, DelegateOptions]) -> dict[str, Delegate]:
    """All delegates there are, by name: the known ones, as the tables [delegates.X] change them, and those they add."""
    own: dict[str, DelegateOptions] = {kind: DelegateOptions() for kind in KNOWN if kind != "external"}
    return {
        name: Delegate(
            name=name,
            kind=table.kind or cast(DelegateKind, name),  # the configuration has seen to it
            library=table.library,
            device=table.device,
            options=table.options,
        )
        for name, table in {**own, **tables}.items()
    }


# Looking


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device of a delegate.

    `id` is how it is asked for. `identity` is another once it has been unplugged and plugged in again, and for an Edge
    TPU also once it has been given its firmware. `problem` says why it cannot be used, `hint` what to do about that.
    """

    id: str
    node: str
    identity: str
    state: DeviceState = "ready"
    problem: str = ""
    hint: str = ""


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """How a delegate stands: its library and its devices, and if it is not ready, why, and what to do about that."""

    delegate: Delegate
    library: str | None
    devices: tuple[Device, ...]
    state: DeviceState
    problem: str = ""
    hint: str = ""


class Delegation(msgspec.Struct, frozen=True, kw_only=True):
    """All it takes to load a delegate, in a child process. `device` is the id of its device, "" if it needs none."""

    name: str
    kind: DelegateKind
    device: str
    library: str
    options: dict[str, str]


def _may_open(node: Path) -> bool:
    return os.access(node, os.R_OK | os.W_OK)


def devices(delegate: Delegate, root: Path = Path("/"), may_open: MayOpen = _may_open) -> tuple[Device, ...]:
    """The devices of a delegate that are plugged in, or only the one that its table names."""
    return tuple(
        _judge(found, rule, delegate, may_open)
        for rule in delegate.known.rules
        for found in rule.find(root)
        if _is_meant(delegate, found.id)
    )


def identity(delegate: Delegate, root: Path = Path("/"), may_open: MayOpen = _may_open) -> str:
    """Which device of a delegate is ready: "" if none is, and another text once it was plugged in anew.

    A delegate that needs no device is always the same.
    """
    if not delegate.known.rules:
        return delegate.name
    return next((each.identity for each in devices(delegate, root, may_open) if each.state == "ready"), "")


def survey(delegate: Delegate, root: Path = Path("/"), may_open: MayOpen = _may_open) -> Survey:
    """How a delegate stands on this board."""
    known, library, found = delegate.known, _find_library(delegate, root), devices(delegate, root, may_open)

    def stands(state: DeviceState, problem: str, hint: str) -> Survey:
        return Survey(delegate=delegate, library=library, devices=found, state=state, problem=problem, hint=hint)

    if known.rules and not found:
        what = f"{known.title} {delegate.device}".rstrip()
        return stands("no device", f"there is no {what}", "plug it in, or enable it and its driver")
    if library is None:
        names = delegate.library or " or ".join(known.libraries)
        return stands("no library", f"{names} is not installed", known.get)
    if known.rules and not any(device.state == "ready" for device in found):
        return stands(found[0].state, found[0].problem, found[0].hint)
    return stands("ready", "", "")


def resolve(
    delegate: Delegate,
    options: Mapping[str, str] | None = None,
    device: str = "",
    root: Path = Path("/"),
    may_open: MayOpen = _may_open,
) -> Delegation:
    """What it takes to load a delegate: on the device with that id, or on the first that is ready.

    `options` are a variant's: they change the usual ones, and the table [delegates.X] has the last word.

    Raises:
        DeviceError: it cannot be used here, and why; `retryable` if that may change without anybody's doing.
    """
    found = survey(delegate, root, may_open)
    if found.state != "ready" or found.library is None:
        raise DeviceError(
            f"{delegate.name}: {found.problem}", hint=found.hint, retryable=found.state in ("no device", "no driver")
        )
    ready = [each for each in found.devices if each.state == "ready" and device in ("", each.id)]
    if delegate.known.rules and not ready:
        others = listed(each.id for each in found.devices)
        raise DeviceError(
            f"{delegate.name}: the device {device} is not there, or not ours to open",
            hint=f"there is {others}; see: edgectl devices",
            retryable=True,
        )
    chosen = ready[0].id if ready else ""
    pinned = {delegate.known.device_option: chosen} if delegate.known.device_option else {}
    return Delegation(
        name=delegate.name,
        kind=delegate.kind,
        device=chosen,
        library=found.library,
        options={**delegate.known.options, **(options or {}), **delegate.options, **pinned},
    )


def unknown(name: str, known: Iterable[str]) -> str:
    """What to say to somebody who names a delegate that there is not."""
    return did_you_mean(name, known) or f"describe it in a table [delegates.{name}], with a kind and a library"


def _is_meant(delegate: Delegate, found: str) -> bool:
    wanted = delegate.device
    return delegate.kind == "external" or wanted in ("", found, found.partition(":")[0])


def _judge(found: DelegateFound, rule: Rule, delegate: Delegate, may_open: MayOpen) -> Device:
    state: DeviceState = "ready"
    problem = hint = ""
    if found.lacks_driver:
        state = "no driver"
        problem = f"{found.id} is there, but no driver for it"
        hint = f"install and load the kernel modules {found.lacks_driver}"
    elif not may_open(found.node):
        state = "no permission"
        problem, hint = _refusal(found, rule)
    return Device(id=found.id, node=str(found.node), identity=found.identity, state=state, problem=problem, hint=hint)


def _refusal(found: DelegateFound, rule: Rule) -> tuple[str, str]:
    """Why the file of a device cannot be opened, and what to do about that."""
    try:
        status = found.node.stat()
    except OSError:
        return f"{found.id} is there, but {found.node} is not", "a container must be given the files of devices"
    group = _group_name(status.st_gid)
    if status.st_mode & 0o060 == 0o060 and status.st_gid != 0:
        hint = f"let the daemon's user in: sudo usermod -aG {group} edged, and restart it"
        return f"{found.node} is for the group {group}, and we are not in it", hint
    return (
        f"{found.node} is not for us to open",
        f"put into {_OUR_RULES}:\n{rule.rule(found.node)}\nthen: sudo udevadm control --reload && sudo udevadm trigger"
        f" && sudo usermod -aG {rule.group} edged, and restart it",
    )


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _find_library(delegate: Delegate, root: Path) -> str | None:
    names = (delegate.library,) if delegate.library else delegate.known.libraries
    folders = ("",) if names and names[0].startswith("/") else (*delegate.known.folders, *_FOLDERS)
    for folder in folders:
        for name in names:
            path = root / folder.lstrip("/") / name.lstrip("/")
            if path.is_file():
                return str(path)
    return None


def _identity(node: Path) -> str:
    """A device file that has been made anew is another file."""
    try:
        status = node.stat()
    except OSError:
        return ""
    return f"{node.name}/{status.st_rdev}/{status.st_ino}"


def _glob(root: Path, pattern: str) -> list[Path]:
    """The files below root whose name is like the last part of a pattern, in the order of their numbers."""
    folder, _, name = pattern.rpartition("/")
    found = [entry for entry in _listed(root / folder) if fnmatchcase(entry.name, name)]
    return sorted(found, key=lambda entry: (len(entry.name), entry.name))


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _read(file: Path) -> str:
    """A line of sysfs; empty if it has just gone."""
    try:
        with file.open("rb") as opened:
            return opened.read(256).decode("ascii", "replace").strip()
    except OSError:
        return ""
