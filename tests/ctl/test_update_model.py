"""Bringing a model to the board one sits at."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.receiving import Board, bundle
from tests.web_server import WebServer

BUNDLE = bundle()


@pytest.fixture
def board(tmp_path):
    with Board(tmp_path) as running:
        yield running


@pytest.fixture
def runtime_dir(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "colours-2.0.edgm"
    path.write_bytes(BUNDLE)
    return str(path)


def texts(output):
    """The lines without their times."""
    return [line.split(" s  ")[-1] for line in output.splitlines()]


def test_a_file(edgectl, board, file):
    code, output, complaints = edgectl("update-model", file, "--allow-downgrade")
    assert (code, complaints) == (0, "")
    assert texts(output) == [
        "giving colours 2.0 to the daemon, 202 kB",
        "version 2.0 is signed by nobody",
        "version 2.0 serves",
        "colours: version 2.0 is confirmed; version 2.0 serves",
    ]
    [(installed, options)] = board.updater.installed
    assert installed == BUNDLE
    assert (options.origin, options.allow_downgrade) == (file, True)


def test_what_serves_already(edgectl, board, file):
    edgectl("update-model", file)
    assert edgectl("update-model", file) == (0, "colours 2.0 is what serves already\n", "")


def test_standard_input(runtime_dir, board, file):
    code = "import sys; from edged.ctl.main import main; sys.exit(main())"
    with open(file, "rb") as source:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", code, "--runtime-dir", str(runtime_dir), "update-model", "-"],
            stdin=source,
            capture_output=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert board.updater.installed[0][0] == BUNDLE


def test_a_url_is_left_to_the_daemon(edgectl, board):
    with WebServer(BUNDLE) as server:
        code, output, _ = edgectl("update-model", server.url())
    assert code == 0
    assert texts(output)[0] == "the device fetches it"
    assert texts(output)[-1] == "colours: version 2.0 is confirmed; version 2.0 serves"


@pytest.mark.parametrize(
    ("state", "code"), [("done", 0), ("refused", 6), ("failed", 7), ("rolled_back", 8)], ids=lambda value: str(value)
)
def test_the_exit_code_tells_how_it_ended(edgectl, board, file, state, code):
    board.updater.end = (state, "colours: so it ended", "do this\nor that")
    ended, output, _ = edgectl("update-model", file)
    assert ended == code
    assert output.endswith("colours: so it ended\n  -> do this\n  -> or that\n")


def test_as_json(edgectl, board, file):
    _, output, _ = edgectl("--json", "update-model", file)
    steps = [json.loads(line) for line in output.splitlines()]
    assert [step["id"] for step in steps] == ["update.sending", "update.verified", "update.serving", "end"]
    assert steps[-1] == {
        "id": "end",
        "state": "done",
        "text": "colours: version 2.0 is confirmed; version 2.0 serves",
        "hint": "",
    }


def test_a_bundle_that_is_refused(edgectl, board, tmp_path):
    forged = tmp_path / "forged.edgm"
    forged.write_bytes(bundle(signatures=b"mallory was here"))
    code, output, _ = edgectl("update-model", str(forged))
    assert code == 6
    assert output.endswith("mallory is not an allowed signer\n  -> have it signed by somebody who is\n")


def test_a_bundle_that_is_no_bundle_is_not_sent(edgectl, board, tmp_path):
    broken = tmp_path / "broken.edgm"
    broken.write_bytes(BUNDLE[:-1])
    code, output, complaints = edgectl("update-model", str(broken))
    assert (code, complaints) == (6, "")
    assert "broken.edgm: the container breaks off after" in output
    assert board.parts() == []


def test_a_file_that_is_not_there(edgectl, board, tmp_path):
    code, _, complaints = edgectl("update-model", str(tmp_path / "nothing.edgm"))
    assert code == 4
    assert "nothing.edgm cannot be read: No such file or directory" in complaints


def test_no_daemon(edgectl, file):
    code, _, complaints = edgectl("update-model", file)
    assert code == 5
    assert "no daemon answers" in complaints


def test_whoever_stops_watching_is_told_how_to_look_again(command, edgectl, board, file):
    board.do(board.updater.go.clear)
    process = command("update-model", file)
    while "signed by" not in process.stdout.readline():
        pass
    os.kill(process.pid, signal.SIGINT)
    output, complaints = process.communicate(timeout=120)
    assert (process.returncode, complaints) == (130, "")
    assert texts(output) == ["the update continues; follow with: edgectl job wait 1"]
    board.do(board.updater.go.set)
    code, output, _ = edgectl("job", "wait", "1")
    assert code == 0
    assert texts(output)[-2:] == ["version 2.0 serves", "colours: version 2.0 is confirmed; version 2.0 serves"]


def test_whoever_comes_second_is_told_whose_terms_hold(command, board, file):
    board.do(board.updater.go.clear)
    first = command("update-model", file)
    while "signed by" not in first.stdout.readline():
        pass
    second = command("update-model", file, "--confirm-within", "10m")
    while "on other terms" not in second.stdout.readline():
        pass
    board.do(board.updater.go.set)
    assert [process.wait(120) for process in (first, second)] == [0, 0]
    assert board.updater.installed[0][1].confirm_within == 0


def test_jobs(edgectl, board, file):
    assert edgectl("jobs")[1] == "no updates since the start of the daemon\n"
    edgectl("update-model", file)
    heads, row = edgectl("jobs")[1].splitlines()
    assert heads.split() == ["JOB", "BEGAN", "MODEL", "STATE", "FROM"]
    assert row.startswith("1 ")
    assert f"colours 2.0  done   {file}  colours: version 2.0 is confirmed" in row
    assert edgectl("job", "show", "1")[1].splitlines()[0] == f"colours 2.0 from {file}: done"
    code, _, complaints = edgectl("job", "wait", "7")
    assert (code, complaints.splitlines()[0]) == (4, "edgectl: there is no job '7' since the start of the daemon")


@pytest.mark.parametrize(
    ("words", "asked", "told"),
    [
        (["rollback", "colours"], ("rollback", "colours", ""), "colours is rolled back; 1.0 serves"),
        (["rollback", "colours", "--to", "factory"], ("rollback", "colours", "factory"), "colours is rolled back"),
        (["confirm", "colours"], ("confirm", "colours"), "colours is confirmed; 1.0 serves"),
        (["pin", "colours"], ("pin", "colours", True), "colours is pinned; 1.0 serves"),
        (["pin", "colours", "--off"], ("pin", "colours", False), "colours was not pinned; 1.0 serves"),
        (["forget", "colours", "abc"], ("forget", "colours", "abc"), "colours accepts the version abc again; "),
    ],
    ids=str,
)
def test_what_an_operator_decides(edgectl, board, words, asked, told):
    code, output, _ = edgectl(*words)
    assert code == 0
    assert output.startswith(told)
    assert board.updater.asked == [asked]


def test_what_cannot_be_gone_back_to(edgectl, board):
    assert edgectl("rollback", "colours", "--to", "9.9") == (
        4,
        "",
        "edgectl: colours has no confirmed version '9.9' on this board\n  there are: factory, 1.0\n",
    )


@pytest.mark.parametrize("time", ["", "soon", "-5m", "5 m", "1w", "31d"])
def test_a_time_that_is_none(edgectl, file, time):
    assert edgectl("update-model", file, f"--confirm-within={time}")[0] == 2
