"""The configuration: TOML files into frozen structs, with every error at once.

The main file is read first, then `conf.d/*.toml` beside it in order of name, then whatever other files were named; a
later file adds keys and overrides those before it. `load` reads, converts, and holds the tables against one another;
it looks at nothing else on the disk. Whether the models exist and fit their sources is `check_models`. What a reload
has to touch is `changes`.
"""

from __future__ import annotations

import errno
import re
import socket
import stat
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edged import __version__, plugins
from edged.api import Backend, SinkConfig, SourceConfig
from edged.backends.delegates import KNOWN, DelegateOptions, delegates, unknown
from edged.core import contract
from edged.core.acceleration import Rules
from edged.core.description import Description, pipeline_output
from edged.core.errors import ConfigError, EdgedError
from edged.core.manifest import NO_DELEGATES, Decision, Manifest, Regress, Version
from edged.core.postprocess import Postprocessor
from edged.core.tables import MAX_DEPTH, Place, Problem, Tables, did_you_mean, listed, plain, shown
from edged.core.topics import Topics
from edged.core.vitals import Supervision
from edged.models.answer import MAX_URL, FetchError, parse_url
from edged.models.bare import names_bare
from edged.models.bundle import Bundle
from edged.models.fetch import FetchOptions
from edged.models.store import MissingModelError, Store
from edged.outbox.options import Drop, Durability, MqttOptions, Policy, SpoolOptions

MAX_FILE_BYTES = 1_000_000
SINGLE_TABLES = ("device", "mqtt", "spool", "control", "metrics", "log", "updates", "accelerators")
IMPLICIT_SINKS = ("mqtt", "stdout")

DEVICE_NAMES = "letters, digits, - and _, at most 64 of them, the first a letter or digit"
NAME = r"^[a-z0-9][a-z0-9_-]{0,63}\Z"
NAMES = "lower-case " + DEVICE_NAMES

DeviceName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z", description=DEVICE_NAMES)]
Name = Annotated[str, Meta(pattern=NAME, description=NAMES)]


Swap = Literal["auto", "overlap", "handover"]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every table of our own derives from."""


def host_name() -> str:
    """This machine's name as a device name."""
    short = socket.gethostname().partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", short).strip("-_")[:64] or "edged"


class DeviceOptions(Table, frozen=True, kw_only=True):
    """Options of [device]: the identity of this board.

    Keys:
        name: Name of the board in every MQTT topic. Default: the host name.
    """

    name: DeviceName = msgspec.field(default_factory=host_name)


class ControlOptions(Table, frozen=True, kw_only=True):
    """Options of [control]: access to the daemon's control socket.

    Keys:
        group: Group whose members may use `edgectl` on this board, beside root and the daemon's own user.
    """

    group: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


class MetricsOptions(Table, frozen=True, kw_only=True):
    """Options of [metrics]: a page of metrics for Prometheus.

    Keys:
        port: TCP port on 127.0.0.1 that serves the metrics at /metrics; 0 serves none.
    """

    port: Annotated[int, Meta(ge=0, le=65535)] = 0


class UpdateOptions(Table, frozen=True, kw_only=True):
    """Options of [updates]: permission to install models, and the number of versions kept.

    Keys:
        require_signature: Accept a model only with a valid signature. Without this, everybody who may use the control
            socket may install anything.
        allowed_signers: File of the keys whose signatures count, in the format of ssh-keygen(1), ALLOWED SIGNERS.
        revoked: Revocation list of ssh-keygen(1), or a file of public keys, whose signatures do not count.
        threshold: Number of different principals that must have signed a version.
        check_every (s): Average time between two looks at the `url` of a model, and at the version that an MQTT message
            asks for.
        fetch: Table [updates.fetch]: the way models are fetched.
        keep: Versions of each model that are kept on disk. Versions in use are kept in any case.
        keep_bytes (bytes): Disk space for the kept versions of each model. Versions in use are kept in any case.
    """

    require_signature: bool = False
    allowed_signers: Path = Path("/etc/edged/allowed_signers")
    revoked: Path | None = None
    threshold: Annotated[int, Meta(ge=1, le=16)] = 1
    check_every: Annotated[float, Meta(ge=10, le=30 * 86400)] = 3600.0
    fetch: FetchOptions = FetchOptions()
    keep: Annotated[int, Meta(ge=2, le=100)] = 4
    keep_bytes: Annotated[int, Meta(ge=1 << 20)] = 256 << 20


