"""Find out whether a delegate works on this board by loading the library in a child process, where crashes do no harm.

A library built against another TFLite crashes with the installed runtime; other libraries abort or block forever. The
way the child ends is the result. The child opens the device, so do not probe while another process uses the device.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from pathlib import Path
from typing import Any, Literal

import msgspec

from edged.backends.delegates import Delegation
from edged.core.acceleration import Rules
from edged.core.errors import DeviceError, EdgedError, ModelError
from edged.system.child import Child, ResourceLimits, spawn

_HEARD_BYTES = 64 << 10
_SECONDS_TO_DIE = 2.0
_REBUILT = "install the version of the library that was built for this TFLite runtime: edgectl version"


class ProbeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Request to the child: options of a DelegatedTflite, and a model's file, or None to load the delegate alone."""

    backend: dict[str, Any]
    file: str | None
    signature: str | None


class ProbeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of the child: the nodes of the model's graph and the delegate's share of the nodes, or the error."""

    nodes: int = 0
    delegated: int = 0
    error: Literal["", "device", "model"] = ""
    message: str = ""
    hint: str = ""


def probe(delegation: Delegation, rules: Rules, file: Path | None = None, signature: str | None = None) -> ProbeAnswer:
    """Load a delegate, and a model on the delegate if `file` is given, in a child process.

    Raises:
        DeviceError: the delegate does not load within `rules.load_seconds`, or ends the child process.
        ModelError: the delegate loads, but the model does not.
    """
    backend = {"delegate": delegation.name, "library": delegation.library, "options": delegation.options}
    request = ProbeRequest(backend=backend, file=None if file is None else str(file.absolute()), signature=signature)
    try:
        child = spawn(__name__, ResourceLimits(memory=rules.memory), msgspec.json.encode(request).decode())
    except OSError as error:
        raise DeviceError(
            f"{delegation.name} cannot be probed: {error.strerror}", hint="free some memory", retryable=True
        ) from error
    status, stdout, stderr = _follow(child, rules.load_seconds)
    if status is None:
        raise DeviceError(
            f"{delegation.name}: loading {delegation.library} was not done in {rules.load_seconds:g} s",
            hint="unplug the device and plug it in again, or allow more time: [accelerators] load_seconds",
        )
    answer = _understand(stdout)
    if status != 0 or answer is None:
        raise DeviceError(
            f"{delegation.name}: {delegation.library} does not fit this runtime: loading it {_ending(status)}"
            f"{_last_line(stderr)}",
            hint=_REBUILT,
        )
    if answer.error:
        raise (DeviceError if answer.error == "device" else ModelError)(answer.message, hint=answer.hint)
    return answer


def _follow(child: Child, seconds: float) -> tuple[int | None, bytes, bytes]:
    """Read a child's output to the end, or kill the child at the end of the time.

    Returns exit status (None after a timeout), standard output and standard error.
    """
    heard = {child.stdout: b"", child.stderr: b""}
    try:
        in_time = _listen(child, heard, seconds)
        child.kill()
        _listen(child, heard, _SECONDS_TO_DIE)
    finally:
        child.kill()
        said = (heard[child.stdout], heard[child.stderr])
        status = child.close()
    return (status if in_time else None, *said)


def _listen(child: Child, heard: dict[int, bytes], seconds: float) -> bool:
    """Read from the child's pipes, so the child never blocks; return whether the child ends within `seconds`."""
    end = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(child.ended, selectors.EVENT_READ)
        for pipe in heard:
            os.set_blocking(pipe, False)
            selector.register(pipe, selectors.EVENT_READ)
        while (left := end - time.monotonic()) > 0:
            ready = [key.fd for key, _ in selector.select(left)]
            for pipe in heard.keys() & {*ready}:
                data = os.read(pipe, _HEARD_BYTES)
                heard[pipe] = (heard[pipe] + data)[-_HEARD_BYTES:]
                if not data:
                    selector.unregister(pipe)
            if ready == [child.ended]:  # the child has ended, and the pipes are empty
                return True
    return False


def _understand(stdout: bytes) -> ProbeAnswer | None:
    """Return the child's answer, None if incomplete or invalid."""
    try:
        return msgspec.json.decode(stdout, type=ProbeAnswer)
    except msgspec.MsgspecError:
        return None


def _ending(status: int) -> str:
    if status >= 0:
        return f"makes the process exit with {status}"
    number = signal.Signals(-status)
    return f"kills the process with {number.name} ({signal.strsignal(number)})"


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    words = "".join(char for char in lines[-1] if char.isprintable())[:200] if lines else ""
    return f'; the last line of output: "{words}"' if words else ""


# In the child


def main(request: str) -> None:
    """Load the delegate, print the answer, and end the process without running a vendor library's exit handlers."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # keep the output of a library apart from the answer
    print(msgspec.json.encode(_load(msgspec.json.decode(request, type=ProbeRequest))).decode(), file=out)
    os._exit(0)


def _load(request: ProbeRequest) -> ProbeAnswer:
    from edged.backends.tflite import DelegatedTflite  # imports numpy, needed by the child only

    backend = msgspec.convert(request.backend, DelegatedTflite)
    try:
        if request.file is None:
            backend.load_delegate()
            return ProbeAnswer()
        info = backend.load(Path(request.file), signature=request.signature).info
    except EdgedError as error:
        kind: Literal["device", "model"] = "device" if isinstance(error, DeviceError) else "model"
        return ProbeAnswer(error=kind, message=error.message, hint=error.hint)
    return ProbeAnswer(nodes=info.nodes, delegated=info.delegated)
