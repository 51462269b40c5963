"""Run models in a child process, so a crash, a hang or a lack of memory in a vendor's delegate cannot harm the daemon.

A `Host` is the child process for all models of a device: `isolated_child`, under the limits of `edged.system.child`.
Loading the first model starts the process, and closing the last model ends the process. When the process dies, every
runner of the host raises DeviceError at once; the owner of such a runner closes the runner and loads the model again,
and this load starts a new process.

A turn costs a single wake-up in each direction and no message: inputs are copied into shared memory, an eventfd wakes
the child, and an epoll waits for the answer, the child's end, output on standard error, or the deadline. The child runs
one model at a time, by priority, then by earliest deadline; a model waiting past the deadline comes first. A runner's
deadline counts from the start of the turn. Each thread watches its own turn alone: the thread of a hanging turn kills
the child, and the child's end wakes the other threads.

A runner belongs to the thread calling `run`. Messages (load, reset, close) are sent under `Host.calls`, each answered
before the next. The cause of a child's end, and the users of a child, are under `_Life._lock`; descriptors are closed
after the last user has been released, because the kernel soon reuses the number of a closed descriptor.
"""

from __future__ import annotations

import fcntl
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
    copy,
    described,
    shared_bytes,
)
from edged.core.manifest_parts import MAX_ELEMENTS
from edged.system.child import ResourceLimits, out_of_memory, printable, spawn

MAX_STDERR_BYTES = 2 << 10
MAX_TENSORS = 64
CLOSE_SECONDS = 5.0
_MAX_QUOTE = 200
_SECONDS_TO_DIE = 0.5
_GLANCE_SECONDS = 0.001
_PIPE_BYTES = 64 << 10
_MAX_EVENTS = 3

_Expected = TypeVar("_Expected", Loaded, Done)


class RunTimes(msgspec.Struct, frozen=True):
    """Number of a runner's turns in the child process; wall clock and processor time of the timed turns in seconds.

    The first 16 turns are timed, and then one in 16.
    """

    turns: int
    wall: float
    processor: float

    @property
    def off_processor(self) -> float:
        """Return the fraction of the wall clock time spent outside the child's own thread: 0 to 1."""
        return max(0.0, 1 - self.processor / self.wall) if self.wall else 0.0


class LostError(DeviceError):
    """Raised instead of DeviceError to the user being served when the process died or was killed."""


class Host:
    """The child process of a device, called `name` in messages. Any thread may use a host.

    The process lives as long as a runner is open. A sender of messages holds `calls`. While `is_loading` is true, the
    child runs no turns.
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
        """Load a model in the process, and start the process first if not running.

        Turns already requested run first; later turns wait for the load, so callers with a twin check `is_loading`. An
        inference may take `deadline` seconds, and loading, resetting and starting the process `load_seconds` each. A
        model of greater `priority` runs first.

        Raises:
            DeviceError: the process cannot be started, or crashed, hung or ran out of memory; all runners are lost.
            EdgedError: the backend's error; the process and the other runners live on.
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
        """Return the process id while models are loaded, else None. The process may have died."""
        life = self._life
        return life.child.pid if life is not None and not life.is_over else None

    @property
    def stderr(self) -> str:
        """Return the end of the standard error of the process, or of the previous process."""
        return self._life.stderr_text() if self._life is not None else ""

    def close(self) -> None:
        """End the process at once. From now on, runners and loads raise DeviceError."""
        self._closed = True  # before the check in `renew`; `_living` starts a process before checking `_closed`
        self.renew()

    def renew(self) -> None:
        """End the process if running, so the next load starts a new process; open runners raise DeviceError."""
        if self._life is not None:
            self._life.fail("was ended", _CLOSED)

    def _living(self, call: _Call) -> _Life:
        """Return a living process, held by the call."""
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
            answer, memory, shared, events = _share(loaded, life)
        except EdgedError:
            life.call(Close(number=load.number), call, Done)
            raise
        runner = IsolatedRunner(self, life, load, loaded, shared, answer, events, seconds)
        try:
            life.call(Attach(number=load.number), call, Done, [memory, answer])
        except EdgedError:
            runner.abandon()
            raise
        finally:
            os.close(memory)
        return runner


