"""SIGKILL at any moment: a real process with a real file, ten times over; `make soak` has the long form."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edged.core.health import Status
from edged.outbox.disk_spool import DiskSpool
from edged.outbox.options import Policy, SpoolOptions
from tests.outbox.test_disk_spool import drain
from tests.patience import PATIENCE

OFFLINE = """
while True:
    for _ in range(random.randrange(200)):
        put()
    while spool.stats.disk.unsaved:
        time.sleep(0.001)
    print(seq, flush=True)
"""

ONLINE = """
spool.resume()
while True:
    for _ in range(random.randrange(50)):
        if spool.depth < 1000:
            put()
    for entry in spool.take(random.randrange(1, 40)):
        print(entry.message.seq, flush=True)
        spool.ack([entry.id])
"""

PROMISED = """
while True:
    for _ in range(random.randrange(1, 20)):
        put()
        print(seq, flush=True)
    time.sleep(random.random() / 100)
"""

CHILD = """
import random, sys, time
from pathlib import Path
from edged.core.health import Status
from edged.core.types import Message
from edged.outbox.disk_spool import DiskSpool
from edged.outbox.options import Policy, SpoolOptions

status = Status("spool", time.monotonic, lambda name, health: None)
policies = {{"a": Policy(durability="{durability}")}}
spool = DiskSpool(Path({folder!r}), SpoolOptions(commit_seconds={commit}), policies, status=status)
spool.start(lambda: None)
seq = -1
def put():
    global seq
    seq += 1
    payload = b'{{"seq":%d,"x":"%s"}}' % (seq, random.randbytes(40).hex().encode())
    spool.put(Message(topic="t", payload=payload, origin="a", seq=seq, created=time.monotonic()))
{loop}
"""


def run_and_kill(folder: Path, durability: str, loop: str, seconds: float, commit: float = 0.01) -> list[int]:
    """Return the child's output up to the kill, a given time after the first words."""
    code = CHILD.format(folder=str(folder), durability=durability, loop=loop, commit=commit)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = [child.stdout.readline()]
        time.sleep(seconds)
        child.kill()
        said += child.stdout.readlines()
    return [int(line) for line in said if line.endswith("\n")]


def recovered(folder: Path) -> list[int]:
    status = Status("spool", time.monotonic, lambda name, health: None)
    spool = DiskSpool(folder, SpoolOptions(commit_seconds=0), {"a": Policy()}, status=status)
    spool.start(lambda: None)
    deadline = time.monotonic() + PATIENCE
    while not spool.depth and time.monotonic() < deadline:
        time.sleep(0.005)
    entries = drain(spool, spool.depth)
    spool.close(PATIENCE)
    assert spool.health.state == "running"
    return [entry.message.seq for entry in entries]


@pytest.mark.parametrize("turn", range(5))
def test_killed_offline_it_loses_nothing_that_was_committed(turn: int, tmp_path: Path) -> None:
    said = run_and_kill(tmp_path, "spill", OFFLINE, random.random() / 2)
    found = recovered(tmp_path)

    assert found == list(range(len(found)))
    assert len(found) > said[-1]


@pytest.mark.parametrize("turn", range(5))
def test_killed_while_sending_it_has_whatever_was_not_sent_and_comes_before_what_was(turn: int, tmp_path: Path) -> None:
    sent = run_and_kill(tmp_path, "always", ONLINE, random.random() / 2)
    found = recovered(tmp_path)

    assert sent == list(range(len(sent)))
    assert found == list(range(found[0], found[-1] + 1))
    assert found[0] <= len(sent)
    assert found[-1] >= len(sent) - 1


@pytest.mark.parametrize("turn", range(5))
def test_killed_at_any_moment_it_has_every_message_of_always_that_was_put(turn: int, tmp_path: Path) -> None:
    put = run_and_kill(tmp_path, "always", PROMISED, random.random() / 2, commit=3600)
    found = recovered(tmp_path)

    assert found == list(range(len(found)))
    assert len(found) > put[-1]
