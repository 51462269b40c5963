import json
import socket
import threading

import pytest

from edged.core.errors import ModelError
from edged.ctl.client import ControlClient, UnreachableError


@pytest.fixture
def ends():
    """Return both ends of a connection: a client, and a daemon played by the test."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ControlClient(ours), theirs


def test_a_call(ends):
    client, daemon = ends
    daemon.sendall(b'{"id":1,"ok":{"state":"running"}}\n')
    assert client.call("status", deep=True) == {"state": "running"}
    assert json.loads(daemon.recv(1000)) == {"id": 1, "verb": "status", "args": {"deep": True}}


def test_a_stream_that_ends(ends):
    client, daemon = ends
    daemon.sendall(b'{"id":1,"event":1}\n{"id":1,"event":2}\n{"id":1,"end":true}\n')
    assert list(client.stream("watch")) == [1, 2]


def test_a_stream_that_breaks(ends):
    client, daemon = ends
    daemon.sendall(b'{"id":1,"event":1}\n{"id":1,"error":{"message":"gone","hint":"","kind":"model"}}\n')
    events = client.stream("watch")
    assert next(events) == 1
    with pytest.raises(ModelError, match="gone"):
        next(events)


def test_a_daemon_that_says_nothing(ends):
    client, _ = ends
    with pytest.raises(UnreachableError, match="does not answer: timed out"):
        client.call("status", timeout=0.02)


def test_an_answer_without_end(ends):
    client, daemon = ends
    flood = threading.Thread(target=lambda: daemon.sendall(b"x" * (16 << 20)))
    flood.start()
    with pytest.raises(UnreachableError, match="broke off in its answer"):
        client.call("status")
    flood.join()
