"""Write a first configuration: a source, a model, a pipeline, and a broker.

On a terminal the command asks for each value without an option, and offers a default found on this machine. Without a
terminal the command takes the defaults. Channels and rate come from the model. The command writes the file after the
check of `edgectl config check`; if the check fails, the exit code is 1 and the file is not written.

The file never contains a password. On a terminal the command writes the password into a separate file with the mode
600; otherwise name such a file, or a credential of the service, with --password-file.
"""

from __future__ import annotations

import argparse
import getpass
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Literal, NamedTuple, Protocol, TypedDict, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec.structs import replace

from edged.config.check import Checked, check
from edged.config.options import DEVICE_NAMES, DeviceName, host_name
from edged.core.errors import ControlError, EdgedError
from edged.core.manifest import Manifest
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.bundle_file import save
from edged.ctl.config import lines, summary, to_json, toml
from edged.ctl.local_model import models_of
from edged.models.bundle import MANIFEST
from edged.models.store import Store, open_path
from edged.outbox.options import MqttOptions

SOURCE = "sensor"
KINDS = ("serial", "replay", "synthetic")
RECORDINGS = (".csv", ".npy", ".npz")
PASSWORD = "mqtt-password"
_PORTS = ("dev/serial/by-id/*", "dev/ttyUSB*", "dev/ttyACM*", "dev/ttyAMA*")
_LINES = ("columns", "separator", "prefix", "sequence")
_UNUSED = {
    "serial": (),
    "replay": ("baud", "separator", "prefix", "sequence"),
    "synthetic": ("device", "baud", *_LINES),
}
"""Options without effect on a kind of source."""
_SECONDS = 0.5
T = TypeVar("T")


class BrokerTable(TypedDict, total=False):
    """The table [mqtt], empty for no broker."""

    host: str
    port: int
    tls: bool
    transport: Literal["websockets"]
    path: str
    username: str
    password_file: str


_SCHEMES: dict[str, BrokerTable] = {
    "mqtt": {},
    "mqtts": {"tls": True},
    "ws": {"transport": "websockets"},
    "wss": {"transport": "websockets", "tls": True},
}


