"""Loading of the configuration: TOML files into frozen structs, with every error at once.

The main file is read first, then `conf.d/*.toml` beside the main file in order of name, then the other files of the
command line. A later file adds keys and overrides earlier keys. `load` reads the files, converts the tables and checks
references between tables, and reads nothing else from the disk. `check` also checks that the models exist and fit
their sources. `changes` compares two configurations.
"""

from __future__ import annotations

import errno
import re
import stat
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edged import plugins
from edged.backends.delegates import KNOWN, DelegateOptions, delegates, unknown
from edged.config.options import (
    NAME,
    NAMES,
    Config,
    ControlOptions,
    DeviceOptions,
    LogOptions,
    MetricsOptions,
    ModelEntry,
    ModelKeys,
    PipelineEntry,
    SinkEntry,
    SourceEntry,
    UpdateOptions,
)
from edged.core.acceleration import Rules
from edged.core.detection_spec import ObjectDecision
from edged.core.errors import ConfigError, quantity
from edged.core.manifest import NO_DELEGATES
from edged.core.source_health import Supervision
from edged.core.tables import MAX_DEPTH, Problem, TablePath, Tables, did_you_mean, listed, plain, shown
from edged.models.bundle import names_bare
from edged.outbox.options import MqttOptions, SpoolOptions

MAX_FILE_BYTES = 1_000_000
SINGLE_TABLES = ("device", "mqtt", "spool", "control", "metrics", "log", "updates", "accelerators")
IMPLICIT_SINKS = ("mqtt", "stdout")


class ConfigErrors(ConfigError):  # noqa: N818 several errors
    """The problems of a configuration, in a single error.

    `sound` is the configuration of the tables free of wrong values, None without any; `whole` is True if these are all
    tables, so that only unknown keys and the like are wrong.
    """

    def __init__(self, problems: Sequence[Problem], sound: Config | None = None, *, whole: bool = False) -> None:
        self.problems = tuple(problems)
        self.sound = sound
        self.whole = whole
        count = quantity(len(problems), "problem")
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"the configuration has {count}:\n{lines}", hint="run edgectl config check")


def load(paths: Sequence[Path]) -> Config:
    """Read the files, and the folder beside the first file, into a configuration.

    Raises:
        ConfigErrors: all problems. Unreadable files are reported first and alone, because half a configuration would
            be full of false errors.
    """
    tables = Tables(convert, _belongs)
    unread: list[Problem] = []
    for path in _files(paths, unread):
        _read(path, tables, unread)
    if unread:
        raise ConfigErrors(unread)
    return _build(tables)


def effective(config: Config) -> dict[str, Any]:
    """Return the whole configuration as tables of plain values, defaults filled in and secrets masked."""
    return {
        **{name: plain(getattr(config, name)) for name in SINGLE_TABLES},
        "delegates": {name: plain(entry) for name, entry in config.delegates.items()},
        "sources": {
            name: {"kind": entry.kind, **plain(entry.options), "supervision": plain(entry.supervision)}
            for name, entry in config.sources.items()
        },
        "models": {
            name: {key: value for key, value in plain(entry).items() if key != "options"} | plain(entry.options)
            for name, entry in config.models.items()
        },
        "pipelines": {name: plain(entry) for name, entry in config.pipelines.items()},
        "sinks": {name: {"kind": entry.kind, **plain(entry.options)} for name, entry in config.sinks.items()},
    }


# -- reading --------------------------------------------------------------------------------------------------------


def _files(paths: Sequence[Path], unread: list[Problem]) -> list[Path]:
    main, *others = paths
    folder = main.parent / "conf.d"
    beside: list[Path] = []
    try:
        beside += (path for path in folder.iterdir() if _is_ours(path))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        unread.append(_unreadable(folder, error))
    return [main, *sorted(beside), *others]


def _is_ours(path: Path) -> bool:
    return path.suffix == ".toml" and not path.name.startswith(".")  # editors leave hidden files behind


def _read(path: Path, tables: Tables, unread: list[Problem]) -> None:
    file = str(path)
    try:
        tables.merge(tomllib.loads(_bytes(path).decode("utf-8-sig")), file)
    except OSError as error:
        unread.append(_unreadable(path, error))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        found = f"the byte 0x{error.object[error.start]:02x}"
        unread.append(Problem(file, f"line {line}", found, "text in UTF-8", "save the file as UTF-8"))
    except tomllib.TOMLDecodeError as error:
        what, _, where = str(error).partition(" (at ")
        unread.append(Problem(file, where.rstrip(")"), f"broken TOML: {what}", "TOML 1.0"))
    except RecursionError:
        unread.append(Problem(file, "the file", "arrays nested too deeply", f"at most {MAX_DEPTH} levels"))


def _bytes(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"more than {MAX_FILE_BYTES} bytes")
    return data


def _unreadable(path: Path, error: OSError) -> Problem:
    hints = {
        errno.ENOENT: "name another with --config or EDGED_CONFIG",
        errno.EACCES: "run the command as root, or as the user of the daemon",
    }
    found = f"unreadable: {error.strerror}"
    return Problem(str(path), "the file", found, "a readable file", hints.get(error.errno or 0, ""))


