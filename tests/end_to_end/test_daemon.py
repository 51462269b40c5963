"""The real daemon with a real broker, a real model, and a pseudo-terminal for a sensor."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen

import pytest

from tests.broker import Broker, Subscriber, free_port
from tests.edged_process import Edged, SerialPort
from tests.motion import RECORDING, lines
from tests.patience import PATIENCE

MOTION = Path(__file__).parents[2] / "firmware_models" / "motion" / "1.0.0"

MQTT = '[device]\nname = "board"\n[mqtt]\nhost = "127.0.0.1"\nport = {port}\n'

SERIAL = """
[sources.wrist]
kind = "serial"
port = "{link}"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
sequence = "seq"
rate = 10
[sources.wrist.supervision]
retry_min = 0.1
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
[pipelines.replayed]
source = "recorded"
model = "motion"
"""

OPENED = "source wrist is open"


def replay(pace: str = '"fast"') -> str:
    return REPLAY.format(recording=RECORDING, pace=pace)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


@pytest.fixture
def subscriber(broker: Broker) -> Iterator[Subscriber]:
    with Subscriber(broker.port, "edged/#", "homeassistant/#") as listening:
        yield listening


@pytest.fixture
def edged(tmp_path: Path) -> Iterator[Callable[[str], Edged]]:
    started: list[Edged] = []

    def start(config: str, **environ: str) -> Edged:
        started.append(Edged(tmp_path, config, **environ))
        started[-1].start()
        return started[-1]

    yield start
    for daemon in started:
        daemon.__exit__()


def state(subscriber: Subscriber, topic: str, wanted: str) -> dict[str, Any]:
    """Return the first state record on a topic with this state."""

    def fits(message: Any) -> bool:
        return message.topic == f"edged/board/{topic}/state" and json.loads(message.payload)["state"] == wanted

    found: dict[str, Any] = json.loads(subscriber.next(fits).payload)
    return found


def result(subscriber: Subscriber, pipeline: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(subscriber.wait_for(f"edged/board/pipelines/{pipeline}/result").payload)
    return found


def test_a_sensor_becomes_predictions_on_mqtt(tmp_path: Path, broker: Broker, subscriber: Subscriber, edged):
    sensor = SerialPort(tmp_path / "imu")
    daemon = edged(MQTT.format(port=broker.port) + SERIAL.format(link=sensor.link))
    daemon.wait_for_log(OPENED)
    sensor.write(lines(0, 50))
    first, second = result(subscriber, "motion"), result(subscriber, "motion")
    assert (first["label"], first["model"], first["version"]) == ("standing", "motion", "1.0.0")
    assert first["schema"] == "edged.result/1"
    assert first["id"] == f"{first['boot']}:motion:0"
    assert (second["seq"], second["decision"], second["changed"]) == (1, "standing", True)
    assert abs(sum(first["scores"].values()) - 1) < 0.02


def test_online_comes_after_the_states_and_stopped_comes_last(broker: Broker, subscriber: Subscriber, edged):
    daemon = edged(MQTT.format(port=broker.port) + replay("10"))
    heard: list[str] = []
    subscriber.next(lambda message: heard.append(message.topic) or message.payload == b"online")  # type: ignore[func-returns-value]
    assert {f"edged/board/{part}/state" for part in ("sources/recorded", "models/motion", "pipelines/replayed")} < set(
        heard
    )
    assert daemon.stop() == 0
    subscriber.wait_for("edged/board/availability", b"stopped")
    assert "edged/board/availability" not in heard[:-1]


def test_a_killed_daemon_is_offline_by_its_last_will(broker: Broker, subscriber: Subscriber, edged):
    daemon = edged(MQTT.format(port=broker.port))
    subscriber.wait_for("edged/board/availability", b"online")
    daemon.stop(signal.SIGKILL)
    subscriber.wait_for("edged/board/availability", b"offline")


def test_every_window_of_a_recording_arrives_once_and_in_order(broker: Broker, subscriber: Subscriber, edged):
    daemon = edged(MQTT.format(port=broker.port) + replay())
    results = [result(subscriber, "replayed") for _ in range(77)]
    assert [each["seq"] for each in results] == list(range(77))
    assert len({each["id"] for each in results}) == 77
    daemon.wait_for_log("source recorded is stopped: the recording has ended")


def test_it_starts_without_its_broker_and_delivers_when_that_comes(tmp_path: Path, edged):
    broker = Broker(tmp_path)
    daemon = edged(MQTT.format(port=broker.port) + replay())
    daemon.wait_for_log("source recorded is stopped: the recording has ended")
    assert daemon.call("status")["mqtt"]["connected"] is False
    with broker, Subscriber(broker.port, "edged/#") as subscriber:
        results = [result(subscriber, "replayed") for _ in range(77)]
    assert [each["seq"] for each in results] == list(range(77))


def test_a_sensor_may_be_absent_come_and_go(tmp_path: Path, broker: Broker, subscriber: Subscriber, edged):
    sensor = SerialPort(tmp_path / "imu")
    sensor.unplug()
    daemon = edged(MQTT.format(port=broker.port) + SERIAL.format(link=sensor.link) + replay("100"))
    absent = state(subscriber, "sources/wrist", "failed")
    assert str(sensor.link) in absent["reason"]
    assert absent["hint"]
    sensor.plug()
    daemon.wait_for_log(OPENED)
    sensor.write(lines(0, 40))
    assert result(subscriber, "motion")["seq"] == 0
    sensor.unplug()
    state(subscriber, "sources/wrist", "failed")
    sensor.plug()
    daemon.wait_for_log(OPENED, times=2)
    sensor.write(lines(40, 40))
    assert result(subscriber, "motion")["seq"] > 0
    result(subscriber, "replayed")
    other = {each["name"]: each for each in daemon.call("pipelines")}["replayed"]
    assert (other["health"]["state"], other["dropped"], other["errors"]) == ("running", 0, 0)


def test_garbage_on_the_line_is_counted_and_nothing_else_happens(
    tmp_path: Path, broker: Broker, subscriber: Subscriber, edged
):
    sensor = SerialPort(tmp_path / "imu")
    daemon = edged(MQTT.format(port=broker.port) + SERIAL.format(link=sensor.link))
    daemon.wait_for_log(OPENED)
    before = rss(daemon)
    sensor.write(b"x" * 10_000_000)
    sensor.write(b"\nnan,1,2,3,4,5,6\n1,2\n" + os.urandom(300_000) + b"\n")
    sensor.write(lines(0, 40))
    assert result(subscriber, "motion")["label"] == "standing"
    faults = {each["name"]: each["faults"] for each in daemon.call("sources")}["wrist"]
    assert sum(faults.values()) >= 3
    assert rss(daemon) - before < 20e6


def test_what_came_while_the_process_was_stopped_is_worked_off_whole(
    tmp_path: Path, broker: Broker, subscriber: Subscriber, edged
):
    sensor = SerialPort(tmp_path / "imu")
    daemon = edged(MQTT.format(port=broker.port) + SERIAL.format(link=sensor.link))
    daemon.wait_for_log(OPENED)
    sensor.write(lines(0, 40))
    assert result(subscriber, "motion")["seq"] == 0
    daemon.process.send_signal(signal.SIGSTOP)
    sending = Thread(target=sensor.write, args=(lines(40, 360),))  # more than the port holds
    sending.start()
    sensor.wait_until_full()
    daemon.process.send_signal(signal.SIGCONT)
    sending.join()
    assert [result(subscriber, "motion")["seq"] for _ in range(36)] == list(range(1, 37))


def rss(daemon: Edged) -> int:
    daemon.wait_for_log("serves")
    return daemon.call("status")["memory"]["rss_bytes"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"certainly not a model", "not a TFLite file"),
        (b"\x1c\0\0\0TFL3" + b"\xff" * 100, "truncated"),
        (b"", "not a TFLite file"),
    ],
)
def test_a_broken_model_fails_its_own_pipeline_and_no_other(
    content: bytes, reason: str, tmp_path: Path, broker: Broker, subscriber: Subscriber, edged
):
    (tmp_path / "broken.tflite").write_bytes(content)
    broken = f'[models.broken]\npath = "{tmp_path}/broken.tflite"\n'
    broken += '[pipelines.broken]\nsource = "recorded"\nmodel = "broken"\n'
    daemon = edged(MQTT.format(port=broker.port) + replay() + broken)
    failed = state(subscriber, "pipelines/broken", "failed")
    assert reason in failed["reason"]
    assert failed["hint"]
    assert result(subscriber, "replayed")["seq"] == 0
    status = daemon.call("status")
    assert status["state"] == "degraded"
    assert "broken" in status["health"]["reason"]


def test_a_reload_touches_only_what_changed(tmp_path: Path, broker: Broker, subscriber: Subscriber, edged):
    config = MQTT.format(port=broker.port) + replay("50")
    daemon = edged(config)
    assert result(subscriber, "replayed")["seq"] == 0
    daemon.configure(config + '[pipelines.second]\nsource = "recorded"\nmodel = "motion"\n')
    daemon.reload()
    daemon.wait_for_log("reloaded: pipelines.second")
    assert result(subscriber, "second")["seq"] == 0
    untouched = {each["name"]: each for each in daemon.call("pipelines")}["replayed"]
    assert untouched["windows"] > 1
    daemon.configure(config)
    daemon.reload()
    daemon.wait_for_log("reloaded: pipelines.second", times=2)
    subscriber.wait_for("edged/board/pipelines/second/state", b"")
    assert [each["name"] for each in daemon.call("pipelines")] == ["replayed"]


def test_a_stop_in_the_middle_of_a_reload_is_clean(broker: Broker, subscriber: Subscriber, edged):
    def config(pace: str, isolate: str) -> str:
        mine = replay(pace).replace('model = "motion"', 'model = "mine"')
        return f'{MQTT.format(port=broker.port)}{mine}[models.mine]\npath = "{MOTION}"\nisolate = {isolate}\n'

    daemon = edged(config("50", "false"))
    result(subscriber, "replayed")
    daemon.configure(config("60", "true"))
    daemon.reload()
    daemon.wait_for_log("pipeline replayed is stopped")  # then the model is loaded, which takes a while
    assert daemon.stop() == 0
    subscriber.wait_for("edged/board/availability", b"stopped")


def test_a_reload_during_the_start_waits_for_its_end(edged):
    def config(*models: str) -> str:
        tables = [f'[models.{name}]\npath = "{MOTION}"\nisolate = {str(name == "second").lower()}\n' for name in models]
        pipelines = [f'[pipelines.{name}]\nsource = "recorded"\nmodel = "{name}"\nsinks = []\n' for name in models]
        return replay("10").partition("[pipelines")[0] + "".join([*tables, *pipelines])

    daemon = edged(config("first", "second", "third"))
    daemon.wait_for_log("model first is running")  # then the second model is loaded, which takes a while
    daemon.configure(config("first"))
    daemon.reload()
    daemon.wait_for_log("reloaded: models.second, models.third, pipelines.second, pipelines.third")
    assert [pipeline["name"] for pipeline in daemon.call("pipelines")] == ["first"]
    assert daemon.stop() == 0


def test_a_changed_pipeline_goes_on_counting(broker: Broker, subscriber: Subscriber, edged):
    config = MQTT.format(port=broker.port) + replay("50")
    daemon = edged(config)
    last = result(subscriber, "replayed")
    daemon.configure(config + "[pipelines.replayed.decision]\nthreshold = 0.1\n")
    daemon.reload()
    daemon.wait_for_log("reloaded: pipelines.replayed")
    ids = {last["id"]}
    for _ in range(10):
        fresh = result(subscriber, "replayed")
        assert fresh["id"] not in ids
        ids.add(fresh["id"])


def test_a_broken_config_keeps_the_last_good_one_visibly(broker: Broker, subscriber: Subscriber, edged):
    config = MQTT.format(port=broker.port) + replay("10")
    daemon = edged(config)
    subscriber.wait_for("edged/board/availability", b"online")
    daemon.configure(config.replace('model = "motion"', 'model = "montion"') + "\n[nonsense]\n")
    daemon.reload()
    daemon.wait_for_log("the new configuration is refused")
    degraded = json.loads(
        subscriber.next(lambda message: message.topic == "edged/board/state" and b"degraded" in message.payload).payload
    )
    assert "configuration" in degraded["reason"]
    refused = daemon.call("status")["config"]["error"]
    assert any("nonsense" in problem for problem in refused["problems"])
    assert daemon.call("pipelines")[0]["health"]["state"] in ("starting", "running")
    daemon.configure(config)
    daemon.reload()
    daemon.wait_for_log("reloaded")
    assert daemon.call("status")["config"]["error"] is None


def test_another_broker_is_another_life_for_all_parts(tmp_path: Path, broker: Broker, subscriber: Subscriber, edged):
    (tmp_path / "second").mkdir()
    config = MQTT.format(port=broker.port) + replay("50")
    daemon = edged(config)
    result(subscriber, "replayed")
    with Broker(tmp_path / "second") as other, Subscriber(other.port, "edged/#") as there:
        daemon.configure(MQTT.format(port=other.port) + replay("50"))
        daemon.reload()
        subscriber.wait_for("edged/board/availability", b"stopped")
        there.wait_for("edged/board/availability", b"online")
        assert result(there, "replayed")["seq"] > 0


def test_without_a_broker_it_infers_into_a_file(tmp_path: Path, edged):
    log = tmp_path / "results.jsonl"
    daemon = edged(
        '[device]\nname = "board"\n'
        + replay().replace('model = "motion"', 'model = "motion"\nsinks = ["log"]')
        + f'[sinks.log]\nkind = "jsonl"\npath = "{log}"\n'
    )
    daemon.wait_for_log("source recorded is stopped: the recording has ended")
    assert daemon.stop() == 0
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["seq"] for record in records] == list(range(77))


def test_a_second_daemon_is_refused(edged, tmp_path: Path):
    daemon = edged('[device]\nname = "board"\n')
    daemon.wait_for_log("serves")
    second = Edged(tmp_path, '[device]\nname = "board"\n')
    with second:
        assert second.process.wait(PATIENCE) == 1
        second.wait_for_log(f"is in use by edged (process {daemon.process.pid}, runtime folder {tmp_path}/run)")


def test_a_wrong_config_at_the_start_names_everything_that_is_wrong(tmp_path: Path):
    daemon = Edged(tmp_path, "[mqtt]\nprot = 1883\n[pipelines.a]\nsource = 1\n")
    with daemon:
        assert daemon.process.wait(PATIENCE) == 78
        daemon.wait_for_log("mqtt.prot")
        daemon.wait_for_log("pipelines.a.source")


def test_check_proves_the_models_and_exits(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    daemon = Edged(tmp_path, replay())
    daemon.start("--check")
    assert daemon.process.wait(PATIENCE) == 0
    valid, proof = capfd.readouterr().out.splitlines()
    assert valid == "the configuration is valid: 1 pipeline, 1 source"
    assert re.fullmatch(r"model motion 1\.0\.0 on \S+ \S+: right on 16 golden samples, off by at most 0 .*steps", proof)
    daemon.configure(replay().replace("motion", "mition"))
    daemon.start("--check")
    assert daemon.process.wait(PATIENCE) == 0  # a version may be installed later
    assert "did you mean 'motion'" in capfd.readouterr().out
    daemon.configure(replay().replace("source =", "sorce ="))
    daemon.start("--check")
    assert daemon.process.wait(PATIENCE) == 78
    daemon.wait_for_log('did you mean "source"')


def test_home_assistant_learns_of_a_pipeline_and_of_its_end(broker: Broker, subscriber: Subscriber, edged):
    topic = "homeassistant/device/edged_board/config"
    config = MQTT.format(port=broker.port) + "home_assistant = true\n"
    daemon = edged(config + replay("50"))
    announced = json.loads(subscriber.wait_for(topic).payload)["cmps"]
    assert announced["pipeline_replayed_class"]["state_topic"] == "edged/board/pipelines/replayed/decision"
    assert daemon.stop() == 0
    daemon = edged(config)
    removed = {"p": "sensor"}

    def takes_back(message: Any) -> bool:
        return message.topic == topic and json.loads(message.payload)["cmps"].get("pipeline_replayed_class") == removed

    subscriber.next(takes_back)
    subscriber.client.publish("homeassistant/status", "online")
    subscriber.next(lambda message: message.topic == topic and not message.retain)


def test_home_assistant_forgets_the_name_a_device_had(broker: Broker, subscriber: Subscriber, edged):
    config = MQTT.format(port=broker.port) + "home_assistant = true\n"
    daemon = edged(config)
    subscriber.wait_for("homeassistant/device/edged_board/config")
    daemon.configure(config.replace('"board"', '"kitchen"'))
    daemon.reload()
    subscriber.wait_for("homeassistant/device/edged_board/config", b"")
    subscriber.wait_for("homeassistant/device/edged_kitchen/config")


def test_what_one_broker_never_got_the_next_one_gets(tmp_path: Path, broker: Broker, subscriber: Subscriber, edged):
    (tmp_path / "dead").mkdir()
    dead = Broker(tmp_path / "dead")
    daemon = edged(MQTT.format(port=dead.port) + replay())
    daemon.wait_for_log("source recorded is stopped: the recording has ended")
    daemon.configure(MQTT.format(port=broker.port))
    daemon.reload()
    results = [result(subscriber, "replayed") for _ in range(77)]
    assert [each["seq"] for each in results] == list(range(77))


def test_without_a_state_folder_it_infers_all_the_same(broker: Broker, subscriber: Subscriber, tmp_path: Path, edged):
    (tmp_path / "state").write_text("in the way")
    daemon = edged(MQTT.format(port=broker.port) + replay())
    results = [result(subscriber, "replayed") for _ in range(77)]
    assert [each["seq"] for each in results] == list(range(77))
    assert daemon.stop() == 0


def test_the_metrics_page_and_edgectl_tell_the_same_figures(edged):
    port = free_port()
    daemon = edged(f'[device]\nname = "board"\n[metrics]\nport = {port}\n' + replay())
    daemon.wait_for_log("source recorded is stopped: the recording has ended")
    daemon.wait_for_log("serves")
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as page:
        told = page.read().decode()
    assert 'edged_source_samples_total{source="recorded"} 800' in told
    assert 'edged_pipeline_windows_total{pipeline="replayed"} 77' in told
    names = {line.split()[2] for line in told.splitlines() if line.startswith("# TYPE")}
    again = daemon.call("metrics")["text"]
    assert names == {line.split()[2] for line in again.splitlines() if line.startswith("# TYPE")}
