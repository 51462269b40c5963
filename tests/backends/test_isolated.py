"""Models in a process of their own: results as in this process, and harmless faults."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from edged.api import Backend, BundleError, DeviceError, ModelError, Runner
from edged.backends.fake import FakeBackend
from edged.backends.isolated import MAX_STDERR_BYTES, Host, IsolatedRunner, LostError
from edged.backends.isolated_child import TURN
from edged.backends.tflite import TfliteBackend
from edged.system.child import ResourceLimits
from edged.testing.backend_contract import BackendContract, ones
from tests.delegates import faulty

DATA = Path(__file__).resolve().parents[1] / "data"
INT8 = DATA / "int8.tflite"
LIMITS = ResourceLimits(memory=512 << 20, niceness=0)
RESPAWNS = 100 if os.environ.get("EDGED_SOAK") else 3

ACTOR = '''
import os
from edged.api import Backend, ModelError, TensorSpec
from edged.backends.fake import FakeBackend, FakeRunner

class Actor(FakeBackend, frozen=True, kw_only=True):
    """Does as it is told in Python, as it loads and as it runs; takes a tensor of `dtype` if there is one."""
    on_load: str = ""
    on_run: str = ""
    dtype: str = ""

    def load(self, file, *, signature=None):
        exec(self.on_load)
        real = super().load(file, signature=signature)
        if self.dtype:
            return FakeRunner((TensorSpec(name="x", shape=(1,), dtype=self.dtype),), real.outputs, real.run)
        def act(inputs):
            exec(self.on_run)
            return real.run(inputs)
        return FakeRunner(real.inputs, real.outputs, act)
'''


@pytest.fixture
def actor(install_plugin: Callable[..., None]) -> Callable[..., Backend]:
    """Return a function: `actor(on_load="...", on_run="...")` makes a backend for these lines in a child process."""
    install_plugin("actor", ACTOR)
    from actor import Actor  # type: ignore[import-not-found]

    return Actor


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """Return the file of a fake model that computes the mean of the input."""
    return write_fake(tmp_path, [1, 2], "float32")


def write_fake(folder: Path, shape: list[int], dtype: str) -> Path:
    file = folder / "mean.json"
    tensors = {"inputs": [{"name": "x", "shape": shape, "dtype": dtype}]}
    file.write_text(json.dumps({**tensors, "outputs": [{"name": "y", "shape": [1], "dtype": "float32"}]}))
    return file


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # an ended thread passes on its children
            found += map(int, (task / "children").read_text().split())
    return sorted(found)


def shared_memory() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:edged")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    gc.collect()  # descriptors left open by other tests must not be closed during this test
    before = descriptors(), children(), shared_memory()
    yield
    assert (descriptors(), children(), shared_memory()) == before


@pytest.fixture
def host(nothing_is_left: None) -> Iterator[Host]:
    host = Host("faulty 0", LIMITS)
    yield host
    host.close()


@pytest.fixture
def load(host: Host) -> Iterator[Callable[..., IsolatedRunner]]:
    """Return a function that loads into the host; loaded runners are closed at teardown."""
    runners = []

    def load(backend: Backend, file: Path = INT8, **given: float) -> IsolatedRunner:
        runners.append(host.load(backend, file, **{"deadline": 60, "load_seconds": 60, **given}))  # type: ignore[arg-type]
        return runners[-1]

    yield load
    for runner in runners:
        runner.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def asked(runner: IsolatedRunner) -> None:
    """Wait until the runner has requested a turn; no event exists."""
    while not runner._shared.words[TURN]:
        time.sleep(0.001)


# The contract of a backend


class Isolated(Backend, frozen=True, kw_only=True):
    """Backend that loads into one host with the wrapped backend."""

    def load(self, file: Path, *, signature: str | None = None) -> Runner:
        return self.host.load(self.wrapped, file, signature=signature, deadline=60, load_seconds=60)


class TestTfliteContract(BackendContract):
    wrapped: Backend = TfliteBackend()

    @pytest.fixture
    def backend(self, host):
        return type("Isolated", (Isolated,), {"wrapped": self.wrapped, "host": host})()

    @pytest.fixture
    def model_file(self, tmp_path):
        return DATA / "two_by_two.tflite"


class TestFakeContract(TestTfliteContract):
    wrapped = FakeBackend()

    @pytest.fixture
    def model_file(self, tmp_path):
        return write_fake(tmp_path, [1, 2], "int8")


def test_it_answers_as_the_same_model_does_here(load):
    here, there = TfliteBackend().load(INT8), load(TfliteBackend())
    assert (there.inputs, there.outputs, there.info) == (here.inputs, here.outputs, here.info)
    for _ in range(3):
        given = [np.random.default_rng(1).integers(-128, 128, (1, 4), np.int8)]
        assert there.run(given)[0].tolist() == here.run(given)[0].tolist()


def test_tensors_may_be_larger_than_any_file_that_it_may_write(load, tmp_path):
    runner = load(FakeBackend(), write_fake(tmp_path, [3, 1000, 1000], "uint8"))
    assert runner.run([np.full((3, 1000, 1000), 7, np.uint8)])[0].tolist() == [7]


def test_outputs_stay_as_they_were(load, fake):
    runner = load(FakeBackend(), fake)
    (first,) = runner.run([np.full((1, 2), 1, np.float32)])
    runner.run([np.full((1, 2), 2, np.float32)])
    assert first.tolist() == [1]


def test_it_counts_the_time_of_its_turns(load, fake):
    runner = load(FakeBackend(delay=0.05), fake)
    for _ in range(3):
        runner.run(ones(runner))
    assert runner.run_times.turns == 3
    assert runner.run_times.wall > 0.15
    assert 0.5 < runner.run_times.off_processor <= 1


def test_after_sixteen_turns_one_in_sixteen_is_timed(load, fake):
    runner = load(FakeBackend(delay=0.0001), fake)
    walls = [0.0]
    for _ in range(48):
        runner.run(ones(runner))
        walls.append(runner.run_times.wall)
    assert [turn for turn in range(1, 49) if walls[turn] > walls[turn - 1]] == [*range(1, 17), 32, 48]
    assert runner.run_times.turns == 48


def test_it_forgets_when_told_to(load):
    runner = load(TfliteBackend(), DATA / "stateful.tflite")
    totals = [runner.run(ones(runner))[0].tolist() for _ in range(2)]
    runner.reset()
    assert [*totals, runner.run(ones(runner))[0].tolist()] == [[[1]], [[2]], [[1]]]


def test_a_delegate_computes_there(load):
    runner = load(faulty())
    assert (runner.info.delegate, runner.info.delegated, runner.info.nodes) == ("faulty", 1, 1)
    assert runner.run(ones(runner))[0].tolist() == TfliteBackend().load(INT8).run(ones(runner))[0].tolist()


# Environment and remains


def test_it_has_no_descriptor_but_those_it_needs(load, actor, fake):
    look = """
