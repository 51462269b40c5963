"""An accelerator that fails on command, and the treatment of every window meanwhile.

Most tests drive `Accelerator.poll` by hand on a clock that stands still; the tests at the end use the accelerator's
thread.
"""

import os
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edged.api import Arrays, Backend, DeviceError, ModelError, Runner, TensorSpec
from edged.backends.accelerated import AcceleratedRunner, Accelerator
from edged.backends.fake import FakeBackend, FakeRunner
from edged.core.acceleration import LOADING, POLL_SECONDS, AcceleratorStatus, Rules
from edged.testing.backend_contract import BackendContract
from tests.backends.changes import changes
from tests.backends.test_fake import write

X = TensorSpec(name="x", shape=(1, 1), dtype="float32")
Y = TensorSpec(name="y", shape=(1, 1), dtype="float32")
RULES = Rules(backoff=1, backoff_max=8, failures=3, within=100, check_every=60)

SOAK = bool(os.environ.get("EDGED_SOAK"))
WINDOWS = 1_000_000 if SOAK else 20_000

CRASH = DeviceError("the process aborted: SIGABRT", hint="look at its cable")
REFUSAL = ModelError("invoke failed")
WRONG = ModelError("golden sample 0: all zero")


class Device:
    """A device with scripted faults: `run_error`, `load_error`, `check_error`, `reset_error`.

    A model on the device answers twice the input, and so does the twin. Each fault is an exception, raised until set to
    None. While the device is `busy` no model gets a turn. `told` holds the published states, `loaded` the loaded
    models, `renewals` the restarts of the process; `during_load` is called at the beginning of a load, `during_look` at
    a search for the device.
    """

    def __init__(self) -> None:
        self.plugged = "usb-1"
        self.busy = False
        self.now = 1000.0
        self.told: list[AcceleratorStatus] = []
        self.loaded: list[FakeRunner] = []
        self.run_error: Exception | None = None
        self.load_error: Exception | None = None
        self.check_error: Exception | None = None
        self.reset_error: Exception | None = None
        self.checks = 0
        self.renewals = 0
        self.asked = 0
        self.during_load: Callable[[], None] = lambda: None
        self.during_look: Callable[[], None] = lambda: None

    def identity(self) -> str:
        self.asked += 1
        self.during_look()
        return self.plugged

    def load(self) -> FakeRunner:
        self.during_load()
        if self.load_error is not None:
            raise self.load_error
        self.loaded.append(FakeRunner((X,), (Y,), self.double, forget=self.forget))
        return self.loaded[-1]

    def double(self, inputs: Arrays) -> Arrays:
        if self.run_error is not None:
            raise self.run_error
        return [inputs[0] * 2]

    def forget(self) -> None:
        if self.reset_error is not None:
            raise self.reset_error

    def renew(self) -> None:
        self.renewals += 1

    def check(self, runner: Runner) -> None:
        self.checks += 1
        if self.check_error is not None:
            raise self.check_error

    def clock(self) -> float:
        return self.now

    @property
    def open(self) -> list[FakeRunner]:
        return [runner for runner in self.loaded if not runner.closed]

    @property
    def states(self) -> list[tuple[str, str]]:
        return [(status.state, status.reason) for status in self.told]


def accelerator(
    device: Device, rules: Rules = RULES, tell: Callable[[AcceleratorStatus], None] | None = None
) -> Accelerator:
    return Accelerator(
        "edgetpu usb:0",
        rules,
        identity=device.identity,
        renew=device.renew,
        busy=lambda: device.busy,
        tell=tell or changes(device.told.append),
        clock=device.clock,
        jitter=lambda: 1.0,
    )


def twin(function: Callable[[Arrays], Arrays] = lambda inputs: [inputs[0] * 2], **faults: object) -> FakeRunner:
    return FakeRunner((X,), (Y,), function, **faults)  # type: ignore[arg-type]


def answer(runner: AcceleratedRunner, value: float = 3.0) -> float:
    return float(runner.run([np.full((1, 1), value, np.float32)])[0][0, 0])


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def keeper(device: Device) -> Accelerator:
    return accelerator(device)


@pytest.fixture
def cpu() -> FakeRunner:
    return twin()


@pytest.fixture
def runner(device: Device, keeper: Accelerator, cpu: FakeRunner) -> AcceleratedRunner:
    return keeper.runner("m", cpu, device.load, device.check)


def promote(keeper: Accelerator, *runners: AcceleratedRunner) -> None:
    """Load the runners, and let each worker take its runner."""
    keeper.poll()
    for runner in runners:
        answer(runner)


# A life with no faults


