"""The configuration: from files to structs, with all errors at once, and the changes of a reload."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edged.backends.delegates import DelegateOptions
from edged.backends.fake import FakeBackend
from edged.backends.tflite import TfliteBackend
from edged.config.check import check_models, decision_for, find_bundle
from edged.config.diff import Change, Changes, changes
from edged.config.load import ConfigErrors, effective, load
from edged.config.options import ModelEntry, PipelineEntry, host_name
from edged.core.acceleration import Rules
from edged.core.manifest import Channel, Classify, File, Input, Manifest, Normalise, Regress, WindowSpec, encode
from edged.core.manifest_parts import Decision
from edged.core.source_health import Supervision
from edged.core.tables import MASK, Problem
from edged.core.types import TensorSpec
from edged.models.store import MissingModelError, Store
from tests.unprivileged import unprivileged

GAUGE = """
from pathlib import Path
from typing import Annotated, Literal
from msgspec import Meta
from edged.api import ConfigError, SourceConfig, SourceInfo

class Gauge(SourceConfig, frozen=True, kw_only=True):
    '''A source of the tests.'''
    port: str
    rate: Annotated[float, Meta(gt=0)] = 10.0
    channels: tuple[str, ...] = ("x", "y")
    units: tuple[str, ...] = ()
    calibration: Path | None = None
    token: Annotated[str, Meta(extra={"secret": True})] = ""

    def describe(self):
        if len(self.units) > len(self.channels):
            raise ConfigError("more units than channels", hint="name the channels")
        return SourceInfo(shape=(len(self.channels),), channels=self.channels, units=self.units, rate=self.rate)
"""

WHOLE = """
[device]
name = "kitchen"

[mqtt]
host = "broker.example"

[sources.wrist]
kind = "gauge"
port = "/dev/ttyUSB0"
supervision = { stall_after = 3.0 }

[models.motion]
threads = 2

[pipelines.activity]
source = "wrist"
model = "motion"
sinks = ["mqtt", "archive"]
decision = { threshold = 0.8, k = 2, n = 3 }

[sinks.archive]
kind = "jsonl"
path = "/var/lib/edged/results.jsonl"
"""

Write = Callable[..., list[Path]]


@pytest.fixture(autouse=True)
def gauge(install_plugin: Callable[..., None]) -> None:
    install_plugin("gauges", GAUGE, gauge="gauges:Gauge")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write edged.toml, and by keyword files of conf.d: `write(main, **{"10-x": text})`."""

    def write(main: str = "", **beside: str) -> list[Path]:
        (tmp_path / "edged.toml").write_text(main)
        if beside:
            (tmp_path / "conf.d").mkdir()
        for name, text in beside.items():
            (tmp_path / "conf.d" / f"{name}.toml").write_text(text)
        return [tmp_path / "edged.toml"]

    return write


def problems(paths: list[Path]) -> list[Problem]:
    with pytest.raises(ConfigErrors) as caught:
        load(paths)
    return list(caught.value.problems)


def only_problem(paths: list[Path]) -> tuple[str, str, str, str]:
    found = problems(paths)
    assert len(found) == 1, found
    return found[0].path, found[0].found, found[0].allowed, found[0].hint


# -- accepted --------------------------------------------------------------------------------------------------------


def test_a_whole_configuration(write: Write) -> None:
    config = load(write(WHOLE))
    assert config.device.name == "kitchen"
    assert config.mqtt.host == "broker.example"
    assert config.sources["wrist"].kind == "gauge"
    assert config.sources["wrist"].options.port == "/dev/ttyUSB0"  # type: ignore[attr-defined]
    assert config.sources["wrist"].supervision == Supervision(stall_after=3.0)
    assert config.models == {"motion": ModelEntry(options=TfliteBackend(threads=2))}
    assert config.pipelines == {
        "activity": PipelineEntry(
            source="wrist", model="motion", sinks=("mqtt", "archive"), decision={"threshold": 0.8, "k": 2, "n": 3}
        )
    }
    assert list(config.sinks) == ["archive", "mqtt"]
    assert config.sinks["archive"].kind == "jsonl"


