"""The real daemon with a real broker: publications, answers, files on disk, and exit codes.

A single run serves all tests: a daemon with three pipelines gets two updates, a rollback, a bad update and half of
another, and is stopped; a second run without a broker keeps results on disk. With EDGED_GOLDEN_STATE=FOLDER the state
is copied to FOLDER.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from paho.mqtt.client import MQTTMessage

from edged import __version__
from edged.api import EdgedError
from tests.broker import Broker, Subscriber
from tests.bundles import write_bundle
from tests.edged_process import Edged
from tests.golden.golden import check
from tests.golden.shapes import shape
from tests.motion import bundle, config, edgectl, wrong_golden
from tests.patience import PATIENCE
from tests.plain_client import connect

PIPELINES = """
[sources.wave]
kind = "synthetic"
channels = ["value"]
units = ["mV"]
[sources.colour]
kind = "synthetic"
channels = ["c0", "c1", "c2", "c3"]
[models.amounts]
path = "{folder}/amounts"
[pipelines.anomaly]
source = "wave"
model = "anomaly"
[pipelines.amounts]
source = "colour"
model = "amounts"
[mqtt]
host = "127.0.0.1"
port = {port}
home_assistant = true
[sinks.mqtt]
kind = "mqtt"
expiry = 60
[spool]
commit_seconds = 0.01
"""

RESULTS = [f"edged/board/pipelines/{name}/result" for name in ("motion", "anomaly", "amounts")]

VARYING = {
    *("reason", "hint", "text", "refused", "last", "why", "faults"),  # prose
    *("label", "decision", "scores", "changed", "anomalous"),  # content of the last window
    *("synchronised", "measured_rate", "rate", "seconds_to_empty", "last_sent", "last_sent_ago", "oldest", "written"),
    *("loss_messages", "loss_seconds", "runtime", "processor", "boot", "boots", "client"),
    *("kernel", "celsius_before", "celsius_after", "commit"),
}
"""Keys with values that may differ from run to run: numbers that may be null, content of a window, and prose."""


class Recorded(NamedTuple):
    """Recordings of the run."""

    live: list[MQTTMessage]
    retained: dict[str, bytes]
    after_stop: dict[str, bytes]
    answers: dict[str, Any]
    codes: dict[str, int]
    state: Path
    words: dict[str, str]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("golden")
    write_bundle(
        folder / "amounts",
        name="amounts",
        labels=None,
        postprocess={"kind": "regression", "names": ["red", "green", "blue"], "units": ["g", "g", "g"]},
    )
    codes: dict[str, int] = {}
    answers: dict[str, Any] = {}
    live: list[MQTTMessage] = []
    with Broker(folder) as broker:
        daemon = Edged(folder, config(pace=200) + PIPELINES.format(folder=folder, port=broker.port))
        with Subscriber(broker.port, "#") as subscriber, daemon:
            missing = set(RESULTS)
            while missing:
                live.append(subscriber.next())
                missing.discard(live[-1].topic)
            codes["update-model"] = edgectl(daemon, "update-model", bundle(folder, "1.1.0")).code
            answers.update(_update(daemon, bundle(folder, "1.2.0")))
            codes["rollback"] = edgectl(daemon, "rollback", "motion").code
            codes["update-model, rejected before"] = edgectl(daemon, "update-model", bundle(folder, "1.2.0")).code
            codes["status, all runs"] = edgectl(daemon, "status").code
            wrong = bundle(folder, "1.4.0", files=wrong_golden())
            codes["update-model, wrong answers"] = edgectl(daemon, "update-model", wrong).code
            codes["rollback, nothing to go back to"] = edgectl(daemon, "rollback", "motion", "--to", "9.9").code
            codes["no such verb"] = edgectl(daemon, "no-such-verb").code
            answers.update(_answers(daemon))
            answers["receive-open, half sent"] = _begin(daemon, bundle(folder, "1.3.0"))
            retained = _retained(broker)
            codes["edged, stopped"] = daemon.stop()
            while live[-1].payload != b"stopped":
                live.append(subscriber.next())
        after_stop = _retained(broker)
    daemon.configure(daemon.config.read_text().replace("expiry = 60", ""))  # the stored state is older than this key
    with daemon:
        daemon.wait_for_log(" serves: ", times=2)
        while (found := daemon.call("spool"))["depth"] < 10 or found["disk"]["unsaved"]:
            pass
        codes["status, no broker"] = edgectl(daemon, "status").code
        daemon.stop()
    if kept := os.environ.get("EDGED_GOLDEN_STATE"):
        shutil.copytree(daemon.state_dir, kept, symlinks=True)
    words = {str(folder): "<folder>", f":{broker.port}": ":<port>", __version__: "<version>"}
    words[answers["status"]["boot"]] = "<boot>"
    return Recorded(live, retained, after_stop, answers, codes, daemon.state_dir, words)


def _retained(broker: Broker) -> dict[str, bytes]:
    """Return all retained messages of the broker, ended by a marker."""
    with Subscriber(broker.port, "#") as late:
        found: dict[str, bytes] = {}
        late.client.publish("end")
        while (message := late.next()).topic != "end":
            if message.retain:
                found[message.topic] = message.payload
    return found


CALLS: dict[str, dict[str, Any]] = {
    "status": {},
    "pipelines": {},
    "sources": {},
    "models": {},
    "spool": {},
    "jobs": {},
    "job": {"id": "1"},
    "reload": {},
    "spool-retry": {"numbers": "all"},
    "spool-drop": {"numbers": "all"},
    "pin": {"model": "motion", "pinned": False},
}
REFUSED: dict[str, dict[str, Any]] = {
    "release": {"accelerator": "none"},
    "forget-device": {"device": "no name"},
    "confirm": {"model": "motion"},
    "rollback": {"model": "motion", "to": "9.9"},
    "clear-rejection": {"model": "motion", "digest": "00"},
    "job": {"id": "none"},
    "no-such-verb": {},
}
STREAMS: dict[str, dict[str, Any]] = {
    "watch": {"pipeline": "motion"},
    "prove": {"model": "motion"},
    "tune": {"model": "motion", "seconds": 0.01},
}


def _answers(daemon: Edged) -> Iterator[tuple[str, Any]]:
    """Yield every verb, called with the arguments of edgectl: answer, first event or error."""
    for verb, args in CALLS.items():
        yield verb, daemon.call(verb, **args)
    for verb, args in REFUSED.items():
        with pytest.raises(EdgedError) as caught:
            daemon.call(verb, **args)
        yield f"{verb}, refused", type(caught.value).__name__
        if verb == "no-such-verb":
            yield "verbs", re.findall(r"([a-z][a-z-]*)(?:,|\Z)", caught.value.hint or caught.value.message)
    terms = {"allow_downgrade": False, "confirm_within": 0.0}
    fetch = daemon.call("fetch", url="ftp://127.0.0.1/a.edgm", model=None, version=None, **terms)
    yield "fetch", fetch
    yield "job-watch, of a fetch", list(connect(str(daemon.runtime_dir)).stream("job-watch", id=fetch["job"]))
    for verb, args in STREAMS.items():
        events = connect(str(daemon.runtime_dir)).stream(verb, **args)
        yield f"{verb}, first event", next(events)
        if verb == "tune":
            yield "tune, last event", list(events)[-1]
    lines = daemon.call("metrics")["text"].splitlines()
    samples = {re.sub(r'(?<=le=)"[^"]*"| [^ ]*$', "", line) for line in lines if not line.startswith("#")}
    yield "metrics", sorted(each for each in samples if not re.match(SOMETIMES, each))


SOMETIMES = r"edged_spool_(seconds_to_empty|commit_seconds|loss_|day_written)|edged_source_faults"
"""Metrics that appear once their value is known."""


def _announced(container: Path) -> tuple[dict[str, Any], bytes]:
    """The arguments of receive-open, and the bytes to send."""
    data = container.read_bytes()
    end = 16 + int.from_bytes(data[8:12], "little")
    manifest = data[16:end]
    named = {"name": "motion", "number": json.loads(manifest)["version"]}
    digest = hashlib.sha256(manifest).hexdigest()
    return {
        "id": hashlib.sha256(data[:end]).hexdigest(),
        "size": len(data),
        "digest": digest,
        "base": None,
        **named,
    }, data


def _update(daemon: Edged, container: Path) -> Iterator[tuple[str, Any]]:
    """Send an update as today's edgectl does, and yield the answers."""
    announced, data = _announced(container)
    chunk = base64.b64encode(data).decode()
    name = announced["id"]
    yield "receive-open", daemon.call("receive-open", allow_downgrade=False, **announced)
    yield "receive-chunk", daemon.call("receive-chunk", id=name, offset=0, data=chunk, durable=False)
    terms = {"allow_downgrade": False, "confirm_within": 0.0}
    begun = daemon.call("receive-done", id=name, origin="here", **terms)
    yield "receive-done", begun
    events = connect(str(daemon.runtime_dir)).stream(
        "job-watch", id=begun["job"], after=0.0, digest=announced["digest"]
    )
    yield "job-watch, all events", list(events)


