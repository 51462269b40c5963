"""Modules imported by fast programs."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edged.backends.tflite import TfliteBackend
from edged.models.proofs import FILE, Proofs
from edged.models.store import FACTORY, Store

BASELINE = """
import argparse, json, socket, sys, typing
argparse.ArgumentParser().parse_args([])
"""

ASK = """
import sys
from edged.ctl.main import main
sys.stdout = open("/dev/null", "w")
try:
    main(sys.argv[1:])
finally:
    sys.stdout = sys.__stdout__
"""

REPORT = """
import json, sys
print(json.dumps(sorted(sys.modules)))
"""


def modules_after(code, *args):
    result = subprocess.run(
        [sys.executable, "-c", code + REPORT, *args], capture_output=True, text=True, timeout=120, check=True
    )
    return set(json.loads(result.stdout))


@pytest.fixture
def runtime_dir(tmp_path):
    """Serve one request on a socket with the status of an empty configuration."""
    health = {"state": "running", "reason": "", "hint": "", "since": 0, "for": 0}
    spool = {"depth": 0, "bytes": 0, "dropped": 0, "in_flight": 0, "parked": 0, "on_disk": 0, "oldest": None}
    spool |= {"drops": {}, "parks": {}, "disk": None, "health": health}
    mqtt = {"broker": "b", "connected": True, "sent": 0, "reconnects": 0, "spool": spool, "health": health}
    mqtt |= {"last_sent": None, "last_sent_ago": None}
    status = {"device": "d", "version": "1", "boot": "b", "uptime": 1, "state": "running", "health": health}
    status |= {"clock": {"synchronised": True}, "mqtt": mqtt, "memory": {"rss_bytes": 1}}
    status |= {
        "config": {"files": [], "loaded": 0, "error": None},
        "pipelines": [],
        "sources": [],
        "models": [],
        "sinks": [],
    }

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "edged.sock"))
    listener.listen()

    def answer():
        client, _ = listener.accept()
        with client:
            client.makefile("rb").readline()
            client.sendall(json.dumps({"id": 1, "ok": status}).encode() + b"\n")

    thread = threading.Thread(target=answer)
    thread.start()
    yield tmp_path
    thread.join(120)
    listener.close()


def test_status_imports_argparse_socket_json_and_the_protocol(runtime_dir):
    loaded = modules_after(ASK, "--runtime-dir", str(runtime_dir), "status") - modules_after(BASELINE)
    assert "edged.ctl.status" in loaded
    assert {name.split(".")[0] for name in loaded} <= {"edged", "importlib", "__future__"}
    assert {name for name in loaded if name.startswith("edged")} <= {
        "edged",
        "edged.core",
        "edged.core.answers",
        "edged.core.errors",
        "edged.core.protocol",
        "edged.ctl",
        *(f"edged.ctl.{name}" for name in ("main", "client", "exit_codes", "tables", "config_paths")),
        *(f"edged.ctl.{name}" for name in ("status", "pipelines", "sources", "models", "spool")),
    }


@pytest.mark.parametrize(
    "code",
    [
        "import edged.config.load, edged.plugins",
        "import edged.app.daemon",
    ],
)
def test_runtimes_and_devices_wait_until_they_are_needed(code):
    loaded = modules_after(code)
    slow = {"ai_edge_litert", "tflite_runtime", "serial", "PIL", "systemd"}
    assert not loaded & slow


def test_the_control_plane_imports_no_packers_of_rare_updates():
    loaded = modules_after(
        "from edged.system.later import import_asyncio; import_asyncio(); import edged.app.control_plane"
    )
    assert not loaded & {"ssl", "lzma", "bz2", "shutil"}


def test_a_connection_to_a_broker_imports_no_tables_of_unicode():
    loaded = modules_after("from edged.outbox.network import reachable; reachable(('localhost', 1), 1.0)")
    assert not loaded & {"encodings.idna", "unicodedata"}


# The first result of the daemon

PROBE = """
import json, os, sys
from typing import ClassVar
from edged.api import SinkConfig

