"""Look for faults of this board, the configuration and the daemon, and name a remedy for each fault.

The command makes no changes and opens no device of the daemon. Root and members of the daemon's group may run the
command at any time. The exit code is 1 if a check failed; a warning may be intended.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import grp
import os
import platform
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from edged.backends.delegates import Delegate, delegates, resolve, survey
from edged.backends.probe import probe
from edged.config.check import check, check_models, find_bundle, required_devices
from edged.config.load import ConfigErrors, load
from edged.config.options import Config, SourceEntry
from edged.config.warnings import warnings
from edged.control.clock import kernel_synchronised
from edged.core.acceleration import Rules
from edged.core.answers import SPOOL, STATUS, MqttAnswer, SpoolAnswer, StatusAnswer
from edged.core.device_requirements import DeviceRequirements
from edged.core.errors import ConfigError, ControlError, EdgedError, quantity
from edged.core.manifest import NO_DELEGATES, Variant
from edged.core.tables import Problem
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import ForbiddenError, UnreachableError, connect
from edged.ctl.config import summary
from edged.ctl.devices import daemon_runs
from edged.ctl.devices_allow import COMMAND, USER, Access, wanted
from edged.ctl.local_model import models_of
from edged.models.bundle import Bundle
from edged.models.selftest import Proof
from edged.models.store import Store
from edged.models.trial import prove_apart
from edged.outbox.options import MqttOptions
from edged.system import board as hardware
from edged.system.disk_space import NO_INODES, room_hint

BROKER_SECONDS = 3.0
RUNTIME_SECONDS = 60.0
LEAST_FREE_BYTES = 50_000_000
SYSTEMD_SECONDS = 10.0
STUCK_SECONDS = 60.0
HOT_DEGREES = 80
_PROPERTIES = (
    *("LoadState", "ActiveState", "UnitFileState", "Result", "NRestarts"),
    *("PrivateDevices", "DevicePolicy", "DeviceAllow", "SupplementaryGroups"),
)
_BRING = "bring a version that has one: edgectl pack --variant"
_NO_ADVICE = DeviceRequirements()
_DOTS = {"ok": "running", "warn": "degraded", "fail": "failed"}


class Check(NamedTuple):
    """Result of a check: the name, the verdict, the finding, and a remedy for a fault."""

    name: str
    verdict: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print each check when done."""
    done = []
    for each in _checks(args):
        done.append(each)
        if not args.json:
            tables.show(_lines(each))
    well = all(each.verdict != "fail" for each in done)
    if args.json:
        tables.show_json({"ok": well, "checks": [each._asdict() for each in done]})
    return exits.DONE if well else exits.BAD


def _lines(check: Check) -> Iterator[str]:
    yield f"{tables.dot(_DOTS[check.verdict])} {check.verdict:4}  {check.name:8}  {tables.plain(check.found)}"
    yield from tables.advice(check.remedy)


def _checks(args: argparse.Namespace) -> Iterator[Check]:
    yield check_python(sys.version_info[:2])
    runtime = check_runtime()
    yield runtime
    store, unit = models_of(args), unit_properties()
    files = [Path(file) for file in args.config]
    try:
        config = load(files)
    except ConfigErrors:
        config = None
        yield from map(_failed, check(files, store).problems)
    if config is not None:
        yield from check_config(config, store)
        if runtime.verdict == "ok":  # a broken runtime could kill this process
            yield from check_models_work(config, store)
            yield from check_delegates(config, store, running=daemon_runs(args.runtime_dir))
        yield from check_sources(config, unit)
        yield check_broker(config.mqtt)
    yield from check_unit(unit)
    if config is not None:
        yield from _check_sandbox(unit, config, store)
    yield from check_root(Path("/"), Path("/etc/fstab"))
    yield check_state(Path(args.state_dir), Path("/etc/fstab"))
    yield check_clock(kernel_synchronised)
    yield from check_hardware(Path("/sys"))
    yield from check_daemon(args.runtime_dir)


