"""Further ways of new models into the real daemon, and of the change from a version to the next."""

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from signal import SIGKILL

import pytest

from edged.transfer.partial_files import PartialFiles
from tests.broker import Broker, Subscriber
from tests.edged_process import Edged
from tests.motion import (
    FACTORY,
    ROOT,
    Call,
    bundle,
    config,
    contents,
    edgectl,
    incoming,
    ledger,
    litter,
    long_recording,
    manifest,
    serving,
)
from tests.web_server import WebServer, cut_after, silence

DONE, REFUSED, UNFIT, ROLLED_BACK = 0, 6, 7, 8

NARROW = """
import os
import time
from edged.api import ModelError
from edged.backends.tflite import TfliteBackend

loaded = set()

class Narrow:
    def __init__(self, runner):
        self._runner = runner
        loaded.add(self)
    def close(self):
        loaded.discard(self)
        self._runner.close()
    def __getattr__(self, name):
        return getattr(self._runner, name)

class NarrowBackend(TfliteBackend, frozen=True, kw_only=True):
    "A device that holds one model at a time."
    def load(self, file, *, signature=None):
        if loaded:
            raise ModelError("the device is taken")
        if (file.parent / "refuse").exists() and "EDGED_CHILD" not in os.environ:
            time.sleep(0.5)  # in which windows gather
            raise ModelError("not on this board")
        return Narrow(TfliteBackend.load(self, file, signature=signature))
"""


@pytest.fixture
def narrow(install_plugin, edged, tmp_path) -> Callable[..., Edged]:
    """Start a daemon with this `swap`, on a device that holds a single model, which serves."""
    install_plugin("narrow", NARROW, family="backends", narrow="narrow:NarrowBackend")
    site = sys.path[0]  # added by the fixture

    def start(swap: str, more: str = "", instead: str = "") -> Edged:
        table = f'[models.motion]\nbackend = "narrow"\nswap = "{swap}"\n'
        python_path = os.pathsep.join(filter(None, [instead, site]))
        text = config(pace=1000, recording=long_recording(tmp_path)) + table + more
        return edged(text, PYTHONPATH=python_path, PYTHONSAFEPATH="1" if instead else "")

    return start


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


def with_mqtt(broker: Broker) -> str:
    return f'[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n'


def another_model(folder: Path) -> Path:
    """Return a motion model with other bytes that computes the same."""
    path = folder / "retrained.tflite"
    path.write_bytes((FACTORY / "model.tflite").read_bytes() + bytes(64))
    return path


# Bare files


def test_a_bare_file_serves_with_the_contract_of_what_it_replaces(tmp_path: Path, edged):
    daemon = edged()
    assert edgectl(daemon, "update-model", bundle(tmp_path, "1.1.0")).code == DONE  # with a short probation
    model = another_model(tmp_path)
    code, output = edgectl(daemon, "update-model", model, "--model", "motion")
    assert code == DONE, output
    assert "version 1.1.1 inherits the contract and the probation of 1.1.0, but no golden samples" in output
    assert serving(daemon) == "1.1.1"
    code, output = edgectl(daemon, "update-model", model, "--model", "motion")
    assert (code, "this motion is what serves already" in output) == (DONE, True)
    with WebServer(model.read_bytes() + bytes(64)) as server:
        code, output = edgectl(daemon, "update-model", server.url("/motion.tflite"), "--model", "motion")
    assert code == DONE, output
    assert serving(daemon) == "1.1.2"
    assert litter(daemon) == incoming(daemon) == set()


def test_a_bare_file_that_a_message_wishes_for_serves_as_the_version_it_says(tmp_path: Path, broker: Broker, edged):
    with (
        WebServer(another_model(tmp_path).read_bytes()) as server,
        Subscriber(broker.port, "edged/board/models/motion/update") as subscriber,
    ):
        origins = f'[updates.fetch]\norigins = ["{server.url("")}"]\n'
        daemon = edged(config() + with_mqtt(broker) + origins)
        assert edgectl(daemon, "update-model", bundle(tmp_path, "1.1.0")).code == DONE  # with a short probation
        wish = json.dumps({"url": server.url("/retrained.tflite"), "version": "1.4.0"})
        subscriber.client.publish("edged/board/models/motion/desired", wish, qos=1)
        ended = subscriber.next(lambda message: b"1.4.0 is confirmed" in message.payload)
    assert json.loads(ended.payload)["version"] == "1.4.0"
    assert serving(daemon) == "1.4.0"