def convert(kind: type, value: Any, file: str) -> Any:
    """Return a path: text, relative to the folder of the configuration file."""
    if kind is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(file).parent / value
    raise ValueError


def _belongs(key: str) -> str:
    """Return a hint with the tables of a key. The import of all kinds is slow, and happens after a mistake only."""
    tables: dict[str, Any] = {"[pipelines.X]": PipelineEntry, "[pipelines.X.decision]": ObjectDecision}
    for family in ("sinks", "sources"):
        for kind in plugins.BUILT_IN[family]:
            tables[f'[{family}.X] with kind = "{kind}"'] = plugins.load(family, kind)
    tables |= {"[models.X]": ModelKeys, '[models.X] with backend = "tflite"': plugins.load("backends", "tflite")}
    tables |= {f"[{field.name}]": field.type for field in msgspec.structs.fields(Config) if field.name in SINGLE_TABLES}
    homes = [table for table, struct in tables.items() if key in struct.__struct_fields__]
    return f"{key} belongs in {' or '.join(homes)}" if homes else ""


# -- converting -----------------------------------------------------------------------------------------------------


def _build(tables: Tables) -> Config:
    tables.refuse_strangers((), set(Config.__struct_fields__) - {"origins"})
    names = {section: _names(tables, section) for section in ("delegates", "sources", "models", "pipelines", "sinks")}
    pipelines = {name: _pipeline(tables, name) for name in names["pipelines"]}
    used = [entry for entry in pipelines.values() if entry]
    models = [*names["models"], *(entry.model for entry in used)]
    sinks = [*names["sinks"], *(sink for entry in used for sink in entry.sinks if sink in IMPLICIT_SINKS)]
    parts: dict[str, Any] = {
        "device": tables.struct(("device",), DeviceOptions),
        "mqtt": tables.struct(("mqtt",), MqttOptions),
        "spool": tables.struct(("spool",), SpoolOptions),
        "control": tables.struct(("control",), ControlOptions),
        "metrics": tables.struct(("metrics",), MetricsOptions),
        "log": tables.struct(("log",), LogOptions),
        "updates": tables.struct(("updates",), UpdateOptions),
        "accelerators": tables.struct(("accelerators",), Rules),
        "delegates": {name: _delegate(tables, name) for name in names["delegates"]},
        "sources": {name: _source(tables, name) for name in names["sources"]},
        "models": {name: _model(tables, name) for name in dict.fromkeys(models)},
        "pipelines": pipelines,
        "sinks": {name: _sink(tables, name) for name in dict.fromkeys(sinks)},
    }
    if tables.problems:
        sound = _sound(parts)
        raise ConfigErrors(tables.problems, Config(**sound, origins=tables.origins), whole=sound == parts)
    return Config(**parts, origins=tables.origins)


def _sound(parts: dict[str, Any]) -> dict[str, Any]:
    """Return the parts without those that have problems, and without pipelines of such parts."""
    kinds = {field.name: field.type for field in msgspec.structs.fields(Config)}
    sound = {}
    for name, part in parts.items():
        if name in SINGLE_TABLES:
            sound[name] = kinds[name]() if part is None else part
        else:
            sound[name] = {key: entry for key, entry in part.items() if entry is not None}
    sound["pipelines"] = {
        name: entry
        for name, entry in sound["pipelines"].items()
        if entry.source in sound["sources"] and entry.model in sound["models"] and {*entry.sinks} <= {*sound["sinks"]}
    }
    return sound


def _names(tables: Tables, section: str) -> list[str]:
    """Return the names of the tables of a section. A value that is no table, or a bad name, is a problem."""
    if not isinstance(tables.get((section,)), dict | None):
        tables.refuse((section,), shown(tables.get((section,))), f"tables named [{section}.NAME]")
    names = []
    for name in tables.keys((section,)):
        place = (section, name)
        if not re.fullmatch(NAME, name):
            tables.refuse(place, f"the name {shown(name)}", NAMES)
        elif not isinstance(tables.get(place), dict):
            tables.refuse(place, shown(tables.get(place)), "a table", f"write [{section}.{name}] above its keys")
        else:
            names.append(name)
    return names


def _delegate(tables: Tables, name: str) -> DelegateOptions | None:
    place = ("delegates", name)
    options = tables.struct(place, DelegateOptions)
    if options is None:
        return None
    if name in NO_DELEGATES:
        tables.refuse(place, f"the name {shown(name)}", 'a name other than "cpu" and "auto"')
    elif options.kind is None and name not in KNOWN:
        tables.refuse((*place, "kind"), "nothing", listed(KNOWN), did_you_mean(name, KNOWN) or "add this key")
    elif options.kind not in (None, name) and name in KNOWN:
        tables.refuse(
            (*place, "kind"), shown(options.kind), shown(name), "give a delegate of another kind another name"
        )
    elif "external" in (name, options.kind) and options.library is None:
        tables.refuse((*place, "library"), "nothing", "the path of a library", "add this key")
    elif "external" in (name, options.kind) and options.device[:1] not in ("", "/"):
        tables.refuse((*place, "device"), shown(options.device), "the absolute path of a device file")
    return options


