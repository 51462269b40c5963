"""A trial: before a version may serve, a child process loads it as it will be loaded to serve, and has it prove itself.

`try_out` is for updates, `prove_apart` for any other model that this process is about to load for the first time. Both
start the child (`trial_child`, on a leash), hear what it says, end it, and judge. The child measures; `judge` holds
that against the limits, and says what it means when there is nothing to hold. What happens in the child is the
version's fault, and a verdict. That no child could be started is not, and an error.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from edged.api import Backend, BundleError, EdgedError, ModelError
from edged.core.manifest import Limits, Manifest
from edged.core.verdict import Verdict, hold_latency
from edged.models.bundle import Bundle
from edged.models.trial_child import MEMORY_HINT, STAGES, TrialRequest
from edged.system.child import Child, ResourceLimits, out_of_memory, printable, spawn

MAX_STDOUT_BYTES = 64 << 10
MAX_STDERR_BYTES = 2 << 10
MAX_QUOTE = 200
PROOF_SECONDS = 120.0
"""How long a model may take to prove itself before it is loaded: slow boards need long for a large one's samples."""

_TIMING_SECONDS = 3.0
_SECONDS_TO_DIE = 5.0
_PIPE_BYTES = 1 << 20
"""The most that a pipe can hold, and one read can take."""


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """What this board allows a trial: `seconds` from start to end, and bytes of `memory`. A manifest only lowers it."""

    seconds: float = 60.0
    memory: int = 512 << 20


class Ending(NamedTuple):
    """What came of a child.

    `status` is its exit status, negative for the signal that ended it, None if it was not done in time. `stdout` and
    `stderr` are the ends of what it said.
    """

    status: int | None
    stdout: bytes
    stderr: bytes
    seconds: float


async def try_out(folder: Path, manifest: Manifest, backend: Backend, allowance: Allowance) -> Verdict:
    """Try the bundle in a folder on the backend that will serve it. Cancelled, it ends the child before it returns.

    Raises:
        ModelError: no child could be started; to try again later may succeed.
    """
    return await _try(Bundle(manifest, folder), backend, allowance, timing_seconds=_TIMING_SECONDS)


async def prove_apart(bundle: Bundle, backend: Backend, *, signature: str | None = None) -> Verdict:
    """Have a child process load, run and close a model that this process is about to load; its verdict.

    The manifest's limits do not apply: they are for updates. `signature` is the one to run instead of the manifest's.

    Raises:
        BundleError: the bundle is damaged.
        ModelError: the model does not work, or kills or hangs the process that runs it. `retryable`: it may work later.
    """
    unlimited = replace(bundle, manifest=replace(bundle.manifest, limits=Limits()))
    allowance = Allowance(seconds=PROOF_SECONDS, memory=max(Allowance().memory, available_bytes()))
    verdict = await _try(unlimited, backend, allowance, timing_seconds=0.0, signature=signature)
    if not verdict.ok:
        raise _error(bundle.manifest, verdict)
    return verdict


async def _try(
    bundle: Bundle, backend: Backend, allowance: Allowance, *, timing_seconds: float, signature: str | None = None
) -> Verdict:
    limits = bundle.manifest.limits
    seconds = min(allowance.seconds, limits.seconds or allowance.seconds)
    request = TrialRequest(
        path=str(bundle.path.absolute()),
        sha256=bundle.manifest.files[bundle.manifest.model].sha256,
        backend=class_path(backend),
        options=msgspec.to_builtins(backend),
        signature=signature,
        timing_seconds=min(timing_seconds, seconds / 4),
    )
    child = _start(bundle.path.name, request, seconds, allowance.memory)
    return judge(await _follow(child, seconds), bundle.manifest, allowance)


def class_path(backend: Backend) -> str:
    """The class of a backend, as "module:Class"."""
    return f"{type(backend).__module__}:{type(backend).__qualname__}"


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory that can be had without swapping: MemAvailable of proc_meminfo(5), or no limit where that is hidden."""
    with suppress(OSError):  # ProcSubset=pid and a bare chroot have no such file
        for line in meminfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    return sys.maxsize


def judge(ending: Ending, manifest: Manifest, allowance: Allowance) -> Verdict:
    """What a child's ending means for the version it tried."""
    stage, verdict = _understand(ending.stdout)
    if stage == STAGES[0] and (verdict is None or ending.status != 0):  # nobody has looked at the version yet
        said = " ".join(printable(ending.stderr).splitlines()[-1:])
        verdict = Verdict(failure="hindered", reason=_NOT_BEGUN + (f": {said}" if said else ""), hint=_SCARCE)
    elif ending.status is None:
        reason = f"its self-test was not done in {ending.seconds:.3g} s; it was {stage}"
        verdict = Verdict(failure="hung", reason=reason, hint=_HUNG)
    elif ending.status != 0:
        verdict = _died(ending.status, stage, ending.stderr)
    elif verdict is None:
        verdict = Verdict(
            failure="silent", reason=f"its self-test ended without a verdict while {stage}", hint=_CRASHED
        )
    elif verdict.ok:
        verdict = _hold(verdict, manifest, allowance)
    return replace(verdict, seconds=ending.seconds, stderr=printable(ending.stderr))


