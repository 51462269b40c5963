"""List the known delegates, and find out from the file system alone if a delegate could work on this board.

A delegate is a vendor's shared library, and needs a device most of the time. Presence and permissions of the device are
read from sysfs and /dev, the presence of the library from the library folders. This module loads no library and opens
no device, so a survey is cheap, and harmless while the daemon uses the devices. To find out if a library fits the
installed runtime, `probe` loads the library in a child process.

`survey` returns the state of a delegate, and `resolve` the data for loading a delegate, or raises an error with the
reason. All files are searched below `root`, another folder than "/" only in tests.
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


# Finding devices


class DelegateFound(NamedTuple):
    """A device: id, device file, an identity changed by replugging, and the missing driver if no driver is loaded."""

    id: str
    node: Path
    identity: str
    lacks_driver: str = ""


class Usb(NamedTuple):
    """Devices on USB, by vendor and product, as usb:0, usb:1 in the order of bus and number.

    The vendor's library numbers devices on its own. The same order has not been confirmed with real devices.
    """

    ids: tuple[tuple[str, str], ...]
    group: str = "plugdev"

    def find(self, root: Path) -> Iterator[DelegateFound]:
        """Yield the devices plugged in now."""
        devices = []
        for entry in _listed(root / "sys/bus/usb/devices"):
            if (_read(entry / "idVendor"), _read(entry / "idProduct")) in self.ids:
                numbers = (_read(entry / "busnum"), _read(entry / "devnum"))
                if all(number.isdecimal() for number in numbers):
                    devices.append((*map(int, numbers), entry.name))
        for index, (bus, number, port) in enumerate(sorted(devices)):
            yield DelegateFound(f"usb:{index}", root / f"dev/bus/usb/{bus:03}/{number:03}", f"{port}/{number}")

    def rule(self, node: Path) -> str:
        """Return the udev rules for giving the devices to a group."""
        return "\n".join(
            f'SUBSYSTEM=="usb", ATTR{{idVendor}}=="{vendor}", ATTR{{idProduct}}=="{product}", '
            f'GROUP="{self.group}", MODE="0660"'
            for vendor, product in self.ids
        )


class Pci(NamedTuple):
    """Devices on PCIe, as pci:0, pci:1; the driver makes files `pattern` in /dev."""

    vendor: str
    device: str
    pattern: str
    driver: str
    group: str = "render"

    def find(self, root: Path) -> Iterator[DelegateFound]:
        """Yield the devices plugged in now; devices without a driver have no file."""
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
        """Return the udev rule for giving the devices to a group."""
        return f'KERNEL=="{self.pattern}", GROUP="{self.group}", MODE="0660"'


class Node(NamedTuple):
    """Devices by file name and, if other devices have such files too, by driver in /sys/class/`family`.

    The id of a device is the file's name.
    """

    pattern: str
    family: str = ""
    drivers: tuple[str, ...] = ()
    group: str = "render"

    def find(self, root: Path) -> Iterator[DelegateFound]:
        """Yield the devices present now."""
        for node in _glob(root, self.pattern):
            if not self.drivers or self._driver(root, node) in self.drivers:
                yield DelegateFound(node.name, node, _identity(node))

    def rule(self, node: Path) -> str:
        """Return the udev rule for giving a device to a group."""
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

    `libraries` are file names of the library, searched in `folders` and then in the system's library folders; `get` is
    the hint for installing the library. `options` are default options. `device_option` names the option for choosing
    among several devices, if the library has such an option. A delegate without `rules` needs no device.
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
            # Opening the device loads the firmware; until then, the device has the first of the ids.
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
    """A delegate with the settings of the table [delegates.X]."""

    name: str
    kind: DelegateKind
    library: str | None = None
    device: str = ""
    options: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def known(self) -> Known:
        """Return the entry of the delegate's kind in KNOWN."""
        known = KNOWN[self.kind]
        if self.kind == "external" and self.device:
            return known._replace(rules=(Node(self.device.lstrip("/")),))
        return known

    def runs(self, named: str) -> bool:
        """Return whether a manifest's delegate name means this delegate: by its own name or by kind."""
        return named in (self.name, self.kind)


def delegates(tables: Mapping[str, DelegateOptions]) -> dict[str, Delegate]:
    """Return all delegates by name: the known delegates as changed by the tables [delegates.X], and added delegates."""
    own: dict[str, DelegateOptions] = {kind: DelegateOptions() for kind in KNOWN if kind != "external"}
    return {
        name: Delegate(
            name=name,
            kind=table.kind or cast(DelegateKind, name),  # ensured by the configuration
            library=table.library,
            device=table.device,
            options=table.options,
        )
        for name, table in {**own, **tables}.items()
    }


