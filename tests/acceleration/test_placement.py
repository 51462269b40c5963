"""Placement of models on accelerators, with a delegate that fails on command: choice and consequences."""

import io
import os
import queue
import shutil
import signal
import time
from importlib.util import find_spec

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

import edged.acceleration.placement
from edged.acceleration.placement import Accelerators, candidates
from edged.api import ControlError, DeviceError, ModelError
from edged.backends.delegates import DelegateOptions, delegates
from edged.backends.tflite import TfliteBackend
from edged.core.acceleration import Rules
from edged.core.tuning import Measurement, TuningRecord
from edged.models.bundle import digest, open_folder
from tests.bundles import DATA, write_bundle
from tests.delegates import faulty_library

WAIT = 20.0
RULES = Rules(backoff=0.05, backoff_max=0.1, deadline=5.0, failures=3)
MINE = {"name": "fast", "delegate": "mine", "file": "model.tflite"}
TPU = {"name": "tpu", "delegate": "edgetpu", "file": "edgetpu.tflite"}
INPUT = [np.array([[2, 4, 6, 8]], np.float32)]
OUTPUT = [2.0, 3.0, 4.0]


def bundle(folder, *variants, **parts):
    files = {"edgetpu.tflite": b"compiled"} if TPU in variants else {}
    return open_folder(write_bundle(folder, files=files, variants=list(variants), **parts))


def external(**options):
    device = options.pop("device_file", "")
    return {"mine": DelegateOptions(kind="external", library=faulty_library(), device=device, options=options)}


@pytest.fixture
def told():
    return queue.Queue()


@pytest.fixture
def place(told, tmp_path):
    """Return a function that places a model on configured accelerators, and returns the runner that serves."""
    opened = []

    def put(tables, folder=None, wanted="auto", rules=RULES):
        def tell(model, name, standing):
            told.put((model, name, standing and standing.state, standing and standing.reason))

        accelerators = Accelerators(tell)
        accelerators.configure(tables, rules)
        folder = folder or bundle(tmp_path / "bundle", MINE)
        twin = TfliteBackend().load(folder.model)
        runner = accelerators.put("colours", folder, wanted, TfliteBackend(), twin, 0)
        opened.append((accelerators, runner))
        return accelerators, runner

    yield put
    for accelerators, runner in opened:
        runner.close()
        accelerators.close()


def until(told, state):
    """Return the published states, the last first, up to this state of an accelerator."""
    heard = []
    while not heard or heard[0][2] != state:
        heard.insert(0, told.get(timeout=WAIT))
    return heard


# -- ways to run a model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("auto", [("edgetpu", "tpu", "edgetpu.tflite"), ("mine", "fast", "model.tflite")]),
        ("cpu", []),
        ("mine", [("mine", "fast", "model.tflite")]),
        ("edgetpu", [("edgetpu", "tpu", "edgetpu.tflite")]),
        ("teflon", [("teflon", "", "model.tflite")]),
    ],
)
def test_the_ways_to_accelerate_a_model(tmp_path, wanted, expected):
    manifest = bundle(tmp_path, TPU, MINE).manifest
    table = delegates({"mine": DelegateOptions(kind="external", library="/opt/lib.so")})
    found = candidates(manifest, wanted, table)
    assert [(each.delegate.name, each.variant, each.file) for each in found] == expected


def test_a_variant_runs_on_every_delegate_of_its_kind(tmp_path):
    table = delegates({"left": DelegateOptions(kind="edgetpu", device="usb:1")})
    found = candidates(bundle(tmp_path, TPU).manifest, "auto", table)
    assert [each.delegate.name for each in found] == ["edgetpu", "left"]


def test_what_was_not_compiled_for_an_edge_tpu_does_not_run_there(tmp_path):
    with pytest.raises(ModelError, match="has no variant compiled for edgetpu"):
        candidates(bundle(tmp_path, MINE).manifest, "edgetpu", delegates({}))


# -- serving ----------------------------------------------------------------------------------------------------------