def test_the_twin_serves_until_the_accelerator_is_loaded(device, keeper, cpu, runner):
    assert (answer(runner), cpu.runs) == (6.0, 1)
    assert runner.info is cpu.info
    assert keeper.status == AcceleratorStatus("cpu", "the accelerator is being loaded", "", 1000.0)


def test_it_is_promoted_between_two_windows_and_says_so_once(device, keeper, cpu, runner):
    assert keeper.poll() is None
    assert device.loaded[0].runs == 0
    assert (answer(runner), answer(runner)) == (6.0, 6.0)
    assert (cpu.runs, device.loaded[0].runs) == (0, 2)
    assert runner.info is device.loaded[0].info
    assert device.states == [("accelerated", "")]
    assert keeper.counts().promotions == 1


def test_it_has_the_tensors_of_its_twin(cpu, runner):
    assert (runner.inputs, runner.outputs) == (cpu.inputs, cpu.outputs)


def test_a_closed_one_closes_twin_and_accelerator_and_is_not_loaded_again(device, keeper, cpu, runner):
    promote(keeper, runner)
    runner.close()
    runner.close()
    assert keeper.poll() is None
    assert (cpu.closed, len(device.loaded), device.open) == (True, 1, [])


def test_one_that_is_closed_before_it_was_promoted_closes_what_was_loaded(device, keeper, runner):
    keeper.poll()
    runner.close()
    keeper.poll()
    assert device.open == []


def test_what_is_loaded_for_one_that_is_closed_meanwhile_is_closed(device, keeper, runner):
    device.during_load = runner.close
    assert keeper.poll() is None
    assert (len(device.loaded), device.open) == (1, [])


def test_what_is_loaded_while_the_accelerator_is_closed_is_its_runners_to_close(device, keeper, runner):
    device.during_load = keeper.close
    assert keeper.poll() is None
    runner.close()
    assert (len(device.loaded), device.open) == (1, [])


def test_once_it_is_closed_nothing_more_is_loaded_or_said(device, keeper):
    for _ in range(2):
        keeper.runner("m", twin(), device.load, device.check)
    device.during_load = keeper.close
    assert keeper.poll() is None
    assert (len(device.loaded), device.told) == (1, [])


# Faults


@pytest.mark.parametrize(
    ("error", "kind", "reason", "hint"),
    [
        (CRASH, "device", "the process aborted: SIGABRT", "look at its cable"),
        (REFUSAL, "run", "invoke failed", ""),
        (KeyError("x"), "run", "KeyError: 'x'", "report this with the log's traceback"),
    ],
)
def test_whatever_it_raises_the_twin_runs_the_same_window_at_once(
    device, keeper, cpu, runner, error, kind, reason, hint
):
    promote(keeper, runner)
    device.run_error = error
    assert (answer(runner, 4.0), cpu.runs) == (8.0, 1)
    assert keeper.status == AcceleratorStatus("degraded", reason, hint, 1000.0)
    assert keeper.counts().faults == {kind: 1}


def test_what_failed_is_closed_by_the_accelerators_thread_and_no_window_waits_for_it(device, keeper, runner):
    promote(keeper, runner)
    device.run_error = CRASH
    answer(runner)
    assert len(device.open) == 1
    keeper.poll()
    assert device.open == []


def test_what_is_handed_back_after_that_thread_has_ended_is_closed_at_once(device, keeper, runner):
    promote(keeper, runner)
    keeper.close()
    runner.close()
    assert device.open == []


def test_it_is_brought_back_after_a_pause(device, keeper, cpu, runner):
    promote(keeper, runner)
    device.run_error = CRASH
    answer(runner)
    device.run_error = None
    assert keeper.poll() == 1001.0
    device.now = 1001.0
    assert keeper.poll() is None
    answer(runner)
    assert (cpu.runs, device.loaded[1].runs) == (1, 1)
    assert device.states == [("accelerated", ""), ("degraded", CRASH.message), ("accelerated", "")]


def test_an_input_that_both_refuse_is_no_fault_of_the_accelerator(device, keeper, cpu):
    runner = keeper.runner("m", twin(fail_on={1}), device.load, device.check)
    promote(keeper, runner)
    device.run_error = REFUSAL
    with pytest.raises(ModelError, match="run 1 failed, as told"):
        answer(runner)
    device.run_error = None
    answer(runner)
    assert device.loaded[0].runs == 3
    assert device.states == [("accelerated", "")]


def test_a_twin_that_fails_as_well_raises_and_the_accelerator_is_at_fault_all_the_same(device, keeper):
    runner = keeper.runner("m", twin(fail_on={1}), device.load, device.check)
    promote(keeper, runner)
    device.run_error = CRASH
    with pytest.raises(ModelError, match="run 1 failed, as told"):
        answer(runner)
    assert keeper.status.state == "degraded"
    assert answer(runner) == 6.0


