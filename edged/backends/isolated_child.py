"""What the process of `isolated` does: it loads the models of one device, and runs whichever has its turn.

It is single-threaded and waits in one place, on the eventfd `wake`. Its parent adds 1 to it for a turn and CALL for a
message on the control socket, so that one read tells how many there are of either. Messages (load, attach, reset,
close) are JSON, answered one by one, and come before turns. A turn has no message: what it needs is in shared memory.

Shared memory, one piece for each model: the words below, room for an error, then the inputs and the outputs, each where
it suits a processor. Every word has one writer, and whoever reads it has been woken by a system call after it was
written; only BEGUN is looked at from outside while things move.
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
from numpy.typing import NDArray

from edged.api import Backend, BundleError, DeviceError, EdgedError, ModelError, Runner, RunnerInfo, TensorSpec

CALL = 1 << 32
MAX_MESSAGE_BYTES = 128 << 10

TURN, ASKED, BEGUN, ANSWERED, REFUSED, WALL, PROCESSOR = range(7)
"""The words, all integers.

By the parent: TURN, the number of the turn that was asked for last, and ASKED, when. By the child: BEGUN, when it began
the last one; ANSWERED, which that was, once it is over; REFUSED, the length of the error that it ended with or 0; WALL
and PROCESSOR, what all turns took so far. Moments are of CLOCK_MONOTONIC; all times are in nanoseconds.
"""
_WORDS_BYTES = 64
_HEAD_BYTES = 4096
_ALIGNMENT = 64


# What is said


class Descriptors(msgspec.Struct, frozen=True, kw_only=True):
    """The child's request: the numbers of its end of the control socket and of the eventfd that wakes it."""

    control: int
    wake: int


class Load(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Load a model on the class `backend` ("module:Class") with `options`, and call it by a number from then on."""

    number: int
    backend: str
    options: dict[str, Any]
    file: str
    signature: str | None
    deadline: int
    priority: int


class Attach(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Share the memory and the eventfd for answers that come with this message."""

    number: int


class Reset(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Have a model forget."""

    number: int


class Close(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Let go of a model."""

    number: int


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A model is loaded, and this is what it is like."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    info: RunnerInfo


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """It is done."""


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An error, of a class in ERRORS."""

    kind: str
    message: str
    hint: str = ""
    retryable: bool = False


ChildRequest = Load | Attach | Reset | Close
ChildReply = Loaded | Done | Refused
ERRORS: dict[str, type[EdgedError]] = {kind.__name__: kind for kind in (ModelError, BundleError, DeviceError)}


def refused(error: Exception) -> Refused:
    """An error in words that travel, of bounded length."""
    if not isinstance(error, EdgedError):
        hint = "see what its process said on standard error"
        return Refused(
            kind="ModelError", message=f"its backend failed: {type(error).__name__}: {error}"[:1000], hint=hint
        )
    kind = next((name for name, kind in ERRORS.items() if isinstance(error, kind)), "ModelError")
    return Refused(kind=kind, message=error.message[:1000], hint=error.hint[:500], retryable=error.retryable)


# Shared memory


def shared_bytes(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> int:
    """How much memory a model's tensors need, all told."""
    return _HEAD_BYTES + sum(_room(spec) for spec in (*inputs, *outputs))


class Shared:
    """A model's piece of shared memory: its words, and its tensors as arrays."""

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
        """Leave an error."""
        text = msgspec.json.encode(refusal)
        if len(text) > _HEAD_BYTES - _WORDS_BYTES:  # escapes have made it long
            text = msgspec.json.encode(Refused(kind=refusal.kind, message="it failed, and says unreadable things"))
        self._memory[_WORDS_BYTES : _WORDS_BYTES + len(text)] = text
        self.words[REFUSED] = len(text)

    def refusal(self) -> bytes:
        """The error that was left."""
        return self._memory[_WORDS_BYTES : min(_WORDS_BYTES + self.words[REFUSED], _HEAD_BYTES)]

    def close(self) -> None:
        """Let go of it. Nobody may hold one of its arrays any more."""
        self.inputs, self.outputs = [], []
        self.words.release()
        self._memory.close()


def _room(spec: TensorSpec) -> int:
    size = spec.numpy_dtype.itemsize
    for length in spec.shape:
        size *= length
    return -(-size // _ALIGNMENT) * _ALIGNMENT


# In the child


def main(request: str) -> None:
    """Serve until killed. Whatever is printed goes to standard error, which never makes anybody wait."""
    os.dup2(2, 1)
    os.set_blocking(2, False)
    descriptors = msgspec.json.decode(request, type=Descriptors)
    _Server(socket.socket(fileno=descriptors.control), descriptors.wake).serve()


class _Model:
    """A loaded model, and what it shares with the parent once that is attached."""

    def __init__(self, runner: Runner, load: Load) -> None:
        self.runner = runner
        self.priority = load.priority
        self.shared: Shared | None = None
        self._deadline = load.deadline
        self._answer = -1

    def attach(self, memory: int, answer: int) -> None:
        self.shared = Shared(memory, self.runner.inputs, self.runner.outputs)
        self._answer = answer
        os.close(memory)

    @property
    def is_asked(self) -> bool:
        return self.shared is not None and self.shared.words[TURN] != self.shared.words[ANSWERED]

    def urgency(self, now: int) -> tuple[bool, int, int]:
        """The least is first: what has waited past its deadline, then by priority, then by the earliest deadline.

        The first is so that nobody waits for ever where others never leave the device alone.
        """
        assert self.shared is not None
        deadline = self.shared.words[ASKED] + self._deadline
        return (False, 0, deadline) if deadline < now else (True, -self.priority, deadline)

    def run(self) -> None:
        shared = self.shared
        assert shared is not None
        words = shared.words
        words[BEGUN] = wall = time.monotonic_ns()
        processor = time.thread_time_ns()
        words[REFUSED] = 0
        try:
            for tensor, output in zip(shared.outputs, self.runner.run(shared.inputs), strict=True):
                _put(tensor, output)
        except Exception as error:  # a stranger's backend may raise anything
            _die_if_out_of_memory(error)
            shared.refuse(refused(error))
        words[WALL] += time.monotonic_ns() - wall
        words[PROCESSOR] += time.thread_time_ns() - processor
        words[ANSWERED] = words[TURN]
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
            for _ in range(count // CALL):
                self._answer()
            if turns := count % CALL:
                self._take_a_turn()
                if turns > 1:  # look for messages before the next
                    os.eventfd_write(self._wake, turns - 1)

    def _take_a_turn(self) -> None:
        asked = [model for model in self._models.values() if model.is_asked]
        if len(asked) > 1:
            now = time.monotonic_ns()
            min(asked, key=lambda model: model.urgency(now)).run()
        elif asked:
            asked[0].run()

    def _answer(self) -> None:
        data, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
        try:
            reply = self._do(msgspec.json.decode(data, type=ChildRequest), descriptors)
        except Exception as error:  # a stranger's backend may raise anything
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


def _put(tensor: NDArray[Any], output: NDArray[Any]) -> None:
    if output.shape != tensor.shape or output.dtype != tensor.dtype:
        raise ModelError(
            f"it said {output.dtype} of shape {output.shape}, and was to say {tensor.dtype} of shape {tensor.shape}",
            hint="a model whose outputs change their size cannot run in a process of its own",
        )
    tensor[...] = output


def _die_if_out_of_memory(error: Exception) -> None:
    """What failed for want of memory fails again, and differently: better to begin anew."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MemoryError):
        cause = cause.__cause__
    if cause is not None:
        traceback.print_exc()
        os._exit(1)
