"""Look for what is wrong with this device, and say what to do about it.

Nothing is changed and nothing the daemon uses is opened, so it can be asked at any time, by root or by a member of the
daemon's group. It exits with 1 if anything failed; a warning is what may be meant so.
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
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edged.backends.delegates import Delegate, delegates, resolve, survey
from edged.backends.probe import probe
from edged.config.check import check_models, find_bundle
from edged.config.load import ConfigErrors, load
from edged.config.options import Config
from edged.config.warnings import warnings
from edged.control.clock import kernel_synchronised
from edged.core.acceleration import Rules
from edged.core.errors import EdgedError
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
    *("PrivateDevices", "DevicePolicy", "DeviceAllow"),
)
_BRING = "bring a version that has one: edgectl pack --variant"
_DOTS = {"ok": "running", "warn": "degraded", "fail": "failed"}


class Check(NamedTuple):
    """What was looked at, how it is, and what to do if it is not well."""

    name: str
    verdict: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> int:
    """Print each check as it is done."""
    done = []
    for check in _checks(args):
        done.append(check)
        if not args.json:
            tables.show(_lines(check))
    well = all(check.verdict != "fail" for check in done)
    if args.json:
        tables.show_json({"ok": well, "checks": [check._asdict() for check in done]})
    return exits.DONE if well else exits.BAD


def _lines(check: Check) -> Iterator[str]:
    yield f"{tables.dot(_DOTS[check.verdict])} {check.verdict:4}  {check.name:8}  {tables.plain(check.found)}"
    for line in check.remedy.splitlines():
        yield f"      -> {tables.plain(line)}"


def _checks(args: argparse.Namespace) -> Iterator[Check]:
    yield check_python(sys.version_info[:2])
    runtime = check_runtime()
    yield runtime
    store = models_of(args)
    try:
        config = load([Path(file) for file in args.config])
    except ConfigErrors as errors:
        config = None
        yield from map(_failed, errors.problems)
    if config is not None:
        yield from check_config(config, store)
        if runtime.verdict == "ok":  # else it could take this process with it
            yield from check_models_work(config, store)
            yield from check_delegates(config, store, running=daemon_runs(args.runtime_dir))
        yield from check_ports(config)
        yield check_broker(config.mqtt)
    unit = unit_properties()
    yield from check_unit(unit)
    if config is not None:
        yield from check_access(unit, wanted(config, store))
    yield from check_root(Path("/"), Path("/etc/fstab"))
    yield check_state(Path(args.state_dir), Path("/etc/fstab"))
    yield check_clock(kernel_synchronised)
    yield from check_hardware(Path("/sys"))
    yield from check_daemon(args.runtime_dir)


def check_python(version: tuple[int, int]) -> Check:
    """Whether this Python is one that edged is tested with."""
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
    """Whether a TFLite runtime can be imported; in a child process, for one built for another processor kills it."""
    try:
        command = [sys.executable, "-c", code]
        found = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # where ours are, wherever that is
        child = subprocess.run(command, env=found, capture_output=True, text=True, timeout=RUNTIME_SECONDS)
    except subprocess.TimeoutExpired:
        return Check("runtime", "fail", f"importing it took more than {RUNTIME_SECONDS:.0f} s", "reinstall it")
    if child.returncode < 0:
        died = signal.Signals(-child.returncode).name
        return Check("runtime", "fail", f"importing it kills the process: {died}", "install one for this processor")
    said = "; ".join(child.stdout.split("\n")).strip("; ")
    if child.returncode:
        return Check("runtime", "fail", said or child.stderr[-200:], "pip install ai-edge-litert")
    return Check("runtime", "ok", said.rpartition("; ")[2])


def check_config(config: Config, store: Store) -> Iterator[Check]:
    """Whether the configuration fits its models."""
    problems = check_models(config, store)
    yield from map(_failed, problems)
    for doubt in warnings(config, store):
        found = f"{doubt.file}: {doubt.path}: found {doubt.found}; expected: {doubt.allowed}"
        yield Check("config", "warn", found, doubt.hint)
    if not problems:
        yield Check("config", "ok", summary(config))
    if not config.pipelines:
        yield Check("config", "warn", "there is no pipeline", "add a table [pipelines.NAME] with a source and a model")


def _failed(problem: Problem) -> Check:
    found = f"{problem.file}: {problem.path}: found {problem.found}; allowed: {problem.allowed}"
    return Check("config", "fail", found, problem.hint)


def check_models_work(config: Config, store: Store) -> Iterator[Check]:
    """Whether each model loads and computes on its golden samples what it should."""
    for name, entry in config.models.items():
        try:
            bundle = find_bundle(name, entry, store)
        except EdgedError:
            continue  # told by check_config
        try:
            verdict = asyncio.run(prove_apart(bundle, entry.options))
        except EdgedError as error:
            yield Check("model", "fail", f"{name}: {error.message}", error.hint)
        else:
            title = f"{name} {bundle.manifest.version}"
            if verdict.samples:
                golden = f"{verdict.samples} golden samples, off by {verdict.worst:.3g} at most"
                yield Check("model", "ok", f"{title}: {golden}")
            else:
                yield Check("model", "warn", f"{title}: loads, but has no golden samples", "make a bundle with some")


def check_delegates(config: Config, store: Store, *, running: bool, root: Path = Path("/")) -> Iterator[Check]:
    """Whether the delegates that are configured can be used, and those that are here and a model has a variant for.

    While no daemon has their devices they are loaded, in a child process each, with the variants that would run there.
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
            yield Check("delegate", "ok", f"{name}: {found.library} is there, and so is what it needs")
        elif files:
            yield from (_try_out(use, config.accelerators, root) for use in files)
        elif name in config.delegates:
            yield Check("delegate", "warn", f"{name} is ready, and no model has a variant for it", _BRING)


