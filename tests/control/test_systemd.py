"""Notifications to systemd: a real notify socket, and the daemon's side in a child process."""

import socket
import subprocess
import sys

import pytest

pytest.importorskip("systemd.daemon", reason="systemd-python is not installed")

HEAD = "import asyncio, logging; from edged.control.systemd import Notifier; notifier = Notifier();"


@pytest.fixture
def manager(tmp_path):
    """The socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(120)
        yield listener


def child(code, **environ):
    """Run code as a service would."""
    return subprocess.run(
        [sys.executable, "-c", HEAD + code], env=environ, capture_output=True, text=True, timeout=120, check=True
    )


def test_a_life(manager):
    child(
        "notifier.ready(); notifier.status('2 pipelines\\nREADY=0'); notifier.reloading(); notifier.stopping()",
        NOTIFY_SOCKET=manager.getsockname(),
    )
    heard = [manager.recv(1000).decode() for _ in range(4)]
    assert heard[:2] == ["READY=1", "STATUS=2 pipelines READY=0"]
    assert heard[2].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert int(heard[2].rpartition("=")[2]) > 0
    assert heard[3] == "STOPPING=1"


def test_the_watchdog_is_fed_only_while_there_is_progress(manager):
    """The third check sees no progress, the fourth sees progress; then the child ends."""
    result = child(
        """
answers = iter(["", "", "pipeline door is stuck", "pipeline door is stuck", ""])
try:
    asyncio.run(notifier.feed_watchdog(lambda: next(answers)))
except RuntimeError:
    notifier.stopping()
""",
        NOTIFY_SOCKET=manager.getsockname(),
        WATCHDOG_USEC="20000",
    )
    assert [manager.recv(100).decode() for _ in range(4)] == ["WATCHDOG=1"] * 3 + ["STOPPING=1"]
    assert result.stderr.count("pipeline door is stuck") == 1


def test_without_a_service_manager_nothing_is_said_and_nothing_imported():
    code = (
        "import sys; notifier.ready(); asyncio.run(notifier.feed_watchdog(lambda: '')); print('systemd' in sys.modules)"
    )
    assert child(code).stdout == "False\n"


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_interval_is_the_managers(environ, interval):
    from edged.control.systemd import Notifier

    assert Notifier(environ).watchdog_interval == interval


def test_a_manager_that_does_not_listen_is_no_reason_to_die(tmp_path):
    assert "systemd does not listen" in child("notifier.ready()", NOTIFY_SOCKET=str(tmp_path / "nobody")).stderr


def test_without_systemd_python_it_says_what_to_install(manager):
    result = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['systemd'] = None;" + HEAD + "notifier.ready()"],
        env={"NOTIFY_SOCKET": manager.getsockname()},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert result.stderr.count("install python3-systemd") == 1