def test_a_model_moves_to_its_accelerator(place, told):
    accelerators, runner = place(external())
    until(told, "accelerated")
    assert runner.run(INPUT)[0].tolist() == [OUTPUT]
    assert (runner.info.delegate, runner.info.delegated) == ("mine", runner.info.nodes)
    assert accelerators.statuses()["colours"][0] == "mine"
    assert accelerators.counts()["mine"].promotions == 1


def test_a_model_that_does_not_load_there_is_no_fault_of_another(place, told, tmp_path):
    accelerators, _ = place(external())
    until(told, "accelerated")
    bad = bundle(tmp_path / "bad", MINE)
    twin = TfliteBackend().load(bad.model)
    bad.file("model.tflite").write_bytes(b"no model")
    runner = accelerators.put("shapes", bad, "auto", TfliteBackend(), twin, 0)
    while told.get(timeout=WAIT)[:3] != ("shapes", "mine", "degraded"):
        pass
    assert accelerators.statuses()["colours"][1].state == "accelerated"
    runner.close()


def test_without_a_variant_the_twin_itself_serves(place, tmp_path, told):
    accelerators, runner = place(external(), bundle(tmp_path / "plain"))
    assert runner.info.delegate == "cpu"
    assert accelerators.statuses() == {}
    assert told.get(timeout=WAIT) == ("colours", "", None, None)


@pytest.mark.parametrize(
    ("orders", "named"),
    [
        ({"wrong": "zeros"}, "zero"),
        ({"wrong": "step"}, "output"),
        ({"wrong": "nan"}, "NaN"),
        ({"wrong": "constant"}, "same"),
    ],
)
def test_what_computes_wrongly_never_serves(place, told, orders, named):
    _, runner = place(external(**orders))
    assert named in until(told, "quarantined")[0][3]
    assert runner.run(INPUT)[0].tolist() == [OUTPUT]
    assert runner.info.delegate == "cpu"


def test_a_device_that_nobody_asked_for_by_name_is_no_fault_where_it_is_missing(place, told, tmp_path):
    device = tmp_path / "device"
    _, runner = place(external(device=str(device), device_file=str(device)))
    assert until(told, "cpu")[0][1] == "mine"
    device.touch()
    until(told, "accelerated")
    assert runner.run(INPUT)[0].tolist() == [OUTPUT]


def test_one_that_is_asked_for_by_name_is(place, told, tmp_path):
    place(external(device_file=str(tmp_path / "device")), wanted="mine")
    assert until(told, "degraded")[0][:3] == ("colours", "mine", "degraded")


def test_a_real_edge_tpu_variant_stays_on_the_cpu_where_there_is_no_edge_tpu(place, tmp_path, told):
    _, runner = place({}, bundle(tmp_path / "tpu", TPU))
    assert until(told, "cpu")[0][:3] == ("colours", "edgetpu", "cpu")
    assert runner.run(INPUT)[0].tolist() == [OUTPUT]


def test_released_it_is_tried_again(place, told, tmp_path):
    accelerators, _ = place(external(fail="create"))
    until(told, "quarantined")
    accelerators.release("mine")
    until(told, "quarantined")
    with pytest.raises(ControlError, match="no model runs on 'other'"):
        accelerators.release("other")


def test_another_file_may_be_what_cures_it(place, told, tmp_path):
    accelerators, runner = place(external(fail="create"))
    until(told, "quarantined")
    other = {"fast.tflite": (DATA / "float.tflite").read_bytes() + bytes(16)}
    cure = open_folder(write_bundle(tmp_path / "cure", files=other, variants=[{**MINE, "file": "fast.tflite"}]))
    for folder, state in ((bundle(tmp_path / "same", MINE), "quarantined"), (cure, "cpu")):
        runner.close()
        runner = accelerators.put("colours", folder, "auto", TfliteBackend(), TfliteBackend().load(folder.model), 0)
        assert told.get(timeout=WAIT)[2] == state
    runner.close()


