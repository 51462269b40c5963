"""A child process with limits: a crash, hang or excess in the child does not harm the parent, nor outlive it.

Risky code (a new model, a vendor's delegate) runs in such a child. The parent calls `spawn` at the start and `kill` at
the end, whatever the state of the child. The child is a fresh interpreter that starts in `main` below, limits itself
before any larger import, and then calls `main(request)` of the given module.

Limits of the child:
- a session of its own, an environment of a few names, no descriptors but stdin (empty), stdout and stderr (pipes), the
lifeline, and descriptors handed over;
- limits on memory, processor time, size of files and core dumps; a low priority, and the first place among the
processes killed by the kernel for lack of memory;
- the death of the spawning process kills the child, and `kill` also kills all descendants: the process group and, by a
mark in the environment, processes that left the group.

The lifeline is a pipe; the parent holds the other end and never writes. After the parent's death the kernel closes that
end, and sends the child the requested signal: SIGKILL, which also ends a hanging child. (The signal for a dead parent,
PR_SET_PDEATHSIG, comes at the end of the spawning *thread*, and threads come and go.)
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import msgspec

from edged.system.later import subprocess

_MARK = "EDGED_CHILD"
_HANDED_DOWN = ("PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR")
_HANDED_TO_PROGRAMS = (*_HANDED_DOWN, "LANG", "XDG_RUNTIME_DIR", "CREDENTIALS_DIRECTORY")
_SWEEPS = 20
_OUT_OF_MEMORY = (b"bad_alloc", b"MemoryError", b"Cannot allocate memory", b"out of memory")


class ResourceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a child.

    `memory` is bytes of data (private, writable) memory, `processor` seconds of processor time (None: unlimited),
    `niceness` the priority relative to the parent, `file` bytes of the largest file to be written. Files behind
    descriptors handed over have any size.
    """

    memory: int
    processor: int | None = None
    niceness: int = 10
    file: int = 1 << 20


class Child:
    """A child, spawned or started. `ended` is a descriptor that becomes readable at its end, for any reason.

    `stdout` and `stderr` are the reading ends of the pipes. The parent may poll all three until `close`.
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
        """Kill the child and all descendants, without waiting for their end.

        Permitted after the end of the child until `status` or `close`, since the process number is not reused before.
        """
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for _ in range(_SWEEPS):  # a process that forks during the sweep leaves another
            if not sum(_kill(pid, self._mark) for pid in _processes()):
                return

    def status(self) -> int | None:
        """Return the exit status, negative for a signal, or None before the end."""
        return self._process.poll()

    def close(self) -> int | None:
        """Release the child, which kills a spawned child by the lifeline, and return the `status`; None if even a kill
        did not end it.
        """
        status = self.status()
        os.close(self.ended)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with suppress(BrokenPipeError):  # a program that never read its input
                pipe.close()
        return status


def spawn(module: str, limits: ResourceLimits, request: str, descriptors: Sequence[int] = ()) -> Child:
    """Start a fresh interpreter that calls `main(request)` of a module, with limits.

    The child has the same module path, and gets the `descriptors` under the same numbers.

    Raises:
        OSError: memory or processes are exhausted.
    """
    mark = os.urandom(16).hex()
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
    return _child(process, mark)


def start(words: Sequence[str], given: bytes = b"") -> Child:
    """Start a foreign program, without limits and lifeline: the program ends by `kill`.

    The program finds `given`, at most some KiB, in its standard input.

    Raises:
        OSError: the program is missing or not permitted, or memory or processes are exhausted.
    """
    mark = os.urandom(16).hex()
    process = subprocess.Popen(
        words,
        cwd="/",
        env={**{name: os.environ[name] for name in _HANDED_TO_PROGRAMS if name in os.environ}, _MARK: mark},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # ended already
        process.stdin.write(given)
        process.stdin.close()
    with suppress(OSError):  # a bare chroot has no /proc
        Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000")
    return _child(process, mark)


def _child(process: subprocess.Popen[bytes], mark: str) -> Child:
    try:
        return Child(process, mark)
    except OSError:  # no descriptor to be had
        process.kill()
        process.communicate()
        raise


def out_of_memory(stderr: bytes) -> bool:
    """Return whether a child's error output is that of a process out of memory."""
    return any(words in stderr for words in _OUT_OF_MEMORY)


def printable(stderr: bytes) -> str:
    """Return a child's output in whole lines, without control sequences for a terminal."""
    text = stderr.decode(errors="replace")
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text).strip()


def main() -> None:
    """Limit this child process, and then call the requested function."""
    limits, module, request = sys.argv[1:]
    _hold_on_to_life()
    _confine(msgspec.json.decode(limits, type=ResourceLimits))
    import_module(module).main(request)


def _environment(mark: str) -> dict[str, str]:
    return {
        **{name: os.environ[name] for name in _HANDED_DOWN if name in os.environ},
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        "OPENBLAS_NUM_THREADS": "1",  # otherwise numpy spends 40 MB on unused threads at start
        _MARK: mark,
    }


def _hold_on_to_life() -> None:
    """Have the kernel kill this process when the other end of stdin is closed, and replace stdin by an empty file."""
    lifeline = os.dup(0)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # the parent died before the request for the signal
        sys.exit(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _confine(limits: ResourceLimits) -> None:
    with suppress(OSError):  # optional; a sandbox may forbid the call
        os.nice(limits.niceness)
    with suppress(OSError):  # likewise; a bare chroot has no /proc
        Path("/proc/self/oom_score_adj").write_text("1000")
    _limit(resource.RLIMIT_DATA, limits.memory)
    _limit(resource.RLIMIT_FSIZE, limits.file)
    _limit(resource.RLIMIT_CORE, 0)
    if limits.processor is not None:
        _limit(resource.RLIMIT_CPU, limits.processor)


def _limit(kind: int, value: int) -> None:
    """Lower a limit permanently; a lower limit stays. For processor time the hard limit is kept, since reaching it
    gives a SIGKILL like any other, while the soft limit gives a specific SIGXCPU.
    """
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, hard if kind == resource.RLIMIT_CPU else value))


def _processes() -> list[int]:
    try:
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    except OSError:  # no descriptors left; the process group was killed without one
        return []


def _kill(pid: int, mark: str) -> bool:
    """Kill a process with the mark, and return success. The descriptor names the process even if
    its number is reused.
    """
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        marked = f"{_MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if marked:
            signal.pidfd_send_signal(process, signal.SIGKILL)
        return marked
    except OSError:  # already ended, or of another user
        return False
    finally:
        os.close(process)


if __name__ == "__main__":
    main()