links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
raise ModelError(str(sorted(os.readlink(link).split(":")[0] for link in links if os.path.lexists(link))))
"""
    with pytest.raises(ModelError) as said:
        load(actor(on_load=look), fake)
    names = ["/dev/null", "anon_inode", "pipe", "pipe", "pipe", "socket"]
    assert said.value.message == str(names)


def test_its_process_ends_with_its_last_model(host, load):
    one, other = load(TfliteBackend()), load(TfliteBackend())
    assert children() == [host.pid]
    one.close()
    assert children() == [host.pid]
    other.run(ones(other))
    other.close()
    assert (children(), host.pid) == ([], None)
    with pytest.raises(ModelError, match="closed"):
        other.run(ones(other))


def test_a_host_that_is_closed_takes_its_models_along(host, load):
    runner = load(TfliteBackend())
    host.close()
    with pytest.raises(DeviceError, match="the process of faulty 0 was ended"):
        runner.run(ones(runner))
    with pytest.raises(DeviceError, match="was ended"):
        load(TfliteBackend())


def test_it_outlives_the_thread_that_started_it(load):
    runners = []
    thread = Thread(target=lambda: runners.append(load(TfliteBackend())))
    thread.start()
    thread.join()
    runners[0].run(ones(runners[0]))


@pytest.mark.parametrize("fail", ["", "hang"])
def test_it_dies_with_its_parent_even_when_it_hangs(fail):
    backend = faulty(fail=fail)
    script = f"""
