"""Progress of transfers on a terminal: shown there only, and erased by other output."""

import os
import pty
import subprocess
import sys

TELL = """
from edged.ctl.progress import Console, InstallOutcome, Reporter
console = Console(as_json=False)
first, second = (Reporter(console, board) for board in {boards})
first.progress(500_000, 1_000_000)
second.progress(100_000, 1_000_000)
first.step("push.sent", "the whole file is on the device")
first.end(InstallOutcome("done", "it serves", ""))
second.end(InstallOutcome("refused", "it is \\x1b[2Jnot signed", "sign it"))
"""


def on_a_terminal(boards):
    """Return the output, with a line for each erasure of the terminal's last line."""
    ours, theirs = pty.openpty()
    code = TELL.format(boards=boards)
    done = subprocess.run([sys.executable, "-c", code], stdout=theirs, stderr=theirs, timeout=120)
    os.close(theirs)
    assert done.returncode == 0
    return os.read(ours, 10_000).decode().replace("\r\n", "").split("\r\x1b[K")


def without_time(line):
    return line.split(" s  ")[-1]


def test_several_boards():
    assert [without_time(line) for line in on_a_terminal(("pi", "attic"))[1:]] == [
        "pi 50%",
        "pi 50%   attic 10%",
        "pi  the whole file is on the deviceattic 10%",
        "pi: it servesattic 10%",
        "attic: it is �[2Jnot signed",
        "  -> sign it",
    ]


def test_one_board():
    lines = on_a_terminal(("", ""))
    assert lines[1] == "[##########          ]  50% of 1 MB"


def test_a_board_on_probation_is_shown_until_the_next_step():
    code = """
from edged.ctl.progress import Console, Reporter, follow
alive = {"id": "job.alive", "text": "on probation: 5 of 300 s, 7 of 20 windows"}
follow([{"id": "job.alive", "text": ""}, alive, {"id": "job.ended", "state": "done"}], Reporter(Console(as_json=False)))
"""
    ours, theirs = pty.openpty()
    assert subprocess.run([sys.executable, "-c", code], stdout=theirs, stderr=theirs, timeout=120).returncode == 0
    os.close(theirs)
    assert os.read(ours, 10_000).decode() == "\r\x1b[Kon probation: 5 of 300 s, 7 of 20 windows"


def test_none_of_it_where_nobody_watches():
    done = subprocess.run(
        [sys.executable, "-c", TELL.format(boards=("pi", "attic"))], capture_output=True, text=True, timeout=20
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 4
