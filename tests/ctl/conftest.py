"""The real edgectl as a child process, and the real control socket with canned answers."""

import asyncio
import subprocess
import sys
import threading

import pytest

from edged.control.control_socket import ControlSocket
from edged.control.server import Server
from edged.core.errors import ConfigError, ControlError


def health(state, reason="", hint=""):
    return {"state": state, "reason": reason, "hint": hint, "since": 1_700_000_000.0, "for": 3723.0}


RESULT = {
    "schema": "edged.result/1",
    "kind": "classification",
    "device": "kitchen",
    "boot": "b00t",
    "pipeline": "motion",
    "model": "motion",
    "version": "1.2",
    "seq": 41,
    "id": "b00t:motion:41",
    "time": 1_700_000_000.25,
    "start": 1_699_999_998.25,
    "synchronised": True,
    "latency": 0.00131,
    "inference": 0.0004,
    "label": "walking",
    "score": 0.91234,
    "scores": {"walking": 0.91234, "running": 0.05},
    "decision": "walking",
    "changed": False,
}

RUNNER = {
    "backend": "tflite",
    "runtime": "litert 2.3.0",
    "delegate": "edgetpu",
    "threads": 1,
    "nodes": 12,
    "delegated": 9,
}

PIPELINE = {
    "name": "motion",
    "source": "imu",
    "model": "motion",
    "version": "1.2",
    "sinks": ["mqtt", "log"],
    "health": health("running"),
    "windows": 42,
    "predictions": 41,
    "dropped": 1,
    "errors": 0,
    "latency": {"p50": 0.00131, "p90": 0.002, "p99": 0.0047},
    "inference": {"p50": 0.0004, "p90": 0.0005, "p99": 0.0009},
    "runner": RUNNER,
    "last": RESULT,
}

SOURCE = {
    "name": "imu",
    "kind": "serial",
    "channels": ["ax", "ay"],
    "rate": 100.0,
    "measured_rate": 99.87654,
    "samples": 4200,
    "lost": 3,
    "reconnects": 1,
    "faults": {"wrong number of columns": 2},
    "health": health("running"),
}

MODEL = {
    "name": "motion",
    "version": "1.2",
    "origin": "factory",
    "pipelines": ["motion"],
    "digest": "d" * 64,
    "bytes": 52_345,
    "runner": RUNNER,
    "proof": {"samples": 8, "worst": 1.0},
    "choice": "",
    "accelerator": {
        "name": "edgetpu",
        "state": "accelerated",
        "reason": "",
        "hint": "",
        "since": 1_700_000_000.0,
        "for": 3723.0,
        "off_processor": 0.9321,
    },
    "isolated": False,
    "health": health("running"),
}

DISK = {
    "path": "/var/lib/edged/spool.db",
    "file_bytes": 4096,
    "written": 1_000_000,
    "daily_bytes": 0,
    "unsaved": 2,
    "unsaved_seconds": 0.5,
    "loss_seconds": 6.0,
    "loss_messages": 60,
    "late": 0,
    "commit": {"p50": 0.004, "p90": 0.01, "p99": 0.02},
    "set_aside": [],
}

SPOOL = {
    "depth": 2,
    "in_flight": 1,
    "on_disk": 0,
    "bytes": 266,
    "oldest": 0.5,
    "dropped": 0,
    "parked": 0,
    "drops": {},
    "parks": {},
    "disk": DISK,
    "health": health("running"),
}

STATUS = {
    "device": "kitchen",
    "version": "0.1.0",
    "boot": "b00t",
    "uptime": 93_784.0,
    "state": "running",
    "health": health("running"),
    "clock": {"synchronised": True},
    "mqtt": {
        "broker": "mqtt://broker:1883",
        "connected": True,
        "sent": 41,
        "last_sent": 1_700_000_000.25,
        "last_sent_ago": 4.0,
        "reconnects": 0,
        "spool": SPOOL,
        "health": health("running"),
    },
    "pipelines": [PIPELINE],
    "sources": [SOURCE],
    "models": [MODEL],
    "sinks": [{"name": "log", "sent": 41, "failed": 0, "dropped": 0, "health": health("running")}],
    "config": {"files": ["/etc/edged/edged.toml"], "loaded": 1_700_000_000.0, "error": None},
    "memory": {"rss_bytes": 54_300_000},
}


class FakeOperations:
    """Operations of a daemon with answers set by the test, and a record of requests."""

    calls = (
        *("status", "pipelines", "sources", "models", "metrics"),
        *("reload", "release", "spool", "spool-retry", "spool-drop"),
    )
    streams = ("watch", "prove", "tune")
    changes = ("reload", "release")

    def __init__(self):
        self.status = STATUS
        self.records = [RESULT]
        self.answers = {}
        self.asked = []

    async def call(self, verb, args):
        self.asked.append((verb, args))
        match verb:
            case "status":
                return self.status
            case "metrics":
                return {"text": "edged_info 1\n"}
            case "reload" if "reload" not in self.answers:
                raise ConfigError("the new configuration is wrong", hint="edgectl config check")
            case _:
                return self.answers[verb] if verb in self.answers else self.status[verb]

    async def stream(self, verb, args):
        self.asked.append((verb, args))
        if args.get("pipeline") not in (None, "motion"):
            raise ControlError("there is no pipeline 'door'", hint="there are: motion")
        for record in self.records:
            yield record
        if verb == "watch":
            await asyncio.Event().wait()


@pytest.fixture
def runtime_dir(tmp_path):
    return tmp_path / "edged"


@pytest.fixture
def daemon(runtime_dir):
    """A daemon's control socket, served from a thread."""
    operations = FakeOperations()
    started, done = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve():
        server = Server(ControlSocket(runtime_dir / "edged.sock"), operations)
        await server.start()
        started.set()
        await done.wait()
        await server.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(120)
    yield operations
    loop.call_soon_threadsafe(done.set)
    thread.join(120)
    loop.close()


@pytest.fixture
def command(runtime_dir):
    """Return a function that starts edgectl; keywords extend the environment."""
    environ = {"EDGED_RUNTIME_DIR": str(runtime_dir), "PYTHONUTF8": "1", "TZ": "UTC"}

    def start(*args, stdout=subprocess.PIPE, **more):
        code = "import sys; from edged.ctl.main import main; sys.exit(main())"
        return subprocess.Popen(
            [sys.executable, "-c", code, *args],
            env=environ | more,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    return start


@pytest.fixture
def edgectl(command):
    """Return a function that runs edgectl and returns exit code, output and error output."""

    def run(*args):
        process = command(*args)
        output, complaints = process.communicate(timeout=120)
        return process.returncode, output, complaints

    return run