def test_what_the_version_before_proves_late_proves_nothing_of_the_next(place, told, tmp_path):
    slow = bundle(tmp_path / "slow", {**MINE, "options": {"delay_us": "30000"}})
    wrong = bundle(tmp_path / "wrong", {**MINE, "options": {"wrong": "zeros"}})
    accelerators, _ = place(external(), slow)
    next_runner = accelerators.put("colours", wrong, "auto", TfliteBackend(), TfliteBackend().load(wrong.model), 0)
    until(told, "degraded")
    assert (accelerators.has_proven("colours", slow), accelerators.has_proven("colours", wrong)) == (True, False)
    next_runner.close()


def test_of_what_serves_on_because_the_next_version_fails_more_is_told(place, told, tmp_path):
    device = tmp_path / "device"
    device.touch()
    accelerators, runner = place(external(device=str(device), device_file=str(device)))
    until(told, "accelerated")
    broken = TfliteBackend().load(DATA / "float.tflite")
    broken.close()
    with pytest.raises(ModelError, match="closed"):
        accelerators.put("colours", bundle(tmp_path / "next", MINE), "auto", TfliteBackend(), broken, 0)
    runner.run(INPUT)
    device.unlink()
    runner.run(INPUT)
    until(told, "degraded")


def test_what_has_gone_to_the_cpu_for_good_has_no_share_any_more(place, told, tmp_path):
    accelerators, _ = place(external())
    until(told, "accelerated")
    assert [*accelerators.shares()] == ["colours"]
    twin = TfliteBackend().load(bundle(tmp_path / "next").model)
    assert accelerators.put("colours", bundle(tmp_path / "next"), "auto", TfliteBackend(), twin, 0) is twin
    assert accelerators.shares() == {}


def test_another_configuration_begins_anew(place, told, tmp_path):
    accelerators, runner = place(external(fail="create"))
    until(told, "quarantined")
    runner.close()
    accelerators.configure(external(), RULES)
    folder = bundle(tmp_path / "again", MINE)
    runner = accelerators.put("colours", folder, "auto", TfliteBackend(), TfliteBackend().load(folder.model), 0)
    until(told, "accelerated")
    runner.close()


def test_what_began_under_another_configuration_does_not_bring_it_back(place, told, tmp_path):
    accelerators, runner = place(external())
    until(told, "accelerated")
    folder = bundle(tmp_path / "again", MINE)
    [(way, _)] = accelerators.ways(folder.manifest, "auto")
    runner.close()
    accelerators.configure(external(fail="create"), RULES)
    with pytest.raises(DeviceError, match="the configuration of mine has just changed"):
        accelerators.load(way, folder, TfliteBackend())
    assert accelerators.counts() == {}


def test_of_what_has_gone_nothing_is_told_and_kept_by_what_was_under_way(place, told, tmp_path):
    slow = bundle(tmp_path / "slow", {**MINE, "options": {"delay_us": "30000"}})
    accelerators, runner = place(external(), slow)
    assert until(told, "cpu")
    unit = accelerators._units["mine"]
    while not unit.host.is_loading:
        time.sleep(0.001)
    runner.close()
    accelerators.forget("colours")
    unit.accelerator.close()
    assert unit.accelerator.join(WAIT)
    assert told.get(timeout=WAIT) == ("colours", "", None, None)
    assert told.empty()
    assert (accelerators.statuses(), accelerators.shares()) == ({}, {})
    assert not accelerators.has_proven("colours", slow)


def test_a_process_that_is_started_again_is_not_proven_while_a_window_waits(tmp_path):
    accelerators = Accelerators(lambda *_: None)
    golden = io.BytesIO()
    np.savez(golden, input_0=np.stack(INPUT * 3), output_0=np.array([[OUTPUT]] * 3, np.float32))
    proven = open_folder(write_bundle(tmp_path, files={"golden.npz": golden.getvalue()}, golden={}))
    runner = accelerators.on_cpu.isolate("colours", proven, TfliteBackend())
    os.kill(runner._runner.pid, signal.SIGKILL)
    assert runner.run(INPUT)[0].tolist() == [OUTPUT]
    assert runner._runner.run_times.turns == 1
    runner.close()
    accelerators.close()