class _Use(NamedTuple):
    """A variant of a configured model that a delegate would run."""

    model: str
    bundle: Bundle
    variant: Variant
    delegate: Delegate


def _uses(config: Config, store: Store, known: Collection[Delegate]) -> Iterator[_Use]:
    for model, entry in config.models.items():
        try:
            bundle = find_bundle(model, entry, store)
        except EdgedError:
            continue  # told by check_config
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
    """Whether a variant loads on its delegate, and how much the delegate takes of it."""
    bundle, variant, name = use.bundle, use.variant, use.delegate.name
    try:
        delegation = resolve(use.delegate, variant.options, root=root)
        answer = probe(delegation, rules, bundle.file(variant.file), variant.signature)
    except EdgedError as error:
        return Check("delegate", "fail", error.message, error.hint)
    found = f"{name} takes {answer.delegated} of {answer.nodes} nodes of {use.model} {bundle.manifest.version}"
    if answer.delegated < (bundle.manifest.limits.delegated_share or 0) * answer.nodes:
        return Check("delegate", "fail", found, "its manifest asks for more: limits.delegated_share")
    if answer.delegated == 0:
        return Check("delegate", "warn", found, "compile or quantise the model for this accelerator")
    return Check("delegate", "ok", found)


def check_ports(config: Config) -> Iterator[Check]:
    """Whether the serial ports are there and may be opened."""
    for name, entry in config.sources.items():
        if entry.kind == "serial":
            yield check_port(name, Path(entry.options.port))  # type: ignore[attr-defined]


def check_port(source: str, port: Path) -> Check:
    """Whether one port is a device and ours to open, without opening it: the daemon may have it."""
    try:
        status = port.stat()
    except OSError as error:
        remedy = "plug the sensor in; stable names are in /dev/serial/by-id"
        return Check("port", "fail", f"{source}: {port}: {error.strerror}", remedy)
    if not stat.S_ISCHR(status.st_mode):
        return Check("port", "fail", f"{source}: {port} is not a device", "name the port of the sensor")
    if not _may_open(port, status):
        group = _group_name(status.st_gid)
        remedy = f"let the daemon's user in: sudo usermod -aG {group} {_daemon_user()}\nthen: {COMMAND}"
        return Check("port", "fail", f"{source}: {port} belongs to the group {group}", remedy)
    return Check("port", "ok", f"{source}: {port}")