from pathlib import Path
from edged.backends.isolated import *
from edged.backends.tflite import DelegatedTflite
from edged.system.child import ResourceLimits
import numpy as np
host = Host("x", {LIMITS!r})
runner = host.load({backend!r}, Path({str(INT8)!r}), deadline=60, load_seconds=60)
print(host.pid, flush=True)
while True:
    runner.run([np.ones((1, 4), np.int8)])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        process = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    assert select.select([process], [], [], 30)[0]
    os.close(process)


@pytest.mark.parametrize(("fail", "words"), [("abort", "SIGABRT"), ("hang", "hung")])
def test_nothing_is_left_of_many_that_died(host, fail, words):
    def live_and_die() -> None:
        runner = host.load(faulty(fail=fail, after="1"), INT8, deadline=1, load_seconds=60)
        runner.run(ones(runner))
        with pytest.raises(DeviceError, match=words):
            runner.run(ones(runner))
        runner.close()

    live_and_die()
    before, resident = descriptors(), resident_bytes()
    for _ in range(RESPAWNS):
        live_and_die()
    assert (descriptors(), children(), shared_memory()) == (before, [], 0)
    assert resident_bytes() - resident < 2 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Failures


def test_a_file_that_is_damaged_is_told_as_it_is_told_here(load, tmp_path):
    (tmp_path / "bad.tflite").write_bytes(b"nothing")
    with pytest.raises(BundleError, match=r"bad\.tflite"):
        load(TfliteBackend(), tmp_path / "bad.tflite")
    assert children() == []


def test_an_input_that_is_refused_harms_nobody(load):
    runner = load(faulty(fail="invoke", after="1", recover="1"))
    first = runner.run(ones(runner))[0].tolist()
    with pytest.raises(ModelError, match="invoke failed, as told") as refusal:
        runner.run(ones(runner))
    assert refusal.value.hint
    assert runner.run(ones(runner))[0].tolist() == first


def test_an_exception_of_any_kind_harms_nobody(load, actor, fake):
    runner = load(actor(on_run="1 / 0"), fake)
    for _ in range(2):
        with pytest.raises(ModelError, match="ZeroDivisionError: division by zero"):
            runner.run(ones(runner))


def test_outputs_of_another_size_than_it_said_are_refused(load):
    runner = load(TfliteBackend(), DATA / "dynamic.tflite")
    with pytest.raises(
        ModelError, match=r"the model returned float32 of shape \(4,\) instead of float32 of shape \(1,\)"
    ):
        runner.run(ones(runner))


@pytest.mark.parametrize("dtype", ["object", "S5", "no such type"])
def test_tensors_that_are_no_numbers_are_refused(load, actor, fake, dtype):
    healthy = load(FakeBackend(), fake)
    with pytest.raises(ModelError, match=f"the tensor 'x', {dtype} of shape .* cannot be shared"):
        load(actor(dtype=dtype), fake)
    healthy.run(ones(healthy))


BABBLE = """
for name in os.listdir("/proc/self/fd"):
    if os.path.lexists(f"/proc/self/fd/{name}") and os.readlink(f"/proc/self/fd/{name}").startswith("socket"):
        os.write(int(name), b"?")
"""


def test_one_that_babbles_is_ended(load, actor, fake):
    with pytest.raises(DeviceError, match="faulty 0 sent an invalid message"):
        load(actor(on_load=BABBLE), fake)


SCRIBBLE = """
import gc, time
from edged.backends.isolated_child import BEGUN, Shared
for each in gc.get_objects():
    if isinstance(each, Shared):
        each.words[BEGUN] = 1 << 62
"""