class Model(NamedTuple):
    """The model of the pipeline: name, path (None for a factory model) and manifest."""

    name: str
    path: Path | None
    manifest: Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add an option for each question, and the file to write."""
    parser.add_argument("--model", metavar="MODEL", help="a bundle, a .tflite file, or the name of a factory model")
    parser.add_argument("--source", choices=KINDS, help="kind of source (default: serial if a port is found)")
    parser.add_argument("--device", metavar="PATH", help="the serial port, or the recording of a replay")
    parser.add_argument("--baud", type=int, metavar="BD", help="speed of the serial port (default: 115200)")
    parser.add_argument(
        "--columns", type=_names, metavar="A,B,...", help="columns of a line, if more than the model's channels"
    )
    parser.add_argument("--separator", metavar="TEXT", help='between two numbers of a line (default: ","; " ": blanks)')
    parser.add_argument("--prefix", metavar="TEXT", help="beginning of the lines to take, before the first column")
    parser.add_argument(
        "--sequence", metavar="NAME", help="column with a counter of the samples, to count lost samples"
    )
    parser.add_argument(
        "--broker",
        metavar="[mqtts://][USER@]HOST[:PORT]",
        help='"" for no broker (default: this machine, if port 1883 answers)',
    )
    parser.add_argument("--password-file", metavar="FILE", help="a file with the broker's password, or a credential")
    parser.add_argument("--name", metavar="NAME", help="name of this device in every topic (default: the host name)")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("edged.toml"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the file")


def run(args: argparse.Namespace) -> int:
    """Ask, check, and write the file."""
    if args.output.exists() and not args.force:
        raise ControlError(
            f"{args.output} exists already", hint="overwrite the file with --force, or name another with -o"
        )
    if not args.output.parent.is_dir():
        raise ControlError(
            f"the folder {args.output.parent} does not exist", hint="make the folder, or name another file with -o"
        )
    ask = _ask if sys.stdin is not None and sys.stdin.isatty() else _take
    store = models_of(args)
    model = _model(args, ask, store)
    source = _source(args, ask, model.manifest)
    mqtt, secret = _broker(args, ask)
    name = ask("Name of this device in MQTT topics", args.name, host_name(), _checked_name)
    text = _text(_tables(args.output, name, mqtt, source, model))
    found = _check(text, args.output, store)
    if found.config is None:
        tables.show_json({"file": None, **to_json(found), "next": []}) if args.json else tables.show(lines(found))
        return exits.BAD
    if secret:
        _write_secret(Path(mqtt["password_file"]), secret, force=args.force)
    save(args.output, [text.encode()])
    steps = list(_next_steps(args.output, name, mqtt, source))
    if args.json:
        tables.show_json({"file": str(args.output), **to_json(found), "next": steps})
    else:
        tables.show(lines(found))
        tables.show([f"{args.output}: written: {summary(found.config)}", "next:", *(f"  {step}" for step in steps)])
    return exits.DONE


# Questions


class Ask(Protocol):
    """Takes a question, the answer of an option, a default, and the conversion of an answer to a value."""

    def __call__(self, question: str, given: str | None, default: str, convert: Callable[[str], T], /) -> T:
        """Return the value of the answer."""


def _take(_: str, given: str | None, default: str, convert: Callable[[str], T]) -> T:
    return convert(default if given is None else given)


def _ask(question: str, given: str | None, default: str, convert: Callable[[str], T]) -> T:
    """Ask until an answer is right; an empty answer means the default. Ask no question answered by an option."""
    if given is not None:
        return convert(given)
    while True:
        print(f"{question} [{tables.plain(default)}]: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline(4096)
        if not line:
            raise _ended()
        try:
            return convert(line.strip() or default)
        except EdgedError as error:
            print(f"  {tables.plain(error.message)}: {tables.plain(error.hint)}", file=sys.stderr)


def _ended() -> ControlError:
    return ControlError("the answers end too early", hint="answer each question, or give options")


def _note(text: str) -> None:
    print(f"edgectl: {tables.plain(text)}", file=sys.stderr)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _checked_name(text: str) -> str:
    try:
        return msgspec.convert(text, DeviceName)
    except msgspec.ValidationError as error:
        raise ControlError(f"{text!r} is no name of a device", hint=f"use {DEVICE_NAMES}") from error


# The model


def _model(args: argparse.Namespace, ask: Ask, store: Store) -> Model:
    here = _models_here()
    known = ", ".join([*map(str, here), *store.names()][:12])
    default = str(here[0]) if here else "motion"
    found: Model = ask(f"Model ({tables.plain(known)})", args.model, default, lambda text: _opened(text, store))
    return found


def _models_here() -> list[Path]:
    """Return the models in this folder: first bundles and folders of bundles, then .tflite files."""
    folders = [file.parent for file in Path().glob(f"*/{MANIFEST}")]
    return [*sorted(Path().glob("*.edgm")), *sorted(folders), *sorted(Path().glob("*.tflite"))]


def _opened(text: str, store: Store) -> Model:
    path = Path(text)
    if text in store.names():
        return Model(text, None, store.find(text).manifest)
    if not path.exists():
        raise ControlError(f"no model {text!r} is here", hint=f"name a file, or {', '.join(store.names())}")
    try:
        manifest = open_path(path).manifest
    except EdgedError as error:
        draft = f"draft a manifest, and make a bundle: edgectl model draft {shlex.quote(str(path))}"
        raise ControlError(error.message, hint=draft if path.suffix == ".tflite" else error.hint) from error
    return Model(manifest.name, path, manifest)


# The source


def _source(args: argparse.Namespace, ask: Ask, manifest: Manifest) -> dict[str, object]:
    ports = serial_ports()
    recording = args.device is not None and Path(args.device).suffix in RECORDINGS
    guess = "replay" if recording else "serial" if ports or args.device else "synthetic"
    kind = ask(f"Kind of source ({', '.join(KINDS)})", args.source, guess, _kind)
    if args.source is None and kind == "synthetic" and not ports:
        _note("no serial port was found: the source is synthetic; name a port with --device")
    return {"kind": kind, **_device(args, ask, kind, ports), **_samples(args, manifest, kind)}


def serial_ports(root: Path = Path("/")) -> list[str]:
    """Return the serial ports of this machine by their most stable names, USB first."""
    found: dict[Path, str] = {}
    for pattern in _PORTS:
        for port in sorted(root.glob(pattern)):
            found.setdefault(port.resolve(), str(port))
    return list(found.values())


def _kind(text: str) -> str:
    if text not in KINDS:
        raise ControlError(f"unknown kind {text!r}", hint=f"use {', '.join(KINDS)}; configure a plug-in by hand")
    return text


def _device(args: argparse.Namespace, ask: Ask, kind: str, ports: Sequence[str]) -> dict[str, object]:
    for option in _UNUSED[kind]:
        if getattr(args, option) is not None:
            raise ControlError(f"--{option} has no effect on a {kind} source", hint=f"leave --{option} out")
    if kind == "synthetic":
        return {}
    if kind == "replay":
        recordings = sorted(file for file in Path().iterdir() if file.suffix in RECORDINGS)
        path = ask("Recording", args.device, str(recordings[0]) if recordings else "", _recording)
        return {"path": _from_folder_of(args.output, path), "loop": True}
    shown = f" ({', '.join(map(tables.plain, ports[:6]))})" if len(ports) > 1 else ""
    port = ask(f"Serial port{shown}", args.device, ports[0] if ports else "", _port)
    baud = ask("Speed of the port in Bd", None if args.baud is None else str(args.baud), "115200", _number)
    return {"port": port, "baud": baud}


def _recording(text: str) -> Path:
    if Path(text).suffix not in RECORDINGS or not Path(text).is_file():
        raise ControlError(f"{text!r} is no recording", hint="name a .csv, .npy or .npz file: --device FILE")
    return Path(text)


def _port(text: str) -> str:
    port = Path(text)
    if port.is_char_device():
        return str(port.absolute())  # a link stays a link, as the device behind it may change
    if port.exists() or not port.is_absolute():
        raise ControlError(f"{text!r} is no serial port", hint="name the device file: --device /dev/serial/by-id/...")
    _note(f"{text} does not exist now")
    return text


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ControlError(f"{text!r} is no number", hint="write digits")
    return int(text)


def _samples(args: argparse.Namespace, manifest: Manifest, kind: str) -> dict[str, object]:
    """Return the channels and the rate of the model."""
    window = manifest.window
    channels = [channel.name for channel in window.channels]
    if not channels and kind != "replay":
        raise ControlError(
            f"{manifest.name} takes samples of shape {list(window.sample_shape)}; {kind} sources send rows of channels",
            hint="use --source replay with an array of such samples, or a plug-in",
        )
    units = [channel.unit for channel in window.channels]
    return {
        **{key: value for key in _LINES if (value := getattr(args, key))},
        **({"channels": channels} if channels else {}),
        **({"units": units} if all(units) and units else {}),
        **({"rate": window.rate} if window.rate else {}),
    }


# The broker


def _broker(args: argparse.Namespace, ask: Ask) -> tuple[BrokerTable, str]:
    """Return the table [mqtt], and the password for the password file."""
    mqtt = ask("MQTT broker, HOST or HOST:PORT", args.broker, _local_broker(), _address)
    if not mqtt:
        _note("no broker: results are seen with `edgectl watch` only")
        return {}, ""
    if "username" not in mqtt and args.broker is None:
        user = ask("User name at the broker, empty for none", None, "", str)
        if user:
            mqtt["username"] = user
    if args.password_file is not None:
        if "username" not in mqtt:
            raise ControlError("--password-file needs a user name", hint="write --broker USER@HOST")
        file = Path(args.password_file)
        mqtt["password_file"] = str(file.resolve()) if file.exists() else args.password_file
        return mqtt, ""
    if "username" not in mqtt or ask is _take:
        return mqtt, ""
    try:
        secret = getpass.getpass("Password, empty for a credential of the service: ", stream=sys.stderr)
    except EOFError as error:
        raise _ended() from error
    file = args.output.parent.resolve() / PASSWORD
    mqtt["password_file"] = str(file) if secret else PASSWORD
    return mqtt, secret


def _local_broker() -> str:
    """Return this machine's address if a broker listens on the port of MQTT."""
    try:
        socket.create_connection(("127.0.0.1", 1883), _SECONDS).close()
    except OSError:
        return ""
    return "127.0.0.1"


