"""Models on accelerators in the real daemon: runtime, process and broker are real, the device is not.

The device is a file, and its delegate a library in C that computes on the CPU and fails on command (tests/delegates).
In every test the subscriber must receive a result for each window exactly once. With `EDGED_SOAK=1` the delegate
aborts, hangs and is unplugged 100 times each.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.accounting import Auditor, balance
from tests.broker import Broker, Subscriber
from tests.delegates import faulty_library
from tests.edged_process import Edged
from tests.motion import FACTORY, Call, bundle, contents, edgectl, long_recording, manifest, serving
from tests.patience import PATIENCE
from tests.real_models import real_model

DONE, BAD_STATE, UNFIT, ROLLED_BACK = 0, 3, 7, 8
SOAK = bool(os.environ.get("EDGED_SOAK"))

BOARD = """
[device]
name = "board"
[mqtt]
host = "127.0.0.1"
port = {port}
home_assistant = true
[sources.wrist]
kind = "replay"
path = "{recording}"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10
pace = 400
chunk = 10
"""
"""A window every 25 ms, for longer than any of these tests takes."""

PIPELINE = """
[pipelines.{model}]
source = "wrist"
model = "{model}"
queue = 1000
"""
"""A pipeline whose queue has room for all windows delayed by a busy machine."""

MORE = 16 << 10
"""Permitted growth of the daemon in KiB: the mapped recording is paged in over time."""

FAST = {"name": "fast", "delegate": "mine", "file": "model.tflite"}


def rules(*, failures: int = 100, within: float = 600.0, check_every: float = 0.1) -> str:
    """Return rules for quick retries. The memory limit is the runtime's usage plus 100 MB."""
    return (
        f"[accelerators]\ndeadline = 0.5\nbackoff = 0.05\nbackoff_max = 0.1\nmemory = {256 << 20}\n"
        f"failures = {failures}\nwithin = {within}\ncheck_every = {check_every}\n"
    )


class Device:
    """A device and its delegate; the delegate's file is named by `[delegates.<name>]`."""

    def __init__(self, folder: Path, name: str = "mine") -> None:
        self.name = name
        self._folder = folder
        self._file = folder / name
        self.plug()

    def table(self, **options: str) -> str:
        """Return the table of the delegate in the configuration."""
        orders = {"device": str(self._file), "orders": str(self._folder / f"{self.name}.orders"), **options}
        words = ", ".join(f'{key} = "{value}"' for key, value in orders.items())
        return (
            f'[delegates.{self.name}]\nkind = "external"\nlibrary = "{faulty_library()}"\n'
            f'device = "{self._file}"\noptions = {{ {words} }}\n'
        )

    def order(self, word: str) -> None:
        """Make the next inference fail in this way."""
        draft = self._folder / f"{self.name}.draft"
        draft.write_text(word)
        draft.rename(self._folder / f"{self.name}.orders")

    def unplug(self) -> None:
        self._file.unlink()

    def plug(self) -> None:
        """Plug the device in, or out and in again: the file is replaced, as a real device gets a new identity."""
        (self._folder / f"{self.name}.new").touch()
        (self._folder / f"{self.name}.new").rename(self._file)


class Board:
    """A daemon, a subscriber to all results, and a subscriber to the states of accelerators."""

    def __init__(self, folder: Path, broker: Broker, recording: Path) -> None:
        self._base = BOARD.format(port=broker.port, recording=recording)
        self.auditor = Auditor(broker.port)
        self.auditor.connect()
        self.states = Subscriber(broker.port, "edged/board/models/+/accelerator", "homeassistant/#")
        self.daemon = Edged(folder, "")

    def configure(self, *tables: str, models: tuple[str, ...] = ("motion",)) -> None:
        pipelines = (PIPELINE.format(model=model) for model in models)
        self.daemon.configure("\n".join([self._base, *pipelines, *tables]))

    def start(self, *tables: str, models: tuple[str, ...] = ("motion",)) -> Edged:
        self.configure(*tables, models=models)
        self.daemon.start()
        return self.daemon

    def reload(self, *tables: str) -> None:
        self.configure(*tables)
        assert self.daemon.call("reload")["done"]

    def hears(self, state: str, *models: str, because: str = "") -> dict[str, Any]:
        """Wait until the accelerator of each of these models, or of the only model, is published in this state."""
        awaited = {f"edged/board/models/{model}/accelerator" for model in models or ("motion",)}
        while awaited:
            message = self.states.next(lambda message: message.topic in awaited and bool(message.payload))
            said: dict[str, Any] = json.loads(message.payload)
            if said["state"] == state and because in said["reason"]:
                awaited.remove(message.topic)
        return said

    def runs_on(self, delegate: str) -> None:
        """Wait until an accelerated model has computed its next window on this delegate."""
        while self.model()["runner"]["delegate"] != delegate:
            assert self.auditor.hears_more(PATIENCE)

    def metric(self, name: str) -> dict[str, float]:
        """Return a family of metrics: values by labels, as written."""
        lines = self.daemon.call("metrics")["text"].splitlines()
        samples = (line.rpartition(" ") for line in lines if line.startswith(name))
        return {labels.removeprefix(name): float(value) for labels, _, value in samples}

    def model(self, name: str = "motion") -> dict[str, Any]:
        """Return the model in the answer to `edgectl models`."""
        return next(dict(each) for each in self.daemon.call("models") if each["name"] == name)

    def end(self) -> int:
        """Stop, check that every window was answered exactly once without failure, and return the number."""
        pipelines = self.daemon.call("pipelines")
        assert [(each["dropped"], each["errors"]) for each in pipelines] == [(0, 0)] * len(pipelines)
        assert self.daemon.stop() == 0
        ids = {f"{each['name']}:{seq}" for each in pipelines for seq in range(each["windows"])}
        boot = self.auditor.heard[0]["boot"]
        assert self.auditor.hears_all({f"{boot}:{each}" for each in ids})
        books = balance(self.auditor.heard)
        assert all(numbers == list(range(len(numbers))) for numbers in books.arrived.values())
        assert (len(books.arrived), books.again) == (len(pipelines), 0)
        return sum(map(len, books.arrived.values()))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