def test_an_empty_file_is_a_board_that_does_nothing_yet(write: Write) -> None:
    config = load(write(""))
    assert config.device.name == host_name()
    assert (config.sources, config.models, config.pipelines, config.sinks) == ({}, {}, {}, {})
    assert config.metrics.port == 0
    assert config.log.level == "info"
    assert config.control.group is None


def test_models_and_well_known_sinks_need_no_table(write: Write) -> None:
    config = load(
        write("sources.x = {kind = 'gauge', port = 'a'}\npipelines.p = {source = 'x', model = 'm', sinks = ['stdout']}")
    )
    assert config.models == {"m": ModelEntry(options=TfliteBackend())}
    assert config.sinks["stdout"].kind == "stdout"


def test_a_well_known_sink_with_a_table_needs_no_kind(write: Write) -> None:
    assert load(write("[sinks.stdout]")).sinks["stdout"].kind == "stdout"


def test_another_backend_brings_its_own_keys(write: Write) -> None:
    config = load(write("[models.m]\nbackend = 'fake'\ndelay = 0.5"))
    assert config.models["m"].options == FakeBackend(delay=0.5)
    assert config.models["m"].backend == "fake"


def test_accelerators(write: Write) -> None:
    text = (
        "[models.motion]\ndelegate = 'coral'\nisolate = true\n[accelerators]\ndeadline = 0.5\n"
        "[delegates.coral]\nkind = 'edgetpu'\ndevice = 'usb:1'\n"
        "[delegates.teflon]\nlibrary = '/opt/libteflon.so'\n"
        "[delegates.mine]\nkind = 'external'\nlibrary = 'libmine.so'\noptions = { speed = 'high' }"
    )
    config = load(write(text))
    assert (config.models["motion"].delegate, config.models["motion"].isolate) == ("coral", True)
    assert config.accelerators == Rules(deadline=0.5)
    assert config.delegates == {
        "coral": DelegateOptions(kind="edgetpu", device="usb:1"),
        "teflon": DelegateOptions(library="/opt/libteflon.so"),
        "mine": DelegateOptions(kind="external", library="libmine.so", options={"speed": "high"}),
    }
    assert effective(config)["delegates"]["coral"] == {"kind": "edgetpu", "device": "usb:1", "options": {}}


def test_a_model_runs_wherever_its_delegate_is_unless_told_otherwise(write: Write) -> None:
    entry = load(write("[models.motion]\ndelegate = 'cpu'\n[models.door]")).models
    assert (entry["motion"].delegate, entry["door"].delegate, entry["door"].isolate) == ("cpu", "auto", False)


def test_a_relative_path_is_taken_from_the_file_it_stands_in(write: Write, tmp_path: Path) -> None:
    main = "[sources.x]\nkind = 'gauge'\nport = 'a'\ncalibration = 'x.csv'"
    config = load(write(main, more="[models.m]\npath = '../m.tflite'"))
    assert config.sources["x"].options.calibration == tmp_path / "x.csv"  # type: ignore[attr-defined]
    assert config.models["m"].path == tmp_path / "conf.d" / ".." / "m.tflite"


def test_files_beside_it_override_it_in_order_of_name(write: Write, tmp_path: Path) -> None:
    paths = write(
        "[device]\nname = 'a'\n[log]\nlevel = 'debug'",
        **{"20-second": "[device]\nname = 'c'", "10-first": "[device]\nname = 'b'\n[metrics]\nport = 9"},
    )
    config = load(paths)
    assert (config.device.name, config.log.level, config.metrics.port) == ("c", "debug", 9)
    assert config.origins["device", "name"] == str(tmp_path / "conf.d" / "20-second.toml")
    assert config.origins["log", "level"] == str(tmp_path / "edged.toml")


def test_further_files_override_those_beside_the_first(write: Write, tmp_path: Path) -> None:
    paths = write("", a="[device]\nname = 'a'")
    (tmp_path / "last.toml").write_text("[device]\nname = 'last'")
    assert load([*paths, tmp_path / "last.toml"]).device.name == "last"


