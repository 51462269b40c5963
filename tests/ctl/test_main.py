import socket
from pathlib import Path

import pytest

from edged import __version__
from tests.containers import colours, container


def test_help_shows_every_verb_and_exit_code(edgectl):
    code, output, _ = edgectl("--help")
    assert code == 0
    lines = [" ".join(line.split()) for line in output.splitlines()]
    for beginning in ("status show the state of the daemon", "infer run a model once", "5 no daemon answers"):
        assert any(line.startswith(beginning) for line in lines)


def test_a_verb_has_its_own_help(edgectl):
    code, output, _ = edgectl("watch", "--help")
    assert code == 0
    assert "--count N" in output
    assert "--runtime-dir DIR" in output


def test_version(edgectl):
    assert edgectl("--version") == (0, f"edgectl {__version__}\n", "")


def test_a_verb_that_is_not_there(edgectl):
    code, output, complaints = edgectl("statsu")
    assert (code, output) == (2, "")
    assert complaints.endswith("there is no verb 'statsu': did you mean 'status'?\n")


def test_without_a_verb_one_is_asked_for(edgectl):
    code, output, complaints = edgectl()
    assert (code, output) == (2, "")
    assert complaints.endswith("name a verb, as in `edgectl status`; `edgectl --help` lists them\n")


@pytest.mark.parametrize(
    "line", [[], ["status", "--jsn"], ["status", "now"], ["watch", "--count", "0"], ["--x", "watch"]]
)
def test_a_wrong_command_line(edgectl, line):
    code, output, complaints = edgectl(*line)
    assert (code, output) == (2, "")
    assert "usage: edgectl" in complaints


@pytest.mark.parametrize("line", [["--json", "pipelines"], ["pipelines", "--json"]])
def test_options_may_stand_before_the_verb_or_after_it(edgectl, daemon, line):
    assert edgectl(*line)[1].startswith("[\n  {\n")


def test_the_runtime_directory_on_the_command_line_wins(edgectl, daemon, tmp_path):
    code, _, complaints = edgectl("--runtime-dir", str(tmp_path / "elsewhere"), "status")
    assert code == 5
    assert f"{tmp_path}/elsewhere/edged.sock: No such file or directory" in complaints


def test_the_users_own_daemon_is_found(command, daemon, runtime_dir):
    process = command("metrics", EDGED_RUNTIME_DIR="", XDG_RUNTIME_DIR=str(runtime_dir.parent))
    assert process.communicate(timeout=120) == ("edged_info 1\n", "")


def test_no_daemon(edgectl, runtime_dir):
    assert edgectl("status") == (
        5,
        "",
        f"edgectl: no daemon answers: {runtime_dir}/edged.sock: No such file or directory\n"
        "  start it: sudo systemctl start edged\n"
        "  or say where it runs: edgectl --runtime-dir DIR\n",
    )


def test_what_the_daemon_refuses_is_told_with_the_remedy(edgectl, daemon):
    assert edgectl("reload") == (4, "", "edgectl: the new configuration is wrong\n  edgectl config check\n")


@pytest.mark.parametrize(
    ("answer", "code", "complaint"),
    [
        (b"", 5, "the daemon closed the connection"),
        (b'{"id": 1, "ok"', 5, "the daemon broke off in its answer"),
        (b"HTTP/1.1 400 Bad Request\r\n", 4, "the answer is not JSON"),
    ],
)
def test_something_else_behind_the_socket(command, runtime_dir, answer, code, complaint):
    runtime_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime_dir / "edged.sock"))
        listener.listen()
        process = command("status")
        client, _ = listener.accept()
        client.makefile("rb").readline()
        client.sendall(answer)
        client.shutdown(socket.SHUT_RDWR)
        _, complaints = process.communicate(timeout=120)
    assert process.returncode == code
    assert complaint in complaints


def test_a_reader_that_has_had_enough(command, daemon):
    """As in `edgectl watch | head -1`: no complaint, no traceback."""
    daemon.records = daemon.records * 1000
    process = command("watch")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def test_output_that_cannot_be_written(command):
    with Path("/dev/full").open("w") as full:
        process = command("version", stdout=full)
        _, complaints = process.communicate(timeout=120)
    assert (process.returncode, complaints) == (4, "edgectl: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("verb", ["status", "update-model"])
def test_a_device_that_cannot_be_reached_for_want_of_ssh(edgectl, tmp_path, verb):
    bundle = tmp_path / "colours-2.0.edgm"
    bundle.write_bytes(container(colours()))
    words = [verb, bundle] if verb == "update-model" else [verb]
    code, output, complaints = edgectl("--ssh", "no-such-ssh", "--host", "pi", *words)
    assert code == 5
    assert "no-such-ssh cannot be run: No such file or directory" in output + complaints
    assert "install OpenSSH's client" in output + complaints


@pytest.mark.parametrize(
    "host", ["", "-oProxyCommand=reboot", "pi@", "@board", "pi@-v", "two words", "tab\t", "bell\a"]
)
@pytest.mark.parametrize("verb", ["status", "update-model"])
def test_a_malformed_host_is_a_wrong_command_line(edgectl, host, verb):
    words = ["x.edgm"] if verb == "update-model" else []
    code, output, complaints = edgectl(f"--host={host}", verb, *words)
    assert (code, output) == (2, "")
    assert f"--host: {host!r} is no [USER@]HOST" in complaints


@pytest.mark.parametrize("ssh", ["", "ssh 'unclosed"])
def test_a_malformed_ssh_command_is_a_wrong_command_line(edgectl, ssh):
    code, output, complaints = edgectl("--ssh", ssh, "--host", "pi", "status")
    assert (code, output) == (2, "")
    assert "is no command" in complaints


def test_an_abbreviated_host_is_a_wrong_command_line(edgectl):
    """An accepted abbreviation would be passed on to the device as well."""
    assert edgectl("--hos", "pi", "status")[0] == 2
