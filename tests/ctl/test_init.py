"""`edgectl init`: a checked configuration from options, from answers on a terminal, and from the environment."""

import io
import json
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edged.ctl import exit_codes as exits
from edged.ctl import init
from edged.ctl.init import serial_ports
from edged.ctl.main import main
from edged.models.store import FACTORY
from tests.bundles import DATA, write_bundle

PORT = "/dev/null"
"""An existing device, which is never opened."""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder, on a machine without ports and brokers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr(init, "serial_ports", list)
    monkeypatch.setattr(init, "_local_broker", lambda: "")
    return tmp_path


@pytest.fixture
def made(capsys):
    """Return a function that runs init, and returns the written configuration and the JSON output."""

    def made(*args):
        code = main(["init", "--json", "--state-dir", ".", *map(str, args)])
        captured = capsys.readouterr()
        assert code == exits.DONE, captured
        told = json.loads(captured.out)
        return tomllib.loads(Path(told["file"]).read_text()), told

    return made


def refusal(capsys, *args):
    assert main(["init", *map(str, args)]) == exits.FAILED
    assert not Path("edged.toml").exists()
    return capsys.readouterr().err


def test_everything_by_options(made):
    config, told = made(
        *("--model", "motion", "--device", PORT, "--baud", 9600, "--columns", "n,ax,ay,az,gx,gy,gz"),
        *("--broker", "mqtts://board@broker.local:8884", "--password-file", "mqtt-password", "--name", "desk"),
    )
    assert config == {
        "device": {"name": "desk"},
        "mqtt": {
            "host": "broker.local",
            "port": 8884,
            "tls": True,
            "username": "board",
            "password_file": "mqtt-password",
        },
        "sources": {
            "sensor": {
                "kind": "serial",
                "port": PORT,
                "baud": 9600,
                "columns": ["n", "ax", "ay", "az", "gx", "gy", "gz"],
                "channels": ["ax", "ay", "az", "gx", "gy", "gz"],
                "rate": 10.0,
            }
        },
        "pipelines": {"motion": {"source": "sensor", "model": "motion"}},
    }
    assert told["valid"]
    assert told["next"][0] == "edged --config edged.toml --runtime-dir run --state-dir state"
    assert told["next"][-1].startswith("mosquitto_sub -h broker.local -p 8884 --tls-use-os-certs -u board ")


def test_everything_by_what_is_here(made, monkeypatch):
    write_bundle(Path("colours"))
    monkeypatch.setattr(init, "serial_ports", lambda: [PORT, "/dev/zero"])
    monkeypatch.setattr(init, "_local_broker", lambda: "127.0.0.1")
    config, _ = made()
    assert config["device"]["name"] == init.host_name()
    assert config["mqtt"] == {"host": "127.0.0.1"}
    assert config["sources"]["sensor"]["port"] == PORT
    assert config["models"] == {"colours": {"path": "colours"}}
    assert config["pipelines"] == {"colours": {"source": "sensor", "model": "colours"}}


def test_nothing_here_makes_samples_up_for_a_factory_model(made):
    config, told = made()
    assert config["sources"]["sensor"]["kind"] == "synthetic"
    assert config["pipelines"] == {"motion": {"source": "sensor", "model": "motion"}}
    assert "mqtt" not in config
    assert told["warnings"] == []


def test_a_recording_is_replayed(made, tmp_path):
    shutil.copy(Path(__file__).parents[2] / "demo/recording.csv", "walk.csv")
    config, _ = made("--device", "walk.csv", "-o", tmp_path / "replay.toml")
    assert config["sources"]["sensor"]["kind"] == "replay"
    assert config["sources"]["sensor"]["path"] == "walk.csv"


def test_lines_of_another_form(made):
    words = ("--columns", "n,ax,ay,az,gx,gy,gz", "--separator", ";", "--prefix", "acc:", "--sequence", "n")
    config, _ = made("--model", "motion", "--device", PORT, *words)
    source = config["sources"]["sensor"]
    assert (source["separator"], source["prefix"], source["sequence"]) == (";", "acc:", "n")


