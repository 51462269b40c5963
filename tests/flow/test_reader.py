import logging
import os
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from edged.api import Chunk, DeviceError, Obstacle, Source, SourceConfig, SourceInfo
from edged.core.health import Health, Status
from edged.core.source_health import Supervision
from edged.flow.reader import Reader
from edged.flow.shared_worker import SharedWorker
from edged.sources.replay import ReplaySource
from edged.sources.serial import SerialSource

PROMPT = Supervision(retry_min=0.001, retry_max=0.001)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """Opened sensor with a script: chunks to yield, errors to raise, seconds of silence."""

    def __init__(self, acts: list[Any], clock: Clock) -> None:
        self.faults: dict[str, int] = {}
        self.closed = False
        self._acts = deque(acts)
        self._clock = clock

    def read(self, timeout: float) -> Chunk | None:
        act = self._acts.popleft() if self._acts else EOFError()
        if isinstance(act, Exception):
            raise act
        if isinstance(act, dict):
            self.faults = act
            return None
        if isinstance(act, float):
            self._clock.now += act
            return None
        return act and act._replace(time=self._clock.now)

    def close(self) -> None:
        self.closed = True


class Script(SourceConfig, frozen=True, kw_only=True):
    """Sensor that plays an entry of `openings` at each opening: a script, or an error."""

    openings: list[Any]
    clock: Clock = Clock()
    rate: float | None = 100.0
    pace: float | None = None
    patient: bool = False
    opened: list[Scripted] = []  # noqa: RUF012, copied by msgspec

    def describe(self) -> SourceInfo:
        return SourceInfo(shape=(1,), channels=("x",), rate=self.rate, pace=self.pace, patient=self.patient)

    def open(self) -> Source:
        acts = self.openings.pop(0)
        if isinstance(acts, Exception):
            raise acts
        self.opened.append(Scripted(acts, self.clock))
        return self.opened[-1]


class Listener:
    """Listener to a status, with a queue of all states."""

    def __init__(self) -> None:
        self.heard: SimpleQueue[Health] = SimpleQueue()

    def __call__(self, name: str, health: Health) -> None:
        self.heard.put(health)

    def next(self) -> tuple[str, str, str]:
        health = self.heard.get(timeout=120)
        return health.state, health.reason, health.hint

    def wait_for(self, state: str) -> Health:
        while (health := self.heard.get(timeout=120)).state != state:
            pass
        return health


class Collector:
    """Feed that keeps copies."""

    name = "motion"

    def __init__(self) -> None:
        self.chunks: list[tuple[list[float], int]] = []

    def push(self, chunk: Chunk) -> None:
        self.chunks.append((chunk.samples[:, 0].tolist(), chunk.lost))


class Broken:
    name = "broken"

    def push(self, chunk: Chunk) -> None:
        raise ZeroDivisionError("a bug in a pipeline")


def chunk(*values: float, lost: int = 0) -> Chunk:
    return Chunk(np.array(values, np.float32).reshape(-1, 1), 100.0, lost)


def read(
    script: Script, *feeds: Any, supervision: Supervision = PROMPT, clock: Callable[[], float] | None = None
) -> tuple[Reader, Listener]:
    listener = Listener()
    clock = clock or script.clock
    reader = Reader("imu", script, feeds, Status("source/imu", clock, listener), clock, supervision)
    reader.start()
    return reader, listener


def ended(reader: Reader) -> bool:
    return reader.join(120)


def test_every_feed_gets_every_chunk() -> None:
    one, other = Collector(), Collector()
    reader, listener = read(Script(openings=[[chunk(1, 2), None, chunk(3, lost=4)]]), one, other)
    assert ended(reader)
    assert one.chunks == other.chunks == [([1.0, 2.0], 0), ([3.0], 4)]
    assert (reader.samples, reader.lost, reader.reconnects, reader.last_sample) == (3, 4, 0, 100.0)
    assert listener.next()[0] == "running"


def test_the_end_of_a_recording_is_the_end() -> None:
    script = Script(openings=[[chunk(1)]])
    reader, listener = read(script)
    assert ended(reader)
    assert listener.wait_for("stopped").reason == "the recording has ended"
    assert script.opened[0].closed