class Probe(SinkConfig, frozen=True, kw_only=True):
    blocking: ClassVar[bool] = False

    def open(self, context):
        return self

    def send(self, prediction):
        os.write(1, json.dumps(sorted(sys.modules)).encode())
        os._exit(0)

    def close(self):
        pass
"""

START = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from edged import __main__
from edged.system.later import import_msgspec
import_msgspec()
from edged import plugins
plugins.BUILT_IN["sinks"]["probe"] = "probe:Probe"
import edged.app.daemon
edged.app.daemon.FIRST_RESULT_SECONDS = 600  # nothing more is imported until the first result
__main__.main()
"""

CONFIG = """
[mqtt]
host = "127.0.0.1"
[sources.wrist]
kind = "replay"
path = "{recording}"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10
pace = "fast"
[sinks.probe]
kind = "probe"
[pipelines.motion]
source = "wrist"
model = "motion"
sinks = ["mqtt", "probe"]
"""

NEEDED = {
    "": ("__main__", "api", "plugins"),
    "acceleration": ("cpu_processes", "placement"),
    "app": (
        *("announced", "build_parts", "daemon", "data_plane", "flow_swap", "model_loader", "presence", "reload"),
        *("serving", "state", "state_lock", "state_topics", "status"),
    ),
    "backends": ("delegates", "tflite"),
    "config": ("check", "load", "options"),
    "control": ("clock", "control_socket", "systemd"),
    "models": ("atomic_files", "bundle", "npy", "proofs", "selftest", "store", "tuning_records"),
    "sinks": ("mqtt",),
    "sources": ("columns", "replay"),
    "transfer": ("options",),
}
"""The modules of the daemon before the first result, but for core, flow, outbox and system."""

WANTED_LATER = {
    *("asyncio", "paho", "ssl", "hashlib", "http.client", "urllib.request", "email", "subprocess", "tempfile"),
    *("shutil", "bz2", "lzma", "difflib", "statistics", "secrets", "csv", "typing_extensions"),
    *("concurrent.futures", "importlib.metadata"),
    *("edged.updates", "edged.app.control_plane", "edged.app.metrics", "edged.models.trial"),
    *("edged.core.answers", "edged.core.derived", "edged.core.discovery"),
    *("edged.core.tuning", "edged.core.verdict", "edged.transfer.http_fetch"),
    *("edged.outbox.client", "edged.outbox.connector", "edged.outbox.link", "edged.outbox.session"),
}


@pytest.fixture
def proven(tmp_path) -> Path:
    """Return a state folder in which the model motion is known to be safe."""
    asyncio.run(Proofs(tmp_path / "state" / FILE).remember(Store(FACTORY).find("motion"), TfliteBackend()))
    return tmp_path / "state"


def test_a_daemon_imports_little_before_the_first_result(tmp_path, proven):
    (tmp_path / "probe.py").write_text(PROBE)
    recording = Path(__file__).parents[2] / "demo" / "recording.csv"
    (tmp_path / "edged.toml").write_text(CONFIG.format(recording=recording))
    options = ["--config", "edged.toml", "--state-dir", proven, "--runtime-dir", tmp_path / "run"]
    result = subprocess.run(
        [sys.executable, "-c", START, tmp_path, *options], cwd=tmp_path, capture_output=True, timeout=120, check=True
    )
    loaded = set(json.loads(result.stdout))
    bare = modules_after("import numpy, ai_edge_litert.interpreter")
    assert loaded & (WANTED_LATER - bare) == set()
    parts = {part for part in NEEDED if part}
    ours = {tuple(name.split(".")[1:]) for name in loaded if name.startswith("edged.")}
    assert {(part, names[0]) for part, *names in ours if part in parts and names} == {
        (part, name) for part in parts for name in NEEDED[part]
    }
    assert {part for part, *_ in ours} == {*parts, *NEEDED[""], "core", "flow", "outbox", "system"}
