"""A model at a path of the configuration: served, updated like any other, and restored as factory version."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.broker import Broker, Subscriber
from tests.bundles import DATA, write_bundle
from tests.containers import colours, container, entry
from tests.edged_process import Edged
from tests.motion import Call, edgectl, serving
from tests.web_server import WebServer

DONE, NOT_RUNNING, FAILED, REFUSED, ROLLED_BACK = 0, 3, 4, 6, 8

CONFIG = """
[device]
name = "board"
[sources.ramp]
kind = "synthetic"
channels = ["c0", "c1", "c2", "c3"]
rate = 50
[pipelines.mine]
source = "ramp"
model = "mine"
"""

MODEL = (DATA / "float.tflite").read_bytes()
PROBATION = {"seconds": 0.2, "windows": 5}


def bundle(folder: Path, version: str, name: str = "mine") -> Path:
    """A container of the model, of this version."""
    path = folder / f"{name}-{version}.edgm"
    files = {"model.tflite": entry(MODEL)}
    described = colours(name=name, version=version, files=files, probation=PROBATION)
    path.write_bytes(container(described, body=MODEL))
    return path


def at_a_folder(folder: Path) -> Path:
    return write_bundle(folder / "folder", name="mine", version="1.0", probation=PROBATION)


def at_a_container(folder: Path) -> Path:
    return bundle(folder, "1.0")


def at_a_bare_file(folder: Path) -> Path:
    path = folder / "bare.tflite"
    path.write_bytes((DATA / "metadata.tflite").read_bytes())
    return path


@pytest.mark.parametrize(("path", "factory"), [(at_a_folder, "1.0"), (at_a_container, "1.0"), (at_a_bare_file, "0")])
def test_what_is_at_a_path_is_the_factory_version_of_its_name(
    tmp_path: Path, edged: Callable[..., Edged], path: Callable[[Path], Path], factory: str
):
    daemon = edged(f'{CONFIG}[models.mine]\npath = "{path(tmp_path)}"\n')
    assert serving(daemon) == factory
    brought = bundle(tmp_path, "1.1")
    code, output = edgectl(daemon, "update-model", brought)
    assert (code, "version 1.1 is confirmed; version 1.1 serves" in output) == (DONE, True), output
    assert serving(daemon) == "1.1"
    code, output = edgectl(daemon, "update-model", brought)
    assert (code, "is what serves already" in output) == (DONE, True), output
    assert edgectl(daemon, "rollback", "mine").code == DONE
    assert serving(daemon) == factory
    versions = [line.split() for line in edgectl(daemon, "models").output.splitlines()[-2:]]
    assert [[version, " ".join(what)] for version, _, *what in versions] == [
        ["1.1", "rejected: an operator rolled it back"],
        [factory, "serves, factory"],
    ]
    daemon.stop()
    daemon.start()
    daemon.wait_for_log(" serves: ", 2)
    assert serving(daemon) == factory
    assert edgectl(daemon, "forget", "mine", rejected(daemon)).code == DONE
    assert edgectl(daemon, "update-model", brought).code == DONE
    assert edgectl(daemon, "rollback", "mine", "--to", "factory").code == DONE
    assert serving(daemon) == factory


def test_a_bare_file_that_serves_from_its_path_need_not_be_sent_and_others_inherit_from_it(
    tmp_path: Path, edged: Callable[..., Edged]
):
    path = at_a_bare_file(tmp_path)
    daemon = edged(f'{CONFIG}[models.mine]\npath = "{path}"\n')
    daemon.wait_for_log("mine: derived from bare.tflite: 3 scores, by the labels")
    code, output = edgectl(daemon, "update-model", path, "--model", "mine")
    assert (code, output.strip()) == (DONE, "this mine is what serves already")
    retrained = tmp_path / "retrained.tflite"
    retrained.write_bytes(path.read_bytes() + bytes(64))
    update = Call(daemon, "update-model", retrained, "--model", "mine")
    daemon.wait_for_log("version 1 serves")
    assert serving(daemon) == "1"
    assert edgectl(daemon, "rollback", "mine").code == DONE
    assert update.end().code == ROLLED_BACK
    assert serving(daemon) == "0"


def rejected(daemon: Edged) -> str:
    ledger = json.loads((daemon.state_dir / "models" / "mine" / "state.json").read_bytes())
    return next(iter(ledger["rejected"]))


def test_a_pipeline_waits_for_its_first_model_and_serves_when_it_comes(tmp_path: Path, edged: Callable[..., Edged]):
    daemon = edged(CONFIG)
    (pipeline,) = daemon.call("pipelines")
    assert (pipeline["health"]["state"], pipeline["health"]["hint"]) == (
        "starting",
        "bring one: edgectl update-model FILE",
    )
    assert edgectl(daemon, "status").code == NOT_RUNNING
    for verb in (["config", "check"], ["doctor"]):  # both read the file named by the daemon
        output = edgectl(daemon, *verb).output
        assert f"{daemon.config}: pipelines.mine.model" in output
        assert "there is no model 'mine'" in output
    assert edgectl(daemon, "reload").code == DONE
    assert edgectl(daemon, "update-model", bundle(tmp_path, "1.1")).code == DONE
    assert serving(daemon) == "1.1"
    assert edgectl(daemon, "status").code == DONE


def test_a_reload_serves_what_has_taken_the_place_of_a_file_at_a_path(tmp_path: Path, edged: Callable[..., Edged]):
    path = at_a_container(tmp_path)
    daemon = edged(f'{CONFIG}[models.mine]\npath = "{path}"\n')
    assert edgectl(daemon, "reload").output == "nothing has changed\n"
    bundle(tmp_path, "1.2").replace(path)
    assert edgectl(daemon, "reload").code == DONE
    assert serving(daemon) == "1.2"
    assert len(list((daemon.state_dir / "unpacked").iterdir())) == 1


def test_an_update_is_done_only_where_the_version_answers(tmp_path: Path, edged: Callable[..., Edged]):
    models = f'[models.mine]\npath = "{at_a_container(tmp_path)}"\n'
    daemon = edged(CONFIG + models + 'version = "1.0"\n')
    code, output = edgectl(daemon, "update-model", bundle(tmp_path, "1.1"))
    assert (code, output.splitlines()[0]) == (REFUSED, "the configuration keeps mine at version 1.0")
    code, output = edgectl(daemon, "update-model", bundle(tmp_path, "1.1", "other"))
    assert (code, "version 1.1 is confirmed; no pipeline uses it" in output) == (NOT_RUNNING, True), output
    code, output = edgectl(daemon, "update-model", bundle(tmp_path, "1.1", "other"))
    assert (code, "is installed already, but used by no pipeline" in output) == (NOT_RUNNING, True), output
    daemon.configure(CONFIG + models)
    assert edgectl(daemon, "reload").code == DONE
    assert edgectl(daemon, "update-model", bundle(tmp_path, "1.1")).code == DONE
    assert serving(daemon) == "1.1"
    daemon.configure(CONFIG + models + 'version = "1.0"\n')
    assert edgectl(daemon, "reload").code == DONE
    assert serving(daemon) == "1.0"
    assert edgectl(daemon, "rollback", "mine").code == FAILED


def test_a_wish_brings_the_first_version_and_is_done_when_it_answers(tmp_path: Path, edged: Callable[..., Edged]):
    with (
        Broker(tmp_path) as broker,
        WebServer(bundle(tmp_path, "1.1").read_bytes()) as server,
        Subscriber(broker.port, "edged/board/models/mine/update") as subscriber,
    ):
        fetch = f'[updates.fetch]\norigins = ["{server.url("")}"]\n'
        daemon = edged(f'{CONFIG}[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n{fetch}')
        wish = json.dumps({"url": server.url("/mine.edgm")})
        subscriber.client.publish("edged/board/models/mine/desired", wish, qos=1, retain=True)
        ended = json.loads(subscriber.next(lambda message: b"update.ended" in message.payload).payload)
        assert (ended["outcome"], ended["text"]) == ("done", "mine: version 1.1 is confirmed; version 1.1 serves")
        assert serving(daemon) == "1.1"
