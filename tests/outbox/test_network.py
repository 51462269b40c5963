"""What is known of the network, on loopback and in a network namespace of its own."""

import socket
import subprocess

import pytest

from edged.outbox.network import Network, is_ours, reachable
from tests.broker import free_port


def test_somebody_who_listens_is_reachable_and_nobody_is_not():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert reachable(listener.getsockname(), 1.0)
    assert not reachable(("127.0.0.1", free_port()), 1.0)


def test_an_address_of_this_machine_is_ours_and_another_is_not():
    assert is_ours(("127.0.0.1", 1), socket.AF_INET)
    assert not is_ours(("192.0.2.1", 1), socket.AF_INET)


def test_a_change_is_told_once():
    network = Network()
    network.changed()
    name = f"edged{free_port()}"
    if subprocess.run(["ip", "link", "add", name, "type", "dummy"], capture_output=True).returncode:
        pytest.skip("may not make network interfaces here")
    subprocess.run(["ip", "link", "delete", name], check=True)

    assert network.changed()
    assert not network.changed()
