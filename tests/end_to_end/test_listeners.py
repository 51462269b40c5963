"""States published by the real daemon to subscribers and Home Assistant over a real broker: present, not past."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edged.api import ControlError
from edged.ctl import exit_codes as exits
from edged.ctl.doctor import check_daemon
from tests.broker import PATIENCE, Broker, Subscriber
from tests.edged_process import Edged, SerialPort
from tests.flaky_proxy import FlakyProxy
from tests.home_assistant import HomeAssistant
from tests.motion import RECORDING, lines

MQTT = '[device]\nname = "{name}"\n[mqtt]\nhost = "127.0.0.1"\nport = {port}\nhome_assistant = true\n'

SERIAL = """
[sources.wrist]
kind = "serial"
port = "{link}"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
sequence = "seq"
rate = 10
[sources.wrist.supervision]
retry_min = 0.1
{supervision}
[pipelines.motion]
source = "wrist"
model = "motion"
"""

REPLAY = """
[sources.recorded]
kind = "replay"
path = "{recording}"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10
pace = {pace}
loop = true
[pipelines.replayed]
source = "recorded"
model = "motion"
{more}
"""

CLASS = "pipeline_motion_class"


def mqtt(port: int, name: str = "board") -> str:
    return MQTT.format(port=port, name=name)


def replay(pace: int = 10, more: str = "") -> str:
    return REPLAY.format(recording=RECORDING, pace=pace, more=more)


class Listener(Subscriber):
    """Home Assistant as a subscriber, with all messages so far."""

    def __init__(self, port: int) -> None:
        super().__init__(port, "edged/#", "homeassistant/#")
        self.home = HomeAssistant()
        self.heard: list[Any] = []

    def until(self, accept: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Listen until the states of the entities are as wanted; those states."""

        def hear(message: Any) -> bool:
            self.heard.append(message)
            self.home.hear(message.topic, message.payload)
            return accept(self.home.states)

        if not accept(self.home.states):
            self.next(hear)
        return self.home.states

    def until_state(self, entity: str, state: str) -> dict[str, str]:
        """Receive messages until an entity is in this state, and return all states."""
        return self.until(lambda states: states.get(entity) == state)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


@pytest.fixture
def listener(broker: Broker) -> Iterator[Listener]:
    with Listener(broker.port) as listening:
        yield listening


def health(daemon: Edged, part: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each["health"] for each in daemon.call(part) if each["name"] == name)
    return found


def test_a_sensor_that_is_unplugged_leaves_no_answer_behind(tmp_path: Path, broker: Broker, listener: Listener, edged):
    sensor = SerialPort(tmp_path / "imu")
    daemon = edged(mqtt(broker.port) + SERIAL.format(link=sensor.link, supervision=""))
    daemon.wait_for_log("source wrist is open")
    sensor.write(lines(0, 50))
    listener.until_state(CLASS, "standing")
    sensor.unplug()
    states = listener.until_state(CLASS, "unavailable")
    assert listener.until_state("pipeline_motion_problem", "on")["source_wrist_problem"] == "on"
    daemon.wait_for_log(f"pipeline motion is failed: source 'wrist': {sensor.link} is not there")
    source, pipeline = health(daemon, "sources", "wrist"), health(daemon, "pipelines", "motion")
    assert source["reason"] == f"{sensor.link} is not there"
    assert (pipeline["state"], pipeline["reason"]) == ("failed", f"source 'wrist': {source['reason']}")
    assert states["pipeline_motion_score"] == "unavailable"
    with Subscriber(broker.port, "edged/board/pipelines/motion/decision", "edged/board/state") as latecomer:
        assert latecomer.next().topic == "edged/board/state"  # no decision is retained
    sensor.plug()
    daemon.wait_for_log("source wrist is open", times=2)
    sensor.write(lines(0, 50))
    listener.until_state(CLASS, "standing")
    listener.until_state("pipeline_motion_problem", "off")
    assert [state for entity, state in listener.home.history if entity == CLASS if state != "none"][-4:] == [
        "standing",
        "unavailable",
        "unknown",
        "standing",
    ]


def test_a_sensor_that_falls_silent_leaves_no_answer_behind(tmp_path: Path, broker: Broker, listener: Listener, edged):
    sensor = SerialPort(tmp_path / "imu")
    daemon = edged(mqtt(broker.port) + SERIAL.format(link=sensor.link, supervision="stall_after = 0.5"))
    daemon.wait_for_log("source wrist is open")
    sensor.write(lines(0, 50))
    listener.until_state(CLASS, "standing")
    listener.until_state(CLASS, "unavailable")
    assert health(daemon, "pipelines", "motion")["reason"] == "source 'wrist': stalled: no sample for 0.5 s"


def test_a_recording_that_has_ended_leaves_no_answer_behind(broker: Broker, listener: Listener, edged):
    edged(mqtt(broker.port) + replay(100).replace("loop = true", ""))
    listener.until_state("pipeline_replayed_class", "unavailable")
    listener.until(lambda states: ("pipeline_replayed_class", "walking") in listener.home.history)
    listener.until_state("pipeline_replayed_class", "unavailable")
    assert listener.home.states["pipeline_replayed_problem"] == "off"