class LogOptions(Table, frozen=True, kw_only=True):
    """Options of [log]: the daemon's log.

    Keys:
        level: Lowest level of the messages that are logged.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"


class SourceEntry(Table, frozen=True, kw_only=True):
    """Options of [sources.X] that are the same for every kind of source.

    Keys:
        kind: Kind of source: "serial", "replay", "synthetic" or the name of a plug-in.
        supervision: Table [sources.X.supervision].
    """

    kind: str
    options: SourceConfig
    supervision: Supervision = Supervision()


class ModelKeys(Table, frozen=True, kw_only=True):
    """Options of [models.X] that are the same for every backend.

    Keys:
        path: Factory version of the model: the folder of a bundle, an .edgm file or a .tflite file. Default: the
            version of this name that came with edged. Installed versions serve in its place; a rollback can return to
            it.
        version: Serve versions of this number only, and refuse to install others.
        url: HTTP or HTTPS address of a bundle (.edgm) or a delta (.edgd), looked at every `check_every` seconds of
            [updates] and installed if the version there is another than the one that serves.
        swap: Order of loading when one version follows another. "overlap" loads the new version beside the old one;
            "handover" unloads the old one first, while windows wait; "auto" hands over where memory does not suffice
            for both, or the device takes only one.
        backend: Kind of runtime that runs the model file: "tflite", "fake" or the name of a plug-in.
        delegate: Accelerator to use. "auto" takes the first variant of the model whose accelerator is ready, or the one
            that `edgectl tune` measured as the fastest; "cpu" uses none; the name of a delegate insists on that one.
        isolate: Run the model in a child process also on the CPU. On an accelerator a model always runs in one.
    """

    path: Path | None = None
    version: Version | None = None
    url: Annotated[str, Meta(max_length=MAX_URL)] = ""
    swap: Swap = "auto"
    backend: Name = "tflite"
    delegate: Name = "auto"
    isolate: bool = False


class ModelEntry(ModelKeys, frozen=True, kw_only=True):
    """Options of [models.X] that are the same for every backend."""

    options: Backend


class PipelineEntry(Table, frozen=True, kw_only=True):
    """Options of [pipelines.X]: a source, the model that gets its windows, and the sinks that get the predictions.

    Keys:
        source: Name of a table [sources.X].
        model: Name of the model; it needs no table [models.X].
        sinks: Names of tables [sinks.X]. "mqtt" and "stdout" need no table.
        decision: Table [pipelines.X.decision]: fields of the manifest's `decision` that are replaced here.
        queue (windows): Most windows that wait for a model which has not kept up for 5 s; the oldest are dropped. For a
            model that keeps up, all windows wait.
        durability: Place of results that wait for the broker. "memory": in memory, lost with a restart; "spill": in
            memory, saved on disk while the broker is away; "always": on disk before anything is published, so that the
            pipeline waits for the disk with each result.
        drop: Result that is dropped when the spool is full: the "oldest", the "newest", or with "thin" all but every
            `keep_every`th.
        keep_every: With drop = "thin", one result in this many is kept.
        priority: Results of a higher priority are sent first and dropped last.
        publish: Results sent to the broker: "all"; "changes", those with another decision or other values than the one
            before; or a number of seconds, one result in that time.
        decision_seconds (s): Least time between two updates of the retained decision. A decision that changes is
            published at once.
    """

    source: Name
    model: Name
    sinks: Annotated[tuple[Name, ...], Meta(max_length=16)] = ("mqtt",)
    decision: dict[str, Any] = {}
    queue: Annotated[int, Meta(ge=1, le=1000)] = 4
    durability: Durability = "spill"
    drop: Drop = "oldest"
    keep_every: Annotated[int, Meta(ge=2, le=1000)] = 2
    priority: Annotated[int, Meta(ge=0, le=9)] = 0
    publish: Literal["all", "changes"] | Annotated[float, Meta(gt=0, le=86_400)] = "all"
    decision_seconds: Annotated[float, Meta(ge=0.1, le=86_400)] = 1.0

    @property
    def policy(self) -> Policy:
        """What its messages are worth."""
        return Policy(durability=self.durability, drop=self.drop, keep_every=self.keep_every, priority=self.priority)


class SinkEntry(Table, frozen=True, kw_only=True):
    """Options of [sinks.X] that are the same for every kind of sink. `mqtt` and `stdout` need no table.

    Keys:
        kind: Kind of sink: "mqtt", "jsonl", "stdout" or the name of a plug-in.
    """

    kind: str
    options: SinkConfig


class Config(Table, frozen=True, kw_only=True):
    """All of it. `models` and `sinks` hold an entry for each that a pipeline names, whether it has a table or not.

    `origins` says which file each key came from; what is not there is a default.
    """

    device: DeviceOptions
    mqtt: MqttOptions
    spool: SpoolOptions
    control: ControlOptions
    metrics: MetricsOptions
    log: LogOptions
    updates: UpdateOptions
    accelerators: Rules
    delegates: dict[str, DelegateOptions]
    sources: dict[str, SourceEntry]
    models: dict[str, ModelEntry]
    pipelines: dict[str, PipelineEntry]
    sinks: dict[str, SinkEntry]
    origins: dict[Place, str]


class ConfigErrors(ConfigError):  # noqa: N818 it is several
    """Every problem there is, in one error."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"the configuration has {count}:\n{lines}", hint="check it with: edgectl config check")


