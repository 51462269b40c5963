import asyncio
import time
from queue import Empty, SimpleQueue
from threading import Event, Thread, current_thread
from types import SimpleNamespace

import numpy as np
import pytest

from edged.acceleration.placement import Accelerators
from edged.api import Chunk, DeviceError, ModelError, SourceInfo, TensorSpec
from edged.app.serving import ServedModels, is_handover
from edged.app.state import ModelState, PipelineState
from edged.backends.fake import FakeRunner
from edged.backends.tflite import TfliteBackend
from edged.config.options import ModelEntry, PipelineEntry
from edged.core.acceleration import AcceleratorStatus
from edged.core.health import Status
from edged.core.manifest import Limits
from edged.core.verdict import Verdict
from edged.flow.pipeline import Pipeline
from edged.models.bundle import digest, open_folder
from tests.bundles import write_bundle
from tests.patience import PATIENCE


@pytest.mark.parametrize(
    ("swap", "needed", "available", "handover"),
    [
        ("auto", 100, 100, False),
        ("auto", 101, 100, True),
        ("overlap", 101, 100, False),
        ("handover", 0, 100, True),
    ],
)
def test_which_swaps_are_handovers(swap, needed, available, handover):
    assert is_handover(swap, needed=needed, available=available) == handover


BROKEN = DeviceError("it is broken", hint="replace it")
GOOD, SLOW, WRONG = Verdict(rss_bytes=7), Verdict(failure="slow"), Verdict(failure="wrong")


@pytest.mark.parametrize(
    ("on_cpu", "accelerated", "delegate", "failure"),
    [
        (GOOD, None, "auto", ""),
        (GOOD, GOOD, "auto", ""),
        (GOOD, WRONG, "auto", ""),
        (GOOD, WRONG, "mine", "wrong"),
        (GOOD, BROKEN, "auto", ""),
        (SLOW, None, "auto", "slow"),
        (SLOW, GOOD, "auto", ""),
        (SLOW, WRONG, "auto", "slow"),
        (SLOW, WRONG, "mine", "wrong"),
        (WRONG, GOOD, "auto", "wrong"),
    ],
)
def test_a_version_is_held_to_what_it_does_where_it_will_serve(monkeypatch, on_cpu, accelerated, delegate, failure):
    assert tried(monkeypatch, on_cpu, accelerated, delegate).failure == failure


@pytest.mark.parametrize(("on_cpu", "delegate"), [(GOOD, "mine"), (SLOW, "mine"), (SLOW, "auto")])
def test_a_version_is_not_judged_while_a_device_is_broken_without_which_it_will_not_do(monkeypatch, on_cpu, delegate):
    with pytest.raises(DeviceError, match="it is broken"):
        tried(monkeypatch, on_cpu, BROKEN, delegate)


def tried(monkeypatch, on_cpu: Verdict, accelerated: Verdict | DeviceError | None, delegate: str) -> Verdict:
    """Return the verdict of a trial with these results of its parts, with this delegate configured."""

    async def try_out(folder, manifest, backend, allowance):
        return on_cpu

    def try_out_accelerated(bundle, wanted, backend):
        if isinstance(accelerated, DeviceError):
            raise accelerated
        return accelerated

    monkeypatch.setattr("edged.models.trial.try_out", try_out)
    entry = ModelEntry(options=TfliteBackend(), delegate=delegate)
    accelerators = SimpleNamespace(try_out=try_out_accelerated)
    state = SimpleNamespace(config=SimpleNamespace(models={"colours": entry}))
    needs = SimpleNamespace(delegates=())
    manifest = SimpleNamespace(version="1.1.0", backend="tflite", needs=needs, limits=Limits())
    proofs = FakeProofs()
    serving = ServedModels(state, accelerators, proofs, build=None, feed=None, clock=None)
    return asyncio.run(serving.try_out("colours", SimpleNamespace(folder="1.1.0", manifest=manifest)))


# Swapping


class Loader:
    """Backend that fails to load in these turns, counted from 1."""

    def __init__(self, *fail_on: int) -> None:
        self.fail_on = fail_on
        self.loaded: list[FakeRunner] = []
        self.turns = 0

    def load(self, file, *, signature=None):
        self.turns += 1
        if self.turns in self.fail_on:
            raise ModelError("it does not load")
        specs = TensorSpec(name="x", shape=(1, 4), dtype="float32"), TensorSpec(name="y", shape=(1, 3), dtype="float32")
        self.loaded.append(FakeRunner(specs[:1], specs[1:], lambda inputs: [np.zeros((1, 3), np.float32)]))
        return self.loaded[-1]