def test_what_editors_and_packages_leave_behind_is_passed_over(write: Write, tmp_path: Path) -> None:
    paths = write("", a="[device]\nname = 'a'")
    for name in (".b.toml", "c.toml~", "d.toml.dpkg-old", "README"):
        (tmp_path / "conf.d" / name).write_text("not = [toml")
    assert load(paths).device.name == "a"


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "edged.toml").write_bytes(b"\xef\xbb\xbf[device]\r\nname = 'a'\r\n")
    assert load([tmp_path / "edged.toml"]).device.name == "a"


# -- unreadable ------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert only_problem([tmp_path / "none.toml"]) == (
        "the file",
        "unreadable: No such file or directory",
        "a readable file",
        "name another with --config or EDGED_CONFIG",
    )


def test_a_file_that_is_not_ours_to_read() -> None:
    with tempfile.TemporaryDirectory() as folder:  # unlike tmp_path, in a folder open to all
        Path(folder).chmod(0o755)
        file = Path(folder, "edged.toml")
        file.touch(mode=0)
        with unprivileged():
            problem = only_problem([file])
    assert problem[1] == "unreadable: Permission denied"


def test_a_folder_or_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert only_problem([tmp_path / "pipe"])[1] == "unreadable: not a regular file"
    assert only_problem([tmp_path])[1] == "unreadable: not a regular file"


def test_a_file_that_is_too_big(write: Write) -> None:
    assert only_problem(write("#" * 1_000_001))[1] == "unreadable: more than 1000000 bytes"


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "edged.toml").write_bytes(b"[device]\nname = 'K\xfcche'\n")
    assert only_problem([tmp_path / "edged.toml"]) == (
        "line 2",
        "the byte 0xfc",
        "text in UTF-8",
        "save the file as UTF-8",
    )


def test_every_file_with_broken_toml_is_told_with_its_line(write: Write, tmp_path: Path) -> None:
    found = problems(write("[device\nname = 1", a="x =\n", b="[log]\nlevel = 'wrong, but half is read'"))
    assert [(problem.file, problem.path) for problem in found] == [
        (str(tmp_path / "edged.toml"), "line 1, column 8"),
        (str(tmp_path / "conf.d" / "a.toml"), "line 1, column 4"),
    ]
    assert found[1].found == "broken TOML: Invalid value"


@pytest.mark.parametrize("text", ["x = " + "[" * 100_000, "a" + ".a" * 5000 + " = 1"], ids=["arrays", "keys"])
def test_nesting_without_end_is_refused(write: Write, text: str) -> None:
    assert problems(write(text))[0].allowed == "at most 16 levels"


# -- mistakes --------------------------------------------------------------------------------------------------------