@pytest.fixture
def board(tmp_path: Path, broker: Broker) -> Iterator[Board]:
    board = Board(tmp_path, broker, long_recording(tmp_path, times=800 if SOAK else 150))
    yield board
    board.daemon.__exit__()
    board.auditor.disconnect()
    board.states.__exit__()


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def children(pid: int) -> list[int]:
    """Return the live child processes of a process."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def holdings(pid: int) -> tuple[int, int]:
    """Return the number of open descriptors of a process, and the number of shared memory among them."""
    links = [link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    return len(links), sum("memfd" in link for link in links)


def resident(pid: int) -> int:
    """Kilobytes of memory of a process."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])


def with_variant(folder: Path, *variants: dict[str, Any], **parts: Any) -> Path:
    """Return the folder of a motion model with these variants."""
    folder.mkdir()
    for name, content in contents().items():
        (folder / name).write_bytes(content)
    (folder / "manifest.json").write_text(json.dumps(manifest("1.0.0", contents(), variants=variants, **parts)))
    return folder


# -- faults -----------------------------------------------------------------------------------------------------------

PINNED = '[models.motion]\ndelegate = "mine"\n'


def failing(device: Device, word: str) -> Callable[[], None]:
    return lambda: device.order(word)


@pytest.mark.parametrize("times", [100 if SOAK else 1])
def test_however_it_fails_each_window_is_answered_and_it_comes_back(times: int, board: Board, device: Device):
    faults = [
        (times, "the process of mine aborted: SIGABRT", failing(device, "abort")),
        (times, "the process of mine hung: an inference took longer than 0.5 s", failing(device, "hang")),
        (times, "the device is ", device.unplug),  # gone by the device's own report, or missing, which follows soon
        (1, "the process of mine crashed: SIGSEGV", failing(device, "segfault")),
        (1, "invoke failed, as told", failing(device, "invoke")),
        (1, "answers wrongly", failing(device, "zeros")),
        (1, "the process of mine ran out of memory", failing(device, "leak")),
    ]
    daemon = board.start(PINNED, rules(within=0.01), device.table())
    board.hears("accelerated")
    pid = daemon.process.pid
    before, weight = holdings(pid), resident(pid)
    for again, reason, fail in faults:
        for _ in range(again):
            fail()
            said = board.hears("degraded", because=reason)
            assert said["accelerator"] == "mine"
            if fail == device.unplug:
                device.plug()
            board.hears("accelerated")
    board.runs_on("mine")
    total = sum(again for again, _, _ in faults)
    [promotions] = board.metric("edged_accelerator_promotions_total").values()
    assert promotions > total
    assert sum(board.metric("edged_accelerator_faults_total").values()) >= total  # a busy machine may add hangs
    assert len(children(pid)) == 1
    # A connection used for requests may still be closing.
    assert any(holdings(pid) == before for _ in range(100) if board.auditor.hears_more(PATIENCE))
    assert resident(pid) < weight + MORE
    figures = f"{weight} kB of memory at first, {resident(pid)} kB in the end"
    answered = board.end()
    print(f"{total} faults, {answered} windows, {figures}")