def test_after_an_outage_the_past_is_no_present(broker: Broker, listener: Listener, edged):
    decision, result = ("edged/board/pipelines/replayed/" + leaf for leaf in ("decision", "result"))
    with FlakyProxy(broker.port) as link:
        daemon = edged(mqtt(link.port) + replay(100))
        listener.wait_for(decision)
        link.refuse()
        listener.wait_for("edged/board/availability", b"offline")
        while daemon.call("status")["mqtt"]["spool"]["depth"] < 300:  # of 100 a second, 200 wait for over a second
            pass
        link.refuse(False)
        heard, waited = [], []
        while len(waited) < 50:
            heard.append(listener.next())
            if heard[-1].topic == result and b'"replayed":true' in heard[-1].payload:
                waited.append(json.loads(heard[-1].payload))
    decided = [json.loads(each.payload) for each in heard if each.topic == decision]
    assert decided[0]["time"] > waited[-1]["time"]
    assert len(decided) < 10
    assert not any("replayed" in each for each in decided)


@pytest.mark.parametrize("publish", ['"changes"', "5"])
def test_results_are_thinned_out_as_configured(publish: str, broker: Broker, edged):
    with Subscriber(broker.port, "edged/board/pipelines/replayed/result") as subscriber:
        edged(mqtt(broker.port) + replay(100, f"publish = {publish}"))
        results = [json.loads(subscriber.next().payload) for _ in range(3)]
    if publish == "5":
        assert all(later["time"] - earlier["time"] >= 4.9 for earlier, later in pairwise(results))
    else:
        assert all(each["changed"] for each in results)
        assert len({each["seq"] for each in results}) == 3


def retained(port: int) -> dict[str, bytes]:
    """Return all retained messages of the broker; a marker sent last shows the end."""
    with Subscriber(port, "#") as subscriber:
        subscriber.client.publish("marker", b"end", qos=1, retain=False)
        found: dict[str, bytes] = {}
        while (message := subscriber.next()).topic != "marker":
            if message.retain:  # and not published just now
                found[message.topic] = message.payload
    return found


def stop(daemon: Edged, listener: Listener, name: str = "board") -> None:
    assert daemon.stop() == 0
    listener.wait_for(f"edged/{name}/availability", b"stopped")


def test_after_a_clean_stop_no_state_says_that_anything_runs(tmp_path: Path, broker: Broker, listener: Listener, edged):
    broken = '[pipelines.broken]\nsource = "recorded"\nmodel = "broken"\n[models.broken]\npath = "broken.tflite"\n'
    (tmp_path / "broken.tflite").write_bytes(b"no model")
    daemon = edged(mqtt(broker.port) + replay(100, broken))
    listener.until_state("pipeline_replayed_class", "walking")
    stop(daemon, listener)
    found = retained(broker.port)
    states = {topic: json.loads(payload)["state"] for topic, payload in found.items() if topic.endswith("/state")}
    assert set(states.values()) == {"stopped"}
    assert {"edged/board/state", "edged/board/models/motion/state", "edged/board/models/broken/state"} < set(states)
    assert not any(topic.endswith("/decision") for topic in found)


HOME = "homeassistant/device/edged_board/config"


@pytest.mark.parametrize(
    ("edits", "gone"),
    [
        ({'name = "board"': 'name = "other"'}, ("edged/board/", HOME)),
        ({"[mqtt]": '[mqtt]\nprefix = "plant"'}, ("edged/board/",)),
        ({"home_assistant = true": ""}, (HOME,)),
        ({"pipelines.replayed": "pipelines.renamed"}, ("edged/board/pipelines/replayed/",)),
        ({"sources.recorded": "sources.renamed", '"recorded"': '"renamed"'}, ("edged/board/sources/recorded/",)),
    ],
    ids=["device", "prefix", "home_assistant", "pipeline", "source"],
)
@pytest.mark.parametrize("how", ["while stopped", "by a reload"])
def test_no_name_of_a_former_configuration_is_left(
    how: str, edits: dict[str, str], gone: tuple[str, ...], broker: Broker, listener: Listener, edged
):
    config = mqtt(broker.port) + replay(100)
    daemon = edged(config)
    listener.until_state("pipeline_replayed_class", "walking")
    assert any(topic.startswith(gone) for topic in retained(broker.port))
    for before, after in edits.items():
        config = config.replace(before, after)
    if how == "while stopped":
        stop(daemon, listener)
        edged(config)
    else:
        daemon.configure(config)
        daemon.reload()
        daemon.wait_for_log("reloaded: ")
    wait_until_retained(
        broker.port,
        lambda topics: (
            any(topic.endswith("/availability") for topic in topics)
            and not any(topic.startswith(gone) for topic in topics)
        ),
    )