def test_what_cannot_be_opened_is_failed_with_the_remedy_and_tried_again() -> None:
    feed = Collector()
    gone = DeviceError("/dev/ttyUSB0 is not there", hint="plug it in")
    reader, listener = read(Script(openings=[gone, gone, [chunk(1)]]), feed)
    assert listener.next() == ("failed", "/dev/ttyUSB0 is not there", "plug it in")
    assert listener.next()[0] == "running"
    assert ended(reader)
    assert feed.chunks == [([1.0], 0)]
    assert reader.reconnects == 0


def test_samples_after_a_reconnect_are_not_joined_to_those_before() -> None:
    feed = Collector()
    script = Script(openings=[[chunk(1), DeviceError("unplugged")], [chunk(2), chunk(3)]])
    reader, listener = read(script, feed)
    assert ended(reader)
    assert feed.chunks == [([1.0], 0), ([2.0], 1), ([3.0], 0)]
    assert reader.reconnects == 1
    assert [opened.closed for opened in script.opened] == [True, True]
    assert [listener.next()[0] for _ in range(4)] == ["running", "failed", "running", "stopped"]


def test_a_failed_source_stays_failed_until_a_sample_comes() -> None:
    unplugged = DeviceError("unplugged")
    reader, listener = read(Script(openings=[[chunk(1), unplugged], [None, unplugged], [None, chunk(2)]]))
    assert ended(reader)
    assert [listener.next()[0] for _ in range(4)] == ["running", "failed", "running", "stopped"]


def test_a_plug_in_with_a_bug_is_a_state_and_one_traceback(caplog: pytest.LogCaptureFixture) -> None:
    bug = IndexError("list index out of range")
    reader, listener = read(Script(openings=[[bug], bug, [bug], [chunk(1)]]))
    assert listener.next() == (
        "failed",
        "IndexError: list index out of range",
        "the plug-in is broken: report the traceback in the log",
    )
    assert ended(reader)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[1] is bug


@pytest.mark.parametrize("samples", [np.zeros((3, 2)), np.zeros((0, 1)), np.zeros(3)])
def test_a_plug_in_that_breaks_its_promise_is_refused(samples: np.ndarray) -> None:
    feed = Collector()
    reader, listener = read(Script(openings=[[Chunk(samples, 0.0)], []]), feed)
    assert "instead of (1,)" in listener.wait_for("failed").reason
    assert ended(reader)
    assert feed.chunks == []


def test_a_feed_that_raises_does_not_disturb_the_others(caplog: pytest.LogCaptureFixture) -> None:
    feed = Collector()
    reader, _ = read(Script(openings=[[chunk(1), chunk(2)]]), Broken(), feed)
    assert ended(reader)
    assert feed.chunks == [([1.0], 0), ([2.0], 0)]
    assert reader.feed_errors == 2
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_windows_behind_a_model_that_hangs_are_relieved_while_chunks_come_that_complete_no_window() -> None:
    clock = Clock()

    class Filling(Collector):
        """Feed with a window much longer than a chunk."""

        def push(self, chunk: Chunk) -> None:
            super().push(chunk)
            clock.now += 0.3

    class HeldUp(SharedWorker):
        relieved = 0

        def relieve(self) -> None:
            self.relieved += 1

    script = Script(openings=[[chunk(1), chunk(2), chunk(3)]], clock=clock)
    reader = Reader("imu", script, (Filling(),), Status("source/imu", clock, Listener()), clock, PROMPT)
    reader.shared = shared = HeldUp("imu", clock)
    reader.start()
    assert ended(reader)
    assert shared.relieved == 3


def test_feeds_may_be_replaced() -> None:
    class Successor(Collector):
        def push(self, chunk: Chunk) -> None:
            super().push(chunk)
            assert known.wait(120)
            reader.feeds = (last,)

    known, last, first = Event(), Collector(), Successor()
    reader, _ = read(Script(openings=[[chunk(1), chunk(2)]]), first)
    known.set()
    assert ended(reader)
    assert (first.chunks, last.chunks) == ([([1.0], 0)], [([2.0], 0)])


def test_what_is_done_between_chunks_is_done_when_the_one_in_hand_is_where_it_was_to_go() -> None:
    class Slow(Collector):
        def push(self, chunk: Chunk) -> None:
            under_way.set()
            assert free.wait(120)
            super().push(chunk)

    under_way, free, feed = Event(), Event(), Slow()
    first: list[int] = []
    then: list[int] = []
    reader, _ = read(Script(openings=[[chunk(1), chunk(2)]]), feed)
    assert under_way.wait(120)

    reader.between_chunks(lambda: first.append(len(feed.chunks)), timeout=0.0)  # the call returns without a wait
    changing = Thread(target=lambda: reader.between_chunks(lambda: then.append(len(feed.chunks)), timeout=5.0))
    changing.start()
    free.set()
    changing.join(120)
    assert ended(reader)
    assert first == [0]
    assert then[0] in (1, 2)


