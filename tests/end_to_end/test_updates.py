"""New models for the real daemon: installation, refusal, and rollback."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests import signing
from tests.broker import Broker, Subscriber
from tests.edged_process import Edged
from tests.flaky_proxy import FlakyProxy
from tests.motion import (
    FACTORY,
    RECORDING,
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
    seal,
    serving,
    shelf,
    wrong_golden,
)
from tests.plain_client import connect
from tests.web_server import WebServer

DONE, FAILED, REFUSED, UNFIT, ROLLED_BACK = 0, 4, 6, 7, 8

SHAKY = """
import os, time
from edged.backends.tflite import TfliteBackend

class ShakyBackend(TfliteBackend, frozen=True, kw_only=True):
    "Does what the files beside the model say."
    def load(self, file, *, signature=None):
        said = {each.name for each in file.parent.iterdir()}
        on_trial = "EDGED_CHILD" in os.environ
        if "crash" in said or ("crash-daemon" in said and not on_trial):
            os.abort()
        if "hang" in said:
            time.sleep(600)
        if "eat" in said:
            bytearray(2 << 30)
        if "refuse-daemon" in said and not on_trial:
            raise RuntimeError("not on this board")
        return TfliteBackend.load(self, file, signature=signature)
"""
SHAKY_MODEL = '[models.motion]\nbackend = "shaky"\n'


@pytest.fixture
def shaky(install_plugin, edged) -> Callable[[], Edged]:
    install_plugin("shaky", SHAKY, family="backends", shaky="shaky:ShakyBackend")
    site = sys.path[0]  # added by the fixture
    return lambda: edged(config() + SHAKY_MODEL, PYTHONPATH=site)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


def with_mqtt(text: str, broker: Broker) -> str:
    return f'{text}[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n'


def wait_for(daemon: Edged, version: str) -> None:
    """Until this version answers."""
    for result in connect(str(daemon.runtime_dir)).stream("watch"):
        if result["version"] == version:
            return


def restart(daemon: Edged) -> None:
    assert daemon.stop() == 0
    daemon.log.clear()
    daemon.start()
    daemon.wait_for_log(" serves: ")


def test_an_update_under_load_loses_no_window(tmp_path: Path, broker: Broker, edged):
    (tmp_path / "new").mkdir()
    for name, content in contents().items():
        (tmp_path / "new" / name).write_bytes(content)
    (tmp_path / "new" / "manifest.json").write_text(json.dumps(manifest("1.1.0", contents())))
    with Subscriber(broker.port, "edged/board/pipelines/motion/result") as subscriber:
        daemon = edged(with_mqtt(config(pace=1000, recording=long_recording(tmp_path)), broker))
        packed = edgectl(daemon, "pack", tmp_path / "new", "--out", tmp_path / "new.edgm")
        assert packed.code == DONE, packed.output
        update = Call(daemon, "update-model", tmp_path / "new.edgm")
        heard = []
        while [each["version"] for each in heard].count("1.1.0") < 100:
            heard.append(json.loads(subscriber.next().payload))
    assert [each["seq"] for each in heard] == list(range(len(heard)))
    assert [version for version, _ in groupby(each["version"] for each in heard)] == ["1.0.0", "1.1.0"]
    code, output = update.end()
    assert code == DONE
    assert output.endswith("motion: version 1.1.0 is confirmed; version 1.1.0 serves\n")
    assert daemon.call("pipelines")[0]["dropped"] == 0
    assert ledger(daemon).floor == "1.1.0"
    assert litter(daemon) == set()


def test_what_answers_wrongly_is_refused_and_remembered(tmp_path: Path, edged):
    daemon = edged()
    wrong = bundle(tmp_path, "1.1.0", files=wrong_golden())
    code, output = edgectl(daemon, "update-model", wrong)
    assert code == UNFIT
    assert "golden sample 0" in output
    assert output.endswith("version 1.0.0 serves\n  -> another version of the runtime, or of the model, is needed\n")
    code, output = edgectl(daemon, "update-model", wrong)
    assert code == REFUSED
    assert "motion 1.1.0 was rejected on this board" in output
    assert "on trial" not in output
    [digest] = ledger(daemon).rejected
    assert edgectl(daemon, "forget", "motion", digest[:12]).code == DONE
    assert edgectl(daemon, "update-model", wrong).code == UNFIT
    assert serving(daemon) == "1.0.0"
    assert litter(daemon) == set()


def test_containers_that_are_damaged_leave_nothing_behind(tmp_path: Path, edged):
    daemon = edged()
    sound = bundle(tmp_path, "1.1.0").read_bytes()
    cut, flipped = sound[:-1], sound[:-100] + b"flip" + sound[-96:]
    for damaged in (cut, sound + b"x", b"edgx" + sound[4:], flipped):
        (tmp_path / "damaged.edgm").write_bytes(damaged)
        assert edgectl(daemon, "update-model", tmp_path / "damaged.edgm").code in (FAILED, REFUSED)
    assert incoming(daemon) == set()
    for damaged in (cut, flipped):
        with WebServer(damaged) as server:
            said = edgectl(daemon, "update-model", server.url())
        assert said.code == REFUSED, said.output
    assert serving(daemon) == "1.0.0"
    assert litter(daemon) == set()


@pytest.mark.parametrize(
    ("trait", "reason"),
    [
        ("crash", "the self-test crashed while loading the model: SIGABRT"),
        ("hang", "the self-test did not end within 2"),
        ("eat", "the process ran out of memory"),
        ("refuse-daemon", "RuntimeError: not on this board"),
    ],
)
def test_what_does_not_work_here_is_out_before_it_serves(trait: str, reason: str, tmp_path: Path, shaky):
    daemon = shaky()
    limits = {"seconds": 2.0 if trait == "hang" else 30.0}
    bad = bundle(tmp_path, "1.1.0", files={trait: b"!"}, backend="shaky", limits=limits)
    code, output = edgectl(daemon, "update-model", bad)
    assert (code, reason in output) == (UNFIT, True), output
    assert serving(daemon) == "1.0.0"
    assert len(ledger(daemon).rejected) == 1
    assert litter(daemon) == set()


def test_what_takes_the_daemon_down_has_three_runs_to_do_so(tmp_path: Path, shaky):
    daemon = shaky()
    bad = bundle(tmp_path, "1.1.0", files={"crash-daemon": b"!"}, backend="shaky")
    edgectl(daemon, "update-model", bad)
    assert daemon.process.wait(120) < 0
    for _ in range(2):
        daemon.start()
        assert daemon.process.wait(120) < 0
    daemon.log.clear()
    daemon.start()
    daemon.wait_for_log("the daemon or the board went down 3 times during its probation")
    assert serving(daemon) == "1.0.0"
    assert litter(daemon) == set()


def test_versions_only_go_up_unless_one_says_otherwise(tmp_path: Path, edged):
    daemon = edged()
    assert edgectl(daemon, "update-model", bundle(tmp_path, "2.0.0")).code == DONE
    older = bundle(tmp_path, "1.5.0")
    code, output = edgectl(daemon, "update-model", older)
    assert code == REFUSED
    assert "motion 1.5.0 is older than 2.0.0, and versions only go up" in output
    assert edgectl(daemon, "update-model", older, "--allow-downgrade").code == DONE
    said = daemon.wait_for_log(" is a downgrade, allowed by user ")
    assert f"motion: version 1.5.0 from {older} " in said
    assert serving(daemon) == "1.5.0"
    assert ledger(daemon).floor == "2.0.0"


def test_only_what_the_right_people_signed_comes_in(tmp_path: Path, edged):
    key = signing.make_key(tmp_path, "maker")
    stranger = signing.make_key(tmp_path, "stranger")
    (tmp_path / "signers").write_text(f'maker@example.org namespaces="edged-bundle" {signing.public(key)}\n')
    policy = f'[updates]\nrequire_signature = true\nallowed_signers = "{tmp_path}/signers"\n'
    daemon = edged(config() + policy)
    new = bundle(tmp_path, "1.1.0")
    code, output = edgectl(daemon, "update-model", new)
    assert (code, "not signed" in output or "no signature" in output) == (REFUSED, True), output
    assert edgectl(daemon, "sign", new, "--key", stranger).code == DONE
    assert edgectl(daemon, "update-model", new).code == REFUSED
    other_use = bundle(tmp_path, "1.2.0", files={"note": b"!"})
    seal(other_use, key, namespace="git")
    assert edgectl(daemon, "update-model", other_use).code == REFUSED
    new = bundle(tmp_path, "1.1.0")
    assert edgectl(daemon, "sign", new, "--key", key).code == DONE
    code, output = edgectl(daemon, "update-model", new)
    assert code == DONE, output
    assert "version 1.1.0 is signed by maker@example.org" in output
    assert litter(daemon) == set()


def test_what_nobody_confirms_goes_and_what_somebody_confirms_stays(tmp_path: Path, edged):
    daemon = edged()
    code, output = edgectl(daemon, "update-model", bundle(tmp_path, "1.1.0"), "--confirm-within", "2")
    assert code == ROLLED_BACK
    assert "no operator confirmed it within 2 s; version 1.0.0 serves" in output
    assert serving(daemon) == "1.0.0"
    assert ledger(daemon).floor == "0"
    update = Call(daemon, "update-model", bundle(tmp_path, "1.1.0"), "--confirm-within", "60")
    wait_for(daemon, "1.1.0")
    assert edgectl(daemon, "confirm", "motion").code == DONE
    assert update.end().code == DONE
    assert serving(daemon) == "1.1.0"


def test_an_operator_goes_back_and_keeps_what_there_is(tmp_path: Path, edged):
    daemon = edged()
    for version in ("1.1.0", "1.2.0"):
        assert edgectl(daemon, "update-model", bundle(tmp_path, version)).code == DONE
    assert edgectl(daemon, "rollback", "motion").output == "motion is rolled back; 1.1.0 serves\n"
    assert serving(daemon) == "1.1.0"
    code, output = edgectl(daemon, "update-model", tmp_path / "motion-1.2.0.edgm")
    assert (code, "an operator rolled it back" in output) == (REFUSED, True)
    assert edgectl(daemon, "pin", "motion").code == DONE
    newer = bundle(tmp_path, "1.3.0")
    code, output = edgectl(daemon, "update-model", newer)
    assert (code, "motion is pinned to 1.1.0" in output) == (REFUSED, True)
    assert edgectl(daemon, "rollback", "motion").code != DONE
    restart(daemon)
    assert serving(daemon) == "1.1.0"
    assert edgectl(daemon, "pin", "motion", "--off").code == DONE
    assert edgectl(daemon, "update-model", newer).code == DONE
    assert serving(daemon) == "1.3.0"
    assert litter(daemon) == set()


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"windows": 40, "constant_windows": 30}, "the output was the same for "),
        ({"windows": 10, "max_latency_p99": 1e-6}, "the latency is "),
        ({"windows": 10, "max_decisions_per_hour": 0}, " decisions were made in "),
    ],
)
def test_what_misbehaves_as_it_serves_is_taken_back(
    limits: dict[str, Any], reason: str, tmp_path: Path, broker: Broker, edged
):
    rows = RECORDING.read_text().splitlines()
    still = "constant_windows" in limits
    (tmp_path / "sensor.csv").write_text("\n".join([rows[0], *([rows[1]] * 2000 if still else rows[1:])]) + "\n")
    bad = bundle(tmp_path, "1.1.0", probation={"seconds": 2.0, **limits})
    with Subscriber(broker.port, "edged/board/models/motion/update") as subscriber:
        daemon = edged(with_mqtt(config(pace=400, recording=tmp_path / "sensor.csv"), broker))
        wait_for(daemon, "1.0.0")
        code, output = edgectl(daemon, "update-model", bad)
        assert (code, reason in output) == (ROLLED_BACK, True), output
        assert output.endswith("; version 1.0.0 serves\n")
        published = subscriber.next(lambda message: b"update.rejected" in message.payload)
    assert reason in json.loads(published.payload)["text"]
    assert serving(daemon) == "1.0.0"
    [rejection] = ledger(daemon).rejected.values()
    assert reason in rejection.reason
    assert litter(daemon) == set()


def test_a_version_with_other_windows_goes_on_counting(tmp_path: Path, broker: Broker, edged):
    window = {**json.loads((FACTORY / "manifest.json").read_bytes())["window"], "hop": 5}
    with Subscriber(broker.port, "edged/board/pipelines/motion/result") as subscriber:
        daemon = edged(with_mqtt(config(pace=1000, recording=long_recording(tmp_path)), broker))
        wait_for(daemon, "1.0.0")
        update = Call(daemon, "update-model", bundle(tmp_path, "1.1.0", window=window))
        heard = []
        while [each["version"] for each in heard].count("1.1.0") < 100:
            heard.append(json.loads(subscriber.next().payload))
    assert update.end().code == DONE
    assert [each["seq"] for each in heard] == sorted({each["seq"] for each in heard})


def test_what_is_damaged_on_disk_gives_way_to_the_best_that_is_sound(tmp_path: Path, edged):
    daemon = edged(config(), **own_factory(tmp_path))
    digests = {}
    for version in ("1.1.0", "1.2.0"):
        assert edgectl(daemon, "update-model", bundle(tmp_path, version)).code == DONE
        digests[version] = ledger(daemon).active
    restart(daemon)
    assert serving(daemon) == "1.2.0"
    for version, then in (("1.2.0", "1.1.0"), ("1.1.0", "1.0.0")):
        damage(shelf(daemon) / "versions" / str(digests[version]))
        restart(daemon)
        assert serving(daemon) == then
    damage(tmp_path / "site" / "firmware_models" / "motion" / "1.0.0")
    restart(daemon)
    [pipeline] = daemon.call("pipelines")
    assert pipeline["health"]["state"] == "failed"
    assert pipeline["health"]["reason"]
    assert daemon.call("status")["state"] == "degraded"
    assert edgectl(daemon, "update-model", bundle(tmp_path, "1.3.0")).code == DONE
    assert serving(daemon) == "1.3.0"


def own_factory(folder: Path) -> dict[str, str]:
    """Return the environment for a daemon with its own factory models, to be damaged."""
    site = folder / "site"
    (site / "firmware_models" / "motion").mkdir(parents=True)
    shutil.copytree(FACTORY, site / "firmware_models" / "motion" / "1.0.0")
    (site / "edged").symlink_to(ROOT / "edged")
    return {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}


def damage(version: Path) -> None:
    """Flip a bit of the version's model."""
    data = bytearray((version / "model.tflite").read_bytes())
    data[len(data) // 2] ^= 1
    (version / "model.tflite").write_bytes(data)


def test_a_fetch_over_a_link_that_is_cut_all_the_time(tmp_path: Path, edged):
    daemon = edged()
    new = bundle(tmp_path, "1.1.0", files={"notes.bin": bytes(range(256)) * 2000})
    size = new.stat().st_size
    with WebServer(new.read_bytes()) as server, FlakyProxy(server.port, cut_after=[90_000] * 5) as link:
        code, output = edgectl(daemon, "update-model", f"http://127.0.0.1:{link.port}/motion.edgm")
        assert code == DONE, output
        assert link.cuts == 5
        assert link.down < 1.02 * size + 6 * 1000
    assert output.endswith("motion: version 1.1.0 is confirmed; version 1.1.0 serves\n")
    assert serving(daemon) == "1.1.0"
    assert litter(daemon) == set()
