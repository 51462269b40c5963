"""A client of the control socket for tests: verbs by name, answers of any type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edged.core.protocol import Call, Stream
from edged.ctl import client


class PlainClient:
    """A connection for one request."""

    def __init__(self, client: client.ControlClient) -> None:
        self._client = client

    def call(self, verb: str, **args: Any) -> Any:
        """Ask, and return the answer."""
        return self._client.call(Call(verb, object), **args)

    def stream(self, verb: str, **args: Any) -> Iterator[Any]:
        """Ask, and yield the events."""
        return self._client.stream(Stream(verb, object), **args)


def connect(runtime_dir: str) -> PlainClient:
    """Connect to the daemon of a runtime directory."""
    return PlainClient(client.connect(runtime_dir))
