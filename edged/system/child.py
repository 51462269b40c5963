"""A child process on a leash: it can crash, hang and eat, and neither harms its parent nor outlives it.

What may do such things (a model nobody has tried on this board, a vendor's delegate) runs in one. The parent `spawn`s
it and ends it with `kill`, whatever has become of it. The child is a fresh interpreter that starts in `main` below,
takes the leash upon itself before it imports anything of weight, and then calls `main(request)` of the module it was
started for.

What holds it:
- a session of its own, an environment of a few names, no descriptor but stdin (empty), stdout and stderr (pipes), its
  lifeline, and those that it is handed;
- limits on memory, processor time, the size of files and core dumps; its place in line for the processor, and the first
  place among those that the kernel kills when memory runs out;
- it dies with the process that spawned it, and with `kill` whatever it started is killed too: all of its process group,
  and by a mark in the environment also those that left the group.

The lifeline is a pipe that its parent holds the other end of and never writes to. When the parent is gone the kernel
closes that end, and sends the child the signal it has asked for: SIGKILL, which also ends one that hangs. (The signal
for a dead parent, PR_SET_PDEATHSIG, comes when the spawning *thread* ends, and threads come and go.)
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from uuid import uuid4

import msgspec

_MARK = "EDGED_CHILD"
_HANDED_DOWN = ("PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR")
_SWEEPS = 20
_OUT_OF_MEMORY = (b"bad_alloc", b"MemoryError", b"Cannot allocate memory", b"out of memory")


class ResourceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a child may use.

    `memory` is bytes of data (private, writable) memory, `processor` seconds of processor time (None: any), `niceness`
    how far behind its parent it stands in line for the processor, `file` bytes of the largest file it may write. What
    it is handed by descriptor is as large as its giver made it.
    """

    memory: int
    processor: int | None = None
    niceness: int = 10
    file: int = 1 << 20


class Child:
    """A spawned child. `ended` is a descriptor that becomes readable when it has ended, however it did.

    `stdout` and `stderr` are the reading ends of its pipes. All three are the parent's to poll until `close`.
    """

    def __init__(self, process: subprocess.Popen[bytes], mark: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.pid = process.pid
        self.ended = os.pidfd_open(process.pid)
        self.stdout = process.stdout.fileno()
        self.stderr = process.stderr.fileno()
        self._process = process
        self._mark = mark

    def kill(self) -> None:
        """Kill it and all that it started; never waits for them to be gone.

        May be called after it ended and until `status` or `close`, for its number is nobody else's before then.
        """
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for _ in range(_SWEEPS):  # one that is forking while we look leaves another
            if not sum(_kill(pid, self._mark) for pid in _processes()):
                return

    def status(self) -> int | None:
        """Its exit status, negative for the signal that ended it, None if it has not ended."""
        return self._process.poll()

    def close(self) -> int | None:
        """Let go of it, and with its lifeline it is killed: its `status`, None if even a kill did not end it."""
        status = self.status()
        os.close(self.ended)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
        return status


def spawn(module: str, limits: ResourceLimits, request: str, descriptors: Sequence[int] = ()) -> Child:
    """Start a fresh interpreter that calls `main(request)` of a module, on a leash.

    Its modules are found where ours are, and it is handed the `descriptors`, which have the same numbers there.

    Raises:
        OSError: there is no memory or no process to be had.
    """
    mark = uuid4().hex
    words = [msgspec.json.encode(limits).decode(), module, request]
    process = subprocess.Popen(
        [sys.executable, "-s", "-P", "-B", "-u", "-m", "edged.system.child", *words],
        cwd="/",
        env=_environment(mark),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        pass_fds=descriptors,
    )
    try:
        return Child(process, mark)
    except OSError:  # no descriptor to be had
        process.kill()
        process.communicate()
        raise


def out_of_memory(stderr: bytes) -> bool:
    """Whether what a child said on standard error is what one says who runs out of memory."""
    return any(words in stderr for words in _OUT_OF_MEMORY)


def printable(stderr: bytes) -> str:
    """What a child said, in whole lines, with nothing in them that could steer a terminal."""
    text = stderr.decode(errors="replace")
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text).strip()


def main() -> None:
    """In the child: take the leash, then do what it was started for."""
    limits, module, request = sys.argv[1:]
    _hold_on_to_life()
    _confine(msgspec.json.decode(limits, type=ResourceLimits))
    import_module(module).main(request)


def _environment(mark: str) -> dict[str, str]:
    return {
        **{name: os.environ[name] for name in _HANDED_DOWN if name in os.environ},
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        "OPENBLAS_NUM_THREADS": "1",  # as it starts, numpy would spend 40 MB on threads that nobody needs
        _MARK: mark,
    }


def _hold_on_to_life() -> None:
    """Have the kernel kill us when the other end of stdin is closed, and read from nothing instead."""
    lifeline = os.dup(0)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # our parent died before we could ask to die with it
        sys.exit(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _confine(limits: ResourceLimits) -> None:
    with suppress(OSError):  # a courtesy; a sandbox may forbid it
        os.nice(limits.niceness)
    with suppress(OSError):  # likewise; a bare chroot has no /proc
        Path("/proc/self/oom_score_adj").write_text("1000")
    _limit(resource.RLIMIT_DATA, limits.memory)
    _limit(resource.RLIMIT_FSIZE, limits.file)
    _limit(resource.RLIMIT_CORE, 0)
    if limits.processor is not None:
        _limit(resource.RLIMIT_CPU, limits.processor)


def _limit(kind: int, value: int) -> None:
    """Lower a limit for good; one that is lower already stays. Of processor time the hard limit is left as it is, for
    reaching it is a SIGKILL like any other, where reaching the soft one is a SIGXCPU that says so.
    """
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, hard if kind == resource.RLIMIT_CPU else value))


def _processes() -> list[int]:
    try:
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    except OSError:  # no descriptor to be had; its process group was killed without one
        return []


def _kill(pid: int, mark: str) -> bool:
    """Kill a process if it bears the mark; whether it did. What we hold is this process, not its number."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        marked = f"{_MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if marked:
            signal.pidfd_send_signal(process, signal.SIGKILL)
        return marked
    except OSError:  # gone in the meantime, or somebody else's
        return False
    finally:
        os.close(process)


if __name__ == "__main__":
    main()