def test_chunks_of_a_held_source_wait_for_the_next_feeds() -> None:
    script = Script(openings=[[chunk(1), chunk(2)]])
    former, successor = Collector(), Collector()
    reader = Reader("imu", script, (former,), Status("source/imu", script.clock, Listener()), script.clock, PROMPT)
    reader.hold(120)
    reader.start()
    reader.feeds = ()
    reader.between_chunks(lambda: None, 120)
    reader.feeds = (successor,)
    reader.go_on()
    assert ended(reader)
    assert (former.chunks, successor.chunks) == ([], [([1.0], 0), ([2.0], 0)])


def test_a_held_source_can_be_stopped() -> None:
    script = Script(openings=[[chunk(1)]])
    reader = Reader("imu", script, (Collector(),), Status("source/imu", script.clock, Listener()), script.clock, PROMPT)
    reader.hold(120)
    reader.start()
    reader.stop()
    assert ended(reader)


def test_stop_does_not_wait_for_the_next_try() -> None:
    patience = Supervision(retry_min=3600, retry_max=3600)
    reader, listener = read(Script(openings=[DeviceError("gone")]), supervision=patience)
    listener.wait_for("failed")
    reader.stop()
    assert ended(reader)
    assert listener.wait_for("stopped").reason == ""


def test_a_reader_that_was_never_started_can_be_stopped() -> None:
    script = Script(openings=[])
    reader = Reader("imu", script, (), Status("imu", script.clock, Listener()), script.clock, PROMPT)
    reader.stop()
    assert reader.join(0)


def test_a_silent_sensor_is_stalled_until_it_speaks() -> None:
    _, listener = read(Script(openings=[[chunk(1), *[0.5] * 5, chunk(2)]]))
    assert listener.next()[0] == "running"
    assert listener.next()[:2] == ("degraded", "stalled: no sample for 2 s")
    assert listener.next()[0] == "running"


@pytest.mark.parametrize(
    "openings", [[[chunk(1), *[0.5] * 5, chunk(2)]], [[chunk(1), DeviceError("unplugged")], [chunk(2)]]]
)
def test_a_source_is_back_before_a_pipeline_gets_its_first_sample(openings: list[Any]) -> None:
    """A pipeline that answered before had stayed "starting" until the next window, with its decision unpublished."""

    class Pipeline:
        name = "motion"

        def __init__(self) -> None:
            self.states: list[str] = []

        def push(self, chunk: Chunk) -> None:
            self.states.append(reader.status.health.state)

    pipeline, listener, script = Pipeline(), Listener(), Script(openings=list(openings))
    reader = Reader("imu", script, (pipeline,), Status("imu", script.clock, listener), script.clock, PROMPT)
    reader.start()
    assert ended(reader)
    assert pipeline.states == ["starting", "running"]


def test_a_read_that_is_held_up_on_a_busy_board_is_no_stall() -> None:
    _, listener = read(Script(openings=[[chunk(1), 60.0, chunk(2), None, chunk(3)]]))
    assert [listener.next()[0] for _ in range(2)] == ["running", "stopped"]


def test_what_comes_and_is_no_sample_is_named_with_the_figure_it_had_at_first() -> None:
    class Mute(Scripted):
        refused = "\\x00oops"

        @property
        def obstacle(self) -> Obstacle | None:
            count = int(10 * (self._clock.now - 100.0))
            return Obstacle(f"{count} bytes arrived without an end of a line", "set end") if count else None

    class Muted(Script, frozen=True, kw_only=True):
        def open(self) -> Source:
            return Mute(self.openings.pop(0), self.clock)

    reader, listener = read(Muted(openings=[[*[0.5] * 20, chunk(1)]], clock=Clock()))
    assert listener.next() == ("degraded", "stalled: 20 bytes arrived without an end of a line", "set end")
    assert listener.next()[0] == "running"
    assert ended(reader)
    assert reader.refused == "\\x00oops"


