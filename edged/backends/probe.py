"""Whether a delegate works here, found out where it can do no harm: in a child process that loads it.

A library built against another TFLite crashes with this one; others abort or wait for ever. A child that ends so is
the answer. It opens the device, so it is nothing to do while somebody else has it.
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
    """What to load: the options of a DelegatedTflite, and a model's file, or None for the delegate alone."""

    backend: dict[str, Any]
    file: str | None
    signature: str | None


class ProbeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: how much of the model's graph the delegate took, or the error."""

    nodes: int = 0
    delegated: int = 0
    error: Literal["", "device", "model"] = ""
    message: str = ""
    hint: str = ""


def probe(delegation: Delegation, rules: Rules, file: Path | None = None, signature: str | None = None) -> ProbeAnswer:
    """Load a delegate, and with it a model if there is one, in a child process.

    Raises:
        DeviceError: it does not load, or not in `rules.load_seconds`, or takes its process with it.
        ModelError: it loads, and the model does not.
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
            hint="unplug the device and plug it in again, or give it more time: [accelerators] load_seconds",
        )
    answer = _understand(stdout)
    if status != 0 or answer is None:
        raise DeviceError(
            f"{delegation.name}: {delegation.library} does not fit this runtime: loading it {_ending(status)}"
            f"{_last_words(stderr)}",
            hint=_REBUILT,
        )
    if answer.error:
        raise (DeviceError if answer.error == "device" else ModelError)(answer.message, hint=answer.hint)
    return answer


def _follow(child: Child, seconds: float) -> tuple[int | None, bytes, bytes]:
    """Hear a child to its end, or kill it when the time is over: its status, None if it was, and what it said."""
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
    """Take what comes out of its pipes, so that it never waits for us; whether it ends within so many seconds."""
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
            if ready == [child.ended]:  # it has ended, and nothing is left to be heard
                return True
    return False


def _understand(stdout: bytes) -> ProbeAnswer | None:
    """The answer, if it came to one."""
    try:
        return msgspec.json.decode(stdout, type=ProbeAnswer)
    except msgspec.MsgspecError:
        return None


def _ending(status: int) -> str:
    if status >= 0:
        return f"makes the process exit with {status}"
    number = signal.Signals(-status)
    return f"kills the process with {number.name} ({signal.strsignal(number)})"


def _last_words(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    words = "".join(char for char in lines[-1] if char.isprintable())[:200] if lines else ""
    return f'; it said: "{words}"' if words else ""


# In the child


def main(request: str) -> None:
    """Load it and say so. The process ends here, with none of what a vendor's library would do as it exits."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is not our answer
    print(msgspec.json.encode(_load(msgspec.json.decode(request, type=ProbeRequest))).decode(), file=out)
    os._exit(0)


def _load(request: ProbeRequest) -> ProbeAnswer:
    from edged.backends.tflite import DelegatedTflite  # it takes numpy along, which only the child needs

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
