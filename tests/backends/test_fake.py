import json
import threading
from pathlib import Path

import numpy as np
import pytest

from edged.api import BundleError, ModelError, TensorSpec
from edged.backends.fake import FakeBackend, FakeRunner
from edged.testing.backend_contract import BackendContract

X = TensorSpec(name="x", shape=(1, 2), dtype="int8")
Y = TensorSpec(name="y", shape=(1, 3), dtype="float32")


def write(folder: Path, **model: object) -> Path:
    file = folder / "model.json"
    tensors = {
        "inputs": [{"name": "x", "shape": [1, 2], "dtype": "int8"}],
        "outputs": [{"name": "y", "shape": [1, 3], "dtype": "float32"}],
    }
    file.write_text(json.dumps({**tensors, **model}))
    return file


class TestContract(BackendContract):
    @pytest.fixture
    def backend(self):
        return FakeBackend()

    @pytest.fixture
    def model_file(self, tmp_path):
        return write(tmp_path)


def test_a_runner_runs_any_function():
    runner = FakeRunner((X,), (Y,), lambda inputs: [inputs[0] * 2])
    assert runner.run([np.array([[1, 2]], np.int8)])[0].tolist() == [[2, 4]]
    assert runner.runs == 1


def test_it_fails_on_the_runs_it_is_told_to():
    runner = FakeRunner((X,), (Y,), lambda inputs: [], fail_on=[2])
    runner.run([np.zeros((1, 2), np.int8)])
    with pytest.raises(ModelError, match="run 2"):
        runner.run([np.zeros((1, 2), np.int8)])
    runner.run([np.zeros((1, 2), np.int8)])


def test_it_waits_at_its_gate():
    gate, answers = threading.Event(), []
    runner = FakeRunner((X,), (Y,), lambda inputs: ["done"], gate=gate)
    thread = threading.Thread(target=lambda: answers.extend(runner.run([np.zeros((1, 2), np.int8)])))
    thread.start()
    assert answers == []
    gate.set()
    thread.join(120)
    assert answers == ["done"]


def test_it_counts_what_is_done_to_it():
    runner = FakeRunner((X,), (Y,), lambda inputs: [])
    runner.reset()
    runner.close()
    assert (runner.runs, runner.resets, runner.closed) == (0, 1, True)


def test_a_file_with_no_answers_answers_the_mean(tmp_path):
    runner = FakeBackend().load(write(tmp_path))
    assert runner.run([np.array([[1, 4]], np.int8)])[0].tolist() == [[2.5, 2.5, 2.5]]


def test_a_file_gives_its_answers_in_turn_and_from_the_first_after_a_reset(tmp_path):
    runner = FakeBackend().load(write(tmp_path, answers=[[[1, 2, 3]], [[4, 5, 6]]]))
    given = [np.zeros((1, 2), np.int8)]
    assert [runner.run(given)[0].tolist() for _ in range(3)] == [[[1, 2, 3]], [[4, 5, 6]], [[1, 2, 3]]]
    runner.reset()
    assert runner.run(given)[0].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([[[1, 2]]], id="too few numbers"),
        pytest.param([[[1, 2, 3], [1]]], id="one output too many"),
        pytest.param(["text"], id="no numbers"),
    ],
)
def test_answers_that_do_not_fit_are_refused(tmp_path, answers):
    with pytest.raises(BundleError, match=r"model\.json is no fake model"):
        FakeBackend().load(write(tmp_path, answers=answers))


def test_it_refuses_to_load_when_told_to(tmp_path):
    with pytest.raises(ModelError, match="no such accelerator"):
        FakeBackend(refuse="no such accelerator").load(write(tmp_path))