def test_a_source_that_does_not_answer_is_failed_until_it_does() -> None:
    clock, free, asked = Clock(), Event(), Event()

    class Hangs(Scripted):
        def read(self, timeout: float) -> Chunk | None:
            asked.set()
            assert free.wait(120)
            return super().read(timeout)

    class Hanging(Script, frozen=True, kw_only=True):
        def open(self) -> Source:
            return Hangs(self.openings.pop(0), self.clock)

    reader, listener = read(Hanging(openings=[[chunk(1)]], clock=clock))
    assert asked.wait(120)
    clock.now += 15.0
    reader.check_hung()
    assert reader.status.health.state == "starting"
    clock.now += 1.0
    reader.check_hung()
    assert listener.next()[:2] == ("failed", "the source does not answer")
    free.set()
    assert listener.wait_for("running")
    assert ended(reader)
    clock.now += 60.0
    reader.check_hung()
    assert reader.status.health.state == "stopped"


def test_a_source_that_has_answered_late_is_not_said_not_to_when_it_is_tried_again() -> None:
    class Busy(Clock):
        """Clock that lets an observer look at each tick, once the source has answered."""

        def __call__(self) -> float:
            if answered.is_set() and not looking.is_set():
                looking.set()
                reader.check_hung()
                looking.clear()
            return self.now

    class Late(Script, frozen=True, kw_only=True):
        def open(self) -> Source:
            if not answered.is_set():
                self.clock.now += 60.0
                answered.set()
            return super().open()

    answered, looking, listener = Event(), Event(), Listener()
    clock = Busy()
    script = Late(openings=[DeviceError("gone"), [chunk(1)]], clock=clock)
    reader = Reader("imu", script, (), Status("imu", Clock(), listener), clock, PROMPT)
    reader.start()

    assert ended(reader)
    assert [listener.next()[:2] for _ in range(2)] == [("failed", "gone"), ("running", "")]


