"""Models in a process of their own, which may crash, hang and eat: those on a vendor's delegate, or any others.

A `Host` is that process, for all models of one device: `isolated_child` on the leash of `edged.system.child`. The first
model that is loaded starts it, and the last one that is closed ends it. When it dies, every runner in it raises
DeviceError at once; whoever has such a runner closes it and loads again, which starts a new process.

A turn costs one wake-up each way and no message: inputs are copied into shared memory, an eventfd wakes the child,
and a poll waits for its answer, its end, its chatter or the deadline. The child runs one model at a time, by priority,
then by the earliest deadline, unless one has waited longer than that; a runner's deadline counts from when the child
began its turn. Whoever waits looks after its own turn alone: the thread whose turn hangs kills the child, and that
wakes all the others.

Whose is what: a runner belongs to the thread that runs it. Messages (load, reset, close) are sent under `Host.calls`,
one at a time, each answered before the next. What became of a child, and who still polls its descriptors, is under
`_Life._lock`; they are closed when the last has let go, for a number that is closed is soon somebody else's.
"""

from __future__ import annotations

import fcntl
import math
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from itertools import count
from math import prod
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import msgspec

from edged.api import Arrays, Backend, DeviceError, EdgedError, ModelError
from edged.backends.isolated_child import (
    ANSWERED,
    ASKED,
    BEGUN,
    CALL,
    ERRORS,
    MAX_MESSAGE_BYTES,
    PROCESSOR,
    REFUSED,
    TURN,
    WALL,
    Attach,
    ChildReply,
    ChildRequest,
    Close,
    Descriptors,
    Done,
    Load,
    Loaded,
    Refused,
    Reset,
    Shared,
    shared_bytes,
)
from edged.core.manifest import MAX_ELEMENTS
from edged.system.child import ResourceLimits, out_of_memory, printable, spawn

MAX_STDERR_BYTES = 2 << 10
MAX_TENSORS = 64
CLOSE_SECONDS = 5.0
_MAX_QUOTE = 200
_SECONDS_TO_DIE = 0.5
_GLANCE_SECONDS = 0.001
_PIPE_BYTES = 64 << 10

_Expected = TypeVar("_Expected", Loaded, Done)


class RunTimes(msgspec.Struct, frozen=True):
    """What a runner's turns took in its process: how many there were, and seconds by the clock and of the processor."""

    turns: int
    wall: float
    processor: float

    @property
    def off_processor(self) -> float:
        """The share of the time that was spent elsewhere than on the thread that ran: 0 to 1."""
        return max(0.0, 1 - self.processor / self.wall) if self.wall else 0.0


class LostError(DeviceError):
    """The process died, or had to be killed, of what it was doing for whoever is told so."""


class Host:
    """The process of one device, called `name` in what is said of it, on a leash. Any thread may use it.

    Its runners keep it. Whoever sends a message has `calls`. While it `is_loading`, nobody gets a turn.
    """

    def __init__(self, name: str, limits: ResourceLimits) -> None:
        self.name = name
        self._limits = limits
        self.calls = threading.Lock()
        self.is_loading = False
        self._numbers = count(1)
        self._life: _Life | None = None
        self._closed = False

    def load(
        self,
        backend: Backend,
        file: Path,
        *,
        signature: str | None = None,
        deadline: float,
        load_seconds: float,
        priority: int = 0,
    ) -> IsolatedRunner:
        """Load a model in the process, and start that if there is none or it has died.

        Turns that were asked for are taken first; others wait, so whoever can do without asks whether it `is_loading`.
        One inference may take `deadline` seconds, and loading, resetting and starting the process `load_seconds` each.
        The greater `priority` has its turn first.

        Raises:
            DeviceError: the process cannot be started, or crashed, hung or ran out of memory; its runners are lost.
            EdgedError: what the backend raised; the process lives, and so do its other runners.
        """
        load = Load(
            number=next(self._numbers),
            backend=f"{type(backend).__module__}:{type(backend).__qualname__}",
            options=msgspec.to_builtins(backend),
            file=str(file.absolute()),
            signature=signature,
            deadline=_nanoseconds(deadline),
            priority=priority,
        )
        with self.calls:
            call = _Call(f"loading {file.name}", load_seconds)
            life = self._living(call)
            self.is_loading = True
            try:
                life.let_finish(call)
                return self._load(life, load, call, load_seconds)
            finally:
                self.is_loading = False
                life.release(call)

    @property
    def pid(self) -> int | None:
        """The process's number, while it has models; it may have died."""
        life = self._life
        return life.child.pid if life is not None and not life.is_over else None

    @property
    def stderr(self) -> str:
        """The last of what the process, or the one before it, said on standard error."""
        return self._life.said() if self._life is not None else ""

    def close(self) -> None:
        """End the process at once; its runners raise DeviceError from now on, and nothing can be loaded any more."""
        self._closed = True  # and then look; `_living` starts a process and then looks at this
        self.renew()

    def renew(self) -> None:
        """End the process, if there is one, and have the next load start another; its runners raise DeviceError."""
        if self._life is not None:
            self._life.fail("was ended", _CLOSED)

    def _living(self, call: _Call) -> _Life:
        """A process that lives, held by the call."""
        if self._life is None or not self._life.hold(call):
            self._life = _Life(self.name, self._limits)
            self._life.hold(call)
        if self._closed:
            self._life.fail("was ended", _CLOSED)
        return self._life

    def _load(self, life: _Life, load: Load, call: _Call, seconds: float) -> IsolatedRunner:
        loaded = life.call(load, call, Loaded)
        try:
            _check_tensors(loaded)
            answer, memory, shared = _share(loaded)
        except EdgedError:
            life.call(Close(number=load.number), call, Done)
            raise
        runner = IsolatedRunner(self, life, load, loaded, shared, answer, seconds)
        try:
            life.call(Attach(number=load.number), call, Done, [memory, answer])
        except EdgedError:
            runner.abandon()
            raise
        finally:
            os.close(memory)
        return runner