def test_one_that_writes_where_it_should_not_is_ended(load, actor, fake):
    runner = load(actor(on_run=f"{SCRIBBLE}time.sleep(60)"), fake, deadline=0.2)
    with pytest.raises(DeviceError, match="faulty 0 sent an invalid message"):
        runner.run(ones(runner))


def test_what_it_writes_where_it_should_not_makes_nobody_wait(load, actor, fake):
    runner = load(actor(on_run=SCRIBBLE), fake)
    runner.run(ones(runner))
    with pytest.raises(DeviceError, match="hung: loading"):
        load(actor(on_load="import time; time.sleep(60)"), fake, load_seconds=1)


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (
            "abort",
            'faulty 0 aborted: SIGABRT; the last line of output: "faulty delegate: transfer on endpoint 1 failed"',
        ),
        ("segfault", "faulty 0 crashed: SIGSEGV"),
        ("hang", r"faulty 0 hung: an inference took longer than 1 s"),
    ],
)
def test_whatever_ends_the_process_is_told_to_all_its_runners(load, fail, words):
    healthy, ill = load(TfliteBackend()), load(faulty(fail=fail, after="2"), deadline=1)
    for runner in (healthy, ill, ill):
        runner.run(ones(runner))
    for runner in (ill, ill, healthy):
        with pytest.raises(DeviceError, match=words) as error:
            runner.run(ones(runner))
        assert error.value.hint
        assert error.value.retryable


def test_after_its_death_the_next_load_starts_it_again(host, load):
    runner = load(faulty(fail="abort"))
    with pytest.raises(DeviceError):
        runner.run(ones(runner))
    again = load(faulty())
    again.run(ones(again))
    assert "endpoint" not in host.stderr


def test_one_that_is_renewed_ends_and_the_next_load_starts_another(host, load):
    host.renew()
    runner = load(TfliteBackend())
    first = host.pid
    host.renew()
    with pytest.raises(DeviceError, match="the process of faulty 0 was ended"):
        runner.run(ones(runner))
    again = load(TfliteBackend())
    assert host.pid not in (None, first)
    again.run(ones(again))


def test_one_that_dies_while_nobody_looks_is_started_again(load):
    idle = load(TfliteBackend())
    process = os.pidfd_open(children()[0])
    signal.pidfd_send_signal(process, signal.SIGKILL)
    assert select.select([process], [], [], 30)[0]
    os.close(process)
    runner = load(TfliteBackend())
    runner.run(ones(runner))
    with pytest.raises(DeviceError, match="killed by the system, most likely for want of memory: SIGKILL"):
        idle.run(ones(idle))


def test_memory_beyond_its_leash_is_not_to_be_had(load, actor, fake):
    runner = load(actor(on_run="bytearray(1 << 40)"), fake)
    with pytest.raises(DeviceError, match="faulty 0 ran out of memory"):
        runner.run(ones(runner))


def test_a_leak_ends_where_its_leash_does(load):
    runner = load(faulty(fail="leak"))

    def leak() -> None:
        for _ in range(600):
            runner.run(ones(runner))

    with pytest.raises(DeviceError, match="faulty 0 ran out of memory"):
        leak()


def test_a_load_that_hangs_is_ended(load, actor, fake):
    with pytest.raises(DeviceError, match=r"faulty 0 hung: loading mean\.json took longer than 1 s"):
        load(actor(on_load="import time; time.sleep(60)"), fake, load_seconds=1)


def test_a_process_that_is_stopped_is_hung(load):
    runner = load(TfliteBackend(), deadline=0.2)
    os.kill(children()[0], signal.SIGSTOP)
    with pytest.raises(DeviceError, match=r"faulty 0 hung: the process did nothing for 0\.2 s"):
        runner.run(ones(runner))