class Stuck(Collector):
    """Feed with a model on the thread of the reader, hanging in the first chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.free = Event(), Event()

    def push(self, chunk: Chunk) -> None:
        self.held.set()
        assert self.free.wait(120)
        super().push(chunk)


def test_a_model_that_hangs_on_the_readers_thread_fails_the_source_until_it_answers() -> None:
    feed, clock = Stuck(), Clock()
    reader, listener = read(Script(openings=[[chunk(1), chunk(2)]], clock=clock), feed)
    assert feed.held.wait(120)
    clock.now += 15.0
    reader.check_hung()
    assert reader.status.health.state == "starting"
    clock.now += 1.0
    reader.check_hung()
    assert listener.next() == (
        "failed",
        "pipeline 'motion' holds up the source: its model or a sink does not answer",
        "restart edged; if the model hangs again, go back a version or set isolate = true for it",
    )
    feed.free.set()
    assert listener.next()[0] == "running"
    assert ended(reader)
    assert feed.chunks == [([1.0], 0), ([2.0], 0)]


def test_the_watchdog_hears_of_a_model_on_the_readers_thread_after_its_pipeline_was_removed() -> None:
    feed, clock = Stuck(), Clock()
    reader, _ = read(Script(openings=[[chunk(1)]], clock=clock), feed)
    assert feed.held.wait(120)
    reader.feeds = ()
    clock.now += 10.0
    assert reader.stuck(10.0) == ""
    clock.now += 1.0
    assert reader.stuck(10.0) == "pipeline motion has held up source imu for 11 s"
    feed.free.set()
    assert ended(reader)
    assert reader.stuck(10.0) == ""


def test_a_recording_that_waits_for_a_slow_model_has_not_failed() -> None:
    feed, clock = Stuck(), Clock()
    reader, listener = read(Script(openings=[[chunk(1)]], clock=clock, patient=True), feed)
    assert feed.held.wait(120)
    clock.now += 60.0
    reader.check_hung()
    feed.free.set()
    assert ended(reader)
    assert [listener.next()[0] for _ in range(2)] == ["running", "stopped"]


def test_garbage_is_shown_and_counted_across_reconnects() -> None:
    script = Script(openings=[[{"bad CRC": 5}, *[0.5] * 5, DeviceError("unplugged")], [{"bad CRC": 2, "too long": 1}]])
    reader, listener = read(script)
    assert listener.next()[:2] == ("degraded", "mostly garbage")
    assert listener.next()[:2] == ("degraded", "stalled: only garbage arrives")
    assert ended(reader)
    assert reader.faults == {"bad CRC": 7, "too long": 1}


def test_the_last_refused_line_is_kept_when_the_source_ends_and_is_opened_anew(tmp_path: Path) -> None:
    """`edgectl sources` had counted rejected lines of a recording, and shown none."""
    file = tmp_path / "dated.csv"
    file.write_text("time,x\n2024-01-01,1\n2024-01-02,2\n")
    listener = Listener()
    status = Status("dated", time.monotonic, listener)
    source = ReplaySource(path=file, channels=("x",), time="time")
    reader = Reader("dated", source, (), status, time.monotonic, PROMPT)
    reader.start()
    assert listener.wait_for("failed").reason == "the recording holds no usable sample"
    reader.stop()
    assert ended(reader)
    assert reader.refused == "2024-01-02,2"


def test_a_patient_source_has_no_rate_to_drift_from() -> None:
    acts = [act for _ in range(20) for act in (1.0, chunk(1, 2))]
    _, listener = read(Script(openings=[acts], patient=True))
    assert [listener.next()[0] for _ in range(2)] == ["running", "stopped"]
    _, listener = read(Script(openings=[acts]))
    assert "slower than the stated 100" in listener.wait_for("degraded").reason


def test_a_recording_is_held_to_the_pace_that_it_is_played_at() -> None:
    acts = [act for _ in range(20) for act in (1.0, chunk(1, 2))]
    _, listener = read(Script(openings=[acts], pace=2.0))
    assert [listener.next()[0] for _ in range(2)] == ["running", "stopped"]


def test_a_recording_that_is_played_again_and_again_has_lost_nothing(tmp_path: Path) -> None:
    class Enough(Collector):
        def push(self, chunk: Chunk) -> None:
            super().push(chunk)
            if len(self.chunks) == 300:
                enough.set()

    enough, feed, listener = Event(), Enough(), Listener()
    file = tmp_path / "short.csv"
    file.write_text("x\n1\n2\n3\n")
    config = ReplaySource(path=file, channels=("x",), pace="fast", loop=True)
    reader = Reader("imu", config, (feed,), Status("imu", time.monotonic, listener), time.monotonic, PROMPT)
    reader.start()
    assert enough.wait(120)
    reader.stop()
    assert ended(reader)
    assert reader.lost == 0
    assert [listener.next()[0] for _ in range(2)] == ["running", "stopped"]


def test_one_broken_source_is_not_noticed_by_another() -> None:
    feed = Collector()
    broken, complaints = read(Script(openings=[[ValueError("bug")]] * 100_000))
    complaints.wait_for("failed")
    sound, _ = read(Script(openings=[[chunk(n) for n in range(50)]]), feed)
    assert ended(sound)
    assert [values for values, _ in feed.chunks] == [[float(n)] for n in range(50)]
    broken.stop()
    assert ended(broken)


def test_a_sensor_unplugged_and_plugged_in_elsewhere(tmp_path: Path) -> None:
    name = tmp_path / "usb-IMU-if00"  # udev's stable name for a port
    feed, clock, listener = Awaited(), time.monotonic, Listener()
    status = Status("source/imu", clock, listener)
    reader = Reader("imu", SerialSource(port=str(name), channels=("x",)), (feed,), status, clock, PROMPT)
    reader.start()
    assert "is not there" in listener.wait_for("failed").reason
    with plugged_in(name) as sensor:
        feed.await_sample(sensor, b"1\n")
        listener.wait_for("running")
    listener.wait_for("failed")
    with plugged_in(name) as sensor:
        feed.await_sample(sensor, b"2\n")
        listener.wait_for("running")
        reader.stop()
        assert ended(reader)
    before = [lost for values, lost in feed.chunks if 1.0 in values]
    after = [lost for values, lost in feed.chunks if 2.0 in values]
    assert before == [0] * len(before)
    assert after == [1] + [0] * (len(after) - 1)
    assert reader.reconnects >= 1


class Awaited(Collector):
    """Collector with events."""

    def __init__(self) -> None:
        super().__init__()
        self._came = Event()

    def push(self, chunk: Chunk) -> None:
        super().push(chunk)
        self._came.set()

    def await_sample(self, sensor: int, line: bytes) -> None:
        """Send a line until a sample arrives: opening a port discards earlier input."""
        self._came.clear()
        for _ in range(1000):
            os.write(sensor, line)
            if self._came.wait(0.005):
                return
        pytest.fail("no sample came")


@contextmanager
def plugged_in(name: Path) -> Iterator[int]:
    """Yield a sensor on a port of this name."""
    master, slave = os.openpty()
    tty.setraw(slave)
    aside = name.with_suffix(".new")
    aside.symlink_to(os.ttyname(slave))
    aside.rename(name)
    yield master
    name.unlink()
    os.close(master)
    os.close(slave)