@pytest.mark.parametrize("error", [CRASH, WRONG, KeyError("x")])
def test_one_that_does_not_load_is_tried_again_with_growing_pauses(device, keeper, runner, error):
    device.load_error = error
    assert keeper.poll() == 1001.0
    device.now = 1001.0
    assert keeper.poll() == 1003.0
    assert answer(runner) == 6.0
    assert len(device.told) == 1
    assert sum(keeper.counts().faults.values()) == 2


def test_after_enough_faults_it_is_left_alone_until_it_is_plugged_in_anew(device, keeper, runner):
    device.load_error = CRASH
    for _ in range(3):
        device.now = keeper.poll() or 0.0
    assert keeper.status.state == "quarantined"
    assert keeper.status.reason == "3 faults within 100 s, the last: the process aborted: SIGABRT"
    device.load_error = None
    device.now += 3600
    assert keeper.poll() == device.now + POLL_SECONDS
    device.plugged = ""
    assert keeper.poll() == device.now + POLL_SECONDS
    device.plugged = "usb-2"
    assert keeper.poll() is None
    assert [state for state, _ in device.states] == ["degraded", "quarantined", "cpu", "accelerated"]


def test_an_operator_releases_it(device, keeper, runner):
    device.load_error = CRASH
    for _ in range(3):
        device.now = keeper.poll() or 0.0
    device.load_error = None
    keeper.release()
    assert keeper.poll() is None
    assert keeper.status.state == "accelerated"


def test_to_release_one_that_serves_changes_nothing(device, keeper, runner):
    promote(keeper, runner)
    keeper.release()
    keeper.poll()
    assert device.states == [("accelerated", "")]
    assert len(device.loaded) == 1


def test_a_device_that_is_not_there_is_waited_for_and_not_tried(device, keeper, runner):
    device.plugged = ""
    assert keeper.poll() == device.now + POLL_SECONDS
    assert device.states == [("degraded", "the device is not there")]
    assert device.loaded == []
    device.plugged = "usb-1"
    assert keeper.poll() is None
    assert keeper.status.state == "accelerated"


def test_one_that_is_unplugged_says_so_and_comes_back(device, keeper, runner):
    promote(keeper, runner)
    device.run_error, device.plugged = CRASH, ""
    answer(runner)
    device.now = keeper.poll() or 0.0
    keeper.poll()
    device.run_error, device.plugged = None, "usb-2"
    keeper.poll()
    assert device.states[1:] == [
        ("degraded", CRASH.message),
        ("degraded", "the device is not there"),
        ("degraded", CRASH.message),
        ("accelerated", ""),
    ]


# Held to a golden sample


def test_it_is_held_to_a_sample_every_so_often_and_only_between_windows(device, keeper, runner):
    promote(keeper, runner)
    device.now = 1059.9
    answer(runner)
    assert device.checks == 0
    device.now = 1060.0
    answer(runner)
    answer(runner)
    assert device.checks == 1


def test_it_is_never_checked_where_that_is_not_wanted(device):
    keeper = accelerator(device, Rules(check_every=0))
    runner = keeper.runner("m", twin(), device.load, device.check)
    promote(keeper, runner)
    device.now = 1e9
    answer(runner)
    assert device.checks == 0


def test_the_twin_is_not_checked(device, keeper, runner):
    promote(keeper, runner)
    device.run_error = CRASH
    answer(runner)
    device.now = 1e9
    answer(runner)
    assert device.checks == 0


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (WRONG, "wrong", "answers wrongly: golden sample 0: all zero"),
        (CRASH, "device", "the process aborted: SIGABRT"),
        (KeyError("x"), "wrong", "KeyError: 'x'"),
    ],
)
def test_a_wrong_answer_is_a_fault_and_the_window_in_hand_runs_on_the_twin(
    device, keeper, cpu, runner, error, kind, reason
):
    promote(keeper, runner)
    device.now, device.check_error = 1060.0, error
    assert (answer(runner), cpu.runs) == (6.0, 1)
    assert device.states[-1] == ("degraded", reason)
    assert keeper.counts().faults == {kind: 1}


# Models with state


def remembering() -> FakeRunner:
    """Return a runner that answers the sum of its inputs since the reset."""
    memory: list[float] = []

    def add(inputs: Arrays) -> Arrays:
        memory.append(float(inputs[0][0, 0]))
        return [np.full((1, 1), sum(memory), np.float32)]

    return twin(add, forget=memory.clear)


def crash(inputs: Arrays) -> Arrays:
    raise CRASH