def _source(tables: Tables, name: str) -> SourceEntry | None:
    place = ("sources", name)
    kind = tables.get((*place, "kind"))
    options = _options(tables, place, "sources", kind, beside=("kind", "supervision"))
    supervision = tables.struct((*place, "supervision"), Supervision)
    if options is None or supervision is None:
        return None
    try:
        options.describe()
    except Exception as error:  # the code of a plug-in may raise anything
        tables.blame(place, error, "options that fit together")
        return None
    return SourceEntry(kind=kind, options=options, supervision=supervision)


def _model(tables: Tables, name: str) -> ModelEntry | None:
    place = ("models", name)
    kind = tables.get((*place, "backend"))
    kind = "tflite" if kind is None else kind
    options = _options(tables, place, "backends", kind, key="backend", beside=ModelKeys.__struct_fields__)
    keys = tables.struct(place, ModelKeys, beside=tables.keys(place))  # the backend has checked the other keys
    if options is None or keys is None:
        return None
    known = {*NO_DELEGATES, *delegates({}), *tables.keys(("delegates",))}
    if keys.delegate not in known:
        tables.refuse((*place, "delegate"), shown(keys.delegate), listed(known), unknown(keys.delegate, known))
    if keys.url:
        _check_url(tables, (*place, "url"), keys.url)
    if names_bare(keys.url):  # the file has no version, so each look would fetch the whole file
        hint = "make a bundle with the earlier manifest: edgectl pack"
        tables.refuse((*place, "url"), "a bare .tflite file", "a bundle (.edgm) or a delta (.edgd)", hint)
    return ModelEntry(**msgspec.structs.asdict(keys), options=options)


def _check_url(tables: Tables, place: TablePath, url: str) -> None:
    from edged.system.urls import FetchError, parse_url  # few boards have a URL

    try:
        parse_url(url)
    except FetchError as error:
        tables.blame(place, error, "an http or https URL")


def _sink(tables: Tables, name: str) -> SinkEntry | None:
    place = ("sinks", name)
    kind = tables.get((*place, "kind"))
    kind = name if kind is None and name in IMPLICIT_SINKS else kind
    options = _options(tables, place, "sinks", kind, beside=("kind",))
    return None if options is None else SinkEntry(kind=kind, options=options)


def _options(
    tables: Tables, place: TablePath, family: str, kind: Any, *, key: str = "kind", beside: Collection[str]
) -> Any:
    """Return the options in a plug-in's table, None if the options or the kind are wrong."""
    here = (*place, key)
    try:
        if isinstance(kind, str):
            return tables.struct(place, plugins.load(family, kind), beside=beside)
        tables.refuse(here, "nothing" if kind is None else shown(kind), listed(plugins.kinds(family)))
    except ConfigError as error:
        known = plugins.kinds(family)
        if kind in known:
            tables.blame(here, error, "a plug-in that works")
        else:
            tables.refuse(here, shown(kind), listed(known), did_you_mean(kind, known))
    return None


def _pipeline(tables: Tables, name: str) -> PipelineEntry | None:
    place = ("pipelines", name)
    entry = tables.struct(place, PipelineEntry)
    overrides = tables.struct((*place, "decision"), ObjectDecision)
    if entry is None or overrides is None:
        return None
    sources = tables.keys(("sources",))
    if entry.source not in sources:
        tables.refuse((*place, "source"), shown(entry.source), listed(sources), did_you_mean(entry.source, sources))
    left, top, right, bottom = entry.region
    if left >= right or top >= bottom:
        tables.refuse((*place, "region"), shown([*entry.region]), "left below right, and top below bottom")
    sinks = {*tables.keys(("sinks",)), *IMPLICIT_SINKS}
    for index, sink in enumerate(entry.sinks):
        if sink not in sinks:
            item = f"[{index}]"
            tables.refuse((*place, "sinks"), shown(sink), listed(sinks), did_you_mean(sink, sinks), item=item)
        elif sink in entry.sinks[:index]:
            tables.refuse((*place, "sinks"), f"{shown(sink)} twice", "each sink once", item=f"[{index}]")
    keys = [key for key in tables.keys((*place, "decision")) if key in ObjectDecision.__struct_fields__]
    given = {key: getattr(overrides, key) for key in keys}
    return msgspec.structs.replace(entry, decision=given)


def model_paths(config: Config) -> dict[str, Path]:
    """Return the configured paths of models, by name."""
    return {name: entry.path for name, entry in config.models.items() if entry.path}


def publishes(config: Config, entry: PipelineEntry) -> bool:
    """Return whether a pipeline's results go to the broker."""
    return any(config.sinks[sink].kind == "mqtt" for sink in entry.sinks)