def test_a_link_to_a_port_may_be_relative(made):
    Path("wrist").symlink_to(PORT)
    config, _ = made("--device", "wrist")
    assert config["sources"]["sensor"]["port"] == str(Path("wrist").absolute())


def test_a_model_elsewhere_is_named_by_its_whole_path(made):
    Path("desk").mkdir()
    config, _ = made("--model", FACTORY / "motion/1.0.0", "-o", "desk/edged.toml")
    assert config["models"] == {"motion": {"path": str((FACTORY / "motion/1.0.0").resolve())}}


def test_in_the_folder_of_the_service_its_commands_come_next():
    source = {"kind": "serial"}
    steps = [*init._next_steps(Path("/etc/edged/conf.d/x.toml"), "desk", {}, source)]
    assert steps == ["sudo edgectl devices allow --restart", "sudo systemctl reload edged", "edgectl status"]


def test_what_does_not_pass_the_check_is_not_written(capsys):
    assert main(["init", "--model", "motion", "--device", PORT, "--columns", "a,b"]) == exits.BAD
    told = capsys.readouterr().out
    assert "edged.toml: sources.sensor\n    found    'ax' is not in columns\n" in told
    assert list(Path().iterdir()) == []


def test_a_file_that_is_there_is_kept_unless_forced(made, capsys):
    made("--name", "one")
    assert main(["init", "--name", "two"]) == exits.FAILED
    assert "overwrite the file with --force" in capsys.readouterr().err
    assert made("--name", "two", "--force")[0]["device"] == {"name": "two"}


def test_a_link_is_replaced_by_a_file_whose_paths_begin_in_its_own_folder(made, here):
    (here / "elsewhere").mkdir()
    write_bundle(here / "elsewhere" / "model")
    (here / "edged.toml").symlink_to("elsewhere/edged.toml")
    config, _ = made("--model", "elsewhere/model", "--force")
    assert [model["path"] for model in config["models"].values()] == ["elsewhere/model"]


def test_a_broker_with_tls_is_listened_to_with_tls(made):
    _, told = made("--broker", "mqtts://host", "--name", "desk")
    assert told["next"][-1] == "mosquitto_sub -h host -p 8883 --tls-use-os-certs -v -t 'edged/desk/#'"


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--model", "nothing"], "no model 'nothing' is here"),
        (["--model", DATA / "float.tflite"], "edgectl model draft"),
        (["--model", "digits"], "takes samples of shape [8, 8]; synthetic sources send rows of channels"),
        (["--source", "serial"], "'' is no serial port"),
        (["--device", "ttyUSB0"], "'ttyUSB0' is no serial port"),
        (["--device", "none.csv"], "'none.csv' is no recording"),
        (["--device", "/tmp"], "'/tmp' is no serial port"),
        (["--source", "synthetic", "--device", PORT], "--device has no effect on a synthetic source"),
        (["--source", "synthetic", "--baud", 9600], "--baud has no effect on a synthetic source"),
        (["--broker", "a b"], "host is 'a b'"),
        (["--broker", "http://host"], "is no broker"),
        (["--broker", "host:99999"], "is no broker"),
        (["--broker", "host:0"], "is no broker"),
        (["--broker", "ho\nst"], "is no broker"),
        (["--broker", "us/er@host"], "'us/er@host' goes on after host and port"),
        (["--broker", "user#1@host"], "in a user name write %2F for /, %3F for ? and %23 for #"),
        (["--broker", "mqtts://host?x"], "goes on after host and port"),
        (["--broker", "user@host", "--password-file", "\udcff"], "a path is not UTF-8 text"),
        (["--device", "/dev/\udcff"], "a path is not UTF-8 text"),
        (["--broker", "user:secret@host"], "a password does not belong into the address"),
        (["--broker", "host", "--password-file", "x"], "--password-file needs a user name"),
        (["--name", "a/b"], "'a/b' is no name of a device"),
        (["-o", "nowhere/edged.toml"], "the folder nowhere does not exist"),
    ],
)
def test_an_option_that_cannot_be(capsys, args, problem):
    told = refusal(capsys, *args)
    assert problem in told
    assert "secret" not in told