@pytest.mark.parametrize(
    ("met", "renewals"),
    [({"run_error": CRASH}, 0), ({"run_error": REFUSAL}, 1), ({"check_error": WRONG}, 1), ({"load_error": REFUSAL}, 0)],
)
def test_what_outlived_its_fault_is_begun_anew(met: dict[str, Exception], renewals: int, device, keeper, runner):
    if "load_error" not in met:
        promote(keeper, runner)
    device.now += 60.0
    for name, error in met.items():
        setattr(device, name, error)
    answer(runner)
    keeper.poll()
    device.run_error = device.check_error = device.load_error = None
    device.now += 60.0
    for _ in range(2):  # and once only
        promote(keeper, runner)
    assert device.renewals == renewals


def test_each_change_begins_from_rest(device, keeper):
    cpu = remembering()
    loads = iter([remembering(), remembering()])
    runner = keeper.runner("m", cpu, lambda: next(loads), device.check)
    assert (answer(runner, 1), answer(runner, 1)) == (1, 2)
    keeper.poll()
    assert (answer(runner, 1), answer(runner, 1)) == (1, 2)
    device.now, device.check_error = 1060.0, WRONG
    assert (answer(runner, 1), answer(runner, 1)) == (1, 2)
    device.now = keeper.poll() or 0.0
    keeper.poll()
    assert answer(runner, 1) == 1


def test_a_window_that_is_run_again_begins_from_rest(keeper, device):
    runner = keeper.runner("m", remembering(), lambda: twin(crash), device.check)
    assert answer(runner, 1) == 1
    keeper.poll()
    assert (answer(runner, 1), answer(runner, 1)) == (1, 2)


def test_one_that_another_takes_down_begins_from_rest(keeper, device):
    remembers = keeper.runner("m", remembering(), device.load, device.check)
    crashes = keeper.runner("m", twin(), device.load, device.check)
    assert answer(remembers, 1) == 1
    promote(keeper, remembers, crashes)
    device.run_error = CRASH
    answer(crashes)
    assert (answer(remembers, 1), answer(remembers, 1)) == (1, 2)


def test_a_gap_resets_what_serves(device, keeper, cpu, runner):
    runner.reset()
    assert cpu.resets == 1
    promote(keeper, runner)
    runner.reset()
    assert (cpu.resets, device.loaded[0].resets) == (1, 1)


def test_one_that_cannot_be_reset_is_at_fault(device, keeper, cpu, runner):
    promote(keeper, runner)
    device.reset_error = CRASH
    runner.reset()
    assert (answer(runner), cpu.runs, cpu.resets) == (6.0, 1, 1)
    assert keeper.status.state == "degraded"


def test_while_its_device_is_busy_the_twin_serves_and_that_is_no_fault(device, keeper, cpu, runner):
    promote(keeper, runner)
    there = device.loaded[0].runs
    device.busy, device.now = True, 2000.0
    runner.reset()
    assert [answer(runner), answer(runner)] == [6.0, 6.0]
    assert (cpu.runs, device.loaded[0].runs, device.loaded[0].resets, device.checks) == (2, there, 0, 0)
    device.busy = False
    answer(runner)
    assert (cpu.runs, device.loaded[0].runs) == (2, there + 1)
    assert (device.states[-1], keeper.counts().faults) == (("accelerated", ""), {})


def test_to_make_way_begins_from_rest_and_so_does_coming_back(keeper, device, cpu, runner):
    promote(keeper, runner)
    device.busy = True
    answer(runner)
    answer(runner)
    device.busy = False
    answer(runner)
    answer(runner)
    assert (cpu.resets, device.loaded[0].resets) == (1, 1)


def test_one_that_cannot_come_back_is_at_fault_and_the_twin_remembers(keeper, device, cpu, runner):
    promote(keeper, runner)
    device.busy = True
    answer(runner)
    device.busy, device.reset_error = False, CRASH
    assert (answer(runner), cpu.runs, cpu.resets) == (6.0, 2, 1)
    assert keeper.status.state == "degraded"


def test_one_that_has_made_way_goes_on_where_it_is_as_another_takes_the_device_down(keeper, device, cpu, runner):
    other = keeper.runner("m", twin(), device.load, device.check)
    promote(keeper, runner, other)
    device.busy = True
    answer(runner)
    device.busy, device.run_error = False, CRASH
    answer(other)
    answer(runner)
    assert (cpu.runs, cpu.resets) == (2, 1)


# Several models on a device