def check_python(version: tuple[int, int]) -> Check:
    """Check that the tests of edged cover this Python."""
    if (3, 11) <= version <= (3, 13):
        return Check("python", "ok", f"{platform.python_version()} on {platform.machine()}")
    return Check("python", "warn", f"{version[0]}.{version[1]}", "edged is tested with Python 3.11 to 3.13")


_IMPORT_RUNTIME = """
from importlib import import_module
for package in ("ai_edge_litert", "tflite_runtime"):
    try:
        import_module(package + ".interpreter").Interpreter
    except ImportError as error:
        print(f"{package}: {error}")
    else:
        print(package.replace("_", "-"), import_module(package).__version__)
        raise SystemExit(0)
raise SystemExit(1)
"""


def check_runtime(code: str = _IMPORT_RUNTIME) -> Check:
    """Check the import of a TFLite runtime, in a child process: a runtime for another processor kills the process."""
    try:
        command = [sys.executable, "-c", code]
        found = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # the same packages as here
        child = subprocess.run(command, env=found, capture_output=True, text=True, timeout=RUNTIME_SECONDS)
    except subprocess.TimeoutExpired:
        return Check("runtime", "fail", f"the import took more than {RUNTIME_SECONDS:.0f} s", "reinstall the runtime")
    if child.returncode < 0:
        died = signal.Signals(-child.returncode).name
        return Check("runtime", "fail", f"the import kills the process: {died}", "install a runtime for this processor")
    said = "; ".join(child.stdout.split("\n")).strip("; ")
    if child.returncode:
        return Check("runtime", "fail", said or child.stderr[-200:], "pip install ai-edge-litert")
    return Check("runtime", "ok", said.rpartition("; ")[2])


def check_config(config: Config, store: Store) -> Iterator[Check]:
    """Check the configuration and the models."""
    problems = check_models(config, store)
    yield from map(_failed, problems)
    for doubt in warnings(config, store):
        found = f"{doubt.file}: {doubt.path}: found {doubt.found}; expected: {doubt.allowed}"
        yield Check("config", "warn", found, doubt.hint)
    if not problems:
        yield Check("config", "ok", summary(config))
    if not config.pipelines:
        yield Check(
            "config",
            "warn",
            "the configuration has no pipeline",
            "add a table [pipelines.NAME]",
        )


def _failed(problem: Problem) -> Check:
    found = f"{problem.file}: {problem.path}: found {problem.found}; allowed: {problem.allowed}"
    return Check("config", "fail", found, problem.hint)


def check_models_work(config: Config, store: Store) -> Iterator[Check]:
    """Check each model: load, and compute the outputs of the golden samples."""
    for name, entry in config.models.items():
        try:
            bundle = find_bundle(name, entry, store)
        except EdgedError:
            continue  # reported by check_config
        try:
            verdict = asyncio.run(prove_apart(bundle, entry.options))
        except EdgedError as error:
            yield Check("model", "fail", f"{name}: {error.message}", error.hint)
        else:
            title = f"{name} {bundle.manifest.version}"
            found = f"{title}: {Proof(verdict.samples, verdict.worst).words(bundle.manifest)}"
            if verdict.samples:
                yield Check("model", "ok", found)
            else:
                yield Check("model", "warn", found, "make golden samples: edgectl pack --golden")


def check_delegates(config: Config, store: Store, *, running: bool, root: Path = Path("/")) -> Iterator[Check]:
    """Check the configured delegates, and the delegates on this board with a variant of a model.

    While no daemon has the devices, each delegate loads the possible variants in a child process.
    """
    table = delegates(config.delegates)
    pinned = {entry.delegate for entry in config.models.values()} - {*NO_DELEGATES}
    uses = list(_uses(config, store, table.values()))
    yield from _pinned_in_vain(config, uses)
    for name, delegate in table.items():
        found, asked_for = survey(delegate, root), name in pinned or name in config.delegates
        files = [use for use in uses if use.delegate == delegate]
        if found.state != "ready":
            if asked_for or (files and found.devices):
                yield Check("delegate", "fail" if asked_for else "warn", f"{name}: {found.problem}", found.hint)
        elif files and running:
            yield Check("delegate", "ok", f"{name}: library {found.library} and device are present")
        elif files:
            yield from (_try_out(use, config.accelerators, root) for use in files)
        elif name in config.delegates:
            yield Check("delegate", "warn", f"{name} is ready, and no model has a variant for it", _BRING)


