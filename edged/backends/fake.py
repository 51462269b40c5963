"""Provide a runner with prescribed answers, for tests and for trying a pipeline with no model.

`FakeRunner` takes any function from arrays to arrays. `FakeBackend` loads a small JSON file with the tensors and the
answers. Both can be configured to fail and to wait, and count their runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from math import prod
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from edged.api import Arrays, Backend, BundleError, ModelError, RunnerInfo, TensorSpec
from edged.core.manifest_parts import MAX_ELEMENTS

MAX_FILE_BYTES = 16 << 20


class FakeRunner:
    """Run `function` on the inputs.

    Runs with numbers in `fail_on`, counted from 1, raise ModelError. Each run waits until `gate`, if given, is set. A
    reset calls `forget`. `runs` and `resets` count the calls, and `closed` is true after `close`.
    """

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        function: Callable[[Arrays], Arrays],
        *,
        fail_on: Collection[int] = (),
        gate: threading.Event | None = None,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.info = RunnerInfo(backend="fake", runtime="fake")
        self.runs = 0
        self.resets = 0
        self.closed = False
        self._function = function
        self._fail_on = frozenset(fail_on)
        self._gate = gate
        self._forget = forget

    def run(self, inputs: Arrays) -> Arrays:
        """Check the inputs, wait for the gate, and answer or fail."""
        _check_inputs(self.inputs, inputs)
        if self._gate is not None:
            self._gate.wait()
        self.runs += 1
        if self.runs in self._fail_on:
            raise ModelError(f"run {self.runs} failed, as told", hint="tell the fake runner not to fail on it")
        return self._function(inputs)

    def reset(self) -> None:
        """Call `forget`, and count the reset."""
        self.resets += 1
        self._forget()

    def close(self) -> None:
        """Set `closed`."""
        self.closed = True


def _check_inputs(specs: tuple[TensorSpec, ...], inputs: Arrays) -> None:
    expected = [(spec.shape, spec.numpy_dtype) for spec in specs]
    given = [(array.shape, array.dtype) for array in inputs]
    if given != expected:
        raise ModelError(
            f"the model was given {given}, and takes {expected}", hint="compare the manifest with the model's file"
        )


class FakeModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of a fake model's JSON file.

    `answers[i][k]` are the stored numbers of output `k` on run `i`, flat; the first answer follows the last.
    With no answers, every element of every output is the mean of the first input.
    """

    inputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1)]
    answers: tuple[tuple[tuple[float, ...], ...], ...] = ()


class FakeBackend(Backend, frozen=True, kw_only=True):
    """Options of [models.X] with backend = "fake": answers from a JSON file (see FakeModel), for tests.

    Keys:
        delay (s): Duration of a run.
        fail_on: Numbers of the runs to fail, counted from 1.
        refuse: Reason for the model to fail to load; "" lets the model load.
    """

    delay: Annotated[float, Meta(ge=0, le=60)] = 0.0
    fail_on: tuple[int, ...] = ()
    refuse: str = ""

    def load(self, file: Path, *, signature: str | None = None) -> FakeRunner:
        """Load the JSON; a fake model has no signatures and takes any name."""
        if self.refuse:
            raise ModelError(f"{file.name}: {self.refuse}", hint="take `refuse` out of the model's table")
        model = _read(file)
        answers = _Answers(model, self.delay)
        return FakeRunner(model.inputs, model.outputs, answers.next, fail_on=self.fail_on, forget=answers.start_over)

    def title(self) -> str:
        """Return the runtime's name, as in RunnerInfo."""
        return "fake"


def _read(file: Path) -> FakeModel:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise BundleError(f"{file.name} is too big for a fake model", hint=f"at most {MAX_FILE_BYTES} bytes")
        model = msgspec.json.decode(file.read_bytes(), type=FakeModel)
        _check_specs(model)
        for answer in model.answers:
            _arrays(model.outputs, answer)
    except OSError as error:
        raise BundleError(f"{file.name} cannot be read: {error}", hint="install the model again") from error
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
        raise BundleError(f"{file.name} is no fake model: {error}", hint="write the file as FakeModel says") from error
    return model


def _check_specs(model: FakeModel) -> None:
    for spec in (*model.inputs, *model.outputs):
        if spec.numpy_dtype.kind not in "iufb":
            raise ValueError(f"the tensor {spec.name!r} is not of numbers")
        if any(size < 1 for size in spec.shape) or prod(spec.shape) > MAX_ELEMENTS:
            raise ValueError(f"the tensor {spec.name!r} cannot have the shape {list(spec.shape)}")


class _Answers:
    """Give the model's answers in turn, each after `delay` seconds."""

    def __init__(self, model: FakeModel, delay: float) -> None:
        self._model = model
        self._delay = delay
        self._answers = [_arrays(model.outputs, answer) for answer in model.answers]
        self._turn = 0

    def next(self, inputs: Arrays) -> Arrays:
        time.sleep(self._delay)
        if not self._answers:
            mean = float(np.mean(inputs[0]))
            return [np.full(spec.shape, mean).astype(spec.dtype) for spec in self._model.outputs]
        answer = self._answers[self._turn % len(self._answers)]
        self._turn += 1
        return answer

    def start_over(self) -> None:
        self._turn = 0


def _arrays(specs: tuple[TensorSpec, ...], answer: tuple[tuple[float, ...], ...]) -> Arrays:
    return [np.array(values).astype(spec.dtype).reshape(spec.shape) for spec, values in zip(specs, answer, strict=True)]