def test_a_fault_of_one_is_a_fault_of_all_and_counts_once(device, keeper):
    one, other = (keeper.runner("m", twin(), device.load, device.check) for _ in range(2))
    promote(keeper, one, other)
    device.run_error = CRASH
    answer(one)
    answer(other)
    assert keeper.counts().faults == {"device": 1}
    device.run_error, device.now = None, 1001.0
    promote(keeper, one, other)
    assert len(device.open) == 2
    assert keeper.counts().promotions == 4
    assert [state for state, _ in device.states] == ["accelerated", "degraded", "accelerated"]


def test_two_that_meet_the_same_crash_at_once_count_it_once(device, keeper):
    one = keeper.runner("m", twin(), lambda: twin(crash), device.check)

    def crash_after_one(inputs: Arrays) -> Arrays:
        answer(one)
        raise CRASH

    other = keeper.runner("m", twin(), lambda: twin(crash_after_one), device.check)
    keeper.poll()
    assert answer(other) == 6.0
    assert keeper.counts().faults == {"device": 1}
    assert keeper.counts().on_twin == 2


def test_another_worker_lets_go_of_its_own_before_its_next_window(device, keeper):
    quiet_cpu = twin()
    one, quiet = (
        keeper.runner("m", twin(), device.load, device.check),
        keeper.runner("m", quiet_cpu, device.load, device.check),
    )
    promote(keeper, one, quiet)
    device.now, device.check_error = 1060.0, WRONG
    answer(one)
    keeper.poll()
    [left] = device.open
    answer(quiet)
    keeper.poll()
    assert (left.runs, left.closed, quiet_cpu.runs) == (1, True, 1)


def test_what_nobody_had_taken_when_a_fault_came_is_closed(device, keeper):
    one, _quiet = (keeper.runner("m", twin(), device.load, device.check) for _ in range(2))
    promote(keeper, one)
    assert len(device.open) == 2
    device.run_error = CRASH
    answer(one)
    keeper.poll()
    assert device.open == []


def test_a_fault_during_a_load_makes_that_load_vain(device, keeper):
    first = keeper.runner("m", twin(), device.load, device.check)
    promote(keeper, first)
    second_cpu = twin()
    second = keeper.runner("m", second_cpu, device.load, device.check)

    def fail_meanwhile() -> None:
        device.run_error = CRASH
        answer(first)
        device.run_error = None

    device.during_load = fail_meanwhile
    assert keeper.poll() == 1001.0
    answer(second)
    assert (second_cpu.runs, device.open) == (1, [])


def test_a_load_that_fails_with_what_another_met_is_no_second_fault(device, keeper):
    first = keeper.runner("m", twin(), device.load, device.check)
    promote(keeper, first)
    keeper.runner("m", twin(), device.load, device.check)

    def fail_meanwhile() -> None:
        device.run_error = device.load_error = CRASH
        answer(first)

    device.during_load = fail_meanwhile
    keeper.poll()
    assert keeper.counts().faults == {"device": 1}


def test_a_model_that_does_not_load_leaves_those_alone_that_serve(device, keeper):
    good = keeper.runner("good", twin(), device.load, device.check)
    promote(keeper, good)
    device.load_error = WRONG
    bad = keeper.runner("bad", twin(), device.load, device.check)
    assert (keeper.status_of("good").state, keeper.status_of("bad").state) == ("accelerated", "cpu")
    keeper.poll()
    answer(good)
    assert device.loaded[0].runs == 2
    assert keeper.status.state == "degraded"
    assert (keeper.status_of("good").state, keeper.status_of("bad").state) == ("accelerated", "degraded")
    bad.close()
    keeper.poll()
    assert keeper.status.state == "accelerated"


def test_a_model_that_does_not_load_leaves_its_turn_to_the_others(device, keeper):
    def refuse() -> FakeRunner:
        raise WRONG

    keeper.runner("bad", twin(), refuse, device.check)
    keeper.runner("good", twin(), device.load, device.check)
    keeper.poll()
    device.now += 60
    keeper.poll()
    assert keeper.status_of("good").state == "accelerated"


def test_a_model_with_two_runners_is_accelerated_when_both_are(device, keeper):
    one = keeper.runner("m", twin(), device.load, device.check)
    assert keeper.status_of("m") == AcceleratorStatus("cpu", LOADING, "", 1000.0)
    promote(keeper, one)
    assert keeper.status_of("m").state == "accelerated"
    device.load_error = WRONG
    other = keeper.runner("m", twin(), device.load, device.check)
    keeper.poll()
    assert keeper.status_of("m").reason == "golden sample 0: all zero"
    other.close()
    assert keeper.status_of("m").state == "accelerated"


