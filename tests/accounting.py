"""Accounting for results: a subscriber that records all results, and the rules for balanced books.

Results sent by a board are known from a file (a jsonl sink), results received from the subscriber. Mosquitto is not
durable: a kill loses messages that were acknowledged but not passed on. To leave the board as the only cause of a loss,
the subscriber connects before the board does, at QoS 0 and without limits in the broker (`UNBOUNDED`): then the broker
writes a message into the subscriber's socket before acknowledging the message, and data in a socket outlive the sender.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from threading import Condition, Event
from typing import Any, NamedTuple

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tests.patience import PATIENCE

UNBOUNDED = ("max_queued_messages 0", "max_inflight_messages 0")
"""Lines of mosquitto.conf by which messages are forwarded at once."""

PROMISES = """
[pipelines.spilled]
source = "wrist"
model = "motion"
queue = 1000
sinks = ["mqtt", "book"]
[pipelines.careful]
source = "wrist"
model = "motion"
queue = 1000
durability = "always"
sinks = ["mqtt", "book"]
[sinks.book]
kind = "jsonl"
path = "{book}"
max_bytes = 1_000_000_000
"""
"""Parts of a configuration: both kinds of promise side by side, and the file of sent results."""

Result = dict[str, Any]
Line = tuple[str, str]
"""Boot id of a daemon, and name of a pipeline."""


class Auditor:
    """Subscriber to the results of all pipelines, over successive connections; `heard` is in order of arrival."""

    def __init__(self, port: int, user: str = "", password: str = "") -> None:
        self._port = port
        self._login = (user, password)
        self._payloads: list[bytes] = []
        self._arrived = Condition()

    def connect(self) -> None:
        """Subscribe at a running broker. Raises an error without one."""
        granted, self._gone = Event(), Event()
        gone = self._gone
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        if self._login[0]:
            self._client.username_pw_set(*self._login)
        self._client.on_connect = lambda client, *_: client.subscribe("+/+/pipelines/+/result", qos=0)
        self._client.on_subscribe = lambda *_: granted.set()
        self._client.on_message = lambda _client, _data, message: self._hear(message.payload)
        self._client.on_disconnect = lambda *_: gone.set()
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        assert granted.wait(PATIENCE), "the broker did not grant the subscription"

    def hear_out(self) -> None:
        """Receive the last messages of a broker that has ended."""
        assert self._gone.wait(PATIENCE), "the broker is still there"
        self._client.loop_stop()

    def disconnect(self) -> None:
        """Hear no more."""
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def heard(self) -> list[Result]:
        return [json.loads(payload) for payload in list(self._payloads)]

    def hears_more(self, patience: float) -> bool:
        """Return whether another message arrives."""
        with self._arrived:
            before = len(self._payloads)
            return self._arrived.wait_for(lambda: len(self._payloads) > before, patience)

    def hears_all(self, ids: set[str]) -> bool:
        """Return whether all of these arrive; False if no further message arrives first."""
        with self._arrived:
            while True:
                before = len(self._payloads)  # counted first, so that messages from now on are not awaited
                missing = ids - {result["id"] for result in self.heard}
                if not missing:
                    return True
                if not self._arrived.wait_for(lambda before=before: len(self._payloads) > before, PATIENCE):
                    print(f"{len(missing)} never came, such as {min(missing)}")
                    return False

    def _hear(self, payload: bytes) -> None:
        with self._arrived:
            self._payloads.append(payload)
            self._arrived.notify_all()


class Books(NamedTuple):
    """Numbers of results by line: arrived numbers in the order of first arrival, and counts of repetitions."""

    arrived: dict[Line, list[int]]
    again: int


def balance(heard: Iterable[Result]) -> Books:
    """Enter received results. A repetition must equal the first arrival, and be marked as replayed."""
    known: dict[str, Result] = {}
    arrived: dict[Line, list[int]] = defaultdict(list)
    again = 0
    for result in heard:
        bare = {key: value for key, value in result.items() if key != "replayed"}
        if (before := known.setdefault(result["id"], bare)) is not bare:
            assert before == bare, "two results have one id"
            assert result.get("replayed"), f"{result['id']} came again and does not say so"
            again += 1
        else:
            arrived[line_of(result)].append(result["seq"])
    return Books(dict(arrived), again)


def line_of(result: Result) -> Line:
    return result["boot"], result["pipeline"]


def said(file: Path) -> list[Result]:
    """Return the results written by a jsonl sink; a kill may have torn the last line."""
    found = []
    for line in file.read_bytes().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
