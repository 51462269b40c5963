"""Tests of every backend: derive a class from `BackendContract`, override `backend` and `model_file`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edged.api import Arrays, Backend, EdgedError, ModelError, Runner


class BackendContract:
    """Contract of a backend and of its runners; a single thread at a time uses a runner."""

    @pytest.fixture
    def backend(self) -> Backend:
        """Return the backend under test."""
        raise NotImplementedError

    @pytest.fixture
    def model_file(self, tmp_path: Path) -> Path:
        """Return a model file for the backend."""
        raise NotImplementedError

    @pytest.fixture
    def signature(self) -> str | None:
        """Return the name of the signature to load, None for a file with a single signature."""
        return None

    @pytest.fixture
    def runner(self, backend: Backend, model_file: Path, signature: str | None) -> Iterator[Runner]:
        """Load the model file, and close the runner after the test."""
        runner = backend.load(model_file, signature=signature)
        yield runner
        runner.close()

    def test_the_configuration_is_made_from_a_table_and_refuses_unknown_keys(self, backend: Backend) -> None:
        assert isinstance(msgspec.convert({}, type(backend)), type(backend))
        with pytest.raises(msgspec.ValidationError, match="no_such_option"):
            msgspec.convert({"no_such_option": 1}, type(backend))

    def test_a_runner_names_its_backend_and_runtime(self, runner: Runner) -> None:
        assert runner.info.backend
        assert runner.info.runtime

    def test_outputs_match_their_specs(self, runner: Runner) -> None:
        outputs = runner.run(ones(runner))
        assert [output.shape for output in outputs] == [spec.shape for spec in runner.outputs]
        assert [output.dtype for output in outputs] == [spec.numpy_dtype for spec in runner.outputs]

    def test_a_run_leaves_its_inputs_unchanged(self, runner: Runner) -> None:
        inputs = ones(runner)
        runner.run(inputs)
        assert all((given == kept).all() for given, kept in zip(inputs, ones(runner), strict=True))

    def test_read_only_inputs_are_enough(self, runner: Runner) -> None:
        inputs = ones(runner)
        for array in inputs:
            array.flags.writeable = False
        runner.run(inputs)

    def test_after_a_reset_the_first_answer_comes_again(self, runner: Runner) -> None:
        first = copies(runner.run(ones(runner)))
        runner.run(ones(runner))
        runner.reset()
        again = runner.run(ones(runner))
        assert all((one == other).all() for one, other in zip(first, again, strict=True))

    def test_two_runners_of_one_file_are_independent(
        self, backend: Backend, model_file: Path, signature: str | None, runner: Runner
    ) -> None:
        first = copies(runner.run(ones(runner)))
        other = backend.load(model_file, signature=signature)
        answer = other.run(ones(other))
        assert all((one == two).all() for one, two in zip(first, answer, strict=True))
        other.close()
        runner.run(ones(runner))

    def test_inputs_of_another_shape_are_refused_and_the_next_run_succeeds(self, runner: Runner) -> None:
        grown = [np.ones((*array.shape[:-1], array.shape[-1] + 1), array.dtype) for array in ones(runner)]
        with pytest.raises(ModelError):
            runner.run(grown)
        runner.run(ones(runner))

    def test_inputs_of_another_dtype_are_refused_and_the_next_run_succeeds(self, runner: Runner) -> None:
        with pytest.raises(ModelError):
            runner.run([array.astype(np.complex128) for array in ones(runner)])
        runner.run(ones(runner))

    def test_too_few_inputs_are_refused(self, runner: Runner) -> None:
        with pytest.raises(ModelError):
            runner.run([])

    def test_a_runner_may_be_closed_twice(self, runner: Runner) -> None:
        runner.close()
        runner.close()

    def test_a_missing_file_is_an_error_with_a_hint(self, backend: Backend, tmp_path: Path) -> None:
        with pytest.raises(EdgedError, match=r"nothing\.model") as refused:
            backend.load(tmp_path / "nothing.model")
        assert refused.value.hint

    @pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"anything but a model", b"\xff" * 5000])
    def test_a_file_that_is_no_model_is_an_error_with_a_hint(
        self, backend: Backend, tmp_path: Path, content: bytes
    ) -> None:
        file = tmp_path / "bad.model"
        file.write_bytes(content)
        with pytest.raises(EdgedError, match=r"bad\.model") as refused:
            backend.load(file)
        assert refused.value.hint


def ones(runner: Runner) -> list[np.ndarray[Any, Any]]:
    """Return arrays of ones for the inputs of a runner."""
    return [np.ones(spec.shape, spec.dtype) for spec in runner.inputs]


def copies(outputs: Arrays) -> list[np.ndarray[Any, Any]]:
    """Copy the outputs of a run: the next run overwrites the originals."""
    return [output.copy() for output in outputs]