def load(paths: Sequence[Path]) -> Config:
    """Read the files, and the folder beside the first, and make sense of them.

    Raises:
        ConfigErrors: something is wrong, and everything that is. Files that cannot be read come first and alone, for
            half a configuration is full of errors that are not there.
    """
    tables = Tables(_convert, _belongs)
    unread: list[Problem] = []
    for path in _files(paths, unread):
        _read(path, tables, unread)
    _refuse(unread)
    return _build(tables)


def effective(config: Config) -> dict[str, Any]:
    """The whole configuration as the tables somebody could have written, defaults filled in and secrets masked."""
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


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        raise ConfigErrors(problems)


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
        raise OSError(errno.EINVAL, "it is not a regular file")
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MAX_FILE_BYTES} bytes")
    return data


def _unreadable(path: Path, error: OSError) -> Problem:
    hints = {
        errno.ENOENT: "name another with --config or EDGED_CONFIG",
        errno.EACCES: "run this as root, or as the user the daemon runs as",
    }
    found = f"it cannot be read: {error.strerror}"
    return Problem(str(path), "the file", found, "a file that can be read", hints.get(error.errno or 0, ""))


def _convert(kind: type, value: Any, file: str) -> Any:
    """A path is text, and taken from the folder of the file it stands in."""
    if kind is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(file).parent / value
    raise ValueError


def _belongs(key: str) -> str:
    """Name the tables that have a key, as a hint; only a mistake has to wait for the import of all kinds."""
    tables: dict[str, Any] = {"[pipelines.X]": PipelineEntry, "[pipelines.X.decision]": Decision}
    for family in ("sinks", "sources"):
        for kind in plugins.BUILT_IN[family]:
            tables[f'[{family}.X] with kind = "{kind}"'] = plugins.load(family, kind)
    tables |= {"[models.X]": ModelKeys, '[models.X] with backend = "tflite"': plugins.load("backends", "tflite")}
    tables |= {f"[{field.name}]": field.type for field in msgspec.structs.fields(Config) if field.name in SINGLE_TABLES}
    homes = [table for table, struct in tables.items() if key in struct.__struct_fields__]
    return f"{key} belongs in {' or '.join(homes)}" if homes else ""


# -- making sense of it ---------------------------------------------------------------------------------------------


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
    _refuse(tables.problems)
    return Config(**parts, origins=tables.origins)


def _names(tables: Tables, section: str) -> list[str]:
    """The tables of a section, without what is no table or has no proper name."""
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
        tables.refuse(place, f"the name {shown(name)}", "a name that means nothing else where a delegate is named")
    elif options.kind is None and name not in KNOWN:
        tables.refuse((*place, "kind"), "nothing", listed(KNOWN), did_you_mean(name, KNOWN) or "this key is needed")
    elif options.kind not in (None, name) and name in KNOWN:
        tables.refuse(
            (*place, "kind"), shown(options.kind), shown(name), "give a delegate of another kind another name"
        )
    elif "external" in (name, options.kind) and options.library is None:
        tables.refuse((*place, "library"), "nothing", "the path of a library", "this key is needed")
    elif "external" in (name, options.kind) and options.device[:1] not in ("", "/"):
        tables.refuse((*place, "device"), shown(options.device), "the absolute path of a file that must be there")
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
    except Exception as error:  # a plug-in's own code: whatever it raises, it is these options that it cannot take
        tables.blame(place, error, "options that fit together")
    return SourceEntry(kind=kind, options=options, supervision=supervision)


