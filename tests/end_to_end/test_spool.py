"""The real daemon, a real broker that comes and goes, and a subscriber that accounts for every result."""

import json
import signal
from pathlib import Path

from tests.broker import Broker, Subscriber
from tests.edged_process import Edged

RECORDING = Path(__file__).parents[2] / "demo" / "recording.csv"

CONFIG = f"""
[device]
name = "board"
[spool]
commit_seconds = 0.05
[sources.recorded]
kind = "replay"
path = "{RECORDING}"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10
pace = "fast"
[pipelines.replayed]
source = "recorded"
model = "motion"
[mqtt]
host = "127.0.0.1"
port = """

ENDED = "source recorded is stopped: the recording has ended"


def unsaved(daemon: Edged) -> int:
    return daemon.call("spool")["disk"]["unsaved"]  # type: ignore[no-any-return]


def results(subscriber: Subscriber, count: int) -> list[dict[str, object]]:
    topic = "edged/board/pipelines/replayed/result"
    return [json.loads(subscriber.wait_for(topic).payload) for _ in range(count)]


def test_what_a_killed_daemon_had_to_say_is_said_by_the_next_one(tmp_path: Path):
    broker = Broker(tmp_path)
    with Edged(tmp_path, CONFIG + str(broker.port)) as daemon:
        daemon.wait_for_log(ENDED)
        while unsaved(daemon) or daemon.call("spool")["depth"] < 77:
            pass
        daemon.stop(signal.SIGKILL)
    daemon.configure(f'[device]\nname = "board"\n[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n')
    with broker, Subscriber(broker.port, "edged/#") as subscriber, daemon:
        found = results(subscriber, 77)
        assert [each["seq"] for each in found] == list(range(77))
        assert len({each["id"] for each in found}) == 77
        assert all(each["replayed"] for each in found)


def test_what_a_clean_stop_could_not_send_is_sent_after_the_next_start(tmp_path: Path):
    broker = Broker(tmp_path)
    daemon = Edged(tmp_path, CONFIG + str(broker.port))
    with daemon:
        daemon.wait_for_log(ENDED)
        assert daemon.stop() == 0
    with broker, Subscriber(broker.port, "edged/#") as subscriber:
        daemon.configure(f'[device]\nname = "board"\n[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n')
        with daemon:
            assert [each["seq"] for each in results(subscriber, 77)] == list(range(77))


def test_of_always_nothing_that_anybody_was_told_of_is_lost_by_a_kill(tmp_path: Path):
    broker = Broker(tmp_path)
    told = tmp_path / "told.jsonl"
    always = CONFIG.replace('model = "motion"', 'model = "motion"\ndurability = "always"\nsinks = ["file", "mqtt"]')
    with Edged(tmp_path, f'[sinks.file]\nkind = "jsonl"\npath = "{told}"\n{always}{broker.port}') as daemon:
        while not told.exists() or len(told.read_text().splitlines()) < 20:
            pass
        daemon.stop(signal.SIGKILL)
    daemon.configure(f'[device]\nname = "board"\n[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n')
    ids = [json.loads(line)["id"] for line in told.read_text().splitlines()]
    with broker, Subscriber(broker.port, "edged/#") as subscriber, daemon:
        assert [each["id"] for each in results(subscriber, len(ids))] == ids