@pytest.mark.parametrize("unplugged", ["", "abort"])
def test_a_device_comes_and_goes(load, tmp_path, unplugged):
    device = tmp_path / "usb0"
    backend = faulty(device=str(device), unplugged=unplugged)
    with pytest.raises(DeviceError, match="refuses to work"):
        load(backend)
    device.touch()
    runner = load(backend)
    runner.run(ones(runner))
    device.unlink()
    with pytest.raises(DeviceError if unplugged else ModelError, match="SIGABRT" if unplugged else "device is gone"):
        runner.run(ones(runner))


def test_of_one_that_talks_and_talks_the_last_words_are_heard(host, load):
    runner = load(faulty(chatter="20000", fail="abort", after="10"))
    for _ in range(10):
        runner.run(ones(runner))
    with pytest.raises(DeviceError, match='the last line of output: "faulty delegate: transfer on endpoint 1 failed"'):
        runner.run(ones(runner))
    assert len(host.stderr) <= MAX_STDERR_BYTES
    assert "nothing to worry about" in host.stderr


def test_one_that_talks_while_nobody_listens_does_not_wait(load, actor, fake, tmp_path):
    done = tmp_path / "done"
    os.mkfifo(done)
    heard = os.open(done, os.O_RDONLY | os.O_NONBLOCK)
    talk = f"""
import sys, threading
def talk(sys=sys):
    for _ in range(1000):
        print("x" * 1000, file=sys.stderr)
    open({str(done)!r}, "w").write("done")
threading.Thread(target=talk).start()
"""
    runner = load(actor(on_run=talk), fake)
    runner.run(ones(runner))
    assert select.select([heard], [], [], 30)[0]
    os.close(heard)


# Several at once


class Gate:
    """Gate for turns, opened by the test."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "gate"
        os.mkfifo(self._path)
        self.wait = f"open({str(self._path)!r}).read()"

    def reached(self) -> None:
        """Wait until a turn is in the gate."""
        self._end = self._path.open("w")

    def open(self) -> None:
        self._end.close()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


class Diary:
    """Diary of turns of models in other processes."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def entry(self, name: str) -> str:
        """Return code for a model that writes its name."""
        return f"open({str(self._file)!r}, 'a').write({name + ' '!r})"

    def read(self) -> list[str]:
        return self._file.read_text().split()


@pytest.fixture
def diary(tmp_path: Path) -> Diary:
    return Diary(tmp_path / "diary")


def run(pool: ThreadPoolExecutor, runner: Runner) -> Future[object]:
    return pool.submit(runner.run, ones(runner))


def test_turns_go_by_priority_and_then_by_the_earliest_deadline(load, actor, fake, gate, pool, diary):
    first = load(actor(on_run=gate.wait), fake)
    others = [
        load(actor(on_run=diary.entry("late")), fake, deadline=60),
        load(actor(on_run=diary.entry("soon")), fake, deadline=30),
        load(actor(on_run=diary.entry("urgent")), fake, deadline=60, priority=1),
    ]
    turns = [run(pool, first)]
    gate.reached()
    for runner in others:
        turns.append(run(pool, runner))
        asked(runner)
    gate.open()
    for turn in turns:
        turn.result(120)
    assert diary.read() == ["urgent", "soon", "late"]


def test_whoever_has_waited_past_its_deadline_is_next_whatever_the_priorities(load, actor, fake, gate, pool, diary):
    first = load(actor(on_run=gate.wait), fake)
    others = [
        load(actor(on_run=diary.entry("starved")), fake, deadline=0.01),
        load(actor(on_run=diary.entry("too")), fake, deadline=0.015, priority=1),
        load(actor(on_run=diary.entry("urgent")), fake, priority=1),
    ]
    turns = [run(pool, first)]
    gate.reached()
    for runner in others:
        turns.append(run(pool, runner))
        asked(runner)
    time.sleep(0.02)  # until past the deadlines
    gate.open()
    for turn in turns:
        turn.result(120)
    assert diary.read() == ["starved", "too", "urgent"]


