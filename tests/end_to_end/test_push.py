"""Uploads over a real sshd and a breaking link."""

import json
import random
import re
import subprocess
import sys
import time

import pytest

from edged.models.store import FACTORY
from tests.containers import container, entry
from tests.edged_process import Edged
from tests.flaky_proxy import FlakyProxy
from tests.receiving import Board, bundle, names
from tests.sshd import Sshd

BUNDLE = bundle(size=500_000)


@pytest.fixture
def board(tmp_path):
    with Board(tmp_path / "board") as running:
        yield running


@pytest.fixture
def sshd(tmp_path, board):
    with Sshd(tmp_path / "sshd", board.runtime_dir) as running:
        yield running


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "colours-2.0.edgm"
    path.write_bytes(BUNDLE)
    return path


def start(sshd, *words, port=None, key=None, host=None, first="pass"):
    """Start edgectl; the statement `first` is executed before."""
    code = f"{first}; import sys; from edged.ctl.main import main; sys.exit(main())"
    to = ["--ssh", sshd.ssh(port or sshd.port, key=key), "--host", host or sshd.host]
    return subprocess.Popen(
        [sys.executable, "-c", code, *to, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    output, complaints = process.communicate(timeout=100)
    return process.returncode, output, complaints


def push(sshd, *words, **more):
    return finish(start(sshd, "update-model", *words, **more))


def test_a_bundle_is_brought_and_followed_to_its_end(board, sshd, file):
    code, output, complaints = push(sshd, file, "--confirm-within", "10m")
    assert (code, complaints) == (0, "")
    lines = output.splitlines()
    assert [line.split(" s  ")[1] for line in lines[:-1]] == [
        f"once it serves, confirm it within 10 min 0 s: edgectl --host {sshd.host} confirm MODEL",
        f"sending colours 2.0 to {sshd.host}: 502 kB",
        "the whole file is on the device",
        "version 2.0 is signed by nobody",
        "version 2.0 serves",
    ]
    assert lines[-1] == "colours: version 2.0 is confirmed; version 2.0 serves"
    [(installed, options)] = board.updater.installed
    assert installed == BUNDLE
    assert options.confirm_within == 600
    assert options.origin == f"{sshd.user}, over SSH from 127.0.0.1"


def test_the_daemon_that_is_named_gets_it(board, sshd, file, tmp_path):
    with Board(tmp_path / "second") as second:
        named = ["--runtime-dir", second.runtime_dir]
        code, output, _ = push(sshd, file, *named, "--confirm-within", "10m")
        assert code == 0
        confirm = f"edgectl --host {sshd.host} --runtime-dir {second.runtime_dir} confirm MODEL"
        assert output.splitlines()[0].endswith(confirm)
        code, output, _ = push(sshd, file, *named, key=sshd.forced_key)
        assert (code, len(second.updater.installed)) == (6, 1)
        assert "this key has a daemon of its own, and not that of --runtime-dir" in output
    assert board.updater.installed == []


def test_what_is_there_already_is_done_at_once(board, sshd, file):
    push(sshd, file)
    with FlakyProxy(sshd.port) as link:
        code, output, _ = push(sshd, file, port=link.port)
    assert (code, output) == (0, f"colours 2.0 is on {sshd.host} already\n")
    assert link.up < 10_000


def test_what_may_not_come_in_is_told_before_it_is_sent(board, sshd, file):
    board.updater.serve("a" * 64, "3.0")
    with FlakyProxy(sshd.port) as link:
        code, output, _ = push(sshd, file, port=link.port)
    assert (code, output.splitlines()[0]) == (
        6,
        f"{sshd.host} refuses the version: colours 2.0 is older than 3.0, and versions only go up",
    )
    assert link.up < 10_000
    assert push(sshd, file, "--allow-downgrade")[0] == 0


def test_a_link_that_breaks_all_the_time(board, sshd, file):
    lengths = random.Random(1)
    with FlakyProxy(sshd.port, cut_up_after=iter(lambda: lengths.randint(60_000, 120_000), 0)) as link:
        code, output, complaints = push(sshd, file, port=link.port)
    assert (code, complaints) == (0, "")
    [(installed, _)] = board.updater.installed
    assert installed == BUNDLE
    assert link.cuts >= 5
    assert link.up < 1.5 * len(BUNDLE)
    assert "trying again in" in output


def test_a_key_for_the_forced_command_alone(board, sshd, file):
    code, output, _ = push(sshd, file, key=sshd.forced_key)
    assert code == 0
    assert output.endswith("version 2.0 serves\n")


@pytest.mark.parametrize("words", [["status"], ["rollback", "colours"], ["rollback", "receive"], ["job", "wait", "1"]])
def test_a_key_for_the_forced_command_alone_can_do_nothing_else(board, sshd, words):
    code, output, complaints = finish(start(sshd, *words, key=sshd.forced_key))
    assert (code, output) == (4, "")
    assert "this key may only bring bundles, with update-model; nothing else was done" in complaints
    assert f"{sshd.host} did not run `edgectl {words[0]}`" in complaints
    assert board.updater.asked == []


def test_another_programs_answer_is_not_taken_for_edgectls(board, sshd):
    code, output, complaints = finish(start(sshd, "rollback", "colours", key=sshd.greeting_key))
    assert (code, output) == (4, "")
    assert "did not run `edgectl rollback`; what ran instead ended (0) and said: Welcome to board!" in complaints
    assert board.updater.asked == []


def test_an_older_version_needs_the_key_that_allows_it(board, sshd, file):
    with FlakyProxy(sshd.port) as link:
        code, output, _ = push(sshd, file, "--allow-downgrade", key=sshd.forced_key, port=link.port)
    assert code == 6
    assert "this key may not bring an older version with --allow-downgrade" in output
    assert "edgectl receive --stdio --allow-downgrade" in output
    assert link.up < 10_000  # the refusal came before the upload
    assert board.updater.installed == []
    code, _, _ = push(sshd, file, "--allow-downgrade", key=sshd.downgrading_key)
    assert (code, board.updater.installed[0][1].allow_downgrade) == (0, True)


def test_a_key_that_may_do_all_may_bring_an_older_version(board, sshd, file):
    assert push(sshd, file, "--allow-downgrade")[0] == 0
    assert board.updater.installed[0][1].allow_downgrade


def test_every_verb_of_a_host_that_cannot_be_reached_ends_with_5(board, sshd, file):
    with FlakyProxy(sshd.port) as link:
        link.refuse()
        code, _, complaints = finish(start(sshd, "status", port=link.port))
        assert (code, link.connections > 0) == (5, True)
        assert f"{sshd.host}: the connection failed or broke" in complaints
        assert push(sshd, file, "--give-up-after", "0s", port=link.port)[0] == 5


def test_a_watch_whose_connection_breaks_ends_with_5(board, sshd, file):
    board.do(board.updater.go.clear)
    with FlakyProxy(sshd.port) as link:
        pushing = start(sshd, "update-model", file)
        while "signed by" not in pushing.stdout.readline():
            pass
        watching = start(sshd, "job", "wait", "1", port=link.port)
        while "signed by" not in watching.stdout.readline():
            pass
        link.drop()
        code, _, complaints = finish(watching)
    board.do(board.updater.go.set)
    assert code == 5
    assert f"{sshd.host}: the connection failed or broke" in complaints
    assert finish(pushing)[0] == 0


def test_a_link_that_is_cut_every_20_to_40_kilobytes(board, sshd, file):
    lengths = random.Random(1)
    with FlakyProxy(sshd.port, cut_up_after=iter(lambda: lengths.randint(20_000, 40_000), 0)) as link:
        code, output, complaints = push(sshd, file, port=link.port)
    assert (code, complaints) == (0, "")
    assert board.updater.installed[0][0] == BUNDLE
    assert link.cuts >= 13
    assert link.up < 2 * len(BUNDLE)
    pauses = [float(pause) for pause in re.findall(r"trying again in ([0-9.]+) s", output)]
    assert len(pauses) >= 13
    assert max(pauses[5:]) < 2  # after progress the pause is short, regardless of the number of cuts


def test_what_is_acknowledged_outlives_the_daemon(tmp_path, file):
    """No file was closed in an orderly way: only the record beside the file counts."""
    folder = tmp_path / "board"
    with Sshd(tmp_path / "sshd", folder / "run") as sshd, Board(folder) as board:
        with FlakyProxy(sshd.port, cut_up_after=[150_000]) as link:
            process = start(sshd, "update-model", file, port=link.port)
            while "trying again" not in process.stdout.readline():
                pass
            link.refuse()
            process.kill()
            process.communicate()
        record = json.loads((board.incoming / names(BUNDLE)["id"] / "transfer.json").read_text())
    assert record["durable"] >= 64 << 10


def test_a_direction_that_is_dead_is_told_while_it_lasts(board, sshd, file):
    soon = "import edged.ctl.ssh; edged.ctl.ssh.QUIET_SECONDS = 0.2"
    with FlakyProxy(sshd.port, rate=200_000) as link:
        process = start(sshd, "update-model", file, port=link.port, first=soon)
        wait_for(board, 100_000)
        link.blackhole()
        until(process, f"no answer from {sshd.host} for ")
        link.blackhole(False)
        until(process, f"{sshd.host} answers again, after ")
        code, _, complaints = finish(process)
    assert (code, complaints) == (0, "")


def until(process, text):
    """Read the output up to a line with this text."""
    line = "before the first"
    while text not in line:
        line = process.stdout.readline()
        assert line, f"it ended, and never said {text!r}"


def test_two_pushes_at_once(board, sshd, file):
    lengths = random.Random(2)
    cuts = iter(lambda: lengths.randint(60_000, 200_000), 0)
    with FlakyProxy(sshd.port, cut_up_after=cuts) as link:
        both = [start(sshd, "update-model", file, port=port) for port in (link.port, sshd.port)]
        ends = [finish(process) for process in both]
    assert [code for code, _, _ in ends] == [0, 0]
    assert [installed for installed, _ in board.updater.installed] == [BUNDLE]


def test_several_boards_in_one_call(board, sshd, file):
    nobody = "nobody-of-that-name@127.0.0.1"
    code, output, _ = push(sshd, file, "--host", nobody)
    assert code == 4
    table = output.splitlines()[-3:]
    assert table[0].split() == ["BOARD", "OUTCOME"]
    ends = {line.split()[0]: line.split()[1] for line in table[1:]}
    assert ends == {sshd.host: "done", nobody: "unreachable"}


def test_the_end_is_in_the_exit_code_and_in_json(board, sshd, file):
    board.updater.end = ("rolled_back", "colours: it misbehaved; version 1.0 serves", "look at its manifest")
    code, output, _ = push(sshd, file, "--json")
    steps = [json.loads(line) for line in output.splitlines()]
    assert code == 8
    assert [step["id"] for step in steps] == ["push.sending", "push.sent", "update.verified", "update.serving", "end"]
    assert steps[-1]["state"] == "rolled_back"


def test_a_bundle_that_is_refused(board, sshd, tmp_path):
    forged = tmp_path / "forged.edgm"
    forged.write_bytes(bundle(signatures=b"mallory was here"))
    code, output, _ = push(sshd, forged)
    assert code == 6
    assert output.endswith(
        f"{sshd.host} refuses the version: mallory is not an allowed signer\n  -> have it signed by somebody who is\n"
    )
    assert board.parts() == []


def test_a_board_that_cannot_be_reached(sshd, file):
    with FlakyProxy(sshd.port) as link:
        link.refuse()
        code, output, _ = push(sshd, file, "--give-up-after", "1s", port=link.port)
    assert code == 5
    assert "given up, as there was no progress for 1 s" in output
    assert "run the command again to continue: received bytes are kept" in output


def test_a_daemon_that_is_not_there_may_be_about_to_start(tmp_path, file):
    with Sshd(tmp_path / "sshd", tmp_path / "nothing") as sshd:
        code, output, _ = push(sshd, file, "--give-up-after", "1s")
    assert code == 5
    assert "no daemon answers" in output


def test_a_daemon_that_begins_anew_on_the_way(tmp_path, file):
    folder = tmp_path / "board"
    with Sshd(tmp_path / "sshd", folder / "run") as sshd, FlakyProxy(sshd.port, rate=400_000) as link:
        with Board(folder) as board:
            process = start(sshd, "update-model", file, port=link.port)
            wait_for(board, 100_000)
        with Board(folder) as board:
            assert board.parts() == [names(BUNDLE)["id"]]
            code, output, _ = finish(process)
            assert code == 0, output
            assert board.updater.installed[0][0] == BUNDLE


def wait_for(board, size):
    """Wait until this many bytes have arrived."""
    part = board.incoming / names(BUNDLE)["id"] / "part"
    while not part.exists() or part.stat().st_size < size:
        time.sleep(0.01)


MOTION = """
[device]
name = "bench"
[sources.wrist]
kind = "synthetic"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10
[pipelines.motion]
source = "wrist"
model = "motion"
sinks = []
"""


def test_the_real_daemon(tmp_path):
    """A factory model under a new number, proven, served, watched and confirmed."""
    factory = FACTORY / "motion" / "1.0.0"
    manifest = json.loads((factory / "manifest.json").read_text())
    contents = {name: (factory / name).read_bytes() for name in sorted(manifest["files"])}
    files = {name: entry(content) for name, content in contents.items()}
    manifest |= {"version": "1.1.0", "probation": {"seconds": 0.5, "windows": 1}, "files": files}
    file = tmp_path / "motion-1.1.0.edgm"
    file.write_bytes(container(manifest, body=b"".join(contents.values())))
    with Edged(tmp_path, MOTION) as edged, Sshd(tmp_path / "sshd", edged.runtime_dir) as sshd:
        edged.wait_for_log("pipeline motion is running")
        code, output, _ = push(sshd, file)
        assert code == 0, output
        assert output.endswith("motion: version 1.1.0 is confirmed; version 1.1.0 serves\n")
        assert push(sshd, file)[1] == f"motion 1.1.0 is on {sshd.host} already\n"


def test_other_verbs_run_on_the_device(board, sshd, file):
    push(sshd, file)
    code, output, _ = finish(start(sshd, "jobs", "--json"))
    assert (code, json.loads(output)[0]["state"]) == (0, "done")
    code, output, _ = finish(start(sshd, "job", "wait", "1"))
    assert (code, output.splitlines()[-1]) == (0, "colours: version 2.0 is confirmed; version 2.0 serves")