class IsolatedRunner:
    """A model in a host's process. One thread uses it at a time."""

    def __init__(
        self,
        host: Host,
        life: _Life,
        load: Load,
        loaded: Loaded,
        shared: Shared,
        answer: int,
        seconds: float,
    ) -> None:
        self.inputs = loaded.inputs
        self.outputs = loaded.outputs
        self.info = loaded.info
        self._host = host
        self._life = life
        self._number = load.number
        self._name = Path(load.file).name
        self._deadline = load.deadline
        self._timeout = _milliseconds(load.deadline)
        self._seconds = seconds
        self._shared = shared
        self._answer = answer
        self._turn = 0
        self._gone: EdgedError | None = None
        self._expected = [(spec.shape, spec.numpy_dtype) for spec in loaded.inputs]
        life.hold(self)
        self._events = life.events(answer)

    def run(self, inputs: Arrays) -> Arrays:
        """Run once, in the process; the outputs are copies.

        Raises:
            ModelError: the runtime refused this input, and the process lives.
            DeviceError: the process crashed, was killed, took longer than the deadline (then it is killed), or ran out
                of memory. This runner is lost: close it.
        """
        if self._gone is not None:
            raise _again(self._gone)
        shared, words = self._shared, self._shared.words
        self._put(inputs)
        self._turn += 1
        words[ASKED] = time.monotonic_ns()
        words[TURN] = self._turn
        os.eventfd_write(self._life.wake, 1)
        self._wait()
        if words[REFUSED]:
            raise _error(self._life.understand(shared.refusal(), Refused, self))
        return [output.copy() for output in shared.outputs]

    def reset(self) -> None:
        """Forget earlier runs. Raises DeviceError as `run` does, and what the backend raises."""
        if self._gone is None:
            self._call(Reset(number=self._number), f"resetting {self._name}", self._seconds)

    def close(self) -> None:
        """Free the model, and with the last one of its host end the process."""
        if self._gone is None:
            with suppress(EdgedError):
                self._call(Close(number=self._number), f"closing {self._name}", CLOSE_SECONDS)
            self.abandon()

    @property
    def run_times(self) -> RunTimes:
        """What its turns took so far; nothing once it is closed or lost."""
        if self._gone is not None:
            return RunTimes(0, 0.0, 0.0)
        words = self._shared.words
        return RunTimes(words[ANSWERED], words[WALL] / 1e9, words[PROCESSOR] / 1e9)

    @property
    def pid(self) -> int:
        """The number of its process, which may have died."""
        return self._life.child.pid

    def busy_until(self) -> int:
        """When at the latest its last turn ends, in nanoseconds of CLOCK_MONOTONIC."""
        begun = self._shared.words[BEGUN]
        return begun + self._deadline if begun <= time.monotonic_ns() else 0  # else it is nonsense

    def turn_in_hand(self) -> int:
        """The number of the turn that it has asked for and that is not over; 0 for none."""
        words = self._shared.words
        return words[TURN] if words[TURN] != words[ANSWERED] else 0

    def has_begun(self) -> bool:
        """Whether its turn has begun and is not over."""
        words = self._shared.words
        return bool(self.turn_in_hand()) and words[BEGUN] >= words[ASKED]

    def abandon(self, reason: EdgedError | None = None) -> None:
        """Let go of all there is on this side. Later runs raise the reason."""
        if self._gone is None:
            self._gone = reason or ModelError("the model is closed", hint="load it again")
            self._life.release(self)
            self._shared.close()
            os.close(self._answer)

    def _put(self, inputs: Arrays) -> None:
        given = [(array.shape, array.dtype) for array in inputs]
        if given != self._expected:
            raise ModelError(f"the model was given {given}, and takes {self._expected}", hint=_COMPARE)
        for tensor, array in zip(self._shared.inputs, inputs, strict=True):
            tensor[...] = array

    def _wait(self) -> None:
        """Until it has answered this turn. Of what is ready at the same time, the answer is first."""
        timeout = self._timeout
        while True:
            for descriptor, _ in self._events.poll(timeout):
                if descriptor == self._answer:
                    os.eventfd_read(self._answer)
                    if self._shared.words[ANSWERED] == self._turn:
                        return
                elif descriptor == self._life.child.ended:
                    self._lose(self._life.fail(whose=self))
                else:
                    self._life.hear(self._events)
            timeout = self._time_left()

    def _time_left(self) -> int:
        """For how many milliseconds there is still reason to wait."""
        asked, begun = self._shared.words[ASKED], self._shared.words[BEGUN]
        has_begun = begun >= asked
        end = self._deadline + (begun if has_begun else max(asked, self._life.busy_until(self)))
        now = time.monotonic_ns()
        left = end - now
        if begun > now:  # somebody has written where nobody should
            self._lose(self._life.fail(_BABBLE, _BROKEN, whose=self))
        if left <= 0:
            what = "one inference took longer than" if has_begun else "it did nothing for"
            self._lose(self._life.fail(f"hung: {what} {self._deadline / 1e9:g} s", _HUNG, whose=self))
        return _milliseconds(left)

    def _call(self, message: ChildRequest, deed: str, seconds: float) -> None:
        with self._host.calls:
            call = _Call(deed, seconds)
            if not self._life.hold(call):
                self._lose(self._life.fail())
            try:
                self._life.call(message, call, Done)
            finally:
                self._life.release(call)

    def _lose(self, error: DeviceError) -> NoReturn:
        self.abandon(error)
        raise error


