"""A real broker behind a link that breaks: every result arrives, in order, and what comes twice is known by its id."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from edged.core.health import Status
from edged.core.topics import Topics
from edged.core.types import Message
from edged.outbox.disk_spool import DiskSpool
from edged.outbox.options import MqttOptions, Policy, SpoolOptions
from edged.outbox.publisher import Publisher
from tests.broker import Broker, Subscriber
from tests.flaky_proxy import FlakyProxy
from tests.patience import PATIENCE

TOPICS = Topics("edged", "board")
RESULT = TOPICS.result("motion")


def publisher(folder: Path, port: int, durability: str) -> Publisher:
    policies = {"motion": Policy(durability=durability)}  # type: ignore[arg-type]
    quiet = Status("any", time.monotonic, lambda name, health: None)
    spool = DiskSpool(folder / "spool", SpoolOptions(commit_seconds=0.01), policies, status=quiet)
    options = MqttOptions(host="127.0.0.1", port=port)
    return Publisher(options, TOPICS, spool, Status("mqtt", time.monotonic, lambda name, health: None))


def message(seq: int) -> Message:
    payload = json.dumps({"id": f"boot:motion:{seq}", "seq": seq}).encode()
    return Message(topic=RESULT, payload=payload, origin="motion", seq=seq, created=time.monotonic())


@pytest.mark.parametrize("durability", ["spill", "always", "memory"])
def test_through_every_outage_and_a_restart_each_result_arrives_in_order(tmp_path: Path, durability: str) -> None:
    with Broker(tmp_path) as broker, FlakyProxy(broker.port) as link, Subscriber(broker.port, RESULT) as subscriber:
        ours = publisher(tmp_path, link.port, durability)
        ours.start()
        seq = 0
        for outage in ("none", "drop", "refuse", "none", "restart", "none"):
            if outage == "drop":
                link.drop()
            if outage == "refuse":
                link.refuse()
            if outage == "restart":
                ours.stop(PATIENCE if durability == "memory" else 0)
                assert ours.join(PATIENCE)
                left = ours.spool.close(PATIENCE)
                assert left == [] or durability == "memory"
                ours = publisher(tmp_path, link.port, durability)
                ours.start()
            for _ in range(200):
                ours.put(message(seq))
                seq += 1
            link.refuse(False)
        seen: list[int] = []
        while seq - 1 not in seen:
            seen.append(json.loads(subscriber.wait_for(RESULT).payload)["seq"])
        ours.stop(PATIENCE)
        assert ours.join(PATIENCE)
        ours.spool.close(PATIENCE)

    assert list(dict.fromkeys(seen)) == list(range(seq))
    assert ours.spool.stats.dropped == 0