def test_every_error_is_told_at_once(write: Write) -> None:
    text = WHOLE.replace("kitchen", "the kitchen").replace("threads = 2", "thread = 2").replace('"wrist"', '"wirst"')
    assert [(problem.path, problem.hint) for problem in problems(write(text))] == [
        ("pipelines.activity.source", 'did you mean "wrist"?'),
        ("device.name", ""),
        ("models.motion.thread", 'did you mean "threads"?'),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[pipeline.p]", ("pipeline", "an unknown key", 'did you mean "pipelines"?')),
        ("sources = 3", ("sources", "3", "")),
        ("[log]\nexpiry = 60", ("log.expiry", "an unknown key", 'expiry belongs in [sinks.X] with kind = "mqtt"')),
        (
            "[log]\nthreshold = 1",
            ("log.threshold", "an unknown key", "threshold belongs in [pipelines.X.decision] or [updates]"),
        ),
        (
            "[log]\nthreads = 1",
            ("log.threads", "an unknown key", 'threads belongs in [models.X] with backend = "tflite"'),
        ),
        ("[[sources]]", ("sources", "[a table]", "")),
        ("[sources]\nx = 3", ("sources.x", "3", "write [sources.x] above its keys")),
        ("[sources.X]", ("sources.X", 'the name "X"', "")),
        ('[sources."a b"]', ('sources."a b"', 'the name "a b"', "")),
        ("[sources.x]", ("sources.x.kind", "nothing", "")),
        ("[sources.x]\nkind = 3", ("sources.x.kind", "3", "")),
        ("[sources.x]\nkind = 'gage'", ("sources.x.kind", '"gage"', 'did you mean "gauge"?')),
        ("[sources.x]\nkind = 'gauge'", ("sources.x.port", "nothing", "add this key")),
        (
            "[sources.x]\nkind = 'gauge'\nport = 'a'\nprot = 'b'",
            ("sources.x.prot", "an unknown key", 'did you mean "port"?'),
        ),
        (
            "[sources.x]\nkind = 'gauge'\nport = 'a'\nchannels = []\nunits = ['g']",
            ("sources.x", "more units than channels", "name the channels"),
        ),
        (
            "[sources.x]\nkind = 'gauge'\nport = 'a'\nsupervision.stall = 1",
            ("sources.x.supervision.stall", "an unknown key", 'did you mean "stall_after"?'),
        ),
        (
            "[models.m]\nurl = 'https://models.example/m.tflite?edition=7'",
            (
                "models.m.url",
                "a bare .tflite file",
                "make a bundle with the earlier manifest: edgectl pack",
            ),
        ),
        (
            "[models.m]\nurl = 'ftp://models.example/m.edgm'",
            (
                "models.m.url",
                "'ftp://models.example/m.edgm' is no http or https URL",
                "write it as https://example.org/file",
            ),
        ),
        (
            "[updates.fetch]\norigins = ['https://models.example/m.edgm']",
            (
                "updates.fetch",
                "'https://models.example/m.edgm' is no origin",
                "write scheme, host and port alone, as https://files.example.org:8443",
            ),
        ),
        ("[models.m]\nversion = 'one'", ("models.m.version", '"one"', "")),
        ("[models.m]\nbackend = 'tfilte'", ("models.m.backend", '"tfilte"', 'did you mean "tflite"?')),
        ("[models.m]\npath = ''", ("models.m.path", '""', "")),
        ("[models.m]\ndelegate = 'edgtpu'", ("models.m.delegate", '"edgtpu"', 'did you mean "edgetpu"?')),
        (
            "[models.m]\ndelegate = 'corel'\n[delegates.coral]\nkind = 'edgetpu'",
            ("models.m.delegate", '"corel"', 'did you mean "coral"?'),
        ),
        (
            "[models.m]\ndelegate = 'external'",
            (
                "models.m.delegate",
                '"external"',
                "describe it in a table [delegates.external], with a kind and a library",
            ),
        ),
        ("[delegates.cpu]\nkind = 'edgetpu'", ("delegates.cpu", 'the name "cpu"', "")),
        ("[delegates.edgtpu]", ("delegates.edgtpu.kind", "nothing", 'did you mean "edgetpu"?')),
        ("[delegates.mine]", ("delegates.mine.kind", "nothing", "add this key")),
        ("[delegates.mine]\nkind = 'edgetp'", ("delegates.mine.kind", '"edgetp"', 'did you mean "edgetpu"?')),
        ("[delegates.mine]\nkind = 'external'", ("delegates.mine.library", "nothing", "add this key")),
        (
            "[delegates.mine]\nkind = 'external'\nlibrary = 'libmine.so'\ndevice = 'npu0'",
            ("delegates.mine.device", '"npu0"', ""),
        ),
        (
            "[delegates.teflon]\nkind = 'edgetpu'",
            ("delegates.teflon.kind", '"edgetpu"', "give a delegate of another kind another name"),
        ),
        ("[delegates.teflon]\nlibrary = 'lib/libteflon.so'", ("delegates.teflon.library", '"lib/libteflon.so"', "")),
        ('[delegates.teflon]\noptions.a = "\\u0000"', ("delegates.teflon.options.a", '"\\u0000"', "")),
        ("[accelerators]\ndeadlin = 1.0", ("accelerators.deadlin", "an unknown key", 'did you mean "deadline"?')),
        ("[sinks.x]", ("sinks.x.kind", "nothing", "")),
        ("[pipelines.p]\nmodel = 'm'", ("pipelines.p.source", "nothing", "add this key")),
        ("[log]\nlevel = 'inof'", ("log.level", '"inof"', 'did you mean "info"?')),
        ("[metrics]\nport = 70000", ("metrics.port", "70000", "")),
        ("[mqtt]\nport = 1e999", ("mqtt.port", "inf", "")),
    ],
)
def test_a_problem_says_where_it_is_and_what_to_do(write: Write, text: str, problem: tuple[str, str, str]) -> None:
    path, found, _, hint = only_problem(write(text))
    assert (path, found, hint) == problem