def test_a_model_that_fails_again_as_before_is_told_of_again(device):
    told: list[str] = []

    def tell(_: AcceleratorStatus) -> None:
        if (now := keeper.status_of("one")) is not None and told[-1:] != [now.state]:
            told.append(now.state)

    keeper = accelerator(device, tell=tell)
    one = keeper.runner("one", twin(), device.load, device.check)
    keeper.runner("other", twin(), device.load, device.check)
    promote(keeper, one)
    device.run_error = CRASH
    answer(one)
    device.now += 60

    def fail_meanwhile() -> None:
        if len(device.loaded) == 3:  # a model is back, and the other is being loaded
            answer(one)

    device.during_load = fail_meanwhile
    keeper.poll()
    assert told == ["cpu", "accelerated", "degraded", "accelerated", "degraded"]


def test_a_model_that_is_closed_stands_no_way(keeper, runner):
    runner.close()
    assert keeper.status_of("m") is None


def test_a_model_that_never_loads_keeps_no_other_away(device, keeper):
    def refuse() -> FakeRunner:
        raise WRONG

    good = keeper.runner("good", twin(), device.load, device.check)
    promote(keeper, good)
    keeper.runner("bad", twin(), refuse, device.check)
    for _ in range(4):
        keeper.poll()
        device.now += 9
    assert keeper.status_of("bad").state == "quarantined"
    for _ in range(2):
        device.run_error = CRASH
        answer(good)
        device.run_error = None
        device.now += 9
        keeper.poll()
        assert keeper.status_of("good").state == "accelerated"
    device.run_error = CRASH
    answer(good)
    keeper.poll()
    assert keeper.status_of("good").state == "quarantined"  # by its own faults


def test_a_model_that_comes_is_tried_where_others_never_load(device, keeper):
    device.load_error = WRONG
    keeper.runner("bad", twin(), device.load, device.check)
    for _ in range(4):
        keeper.poll()
        device.now += 9
    assert keeper.status_of("bad").state == "quarantined"
    device.load_error = None
    keeper.runner("good", twin(), device.load, device.check)
    keeper.poll()
    assert keeper.status_of("good").state == "accelerated"


def test_a_device_is_at_fault_that_fails_all_its_models(device, keeper, runner):
    promote(keeper, runner)
    assert not keeper.is_at_fault()
    device.load_error = WRONG
    bad = keeper.runner("bad", twin(), device.load, device.check)
    keeper.poll()
    assert (keeper.status.state, keeper.is_at_fault()) == ("degraded", False)
    device.run_error = CRASH
    answer(runner)
    assert keeper.is_at_fault()
    bad.close()


def test_a_load_that_the_device_fails_takes_all_down(device, keeper):
    cpu = twin()
    good = keeper.runner("m", cpu, device.load, device.check)
    promote(keeper, good)
    device.load_error = CRASH
    keeper.runner("m", twin(), device.load, device.check)
    keeper.poll()
    answer(good)
    keeper.poll()
    assert (cpu.runs, device.open) == (1, [])


def test_windows_are_counted_where_they_ran_after_a_close_as_well(device, keeper, runner):
    answer(runner)
    promote(keeper, runner)
    answer(runner)
    device.run_error = CRASH
    answer(runner)
    expected = keeper.counts()
    assert (expected.accelerated, expected.on_twin) == (2, 2)
    runner.close()
    assert keeper.counts() == expected


# The accelerator's thread