def _may_open(port: Path, status: os.stat_result) -> bool:
    """Whether the daemon's user may; whoever asks may be somebody else."""
    try:
        return _permits(status, pwd.getpwnam(USER), 0o6)
    except KeyError:
        return os.access(port, os.R_OK | os.W_OK)


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def check_broker(mqtt: MqttOptions, timeout: float = BROKER_SECONDS) -> Check:
    """Whether anything listens where the broker should; nothing is said to it."""
    if not mqtt.host:
        return Check("broker", "warn", "none is configured", 'name one: [mqtt] host = "..."')
    try:
        socket.create_connection((mqtt.host, mqtt.real_port), timeout).close()
    except OSError as error:
        reason = error.strerror or str(error)
        return Check("broker", "fail", f"{mqtt.broker}: {reason}", "check the address, the network and the broker")
    return Check("broker", "ok", f"{mqtt.broker} accepts connections")


def unit_properties(ask: Callable[[], str] | None = None) -> dict[str, str]:
    """What systemd says of the service; empty where there is no such service, or no systemd."""
    lines = (ask or _systemctl_show)().splitlines()
    unit = dict.fromkeys(_PROPERTIES, "")  # a list that is empty is not mentioned
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
    """Whether systemd runs the service, and will after the next boot."""
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


def check_access(unit: dict[str, str], needs: Collection[Access]) -> Iterator[Check]:
    """Whether the service's sandbox lets it at the devices that the configuration names."""
    if not unit or not needs:
        return
    hidden = unit["PrivateDevices"] == "yes"
    closed = unit["DevicePolicy"] != "auto" or unit["DeviceAllow"]
    allowed = {word.replace("%%", "%") for word in unit["DeviceAllow"].split()}
    lacking = [need for need in needs if hidden or (closed and need.allow.replace("%%", "%") not in allowed)]
    for need in lacking:
        found = f"the service is not let at {need.allow}, which {need.wanted_by} is to use"
        yield Check("access", "fail", found, COMMAND)
    if not lacking:
        yield Check("access", "ok", "the service is let at the devices that the configuration names")


def check_root(root: Path, fstab: Path) -> Iterator[Check]:
    """Whether the root file system became read-only by itself, as it does on a card that fails."""
    if _read_only(root):
        meant = any("ro" in options for point, options in _mounts(fstab) if point == root)
        if meant:
            yield Check("root", "ok", "read-only, as /etc/fstab has it")
        else:
            remedy = "see why: sudo dmesg | grep -i error; a failing card turns so by itself: replace it"
            yield Check("root", "warn", "the root file system is read-only, and /etc/fstab does not say so", remedy)


def check_state(folder: Path, fstab: Path, least: int = LEAST_FREE_BYTES) -> Check:
    """Whether the state folder is there, on the disk that it should be on, which can be written and has room."""
    for point, _ in _mounts(fstab):
        if point != Path("/") and folder.is_relative_to(point) and not os.path.ismount(point):
            remedy = f"see why: systemctl status {_mount_unit(point)}\nthen: sudo mount {point}"
            return Check("state", "fail", f"{point} is not mounted, which /etc/fstab has there", remedy)
    try:
        there = folder.is_dir()
    except PermissionError:
        there = True
    if not there:
        return Check("state", "warn", f"{folder} is not there", "systemd makes it as it starts edged")
    if _read_only(folder):
        remedy = "see why: sudo dmesg | grep -i error\nthen: sudo mount -o remount,rw, or replace a card that fails"
        return Check("state", "fail", f"{folder}: its file system is read-only", remedy)
    free = shutil.disk_usage(folder).free
    if free < least:
        return Check("state", "fail", f"{folder}: {tables.size(free)} free", "free some space")
    if room_hint(folder, "") == NO_INODES:
        return Check("state", "fail", f"{folder}: no inodes free", NO_INODES)
    if not _may_write(folder):
        remedy = f"give it to the daemon's user: sudo chown -R {USER}: {folder}"
        return Check("state", "fail", f"{folder} is not for {_daemon_user()} to write", remedy)
    return Check("state", "ok", f"{folder}: writable, {tables.size(free)} free")


def _mounts(fstab: Path) -> Iterator[tuple[Path, list[str]]]:
    """Where file systems are to be mounted, and with which options."""
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
    """Who the daemon runs as: its user, where the package has made one; else whoever asks."""
    try:
        return pwd.getpwnam(USER).pw_name
    except KeyError:
        return getpass.getuser()


def _may_write(folder: Path) -> bool:
    """Whether the daemon's user may, by the permissions of the folder itself."""
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
    """Whether a time source vouches for the wall clock."""
    if synchronised():
        return Check("clock", "ok", "synchronised")
    remedy = "results say so meanwhile; see: timedatectl timesync-status"
    return Check("clock", "warn", "not synchronised", remedy)


