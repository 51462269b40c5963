"""The real daemon with a control socket held open by many clients."""

import contextlib
import resource
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edged.core import protocol
from tests.broker import free_port
from tests.motion import config, edgectl


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


def test_out_of_descriptors_it_says_so_in_a_line_and_serves_on(edged):
    daemon = edged(config() + f"[metrics]\nport = {(port := free_port())}\n")
    daemon.wait_for_log("pipeline motion is running")  # so that all files are open
    folder = Path(f"/proc/{daemon.process.pid}/fd")
    before = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
    limit = max(int(entry.name) for entry in folder.iterdir()) + 3
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    with contextlib.ExitStack() as clients:
        for _ in range(20):
            clients.enter_context(silent(daemon))
            clients.enter_context(socket.create_connection(("127.0.0.1", port)))
        daemon.wait_for_log("Too many open files (allow more open files: LimitNOFILE= (systemctl edit edged), ulimit")
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, before)
    assert daemon.call("pipelines")[0]["name"] == "motion"
    assert len([line for line in daemon.log if "socket.accept()" in line]) == 1
    assert "Traceback" not in "".join(daemon.log)