class _Use(NamedTuple):
    """A variant of a configured model, for a delegate."""

    model: str
    bundle: Bundle
    variant: Variant
    delegate: Delegate


def _uses(config: Config, store: Store, known: Collection[Delegate]) -> Iterator[_Use]:
    for model, entry in config.models.items():
        try:
            bundle = find_bundle(model, entry, store)
        except EdgedError:
            continue  # reported by check_config
        for variant in bundle.manifest.variants:
            for delegate in known:
                if delegate.runs(variant.delegate) and entry.delegate in ("auto", delegate.name):
                    yield _Use(model, bundle, variant, delegate)


def _pinned_in_vain(config: Config, uses: list[_Use]) -> Iterator[Check]:
    for model, entry in config.models.items():
        if entry.delegate not in NO_DELEGATES and model not in [use.model for use in uses]:
            found = f"{model} is to run on {entry.delegate}, and has no variant for it"
            yield Check("delegate", "fail", found, _BRING)


def _try_out(use: _Use, rules: Rules, root: Path) -> Check:
    """Check the load of a variant on the delegate, and the share of the nodes that the delegate takes."""
    bundle, variant, name = use.bundle, use.variant, use.delegate.name
    try:
        delegation = resolve(use.delegate, variant.options, root=root)
        answer = probe(delegation, rules, bundle.file(variant.file), variant.signature)
    except EdgedError as error:
        return Check("delegate", "fail", error.message, error.hint)
    found = f"{name} takes {answer.delegated} of {answer.nodes} nodes of {use.model} {bundle.manifest.version}"
    if answer.delegated < (bundle.manifest.limits.delegated_share or 0) * answer.nodes:
        return Check("delegate", "fail", found, "compile the model anew; limits.delegated_share requires more")
    if answer.delegated == 0:
        return Check("delegate", "warn", found, "compile or quantise the model for this accelerator")
    return Check("delegate", "ok", found)


def check_sources(config: Config, unit: Mapping[str, str]) -> Iterator[Check]:
    """Check that the devices of the sources exist, and that the daemon's user may open each device."""
    for name, entry in config.sources.items():
        yield from _check_source(name, entry, unit.get("SupplementaryGroups", "").split())


def _check_source(name: str, entry: SourceEntry, groups: Sequence[str]) -> Iterator[Check]:
    try:
        required = required_devices(name, entry)
    except ConfigError as error:
        yield Check("device", "fail", error.message, error.hint)
    else:
        yield from (check_device(name, Path(path), required, groups) for path in required.paths)


def check_device(
    source: str, path: Path, required: DeviceRequirements = _NO_ADVICE, groups: Sequence[str] = ()
) -> Check:
    """Check a device without opening, as the daemon may use the device. `groups` are extra groups of the service."""
    try:
        status = path.stat()
    except OSError as error:
        remedy = f"plug the sensor in, or correct [sources.{source}]; stable names of ports are in /dev/serial/by-id"
        return Check("device", "fail", f"{source}: {path}: {error.strerror}", remedy)
    if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        return Check("device", "fail", f"{source}: {path} is not a device", "name the device of the sensor")
    if _may_open(path, status, groups):
        return Check("device", "ok", f"{source}: {path}")
    group = _group_name(status.st_gid)
    if status.st_mode & 0o060 == 0o060 and status.st_gid != 0:
        remedy = f"add the daemon's user to the group: sudo usermod -aG {group} {_daemon_user()}\nthen: {COMMAND}"
        return Check("device", "fail", f"{source}: {path} belongs to the group {group}", remedy)
    rule = required.udev_rule or f'KERNEL=="{path.resolve().name}", GROUP="{(*required.groups, USER)[0]}", MODE="0660"'
    remedy = f"put into /etc/udev/rules.d/99-edged.rules:\n{rule}\nthen: sudo udevadm control --reload && {COMMAND}"
    return Check("device", "fail", f"{source}: {path} belongs to root alone", remedy)


