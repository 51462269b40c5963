"""The real daemon, whose control socket many clients hold open."""

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor

from edged.core import protocol
from tests.motion import edgectl


def silent(daemon, data: bytes = b"") -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(daemon.runtime_dir / protocol.SOCKET))
    client.sendall(data)
    return client


def test_an_operator_gets_in_beside_silent_clients_and_watchers(edged):
    daemon = edged()
    with contextlib.ExitStack() as clients:
        for data in [b'{"id": 1, "verb": "watch", "args": {}}\n'] * 16 + [b""] * 16 + [b'{"id"'] * 4:
            clients.enter_context(silent(daemon, data))
        said = edgectl(daemon, "reload")
        assert (said.code, said.output) == (0, "nothing has changed\n")
        assert "wrist" in edgectl(daemon, "status").output


def test_many_who_ask_at_once_are_all_answered(edged):
    daemon = edged()
    with ThreadPoolExecutor(50) as clients:
        answers = list(clients.map(lambda _: daemon.call("status")["device"], range(200)))
    assert len(answers) == 200
