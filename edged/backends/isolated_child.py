"""Serve the models of one device in the child process of `isolated`: load models, and run one at a time.

The child is single-threaded and blocks in a single place, on the eventfd `wake`. The parent adds 1 to `wake` for a turn
and CALL for a message on the control socket, so a single read returns the numbers of turns and messages. Messages
(load, attach, reset, close) are JSON, answered in order, and handled before turns. A turn has no message: its data is
in shared memory.

Each model has its own shared memory: the words below, space for an error, then inputs and outputs, each aligned for the
processor. Every word has a single writer, and is read after a system call by the writer has woken the reader; only
BEGUN is read by the parent during a turn.
"""

from __future__ import annotations

import mmap
import os
import socket
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edged.api import Arrays, Backend, BundleError, DeviceError, EdgedError, ModelError, Runner, RunnerInfo, TensorSpec

CALL = 1 << 32
MAX_MESSAGE_BYTES = 128 << 10

TIMED = 16
"""The first 16 turns are timed, and then one in 16: reading a thread's processor time is a system call."""

TURN, ASKED, BEGUN, ANSWERED, REFUSED, WALL, PROCESSOR = range(7)
"""The words, all integers.

Written by the parent: TURN, number of the last turn requested; ASKED, time of the request. Written by the child: BEGUN,
start of the last turn; ANSWERED, number of the last finished turn; REFUSED, length of the last turn's error, 0 for
success; WALL and PROCESSOR, total duration and processor time of the timed turns. Times are nanoseconds of
CLOCK_MONOTONIC.
"""
_WORDS_BYTES = 64
_HEAD_BYTES = 4096
_ALIGNMENT = 64


# Messages


class Descriptors(msgspec.Struct, frozen=True, kw_only=True):
    """Start-up request to the child: descriptors of the child's end of the control socket and of the eventfd `wake`."""

    control: int
    wake: int