# Starting and following the child


def _start(name: str, request: TrialRequest, seconds: float, memory: int) -> Child:
    limits = ResourceLimits(memory=memory, processor=math.ceil(seconds * (os.cpu_count() or 1)))
    try:
        return spawn("edged.models.trial_child", limits, msgspec.json.encode(request).decode())
    except OSError as error:
        raise ModelError(
            f"the self-test of {name} cannot be started: {error.strerror}",
            hint=_SCARCE,
            retryable=True,
        ) from error


async def _follow(child: Child, seconds: float) -> Ending:
    """Hear a child to its end, and see to it that there is one."""
    loop = asyncio.get_running_loop()
    begun = time.monotonic()
    ended = asyncio.Event()
    said, complained = _Ear(child.stdout, MAX_STDOUT_BYTES), _Ear(child.stderr, MAX_STDERR_BYTES)
    loop.add_reader(child.ended, ended.set)
    try:
        in_time = await _happens(ended, seconds)
    finally:
        child.kill()
        try:
            await _happens(ended, _SECONDS_TO_DIE)
        finally:
            loop.remove_reader(child.ended)
            said.close()
            complained.close()
            status = child.close()
    return Ending(status if in_time else None, said.heard, complained.heard, time.monotonic() - begun)


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    """Whether it happens within so many seconds."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


class _Ear:
    """Takes whatever comes out of a pipe, so that its writer never waits, and keeps the end of it."""

    def __init__(self, pipe: int, limit: int) -> None:
        self.heard = b""
        self._pipe = pipe
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        os.set_blocking(pipe, False)
        self._loop.add_reader(pipe, self._listen)

    def close(self) -> None:
        """Hear what is still in the pipe, and listen no more."""
        self._listen()
        self._loop.remove_reader(self._pipe)

    def _listen(self) -> None:
        try:
            data = os.read(self._pipe, _PIPE_BYTES)
        except BlockingIOError:
            return
        self.heard = (self.heard + data)[-self._limit :]
        if not data:  # nobody has the other end any more
            self._loop.remove_reader(self._pipe)


# Judging


def _understand(stdout: bytes) -> tuple[str, Verdict | None]:
    """What the child said last that it was doing, and the verdict it came to, if it did."""
    lines = ["", *stdout.decode(errors="replace").splitlines()]
    stage = next((line for line in reversed(lines) if line in STAGES), STAGES[0])
    try:
        return stage, msgspec.json.decode(lines[-1], type=Verdict)
    except msgspec.MsgspecError:
        return stage, None


def _died(status: int, stage: str, stderr: bytes) -> Verdict:
    """What it means that the child ended otherwise than it should."""
    if out_of_memory(stderr):
        return Verdict(failure="memory", reason=f"it ran out of memory while {stage}", hint=MEMORY_HINT)
    if status > 0:
        return Verdict(failure="crashed", reason=f"its self-test exited with {status} while {stage}", hint=_CRASHED)
    number = signal.Signals(-status)
    if number == signal.SIGXCPU:
        return Verdict(failure="hung", reason=f"it used up its processor time while {stage}", hint=_HUNG)
    if number == signal.SIGKILL:
        reason = f"the system killed its self-test while {stage}, most likely for want of memory"
        return Verdict(failure="memory", reason=reason, hint=MEMORY_HINT)
    reason = f"it crashed while {stage}: {number.name} ({signal.strsignal(number)})"
    return Verdict(failure="crashed", reason=reason, hint=_CRASHED)


def _hold(measured: Verdict, manifest: Manifest, allowance: Allowance) -> Verdict:
    """What was measured, held against what is allowed."""
    limits = manifest.limits
    memory = min(allowance.memory, limits.rss_bytes or allowance.memory)
    if measured.rss_bytes > memory:
        reason = f"it took {_mebibytes(measured.rss_bytes)} of memory, and {_mebibytes(memory)} are allowed"
        return replace(measured, failure="memory", reason=reason, hint=MEMORY_HINT)
    return hold_latency(measured, limits)


def _error(manifest: Manifest, verdict: Verdict) -> EdgedError:
    """A verdict as the error of whoever wants to load the model."""
    if verdict.failure == "damaged":
        return BundleError(verdict.reason, hint=verdict.hint)
    reason = verdict.reason
    if verdict.failure in ("crashed", "hung", "memory", "silent"):  # the others name the model
        said = [line for line in verdict.stderr.splitlines() if not line.startswith("INFO:")]
        reason = f"{manifest.name} {manifest.version}: {reason}" + (
            f"; it said: {said[-1][:MAX_QUOTE]}" if said else ""
        )
    return ModelError(reason, hint=verdict.hint, retryable=verdict.failure in ("hindered", "memory"))


_NOT_BEGUN = "its self-test ended before it had begun"
_SCARCE = "free some memory, or end other processes"
_CRASHED = "the model or its backend ends the process that runs it: use another version of the model or the runtime"
_HUNG = "it hangs, or needs more time than limits.seconds in its manifest and this board allow"


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"
