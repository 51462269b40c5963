"""`edgectl config`: every problem with a remedy, and the effective configuration as TOML."""

import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.ctl.config import toml
from edged.ctl.main import main

GOOD = """
[device]
name = "kitchen"

[sources.wrist]
kind = "synthetic"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10

[pipelines.activity]
source = "wrist"
model = "motion"
sinks = ["stdout"]
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / "edged.toml"
        file.write_text(text)
        return str(file)

    return write


def test_a_good_configuration_is_told_in_a_line(write, capsys):
    file = write(GOOD)
    assert main(["config", "check", file]) == 0
    assert capsys.readouterr().out == f"{file}: valid: 1 pipeline, 1 source, 1 model, 1 sink\n"


def test_each_problem_is_a_block_with_a_remedy(write, capsys):
    file = write(GOOD.replace('source = "wrist"', 'source = "wirst"') + "\n[log]\nlevel = 3\n")
    assert main(["config", "check", file]) == 1
    assert capsys.readouterr().out == (
        f"{file}: pipelines.activity.source\n"
        '    found    "wirst"\n'
        '    allowed  "wrist"\n'
        '    -> did you mean "wrist"?\n'
        f"{file}: log.level\n"
        "    found    3\n"
        '    allowed  "debug" or "error" or "info" or "warning"\n'
    )


def test_a_model_that_is_not_here_is_a_warning(write, capsys):
    file = write(GOOD.replace('"motion"', '"motoin"'))
    assert main(["config", "check", "--json", "--config", file]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["valid"], answer["problems"]) == (True, [])
    assert [(each["file"], each["path"]) for each in answer["warnings"]] == [(file, "pipelines.activity.model")]
    assert main(["config", "check", file]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"warning: {file}: pipelines.activity.model"
    assert said[3:] == [
        "    -> bring one: edgectl update-model FILE; did you mean 'motion'? there is anomaly, digits, motion",
        f"{file}: valid: 1 pipeline, 1 source, 1 model, 1 sink",
    ]


def test_a_source_that_does_not_fit_the_model_is_a_problem(write, capsys):
    assert main(["config", "check", write(GOOD.replace("rate = 10", "rate = 50"))]) == 1
    assert "the rate is 50 samples per second, the model takes 10" in capsys.readouterr().out


def test_unknown_keys_hide_no_other_mistake(write, capsys):
    text = GOOD.replace("rate = 10", "rate = 50\nsmoothing = 3").replace("sinks =", "colour = 1\nsinks =")
    text += '[mqtt]\nspeed = 1\n[pipelines.second]\nsource = "wrist"\nmodel = "absent"\n'
    assert main(["config", "check", "--json", write(text)]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert sorted((each["path"], each["found"][:40]) for each in answer["problems"]) == [
        ("mqtt.speed", "an unknown key"),
        ("pipelines.activity", "the source 'wrist' does not fit the mode"),
        ("pipelines.activity.colour", "an unknown key"),
        ("sources.wrist.smoothing", "an unknown key"),
    ]
    assert [each["path"] for each in answer["warnings"]] == ["pipelines.second.model"]


def test_wrong_values_of_a_table_hide_no_mistake_of_other_tables(write, capsys):
    wrong = '[sources.other]\nkind = "synthetic"\nchannels = 3\n[log]\nlevel = 3\n'
    wrong += '[pipelines.second]\nsource = "other"\nmodel = "motion"\n'
    assert main(["config", "check", "--json", write(GOOD.replace("rate = 10", "rate = 50") + wrong)]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert sorted(each["path"] for each in answer["problems"]) == [
        "log.level",
        "pipelines.activity",
        "sources.other.channels",
    ]


def test_a_misspelt_key_causes_no_second_problem(write, capsys):
    assert main(["config", "check", "--json", write(GOOD.replace("rate = 10", "rates = 10"))]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert (problem["path"], problem["hint"]) == ("sources.wrist.rates", 'did you mean "rate"?')


def test_the_same_in_json(write, capsys):
    assert main(["config", "check", "--json", write(GOOD)]) == 0
    assert json.loads(capsys.readouterr().out) == {"valid": True, "problems": [], "warnings": []}


def test_what_is_shown_is_a_configuration_that_means_the_same(write, capsys):
    assert main(["config", "show", write(GOOD)]) == 0
    shown = capsys.readouterr().out
    assert main(["config", "show", write(shown)]) == 0
    assert capsys.readouterr().out == shown
    assert tomllib.loads(shown)["pipelines"]["activity"]["queue"] == 4


def test_each_value_with_the_file_it_came_from(write, capsys, tmp_path):
    file = write(GOOD)
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "log.toml").write_text('[log]\nlevel = "debug"\n')
    assert main(["config", "show", "--origin", file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f'name = "kitchen"  # {file}' in lines
    assert f'level = "debug"  # {tmp_path / "conf.d" / "log.toml"}' in lines
    assert "queue = 4  # default" in lines


def test_shown_in_json_with_the_origins(write, capsys):
    file = write(GOOD)
    assert main(["config", "show", "--json", file]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["config"]["device"] == {"name": "kitchen"}
    assert answer["origins"]["device.name"] == file


def test_what_has_errors_is_not_shown(write, capsys):
    assert main(["config", "show", write("[log]\nlevel = 3")]) == 4
    assert "the configuration has 1 problem" in capsys.readouterr().err


text = st.text(st.characters(codec="utf-8"), max_size=8)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | text
inline = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
tables = st.dictionaries(
    text, scalars | st.lists(inline, max_size=3) | st.dictionaries(text, inline, min_size=1), max_size=4
)


def without_empty(table):
    inner = {key: without_empty(value) if isinstance(value, dict) else value for key, value in table.items()}
    return {key: value for key, value in inner.items() if value != {}}


@given(tables)
def test_whatever_is_written_is_read_back(table):
    assert tomllib.loads("\n".join(toml(table))) == without_empty(table)