class Load(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Load a model with the class `backend` ("module:Class") and `options`; later messages refer to `number`."""

    number: int
    backend: str
    options: dict[str, Any]
    file: str
    signature: str | None
    deadline: int
    priority: int


class Attach(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Use the shared memory and the eventfd for answers passed along with this message."""

    number: int


class Reset(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Reset a model's state."""

    number: int


class Close(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Close a model."""

    number: int


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Reply to Load: tensors and runner info of the loaded model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    info: RunnerInfo


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Reply to Attach, Reset and Close: success."""


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Reply to any message: an error, of a class in ERRORS."""

    kind: str
    message: str
    hint: str = ""
    retryable: bool = False


ChildRequest = Load | Attach | Reset | Close
ChildReply = Loaded | Done | Refused
ERRORS: dict[str, type[EdgedError]] = {kind.__name__: kind for kind in (ModelError, BundleError, DeviceError)}


def refused(error: Exception) -> Refused:
    """Return an error as a message of bounded length."""
    if not isinstance(error, EdgedError):
        hint = "see the standard error of the model's process"
        return Refused(
            kind="ModelError", message=f"the backend failed: {type(error).__name__}: {error}"[:1000], hint=hint
        )
    kind = next((name for name, kind in ERRORS.items() if isinstance(error, kind)), "ModelError")
    return Refused(kind=kind, message=error.message[:1000], hint=error.hint[:500], retryable=error.retryable)


# Shared memory


def shared_bytes(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> int:
    """Return the size of a model's shared memory: words, error and tensors."""
    return _HEAD_BYTES + sum(_room(spec) for spec in (*inputs, *outputs))


class Shared:
    """A model's shared memory: the words, and the tensors as arrays."""

    def __init__(self, descriptor: int, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self._memory = mmap.mmap(descriptor, shared_bytes(inputs, outputs))
        self.words = memoryview(self._memory)[:_WORDS_BYTES].cast("q")
        arrays, offset = [], _HEAD_BYTES
        for spec in (*inputs, *outputs):
            arrays.append(np.ndarray(spec.shape, spec.numpy_dtype, self._memory, offset))
            offset += _room(spec)
        self.inputs = arrays[: len(inputs)]
        self.outputs = arrays[len(inputs) :]

    def refuse(self, refusal: Refused) -> None:
        """Write an error for the parent."""
        text = msgspec.json.encode(refusal)
        if len(text) > _HEAD_BYTES - _WORDS_BYTES:  # JSON escapes have lengthened the text
            text = msgspec.json.encode(
                Refused(kind=refusal.kind, message="the backend failed with an unreadable error")
            )
        self._memory[_WORDS_BYTES : _WORDS_BYTES + len(text)] = text
        self.words[REFUSED] = len(text)

    def refusal(self) -> bytes:
        """Return the error written by the child, as JSON."""
        return self._memory[_WORDS_BYTES : min(_WORDS_BYTES + self.words[REFUSED], _HEAD_BYTES)]

    def close(self) -> None:
        """Unmap the memory. No reference to the arrays may be left."""
        self.inputs, self.outputs = [], []
        self.words.release()
        self._memory.close()


def copy(arrays: Arrays, tensors: Arrays) -> bool:
    """Copy arrays into tensors of the same shapes and dtypes; return whether all arrays fit."""
    if len(arrays) != len(tensors):
        return False
    for array, tensor in zip(arrays, tensors, strict=True):
        if array.shape != tensor.shape or array.dtype != tensor.dtype:
            return False
        tensor[...] = array
    return True


def described(arrays: Arrays) -> str:
    """Return shapes and dtypes in words."""
    return ", ".join(f"{array.dtype} of shape {array.shape}" for array in arrays)


def _room(spec: TensorSpec) -> int:
    size = spec.numpy_dtype.itemsize
    for length in spec.shape:
        size *= length
    return -(-size // _ALIGNMENT) * _ALIGNMENT


# In the child


def main(request: str) -> None:
    """Serve until killed. Standard output is redirected to standard error, and standard error never blocks."""
    os.dup2(2, 1)
    os.set_blocking(2, False)
    descriptors = msgspec.json.decode(request, type=Descriptors)
    _Server(socket.socket(fileno=descriptors.control), descriptors.wake).serve()


_IDLE = memoryview(bytes(_WORDS_BYTES)).cast("q")
"""Words of a model without shared memory: no turn is requested."""


class _Model:
    """A loaded model, and the memory shared with the parent after `attach`."""

    def __init__(self, runner: Runner, load: Load) -> None:
        self.runner = runner
        self.words = _IDLE
        self.shared: Shared | None = None
        self._priority = load.priority
        self._deadline = load.deadline
        self._answer = -1

    def attach(self, memory: int, answer: int) -> None:
        self.shared = Shared(memory, self.runner.inputs, self.runner.outputs)
        self.words = self.shared.words
        self._answer = answer
        os.close(memory)

    def precedes(self, other: _Model) -> bool:
        """Compare requested turns: models waiting past the deadline first, then by priority, then by earliest deadline.

        Models past the deadline come first so that no model waits forever behind models of higher priority.
        """
        now = time.monotonic_ns()
        return self._urgency(now) < other._urgency(now)

    def _urgency(self, now: int) -> tuple[bool, int, int]:
        deadline = self.words[ASKED] + self._deadline
        return (False, 0, deadline) if deadline < now else (True, -self._priority, deadline)

    def run(self) -> None:
        words, shared = self.words, self.shared
        assert shared is not None
        turn = words[TURN]
        words[BEGUN] = begun = time.monotonic_ns()
        is_timed = turn <= TIMED or turn % TIMED == 0
        processor = time.thread_time_ns() if is_timed else 0
        words[REFUSED] = 0
        try:
            outputs = self.runner.run(shared.inputs)
            if not copy(outputs, shared.outputs):
                raise _unlike(outputs, shared.outputs)
        except Exception as error:  # a plug-in's backend may raise any exception
            _die_if_out_of_memory(error)
            shared.refuse(refused(error))
        if is_timed:
            words[WALL] += time.monotonic_ns() - begun
            words[PROCESSOR] += time.thread_time_ns() - processor
        words[ANSWERED] = turn
        os.eventfd_write(self._answer, 1)

    def close(self) -> None:
        self.runner.close()
        if self.shared is not None:
            self.shared.close()
            os.close(self._answer)


class _Server:
    def __init__(self, control: socket.socket, wake: int) -> None:
        self._control = control
        self._wake = wake
        self._models: dict[int, _Model] = {}

    def serve(self) -> None:
        while True:
            count = os.eventfd_read(self._wake)
            if count >= CALL:
                for _ in range(count // CALL):
                    self._answer()
                count %= CALL
            if count:
                self._take_a_turn()
                if count > 1:  # check for messages before the next turn
                    os.eventfd_write(self._wake, count - 1)

    def _take_a_turn(self) -> None:
        chosen = None
        for model in self._models.values():
            words = model.words
            if words[TURN] != words[ANSWERED] and (chosen is None or model.precedes(chosen)):
                chosen = model
        if chosen is not None:
            chosen.run()

    def _answer(self) -> None:
        data, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
        try:
            reply = self._do(msgspec.json.decode(data, type=ChildRequest), descriptors)
        except Exception as error:  # a plug-in's backend may raise any exception
            if not isinstance(error, EdgedError):
                traceback.print_exc()
            reply = refused(error)
        self._control.send(msgspec.json.encode(reply))

    def _do(self, message: ChildRequest, descriptors: list[int]) -> ChildReply:
        match message:
            case Load(number=number):
                runner = _backend(message).load(Path(message.file), signature=message.signature)
                self._models[number] = _Model(runner, message)
                return Loaded(inputs=runner.inputs, outputs=runner.outputs, info=runner.info)
            case Attach(number=number):
                memory, answer = descriptors
                self._models[number].attach(memory, answer)
            case Reset(number=number):
                self._models[number].runner.reset()
            case Close(number=number):
                self._models.pop(number).close()
        return Done()


def _backend(load: Load) -> Backend:
    module, _, name = load.backend.partition(":")
    kind: type[Backend] = getattr(import_module(module), name)
    return msgspec.convert(load.options, kind)


def _unlike(outputs: Arrays, tensors: Arrays) -> ModelError:
    return ModelError(
        f"the model returned {described(outputs)} instead of {described(tensors)}",
        hint="use a model with outputs of fixed size, or run the model on the CPU without `isolate`",
    )


def _die_if_out_of_memory(error: Exception) -> None:
    """End the process if `error` comes from a lack of memory, since later failures would be unpredictable."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MemoryError):
        cause = cause.__cause__
    if cause is not None:
        traceback.print_exc()
        os._exit(1)
