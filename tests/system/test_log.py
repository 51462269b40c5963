"""Destinations of log messages, seen from a child process, since each process has one log."""

import json
import subprocess
import sys

import pytest

LOG = """
import logging, sys
from edged.system.log import set_up
set_up("info")
log = logging.getLogger("edged.flow")
log.debug("too quiet")
log.warning("window %d dropped", 7, extra={"pipeline": "door", "step": "mailbox"})
"""


def child(code, **environ):
    result = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=120, check=True
    )
    return result.stderr


def test_a_terminal_shows_the_fields_after_the_message():
    line = child(LOG)
    assert line.endswith(" WARNING edged.flow: window 7 dropped [pipeline door, step mailbox]\n")
    assert line.count("\n") == 1


def test_a_journal_of_somebody_else_is_not_ours():
    """A shell started by systemd passes JOURNAL_STREAM on to its children."""
    assert "window 7 dropped" in child(LOG, JOURNAL_STREAM="1:2")


def test_the_journal_gets_the_fields_as_its_own(tmp_path):
    """The sender of systemd-python is replaced, since the socket has a fixed path that needs root."""
    pytest.importorskip("systemd.journal", reason="systemd-python is not installed")
    code = f"""
import json, os, systemd.journal
def send(text, **fields):
    print(json.dumps([text, {{name: str(value) for name, value in fields.items()}}]))
systemd.journal.send = send
stat = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{{stat.st_dev}}:{{stat.st_ino}}"
{LOG}"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert result.stderr == ""
    text, fields = json.loads(result.stdout)
    assert text == "window 7 dropped"
    assert fields["PIPELINE"] == "door"
    assert fields["STEP"] == "mailbox"
    assert fields["PRIORITY"] == "4"
    assert fields["LOGGER"] == "edged.flow"
    assert fields["SYSLOG_IDENTIFIER"] == "edged"
    assert all(name.isupper() for name in fields)


def test_without_systemd_python_the_journal_gets_plain_lines():
    code = f"""
import os, sys
sys.modules["systemd"] = None
stat = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{{stat.st_dev}}:{{stat.st_ino}}"
{LOG}"""
    assert "window 7 dropped [pipeline door, step mailbox]" in child(code)


SCARCE = """
import logging
from edged.system.log import set_up
set_up("info")
log = logging.getLogger("edged.flow")
for _ in range(1000):
    try:
        {fails}
    except Exception as error:
        try:
            raise KeyError("while it was handled") from error
        except KeyError:
            log.exception("%s cannot be opened", "wrist")
log.error("another error")
"""


@pytest.mark.parametrize(
    ("fails", "line"),
    [
        (
            "raise OSError(24, 'Too many open files')",
            "(allow more open files: LimitNOFILE= (systemctl edit edged), ulimit -n)",
        ),
        (
            'raise RuntimeError("can\'t start new thread")',
            "(allow more threads: TasksMax= (systemctl edit edged), ulimit -u, or free memory)",
        ),
        (
            "raise ExceptionGroup('unhandled errors', [MemoryError()])",
            "(free memory, or allow more: MemoryMax= (systemctl edit edged))",
        ),
    ],
)
def test_a_thousand_errors_for_want_of_something_are_one_line_with_the_remedy(fails, line):
    first, second = child(SCARCE.format(fails=fails)).splitlines()
    assert " ERROR   edged.flow: wrist cannot be opened: " in first
    assert first.endswith(line)
    assert second.endswith("another error")


def test_other_errors_keep_their_traceback():
    said = child(SCARCE.format(fails="raise OSError(5, 'Input/output error')"))
    assert said.count("Traceback") == 2000


def test_after_a_minute_it_is_said_how_many_were_left_out():
    code = SCARCE.format(fails="raise MemoryError").replace('log.error("another error")', LATER)
    assert child(code).splitlines()[-1].endswith("; 999 more such errors were left out")


LATER = """
import time
now = time.monotonic() + 61
time.monotonic = lambda: now
log.error("it goes on", exc_info=MemoryError())
"""


def test_a_thread_that_ends_by_an_error_is_logged():
    code = "import threading\nfrom edged.system.log import set_up\nset_up('info')\n"
    said = child(code + "t = threading.Thread(target=lambda: 1 / 0, name='reader')\nt.start()\nt.join()\n")
    assert " ERROR   edged: the thread reader has ended\nTraceback" in said