def _may_open(path: Path, status: os.stat_result, groups: Sequence[str]) -> bool:
    """Return whether the daemon's user may open a device; without such a user, whether the caller may."""
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        return os.access(path, os.R_OK | os.W_OK)
    granted = status.st_mode >> 3 if _group_name(status.st_gid) in groups else 0
    return granted & 0o6 == 0o6 or _permits(status, user, 0o6)


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def check_broker(mqtt: MqttOptions, timeout: float = BROKER_SECONDS) -> Check:
    """Check that the broker's address accepts connections, without sending data."""
    if not mqtt.host:
        return Check("broker", "warn", "no broker is configured", 'name a broker: [mqtt] host = "..."')
    try:
        socket.create_connection((mqtt.host, mqtt.real_port), timeout).close()
    except OSError as error:
        reason = error.strerror or str(error)
        return Check("broker", "fail", f"{mqtt.broker}: {reason}", "check the address, the network and the broker")
    return Check("broker", "ok", f"{mqtt.broker} accepts connections")


def unit_properties(ask: Callable[[], str] | None = None) -> dict[str, str]:
    """Return systemd's properties of the service, empty without such a service or without systemd."""
    lines = (ask or _systemctl_show)().splitlines()
    unit = dict.fromkeys(_PROPERTIES, "")  # systemd prints no line for an empty list
    for name, _, value in (line.partition("=") for line in lines):
        unit[name] = f"{unit.get(name, '')} {value}".strip()
    return unit if unit["LoadState"] not in ("", "not-found") else {}