# Surveying the board


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device of a delegate.

    `id` names the device in the configuration. `identity` changes by replugging and, for an Edge TPU, also by loading
    the firmware. `problem` is the reason for a state other than "ready", `hint` the remedy.
    """

    id: str
    node: str
    identity: str
    state: DeviceState = "ready"
    problem: str = ""
    hint: str = ""


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """State of a delegate: library and devices and, for a state other than "ready", the problem and a hint."""

    delegate: Delegate
    library: str | None
    devices: tuple[Device, ...]
    state: DeviceState
    problem: str = ""
    hint: str = ""


class Delegation(msgspec.Struct, frozen=True, kw_only=True):
    """Data for loading a delegate in a child process. `device` is the device's id, "" for no device."""

    name: str
    kind: DelegateKind
    device: str
    library: str
    options: dict[str, str]


def _may_open(node: Path) -> bool:
    return os.access(node, os.R_OK | os.W_OK)


def devices(delegate: Delegate, root: Path = Path("/"), may_open: MayOpen = _may_open) -> tuple[Device, ...]:
    """Return the devices of a delegate plugged in, or only the device named in the delegate's table."""
    return tuple(
        _judge(found, rule, delegate, may_open)
        for rule in delegate.known.rules
        for found in rule.find(root)
        if _is_meant(delegate, found.id)
    )


def identity(delegate: Delegate, root: Path = Path("/"), may_open: MayOpen = _may_open) -> str:
    """Return the identity of the first ready device of a delegate, "" without such a device.

    Replugging a device changes the identity. A delegate without devices has a constant identity.
    """
    if not delegate.known.rules:
        return delegate.name
    return next((each.identity for each in devices(delegate, root, may_open) if each.state == "ready"), "")


def survey(delegate: Delegate, root: Path = Path("/"), may_open: MayOpen = _may_open) -> Survey:
    """Return the state of a delegate on this board."""
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
    """Return the data for loading a delegate on the device with the id `device`, or else on the first ready device.

    `options` come from a variant: the variant's options override the defaults, and the table [delegates.X] overrides
    both.

    Raises:
        DeviceError: the delegate cannot be used on this board; `retryable` if the cause may go away without the
            operator, as with a device not plugged in.
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
            f"{delegate.name}: the device {device} is not present, or may not be opened",
            hint=f"name one of {others}; see: edgectl devices",
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
    """Return the hint for an unknown delegate name."""
    return did_you_mean(name, known) or f"describe it in a table [delegates.{name}], with a kind and a library"


def _is_meant(delegate: Delegate, found: str) -> bool:
    wanted = delegate.device
    return delegate.kind == "external" or wanted in ("", found, found.partition(":")[0])


def _judge(found: DelegateFound, rule: Rule, delegate: Delegate, may_open: MayOpen) -> Device:
    state: DeviceState = "ready"
    problem = hint = ""
    if found.lacks_driver:
        state = "no driver"
        problem = f"{found.id} is present, but has no driver"
        hint = f"install and load the kernel modules {found.lacks_driver}"
    elif not may_open(found.node):
        state = "no permission"
        problem, hint = _refusal(found, rule)
    return Device(id=found.id, node=str(found.node), identity=found.identity, state=state, problem=problem, hint=hint)


def _refusal(found: DelegateFound, rule: Rule) -> tuple[str, str]:
    """Return the reason for a refused device file, and a hint."""
    try:
        status = found.node.stat()
    except OSError:
        return f"{found.id} is present, but has no file {found.node}", "pass the device files into the container"
    group = _group_name(status.st_gid)
    if status.st_mode & 0o060 == 0o060 and status.st_gid != 0:
        hint = f"add the daemon's user to the group: sudo usermod -aG {group} edged, and restart the daemon"
        return f"{found.node} belongs to the group {group}, and edged is not in that group", hint
    return (
        f"edged may not open {found.node}",
        f"put into {_OUR_RULES}:\n{rule.rule(found.node)}\nthen: sudo udevadm control --reload && sudo udevadm trigger"
        f" && sudo usermod -aG {rule.group} edged, and restart the daemon",
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
    """Return name, device number and inode of a device file: a file made anew has another identity."""
    try:
        status = node.stat()
    except OSError:
        return ""
    return f"{node.name}/{status.st_rdev}/{status.st_ino}"


def _glob(root: Path, pattern: str) -> list[Path]:
    """Return the files with names matching the last part of a pattern, in the order of their numbers."""
    folder, _, name = pattern.rpartition("/")
    found = [entry for entry in _listed(root / folder) if fnmatchcase(entry.name, name)]
    return sorted(found, key=lambda entry: (len(entry.name), entry.name))


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _read(file: Path) -> str:
    """Return the content of a sysfs file; "" for a file that has just gone."""
    try:
        with file.open("rb") as opened:
            return opened.read(256).decode("ascii", "replace").strip()
    except OSError:
        return ""