def test_one_that_fails_too_often_is_left_alone_until_it_is_released_or_replugged(board: Board, device: Device):
    daemon = board.start(PINNED, rules(failures=2), device.table())
    for cure in ("release", "replug"):
        for state in ("degraded", "quarantined"):
            board.hears("accelerated")
            device.order("abort")
            said = board.hears(state, because="aborted: SIGABRT")
        assert said["reason"].startswith("2 faults within 600 s, the last: the process of mine aborted: SIGABRT")
        assert said["hint"].endswith("remove the cause, then run: edgectl release mine")
        assert children(daemon.process.pid) == []
        assert board.model()["accelerator"]["state"] == "quarantined"
        code, output = edgectl(daemon, "status")
        assert (code, "mine: quarantined, for " in output) == (BAD_STATE, True), output
        labels = '{model="motion",accelerator="mine",state="%s"}'
        states = board.metric("edged_accelerator_state")
        assert (states[labels % "quarantined"], states[labels % "accelerated"]) == (1, 0)
        if cure == "release":
            assert edgectl(daemon, "release", "mine").code == DONE
        else:
            device.plug()
    board.hears("accelerated")
    assert edgectl(daemon, "status").code == DONE
    assert edgectl(daemon, "release", "other").code != DONE
    board.end()


def test_home_assistant_has_a_problem_sensor_for_it(board: Board, device: Device):
    board.start(PINNED, rules(failures=1), device.table())
    announced = json.loads(board.states.wait_for("homeassistant/device/edged_board/config").payload)
    sensor = announced["cmps"]["accelerator_motion_problem"]
    assert (sensor["p"], sensor["device_class"]) == ("binary_sensor", "problem")
    assert sensor["state_topic"] == "edged/board/models/motion/accelerator"
    assert "quarantined" in sensor["value_template"]


# -- several ----------------------------------------------------------------------------------------------------------


def test_two_models_share_a_device_and_a_third_has_its_own(board: Board, device: Device, tmp_path: Path):
    other = Device(tmp_path, "other")
    tables = [
        f'[models.{name}]\npath = "{FACTORY}"\ndelegate = "{delegate}"\n'
        for name, delegate in (("left", "mine"), ("right", "mine"), ("alone", "other"))
    ]
    models = ("left", "right", "alone")
    daemon = board.start(*tables, rules(), device.table(), other.table(), models=models)
    board.hears("accelerated", *models)
    assert len(children(daemon.process.pid)) == 2
    for word, reason in (("hang", "the process of mine hung"), ("abort", "the process of mine aborted")):
        device.order(word)
        board.hears("degraded", "left", "right", because=reason)
        board.hears("accelerated", "left", "right")
    assert board.model("alone")["accelerator"]["state"] == "accelerated"
    assert board.metric("edged_accelerator_promotions_total")['{accelerator="other"}'] == 1
    assert board.metric("edged_accelerator_faults_total") == {'{accelerator="mine",kind="device"}': 2}
    code, output = edgectl(daemon, "--config", daemon.config, "devices")
    assert code == DONE
    assert [line.split(",")[0].strip() for line in output.splitlines() if "accelerated" in line] == [
        "left: accelerated",
        "right: accelerated",
        "alone: accelerated",
    ]
    board.end()


# -- the configuration ------------------------------------------------------------------------------------------------


def test_what_the_configuration_says_is_what_happens_after_a_reload(board: Board, device: Device, tmp_path: Path):
    folder = with_variant(tmp_path / "motion", FAST)

    def model(delegate: str) -> str:
        return f'[models.motion]\npath = "{folder}"\ndelegate = "{delegate}"\n'

    board.start(model("auto"), rules(), device.table())
    board.hears("accelerated")
    board.runs_on("mine")
    board.reload(model("cpu"), rules(), device.table())
    assert board.states.wait_for("edged/board/models/motion/accelerator", b"").retain is False
    assert (board.model()["runner"]["delegate"], board.model()["accelerator"]) == ("cpu", None)
    board.reload(model("mine"), rules(), device.table())
    board.hears("accelerated")
    board.reload(model("mine"), rules(failures=1), device.table(fail="create"))
    board.hears("quarantined", because="create failed, as told")
    board.reload(model("mine"), rules(failures=1), device.table())
    board.hears("accelerated")
    device.unplug()
    board.reload(model("auto"), rules(), device.table())
    board.hears("cpu", because="the device is not there")
    device.plug()
    board.hears("accelerated")
    board.end()


def test_a_model_on_the_cpu_in_a_process_of_its_own_survives_that(board: Board):
    daemon = board.start('[models.motion]\nisolate = true\ndelegate = "cpu"\n', rules())
    daemon.wait_for_log(" serves: ")
    [first] = children(daemon.process.pid)
    os.kill(first, signal.SIGKILL)
    assert board.auditor.hears_more(PATIENCE)
    assert " isolated)" in edgectl(daemon, "models").output
    while children(daemon.process.pid) in ([], [first]):
        assert board.auditor.hears_more(PATIENCE)
    board.end()


# -- updates ----------------------------------------------------------------------------------------------------------


