"""Admission answers a fetch thread, whatever the event loop does meanwhile."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from edged.acceleration.placement import Accelerators
from edged.api import BundleError, EdgedError, ModelError
from edged.app.admission import Admission
from edged.app.serving import ServedModels
from edged.app.state import ModelState
from edged.backends.tflite import TfliteBackend
from edged.config.options import ModelEntry
from edged.core.container import read_head
from edged.core.health import Status
from edged.flow.slot import Served
from tests.receiving import bundle

HEAD = read_head(bundle())


@pytest.mark.parametrize(
    ("refusal", "judged"),
    [
        (ModelError("it runs on an npu"), BundleError),
        (ModelError("it needs memory, and there is too little", retryable=True), ModelError),
    ],
)
def test_a_fetch_is_thrown_away_only_for_a_lasting_reason(refusal, judged):
    def fit(*_: object) -> None:
        raise refusal

    admission = Admission(SimpleNamespace(), SimpleNamespace(fit=fit), lambda head: ())
    with pytest.raises(EdgedError) as raised:
        admission.fit(HEAD)
    assert (type(raised.value), raised.value.message) == (judged, refusal.message)


def served_models(config: SimpleNamespace, models: dict[str, ModelState]) -> ServedModels:
    state = SimpleNamespace(config=config, models=models, pipelines={})
    return ServedModels(state, Accelerators(lambda *_: None), None, build=None, feed=None, clock=None)


@pytest.mark.parametrize(("backend", "answer"), [("tflite", None), ("onnx", BundleError)])
def test_a_fetch_thread_gets_its_answer_while_the_event_loop_is_blocked(backend, answer):
    entry = ModelEntry(options=TfliteBackend(), backend=backend)
    config = SimpleNamespace(models={HEAD.manifest.name: entry}, pipelines={}, sources={})
    admission = Admission(SimpleNamespace(), served_models(config, {}), lambda head: ())
    answers: list[EdgedError | None] = []

    def ask() -> None:
        try:
            admission.fit(HEAD)
        except EdgedError as error:
            answers.append(error)
        else:
            answers.append(None)

    async def block_the_loop() -> None:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()  # without an await: the loop runs nothing until the thread has its answer

    asyncio.run(block_the_loop())
    assert [type(each) if each else None for each in answers] == [answer]


def test_a_version_that_is_closed_while_a_thread_asks_is_no_error():
    """Have `served` go to () after it was read once, as the loop does between two reads of a thread."""
    name = HEAD.manifest.name
    runner = SimpleNamespace(info=SimpleNamespace(runtime="ai-edge-litert 2.3.0"))

    class Closing(ModelState, dict=True):
        reads = 0

        @property
        def served(self) -> tuple[Served, ...]:
            self.reads += 1
            return (SimpleNamespace(runner=runner),) if self.reads == 1 else ()

        @served.setter
        def served(self, _value: tuple[Served, ...]) -> None:
            pass

    model = Closing(Status(name, float, lambda name, health: None))
    config = SimpleNamespace(models={}, pipelines={}, sources={})
    served_models(config, {name: model}).fit(name, HEAD.manifest)
    assert model.reads == 1