@pytest.mark.parametrize(
    ("text", "mqtt"),
    [
        ("", {}),
        ("none", {}),
        ("broker.local", {"host": "broker.local"}),
        ("[::1]:1884", {"host": "::1", "port": 1884}),
        ("user%231%2Fx@host/", {"host": "host", "username": "user#1/x"}),
        ("wss://host/mqtt", {"host": "host", "transport": "websockets", "tls": True, "path": "/mqtt"}),
    ],
)
def test_a_broker_in_a_word(text, mqtt):
    assert init._address(text) == mqtt


def test_the_ports_of_a_machine_by_their_stable_names(tmp_path):
    by_id = tmp_path / "dev/serial/by-id"
    by_id.mkdir(parents=True)
    for name in ("ttyUSB0", "ttyUSB1", "ttyAMA0"):
        (tmp_path / "dev" / name).touch()
    (by_id / "usb-Sensor-if00").symlink_to("../../ttyUSB1")
    found = [Path(port).name for port in serial_ports(tmp_path)]
    assert found == ["usb-Sensor-if00", "ttyUSB0", "ttyAMA0"]


# On a terminal


class Terminal:
    """`edgectl init` at a terminal: questions and answers."""

    def __init__(self, *args):
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "edged.ctl", "init", *map(str, args)]
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        self._process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True
        )
        os.close(theirs)
        self._ours = ours
        self.said = ""

    def answer(self, question, text):
        """Wait for a question, and answer."""
        while question not in self.said:
            self.said += os.read(self._ours, 4096).decode()
        self.said = self.said.partition(question)[2]
        os.write(self._ours, text.encode() + b"\n")

    def end(self):
        """Wait for the end, and return the exit code and the output since the last question."""
        try:
            while block := os.read(self._ours, 4096):
                self.said += block.decode()
        except OSError:  # the other end is closed
            pass
        os.close(self._ours)
        return self._process.wait(), self.said


def test_it_asks_for_what_no_option_says_and_again_after_a_wrong_answer(here):
    with socket.create_server(("127.0.0.1", 0)) as broker:
        terminal = Terminal("--model", "motion")
        terminal.answer("Kind of source (serial, replay, synthetic) [", "cereal")
        terminal.answer("unknown kind 'cereal'", "serial")
        terminal.answer("Serial port", PORT)
        terminal.answer("Speed of the port in Bd [115200]: ", "")
        terminal.answer("MQTT broker, HOST or HOST:PORT [", f"127.0.0.1:{broker.getsockname()[1]}")
        terminal.answer("User name at the broker, empty for none []: ", "board")
        terminal.answer("Password, empty for a credential of the service: ", "correct horse")
        terminal.answer("Name of this device in MQTT topics [", "desk")
        code, said = terminal.end()
    assert (code, "edged.toml: written: 1 pipeline" in said) == (exits.DONE, True), said
    assert "correct horse" not in said
    text = (here / "edged.toml").read_text()
    config = tomllib.loads(text)
    assert config["mqtt"]["password_file"] == str(here / "mqtt-password")
    assert "correct horse" not in text
    assert (here / "mqtt-password").read_text() == "correct horse\n"
    assert oct((here / "mqtt-password").stat().st_mode) == "0o100600"
    assert config["sources"]["sensor"]["baud"] == 115200
    assert config["device"]["name"] == "desk"


def test_answers_that_end_too_early_write_nothing(here):
    terminal = Terminal("--model", "motion")
    terminal.answer("Kind of source", "\x04")
    code, said = terminal.end()
    assert (code, list(here.iterdir())) == (exits.FAILED, []), said
    assert re.search(r"the answers end too early", said)


def test_a_password_that_does_not_come_writes_nothing(here):
    terminal = Terminal("--model", "motion", "--source", "synthetic", "--name", "desk")
    terminal.answer("MQTT broker, HOST or HOST:PORT [", "host")
    terminal.answer("User name at the broker, empty for none []: ", "board")
    terminal.answer("Password, empty for a credential of the service: ", "\x04")
    code, said = terminal.end()
    assert (code, list(here.iterdir())) == (exits.FAILED, []), said
    assert "the answers end too early" in said
