"""Modules imported by fast programs."""

import json
import socket
import subprocess
import sys
import threading

import pytest

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
