"""Uploads through a made-up `ssh`, with all kinds of output of a login."""

import json
import signal
import subprocess
import sys

import pytest

from edged.ctl.push import fitting
from tests.receiving import Board, bundle, names

BUNDLE = bundle()
EDGECTL = f'{sys.executable} -c "import sys; from edged.ctl.main import main; sys.exit(main())"'


@pytest.fixture
def board(tmp_path):
    with Board(tmp_path / "board") as running:
        yield running


@pytest.fixture
def receive(board):
    """Return the shell command run by sshd."""
    return f"EDGED_RUNTIME_DIR={board.runtime_dir} {EDGECTL} receive --stdio"


@pytest.fixture
def start(command, tmp_path):
    """Return a function that starts a push to "board" through a shell script as ssh; its $1 is the
    number of the call.
    """
    file = tmp_path / "colours-2.0.edgm"
    file.write_bytes(BUNDLE)

    def start(script, *words):
        ssh = tmp_path / "ssh"
        calls = tmp_path / "calls"
        ssh.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nset -- $(wc -l < {calls})\n{script}\n')
        ssh.chmod(0o755)
        return command("--ssh", f"{ssh} -p 22", "--host", "board", "update-model", str(file), *words)

    return start


@pytest.fixture
def push(start, tmp_path):
    """Return a function that pushes, and returns exit code, output, error output, and the calls of ssh."""

    def push(script, *words):
        process = start(script, *words)
        output, complaints = process.communicate(timeout=120)
        return process.returncode, output, complaints, (tmp_path / "calls").read_text().splitlines()

    return push


def test_what_ssh_is_asked_for(push, board, receive):
    code, _, complaints, [call] = push(receive)
    assert (code, complaints) == (0, "")
    assert call.startswith("-p 22 -T -a -x -oClearAllForwardings=yes ")
    assert call.endswith(" -- board edgectl receive --stdio")
    assert "BatchMode" not in call


def test_a_shell_that_has_its_say_first(push, board, receive):
    code, *_ = push(f'echo "Welcome to board!"; echo "{{}}"; echo; {receive}')
    assert code == 0


def test_only_the_first_connection_may_ask_for_a_password(push, board, receive):
    code, output, _, calls = push(f"[ $1 = 1 ] && {receive} < /dev/null && exit 255; {receive}")
    assert code == 0
    assert "the connection ended" in output
    assert ["BatchMode=yes" in call for call in calls] == [False, True]


@pytest.mark.parametrize(
    ("said", "code", "hint"),
    [
        ("pi@board: Permission denied (publickey).", 255, "ssh-add"),
        ("Host key verification failed.", 255, "connect once by hand"),
        ("ssh: connect to host board port 22: Connection refused", 255, "that sshd runs there"),
        ("ssh: Could not resolve hostname board: Name or service not known", 255, "check the name"),
        ("bash: line 1: edgectl: command not found", 127, "install edged there"),
        ("sh: 1: edgectl: not found", 127, "look: ssh board edgectl receive --stdio"),
        ("edgectl: error: there is no verb 'receive'", 2, "look: ssh board edgectl receive --stdio"),
    ],
)
def test_where_trying_again_does_not_help(push, said, code, hint):
    ended, output, _, calls = push(f'echo "{said}" >&2; exit {code}')
    assert ended == 5
    assert f"board: {said}" in output
    assert hint in output
    assert len(calls) == 1


def test_where_it_may(push, board, receive):
    code, output, _, calls = push(
        f'[ $1 = 1 ] && {{ echo "ssh: connect to host board port 22: Connection timed out" >&2; exit 255; }}; {receive}'
    )
    assert code == 0
    assert "Connection timed out; trying again in" in output
    assert len(calls) == 2


def test_a_board_that_has_answered_before_may_be_restarting(push, board, receive):
    refused = 'echo "ssh: connect to host board port 22: Connection refused" >&2; exit 255'
    code, output, _, calls = push(
        f"[ $1 = 1 ] && {receive} < /dev/null && exit 255; [ $1 = 2 ] && {{ {refused}; }}; {receive}"
    )
    assert code == 0
    assert "Connection refused; trying again in" in output
    assert len(calls) == 3


