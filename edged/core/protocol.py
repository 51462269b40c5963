"""The protocol of the control socket: a JSON object a line, in UTF-8.

    request   {"id": 1, "verb": "status", "args": {}}
    reply     {"id": 1, "ok": ...}                                          a call is answered once
              {"id": 1, "error": {"message": ..., "hint": ..., "kind": ...}}
    stream    {"id": 1, "event": ...} any number of times, then {"id": 1, "end": true} or an error

A client has a single request under way on a connection. A stream is the last request: the client ends the stream by
closing. A request is small and flat: arguments are plain values or lists of plain values. The answer to a request that
breaks these rules is an error with the id null, and the connection is closed. A temporary error says
`"retryable": true` as well.

JSON is decoded and checked here alone: by `decode_request` for the daemon, by `decode_reply` and `check` for edgectl.
`edged.core.answers` has the verbs and the types of the answers. Only json and typing of the standard library are
imported, so `edgectl` loads this module in milliseconds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Generic, NamedTuple, NotRequired, TypeVar, get_args, get_origin, is_typeddict

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
"""First line of the answer of an `edgectl` with this first argument, as opposed to the output of other programs."""

_UNION = type(int | None)
_MAX_ID = 1 << 53  # every JSON reader holds integers up to here exactly

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

T = TypeVar("T")

Args = dict[str, object]
"""Arguments of a request, by name: plain values or lists of plain values, otherwise unchecked."""

CallHandler = Callable[[Args], Awaitable[object]]
StreamHandler = Callable[[Args], AsyncGenerator[object, None]]


class Call(Generic[T]):
    """A verb with a single answer, and the type of the answer."""

    def __init__(self, verb: str, answer: type[T]) -> None:
        self.verb = verb
        self.answer = answer

    def by(self, handler: Callable[[Args], Awaitable[T]]) -> tuple[str, CallHandler]:
        """Return the verb with a handler, for a table of handlers."""
        return self.verb, handler


class Stream(Generic[T]):
    """A verb with a stream of events as the answer, and the type of an event."""

    def __init__(self, verb: str, event: type[T]) -> None:
        self.verb = verb
        self.event = event

    def by(self, handler: Callable[[Args], AsyncGenerator[T, None]]) -> tuple[str, StreamHandler]:
        """Return the verb with a handler, for a table of handlers."""
        return self.verb, handler


class Request(NamedTuple):
    """A request for a verb of the daemon, with `args` by name."""

    id: int
    verb: str
    args: Args


class Reply(NamedTuple):
    """A reply of the daemon: `kind` is "ok", "event" or "end". An error is raised instead."""

    id: int
    kind: str
    value: object


def encode_request(request: Request) -> bytes:
    """Return a request as a line."""
    return _line({"id": request.id, "verb": request.verb, "args": request.args})


def decode_request(line: bytes) -> Request:
    """Return the request in a line from an untrusted client.

    Raises:
        ControlError: the line is no request; the message names the broken rule.
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
        raise _refused("must have a whole number as the id")
    if not isinstance(verb, str) or not _VERB.fullmatch(verb):
        raise _refused("must have a verb of lower-case letters")
    if not isinstance(args, dict) or not all(_is_flat(value) for value in args.values()):
        raise _refused("must have plain values or lists of plain values as args")
    return Request(number, verb, args)


def encode_ok(number: int, value: object) -> bytes:
    """Return the answer to a call as a line. Raises TypeError for values unknown to JSON."""
    return _line({"id": number, "ok": value})


def encode_event(number: int, value: object) -> bytes:
    """Return an event of a stream as a line. Raises TypeError for values unknown to JSON."""
    return _line({"id": number, "event": value})


def encode_end(number: int) -> bytes:
    """Return the end of a stream without error as a line."""
    return _line({"id": number, "end": True})


def encode_error(number: int | None, error: EdgedError) -> bytes:
    """Return an error as a line; `number` is None if the request has no valid id."""
    kind = _KIND_OF.get(type(error), "error")
    problem: dict[str, object] = {"message": error.message, "hint": error.hint, "kind": kind}
    return _line({"id": number, "error": {**problem, "retryable": True} if error.retryable else problem})