class HeldLoader(Loader):
    """Backend with a first version held up in the first pipeline until `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.go = Event()

    def load(self, file, *, signature=None):
        runner = super().load(file, signature=signature)
        if self.turns <= 2:
            run = runner.run
            runner.run = lambda inputs: (
                (current_thread().name != "pipeline-one" or self.go.wait(PATIENCE)) and run(inputs)
            )
        return runner


class Heard(SimpleQueue):
    """Sink with a queue of predictions."""

    def send(self, prediction):
        self.put((prediction.seq, prediction.version))


class FakeProofs:
    """Proofs of every model except the versions in `new`, whose verdict is `verdict`."""

    def __init__(self, *new: str, verdict: ModelError | None = None) -> None:
        self.new = set(new)
        self.verdict = verdict
        self.remembered: list[str] = []

    def holds(self, bundle, backend):
        return bundle.manifest.version not in self.new

    async def ensure(self, bundle, backend):
        if not self.holds(bundle, backend):
            if self.verdict is not None:
                raise self.verdict
            self.new.remove(bundle.manifest.version)

    async def remember(self, bundle, backend):
        self.remembered.append(bundle.manifest.version)


def status(name):
    return Status(name, float, lambda name, health: None)


class Rig:
    """Pipelines "one" and "two" with the model "colours"; the flows in `unbuilt` cannot be made."""

    def __init__(self, tmp_path, backend: Loader, swap: str = "overlap") -> None:
        source = SourceInfo(shape=(4,))
        entry = SimpleNamespace(options=backend, delegate="auto", swap=swap, isolate=False, path=None, version=None)
        pipelines = {name: PipelineEntry(source="ramp", model="colours") for name in ("one", "two")}
        self.tmp_path = tmp_path
        self.unbuilt: set[str] = set()
        self.sinks: tuple[Heard, ...] = ()
        self.state = SimpleNamespace(
            config=SimpleNamespace(
                models={"colours": entry},
                sources={"ramp": SimpleNamespace(options=SimpleNamespace(describe=lambda: source))},
                pipelines=pipelines,
            ),
            models={"colours": ModelState(status("colours"))},
            pipelines={name: PipelineState(each, status(name)) for name, each in pipelines.items()},
            sources={},
            users=lambda model: self.state.pipelines,
        )
        self.accelerators = Accelerators(lambda *_: None)
        self.proofs = FakeProofs()
        self.serving = ServedModels(
            self.state, self.accelerators, self.proofs, self.build, feed=lambda: None, clock=float
        )

    def build(self, name, manifest):
        if name in self.unbuilt:
            raise MemoryError
        part = self.state.pipelines[name]
        return Pipeline(
            name, manifest.window, columns=None, patient=False, capacity=1, sinks=self.sinks, status=part.status,
            clock=float, next_seq=part.next_seq,
        )  # fmt: skip

    def bundle(self, version, hop=1):
        window = {"length": 1, "hop": hop, "channels": [{"name": f"c{index}"} for index in range(4)]}
        return open_folder(write_bundle(self.tmp_path / version, version=version, window=window))

    def load(self, bundle):
        self.state.models["colours"].bundle = bundle
        self.serving.load("colours")

    def swap(self, bundle):
        asyncio.run(self.serving.swap("colours", bundle))

    def running(self):
        return {name: each.flow is not None and not each.flow.stopped for name, each in self.state.pipelines.items()}

    def health(self):
        parts = {**self.state.models, **self.state.pipelines}
        return {name: each.status.health.state for name, each in parts.items()}

    def close(self):
        """End the workers and their runners."""
        asyncio.run(self.serving.swap("colours", None))


def test_what_is_let_go_of_stands_on_no_accelerator_any_more(tmp_path):
    rig = Rig(tmp_path, Loader())
    rig.accelerators._change("colours", "mine", AcceleratorStatus("accelerated", "", "", 0.0))
    rig.close()
    assert rig.accelerators.statuses() == {}


def test_a_lack_of_memory_is_something_that_passes(tmp_path, monkeypatch):
    rig = Rig(tmp_path, Loader())

    def load(self, file, *, signature=None):
        raise MemoryError("1 GB")

    monkeypatch.setattr(Loader, "load", load)
    with pytest.raises(ModelError, match="1 GB") as failure:
        rig.swap(rig.bundle("1.0"))
    assert failure.value.retryable


def test_what_does_not_load_everywhere_leaves_what_runs_somewhere(tmp_path):
    rig = Rig(tmp_path, Loader(2, 4, 6), swap="handover")
    active = rig.bundle("1.0")
    rig.load(active)
    assert rig.running() == {"one": True, "two": False}
    with pytest.raises(ModelError, match="it does not load"):
        rig.swap(active)
    assert rig.running() == {"one": True, "two": False}
    rig.close()


@pytest.mark.parametrize(("version", "named"), [(None, ""), ("1.0", "1.0")])
def test_which_version_the_configuration_names(tmp_path, version, named):
    rig = Rig(tmp_path, Loader())
    rig.state.config.models["colours"].version = version
    rig.state.models["colours"].bundle = rig.bundle("1.0")
    assert rig.serving.named("colours") == named


@pytest.mark.parametrize("swap", ["overlap", "handover"])
def test_a_flow_that_cannot_be_made_is_not_taken_for_one_that_serves(tmp_path, swap):
    backend = Loader()
    rig = Rig(tmp_path, backend, swap)
    active = rig.bundle("1.0")
    rig.load(active)
    rig.unbuilt = {"two"}
    with pytest.raises(MemoryError):
        rig.swap(rig.bundle("1.1", hop=2))
    assert rig.serving.serving("colours") == ""
    rig.unbuilt = set()
    rig.swap(active)
    assert rig.running() == {"one": True, "two": True}
    assert rig.serving.serving("colours") == digest(active.folder)
    rig.close()


def test_waiting_windows_of_the_former_version_are_answered_first(tmp_path):
    backend, heard = HeldLoader(), Heard()
    rig = Rig(tmp_path, backend)
    rig.sinks = (heard,)
    rig.load(rig.bundle("1.0"))
    part = rig.state.pipelines["one"]
    before = part.flow
    before.push(Chunk(np.zeros((3, 4), np.float32), 0.0))
    swap = Thread(target=rig.swap, args=(rig.bundle("1.1", hop=2),))
    swap.start()
    while part.flow is before:
        time.sleep(0.001)
    part.flow.push(Chunk(np.zeros((1, 4), np.float32), 0.0))
    with pytest.raises(Empty):
        heard.get(timeout=0.3)
    backend.go.set()
    swap.join(PATIENCE)
    answers = [heard.get(timeout=PATIENCE) for _ in range(4)]
    assert answers == [(0, "1.0"), (1, "1.0"), (2, "1.0"), (3, "1.1")]
    rig.close()


# Models new to the board


def test_a_model_is_not_loaded_before_it_has_proven_itself(tmp_path):
    backend = Loader()
    rig = Rig(tmp_path, backend)
    rig.proofs.new = {"1.0"}
    rig.state.models["colours"].bundle = rig.bundle("1.0")
    assert not rig.serving.load("colours")
    assert (backend.turns, rig.health()) == (0, {"colours": "starting", "one": "starting", "two": "starting"})
    assert asyncio.run(rig.serving.prove("colours"))
    assert rig.serving.load("colours")
    assert rig.running() == {"one": True, "two": True}
    rig.close()


def test_one_that_does_harm_is_failed_and_never_loaded(tmp_path):
    backend = Loader()
    rig = Rig(tmp_path, backend)
    rig.proofs.new, rig.proofs.verdict = {"1.0"}, ModelError("it crashed", hint="use another")
    rig.state.models["colours"].bundle = rig.bundle("1.0")
    assert not asyncio.run(rig.serving.prove("colours"))
    assert (backend.turns, rig.health()) == (0, {"colours": "failed", "one": "failed", "two": "failed"})
    assert rig.state.pipelines["one"].status.health.reason == "its model 'colours': it crashed"
    assert rig.serving.subjects() == {}


@pytest.mark.parametrize("swap", ["overlap", "handover"])
def test_a_version_that_does_harm_leaves_what_serves_alone(tmp_path, swap):
    backend = Loader()
    rig = Rig(tmp_path, backend, swap)
    rig.load(rig.bundle("1.0"))
    rig.proofs.new, rig.proofs.verdict = {"1.1"}, ModelError("it crashed")
    with pytest.raises(ModelError, match="it crashed"):
        rig.swap(rig.bundle("1.1"))
    assert (backend.turns, rig.running()) == (2, {"one": True, "two": True})
    assert not any(runner.closed for runner in backend.loaded)
    rig.close()