def test_a_bare_file_that_is_another_model_is_refused(tmp_path: Path, edged):
    daemon = edged()
    anomaly = FACTORY.parents[1] / "anomaly" / "1.0.0" / "model.tflite"
    code, output = edgectl(daemon, "update-model", anomaly, "--model", "motion")
    assert code == REFUSED
    assert "input 0, " in output
    assert serving(daemon) == "1.0.0"
    assert litter(daemon) == set()


def test_a_bare_file_is_refused_where_signatures_are_asked_for_even_since_a_reload(tmp_path: Path, edged):
    daemon = edged()
    (tmp_path / "signers").write_text("")
    daemon.configure(config() + f'[updates]\nrequire_signature = true\nallowed_signers = "{tmp_path}/signers"\n')
    assert edgectl(daemon, "reload").code == DONE
    code, output = edgectl(daemon, "update-model", another_model(tmp_path), "--model", "motion")
    assert code == REFUSED
    assert "a bare model file cannot be signed, and only signed versions may come in here" in output
    assert "edgectl sign" in output
    assert edgectl(daemon, "update-model", bundle(tmp_path, "1.1.0")).code == REFUSED


# Handover


def test_where_two_do_not_fit_an_overlap_fails_and_a_handover_does_not(tmp_path: Path, narrow):
    daemon = narrow("overlap")
    code, output = edgectl(daemon, "update-model", bundle(tmp_path, "1.1.0", backend="narrow"))
    assert (code, "the device is taken" in output) == (UNFIT, True), output
    assert serving(daemon) == "1.0.0"


def test_a_handover_loses_no_window(tmp_path: Path, broker: Broker, narrow):
    with Subscriber(broker.port, "edged/board/pipelines/motion/result") as subscriber:
        daemon = narrow("handover", with_mqtt(broker))
        update = Call(daemon, "update-model", bundle(tmp_path, "1.1.0", backend="narrow"))
        heard = []
        while [each["version"] for each in heard].count("1.1.0") < 100:
            heard.append(json.loads(subscriber.next().payload))
        code, output = update.end()
    assert code == DONE, output
    assert [version for version, _ in groupby(each["version"] for each in heard)] == ["1.0.0", "1.1.0"]
    assert [each["seq"] for each in heard] == list(range(len(heard)))
    assert daemon.call("pipelines")[0]["dropped"] == 0


def test_what_was_let_go_of_is_loaded_again_where_the_next_does_not_load(tmp_path: Path, narrow):
    daemon = narrow("handover")
    bad = bundle(tmp_path, "1.1.0", files={"refuse": b"!"}, backend="narrow")
    code, output = edgectl(daemon, "update-model", bad)
    assert (code, "not on this board" in output) == (UNFIT, True), output
    assert "not on this board; version 1.0.0 serves" in output
    assert serving(daemon) == "1.0.0"
    assert daemon.call("pipelines")[0]["dropped"] == 0
    assert litter(daemon) == set()


def test_a_handover_to_other_windows_goes_on_counting(tmp_path: Path, broker: Broker, narrow):
    window = {**json.loads((FACTORY / "manifest.json").read_bytes())["window"], "hop": 5}
    with Subscriber(broker.port, "edged/board/pipelines/motion/result") as subscriber:
        daemon = narrow("handover", with_mqtt(broker))
        update = Call(daemon, "update-model", bundle(tmp_path, "1.1.0", backend="narrow", window=window))
        heard = []
        while [each["version"] for each in heard].count("1.1.0") < 100:
            heard.append(json.loads(subscriber.next().payload))
        assert update.end().code == DONE
    assert [each["seq"] for each in heard] == sorted({each["seq"] for each in heard})