class _User(Protocol):
    """Somebody who uses a child: when at the latest it will be done with what it does for them, which turn that is, and
    whether it has begun.

    All are asked under the lock of its life, and not once they have let go.
    """

    def busy_until(self) -> int: ...

    def turn_in_hand(self) -> int: ...

    def has_begun(self) -> bool: ...


class _Call:
    """Something that is asked of a child by messages, and must be done in time."""

    def __init__(self, deed: str, seconds: float) -> None:
        self.deed = deed
        self.seconds = seconds
        self._asked = time.monotonic_ns()

    def busy_until(self) -> int:
        return self._asked + _nanoseconds(self.seconds)

    def turn_in_hand(self) -> int:
        return 0

    def has_begun(self) -> bool:
        return False

    def milliseconds_left(self, after: int = 0) -> int:
        until = max(self._asked, after) + _nanoseconds(self.seconds)
        return _milliseconds(max(0, until - time.monotonic_ns()))


class _Life:
    """One child from its start to its end, and what those who use it share."""

    def __init__(self, name: str, limits: ResourceLimits) -> None:
        self._name = name
        self._lock = threading.RLock()
        self._users: set[_User] = set()
        self._failure: tuple[str, str] | None = None
        self._blamed: set[_User] = set()
        self._said = b""
        self.is_over = False
        try:
            with ExitStack() as undo:
                self.wake = os.eventfd(0)
                undo.callback(os.close, self.wake)
                self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                undo.callback(self._control.close)
                with theirs:
                    descriptors = Descriptors(control=theirs.fileno(), wake=self.wake)
                    request = msgspec.json.encode(descriptors).decode()
                    handed = (descriptors.control, descriptors.wake)
                    self.child = spawn("edged.backends.isolated_child", limits, request, handed)
                undo.pop_all()
        except OSError as error:
            raise DeviceError(
                f"the process of {name} cannot be started: {error.strerror}", hint=_SCARCE, retryable=True
            ) from error
        os.set_blocking(self.child.stderr, False)

    def hold(self, user: _User) -> bool:
        """Count somebody among its users; not when it has died."""
        with self._lock:
            if self.is_over:
                return False
            if self._failure is None and _is_ready(self.child.ended, 0):
                self.fail()
            if self._failure is None:
                self._users.add(user)
            return self._failure is None

    def release(self, user: _User) -> None:
        """Somebody uses it no more; without users it ends, and all its descriptors are closed."""
        with self._lock:
            self._users.discard(user)
            if self._users or self.is_over:
                return
            self.fail("was ended", _CLOSED)
            self.is_over = True
            self.child.close()
            self._control.close()
            os.close(self.wake)

    def let_finish(self, call: _Call) -> None:
        """Until those turns are over that are asked for now: a message would come before them."""
        asked = self._turns_in_hand()
        while asked & self._turns_in_hand() and call.milliseconds_left():
            time.sleep(_GLANCE_SECONDS)

    def _turns_in_hand(self) -> set[tuple[_User, int]]:
        with self._lock:
            return {(user, turn) for user in self._users if (turn := user.turn_in_hand())}

    def call(
        self, message: ChildRequest, call: _Call, expected: type[_Expected], descriptors: Sequence[int] = ()
    ) -> _Expected:
        """Say something, and the answer. It is one of the host's calls, and nobody else is at it.

        Raises:
            DeviceError: it died, or is killed for it took too long or answered nonsense.
            EdgedError: it answered that it will not.
        """
        data = msgspec.json.encode(message)
        if len(data) > MAX_MESSAGE_BYTES:
            raise ModelError(f"{call.deed} takes {len(data)} bytes to say", hint="shorten the backend's options")
        try:
            socket.send_fds(self._control, [data], descriptors, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            raise self.fail(whose=call) from error
        os.eventfd_write(self.wake, CALL)
        reply = self.understand(self._await_reply(call), ChildReply, call)
        if isinstance(reply, Refused):
            raise _error(reply)
        if not isinstance(reply, expected):
            raise self.fail(_BABBLE, _BROKEN, call)
        return reply

    def _await_reply(self, call: _Call) -> bytes:
        control = self._control.fileno()
        events = self.events(control)
        while True:
            for descriptor, _ in events.poll(self._time_left(call)):
                if descriptor == self.child.ended:
                    raise self.fail(whose=call)
                if descriptor != control:
                    self.hear(events)
                elif data := self._receive():
                    return data
                else:  # it is about to end
                    events.unregister(control)
            if not self._time_left(call):
                raise self.fail(f"hung: {call.deed} took longer than {call.seconds:g} s", _HUNG, call)

    def _time_left(self, call: _Call) -> int:
        """For how many milliseconds a call has time; it begins when the turn in hand is over."""
        return call.milliseconds_left(after=self.busy_until(call))

    def _receive(self) -> bytes:
        """A message, or nothing where the other end is closed."""
        try:
            return self._control.recv(MAX_MESSAGE_BYTES)
        except ConnectionResetError:  # it died with a message of ours unread
            return b""

    def understand(self, data: bytes, kind: Any, whose: _User) -> Any:
        """What it says, in its own words' type. Raises DeviceError if that is nonsense, and kills it."""
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.MsgspecError as error:
            raise self.fail(_BABBLE, _BROKEN, whose) from error

    def events(self, descriptor: int) -> select.poll:
        """What somebody waits for who uses it: a descriptor of their own, its end, and its chatter."""
        events = select.poll()
        for each in (descriptor, self.child.ended, self.child.stderr):
            events.register(each, select.POLLIN)
        return events

    def hear(self, events: select.poll) -> None:
        """Take what it has said on standard error; when nothing will come any more, wait for that no more."""
        with self._lock:
            if not self._hear():
                events.unregister(self.child.stderr)

    def said(self) -> str:
        """The last of what it has said on standard error."""
        with self._lock:
            if not self.is_over:
                self._hear()
            return printable(self._said)

    def busy_until(self, waiting: _User) -> int:
        """When at the latest it will be done with what it does for others."""
        with self._lock:
            return max((user.busy_until() for user in self._users if user is not waiting), default=0)

    def fail(self, reason: str = "", hint: str = "", whose: _User | None = None) -> DeviceError:
        """End it if it has not ended, and say why it has: the first reason there was, or else what its status tells.

        Where it was at something for the user `whose` error this is, that is a LostError.
        """
        with self._lock:
            if self._failure is None:
                if hint != _CLOSED:  # else it was ended, and not for what it did
                    self._blamed = self._at_work_for()
                self.child.kill()
                _is_ready(self.child.ended, _SECONDS_TO_DIE)
                status = self.child.status()
                self._hear()
                self._failure = (reason, hint) if reason else _explain(status, self._said)
            reason, hint = self._failure
            kind = LostError if whose in self._blamed else DeviceError
            return kind(f"the process of {self._name} {reason}{self._quote()}", hint=hint, retryable=True)

    def _at_work_for(self) -> set[_User]:
        """Whose turn has begun; while none has, whoever has said something."""
        at_turn = {user for user in self._users if user.has_begun()}
        return at_turn or {user for user in self._users if isinstance(user, _Call)}

    def _hear(self) -> bool:
        """Whether there may be more to hear."""
        try:
            data = os.read(self.child.stderr, _PIPE_BYTES)
        except BlockingIOError:
            return True
        self._said = (self._said + data)[-MAX_STDERR_BYTES:]
        return bool(data)

    def _quote(self) -> str:
        lines = printable(self._said).splitlines()
        return f'; it said last "{lines[-1][-_MAX_QUOTE:]}"' if lines else ""


# What became of it


_HUNG = "unplug and replug the device, or allow more time; see what the process said on standard error"
_CRASHED = "the backend or the device's driver ends the process; see what it said on standard error"
_STARVED = "allow its process more memory, or load a smaller model"
_SCARCE = "free some memory, or end other processes"
_BROKEN = "install edged again; see what the process said on standard error"
_CLOSED = "load the model again"
_COMPARE = "compare the manifest's tensors with the model's: edgectl models"
_BABBLE = "answered what nobody understands"


def _explain(status: int | None, said: bytes) -> tuple[str, str]:
    """In what way a process ended, and what to do about it."""
    if out_of_memory(said):
        return "ran out of memory", _STARVED
    if status is None:
        return "does not end, not even killed", _HUNG
    if status >= 0:
        return f"exited with {status}", _CRASHED
    if status == -signal.SIGKILL:
        return "was killed by the system, most likely for want of memory: SIGKILL", _STARVED
    if status == -signal.SIGABRT:
        return "aborted: SIGABRT", _CRASHED
    return f"crashed: {_signal_name(-status)}", _CRASHED


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _error(reply: Refused) -> EdgedError:
    kind = ERRORS.get(reply.kind, ModelError)
    return kind(printable(reply.message.encode()), hint=printable(reply.hint.encode()), retryable=reply.retryable)


def _again(error: EdgedError) -> EdgedError:
    """The same error, for another to raise."""
    return type(error)(error.message, hint=error.hint, retryable=error.retryable)


# What is shared


def _check_tensors(loaded: Loaded) -> None:
    """Refuse tensors that no memory can be shared for, whatever process asks for it."""
    for spec in (*loaded.inputs, *loaded.outputs):
        try:
            sound = spec.numpy_dtype.kind in "biufc" and all(size > 0 for size in spec.shape)
        except TypeError:
            sound = False
        if not sound or prod(spec.shape) > MAX_ELEMENTS:
            raise ModelError(
                f"the tensor {spec.name!r}, {spec.dtype} of shape {spec.shape}, cannot be shared with a process",
                hint="use a model whose tensors are numbers, and as many as the manifest says",
            )
    if len(loaded.inputs) > MAX_TENSORS or len(loaded.outputs) > MAX_TENSORS:
        raise ModelError(f"it has more than {MAX_TENSORS} inputs or outputs", hint="use a model with fewer")


def _share(loaded: Loaded) -> tuple[int, int, Shared]:
    """An eventfd for answers, the descriptor of some memory for a model, and the memory.

    It is sealed: one who could shrink it could end whoever looks into it.
    """
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    try:
        with ExitStack() as undo:
            answer = os.eventfd(0)
            undo.callback(os.close, answer)
            memory = os.memfd_create("edged-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            undo.callback(os.close, memory)
            os.ftruncate(memory, shared_bytes(loaded.inputs, loaded.outputs))
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
            shared = Shared(memory, loaded.inputs, loaded.outputs)
            undo.pop_all()
    except OSError as error:
        raise DeviceError(f"no memory can be shared: {error.strerror}", hint=_SCARCE, retryable=True) from error
    return answer, memory, shared


def _is_ready(descriptor: int, seconds: float) -> bool:
    """Whether it becomes readable within so many seconds."""
    events = select.poll()
    events.register(descriptor, select.POLLIN)
    return bool(events.poll(seconds * 1e3))


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _milliseconds(nanoseconds: int) -> int:
    return math.ceil(nanoseconds / 1e6)
