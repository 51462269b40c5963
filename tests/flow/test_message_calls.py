"""Calls of Python functions for a message, from the bytes of a line to the bytes in the socket of a broker.

On an idle board a call costs several times as much as in a loop, since no cache holds the code of the function. The
cheapest of several blocks of messages counts, without a message through the mailbox or the spool.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from msgspec.structs import replace

from benchmarks.inline import CHANNELS, served, sink_context
from benchmarks.processes import recorded_lines
from benchmarks.spool import TOPICS, quiet, unopened
from edged.api import Chunk, Source, SourceConfig, SourceInfo
from edged.core.framing import Signal, csv_decoder
from edged.core.source_health import Supervision
from edged.flow.delivery import Delivery
from edged.flow.pipeline import Pipeline
from edged.flow.reader import Reader
from edged.models.store import FACTORY, Store
from edged.outbox.client import Client
from edged.outbox.options import MqttOptions
from edged.outbox.publisher import Publisher
from edged.sinks.mqtt import MqttSink
from tests.patience import PATIENCE
from tests.scripted_broker import ScriptedBroker

MOST = 105

WARM_UP, BLOCKS, MESSAGES = 100, 5, 20


class Block:
    """Calls for MESSAGES messages; the thread of the source has `sent` so many to the socket."""

    def __init__(self) -> None:
        self.calls = 0
        self.sent = 0

    def count(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self.calls += 1
            self.sent += frame.f_code is Client.send.__code__

    @property
    def is_whole(self) -> bool:
        return self.sent == MESSAGES


class Wrist(SourceConfig, frozen=True):
    """Motion sensor that counts the calls on the reader's thread, until BLOCKS are whole."""

    blocks: list[Block]

    def describe(self) -> SourceInfo:
        return SourceInfo(shape=(len(CHANNELS),), channels=CHANNELS)

    def open(self) -> Source:
        return Lines(self.blocks)


class Lines:
    def __init__(self, blocks: list[Block]) -> None:
        self.faults: dict[str, int] = {}
        self._blocks = blocks
        self._lines = [f"{line}\r\n".encode() for line in recorded_lines()]
        self._decoder = csv_decoder(Signal(channels=CHANNELS), CHANNELS, midway=False)
        self._read = 0

    def read(self, timeout: float) -> Chunk | None:
        sys.setprofile(None)
        if sum(block.is_whole for block in self._blocks) == BLOCKS:
            raise EOFError
        time.sleep(0.001)  # for the answer of the broker
        self._read += 1
        if self._read > WARM_UP:
            if self._read % MESSAGES == 1:
                self._blocks.append(Block())
            sys.setprofile(self._blocks[-1].count)
        (stretch,) = self._decoder.decode(self._lines[self._read % len(self._lines)])
        return Chunk(stretch.samples, time.monotonic(), stretch.lost)

    def close(self) -> None:
        pass


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_message_takes_few_calls(tmp_path: Path) -> None:
    bundle = Store(FACTORY).find("motion")
    blocks: list[Block] = []
    with ScriptedBroker() as broker:
        options = MqttOptions(host="127.0.0.1", port=broker.port)
        publisher = Publisher(options, TOPICS, unopened(tmp_path), quiet("mqtt"))
        publisher.start()
        wait_for(lambda: publisher.status.health.state == "running")
        pipeline = Pipeline(
            "motion",
            replace(bundle.manifest.window, hop=1, rate=None),
            columns=None,
            patient=False,
            capacity=64,
            sinks=[Delivery(lambda: MqttSink().open(sink_context(publisher)), quiet("sink"))],
            status=quiet("pipeline"),
            clock=time.monotonic,
        )
        pipeline.in_place = True
        pipeline.serve(served(bundle))
        reader = Reader("wrist", Wrist(blocks), (pipeline,), quiet("source"), time.monotonic, Supervision())
        reader.start()
        assert reader.join(PATIENCE)
        pipeline.stop()
        assert pipeline.join(PATIENCE)
        publisher.stop(PATIENCE)
        assert publisher.join(PATIENCE)
        publisher.spool.close(PATIENCE)

    whole = [block.calls / MESSAGES for block in blocks if block.is_whole]
    assert min(whole) <= MOST, whole