def test_a_file_that_is_cut_short_while_it_is_sent(push, board, receive, tmp_path):
    code, output, *_ = push(f": > {tmp_path}/colours-2.0.edgm; {receive}")
    assert code == 7
    assert "colours 2.0: the file has become shorter while it is sent" in output


def test_something_else_at_the_far_end(push):
    code, output, *_ = push("yes | head -c 100000")
    assert code == 5
    assert "board sends text, but not the greeting of edged" in output


def test_whoever_stops_watching_is_told_how_to_look_again(start, board, receive):
    board.do(board.updater.go.clear)
    process = start(receive)
    while "signed by" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    output, complaints = process.communicate(timeout=120)
    assert (process.returncode, complaints) == (130, "")
    assert output.endswith("the update continues; follow with: edgectl --host board job wait 1\n")
    board.do(board.updater.go.set)


@pytest.mark.parametrize(
    ("piece", "brought", "next_piece"),
    [
        (64 << 10, 0, 32 << 10),  # no progress: smaller
        (8 << 10, 26_000, 4 << 10),
        (4 << 10, 26_000, 4 << 10),  # some six fit
        (1 << 10, 0, 1 << 10),
        (4 << 10, 64 << 10, 8 << 10),  # many: larger
        (64 << 10, 8 << 20, 64 << 10),
    ],
)
def test_pieces_fit_the_link(piece, brought, next_piece):
    assert fitting(piece, brought) == next_piece


@pytest.mark.parametrize("piece", [0, -1, 1 << 30, "64", 0.5, None])
def test_a_piece_that_is_impossible_is_refused(board, receive, piece):
    ask = {"id": 1, "verb": "receive-open", "args": {**names(BUNDLE), "piece": piece}}
    done = subprocess.run(
        ["sh", "-c", receive], input=json.dumps(ask) + "\n", capture_output=True, text=True, timeout=20
    )
    assert "bytes is impossible" in done.stdout.splitlines()[1]
    assert board.parts() == []


def test_whoever_comes_second_is_told_whose_terms_hold(start, board, receive):
    board.do(board.updater.go.clear)
    first = start(receive)
    while "signed by" not in first.stdout.readline():
        pass
    second = start(receive, "--confirm-within", "10m")
    while "on other terms" not in second.stdout.readline():
        pass
    board.do(board.updater.go.set)
    assert [process.wait(120) for process in (first, second)] == [0, 0]


def test_whoever_missed_the_answer_is_not_told_that_others_terms_hold(start, board, receive):
    board.do(board.updater.go.clear)
    cut_before_the_answer = f"exec 3<&0; {{ {receive} <&3 & }} | sed -u '/\"job\"/Q'; exit 255"
    process = start(f"[ $1 = 1 ] && {{ {cut_before_the_answer}; }}; {receive}", "--confirm-within", "10m")
    told = []
    while not told or "signed by" not in told[-1]:
        told.append(process.stdout.readline())
    board.do(board.updater.go.set)
    assert process.wait(120) == 0
    assert ["trying again" in line for line in told].count(True) == 1
    assert [line for line in told if "terms" in line] == []


@pytest.mark.parametrize(
    "request_line",
    [
        '{"id": 1, "verb": "rollback", "args": {"model": "colours"}}',
        '{"id": 1, "verb": "receive-chunk", "args": {}}',
        '{"id": 1, "verb": "receive-done", "args": {"origin": "the moon"}}',
        '{"id": 1, "verb": "receive-chunk", "args": {"durable": true}}',
        '{"id": 1, "verb": "job-watch", "args": {"timeout": 5}}',
    ],
)
def test_nothing_else_can_be_asked_of_the_far_end(board, receive, request_line):
    done = subprocess.run(["sh", "-c", receive], input=request_line + "\n", capture_output=True, text=True, timeout=120)
    greeting, answer = done.stdout.splitlines()
    assert greeting.startswith('{"id":0,"ok":{"edged":')
    assert "only bundles can be brought here" in answer
    assert board.updater.asked == []