class IsolatedRunner:
    """A model in a host's process, for use by one thread at a time."""

    def __init__(
        self,
        host: Host,
        life: _Life,
        load: Load,
        loaded: Loaded,
        shared: Shared,
        answer: int,
        events: select.epoll,
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
        self._timeout = load.deadline / 1e9
        self._seconds = seconds
        self._shared = shared
        self._answer = answer
        self._events = events
        self._turn = 0
        self._gone: EdgedError | None = None
        life.hold(self)

    def run(self, inputs: Arrays) -> Arrays:
        """Run once in the process; the outputs are copies.

        Raises:
            ModelError: the runtime refused this input, and the process lives.
            DeviceError: the process crashed, ran out of memory, was killed, or is killed now after the deadline. This
                runner is lost: call `close`.
        """
        if self._gone is not None:
            raise _again(self._gone)
        shared, words = self._shared, self._shared.words
        if not copy(inputs, shared.inputs):
            wrong = f"the model was given {described(inputs)} instead of {described(shared.inputs)}"
            raise ModelError(wrong, hint=_COMPARE)
        self._turn += 1
        words[ASKED] = time.monotonic_ns()
        words[TURN] = self._turn
        os.eventfd_write(self._life.wake, 1)
        self._wait()
        if words[REFUSED]:
            raise _error(self._life.understand(shared.refusal(), Refused, self))
        return [output.copy() for output in shared.outputs]

    def reset(self) -> None:
        """Forget earlier runs. Raises DeviceError as `run` does, and the errors of the backend."""
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
        """Return number and total durations of the turns so far; zeros for a closed or lost runner."""
        if self._gone is not None:
            return RunTimes(0, 0.0, 0.0)
        words = self._shared.words
        return RunTimes(words[ANSWERED], words[WALL] / 1e9, words[PROCESSOR] / 1e9)

    @property
    def pid(self) -> int:
        """Return the process id. The process may have died."""
        return self._life.child.pid

    def busy_until(self) -> int:
        """Return the latest end of the last turn, in nanoseconds of CLOCK_MONOTONIC."""
        begun = self._shared.words[BEGUN]
        return begun + self._deadline if begun <= time.monotonic_ns() else 0  # a start in the future is invalid

    def turn_in_hand(self) -> int:
        """Return the number of the turn requested and not finished; 0 if idle."""
        words = self._shared.words
        return words[TURN] if words[TURN] != words[ANSWERED] else 0

    def has_begun(self) -> bool:
        """Return whether a turn has begun and is not over."""
        words = self._shared.words
        return bool(self.turn_in_hand()) and words[BEGUN] >= words[ASKED]

    def abandon(self, reason: EdgedError | None = None) -> None:
        """Release all resources of the parent's side. Later runs raise `reason`."""
        if self._gone is None:
            self._gone = reason or ModelError("the model is closed", hint="load it again")
            self._events.close()
            self._life.release(self)
            self._shared.close()
            os.close(self._answer)

    def _wait(self) -> None:
        """Wait for the answer to this turn. Of descriptors ready at the same time, the answer is handled first."""
        timeout = self._timeout
        while True:
            for descriptor, _ in self._events.poll(timeout, _MAX_EVENTS):
                if descriptor == self._answer:
                    if self._shared.words[ANSWERED] == self._turn:
                        return
                elif descriptor == self._life.child.ended:
                    self._lose(self._life.fail(whose=self))
                else:
                    self._life.read_stderr(self._events)
            timeout = self._time_left()

    def _time_left(self) -> float:
        """Return the seconds left until the deadline, and kill the child after the deadline."""
        asked, begun = self._shared.words[ASKED], self._shared.words[BEGUN]
        has_begun = begun >= asked
        end = self._deadline + (begun if has_begun else max(asked, self._life.busy_until(self)))
        now = time.monotonic_ns()
        left = end - now
        if begun > now:  # the child has overwritten the words
            self._lose(self._life.fail(_BABBLE, _BROKEN, whose=self))
        if left <= 0:
            what = "an inference took longer than" if has_begun else "the process did nothing for"
            self._lose(self._life.fail(f"hung: {what} {self._deadline / 1e9:g} s", _HUNG, whose=self))
        return left / 1e9

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
    """A runner or a call using a child.

    `busy_until` is the latest end of the user's work in the child, `turn_in_hand` the number of the requested turn, and
    `has_begun` tells if the turn has begun. Called under the lock of the `_Life`, and never after `release`.
    """

    def busy_until(self) -> int: ...

    def turn_in_hand(self) -> int: ...

    def has_begun(self) -> bool: ...


class _Call:
    """A request to a child by messages, with a time limit."""

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

    def seconds_left(self, after: int = 0) -> float:
        until = max(self._asked, after) + _nanoseconds(self.seconds)
        return max(0, until - time.monotonic_ns()) / 1e9


class _Life:
    """A child process from start to end, and the state shared by the child's users."""

    def __init__(self, name: str, limits: ResourceLimits) -> None:
        self._name = name
        self._lock = threading.RLock()
        self._users: set[_User] = set()
        self._failure: tuple[str, str] | None = None
        self._blamed: set[_User] = set()
        self._stderr = b""
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
        """Add a user unless the child has died; return whether the user was added."""
        with self._lock:
            if self.is_over:
                return False
            if self._failure is None and _is_ready(self.child.ended, 0):
                self.fail()
            if self._failure is None:
                self._users.add(user)
            return self._failure is None

    def release(self, user: _User) -> None:
        """Remove a user; after the last user, end the child and close all descriptors."""
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
        """Wait until the turns requested so far are over, because the child would handle a message first."""
        asked = self._turns_in_hand()
        while asked & self._turns_in_hand() and call.seconds_left():
            time.sleep(_GLANCE_SECONDS)

    def _turns_in_hand(self) -> set[tuple[_User, int]]:
        with self._lock:
            return {(user, turn) for user in self._users if (turn := user.turn_in_hand())}

    def call(
        self, message: ChildRequest, call: _Call, expected: type[_Expected], descriptors: Sequence[int] = ()
    ) -> _Expected:
        """Send a message and return the reply. The caller holds `Host.calls`.

        Raises:
            DeviceError: the child died, or is killed for taking too long or for an invalid reply.
            EdgedError: the child replied with an error.
        """
        data = msgspec.json.encode(message)
        if len(data) > MAX_MESSAGE_BYTES:
            raise ModelError(
                f"{call.deed} takes a message of {len(data)} bytes, more than {MAX_MESSAGE_BYTES}",
                hint="shorten the backend's options",
            )
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
        events = select.poll()  # no descriptor, so that a model can be closed while none is left
        events.register(control, select.POLLIN)
        self.watch(events)
        while True:
            for descriptor, _ in events.poll(self._time_left(call) * 1e3):
                if descriptor == self.child.ended:
                    raise self.fail(whose=call)
                if descriptor != control:
                    self.read_stderr(events)
                elif data := self._receive():
                    return data
                else:  # the child is about to end
                    events.unregister(control)
            if not self._time_left(call):
                raise self.fail(f"hung: {call.deed} took longer than {call.seconds:g} s", _HUNG, call)

    def _time_left(self, call: _Call) -> float:
        """Return the seconds left for a call, counted from the end of the turn in hand."""
        return call.seconds_left(after=self.busy_until(call))

    def _receive(self) -> bytes:
        """Return a message, b"" if the child has closed the socket."""
        try:
            return self._control.recv(MAX_MESSAGE_BYTES)
        except ConnectionResetError:  # the child died before reading a message
            return b""

    def understand(self, data: bytes, kind: Any, whose: _User) -> Any:
        """Decode a message of the child as `kind`. If invalid, kill the child and raise DeviceError."""
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.MsgspecError as error:
            raise self.fail(_BABBLE, _BROKEN, whose) from error

    def watch(self, events: select.poll | select.epoll) -> None:
        """Register the child's end and standard error."""
        events.register(self.child.ended, select.POLLIN)
        events.register(self.child.stderr, select.POLLIN)

    def read_stderr(self, events: select.poll | select.epoll) -> None:
        """Read the child's standard error; at the end of the file, take standard error out of `events`."""
        with self._lock:
            if not self._read_stderr():
                events.unregister(self.child.stderr)

    def stderr_text(self) -> str:
        """Return the end of the child's standard error."""
        with self._lock:
            if not self.is_over:
                self._read_stderr()
            return printable(self._stderr)

    def busy_until(self, waiting: _User) -> int:
        """Return the latest end of the child's work for users other than `waiting`."""
        with self._lock:
            return max((user.busy_until() for user in self._users if user is not waiting), default=0)

    def fail(self, reason: str = "", hint: str = "", whose: _User | None = None) -> DeviceError:
        """Kill the child unless dead, and return the error with the first reason, or with the exit status's meaning.

        The error is a LostError if the child was working for the user `whose`.
        """
        with self._lock:
            if self._failure is None:
                if hint != _CLOSED:  # a child ended on purpose is no user's fault
                    self._blamed = self._at_work_for()
                self.child.kill()
                _is_ready(self.child.ended, _SECONDS_TO_DIE)
                status = self.child.status()
                self._read_stderr()
                self._failure = (reason, hint) if reason else _explain(status, self._stderr)
            reason, hint = self._failure
            kind = LostError if whose in self._blamed else DeviceError
            return kind(f"the process of {self._name} {reason}{self._quote()}", hint=hint, retryable=True)

    def _at_work_for(self) -> set[_User]:
        """Return the users with a turn begun or, if no turn has begun, the users with a call in hand."""
        at_turn = {user for user in self._users if user.has_begun()}
        return at_turn or {user for user in self._users if isinstance(user, _Call)}

    def _read_stderr(self) -> bool:
        """Read from standard error; return whether more may follow."""
        try:
            data = os.read(self.child.stderr, _PIPE_BYTES)
        except BlockingIOError:
            return True
        self._stderr = (self._stderr + data)[-MAX_STDERR_BYTES:]
        return bool(data)

    def _quote(self) -> str:
        lines = printable(self._stderr).splitlines()
        return f'; the last line of output: "{lines[-1][-_MAX_QUOTE:]}"' if lines else ""


# Causes of a child's end


_HUNG = "unplug and replug the device, or allow more time; see the standard error of the process"
_CRASHED = "see the standard error of the process: the backend or the device's driver ends the process"
_STARVED = "allow the process more memory, or load a smaller model"
_SCARCE = "free some memory, or end other processes"
_BROKEN = "install edged again; see the standard error of the process"
_CLOSED = "load the model again"
_COMPARE = "compare the manifest's tensors with the model's: edgectl models"
_BABBLE = "sent an invalid message"


def _explain(status: int | None, stderr: bytes) -> tuple[str, str]:
    """Return a child's way of ending in words, and a hint."""
    if out_of_memory(stderr):
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
    """Return a copy of an error, for raising anew."""
    return type(error)(error.message, hint=error.hint, retryable=error.retryable)


# Shared memory


def _check_tensors(loaded: Loaded) -> None:
    """Refuse tensors unfit for shared memory; the child's word is not trusted."""
    for spec in (*loaded.inputs, *loaded.outputs):
        try:
            sound = spec.numpy_dtype.kind in "biufc" and all(size > 0 for size in spec.shape)
        except TypeError:
            sound = False
        if not sound or prod(spec.shape) > MAX_ELEMENTS:
            raise ModelError(
                f"the tensor {spec.name!r}, {spec.dtype} of shape {spec.shape}, cannot be shared with a process",
                hint="use a model with tensors of numbers, of the shapes in the manifest",
            )
    if len(loaded.inputs) > MAX_TENSORS or len(loaded.outputs) > MAX_TENSORS:
        raise ModelError(f"the model has more than {MAX_TENSORS} inputs or outputs", hint="use a model with fewer")


def _share(loaded: Loaded, life: _Life) -> tuple[int, int, Shared, select.epoll]:
    """Return an eventfd for answers, the descriptor of a model's shared memory, the memory, and the events of a turn.

    The memory is sealed, because a process shrinking the memory could crash a reader. The eventfd is edge-triggered:
    each answer is an event, and nothing is read.
    """
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    try:
        with ExitStack() as undo:
            answer = os.eventfd(0)
            undo.callback(os.close, answer)
            events = select.epoll()
            undo.callback(events.close)
            events.register(answer, select.EPOLLIN | select.EPOLLET)
            life.watch(events)
            memory = os.memfd_create("edged-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            undo.callback(os.close, memory)
            os.ftruncate(memory, shared_bytes(loaded.inputs, loaded.outputs))
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
            shared = Shared(memory, loaded.inputs, loaded.outputs)
            undo.pop_all()
    except OSError as error:
        raise DeviceError(f"no memory can be shared: {error.strerror}", hint=_SCARCE, retryable=True) from error
    return answer, memory, shared, events


def _is_ready(descriptor: int, seconds: float) -> bool:
    """Return whether a descriptor becomes readable within `seconds`."""
    events = select.poll()
    events.register(descriptor, select.POLLIN)
    return bool(events.poll(seconds * 1e3))


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
