"""What travels over the control socket: one JSON object a line, in UTF-8.

    request   {"id": 1, "verb": "status", "args": {}}
    reply     {"id": 1, "ok": ...}                                          a call is answered once
              {"id": 1, "error": {"message": ..., "hint": ..., "kind": ...}}
    stream    {"id": 1, "event": ...} any number of times, then {"id": 1, "end": true} or an error

A client has one request under way on a connection. A stream is the last of them: the client ends it by closing. A
request is small and flat: its arguments are plain values or lists of them. One that breaks these rules is answered
with an error whose id is null, and the connection is closed. An error that may pass says `"retryable": true` as well.

Bytes in, plain values out, and only the standard library's json, so that `edgectl` can import this in milliseconds.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NamedTuple

from edged.core.errors import (
    BundleError,
    ConfigError,
    ControlError,
    DeviceError,
    EdgedError,
    ModelError,
    StoreError,
)

SOCKET = "edged.sock"
MAX_REQUEST = 64 << 10
MAX_REPLY = 16 << 20

BEGIN_WITH_MARK = "--begin-with-mark"
MARK = b"edgectl answers\n"
"""The line that an `edgectl` with that first argument begins its answer with: no other program's is taken for it."""

_MAX_ID = 1 << 53  # what every JSON reader holds exactly

_VERB = re.compile(r"[a-z][a-z0-9-]{0,63}")
_KINDS: dict[str, type[EdgedError]] = {
    "error": EdgedError,
    "config": ConfigError,
    "bundle": BundleError,
    "model": ModelError,
    "device": DeviceError,
    "store": StoreError,
    "control": ControlError,
}
_KIND_OF = {error: kind for kind, error in _KINDS.items()}


class Request(NamedTuple):
    """What a client asks: `verb` of the daemon's operations, with `args` by name."""

    id: int
    verb: str
    args: dict[str, Any]


class Reply(NamedTuple):
    """What the daemon says: `kind` is "ok", "event" or "end". An error is raised instead."""

    id: int
    kind: str
    value: Any


def encode_request(request: Request) -> bytes:
    """A request as a line."""
    return _line({"id": request.id, "verb": request.verb, "args": request.args})


def decode_request(line: bytes) -> Request:
    """A line as a request, without believing anything in it.

    Raises:
        ControlError: it is not one, and which rule it breaks.
    """
    if len(line) > MAX_REQUEST:
        raise _refused(f"is longer than {MAX_REQUEST} bytes")
    try:
        fields = _object(line)
        _check_text(fields)
    except ValueError as error:
        raise _refused(str(error)) from None
    if fields.keys() - {"args"} != {"id", "verb"}:
        raise _refused("must have the fields id, verb and perhaps args, and no others")
    number, verb, args = fields["id"], fields["verb"], fields.get("args", {})
    if type(number) is not int or not 0 <= number <= _MAX_ID:
        raise _refused("must have a whole number as its id")
    if not isinstance(verb, str) or not _VERB.fullmatch(verb):
        raise _refused("must have a verb of lower-case letters")
    if not isinstance(args, dict) or not all(_is_flat(value) for value in args.values()):
        raise _refused("must have args that are plain values or lists of plain values")
    return Request(number, verb, args)


def encode_ok(number: int, value: Any) -> bytes:
    """The answer to a call. Raises TypeError if `value` is not made of what JSON has."""
    return _line({"id": number, "ok": value})


def encode_event(number: int, value: Any) -> bytes:
    """One item of a stream. Raises TypeError if `value` is not made of what JSON has."""
    return _line({"id": number, "event": value})


def encode_end(number: int) -> bytes:
    """The end of a stream that ended well."""
    return _line({"id": number, "end": True})


def encode_error(number: int | None, error: EdgedError) -> bytes:
    """A failure, with what to do about it; `number` is None where the request could not be understood."""
    kind = _KIND_OF.get(type(error), "error")
    problem = {"message": error.message, "hint": error.hint, "kind": kind}
    return _line({"id": number, "error": {**problem, "retryable": True} if error.retryable else problem})


def decode_reply(line: bytes) -> Reply:
    """A line as a reply.

    Raises:
        EdgedError: the error the daemon answered with, as it was raised there.
        ControlError: the line is not a reply at all.
    """
    try:
        fields = _object(line)
    except ValueError as error:
        raise _not_a_reply(str(error)) from None
    if isinstance(problem := fields.get("error"), dict):
        raised = _KINDS.get(str(problem.get("kind")), EdgedError)
        retryable = problem.get("retryable") is True
        raise raised(str(problem.get("message")), hint=str(problem.get("hint", "")), retryable=retryable)
    for kind in ("ok", "event", "end"):
        if kind in fields and type(fields.get("id")) is int:
            return Reply(fields["id"], kind, fields[kind])
    raise _not_a_reply("has no id, or neither ok, event, end nor error")


def _line(fields: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(fields, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(fields), separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity; they are null, as in the records that leave the board."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _object(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):  # bad UTF-8 or JSON, a number of thousands of digits, nested without end
        raise ValueError("is not JSON in UTF-8") from None
    if not isinstance(fields, dict):
        raise ValueError("is not a JSON object")
    return fields


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_text(fields: dict[str, Any]) -> None:
    """JSON can spell half a surrogate pair, which nothing can print or log."""
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("has text that is not Unicode") from None


def _is_flat(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return all(item is None or isinstance(item, (bool, int, float, str)) for item in items)


def _refused(rule: str) -> ControlError:
    return ControlError(f"the request {rule}", hint='send one line such as {"id": 1, "verb": "status", "args": {}}')


def _not_a_reply(why: str) -> ControlError:
    return ControlError(f"the answer {why}", hint="check that the socket belongs to edged, and to this version of it")
