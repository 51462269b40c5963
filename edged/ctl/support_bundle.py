"""Collect data about this device for a helper in a single file, without secrets.

The file is written here and sent to no network: check the contents before passing the file on (`tar -tf`, `tar -xOf
FILE NAME`). Passwords and tokens of the configuration, credentials in addresses, private keys, and values after words
like "password" are replaced by ***. Unavailable parts are listed in `missing.txt` with the reason, and are no error.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from edged.config.load import ConfigErrors, effective, load
from edged.config.options import Config
from edged.core.errors import ControlError, EdgedError
from edged.core.protocol import Call
from edged.core.tables import URL_QUERY, URL_USER
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect
from edged.ctl.config import toml
from edged.system.credentials import find

MAX_BYTES = 4 << 20
"""Limit for each part; longer parts lose the beginning."""

COMMAND_SECONDS = 60.0
_LEAST_SECRET = 4
_RUN = ("version", "doctor", "devices")
_ASKED = ("status", "spool", "jobs", "metrics")
_COMMANDS = {
    "journal.txt": ("journalctl", "--no-pager", "--output=short-iso-precise", "--unit=edged", "--lines=20000"),
    "kernel.txt": ("journalctl", "--no-pager", "--output=short-iso-precise", "--dmesg", "--lines=1000"),
    "unit.txt": ("systemctl", "--no-pager", "show", "edged"),
    "package.txt": ("dpkg-query", "--status", "edged"),
    "disks.txt": ("df", "--output=source,fstype,size,used,avail,iused,iavail,target"),
    "usb.txt": ("lsusb",),
}
_FILES = ("/etc/os-release", "/proc/cmdline", "/proc/cpuinfo", "/proc/meminfo", "/proc/mounts", "/proc/uptime",
          "/proc/version", "/proc/device-tree/model")  # fmt: skip


class Part(NamedTuple):
    """A file of the archive: the name, and a function for the text."""

    name: str
    text: Callable[[], str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("-o", "--output", metavar="FILE", help="default: edged-support-TIME.tar.gz here; - for stdout")


def run(args: argparse.Namespace) -> int:
    """Collect and write the archive."""
    now = time.time()
    name = args.output or time.strftime("edged-support-%Y%m%dT%H%M%SZ.tar.gz", time.gmtime(now))
    config, parts = _parts(args)
    archive = pack(parts, Scrubber(secrets(config)), int(now))
    if name == "-":
        sys.stdout.buffer.write(archive)
        return exits.DONE
    _write(Path(name), archive)
    if args.json:
        tables.show_json({"file": name, "bytes": len(archive)})
    else:
        tables.show([f"{name}: {tables.size(len(archive))}; look into it before you pass it on: tar -tf {name}"])
    return exits.DONE


def pack(parts: Iterable[Part], scrub: Callable[[str], str], now: int) -> bytes:
    """Return a .tar.gz of all available parts without secrets, and a list of unavailable parts."""
    packed = io.BytesIO()
    missing = []
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for part in parts:
            try:
                text = part.text()
            except (EdgedError, OSError, subprocess.SubprocessError) as error:
                missing.append(f"{part.name}: {error}")
            else:
                _add(archive, part.name, scrub(text)[-MAX_BYTES:], now)  # not cut before: half a secret looks like none
        _add(archive, "missing.txt", scrub("".join(f"{line}\n" for line in missing)), now)
    return packed.getvalue()


class Scrubber:
    """Removes secrets from a text: known secrets, and text like a secret."""

    def __init__(self, known: Iterable[str]) -> None:
        longest_first = sorted(known, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        text = self._known.sub("***", text)
        for pattern, replacement in _SECRETS:
            text = pattern.sub(replacement, text)
        return text


_SECRETS = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), "***"),
    (URL_USER, "://***@"),
    (URL_QUERY, r"\1***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), r"\1 ***"),
    (
        re.compile(
            r"(?i)((?:password|passwd|passphrase|secret|token|api_?key|psk)[\"']?\s*[=:]\s*)"
            r"(?:\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s,;}]+)"
        ),
        r"\1***",
    ),
)


def secrets(config: Config | None) -> set[str]:
    """Return the contents of readable secret files of the configuration."""
    if config is None:
        return set()
    names = {config.mqtt.password_file, config.updates.fetch.token_file} - {""}
    found = set()
    for name in names:
        try:
            found |= {line.strip() for line in find(name).read_text().splitlines()}
        except (OSError, UnicodeDecodeError):
            continue  # unreadable, and so impossible to leak
    return {secret for secret in found if len(secret) >= _LEAST_SECRET}


# The parts


def _parts(args: argparse.Namespace) -> tuple[Config | None, Iterator[Part]]:
    """Return the configuration, if valid, and the parts."""
    files = [Path(file) for file in args.config]
    try:
        config, problems = load(files), ""
    except ConfigErrors as error:
        config, problems = None, "\n".join(map(str, error.problems))
    return config, _all_parts(args, config, problems)


def _all_parts(args: argparse.Namespace, config: Config | None, problems: str) -> Iterator[Part]:
    state = Path(args.state_dir)
    for verb in _RUN:
        yield Part(f"{verb}.json", partial(_edgectl, args, verb))
    for verb in _ASKED:
        yield Part(f"{verb}.json", partial(_answer, args.runtime_dir, verb))
    if config is None:
        yield Part("configuration-errors.txt", lambda: problems)
        for file in args.config:
            yield Part(f"configuration/{Path(file).name}", partial(_read, Path(file)))
    else:
        yield Part("configuration.toml", lambda: "\n".join(toml(effective(config))))
    for ledger in sorted(state.glob("models/*/state.json")):
        yield Part(f"models/{ledger.parent.name}.json", partial(_read, ledger))
    yield Part("state-files.txt", partial(_listing, state))
    for file in _FILES:
        yield Part(f"system{file}", partial(_read, Path(file)))
    for name, command in _COMMANDS.items():
        yield Part(name, partial(_said, command))


def _edgectl(args: argparse.Namespace, verb: str) -> str:
    """Run another verb in a child process, as a model may kill the process, and return the output."""
    words = [*(word for file in args.config for word in ("--config", file)), "--state-dir", args.state_dir]
    if args.runtime_dir:
        words += ["--runtime-dir", args.runtime_dir]
    return _said((sys.executable, "-m", "edged.ctl", *words, verb, "--json"))


def _said(command: tuple[str, ...]) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=COMMAND_SECONDS,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return done.stdout.decode(errors="replace")


def _read(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(MAX_BYTES).decode(errors="replace")


def _listing(folder: Path) -> str:
    """Return a list of all files below a folder with sizes, without contents."""
    lines = []
    for file in sorted(folder.rglob("*")):
        status = file.lstat()
        lines.append(f"{status.st_mode:06o} {status.st_size:12} {file.relative_to(folder)}\n")
    return "".join(lines)


def _answer(runtime_dir: str | None, verb: str) -> str:
    return json.dumps(connect(runtime_dir).call(Call(verb, object)), indent=2, ensure_ascii=False)


# The archive


def _add(archive: tarfile.TarFile, name: str, text: str, now: int) -> None:
    data = text.encode()
    entry = tarfile.TarInfo(f"edged-support/{name}")
    entry.size, entry.mtime, entry.mode = len(data), now, 0o600
    archive.addfile(entry, io.BytesIO(data))


def _write(file: Path, data: bytes) -> None:
    """Write a file for this user alone, without overwriting another file."""
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(data)
    except OSError as error:
        raise ControlError(f"{file} cannot be written: {error.strerror}", hint="name another with --output") from error