def test_one_that_is_asked_for_and_has_nothing_to_run_is_a_fault_and_no_reason_not_to_serve(place, told, tmp_path):
    accelerators, runner = place({}, bundle(tmp_path / "plain"), wanted="edgetpu")
    model, name, state, reason = told.get(timeout=WAIT)
    assert (model, name, state) == ("colours", "edgetpu", "degraded")
    assert "no variant" in reason
    assert runner.run(INPUT)[0].tolist() == [OUTPUT]
    accelerators.forget("colours")
    assert told.get(timeout=WAIT) == ("colours", "", None, None)


# -- trials -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("orders", "limits", "failure", "named"),
    [
        ({}, {}, "", ""),
        ({}, {"delegated_share": 1.0}, "", ""),
        ({"take": "none"}, {"delegated_share": 0.5}, "unfit", "takes 0 of its"),
        ({"delay_us": "3000"}, {"latency_p99": 0.001}, "slow", "on mine"),
        ({"wrong": "zeros"}, {}, "wrong", "zero"),
        ({"fail": "abort"}, {}, "crashed", "SIGABRT"),
        ({"fail": "prepare"}, {}, "wrong", ""),
    ],
)
def test_what_a_version_does_on_its_accelerator(tmp_path, orders, limits, failure, named):
    accelerators = Accelerators(lambda *_: None)
    accelerators.configure(external(**orders), RULES)
    try:
        verdict = accelerators.try_out(bundle(tmp_path, MINE, limits=limits), "auto", TfliteBackend())
    finally:
        accelerators.close()
    assert verdict is not None
    assert verdict.failure == failure
    assert named in verdict.reason


def test_what_is_wrong_with_the_device_is_not_held_against_a_version(tmp_path, monkeypatch):
    accelerators = Accelerators(lambda *_: None)
    try:
        accelerators.configure(external(fail="create"), RULES)
        with pytest.raises(DeviceError, match="mine"):
            accelerators.try_out(bundle(tmp_path / "a", MINE), "auto", TfliteBackend())
        accelerators.configure(external(fail="abort"), RULES)
        ready = edged.acceleration.placement.survey(delegates(external(fail="abort"))["mine"])
        seen = iter([ready, ready, msgspec.structs.replace(ready, state="missing")])
        monkeypatch.setattr(edged.acceleration.placement, "survey", lambda *_: next(seen))
        with pytest.raises(DeviceError, match="SIGABRT"):  # of being unplugged, perhaps
            accelerators.try_out(bundle(tmp_path / "b", MINE), "auto", TfliteBackend())
    finally:
        accelerators.close()


@pytest.mark.parametrize("fail", ["abort", "invoke"])
def test_what_fails_on_a_device_at_fault_is_not_held_against_a_version(place, told, tmp_path, fail):
    accelerators, _ = place(external(fail=fail))
    until(told, "quarantined")
    with pytest.raises(DeviceError):
        accelerators.try_out(bundle(tmp_path / "next", MINE), "auto", TfliteBackend())


def test_a_device_that_is_unplugged_on_trial_is_not_held_against_a_version(tmp_path, monkeypatch):
    device = tmp_path / "device"
    device.touch()
    accelerators = Accelerators(lambda *_: None)
    accelerators.configure(external(device_file=str(device), device=str(device)), RULES)

    def judge(*_):
        device.unlink()
        raise ModelError("the device is gone")

    monkeypatch.setattr(edged.acceleration.placement, "_judge", judge)
    with pytest.raises(DeviceError, match="the device is gone"):
        accelerators.try_out(bundle(tmp_path / "next", MINE), "auto", TfliteBackend())
    accelerators.close()


def test_where_no_device_is_ready_there_is_nothing_to_try(tmp_path):
    accelerators = Accelerators(lambda *_: None)
    assert accelerators.try_out(bundle(tmp_path, TPU), "auto", TfliteBackend()) is None


# -- measurements -----------------------------------------------------------------------------------------------------


LEFT = {"name": "left", "delegate": "left", "file": "model.tflite"}
RIGHT = {"name": "right", "delegate": "right", "file": "model.tflite"}
SIDES = ("left", "right")