def check_hardware(sys: Path) -> Iterator[Check]:
    """What the board says of its supply, its temperature and its storage; nothing where it does not."""
    slowed = hardware.throttling(sys)
    if slowed is not None:
        yield _check_power(slowed)
    degrees = hardware.temperature(sys)
    if degrees is not None:
        hot = degrees >= HOT_DEGREES
        yield Check("heat", "warn" if hot else "ok", f"{degrees:.0f} °C", "cool it: it slows down soon" if hot else "")
    for each in hardware.wear(sys):
        found = f"{each.device}: about {each.tenths * 10} % of its life is used"
        yield Check("wear", "warn" if each.worn else "ok", found, "replace it before it fails" if each.worn else "")


def _check_power(slowed: hardware.Throttling) -> Check:
    remedy = "use a stronger power supply and a short cable, and cool the board"
    if slowed.now:
        return Check("power", "fail", "; ".join(slowed.now), remedy)
    if slowed.earlier:
        return Check("power", "warn", f"since it was switched on: {'; '.join(slowed.earlier)}", remedy)
    return Check("power", "ok", "neither undervoltage nor throttling since it was switched on")


def check_daemon(runtime_dir: str | None) -> Iterator[Check]:
    """Whether the daemon answers, how it is, and whether what it finds gets out."""
    try:
        status = connect(runtime_dir).call("status")
        spool = connect(runtime_dir).call("spool")
    except UnreachableError as error:  # that it does not run may be meant so
        yield Check("daemon", "fail" if isinstance(error, ForbiddenError) else "warn", error.message, error.hint)
        return
    except EdgedError as error:
        yield Check("daemon", "fail", error.message, error.hint)
        return
    yield _check_state_of(status)
    if status["config"]["error"]:
        found = f"the last one was refused, one before is in effect: {status['config']['error']['message']}"
        yield Check(
            "config", "fail", found, "see what is wrong: edgectl config check\nthen: sudo systemctl reload edged"
        )
    if namesake := status["mqtt"].get("namesake"):
        yield check_name(status["device"], namesake)
    if status["mqtt"]["broker"]:
        yield check_publishing(status["mqtt"], spool["depth"])
    yield from check_spool(spool)


def _check_state_of(status: dict[str, Any]) -> Check:
    state = status["state"]
    if state == "running":
        return Check("daemon", "ok", f"edged {status['version']} runs, up {tables.duration(status['uptime'])}")
    reason = status["health"]["reason"]
    found = f"it is {state}{reason and ': '}{reason}"
    return Check("daemon", "warn" if state == "starting" else "fail", found, "see why: edgectl status")


def check_name(device: str, namesake: str) -> Check:
    """Another board was heard of under this one's name within the last hour."""
    found = f"another board calls itself {device!r} too: its boot {namesake} was seen within the last hour"
    return Check("name", "fail", found, "give each board a name of its own, [device] name, and reload it")


def check_publishing(mqtt: dict[str, Any], waiting: int) -> Check:
    """When the broker took a message last; that it was long ago is bad only where some wait."""
    ago = mqtt["last_sent_ago"]
    last = "no message has got through yet" if ago is None else f"a message got through {tables.duration(ago)} ago"
    if not mqtt["connected"]:
        return Check("publish", "fail", f"{last}; not connected: {mqtt['health']['reason']}", mqtt["health"]["hint"])
    if waiting and (ago is None or ago > STUCK_SECONDS):
        return Check("publish", "warn", f"{last}, and {waiting} wait", "see why: edgectl spool")
    return Check("publish", "ok", last)


def check_spool(spool: dict[str, Any]) -> Iterator[Check]:
    """Whether what waits for the broker is kept, and whether any of it was lost or refused."""
    if spool["health"]["state"] in ("degraded", "failed"):
        yield Check("spool", "fail", spool["health"]["reason"], spool["health"]["hint"])
    if spool["parked"]:
        found = f"the broker refused {spool['parked']} messages"
        yield Check("spool", "warn", found, "see why: edgectl spool\nthen: edgectl spool retry, or drop")
    if spool["dropped"]:
        found = f"{spool['dropped']} messages were dropped for want of room"
        yield Check("spool", "warn", found, "give it more room: [spool], or bring the broker back sooner")