def test_other_windows_that_gathered_for_a_version_that_does_not_load_are_those_of_the_one_before(
    tmp_path: Path, broker: Broker, narrow
):
    window = {**json.loads((FACTORY / "manifest.json").read_bytes())["window"], "hop": 5}
    bad = bundle(tmp_path, "1.1.0", files={"refuse": b"!"}, backend="narrow", window=window)
    with Subscriber(broker.port, "edged/board/pipelines/motion/result") as subscriber:
        daemon = narrow("handover", with_mqtt(broker))
        assert edgectl(daemon, "update-model", bad).code == UNFIT
        last = daemon.call("pipelines")[0]["predictions"] + 100
        heard = [json.loads(subscriber.next().payload)["seq"] for _ in range(last)]
    assert heard == list(range(last))
    assert daemon.call("pipelines")[0]["dropped"] == 0


def test_what_needs_the_memory_of_the_one_before_is_handed_over_to(tmp_path: Path, narrow):
    needs = {"memory_bytes": 1 << 39}
    site = tmp_path / "site"
    factory = site / "firmware_models" / "motion" / "1.0.0"
    shutil.copytree(FACTORY, factory)
    (factory / "manifest.json").write_text(json.dumps(manifest("1.0.0", contents(), needs=needs)))
    (site / "edged").symlink_to(ROOT / "edged")
    daemon = narrow("auto", instead=str(site))
    code, output = edgectl(daemon, "update-model", bundle(tmp_path, "1.1.0", backend="narrow", needs=needs))
    assert code == DONE, output
    daemon.wait_for_log("version 1.0.0 makes room before the next is loaded")
    assert serving(daemon) == "1.1.0"
    needs = {"memory_bytes": 1 << 40}
    code, output = edgectl(daemon, "update-model", bundle(tmp_path, "1.2.0", backend="narrow", needs=needs))
    assert (code, "bytes of memory; " in output) == (REFUSED, True), output
    assert serving(daemon) == "1.1.0"


# Reference statistics


def test_a_version_whose_labels_are_far_off_their_usual_shares_is_taken_back(tmp_path: Path, edged):
    daemon = edged(config(pace=1000))
    channels = {name: [1.0] * 6 for name in ("mean", "std", "min", "max")}
    usual = {"windows": 100, **channels, "shares": {"standing": 1.0}}
    probation = {"seconds": 1.0, "windows": 20, "max_label_shift": 0.1}
    code, output = edgectl(daemon, "update-model", bundle(tmp_path, "1.1.0", reference=usual, probation=probation))
    assert (code, "off their usual shares, and 10% are allowed" in output) == (ROLLED_BACK, True), output
    assert serving(daemon) == "1.0.0"


# The configuration, meanwhile

HANGING = """
import os, time
from edged.backends.tflite import TfliteBackend

class HangingBackend(TfliteBackend, frozen=True, kw_only=True):
    "Takes its time on trial."
    def load(self, file, *, signature=None):
        time.sleep(15 if "EDGED_CHILD" in os.environ and file.parent.name != "1.0.0" else 0)
        return TfliteBackend.load(self, file, signature=signature)
"""


def test_a_reload_waits_for_an_update_only_where_that_is_in_its_way(tmp_path: Path, install_plugin, edged):
    install_plugin("hanging", HANGING, family="backends", hanging="hanging:HangingBackend")
    table = '[models.motion]\nbackend = "hanging"\n'
    daemon = edged(config() + table, PYTHONPATH=sys.path[0])
    update = Call(daemon, "update-model", bundle(tmp_path, "1.1.0", backend="hanging", limits={"seconds": 15.0}))
    daemon.wait_for_log("version 1.1.0 is on trial")
    daemon.configure(config() + table + '[log]\nlevel = "debug"\n')
    assert daemon.call("reload") == {
        "changed": ["log"], "added": [], "removed": [], "done": True, "restart": [], "warnings": [],
    }  # fmt: skip
    daemon.configure(config().replace("queue = 1000", "queue = 500") + table)
    assert "the reload waits for the end of an update" in edgectl(daemon, "reload").output
    assert update.end().code == UNFIT
    daemon.wait_for_log("reloaded: log, pipelines.motion")
    assert serving(daemon) == "1.0.0"