@pytest.fixture
def measured(tmp_path):
    """Return a board with two accelerators, and a record of milliseconds by way, from another environment."""
    records = {}
    board = Accelerators(lambda *_: None, records=records.get)
    board.configure(dict.fromkeys(SIDES, external()["mine"]), RULES)
    folder = bundle(tmp_path / "bundle", LEFT, RIGHT)

    def record(*milliseconds, **other):
        ways = [Measurement(), Measurement(threads=2), *(Measurement(delegate=each, variant=each) for each in SIDES)]
        environment = board.environment(folder.manifest, "auto", TfliteBackend())
        records["colours"] = TuningRecord(
            model="colours",
            version="1.0",
            digest=digest(folder.folder),
            environment=replace(environment, **other),
            measured=0.0,
            measurements=tuple(replace(way, p50=each / 1e3) for way, each in zip(ways, milliseconds, strict=True)),
        )
        return board, folder

    yield record
    board.close()


@pytest.mark.parametrize(
    ("milliseconds", "wanted", "serves"),
    [
        ((9, 9, 2, 1), "auto", "right"),
        ((9, 9, 1, 2), "auto", "left"),
        ((1, 1, 8, 9), "auto", "cpu"),
        ((1, 1, 8, 9), "right", "right"),
    ],
)
def test_the_fastest_serves(measured, milliseconds, wanted, serves):
    board, folder = measured(*milliseconds)
    runner = board.put("colours", folder, wanted, TfliteBackend(), TfliteBackend().load(folder.model), 0)
    assert board.statuses().get("colours", ("cpu", None))[0] == serves
    runner.close()


def test_why_is_kept(measured):
    board, folder = measured(8, 4, 1, 2)
    assert board.choices() == {}
    assert board.threads("colours", folder, "auto", TfliteBackend()) == 2
    assert board.choices() == {
        "colours": "measured here: left (left) took 1 ms, right (right) 2 ms, the CPU with 2 threads 4 ms"
    }


def test_what_was_measured_with_another_runtime_is_not_gone_by(measured):
    board, folder = measured(8, 4, 9, 9, runtime="litert 0.1")
    assert board.threads("colours", folder, "auto", TfliteBackend()) == 1
    assert board.choices()["colours"].startswith("as in the manifest: measured with litert 0.1, now ")


def test_where_there_is_no_choice_none_is_told_of(tmp_path):
    board = Accelerators(lambda *_: None)
    board.choice("colours", bundle(tmp_path / "before", TPU), "auto", TfliteBackend())
    assert board.choices() == {"colours": "as in the manifest: not measured here by edgectl tune"}
    board.choice("colours", bundle(tmp_path / "after"), "auto", TfliteBackend())
    assert board.choices() == {}


def test_threads_that_are_configured_are_not_measured(measured):
    board, folder = measured(8, 4, 9, 9)
    assert board.threads("colours", folder, "auto", TfliteBackend(threads=3)) == 3


def test_a_library_that_was_replaced_makes_the_record_worthless(tmp_path):
    library = tmp_path / "mine.so"
    shutil.copy(faulty_library(), library)
    board = Accelerators(lambda *_: None)
    board.configure({"mine": DelegateOptions(kind="external", library=str(library))}, RULES)
    manifest = bundle(tmp_path / "bundle", MINE).manifest
    before = board.environment(manifest, "auto", TfliteBackend())
    assert board.environment(manifest, "auto", TfliteBackend()) == before
    os.utime(library, ns=(0, 0))
    assert board.environment(manifest, "auto", TfliteBackend()) != before


def test_without_a_runtime_there_is_one_thread_and_loading_says_why(measured):
    absent = next(
        (each for each in ("tflite-runtime", "ai-edge-litert") if not find_spec(each.replace("-", "_"))), None
    )
    if absent is None:
        pytest.skip("both runtimes are installed")
    board, folder = measured(8, 4, 9, 9)
    assert board.threads("colours", folder, "auto", TfliteBackend(runtime=absent)) == 1