class Plugged(Device):
    """Device on real time that signals changes of the status."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: SimpleQueue[AcceleratorStatus] = SimpleQueue()

    def next(self) -> str:
        return self.changes.get(timeout=120).state


@pytest.fixture
def plugged() -> Plugged:
    return Plugged()


@pytest.fixture
def running(plugged: Plugged):
    made = Accelerator(
        "edgetpu usb:0",
        Rules(backoff=0.001, failures=3, within=100, check_every=0),
        identity=plugged.identity,
        renew=plugged.renew,
        busy=lambda: plugged.busy,
        tell=changes(plugged.changes.put),
        clock=time.monotonic,
        jitter=lambda: 0.0,
    )
    made.start()
    yield made
    made.close()
    assert made.join(120)


def test_its_thread_loads_brings_back_and_leaves_alone(plugged, running):
    runner = running.runner("m", twin(), plugged.load, plugged.check)
    assert plugged.next() == "accelerated"
    for _ in range(2):
        plugged.run_error = CRASH
        answer(runner)
        plugged.run_error = None
        assert [plugged.next(), plugged.next()] == ["degraded", "accelerated"]
    plugged.run_error = CRASH
    answer(runner)
    assert [plugged.next(), plugged.next()] == ["degraded", "quarantined"]
    plugged.run_error = None
    running.release()
    assert [plugged.next(), plugged.next()] == ["cpu", "accelerated"]
    runner.close()


def test_its_thread_is_named_and_holds_nobody_up_who_ends(running):
    [thread] = [thread for thread in threading.enumerate() if thread.name == "accelerator-edgetpu usb:0"]
    assert thread.daemon


def test_its_thread_sleeps_while_there_is_nothing_to_do(plugged, running):
    runner = running.runner("m", twin(), plugged.load, plugged.check)
    assert plugged.next() == "accelerated"
    assert not running.join(0.05)
    assert plugged.asked < 10
    runner.close()


def test_one_that_was_never_started_may_be_closed(keeper):
    keeper.close()
    assert keeper.join(0)


def test_what_is_handed_back_as_its_thread_ends_is_closed(device, keeper, runner):
    promote(keeper, runner)

    def end() -> None:
        runner.close()
        keeper.close()

    device.during_look = end
    keeper.start()
    assert keeper.join(120)
    assert device.open == []


def test_its_thread_outlives_what_nobody_foresaw(plugged, running, caplog):
    def fail_once() -> None:
        plugged.during_look = lambda: None
        raise OSError(24, "Too many open files")

    plugged.during_look = fail_once
    runner = running.runner("m", twin(), plugged.load, plugged.check)
    assert plugged.next() == "accelerated"
    assert "Too many open files" in caplog.text
    runner.close()


def test_a_load_that_takes_long_holds_no_window_up(plugged, running):
    loading, go_on = threading.Event(), threading.Event()

    def during_load() -> None:
        loading.set()
        assert go_on.wait(120)

    plugged.during_load = during_load
    cpu = twin()
    runner = running.runner("m", cpu, plugged.load, plugged.check)
    assert loading.wait(120)
    assert (answer(runner), cpu.runs) == (6.0, 1)
    assert running.counts().on_twin == 1
    go_on.set()
    assert plugged.next() == "accelerated"
    runner.close()


def test_one_that_hangs_holds_up_no_other_model_and_no_question(plugged, running):
    hangs, killed = threading.Event(), threading.Event()

    def hang(inputs: Arrays) -> Arrays:
        hangs.set()
        assert killed.wait(120)
        raise DeviceError("no answer within 2 s; its process was killed")

    stuck = running.runner("m", twin(), lambda: twin(hang), plugged.check)
    other = running.runner("m", twin(), plugged.load, plugged.check)
    assert plugged.next() == "accelerated"
    answers: SimpleQueue[float] = SimpleQueue()
    worker = threading.Thread(target=lambda: answers.put(answer(stuck)))
    worker.start()
    assert hangs.wait(120)
    assert answer(other) == 6.0
    assert running.counts().accelerated == 1
    killed.set()
    assert answers.get(timeout=120) == 6.0
    worker.join(120)
    assert plugged.next() == "degraded"
    stuck.close()
    other.close()


def test_two_workers_lose_no_window_whatever_happens_meanwhile(plugged, running):
    """Faults, replugs, releases and swaps between windows on two threads, and loads on a third."""
    cpus: list[FakeRunner] = []
    broken: list[int] = []

    def open_one() -> AcceleratedRunner:
        cpus.append(twin())
        return running.runner("m", cpus[-1], plugged.load, plugged.check)

    def work() -> None:
        runner = open_one()
        for window in range(WINDOWS):
            if window % 20 == 0:
                plugged.run_error = (None, None, CRASH, REFUSAL)[window // 20 % 4]
                plugged.load_error = (None, None, WRONG, None, CRASH)[window // 20 % 5]
            if window % 100 == 0:
                plugged.plugged = f"usb-{window}"
                running.release()
            if window % 500 == 499:
                runner.close()
                runner = open_one()
            if answer(runner, window) != 2 * window:
                broken.append(window)
        runner.close()

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    counts = running.counts()
    assert broken == []
    assert counts.accelerated + counts.on_twin == 2 * WINDOWS
    assert counts.on_twin == sum(cpu.runs for cpu in cpus)
    running.close()
    assert running.join(120)
    assert plugged.open == []


# Invariants


class Years(RuleBasedStateMachine):
    """Two models on a device that fails, is unplugged, plugged in, released and quarantined, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.device = Device()
        self.told: list[AcceleratorStatus | None] = []
        self.refused: set[str] = set()
        say = changes(self.device.told.append)

        def tell(status: AcceleratorStatus) -> None:
            say(status)
            self.told = self.stand()

        self.keeper = accelerator(self.device, tell=tell)
        self.cpus: list[FakeRunner] = []
        self.runners = [self.open_one("0"), self.open_one("1")]
        self.windows = 0

    def open_one(self, name: str) -> AcceleratedRunner:
        def load() -> FakeRunner:
            if name in self.refused:
                raise WRONG
            return self.device.load()

        self.cpus.append(twin())
        return self.keeper.runner(name, self.cpus[-1], load, self.device.check)

    def stand(self) -> list[AcceleratorStatus | None]:
        return [self.keeper.status_of(name) for name in ("0", "1")]

    @rule(which=st.sampled_from([0, 1]), value=st.integers(-9, 9))
    def window(self, which: int, value: int) -> None:
        self.windows += 1
        assert answer(self.runners[which], value) == 2 * value

    @rule(which=st.sampled_from([0, 1]))
    def gap(self, which: int) -> None:
        self.runners[which].reset()

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0, 60.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        self.device.now += seconds

    @rule()
    def poll(self) -> None:
        quarantined = self.keeper.status.state == "quarantined"
        loaded = len(self.device.loaded)
        due = self.keeper.poll()
        assert due is None or due > self.device.now
        if quarantined and self.keeper.status.state == "quarantined":
            assert len(self.device.loaded) == loaded

    @rule(error=st.sampled_from([CRASH, REFUSAL, KeyError("x"), None]))
    def running_fails(self, error: Exception | None) -> None:
        self.device.run_error = error

    @rule(error=st.sampled_from([CRASH, WRONG, KeyError("x"), None]))
    def loading_fails(self, error: Exception | None) -> None:
        self.device.load_error = error

    @rule(names=st.sets(st.sampled_from(["0", "1"])))
    def some_do_not_load(self, names: set[str]) -> None:
        self.refused = names

    @rule(error=st.sampled_from([CRASH, WRONG, None]))
    def answers_wrongly(self, error: Exception | None) -> None:
        self.device.check_error = error

    @rule(error=st.sampled_from([CRASH, None]))
    def resetting_fails(self, error: Exception | None) -> None:
        self.device.reset_error = error

    @rule(identity=st.sampled_from(["", "usb-1", "usb-2"]))
    def plug(self, identity: str) -> None:
        self.device.plugged = identity

    @rule()
    def release(self) -> None:
        self.keeper.release()

    @rule(which=st.sampled_from([0, 1]))
    def swap(self, which: int) -> None:
        self.runners[which].close()
        self.runners[which] = self.open_one(str(which))

    @invariant()
    def how_its_models_stand_was_told(self) -> None:
        assert self.told == self.stand()

    @invariant()
    def every_window_is_accounted_for(self) -> None:
        counts = self.keeper.counts()
        assert counts.accelerated + counts.on_twin == self.windows
        assert counts.on_twin == sum(cpu.runs for cpu in self.cpus)

    @invariant()
    def only_changes_are_told(self) -> None:
        states = [("cpu", "the accelerator is being loaded"), *self.device.states]
        assert all(one != next_one for one, next_one in pairwise(states))

    def teardown(self) -> None:
        device = self.device
        self.refused = set()
        device.run_error = device.load_error = device.check_error = device.reset_error = None
        for device.plugged in ("", "usb-3"):
            device.now += 1000
            self.keeper.poll()
        before = self.keeper.counts().accelerated
        for runner in self.runners:
            answer(runner)
        assert self.keeper.status.state == "accelerated"
        assert self.keeper.counts().accelerated == before + 2
        self.keeper.poll()
        assert len(device.open) == 2
        for runner in self.runners:
            runner.close()
        self.keeper.poll()
        assert device.open == []


TestYears = Years.TestCase
TestYears.settings = settings(max_examples=2000 if SOAK else 40, stateful_step_count=40, deadline=None)


# As any backend


class OnAccelerator(Backend, frozen=True, kw_only=True):
    """Backend for a fake model on an accelerator that never fails."""

    def load(self, file: Path, *, signature: str | None = None) -> AcceleratedRunner:
        keeper = accelerator(Device())
        runner = keeper.runner("m", FakeBackend().load(file), lambda: FakeBackend().load(file), lambda runner: None)
        keeper.poll()
        return runner


class OnTwin(Backend, frozen=True, kw_only=True):
    """Backend for a fake model on the twin, since the accelerator is never loaded."""

    def load(self, file: Path, *, signature: str | None = None) -> AcceleratedRunner:
        return accelerator(Device()).runner(
            "m", FakeBackend().load(file), lambda: FakeBackend().load(file), lambda runner: None
        )


class TestContract(BackendContract):
    @pytest.fixture(params=[OnAccelerator(), OnTwin()], ids=["accelerated", "on its twin"])
    def backend(self, request):
        return request.param

    @pytest.fixture
    def model_file(self, tmp_path):
        return write(tmp_path, answers=[[[1, 2, 3]], [[4, 5, 6]]])
