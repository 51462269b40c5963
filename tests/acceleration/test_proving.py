"""Comparison of models with the CPU, and measurements, with a delegate that fails on command; and their verbs."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from edged.acceleration.placement import Accelerators
from edged.acceleration.prove import Subject, prove
from edged.acceleration.tune import tune
from edged.acceleration.verbs import Proving
from edged.api import ControlError, DeviceError, ModelError
from edged.backends.delegates import DelegateOptions
from edged.backends.fake import FakeBackend
from edged.backends.tflite import TfliteBackend
from edged.core.acceleration import Rules
from edged.core.tuning import choose
from edged.core.ways import Way
from edged.models.bundle import open_folder
from edged.models.tuning_records import Tunings
from tests.bundles import write_bundle
from tests.delegates import faulty_library

RULES = Rules(deadline=5.0)
SECONDS = 0.05


def external(**options):
    return DelegateOptions(kind="external", library=faulty_library(), options=options)


def subject(folder, *delegates, wanted="auto", backend=None, **parts):
    """The model colours, with a variant for each of these delegates."""
    variants = [{"name": f"{name}-fast", "delegate": name, "file": "model.tflite"} for name in delegates]
    bundle = open_folder(write_bundle(folder / "bundle", variants=variants, **parts))
    return Subject("colours", bundle, wanted, backend or TfliteBackend())


@pytest.fixture
def accelerators():
    """Return a function that makes the accelerators of some delegates."""
    with contextlib.ExitStack() as opened:

        def make(records=lambda model: None, **tables):
            made = Accelerators(lambda *_: None, records=records)
            opened.callback(made.close)
            made.configure(tables, RULES)
            return made

        yield make


# -- prove ------------------------------------------------------------------------------------------------------------


def test_what_computes_the_same_agrees(tmp_path, accelerators):
    (found,) = prove(accelerators(mine=external()), [subject(tmp_path, "mine")])
    assert (found.model, found.version, found.delegate, found.variant) == ("colours", "1.0", "mine", "mine-fast")
    assert (found.state, found.reason, found.is_bad) == ("agrees", "", False)
    assert (found.nodes, found.delegated) == (1, 1)
    assert 0 <= found.off_processor <= 1
    assert 0 < found.latency.p50 <= found.latency.p99
    assert 0 < found.cpu_latency.p50 <= found.cpu_latency.p99
    assert [(each.worst, each.same, each.problem) for each in found.samples] == [(0.0, True, "")] * 16


@pytest.mark.parametrize(
    ("orders", "state", "named"),
    [
        ({"wrong": "zeros"}, "disagrees", "16 of 16 samples: the output 'y' is all zeros"),
        ({"wrong": "nan"}, "disagrees", "has NaN or infinities"),
        ({"wrong": "constant"}, "disagrees", "has the same value everywhere"),
        ({"wrong": "step"}, "disagrees", "is off by 1 absolute"),
        ({"fail": "create"}, "fails", "refuses to work"),
        ({"fail": "invoke"}, "fails", "invoke failed, as told"),
        ({"fail": "abort", "after": "3"}, "fails", "SIGABRT"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_words(tmp_path, accelerators, orders, state, named):
    (found,) = prove(accelerators(mine=external(**orders)), [subject(tmp_path, "mine")])
    assert (found.state, found.is_bad) == (state, True)
    assert named in found.reason
    assert found.hint


def test_every_way_is_looked_at_and_one_that_dies_does_not_spoil_the_next(tmp_path, accelerators):
    there = accelerators(bad=external(fail="abort"), good=external(), idle=external(take="none"))
    found = list(prove(there, [subject(tmp_path, "bad", "edgetpu", "good", "idle")]))
    assert [(each.delegate, each.state, each.delegated) for each in found] == [
        ("bad", "fails", 0),
        ("edgetpu", "not ready", 0),
        ("good", "agrees", 1),
        ("idle", "agrees", 0),
    ]
    assert (found[1].reason, found[1].hint) == (
        "there is no Coral Edge TPU",
        "plug it in, or enable it and its driver",
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "the model has no variant for an accelerator"),
        ({"wanted": "cpu"}, "the model is configured for the CPU"),
        ({"backend": FakeBackend()}, "the backend tflite has no delegates"),
    ],
)
def test_what_has_no_way_but_the_cpu_says_so(tmp_path, accelerators, options, reason):
    (found,) = prove(accelerators(), [subject(tmp_path, **options)])
    assert (found.state, found.reason, found.is_bad) == ("cpu", reason, False)


def test_a_model_that_cannot_run_where_it_should_fails_and_the_next_is_looked_at(tmp_path, accelerators):
    stuck, fine = subject(tmp_path / "one", wanted="edgetpu"), subject(tmp_path / "two")
    assert [each.state for each in prove(accelerators(), [stuck, fine])] == ["fails", "cpu"]


# -- tune -------------------------------------------------------------------------------------------------------------


def tuned(there, model, tunings, **options):
    """Return the measured ways with their results, the reason of the choice, and the record."""
    begun, *measured, recorded = tune(there, model, tunings, 1.7e9, SECONDS, **options)
    assert begun.ways == len(measured)
    return {each.title: each.measurement for each in measured}, recorded.why, tunings.read("colours")


def test_every_way_is_measured_and_recorded(tmp_path, accelerators):
    there = accelerators(mine=external(), slow=external(delay_us="3000"), bad=external(wrong="nan"))
    ways = ("slow", "mine", "bad", "edgetpu")
    found, why, record = tuned(there, subject(tmp_path, *ways), Tunings(tmp_path / "tuning"))
    assert next(iter(found)) == "the CPU with 1 thread"
    assert [*found][-4:] == [f"{way} ({way}-fast)" for way in ways]
    assert record.measurements == tuple(found.values())
    assert (record.version, record.measured, [*record.environment.delegates]) == ("1.0", 1.7e9, [*ways])
    for each in (found["the CPU with 1 thread"], found["mine (mine-fast)"], found["slow (slow-fast)"]):
        assert each.failure == ""
        assert each.runs >= 1
        assert 0 < each.p50 <= each.p99
        assert each.rss_bytes > 10_000_000
    assert found["slow (slow-fast)"].p50 > 0.003
    assert "disagrees with the CPU on sample 0" in found["bad (bad-fast)"].failure
    assert found["edgetpu (edgetpu-fast)"].failure == "edgetpu: there is no Coral Edge TPU"
    assert why == choose(record, [Way(way, f"{way}-fast") for way in ways]).why


def test_the_temperature_stands_beside_it_where_the_board_says(tmp_path, accelerators):
    zone = tmp_path / "sys/class/thermal/thermal_zone0/temp"
    zone.parent.mkdir(parents=True)
    zone.write_text("48500\n")
    found, _, _ = tuned(accelerators(), subject(tmp_path), Tunings(tmp_path / "tuning"), sys=tmp_path / "sys")
    measured = found["the CPU with 1 thread"]
    assert (measured.celsius_before, measured.celsius_after) == (48.5, 48.5)


def test_threads_that_are_configured_count_whatever_was_measured(tmp_path, accelerators):
    model = subject(tmp_path, backend=TfliteBackend(threads=2))
    _, why, _ = tuned(accelerators(), model, Tunings(tmp_path / "tuning"))
    assert why.endswith("; [models.colours] threads = 2 takes precedence")


def test_another_backend_has_nothing_to_measure(tmp_path, accelerators):
    with pytest.raises(ModelError, match="only one way to run"):
        next(tune(accelerators(), subject(tmp_path, backend=FakeBackend()), Tunings(tmp_path), 0.0))


def test_what_was_measured_while_a_device_was_unplugged_is_not_recorded(tmp_path, accelerators):
    device = tmp_path / "device"
    device.touch()
    table = DelegateOptions(kind="external", library=faulty_library(), device=str(device))
    steps = tune(accelerators(mine=table), subject(tmp_path, "mine"), Tunings(tmp_path / "tuning"), 1.7e9, SECONDS)
    next(steps)
    device.unlink()
    with pytest.raises(DeviceError, match="a device or library of colours changed"):
        list(steps)
    assert Tunings(tmp_path / "tuning").read("colours") is None


def test_what_is_being_measured_ends_with_the_accelerators(tmp_path, accelerators):
    there = accelerators()
    steps = tune(there, subject(tmp_path), Tunings(tmp_path / "tuning"), 1.7e9, seconds=60)
    next(steps)
    with ThreadPoolExecutor(1) as thread:
        measuring = thread.submit(next, steps)
        there.close()
        assert measuring.result(120).measurement.failure


# -- the verbs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def proving(tmp_path, accelerators):
    """Return the verbs for one model, and the names of adopted models."""
    adopted = []

    async def adopt(name):
        adopted.append(name)

    model = subject(tmp_path, "mine")
    there = accelerators(mine=external())
    made = Proving(there, lambda: {"colours": model}, Tunings(tmp_path / "tuning"), adopt)
    yield made, adopted
    made.stop()


async def answers(stream):
    return [each async for each in stream]


def test_what_is_found_is_streamed(proving):
    verbs, _ = proving
    for args in ({}, {"model": None}, {"model": "colours"}):
        (found,) = asyncio.run(answers(verbs.streams["prove"](args)))
        assert (found["model"], found["state"], len(found["samples"])) == ("colours", "agrees", 16)


def test_what_was_tuned_is_adopted(proving, tmp_path):
    verbs, adopted = proving
    steps = asyncio.run(answers(verbs.streams["tune"]({"model": "colours", "seconds": SECONDS})))
    assert [steps[0]["id"], steps[1]["id"], steps[-1]["id"]] == ["tune.begun", "tune.measured", "tune.recorded"]
    assert adopted == ["colours"]
    assert Tunings(tmp_path / "tuning").read("colours").version == "1.0"


@pytest.mark.parametrize(
    ("verb", "args", "named"),
    [
        ("prove", {"model": "other"}, "no model 'other' is loaded"),
        ("prove", {"model": 1}, "is invalid"),
        ("prove", {"more": 1}, "is invalid"),
        ("tune", {}, "is invalid"),
        ("tune", {"model": "../colours"}, "is invalid"),
        ("tune", {"model": "colours", "seconds": 0}, "is invalid"),
        ("tune", {"model": "colours", "seconds": 1e9}, "is invalid"),
    ],
)
def test_what_cannot_be_understood_is_refused(proving, verb, args, named):
    verbs, _ = proving
    with pytest.raises(ControlError, match=named):
        asyncio.run(answers(verbs.streams[verb](args)))


def test_one_at_a_time_and_the_next_once_the_client_has_left(proving):
    verbs, adopted = proving

    async def ask_twice():
        first = verbs.streams["tune"]({"model": "colours", "seconds": SECONDS})
        await anext(first)
        with pytest.raises(ControlError, match="tuning is under way"):
            await answers(verbs.streams["prove"]({}))
        await first.aclose()
        return await answers(verbs.streams["prove"]({}))

    assert [each["state"] for each in asyncio.run(ask_twice())] == ["agrees"]
    assert adopted == []


def test_one_who_leaves_while_it_is_adopted_ends_nothing_midway(tmp_path, accelerators):
    async def leave_midway():
        adopting, go_on, adopted = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def adopt(name):
            adopting.set()
            await go_on.wait()
            adopted.set()

        verbs = Proving(accelerators(), lambda: {"colours": model}, Tunings(tmp_path / "tuning"), adopt)
        client = asyncio.create_task(answers(verbs.streams["tune"]({"model": "colours", "seconds": SECONDS})))
        await adopting.wait()
        client.cancel()
        await asyncio.wait([client])
        go_on.set()
        async with asyncio.timeout(120):
            await adopted.wait()
        verbs.stop()

    model = subject(tmp_path)
    asyncio.run(leave_midway())


def test_a_daemon_that_stops_takes_no_more_steps(proving, tmp_path):
    verbs, adopted = proving

    async def stop_midway():
        steps = verbs.streams["tune"]({"model": "colours", "seconds": SECONDS})
        await anext(steps)
        verbs.stop()
        await answers(steps)

    with pytest.raises(ControlError, match="the daemon is stopping"):
        asyncio.run(stop_midway())
    assert adopted == []
    assert Tunings(tmp_path / "tuning").read("colours") is None