def _address(text: str) -> BrokerTable:
    if text in ("", '""', "none"):
        return {}
    try:
        url = urlsplit(text if "://" in text else f"mqtt://{text}")
        port, host = url.port, url.hostname
    except ValueError:
        port = host = None
    if not host or port == 0 or not text.isprintable() or url.scheme not in _SCHEMES:
        raise ControlError(f"{text!r} is no broker", hint="write HOST, HOST:PORT, [IPV6]:PORT or mqtts://HOST")
    beyond = (url.path.strip("/") and url.scheme in ("mqtt", "mqtts")) or url.query or url.fragment
    if beyond:
        raise ControlError(
            f"{text!r} goes on after host and port",
            hint="write HOST or HOST:PORT; in a user name write %2F for /, %3F for ? and %23 for #",
        )
    if url.password is not None:
        raise ControlError("a password does not belong into the address", hint="use --password-file FILE")
    mqtt: BrokerTable = {"host": host}
    if port:
        mqtt["port"] = port
    mqtt |= _SCHEMES[url.scheme]
    if url.path and url.scheme in ("ws", "wss"):
        mqtt["path"] = url.path
    if url.username:
        mqtt["username"] = unquote(url.username)
    MqttOptions(**mqtt)  # raises ConfigError for a wrong host name
    return mqtt


