"""What every backend must do. Derive a test class from `BackendContract` and override `backend` and `model_file`."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edged.api import Arrays, Backend, EdgedError, ModelError, Runner


class BackendContract:
    @pytest.fixture
    def backend(self) -> Backend:
        """The backend under test."""
        raise NotImplementedError

    @pytest.fixture
    def model_file(self, tmp_path: Path) -> Path:
        """A model file it can load."""
        raise NotImplementedError

    @pytest.fixture
    def signature(self) -> str | None:
        """The signature to load it by, if any."""
        return None

    @pytest.fixture
    def runner(self, backend: Backend, model_file: Path, signature: str | None):
        runner = backend.load(model_file, signature=signature)
        yield runner
        runner.close()

    def test_it_is_made_from_a_table_and_refuses_unknown_keys(self, backend: Backend):
        assert isinstance(msgspec.convert({}, type(backend)), type(backend))
        with pytest.raises(msgspec.ValidationError, match="no_such_option"):
            msgspec.convert({"no_such_option": 1}, type(backend))

    def test_it_says_what_it_runs_on(self, runner: Runner):
        assert runner.info.backend
        assert runner.info.runtime

    def test_outputs_are_as_the_specs_say(self, runner: Runner):
        outputs = runner.run(ones(runner))
        assert [output.shape for output in outputs] == [spec.shape for spec in runner.outputs]
        assert [output.dtype for output in outputs] == [spec.numpy_dtype for spec in runner.outputs]

    def test_it_leaves_its_inputs_alone(self, runner: Runner):
        inputs = ones(runner)
        runner.run(inputs)
        assert all((given == kept).all() for given, kept in zip(inputs, ones(runner), strict=True))

    def test_read_only_inputs_will_do(self, runner: Runner):
        inputs = ones(runner)
        for array in inputs:
            array.flags.writeable = False
        runner.run(inputs)

    def test_after_a_reset_it_answers_as_it_did_first(self, runner: Runner):
        first = copies(runner.run(ones(runner)))
        runner.run(ones(runner))
        runner.reset()
        again = runner.run(ones(runner))
        assert all((one == other).all() for one, other in zip(first, again, strict=True))

    def test_two_runners_of_one_file_know_nothing_of_each_other(
        self, backend: Backend, model_file: Path, signature: str | None, runner: Runner
    ):
        first = copies(runner.run(ones(runner)))
        other = backend.load(model_file, signature=signature)
        answer = other.run(ones(other))
        assert all((one == two).all() for one, two in zip(first, answer, strict=True))
        other.close()
        runner.run(ones(runner))

    def test_inputs_of_another_shape_are_refused_and_the_next_run_is_sound(self, runner: Runner):
        grown = [np.ones((*array.shape[:-1], array.shape[-1] + 1), array.dtype) for array in ones(runner)]
        with pytest.raises(ModelError):
            runner.run(grown)
        runner.run(ones(runner))

    def test_inputs_of_another_dtype_are_refused_and_the_next_run_is_sound(self, runner: Runner):
        with pytest.raises(ModelError):
            runner.run([array.astype(np.complex128) for array in ones(runner)])
        runner.run(ones(runner))

    def test_too_few_inputs_are_refused(self, runner: Runner):
        with pytest.raises(ModelError):
            runner.run([])

    def test_it_may_be_closed_twice(self, runner: Runner):
        runner.close()
        runner.close()

    def test_a_file_that_is_not_there_is_an_error_with_a_hint(self, backend: Backend, tmp_path: Path):
        with pytest.raises(EdgedError, match=r"nothing\.model") as refused:
            backend.load(tmp_path / "nothing.model")
        assert refused.value.hint

    @pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"anything but a model", b"\xff" * 5000])
    def test_a_file_that_is_no_model_is_an_error_with_a_hint(self, backend: Backend, tmp_path: Path, content: bytes):
        file = tmp_path / "bad.model"
        file.write_bytes(content)
        with pytest.raises(EdgedError, match=r"bad\.model") as refused:
            backend.load(file)
        assert refused.value.hint


def ones(runner: Runner) -> list[np.ndarray]:
    return [np.ones(spec.shape, spec.dtype) for spec in runner.inputs]


def copies(outputs: Arrays) -> list[np.ndarray]:
    return [output.copy() for output in outputs]