def _model(tables: Tables, name: str) -> ModelEntry | None:
    place = ("models", name)
    kind = tables.get((*place, "backend"))
    kind = "tflite" if kind is None else kind
    options = _options(tables, place, "backends", kind, key="backend", beside=ModelKeys.__struct_fields__)
    keys = tables.struct(place, ModelKeys, beside=tables.keys(place))  # the others were the backend's to judge
    if options is None or keys is None:
        return None
    known = {*NO_DELEGATES, *delegates({}), *tables.keys(("delegates",))}
    if keys.delegate not in known:
        tables.refuse((*place, "delegate"), shown(keys.delegate), listed(known), unknown(keys.delegate, known))
    try:
        if keys.url:
            parse_url(keys.url)
    except FetchError as error:
        tables.blame((*place, "url"), error, "an http or https URL")
    if names_bare(keys.url):  # at every look all of it would have to be fetched, for it does not say what it is
        hint = "pack it, with the manifest of the version before: edgectl pack"
        tables.refuse((*place, "url"), "a bare .tflite file", "a bundle (.edgm) or a delta (.edgd)", hint)
    return ModelEntry(**msgspec.structs.asdict(keys), options=options)


def _sink(tables: Tables, name: str) -> SinkEntry | None:
    place = ("sinks", name)
    kind = tables.get((*place, "kind"))
    kind = name if kind is None and name in IMPLICIT_SINKS else kind
    options = _options(tables, place, "sinks", kind, beside=("kind",))
    return None if options is None else SinkEntry(kind=kind, options=options)


def _options(
    tables: Tables, place: Place, family: str, kind: Any, *, key: str = "kind", beside: Collection[str]
) -> Any:
    """The options in a plug-in's table, None if they or its kind are wrong."""
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
    overrides = tables.struct((*place, "decision"), Decision)
    if entry is None or overrides is None:
        return None
    sources = tables.keys(("sources",))
    if entry.source not in sources:
        tables.refuse((*place, "source"), shown(entry.source), listed(sources), did_you_mean(entry.source, sources))
    sinks = {*tables.keys(("sinks",)), *IMPLICIT_SINKS}
    for index, sink in enumerate(entry.sinks):
        if sink not in sinks:
            item = f"[{index}]"
            tables.refuse((*place, "sinks"), shown(sink), listed(sinks), did_you_mean(sink, sinks), item=item)
        elif sink in entry.sinks[:index]:
            tables.refuse((*place, "sinks"), f"{shown(sink)} twice", "each sink once", item=f"[{index}]")
    given = {key: getattr(overrides, key) for key in tables.keys((*place, "decision"))}
    return msgspec.structs.replace(entry, decision=given)


# -- holding it against the models ----------------------------------------------------------------------------------


def find_bundle(name: str, entry: ModelEntry, store: Store) -> Bundle:
    """The bundle that serves as [models.<name>]: what was installed of it or, before that, what is at its path.

    Raises:
        MissingModelError: there is none yet, or not of the version that is asked for.
        EdgedError: it is not sound.
    """
    return store.having({name: entry.path} if entry.path else {}).find(name, entry.version)


def model_paths(config: Config) -> dict[str, Path]:
    """Return the paths that the configuration gives for models, by name."""
    return {name: entry.path for name, entry in config.models.items() if entry.path}


def decision_for(entry: PipelineEntry, manifest: Manifest) -> Decision | None:
    """The model's decision with what the pipeline's table overrides, None where it overrides nothing."""
    if not entry.decision:
        return None
    own = Decision() if isinstance(manifest.postprocess, Regress) else manifest.postprocess.decision
    return msgspec.structs.replace(own, **entry.decision)


def check_models(config: Config, store: Store) -> tuple[Problem, ...]:
    """Return the problems of the models that the configuration names: damaged, or unfit for their source.

    That one is not here yet is no error.
    """
    tables = Tables(_convert)
    tables.origins = config.origins
    bundles = {name: _check_model(tables, config, name, store) for name in config.models}
    for name, entry in config.pipelines.items():
        if bundle := bundles[entry.model]:
            _check_pipeline(tables, name, entry, config.sources[entry.source].options, bundle.manifest)
    return tuple(tables.problems)