def _begin(daemon: Edged, container: Path) -> Any:
    """Send half of an update."""
    announced, data = _announced(container)
    daemon.call("receive-open", allow_downgrade=False, **announced)
    chunk = base64.b64encode(data[: len(data) // 2]).decode()
    daemon.call("receive-chunk", id=announced["id"], offset=0, data=chunk, durable=True)
    return daemon.call("receive-open", allow_downgrade=False, **announced)


def shaped(recorded: Recorded, value: Any) -> Any:
    return shape(value, recorded.words, VARYING)


def _payload(recorded: Recorded, payload: bytes) -> Any:
    return shaped(recorded, json.loads(payload)) if payload.startswith(b"{") else payload.decode()


def test_published(recorded: Recorded):
    """Every topic, the retained payloads, and the first result of each pipeline."""
    first = {each.topic: each for each in reversed(recorded.live) if each.topic in RESULTS}
    check(
        "published",
        {
            "topics": sorted({f"{each.topic} qos {each.qos}" for each in recorded.live if each.topic != "end"}),
            "results": {topic: _payload(recorded, first[topic].payload) for topic in RESULTS},
            "properties of results": {topic: shaped(recorded, _properties(first[topic])) for topic in RESULTS},
            "retained": {topic: _payload(recorded, each) for topic, each in sorted(recorded.retained.items())},
            "retained after a stop": {
                topic: _payload(recorded, each) for topic, each in sorted(recorded.after_stop.items())
            },
        },
    )


def _properties(message: MQTTMessage) -> dict[str, Any]:
    found = message.properties.json()
    return {**found, "UserProperty": dict(found["UserProperty"])}


def test_control_socket(recorded: Recorded):
    check("control", {verb: shaped(recorded, answer) for verb, answer in recorded.answers.items()})


def test_state_on_disk(recorded: Recorded):
    """Tree, JSON documents and tables of the spool."""
    folder = recorded.state
    paths = sorted(folder.rglob("*"))
    documents = {
        str(path.relative_to(folder)): json.loads(path.read_bytes())
        for path in paths
        if path.suffix == ".json" and path.name != "manifest.json"
    }
    for document in documents.values():
        if "loads" in document:
            document["loads"] = sorted(document["loads"], key=lambda load: load["file"])[:1]
        if "measurements" in document:  # an entry for each number of threads
            document["measurements"] = document["measurements"][:1]
    with closing(sqlite3.connect(folder / "spool" / "spool.db")) as spool:
        tables = {name: " ".join(sql.split()) for name, sql in spool.execute("SELECT name, sql FROM sqlite_master")}
        pragmas = ("application_id", "user_version")
        marks = {name: spool.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas}

    def named(path: Path) -> str:
        return str(path.relative_to(folder)) + (f" -> {path.readlink()}" if path.is_symlink() else "")

    check(
        "state",
        {
            "tree": shaped(recorded, sorted(map(named, paths))),
            "documents": shaped(recorded, documents),
            "spool": tables,
            "spool's marks": {name: str(mark) for name, mark in marks.items()},
        },
    )


def test_exit_codes_of_real_commands(recorded: Recorded, tmp_path: Path):
    daemon = Edged(tmp_path, "")
    codes = {
        **recorded.codes,
        "status, no daemon": edgectl(daemon, "status").code,
        "pin, no daemon": edgectl(daemon, "pin", "motion").code,
        "config check, right": edgectl(daemon, "config", "check", "--config", daemon.config).code,
    }
    daemon.configure("[mqtt]\nhost = 1\n")
    codes["config check, wrong"] = edgectl(daemon, "config", "check", "--config", daemon.config).code
    codes["inspect, no file"] = edgectl(daemon, "inspect", tmp_path / "none.edgm").code
    codes["edged, wrong configuration"] = _edged(daemon)
    codes["edged, no such option"] = _edged(daemon, "--no-such-option")
    daemon.configure("")
    codes["edged --check, right"] = _edged(daemon, "--check")
    check("exit_codes_of_commands", {name: str(code) for name, code in codes.items()})


def _edged(daemon: Edged, *arguments: str) -> int:
    daemon.start(*arguments)
    assert daemon.process is not None
    return daemon.process.wait(PATIENCE)