def _write_secret(file: Path, secret: str, *, force: bool) -> None:
    try:
        if force:
            file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(secret + "\n")
    except FileExistsError as error:
        raise ControlError(
            f"{file} exists already", hint="name the file with --password-file, or use --force"
        ) from error
    except OSError as error:
        raise ControlError(f"{file} cannot be written: {error.strerror}", hint="use --password-file FILE") from error


# The file


def _tables(output: Path, name: str, mqtt: BrokerTable, source: dict[str, object], model: Model) -> dict[str, object]:
    path = {model.name: {"path": _from_folder_of(output, model.path)}} if model.path else {}
    return {
        "device": {"name": name},
        "mqtt": mqtt,
        "sources": {SOURCE: source},
        "models": path,
        "pipelines": {model.name: {"source": SOURCE, "model": model.name}},
    }


def _from_folder_of(output: Path, path: Path) -> str:
    """Return a path for the configuration file: relative for a path below the file's folder.

    An output that is a link is replaced where the link is.
    """
    folder, path = output.parent.resolve(), path.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _text(table: dict[str, object]) -> str:
    head = [
        f"# Made by `edgectl init`. All keys with their values: edgectl config show FILE{_manual()}",
        "# After a change: edgectl config check FILE",
        "",
    ]
    return "\n".join([*head, *toml(table)])


def _manual(page: Path = Path("/usr/share/man/man5/edged.toml.5.gz")) -> str:
    """Return a pointer to the manual page, which the Debian package alone installs."""
    return "; their meaning: man edged.toml" if page.exists() else ""


def _check(text: str, output: Path, store: Store) -> Checked:
    """Check the text from a file beside the output, for the sake of relative paths."""
    try:
        with NamedTemporaryFile(dir=output.parent, prefix=".edgectl-init-", suffix=".toml") as aside:
            aside.write(text.encode())
            aside.flush()
            found = check([Path(aside.name)], store)
    except OSError as error:
        raise ControlError(f"{output} cannot be written: {error.strerror}", hint="name another file with -o") from error
    except UnicodeEncodeError as error:
        raise ControlError("a path is not UTF-8 text, as TOML must be", hint="rename the file or its folder") from error
    return Checked(
        found.config,
        tuple(replace(each, file=str(output)) if each.file == aside.name else each for each in found.problems),
        tuple(replace(each, file=str(output)) if each.file == aside.name else each for each in found.warnings),
    )


def _next_steps(output: Path, name: str, mqtt: BrokerTable, source: dict[str, object]) -> Iterator[str]:
    """Yield the next commands: for the service if the file belongs to the service, otherwise for a trial here."""
    if output.parent.resolve().is_relative_to("/etc/edged"):
        if source["kind"] == "serial":
            yield "sudo edgectl devices allow --restart"
        yield from ("sudo systemctl reload edged", "edgectl status")
        return
    yield f"edged --config {shlex.quote(str(output))} --runtime-dir run --state-dir state"
    yield "edgectl --runtime-dir run watch"
    if mqtt and "transport" not in mqtt:
        port = f" -p {mqtt['port']}" if "port" in mqtt else " -p 8883" if "tls" in mqtt else ""
        tls = " --tls-use-os-certs" if "tls" in mqtt else ""
        user = f" -u {shlex.quote(mqtt['username'])} -P PASSWORD" if "username" in mqtt else ""
        yield f"mosquitto_sub -h {mqtt['host']}{port}{tls}{user} -v -t 'edged/{name}/#'"