def _check_model(tables: Tables, config: Config, name: str, store: Store) -> Bundle | None:
    entry = config.models[name]
    try:
        return find_bundle(name, entry, store)
    except MissingModelError:
        return None  # it may be brought: see config_warnings.py
    except EdgedError as error:
        users = [user for user, pipeline in config.pipelines.items() if pipeline.model == name]
        has_table = ("models", name) in config.origins
        place = ("models", name) if has_table else ("pipelines", users[0], "model")
        tables.blame(place, error, "a sound model")
        return None


def _check_pipeline(tables: Tables, name: str, entry: PipelineEntry, source: SourceConfig, manifest: Manifest) -> None:
    place = ("pipelines", name)
    try:
        contract.match(manifest.window, source.describe(), entry.source, entry.model)
    except ConfigError as error:
        tables.blame(place, error, "a source that gives what the model needs")
    try:
        Postprocessor(manifest, decision_for(entry, manifest))
    except ConfigError as error:
        tables.blame((*place, "decision"), error, "what the model can decide")


def describe(config: Config, manifests: Mapping[str, Manifest | None]) -> Description:
    """What a device with this configuration offers; `manifests` are its models', None for one that cannot be read."""
    return Description(
        topics=Topics(config.mqtt.prefix, config.device.name),
        version=__version__,
        broker=config.mqtt.broker,
        tls=config.mqtt.tls,
        path=config.mqtt.path if config.mqtt.transport == "websockets" else "",
        pipelines=tuple(
            msgspec.structs.replace(
                pipeline_output(name, manifests[entry.model]),
                source=entry.source,
                published=publishes(config, entry),
            )
            for name, entry in config.pipelines.items()
        ),
        sources=tuple(config.sources),
        models=tuple(config.models),
        accelerated=tuple(
            name for name, entry in config.models.items() if _may_be_accelerated(entry.delegate, manifests[name])
        ),
    )


def publishes(config: Config, entry: PipelineEntry) -> bool:
    """Whether a pipeline's results go to the broker."""
    return any(config.sinks[sink].kind == "mqtt" for sink in entry.sinks)


def _may_be_accelerated(wanted: str, manifest: Manifest | None) -> bool:
    if wanted in NO_DELEGATES:
        return wanted == "auto" and manifest is not None and bool(manifest.variants)
    return True


# -- what a reload touches ------------------------------------------------------------------------------------------


class Change(msgspec.Struct, frozen=True):
    """Names in one section of the configuration that came, went, or mean something else now."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


class Changes(msgspec.Struct, frozen=True):
    """What differs between two configurations. `tables` are those of [device], [mqtt], ... that differ."""

    sources: Change = Change()
    models: Change = Change()
    pipelines: Change = Change()
    sinks: Change = Change()
    tables: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != Changes()


def changes(old: Config, new: Config, *, models: Collection[str] = (), pipelines: Collection[str] = ()) -> Changes:
    """What a reload has to touch, and nothing more.

    A pipeline has changed with its own table and with anything it is made of: its source, its model, its sinks. A model
    has changed with a delegate that it may run on, and with the rules for all of them. Those of `models` and of
    `pipelines` count as changed too: they do not run, and what kept them from it may be over.
    """
    sources = _compare(old.sources, new.sources)
    redefined = _compare(old.delegates, new.delegates)
    touched = {*redefined.added, *redefined.removed, *redefined.changed}
    ruled = old.accelerators != new.accelerators
    moved = {
        name
        for name, entry in new.models.items()
        if (touched and entry.delegate in ("auto", *touched)) or (ruled and (entry.delegate != "cpu" or entry.isolate))
    }
    remade = _compare(old.models, new.models, touched={*moved, *models})
    sinks = _compare(old.sinks, new.sinks)
    shaken = {
        name
        for name, entry in new.pipelines.items()
        if entry.source in sources.changed or entry.model in remade.changed or {*entry.sinks} & {*sinks.changed}
    }
    rebuilt = _compare(old.pipelines, new.pipelines, touched={*shaken, *pipelines})
    tables = tuple(table for table in SINGLE_TABLES if getattr(old, table) != getattr(new, table))
    return Changes(sources, remade, rebuilt, sinks, tables)


def _compare(old: Mapping[str, Any], new: Mapping[str, Any], touched: Collection[str] = ()) -> Change:
    return Change(
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed=tuple(name for name in new if name in old and (new[name] != old[name] or name in touched)),
    )
