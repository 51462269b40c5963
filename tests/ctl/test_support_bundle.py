"""`edgectl support-bundle`: everything a helper needs, and no secret."""

import io
import tarfile

import pytest

from edged.config.load import load
from edged.core.errors import ControlError
from edged.ctl.main import main
from edged.ctl.support_bundle import MAX_BYTES, Part, Scrubber, pack, secrets

CONFIG = """
[mqtt]
host = "broker.local"
username = "board"
password_file = "{folder}/password"

[sources.wrist]
kind = "synthetic"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10

[pipelines.motion]
source = "wrist"
model = "motion"
"""


def contents(archive):
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as opened:
        return {
            entry.name.removeprefix("edged-support/"): opened.extractfile(entry).read().decode()
            for entry in opened.getmembers()
        }


def failing(error):
    def text():
        raise error

    return text


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("password = hunter2, host = a", "password = ***, host = a"),
        ('{"password": "two words", "port": 1}', '{"password": ***, "port": 1}'),
        (r'{"password": "with \" in it", "port": 1}', '{"password": ***, "port": 1}'),
        ("password = 'two words'\nport = 1", "password = ***\nport = 1"),
        ("API_KEY=abc", "API_KEY=***"),
        ("Authorization: Bearer abcdefghij.klm", "Authorization: Bearer ***"),
        ("https://user:pass@models.local/a.edgm", "https://***@models.local/a.edgm"),
        ("https://user:p@ss@models.local/a.edgm", "https://***@models.local/a.edgm"),
        (
            '{"url":"https://models.local/a.edgm","to":"me@home"}',
            '{"url":"https://models.local/a.edgm","to":"me@home"}',
        ),
        ("https://models.local/a.edgm?X-Signature=123 failed", "https://models.local/a.edgm?*** failed"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\nafter", "***\nafter"),
        ("-----BEGIN PRIVATE KEY-----\ncut off", "***"),
        ("the broker took 17 messages", "the broker took 17 messages"),
        ("opened with correct horse", "opened with ***"),
    ],
)
def test_what_looks_like_a_secret_and_what_is_known_as_one(text, scrubbed):
    assert Scrubber({"correct horse"})(text) == scrubbed


def test_of_two_secrets_the_longer_goes_first():
    assert Scrubber({"tree", "treetop"})("treetop tree") == "*** ***"


def test_what_cannot_be_had_is_named_and_no_error():
    parts = [
        Part("good.txt", lambda: "all is well"),
        Part("bad.txt", failing(ControlError("no daemon answers"))),
        Part("gone.txt", failing(FileNotFoundError(2, "No such file or directory"))),
    ]
    assert contents(pack(parts, Scrubber(()), 0)) == {
        "good.txt": "all is well",
        "missing.txt": "bad.txt: no daemon answers\ngone.txt: [Errno 2] No such file or directory\n",
    }


def test_a_secret_that_is_cut_is_none_the_less_one():
    told = contents(pack([Part("log", lambda: "hunter2" + "a" * (MAX_BYTES - 3))], Scrubber({"hunter2"}), 0))["log"]
    assert told.strip("a") == "***"


def test_the_end_of_what_is_too_long_is_kept():
    text = contents(pack([Part("journal.txt", lambda: "a" * MAX_BYTES + "end")], Scrubber(()), 0))["journal.txt"]
    assert (len(text), text[-3:]) == (MAX_BYTES, "end")


def test_the_words_that_the_configuration_keeps_in_files(tmp_path):
    (tmp_path / "edged.toml").write_text(CONFIG.format(folder=tmp_path))
    (tmp_path / "password").write_text("correct horse\n")
    assert secrets(load([tmp_path / "edged.toml"])) == {"correct horse"}
    (tmp_path / "password").unlink()
    assert secrets(load([tmp_path / "edged.toml"])) == set()


def collected(tmp_path, text):
    (tmp_path / "edged.toml").write_text(text)
    (tmp_path / "password").write_text("correct horse\n")
    (tmp_path / "state" / "models" / "motion").mkdir(parents=True)
    (tmp_path / "state" / "models" / "motion" / "state.json").write_text('{"note": "correct horse"}')
    output = tmp_path / "support.tar.gz"
    words = ["--config", str(tmp_path / "edged.toml"), "--state-dir", str(tmp_path / "state")]
    assert main([*words, "--runtime-dir", str(tmp_path / "run"), "support-bundle", "-o", str(output)]) == 0
    return output


def test_a_whole_one_without_a_daemon(tmp_path, capsys):
    output = collected(tmp_path, CONFIG.format(folder=tmp_path))
    files = contents(output.read_bytes())
    assert {
        "version.json",
        "doctor.json",
        "configuration.toml",
        "state-files.txt",
        "system/proc/meminfo",
    } <= files.keys()
    assert "[mqtt]" in files["configuration.toml"]
    assert files["models/motion.json"] == '{"note": "***"}'
    assert "status.json: no daemon answers" in files["missing.txt"]
    assert output.stat().st_mode & 0o777 == 0o600
    assert "support.tar.gz" in capsys.readouterr().out


def test_a_configuration_that_is_wrong_is_there_as_it_is(tmp_path):
    files = contents(collected(tmp_path, '[mqtt]\nhots = "x"\npassword = "hunter2"\n').read_bytes())
    assert "hots" in files["configuration-errors.txt"]
    assert files["configuration/edged.toml"] == '[mqtt]\nhots = "x"\npassword = ***\n'


def test_a_file_that_is_there_is_not_written_over(tmp_path, capsys):
    (tmp_path / "mine").write_text("precious")
    assert main(["--config", str(tmp_path / "none.toml"), "support-bundle", "-o", str(tmp_path / "mine")]) == 4
    assert (tmp_path / "mine").read_text() == "precious"
    assert "File exists" in capsys.readouterr().err