def _systemctl_show() -> str:
    try:
        command = ["systemctl", "show", "edged", f"--property={','.join(_PROPERTIES)}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SYSTEMD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def check_unit(unit: dict[str, str]) -> Iterator[Check]:
    """Check that systemd runs the service, now and after the next boot."""
    if not unit:
        return
    active, enabled = unit["ActiveState"], unit["UnitFileState"]
    if enabled == "masked":
        yield Check("unit", "fail", "the service is masked", "sudo systemctl unmask edged")
    elif enabled == "disabled":
        yield Check("unit", "warn", "the service is not started at boot", "sudo systemctl enable --now edged")
    if active == "failed":
        yield Check("unit", "fail", f"the service failed: {unit['Result']}", "see why: sudo journalctl -u edged -n 50")
    elif active == "inactive":
        yield Check("unit", "fail", "the service does not run", "sudo systemctl start edged; systemctl status edged")
    elif unit["NRestarts"] not in ("", "0"):
        found = f"the service is {active}; it had to be restarted {unit['NRestarts']} times"
        yield Check("unit", "warn", found, "see why: sudo journalctl -u edged")
    elif enabled not in ("masked", "disabled"):
        yield Check("unit", "ok", f"the service is {active}, and started at boot")


def _check_sandbox(unit: dict[str, str], config: Config, store: Store) -> Iterator[Check]:
    try:
        needs = wanted(config, store)
    except ConfigError:
        return  # reported by check_sources
    except ControlError as error:
        yield Check("access", "fail", error.message, error.hint)
    else:
        yield from check_access(unit, needs)


def check_access(unit: dict[str, str], needs: Collection[Access]) -> Iterator[Check]:
    """Check that the service's sandbox allows the devices of the configuration."""
    if not unit or not needs:
        return
    hidden = unit["PrivateDevices"] == "yes"
    closed = unit["DevicePolicy"] != "auto" or unit["DeviceAllow"]
    allowed = {word.replace("%%", "%") for word in unit["DeviceAllow"].split()}
    lacking = [need for need in needs if hidden or (closed and need.allow.replace("%%", "%") not in allowed)]
    for need in lacking:
        found = f"the service's sandbox blocks {need.allow} of {need.wanted_by}"
        yield Check("access", "fail", found, COMMAND)
    if not lacking:
        yield Check("access", "ok", "the service's sandbox allows the devices of the configuration")


def check_root(root: Path, fstab: Path) -> Iterator[Check]:
    """Check for a root file system made read-only by a fault, as on a failing card."""
    if _read_only(root):
        meant = any("ro" in options for point, options in _mounts(fstab) if point == root)
        if meant:
            yield Check("root", "ok", "read-only, as /etc/fstab has it")
        else:
            remedy = "see why: sudo dmesg | grep -i error; replace a failing card"
            yield Check("root", "warn", "the root file system is read-only, against /etc/fstab", remedy)


def check_state(folder: Path, fstab: Path, least: int = LEAST_FREE_BYTES) -> Check:
    """Check the state folder: mounted where /etc/fstab names a partition, writable, and with free space."""
    for point, _ in _mounts(fstab):
        if point != Path("/") and folder.is_relative_to(point) and not os.path.ismount(point):
            remedy = f"see why: systemctl status {_mount_unit(point)}\nthen: sudo mount {point}"
            return Check("state", "fail", f"{point} is in /etc/fstab, and is not mounted", remedy)
    try:
        there = folder.is_dir()
    except PermissionError:
        there = True
    if not there:
        return Check(
            "state",
            "warn",
            f"{folder} is missing",
            "start the service: systemd makes the folder",
        )
    if _read_only(folder):
        remedy = "see why: sudo dmesg | grep -i error\nthen: sudo mount -o remount,rw, or replace a failing card"
        return Check("state", "fail", f"{folder}: the file system is read-only", remedy)
    free = shutil.disk_usage(folder).free
    if free < least:
        return Check("state", "fail", f"{folder}: {tables.size(free)} free", "free some space")
    if room_hint(folder, "") == NO_INODES:
        return Check("state", "fail", f"{folder}: no inodes free", NO_INODES)
    if not _may_write(folder):
        remedy = f"give the folder to the daemon's user: sudo chown -R {USER}: {folder}"
        return Check("state", "fail", f"{_daemon_user()} may not write to {folder}", remedy)
    return Check("state", "ok", f"{folder}: writable, {tables.size(free)} free")


def _mounts(fstab: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the mount points of a file like /etc/fstab, with the options."""
    try:
        lines = fstab.read_text().splitlines()
    except OSError:
        return
    for words in map(str.split, lines):
        if len(words) >= 4 and not words[0].startswith("#"):
            yield Path(words[1]), words[3].split(",")


def _mount_unit(point: Path) -> str:
    return str(point).strip("/").replace("-", "\\x2d").replace("/", "-") + ".mount"


def _read_only(folder: Path) -> bool:
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _daemon_user() -> str:
    """Return the user of the service, or the caller's name without such a user."""
    try:
        return pwd.getpwnam(USER).pw_name
    except KeyError:
        return getpass.getuser()


def _may_write(folder: Path) -> bool:
    """Return whether the daemon's user may write to a folder, by the permissions of the folder itself."""
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        return os.access(folder, os.W_OK)
    return _permits(folder.stat(), user, 0o3)


def _permits(status: os.stat_result, user: pwd.struct_passwd, wanted: int) -> bool:
    if status.st_uid == user.pw_uid:
        granted = status.st_mode >> 6
    elif status.st_gid in os.getgrouplist(user.pw_name, user.pw_gid):
        granted = status.st_mode >> 3
    else:
        granted = status.st_mode
    return granted & wanted == wanted


def check_clock(synchronised: Callable[[], bool]) -> Check:
    """Check that the wall clock is synchronised."""
    if synchronised():
        return Check("clock", "ok", "synchronised")
    remedy = "see why: timedatectl timesync-status; results carry synchronised = false until then"
    return Check("clock", "warn", "not synchronised", remedy)


def check_hardware(sys: Path) -> Iterator[Check]:
    """Check the supply, the temperature and the storage, as far as the board measures them."""
    slowed = hardware.throttling(sys)
    if slowed is not None:
        yield _check_power(slowed)
    degrees = hardware.temperature(sys)
    if degrees is not None:
        hot = degrees >= HOT_DEGREES
        remedy = "cool the board, or the processor slows down soon" if hot else ""
        yield Check("heat", "warn" if hot else "ok", f"{degrees:.0f} °C", remedy)
    for each in hardware.wear(sys):
        found = f"{each.device}: about {each.tenths * 10} % of the lifetime is used"
        remedy = "replace the card before it fails" if each.worn else ""
        yield Check("wear", "warn" if each.worn else "ok", found, remedy)


def _check_power(slowed: hardware.Throttling) -> Check:
    remedy = "use a stronger power supply and a short cable, and cool the board"
    if slowed.now:
        return Check("power", "fail", "; ".join(slowed.now), remedy)
    if slowed.earlier:
        return Check("power", "warn", f"since it was switched on: {'; '.join(slowed.earlier)}", remedy)
    return Check("power", "ok", "neither undervoltage nor throttling since it was switched on")


def check_daemon(runtime_dir: str | None) -> Iterator[Check]:
    """Check that the daemon answers and runs, and that results reach the broker."""
    try:
        status = connect(runtime_dir).call(STATUS)
        spool = connect(runtime_dir).call(SPOOL)
    except UnreachableError as error:  # a daemon that was stopped is no fault
        yield Check("daemon", "fail" if isinstance(error, ForbiddenError) else "warn", error.message, error.hint)
        return
    except EdgedError as error:
        yield Check("daemon", "fail", error.message, error.hint)
        return
    yield _check_state_of(status)
    if status["config"]["error"]:
        problems = status["config"]["error"]["problems"]
        found = f"the daemon refused the last configuration: {'; '.join(problems)}"
        yield Check(
            "config", "fail", found, "see what is wrong: edgectl config check\nthen: sudo systemctl reload edged"
        )
    if namesake := status["mqtt"].get("namesake"):
        yield check_name(status["device"], namesake)
    if status["mqtt"]["broker"]:
        yield check_publishing(status["mqtt"], spool["depth"])
    yield from check_spool(spool)


def _check_state_of(status: StatusAnswer) -> Check:
    state = status["state"]
    if state == "running":
        return Check("daemon", "ok", f"edged {status['version']} runs, up {tables.duration(status['uptime'])}")
    reason = status["health"]["reason"]
    found = f"the daemon is {state}{reason and ': '}{reason}"
    return Check("daemon", "warn" if state == "starting" else "fail", found, "see why: edgectl status")


def check_name(device: str, namesake: str) -> Check:
    """Report another board with the name of this board, seen within the last hour."""
    found = f"another board is named {device!r} too: boot {namesake} was seen within the last hour"
    return Check("name", "fail", found, "give each board another [device] name, and reload")


def check_publishing(mqtt: MqttAnswer, waiting: int) -> Check:
    """Check the time of the last result accepted by the broker; a long time is a fault only while results wait."""
    ago = mqtt["last_sent_ago"]
    when = "no result yet" if ago is None else f"a result {tables.duration(ago)} ago"
    last = f"the broker accepted {when}"
    if not mqtt["connected"]:
        return Check("publish", "fail", f"{last}; not connected: {mqtt['health']['reason']}", mqtt["health"]["hint"])
    if waiting and (ago is None or ago > STUCK_SECONDS):
        return Check("publish", "warn", f"{last}, and {waiting} are waiting", "see why: edgectl spool")
    return Check("publish", "ok", last)


def check_spool(spool: SpoolAnswer) -> Iterator[Check]:
    """Check that the spool keeps the waiting messages, and has lost no message."""
    if spool["health"]["state"] in ("degraded", "failed"):
        yield Check("spool", "fail", spool["health"]["reason"], spool["health"]["hint"])
    if spool["parked"]:
        found = f"the broker refused {quantity(spool['parked'], 'message')}"
        yield Check("spool", "warn", found, "see why: edgectl spool\nthen: edgectl spool retry, or drop")
    if spool["dropped"]:
        found = f"the spool was full and dropped {quantity(spool['dropped'], 'message')}"
        yield Check("spool", "warn", found, "raise the limits of [spool], or repair the broker")
