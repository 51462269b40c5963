"""The verbs that show one part of what `status` shows, and the small ones."""

import json
import platform

import pytest

from edged import __version__


@pytest.mark.parametrize(
    ("verb", "line"),
    [
        ("pipelines", "● motion    running  imu     motion 1.2  mqtt,log"),
        ("sources", "● imu     running  serial  ax,ay     100 Hz  99.88 Hz     4200"),
        ("models", "● motion  running  1.2      factory  motion     52.3 kB  edgetpu, 9 of 12 nodes"),
    ],
)
def test_one_table(edgectl, daemon, verb, line):
    code, output, _ = edgectl(verb)
    assert code == 0
    assert output.splitlines()[1].startswith(line)
    assert json.loads(edgectl(verb, "--json")[1]) == daemon.status[verb]


def test_a_model_on_the_cpu_in_a_process_of_its_own(edgectl, daemon):
    runner = {**daemon.status["models"][0]["runner"], "delegate": "cpu"}
    daemon.answers["models"] = [daemon.status["models"][0] | {"accelerator": None, "isolated": True, "runner": runner}]
    _, output, _ = edgectl("models")
    assert output.splitlines()[1].split()[8:] == ["cpu", "(litert", "2.3.0,", "isolated)", "8", "samples,", "±1"]
    assert len(output.splitlines()) == 2


def test_an_accelerator_is_released(edgectl, daemon):
    daemon.answers["release"] = answer = {"released": "edgetpu", "changed": True}
    assert edgectl("release", "edgetpu") == (
        0,
        "edgetpu is tried again; see the state: edgectl models\n",
        "",
    )
    assert [(verb, args["accelerator"]) for verb, args in daemon.asked] == [("release", "edgetpu")]
    assert json.loads(edgectl("release", "edgetpu", "--json")[1]) == answer
    daemon.answers["release"] = {"released": "edgetpu", "changed": False}
    assert edgectl("release", "edgetpu")[1] == "edgetpu has no fault; the release changed nothing\n"


def test_a_reload_tells_what_takes_no_effect_yet_or_none_at_all(edgectl, daemon):
    daemon.answers["reload"] = {
        "changed": ["control", "pipelines.motion", "pipelines.new", "sources.old"],
        "added": ["pipelines.new"],
        "removed": ["sources.old"],
        "done": True,
        "restart": ["control"],
        "warnings": ["edged.toml: sinks.file: found no pipeline uses it"],
    }
    assert edgectl("reload")[:2] == (
        0,
        "control has changed, and takes effect when the daemon is started again\n"
        "changed pipelines.motion\n"
        "added pipelines.new\n"
        "removed sources.old\n"
        "warning: edged.toml: sinks.file: found no pipeline uses it\n",
    )
    daemon.answers["reload"] = {"changed": [], "done": True, "restart": [], "warnings": []}
    assert edgectl("reload")[1] == "nothing has changed\n"


def test_a_models_versions_are_listed_for_who_wants_to_go_back_or_forget(edgectl, daemon):
    versions = [
        {"version": "1.2", "digest": "b" * 64, "roles": ["serves"], "reason": ""},
        {"version": "1.0", "digest": "a" * 64, "roles": ["factory"], "reason": ""},
        {"version": "1.3", "digest": "c" * 64, "roles": ["rejected"], "reason": "it is too slow"},
        {"version": "1.1", "digest": "d" * 64, "roles": ["former"], "reason": ""},
        {"version": "1.4", "digest": "e" * 64, "roles": ["reverted"], "reason": "nobody confirmed it"},
        {"version": "1.5", "digest": "f" * 64, "roles": ["under way"], "reason": ""},
    ]
    model = daemon.status["models"][0] | {"accelerator": None, "pinned": True}
    daemon.answers["models"] = [model | {"versions": versions}]
    assert [line.split() for line in edgectl("models")[1].splitlines()[2:]] == [
        ["pinned:", "no", "other", "version", "is", "installed"],
        ["1.2", "b" * 12, "serves"],
        ["1.0", "a" * 12, "factory"],
        ["1.3", "c" * 12, "rejected:", "it", "is", "too", "slow"],
        ["1.1", "d" * 12, "former"],
        ["1.4", "e" * 12, "reverted:", "nobody", "confirmed", "it"],
        ["1.5", "f" * 12, "on", "trial"],
    ]
    versions[:] = [
        {"version": "1.5", "digest": "f" * 64, "roles": ["serves", "under way"], "reason": ""},
        {"version": "1.4", "digest": "e" * 64, "roles": ["active"], "reason": ""},
    ]
    assert "  serves, on probation\n" in edgectl("models")[1]
    daemon.answers["models"] = [model | {"versions": None}]
    assert edgectl("models")[1].splitlines()[-1].strip() == "the versions cannot be read from the disk"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["spool", "show", "3"], "messages are given without an action"),
        (["spool", "--all"], "messages are given without an action"),
        (["devices", "--dry-run"], "--dry-run and --restart go with allow"),
        (["devices", "allow", "--probe"], "--probe does not go with allow"),
        (["config", "check", "--origin"], "--origin goes with show"),
        (["update-model", "x.edgm", "--give-up-after", "1m"], "--give-up-after goes with --host"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(edgectl, daemon, words, complaint):
    code, output, complaints = edgectl(*words)
    assert (code, output) == (4, "")
    assert complaint in complaints


def test_metrics_are_passed_through(edgectl, daemon):
    assert edgectl("metrics") == (0, "edged_info 1\n", "")


def test_versions_with_and_without_a_daemon(edgectl, request):
    without = json.loads(edgectl("version", "--json")[1])
    assert (without["edgectl"], without["edged"]) == (__version__, None)
    assert without["python"] == platform.python_version()
    request.getfixturevalue("daemon")
    code, output, _ = edgectl("version")
    assert code == 0
    assert output.startswith(f"edgectl         {__version__}\nedged           0.1.0\n")