def test_turns_that_are_asked_for_come_before_a_load(host, load, actor, fake, gate, pool, diary):
    first, second = load(actor(on_run=gate.wait), fake), load(actor(on_run=diary.entry("turn")), fake)
    turns = [run(pool, first)]
    gate.reached()
    turns.append(run(pool, second))
    asked(second)
    loading = pool.submit(load, actor(on_load=diary.entry("load")), fake)
    while not host.is_loading:
        time.sleep(0.001)
    gate.open()
    for each in (*turns, loading):
        each.result(120)
    assert diary.read() == ["turn", "load"]
    assert not host.is_loading


def test_to_wait_for_the_turn_of_another_is_no_hang(load, actor, fake, gate, pool):
    slow, hasty = load(actor(on_run=gate.wait), fake), load(FakeBackend(), fake, deadline=0.5)
    first = run(pool, slow)
    gate.reached()
    second = run(pool, hasty)
    asked(hasty)
    time.sleep(1)  # until long past the deadline
    gate.open()
    assert [output.tolist() for turn in (first, second) for output in turn.result(120)] == [[1], [1]]


def test_a_message_that_waits_for_a_turn_is_no_hang(load, actor, fake, gate, pool):
    slow, other = load(actor(on_run=gate.wait), fake), load(FakeBackend(), fake, load_seconds=0.5)
    turn = run(pool, slow)
    gate.reached()
    reset = pool.submit(other.reset)
    time.sleep(1)  # until past the time limit
    gate.open()
    reset.result(120)
    turn.result(120)


def test_one_that_is_stuck_holds_the_others_no_longer_than_its_own_deadline(load, pool):
    stuck, patient = load(faulty(fail="hang"), deadline=0.5), load(TfliteBackend(), deadline=3600)
    turns = [run(pool, stuck)]
    asked(stuck)
    turns.append(run(pool, patient))
    errors = [str(turn.exception(30)) for turn in turns]
    assert "an inference took longer than 0.5 s" in errors[0]
    assert errors[0] == errors[1]


@pytest.mark.parametrize("fail", ["abort", "hang"])
def test_whose_turn_it_died_of_is_told_so_and_nobody_else(load, fail):
    guilty, idle = load(faulty(fail=fail), deadline=0.5), load(TfliteBackend())
    errors = []
    for runner in (guilty, idle):
        with pytest.raises(DeviceError) as error:
            runner.run(ones(runner))
        errors.append(type(error.value))
    assert errors == [LostError, DeviceError]


def test_of_what_it_dies_as_it_loads_is_told_to_whoever_loads(load, actor, fake):
    idle = load(TfliteBackend())
    with pytest.raises(LostError, match="SIGABRT"):
        load(actor(on_load="os.abort()"), fake)
    with pytest.raises(DeviceError) as error:
        idle.run(ones(idle))
    assert type(error.value) is DeviceError


def test_to_be_ended_is_nobodys_fault(host, load, gate, actor, fake, pool):
    runner = load(actor(on_run=gate.wait), fake)
    turn = run(pool, runner)
    gate.reached()
    host.renew()
    assert type(turn.exception(30)) is DeviceError
    gate.open()


def test_threads_get_their_own_answers(load, fake, pool):
    def repeat(number: int, runner: Runner) -> bool:
        given = [np.full((1, 2), number, np.float32)]
        return all(runner.run(given)[0].tolist() == [number] for _ in range(200))

    runners = [load(FakeBackend(), fake) for _ in range(4)]
    assert list(pool.map(repeat, range(4), runners)) == [True] * 4
    assert [runner.run_times.turns for runner in runners] == [200] * 4


def test_a_message_gets_through_while_turns_never_end(load, fake, pool):
    stop: list[bool] = []

    def go_on(runner: Runner) -> None:
        while not stop:
            runner.run(ones(runner))

    busy = [pool.submit(go_on, load(FakeBackend(), fake)) for _ in range(2)]
    another = load(FakeBackend(), fake)
    another.reset()
    another.run(ones(another))
    stop.append(True)
    for turn in busy:
        turn.result(120)