@pytest.mark.parametrize(
    ("sinks", "problem"),
    [
        ("['mqqt']", ("pipelines.p.sinks[0]", '"mqqt"', '"mqtt", "stdout"', 'did you mean "mqtt"?')),
        ("['stdout', 'stdout']", ("pipelines.p.sinks[1]", '"stdout" twice', "each sink once", "")),
    ],
)
def test_a_pipeline_names_sinks_that_are_there(write: Write, sinks: str, problem: tuple[str, str, str, str]) -> None:
    text = f"sources.x = {{kind = 'gauge', port = 'a'}}\npipelines.p = {{source = 'x', model = 'm', sinks = {sinks}}}"
    assert only_problem(write(text)) == problem


def test_a_source_with_errors_is_there_all_the_same(write: Write) -> None:
    text = "sources.x = {kind = 'gauge'}\npipelines.p = {source = 'x', model = 'm', sinks = []}"
    assert only_problem(write(text))[0] == "sources.x.port"


def test_a_password_is_kept_out_of_the_file_and_out_of_the_message(write: Write) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(write("[mqtt]\npassword = 'hunter2'"))
    assert caught.value.problems[0].hint.endswith("name this file in password_file")
    assert "hunter2" not in str(caught.value)


def test_the_error_says_all_of_it_for_the_log(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(write("[log]\nlevel = 3\n[metrics]\nport = -1"))
    assert str(caught.value) == (
        "the configuration has 2 problems:\n"
        f"  {tmp_path}/edged.toml: metrics.port: found -1; allowed: a whole number, at least 0 and at most 65535\n"
        f'  {tmp_path}/edged.toml: log.level: found 3; allowed: "debug" or "error" or "info" or "warning" '
        "(run edgectl config check)"
    )


# -- output ----------------------------------------------------------------------------------------------------------


def test_the_effective_configuration_has_defaults_and_no_secrets(write: Write) -> None:
    text = "[sources.x]\nkind = 'gauge'\nport = 'tcp://bo:hunter2@10.0.0.9'\ntoken = 'hunter2'"
    shown = effective(load(write(text)))["sources"]["x"]
    assert shown["kind"] == "gauge"
    assert shown["port"] == f"tcp://{MASK}@10.0.0.9"
    assert shown["token"] == MASK
    assert shown["rate"] == 10.0
    assert shown["supervision"]["flat_after"] == Supervision().flat_after


# -- against the models ---------------------------------------------------------------------------------------------


def manifest(**changed: Any) -> Manifest:
    """Return the manifest of a model with two channels at 10 samples per second and two labels."""
    tensor = TensorSpec(name="x", shape=(1, 5, 2), dtype="int8", scale=0.1)
    whole = {
        "schema": "edged.manifest/1",
        "name": "motion",
        "version": "1.2",
        "files": {"model.tflite": File(bytes=4, sha256="0" * 64)},
        "window": WindowSpec(length=5, hop=5, rate=10.0, channels=(Channel(name="y"), Channel(name="x", unit="g"))),
        "inputs": (Input(tensor=tensor),),
        "outputs": (TensorSpec(name="y", shape=(1, 2), dtype="int8", scale=0.1),),
        "preprocess": (Normalise(mean=(0.0,), std=(1.0,)),),
        "labels": ("still", "moving"),
        "postprocess": Classify(decision=Decision(threshold=0.5, cooldown=3.0)),
    }
    return Manifest(**(whole | changed))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with the model `motion` 1.2."""
    folder = tmp_path / "factory" / "motion" / "1.2"
    folder.mkdir(parents=True)
    (folder / "model.tflite").write_bytes(b"TFL3")
    digest = hashlib.sha256(b"TFL3").hexdigest()
    (folder / "manifest.json").write_bytes(encode(manifest(files={"model.tflite": File(bytes=4, sha256=digest)})))
    return Store(tmp_path / "factory")


def pipeline(source: str = "", pipeline: str = "", models: str = "") -> str:
    return (
        f"[sources.wrist]\nkind = 'gauge'\nport = 'a'\n{source}\n[models]\n{models}\n"
        f"[pipelines.p]\nsource = 'wrist'\nmodel = 'motion'\nsinks = []\n{pipeline}"
    )


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("region = [0.5, 0.0, 0.5, 1.0]", "pipelines.p.region"),
        ("region = [0.0, 0.9, 1.0, 0.1]", "pipelines.p.region"),
        ("region = [0.0, 0.0, 1.0, 1.5]", "pipelines.p.region"),
        ("region = [0.0, 0.0, 640.0, 480.0]", "pipelines.p.region"),
        ("region = [0.0, 0.0, 1.0]", "pipelines.p.region"),
        ("mask = [[[0.0, 0.0], [1.0, 0.0]]]", "pipelines.p.mask[0]"),
        ("mask = [[[0.0, 0.0], [1.0, 0.0], [1.0, -0.1]]]", "pipelines.p.mask[0][2]"),
        (f"mask = [{[[0.0, 0.0]] * 65}]", "pipelines.p.mask[0]"),
        (f"mask = {[[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]] * 33}", "pipelines.p.mask"),
    ],
)
def test_a_region_or_mask_beyond_its_bounds_is_refused(write: Write, line: str, path: str) -> None:
    assert [problem.path for problem in problems(write(pipeline(pipeline=line)))] == [path]


def test_a_model_that_fits_has_no_problem(write: Write, store: Store) -> None:
    assert check_models(load(write(pipeline(pipeline="decision.thresholds = {moving = 0.7}"))), store) == ()


@pytest.mark.parametrize(
    ("text", "path", "found"),
    [
        (pipeline(source="rate = 20"), "pipelines.p", "the rate is 20 samples per second, the model takes 10"),
        (pipeline(source="channels = ['x', 'z']"), "pipelines.p", "there is no channel 'y' among x, z"),
        (pipeline(source="units = ['m/s2']"), "pipelines.p", "the channel 'x' is in m/s2, the model takes g"),
        (pipeline(pipeline="decision.k = 3"), "pipelines.p.decision", "3"),
        (pipeline(pipeline="decision.thresholds = {flying = 0.5}"), "pipelines.p.decision", "flying"),
        (pipeline(models="motion.path = 'nowhere'"), "models.motion", "nowhere"),
        (pipeline(pipeline="mask = [[[0, 0], [1, 0], [1, 1]]]"), "pipelines.p.mask", "the source 'wrist'"),
        (pipeline(pipeline="region = [0.5, 0, 1, 1]"), "pipelines.p.region", "the source 'wrist'"),
        (pipeline(models="motion.path = 'x.tflite'"), "models.motion", "x.tflite"),
    ],
)
def test_a_model_that_does_not_fit_is_told(write: Write, store: Store, text: str, path: str, found: str) -> None:
    told = check_models(load(write(text)), store)
    assert [problem.path for problem in told] == [path]
    assert found in told[0].found
    assert told[0].hint
    assert told[0].file.endswith("edged.toml")


@pytest.mark.parametrize("text", [pipeline().replace("'motion'", "'motoin'"), pipeline(models="motion.version = '2'")])
def test_a_model_that_is_not_here_yet_is_no_problem(write: Write, store: Store, text: str) -> None:
    assert check_models(load(write(text)), store) == ()


def test_a_model_at_a_path_may_be_pinned(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "factory" / "motion" / "1.2"
    pinned = ModelEntry(path=folder, version="1.2.0", options=TfliteBackend())
    assert find_bundle("mine", pinned, store).manifest.name == "motion"
    with pytest.raises(MissingModelError, match=r"'mine' has no version 1\.3 \(there is 1\.2\)"):
        find_bundle("mine", msgspec.structs.replace(pinned, version="1.3"), store)


def test_a_decision_is_the_models_with_what_is_overridden() -> None:
    entry = PipelineEntry(source="s", model="m", decision={"threshold": 0.9, "n": 2})
    assert decision_for(entry, manifest()) == Decision(threshold=0.9, n=2, cooldown=3.0)
    assert decision_for(PipelineEntry(source="s", model="m"), manifest()) is None


def test_a_model_that_decides_nothing_takes_no_decision(write: Write, store: Store, tmp_path: Path) -> None:
    regress = manifest(labels=(), postprocess=Regress(names=("a", "b")))
    entry = PipelineEntry(source="s", model="m", decision={"threshold": 0.9})
    assert decision_for(entry, regress) == Decision(threshold=0.9)


# -- changes of a reload ---------------------------------------------------------------------------------------------


@pytest.fixture
def after(write: Write, tmp_path: Path) -> Callable[[str, str], Changes]:
    """Return a function for the changes after a replacement in the whole configuration."""

    def after(piece: str, by: str) -> Changes:
        assert piece in WHOLE
        old = load(write(WHOLE))
        return changes(old, load(write(WHOLE.replace(piece, by))))

    return after


def test_nothing_changes_when_only_words_do(after: Callable[[str, str], Changes]) -> None:
    assert not after("[device]", "# the one by the window\n[device]")


@pytest.mark.parametrize(
    ("piece", "by", "expected"),
    [
        ("kitchen", "hall", Changes(tables=("device",))),
        ("broker.example", "10.0.0.9", Changes(tables=("mqtt",))),
        ("[device]", "[metrics]\nport = 9100\n[device]", Changes(tables=("metrics",))),
        ("k = 2", "k = 1", Changes(pipelines=Change(changed=("activity",)))),
        (
            "ttyUSB0",
            "ttyUSB1",
            Changes(sources=Change(changed=("wrist",)), pipelines=Change(changed=("activity",))),
        ),
        (
            "stall_after = 3.0",
            "stall_after = 4.0",
            Changes(sources=Change(changed=("wrist",)), pipelines=Change(changed=("activity",))),
        ),
        (
            "threads = 2",
            "threads = 1",
            Changes(models=Change(changed=("motion",)), pipelines=Change(changed=("activity",))),
        ),
        (
            "[device]",
            "[delegates.teflon]\nlibrary = '/opt/libteflon.so'\n[device]",
            Changes(models=Change(changed=("motion",)), pipelines=Change(changed=("activity",))),
        ),
        (
            "results.jsonl",
            "archive.jsonl",
            Changes(sinks=Change(changed=("archive",)), pipelines=Change(changed=("activity",))),
        ),
        (
            '["mqtt", "archive"]',
            '["archive"]',
            Changes(sinks=Change(removed=("mqtt",)), pipelines=Change(changed=("activity",))),
        ),
        (
            "[pipelines.activity]",
            "[pipelines.other]",
            Changes(pipelines=Change(added=("other",), removed=("activity",))),
        ),
        (
            "[models.motion]\nthreads = 2",
            "[models.door]",
            Changes(
                models=Change(added=("door",), changed=("motion",)),
                pipelines=Change(changed=("activity",)),
            ),
        ),
        (
            "[pipelines.activity]",
            "[sources.ankle]\nkind = 'gauge'\nport = 'b'\n[pipelines.activity]",
            Changes(sources=Change(added=("ankle",))),
        ),
    ],
)
def test_a_reload_touches_what_changed_and_what_is_made_of_it(
    after: Callable[[str, str], Changes], piece: str, by: str, expected: Changes
) -> None:
    assert after(piece, by) == expected