def test_a_url_is_looked_at_soon_after_it_is_configured(tmp_path: Path, broker: Broker, edged):
    new = bundle(tmp_path, "1.1.0", files={"notes.bin": bytes(range(256)) * 1000})
    with (
        WebServer(new.read_bytes()) as server,
        Subscriber(broker.port, "edged/board/models/motion/update") as subscriber,
    ):
        daemon = edged(config() + with_mqtt(broker))
        looked_at = f'[models.motion]\nurl = "{server.url()}"\n[updates]\ncheck_every = 10\n'
        daemon.configure(config() + with_mqtt(broker) + looked_at)
        assert edgectl(daemon, "reload").code == DONE
        ended = json.loads(subscriber.next(lambda message: b"update.ended" in message.payload).payload)
    assert (ended["version"], ended["outcome"], ended["phase"]) == ("1.1.0", "done", "")
    assert ended["digest"] == ledger(daemon).active
    assert ended["text"] == "motion: version 1.1.0 is confirmed; version 1.1.0 serves"


def test_of_what_could_not_serve_here_only_the_head_is_fetched(tmp_path: Path, broker: Broker, edged):
    window = {**json.loads((FACTORY / "manifest.json").read_bytes())["window"], "rate": 5000.0}
    new = bundle(tmp_path, "1.1.0", files={"notes.bin": bytes(range(256)) * 4000}, window=window)
    with (
        WebServer(new.read_bytes()) as server,
        Subscriber(broker.port, "edged/board/models/motion/update") as subscriber,
    ):
        server.orders.append(cut_after(200_000))
        edged(config() + with_mqtt(broker) + f'[models.motion]\nurl = "{server.url()}"\n[updates]\ncheck_every = 10\n')
        ended = json.loads(subscriber.next().payload)
        assert len(server.requests) == 1
    assert (ended["version"], ended["outcome"]) == ("1.1.0", "refused")
    assert "5000" in ended["text"]


# Restarts


def test_a_fetch_goes_on_by_itself_after_a_restart(tmp_path: Path, edged):
    daemon = edged()
    new = bundle(tmp_path, "1.1.0", files={"notes.bin": bytes(range(256)) * 4000})
    with WebServer(new.read_bytes()) as server:
        stop, asked_again = threading.Event(), threading.Event()
        server.orders += [cut_after(500_000), silence(stop, asked_again)]
        daemon.call("fetch", url=server.url("/motion.edgm?token=secret"), allow_downgrade=True)
        assert asked_again.wait(120)
        assert daemon.stop(SIGKILL) < 0
        stop.set()
        daemon.start()
        daemon.wait_for_log("version 1.1.0 is confirmed")
        assert server.requests[-1].start > 0
    assert incoming(daemon) == set()
    assert serving(daemon) == "1.1.0"


def test_what_a_kill_left_of_a_transfer_that_is_installed_is_thrown_away_at_start(tmp_path: Path, edged):
    daemon = edged()
    new = bundle(tmp_path, "1.1.0")
    assert edgectl(daemon, "update-model", new).code == DONE
    assert daemon.stop() == 0
    with PartialFiles(daemon.state_dir / "incoming", 64 << 20, 4).open("f" * 64) as transfer:
        transfer.append(new.read_bytes())
    half = bundle(tmp_path, "1.2.0").read_bytes()
    with PartialFiles(daemon.state_dir / "incoming", 64 << 20, 4).open("e" * 64) as transfer:
        transfer.append(half[: len(half) // 2])
    daemon.log.clear()
    daemon.start()
    daemon.wait_for_log(" serves: ")
    assert incoming(daemon) == {"e" * 64}
