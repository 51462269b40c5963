"""A delegate that aborts, hangs, refuses, vanishes and computes wrongly in a real process, and a twin in this process.

After each failure no window is lost, and the accelerator comes back. With `EDGED_SOAK=1` the delegate fails 100 times
in each way.
"""

import gc
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from edged.api import Backend, ModelError, Runner
from edged.backends.accelerated import AcceleratedRunner, Accelerator
from edged.backends.isolated import Host
from edged.backends.tflite import TfliteBackend
from edged.core.acceleration import AcceleratorStatus, Rules
from edged.system.child import ResourceLimits
from tests.backends.changes import changes
from tests.delegates import faulty

INT8 = Path(__file__).resolve().parents[1] / "data" / "int8.tflite"
TIMES = 100 if os.environ.get("EDGED_SOAK") else 3
DEADLINE = 0.3
RULES = Rules(deadline=DEADLINE, backoff=0.01, backoff_max=0.02, failures=100, within=0.01, check_every=0.01)


def never(runner: Runner) -> None:
    """Compare no golden sample, so that a window meets the failure."""


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def host() -> Iterator[Host]:
    on_cpu()  # stays, and keeps a descriptor
    gc.collect()  # descriptors left open by other tests must not be closed during this test
    before = descriptors()
    host = Host("faulty 0", ResourceLimits(memory=512 << 20, niceness=0))
    yield host
    host.close()
    assert descriptors() == before


@pytest.fixture
def told() -> SimpleQueue[AcceleratorStatus]:
    return SimpleQueue()


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """Return the file of a present device."""
    file = tmp_path / "device"
    file.touch()
    return file


@pytest.fixture
def keeper(host: Host, told: SimpleQueue[AcceleratorStatus], device: Path) -> Iterator[Accelerator]:
    def identity() -> str:
        return str(device) if device.exists() else ""

    keeper = Accelerator(
        "faulty 0",
        RULES,
        identity=identity,
        renew=host.renew,
        busy=lambda: host.is_loading,
        tell=changes(told.put),
        clock=time.monotonic,
        jitter=random.random,
    )
    keeper.start()
    yield keeper
    keeper.close()
    assert keeper.join(120)


def window(number: int) -> list[np.ndarray]:
    return [np.full(spec.shape, number % 100, spec.numpy_dtype) for spec in on_cpu().inputs]


@cache
def on_cpu() -> Runner:
    return TfliteBackend().load(INT8)


@cache
def expected(number: int) -> bytes:
    return on_cpu().run(window(number))[0].tobytes()


def check(runner: Runner) -> None:
    """As a golden sample would."""
    if runner.run(window(7))[0].tobytes() != expected(7):
        raise ModelError("golden sample 0: it is another")


def loader(host: Host, backends: Callable[[], Backend]) -> Callable[[], Runner]:
    def load() -> Runner:
        return host.load(backends(), INT8, deadline=DEADLINE, load_seconds=30.0)

    return load


@pytest.mark.parametrize(
    ("order", "kind", "said"),
    [
        ({"fail": "abort", "after": "5"}, "device", "SIGABRT"),
        ({"fail": "segfault", "after": "5"}, "device", "SIGSEGV"),
        ({"fail": "hang", "after": "5"}, "device", "hung"),
        ({"fail": "invoke", "after": "5"}, "run", ""),
        ({"wrong": "step"}, "wrong", "answers wrongly"),
    ],
    ids=["aborts", "segfaults", "hangs", "refuses", "is wrong"],
)
def test_it_comes_back_each_time_and_no_window_is_lost(host, keeper, told, order, kind, said):
    held_to = check if kind == "wrong" else never
    runner: AcceleratedRunner = keeper.runner(
        "m", TfliteBackend().load(INT8), loader(host, lambda: faulty(**order)), held_to
    )
    states: list[AcceleratorStatus] = []
    number = 0
    while sum(keeper.counts().faults.values()) < TIMES:
        number += 1
        [got] = runner.run(window(number))
        if kind != "wrong":
            assert got.tobytes() == expected(number % 100)
    while not told.empty():
        states.append(told.get())
    runner.close()
    counts = keeper.counts()
    assert counts.accelerated + counts.on_twin == number
    assert counts.faults == {kind: TIMES}
    assert counts.promotions == TIMES
    assert {status.state for status in states} - {"accelerated"} == {"degraded"}
    assert all(said in status.reason for status in states if status.state == "degraded")


@pytest.mark.parametrize("unplugged", ["refuse", "abort", "hang"])
def test_it_comes_back_each_time_it_is_plugged_in(host, keeper, told, device, unplugged):
    orders = {"device": str(device), "unplugged": unplugged}
    runner = keeper.runner("m", TfliteBackend().load(INT8), loader(host, lambda: faulty(**orders)), check)
    number = 0

    def run_until(state: str) -> int:
        """Run windows up to this state, and return their number."""
        first = number
        while told.empty() or told.get().state != state:
            step()
        return number - first

    def step() -> None:
        nonlocal number
        number += 1
        assert runner.run(window(number))[0].tobytes() == expected(number % 100)

    for _ in range(TIMES):
        run_until("accelerated")
        step()
        device.unlink()
        run_until("degraded")
        device.touch()
    run_until("accelerated")
    runner.close()
    counts = keeper.counts()
    assert counts.accelerated + counts.on_twin == number
    assert counts.promotions >= TIMES


STUCK = """
import time
from edged.backends.tflite import TfliteBackend

class Stuck(TfliteBackend, frozen=True, kw_only=True):
    def load(self, file, *, signature=None):
        time.sleep(3600)
"""


def test_another_model_that_hangs_as_it_is_loaded_holds_no_window_up(host, keeper, told, install_plugin):
    install_plugin("stuck", STUCK)
    from stuck import Stuck

    runner = keeper.runner("m", TfliteBackend().load(INT8), loader(host, lambda: faulty(take="all")), never)
    assert told.get(timeout=120).state == "accelerated"
    runner.run(window(1))
    stuck = keeper.runner("m", TfliteBackend().load(INT8), loader(host, Stuck), never)
    while not host.is_loading:
        time.sleep(0.001)
    with ThreadPoolExecutor(1) as worker:
        [got] = worker.submit(runner.run, window(2)).result(120)
        counts = keeper.counts()
        stuck.close()
        host.renew()
    runner.close()
    assert got.tobytes() == expected(2)
    assert (counts.on_twin, counts.faults) == (1, {})