def test_a_device_that_will_not_come_back_is_forgotten(tmp_path: Path, broker: Broker, listener: Listener, edged):
    (tmp_path / "dead").mkdir()
    dead = Edged(tmp_path / "dead", mqtt(broker.port, "dead") + replay(100))
    with dead:
        listener.wait_for("edged/dead/availability", b"online")
        daemon = edged(mqtt(broker.port) + replay(100))
        listener.wait_for("edged/board/availability", b"online")
        with pytest.raises(ControlError, match="'dead' is online"):
            daemon.call("forget-device", device="dead")
        dead.stop(signal.SIGKILL)
    listener.wait_for("edged/dead/availability", b"offline")
    listener.client.publish("edged/dead/models/motion/desired", b"{}", qos=1, retain=True)
    listener.wait_for("edged/dead/models/motion/desired")
    before = retained(broker.port)
    cleared = edgectl(daemon, "--json", "forget-device", "dead")
    assert json.loads(cleared.stdout)["topics"] == sorted(topic for topic in before if "dead" in topic)
    after = retained(broker.port)
    assert {topic for topic in before if "dead" not in topic} == set(after)
    assert "homeassistant/device/edged_dead/config" in before
    again = edgectl(daemon, "forget-device", "dead")
    assert (again.returncode, again.stderr.splitlines()[0]) == (
        exits.FAILED,
        "edgectl: the broker retains nothing of a device 'dead'",
    )


@pytest.mark.parametrize(
    ("name", "reason"), [("board", "is this device"), ("a/b", "is no device's name"), ("+", "no device's")]
)
def test_only_other_devices_can_be_forgotten(name: str, reason: str, broker: Broker, edged):
    daemon = edged(mqtt(broker.port) + replay(100))
    with pytest.raises(ControlError, match=reason):
        daemon.call("forget-device", device=name)


def edgectl(daemon: Edged, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edged.ctl", "--runtime-dir", str(daemon.runtime_dir), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def wait_until_retained(port: int, accept: Callable[[dict[str, bytes]], bool]) -> None:
    """Poll the retained messages of the broker until they are as wanted."""
    deadline = time.monotonic() + PATIENCE
    while not accept(found := retained(port)):
        assert time.monotonic() < deadline, found


def test_a_namesake_is_a_state_with_a_remedy_and_the_doctor_sees_it(
    tmp_path: Path, broker: Broker, listener: Listener, edged
):
    (tmp_path / "other").mkdir()
    daemon = edged(mqtt(broker.port) + replay(100))
    listener.wait_for("edged/board/availability", b"online")
    with Edged(tmp_path / "other", mqtt(broker.port) + replay(100)) as other:
        for each in (other, daemon):
            each.wait_for_log("mqtt broker is degraded: another board is named 'board' too")
        status = daemon.call("status")
        assert status["mqtt"]["namesake"] == other.call("status")["boot"]
        assert status["mqtt"]["health"]["hint"].startswith("give each board another name")
        assert [check.verdict for check in check_daemon(str(daemon.runtime_dir)) if check.name == "name"] == ["fail"]
    assert daemon.call("status")["mqtt"]["reconnects"] == 0  # the client ids differ


@pytest.mark.parametrize("how", ["stopped", "killed", "renamed"])
def test_a_board_whose_namesake_goes_says_again_what_that_took_back(
    how: str, tmp_path: Path, broker: Broker, listener: Listener, edged
):
    """Both boards advise to rename a board; the renaming had removed the other board from the broker and Home
    Assistant.
    """
    (tmp_path / "other").mkdir()
    there: dict[str, bytes] = {}

    def until(accept: Callable[[], bool]) -> None:
        listener.next(lambda message: there.update({message.topic: message.payload}) or accept())

    daemon = edged(mqtt(broker.port) + replay(100))
    with Edged(tmp_path / "other", mqtt(broker.port) + replay(100)) as other:
        for each in (other, daemon):
            each.wait_for_log("mqtt broker is degraded: another board is named 'board' too")
            each.wait_for_log("pipeline replayed is running")
        until(lambda: there.get("edged/board/pipelines/replayed/decision", b"") != b"")
        if how == "renamed":
            other.configure(mqtt(broker.port, "other") + replay(100))
            other.reload()
        else:
            other.stop(signal.SIGTERM if how == "stopped" else signal.SIGKILL)
        boot = daemon.call("status")["boot"].encode()
        until(lambda: there["edged/board/availability"] != b"online")
        until(
            lambda: (
                there["edged/board/availability"] == b"online"
                and boot in there["edged/board/state"]
                and b'"running"' in there["edged/board/pipelines/replayed/state"]
                and b"replayed" in there[HOME]
            ),
        )


def test_a_board_knows_what_it_said_itself_before_a_restart(broker: Broker, listener: Listener, edged):
    daemon = edged(mqtt(broker.port) + replay(100))
    listener.wait_for("edged/board/availability", b"online")
    daemon.stop(signal.SIGKILL)
    again = edged(mqtt(broker.port) + replay(100))
    listener.wait_for("edged/board/availability", b"online")
    assert again.call("status")["mqtt"]["namesake"] == ""
    assert "another board" not in "".join(again.log)
