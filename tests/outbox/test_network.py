"""Properties of the network, on loopback and in a network namespace."""

import socket
import subprocess
import sys

import pytest

from edged.outbox.network import is_own_address, reachable
from tests.broker import free_port


def test_somebody_who_listens_is_reachable_and_nobody_is_not():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert reachable(listener.getsockname(), 1.0)
    assert not reachable(("127.0.0.1", free_port()), 1.0)


def test_an_address_of_this_machine_is_ours_and_another_is_not():
    assert is_own_address(("127.0.0.1", 1), socket.AF_INET)
    assert not is_own_address(("192.0.2.1", 1), socket.AF_INET)


def test_a_change_is_told_once():
    """The test uses a network namespace, since other tests change the network too."""
    done = subprocess.run(
        ["unshare", "--map-root-user", "--net", sys.executable, "-c", ONE_CHANGE], capture_output=True, text=True
    )
    if "unshare" in done.stderr:
        pytest.skip(f"may not make network namespaces here: {done.stderr}")
    assert (done.stdout, done.stderr) == ("False True False\n", "")


ONE_CHANGE = """
import subprocess
import sys
from edged.outbox.network import Network
network = Network()
before = network.changed()
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
print(before, network.changed(), network.changed())
"""