def decode_reply(line: bytes) -> Reply:
    """Return the reply in a line.

    Raises:
        EdgedError: the error of the daemon, with the original class.
        ControlError: the line is no reply.
    """
    try:
        fields = _object(line)
    except ValueError as error:
        raise _not_a_reply(str(error)) from None
    if isinstance(problem := fields.get("error"), dict):
        raised = _KINDS.get(str(problem.get("kind")), EdgedError)
        retryable = problem.get("retryable") is True
        raise raised(str(problem.get("message")), hint=str(problem.get("hint", "")), retryable=retryable)
    number = fields.get("id")
    for kind in ("ok", "event", "end"):
        if kind in fields and type(number) is int:
            return Reply(number, kind, fields[kind])
    raise _not_a_reply("has no id, or neither ok, event, end nor error")


def check(value: object, kind: type[T], verb: str) -> T:
    """Return a decoded answer to `verb` as a value of the type `kind`. Keys unknown to the type are kept.

    Raises:
        ControlError: the value is of another type, for example from an older daemon.
    """
    if problem := _misfit(value, kind, ""):
        raise ControlError(
            f"the daemon's answer to {verb!r} cannot be read: {problem}",
            hint="restart the daemon, to run the version of edgectl: sudo systemctl restart edged",
        )
    read: T = value  # type: ignore[assignment]
    return read


def _misfit(value: object, kind: Any, place: str) -> str:
    """Return the place and the nature of the first misfit of a value and a type; "" for a fit.

    The type is made of TypedDict, list, dict, unions and plain types.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin is NotRequired:
        return _misfit(value, args[0], place)
    if origin is _UNION:
        problems = [_misfit(value, each, place) for each in args]
        return "" if "" in problems else problems[0]
    if is_typeddict(kind):
        if not isinstance(value, dict):
            return f"{place or 'the whole'} is no object"
        for name in kind.__required_keys__:
            if name not in value:
                return f"{_inside(place, name)} is missing"
        known = kind.__annotations__
        inner = ((known[name], _inside(place, name), each) for name, each in value.items() if name in known)
    elif origin is list:
        if not isinstance(value, list):
            return f"{place or 'the whole'} is no list"
        inner = ((args[0], f"{place}[{index}]", each) for index, each in enumerate(value))
    elif origin is dict:
        if not isinstance(value, dict):
            return f"{place or 'the whole'} is no object"
        inner = ((args[1], _inside(place, name), each) for name, each in value.items())
    else:
        return "" if _is_a(value, kind) else f"{place or 'the whole'} is {type(value).__name__}, not {kind.__name__}"
    return next((problem for kind, place, each in inner if (problem := _misfit(each, kind, place))), "")


def _inside(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _is_a(value: object, kind: type) -> bool:
    if isinstance(value, bool):  # a bool is an int in Python
        return kind in (bool, object)
    return isinstance(value, (int, float) if kind is float else kind)


def _line(fields: dict[str, object]) -> bytes:
    try:
        text = json.dumps(fields, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(fields), separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def _finite(value: object) -> object:
    """Replace NaN and infinity by null, as in MQTT records: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _object(line: bytes) -> dict[str, object]:
    try:
        fields: Any = json.loads(line.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):  # bad UTF-8 or JSON, a number of thousands of digits, nested without end
        raise ValueError("is not JSON in UTF-8") from None
    if not isinstance(fields, dict):
        raise ValueError("is not a JSON object")
    return fields


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_text(fields: dict[str, object]) -> None:
    """Refuse half a surrogate pair: valid in JSON, but impossible to print or to log."""
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("has text outside Unicode") from None


def _is_flat(value: object) -> bool:
    items = value if isinstance(value, list) else [value]
    return all(item is None or isinstance(item, (bool, int, float, str)) for item in items)


def _refused(rule: str) -> ControlError:
    return ControlError(f"the request {rule}", hint='send one line such as {"id": 1, "verb": "status", "args": {}}')


def _not_a_reply(why: str) -> ControlError:
    return ControlError(f"the answer {why}", hint="check the owner of the socket: edged, in the version of edgectl")
