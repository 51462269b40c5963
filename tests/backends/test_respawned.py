"""A model in a process of its own is restarted after the process has died."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from edged.api import DeviceError, ModelError, TensorSpec
from edged.backends.fake import FakeRunner
from edged.backends.isolated import Host
from edged.backends.respawned import RespawnedRunner
from edged.backends.tflite import TfliteBackend
from edged.core.acceleration import Rules
from edged.system.child import ResourceLimits
from tests.bundles import DATA

X = TensorSpec(name="x", shape=(1,), dtype="float32")
ONE = [np.ones(1, np.float32)]
RULES = Rules(backoff=1.0, backoff_max=3.0)


class Mortal(FakeRunner):
    """Answers so many times, and is dead."""

    def __init__(self, runs):
        super().__init__((X,), (X,), lambda inputs: [2 * inputs[0]])
        self._lives = runs

    def run(self, inputs):
        if self.runs >= self._lives:
            raise DeviceError(f"died after {self.runs} runs", hint="mend it")
        return super().run(inputs)


class Nursery:
    """Factory of runners with so many runs each; 0 for a runner that dies at once, None for a failed start."""

    def __init__(self, *lives):
        self.lives = list(lives)
        self.born = []
        self.now = 100.0

    def __call__(self):
        runs = self.lives.pop(0)
        if runs is None:
            raise DeviceError("there is no process to be had", hint="free some memory")
        self.born.append(Mortal(runs))
        return self.born[-1]

    def runner(self):
        return RespawnedRunner(self, RULES, lambda: self.now)


def test_the_window_that_it_died_of_is_run_again_at_once():
    nursery = Nursery(2, 9)
    runner = nursery.runner()
    assert [runner.run(ONE)[0].tolist() for _ in range(4)] == [[2.0]] * 4
    assert [each.closed for each in nursery.born] == [True, False]


def test_what_dies_of_a_window_twice_waits_longer_each_time():
    nursery = Nursery(1, 0, 0, None, 5)
    runner = nursery.runner()
    runner.run(ONE)
    with pytest.raises(DeviceError, match="died after 0 runs"):
        runner.run(ONE)
    nursery.now += 0.9
    with pytest.raises(DeviceError, match="died after 0 runs"):
        runner.run(ONE)  # not yet: no runner was started for this
    assert len(nursery.born) == 2
    nursery.now += 0.2
    with pytest.raises(DeviceError):
        runner.run(ONE)
    nursery.now += 2.1
    with pytest.raises(DeviceError, match="no process to be had"):
        runner.run(ONE)
    nursery.now += 3.1  # the longest pause
    assert runner.run(ONE)[0].tolist() == [2.0]


def test_that_the_model_refuses_an_input_is_no_death():
    runner = RespawnedRunner(lambda: FakeRunner((X,), (X,), lambda inputs: inputs, fail_on=[1]), RULES, lambda: 0.0)
    with pytest.raises(ModelError):
        runner.run(ONE)
    assert runner.run(ONE)[0].tolist() == [1.0]


def test_what_it_raises_at_first_is_raised():
    with pytest.raises(DeviceError, match="no process"):
        Nursery(None).runner()


def test_a_real_process_that_is_killed_again_and_again():
    host = Host("model", ResourceLimits(memory=1 << 30))
    backend = TfliteBackend()
    file = DATA / "float.tflite"
    runner = RespawnedRunner(lambda: host.load(backend, file, deadline=10, load_seconds=30), RULES, lambda: 0.0)
    given = [np.array([[2, 4, 6, 8]], np.float32)]
    try:
        for _ in range(3):
            assert runner.run(given)[0].tolist() == [[2.0, 3.0, 4.0]]
            kill_children_of(os.getpid())
        assert runner.run(given)[0].tolist() == [[2.0, 3.0, 4.0]]
    finally:
        runner.close()
        host.close()


def kill_children_of(parent):
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
