import json
import socket
import threading

import pytest

from edged.core.answers import STATUS_VERSION as STATUS
from edged.core.errors import ControlError, ModelError
from edged.core.protocol import Stream
from edged.ctl.client import ControlClient, UnreachableError

EVENTS = Stream("watch", int)


@pytest.fixture
def ends():
    """Return both ends of a connection: a client, and a daemon played by the test."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ControlClient(ours), theirs


def test_a_call(ends):
    client, daemon = ends
    daemon.sendall(b'{"id":1,"ok":{"version":"1.2","state":"running"}}\n')
    assert client.call(STATUS, deep=True) == {"version": "1.2", "state": "running"}
    assert json.loads(daemon.recv(1000)) == {"id": 1, "verb": "status", "args": {"deep": True}}


def test_a_stream_that_ends(ends):
    client, daemon = ends
    daemon.sendall(b'{"id":1,"event":1}\n{"id":1,"event":2}\n{"id":1,"end":true}\n')
    assert list(client.stream(EVENTS)) == [1, 2]


def test_a_stream_that_breaks(ends):
    client, daemon = ends
    daemon.sendall(b'{"id":1,"event":1}\n{"id":1,"error":{"message":"gone","hint":"","kind":"model"}}\n')
    events = client.stream(EVENTS)
    assert next(events) == 1
    with pytest.raises(ModelError, match="gone"):
        next(events)


def test_a_daemon_that_says_nothing(ends):
    client, _ = ends
    with pytest.raises(UnreachableError, match="does not answer: timed out"):
        client.call(STATUS, timeout=0.02)


def test_an_answer_without_end(ends):
    client, daemon = ends
    flood = threading.Thread(target=lambda: daemon.sendall(b"x" * (16 << 20)))
    flood.start()
    with pytest.raises(UnreachableError, match="broke off in its answer"):
        client.call(STATUS)
    flood.join()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({}, "version is missing"),
        ({"version": 3}, "version is int, not str"),
        ({"version": True}, "version is bool, not str"),
        ([], "the whole is no object"),
        (None, "the whole is no object"),
    ],
)
def test_an_answer_of_another_shape_is_refused_with_its_place(ends, answer, problem):
    client, daemon = ends
    daemon.sendall(json.dumps({"id": 1, "ok": answer}).encode() + b"\n")
    with pytest.raises(ControlError, match=f"the daemon's answer to 'status' cannot be read: {problem}") as caught:
        client.call(STATUS)
    assert "sudo systemctl restart edged" in caught.value.hint


def test_an_event_of_another_shape_ends_the_stream(ends):
    client, daemon = ends
    daemon.sendall(b'{"id":1,"event":1}\n{"id":1,"event":"two"}\n')
    events = client.stream(EVENTS)
    assert next(events) == 1
    with pytest.raises(ControlError, match="'watch' cannot be read: the whole is str, not int"):
        next(events)