def test_a_version_whose_variant_fails_serves_on_the_cpu_where_it_may(board: Board, device: Device, tmp_path: Path):
    daemon = board.start(rules(failures=1), device.table(wrong="zeros"))
    daemon.wait_for_log(" serves: ")
    new = bundle(tmp_path, "1.1.0", variants=[FAST], probation={"seconds": 3.0, "windows": 5})
    said = edgectl(daemon, "update-model", new)
    assert said.code == DONE, said.output
    daemon.wait_for_log("motion 1.1.0 will serve on the CPU: motion 1.1.0 on mine disagrees with the CPU")
    board.hears("quarantined", because="disagrees with the CPU")
    assert serving(daemon) == "1.1.0"
    board.end()


@pytest.mark.parametrize(
    ("model", "orders", "limits", "reason"),
    [
        (PINNED, {"wrong": "zeros"}, {}, "disagrees with the CPU"),
        (PINNED, {"fail": "abort"}, {}, "the process of mine aborted: SIGABRT"),
        ("", {}, {"delegated_share": 0.9}, "mine takes 1 of its 8 nodes; the manifest requires 90%"),
    ],
    ids=["wrong", "aborts", "takes too little"],
)
def test_a_version_that_needs_its_accelerator_is_refused_where_that_fails(
    model: str,
    orders: dict[str, str],
    limits: dict[str, Any],
    reason: str,
    board: Board,
    device: Device,
    tmp_path: Path,
):
    daemon = board.start(model, rules(), device.table(**orders))
    daemon.wait_for_log(" serves: ")
    code, output = edgectl(daemon, "update-model", bundle(tmp_path, "1.1.0", variants=[FAST], limits=limits))
    assert (code, reason in output) == (UNFIT, True), output
    assert serving(daemon) == "1.0.0"
    board.end()


def test_a_version_whose_accelerator_is_quarantined_on_probation_goes(board: Board, device: Device, tmp_path: Path):
    daemon = board.start(PINNED, rules(failures=1), device.table())
    board.hears("accelerated")
    patient = {"seconds": 60.0, "windows": 5}
    update = Call(daemon, "update-model", bundle(tmp_path, "1.1.0", variants=[FAST], probation=patient))
    daemon.wait_for_log("1.1.0 serves")
    device.order("abort")
    code, output = update.end()
    assert (code, "1 fault within 600 s" in output) == (ROLLED_BACK, True), output
    assert serving(daemon) == "1.0.0"
    board.end()


# -- no device --------------------------------------------------------------------------------------------------------

CORAL = "mobilenet_v1_0.25_128_quant.tflite", "mobilenet_v1_0.25_128_quant_edgetpu.tflite"

PICTURES = """
[sources.camera]
kind = "replay"
path = "{folder}/pixels.npy"
channels = ["red", "green", "blue"]
rate = 16384
pace = 65536
[pipelines.pictures]
source = "camera"
model = "pictures"
[models.pictures]
delegate = "{delegate}"
"""
"""Four pictures a second of 128 x 128, pixel by pixel, for half a minute."""


@pytest.mark.parametrize(
    ("delegate", "state", "exit_code"), [("auto", "cpu", DONE), ("edgetpu", "degraded", BAD_STATE)]
)
def test_what_was_compiled_for_an_edge_tpu_has_its_twin_serve_where_there_is_none(
    delegate: str, state: str, exit_code: int, board: Board, tmp_path: Path
):
    model, compiled = map(real_model, CORAL)
    pixels = np.random.default_rng(0).integers(0, 256, (120 * 128 * 128, 3), np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    (tmp_path / "part.json").write_text(json.dumps({"probation": {"seconds": 0.5, "windows": 2}}))
    daemon = board.start(PICTURES.format(folder=tmp_path, delegate=delegate), models=())
    daemon.wait_for_log(" serves: ")
    shape = ("--channels", "red,green,blue", "--rate", 16384, "--window", 128 * 128, "--hop", 128 * 128)
    name = ("--name", "pictures", "--version", "1.0", "--manifest", tmp_path / "part.json", "-o", tmp_path / "new.edgm")
    packed = edgectl(daemon, "pack", model, "--variant", f"edgetpu={compiled}", *name, *shape)
    assert packed.code == DONE, packed.output
    brought = edgectl(daemon, "update-model", tmp_path / "new.edgm")
    assert brought.code == DONE, brought.output
    said = board.hears(state, "pictures", because="the device is not there")
    assert said["hint"] == "plug the device in; if plugged in, run: sudo edgectl devices allow --restart"
    assert board.auditor.hears_more(PATIENCE)
    code, output = edgectl(daemon, "status")
    assert (code, f"edgetpu: {state}, for " in output) == (exit_code, True), output
    assert board.model("pictures")["runner"]["delegate"] == "cpu"
    board.end()
