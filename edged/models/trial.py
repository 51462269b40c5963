"""Trial of a version before service: a child process loads the version as in service, and runs its self-test.

`try_out` is for updates, `prove_apart` for any other model before its first load in this process. Both start the child
(`trial_child`, with limits), read its output, end it, and judge. The child measures; `judge` compares the measurements
with the limits, and interprets a missing result. Events in the child are the version's fault, and a verdict. A failure
to start the child is an error.
"""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from edged.api import Backend, BundleError, EdgedError, ModelError
from edged.core.manifest import Limits, Manifest
from edged.core.verdict import Verdict, hold_latency
from edged.models.bundle import Bundle
from edged.models.selftest import class_path
from edged.models.trial_child import MEMORY_HINT, STAGES, TrialRequest
from edged.system.child import Child, ResourceLimits, out_of_memory, printable, spawn
from edged.system.later import asyncio
from edged.system.memory import available_bytes

MAX_STDOUT_BYTES = 64 << 10
MAX_STDERR_BYTES = 2 << 10
MAX_QUOTE = 200
PROOF_SECONDS = 120.0
"""Time limit of a proof before a load: slow boards need long for the samples of a large model."""

_TIMING_SECONDS = 3.0
_SECONDS_TO_DIE = 5.0
_PIPE_BYTES = 1 << 20
"""Maximum capacity of a pipe, and of a read."""


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of this board for a trial: `seconds` in total, and bytes of `memory`. A manifest may only lower them."""

    seconds: float = 60.0
    memory: int = 512 << 20


class TrialEnding(NamedTuple):
    """End of a child process.

    `status` is the exit status, negative for a signal, None after the time limit. `stdout` and `stderr` are the ends of
    the output.
    """

    status: int | None
    stdout: bytes
    stderr: bytes
    seconds: float


async def try_out(folder: Path, manifest: Manifest, backend: Backend, allowance: Allowance) -> Verdict:
    """Try the bundle in a folder on the backend of the service. On cancellation the child is ended first.

    Raises:
        ModelError: no child could be started; a later retry may succeed.
    """
    return await _try(Bundle(manifest, folder), backend, allowance, timing_seconds=_TIMING_SECONDS)


async def prove_apart(bundle: Bundle, backend: Backend, *, signature: str | None = None) -> Verdict:
    """Load, run and close a model in a child process before this process loads the model; return the verdict.

    The manifest's limits are for updates and do not apply. `signature` replaces the manifest's signature.

    Raises:
        BundleError: the bundle is damaged.
        ModelError: the model does not work, or kills or hangs its process. `retryable` if it may work later.
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


def judge(ending: TrialEnding, manifest: Manifest, allowance: Allowance) -> Verdict:
    """Return the verdict on a version by the end of the child."""
    stage, verdict = _understand(ending.stdout)
    if stage == STAGES[0] and (verdict is None or ending.status != 0):  # the version has not been read yet
        said = " ".join(printable(ending.stderr).splitlines()[-1:])
        verdict = Verdict(failure="hindered", reason=_NOT_BEGUN + (f": {said}" if said else ""), hint=_SCARCE)
    elif ending.status is None:
        reason = f"the self-test did not end within {ending.seconds:.3g} s; stage: {stage}"
        verdict = Verdict(failure="hung", reason=reason, hint=_HUNG)
    elif ending.status != 0:
        verdict = _died(ending.status, stage, ending.stderr)
    elif verdict is None:
        verdict = Verdict(
            failure="silent", reason=f"the self-test ended without a verdict while {stage}", hint=_CRASHED
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


async def _follow(child: Child, seconds: float) -> TrialEnding:
    """Follow a child to the end, which is enforced."""
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
    return TrialEnding(status if in_time else None, said.heard, complained.heard, time.monotonic() - begun)


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    """Return whether the event occurs within `seconds`."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


class _Ear:
    """Reader of a pipe that never lets the writer wait, and keeps the end of the output."""

    def __init__(self, pipe: int, limit: int) -> None:
        self.heard = b""
        self._pipe = pipe
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        os.set_blocking(pipe, False)
        self._loop.add_reader(pipe, self._listen)

    def close(self) -> None:
        """Read the rest of the pipe, and stop."""
        self._listen()
        self._loop.remove_reader(self._pipe)

    def _listen(self) -> None:
        try:
            data = os.read(self._pipe, _PIPE_BYTES)
        except BlockingIOError:
            return
        self.heard = (self.heard + data)[-self._limit :]
        if not data:  # no process has the other end
            self._loop.remove_reader(self._pipe)


# Judging


def _understand(stdout: bytes) -> tuple[str, Verdict | None]:
    """Return the last stage reported by the child, and the verdict, if any."""
    lines = ["", *stdout.decode(errors="replace").splitlines()]
    stage = next((line for line in reversed(lines) if line in STAGES), STAGES[0])
    try:
        return stage, msgspec.json.decode(lines[-1], type=Verdict)
    except msgspec.MsgspecError:
        return stage, None


def _died(status: int, stage: str, stderr: bytes) -> Verdict:
    """Return the verdict on a child that ended abnormally."""
    if out_of_memory(stderr):
        return Verdict(failure="memory", reason=f"the process ran out of memory while {stage}", hint=MEMORY_HINT)
    if status > 0:
        return Verdict(failure="crashed", reason=f"the self-test exited with {status} while {stage}", hint=_CRASHED)
    number = signal.Signals(-status)
    if number == signal.SIGXCPU:
        return Verdict(failure="hung", reason=f"the self-test used up its processor time while {stage}", hint=_HUNG)
    if number == signal.SIGKILL:
        reason = f"the system killed the self-test while {stage}, most likely for lack of memory"
        return Verdict(failure="memory", reason=reason, hint=MEMORY_HINT)
    reason = f"the self-test crashed while {stage}: {number.name} ({signal.strsignal(number)})"
    return Verdict(failure="crashed", reason=reason, hint=_CRASHED)


def _hold(measured: Verdict, manifest: Manifest, allowance: Allowance) -> Verdict:
    """Compare the measurements with the limits."""
    limits = manifest.limits
    memory = min(allowance.memory, limits.rss_bytes or allowance.memory)
    if measured.rss_bytes > memory:
        reason = f"the self-test took {_mebibytes(measured.rss_bytes)} of memory, and {_mebibytes(memory)} are allowed"
        return replace(measured, failure="memory", reason=reason, hint=MEMORY_HINT)
    return hold_latency(measured, limits)


def _error(manifest: Manifest, verdict: Verdict) -> EdgedError:
    """Return a verdict as an error of the load."""
    if verdict.failure == "damaged":
        return BundleError(verdict.reason, hint=verdict.hint)
    reason = verdict.reason
    if verdict.failure in ("crashed", "hung", "memory", "silent"):  # the others name the model
        said = [line for line in verdict.stderr.splitlines() if not line.startswith("INFO:")]
        reason = f"{manifest.name} {manifest.version}: {reason}" + (
            f"; last output: {said[-1][:MAX_QUOTE]}" if said else ""
        )
    return ModelError(reason, hint=verdict.hint, retryable=verdict.failure in ("hindered", "memory"))


_NOT_BEGUN = "the self-test ended before the first stage"
_SCARCE = "free some memory, or end other processes"
_CRASHED = "the model or its backend ends the process that runs it: use another version of the model or the runtime"
_HUNG = "the model hangs, or needs more time than limits.seconds in the manifest and this board allow"


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"
