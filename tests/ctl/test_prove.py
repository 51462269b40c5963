"""`edgectl prove`: by a daemon or without one, and how it is told."""

import json

import pytest

from edged.ctl import exit_codes as exits
from edged.ctl import prove
from edged.ctl.main import main
from tests.bundles import write_bundle
from tests.delegates import faulty_library


@pytest.fixture
def board(tmp_path, capsys):
    """A device with the model colours, and delegates with these orders; runs edgectl there, without a daemon."""

    def make(**orders):
        variants = [{"name": f"{name}-fast", "delegate": name, "file": "model.tflite"} for name in orders]
        variants.append({"name": "tpu", "delegate": "edgetpu", "file": "model.tflite"})
        write_bundle(tmp_path / "bundle", variants=variants)
        tables = [
            f'[delegates.{name}]\nkind = "external"\nlibrary = "{faulty_library()}"\noptions = {options}'
            for name, options in orders.items()
        ]
        text = "\n".join([f'[models.colours]\npath = "{tmp_path}/bundle"', *tables])
        (tmp_path / "edged.toml").write_text(text.replace("{}", "{ }"))

        def edgectl(*words):
            here = ["--config", str(tmp_path / "edged.toml"), "--runtime-dir", str(tmp_path)]
            code = main([*here, "--state-dir", str(tmp_path / "state"), *words])
            return code, *capsys.readouterr()

        return edgectl

    return make


def test_each_way_with_its_samples_and_the_cpu_beside_it(board):
    code, output, _ = board(mine="{}")("prove", "colours")
    lines = output.splitlines()
    assert code == exits.DONE
    assert lines[0] == "● colours 1.0 on mine (mine-fast) agrees with the CPU"
    assert lines[1].startswith("      1 of 1 nodes, ")
    assert lines[1].endswith("% of the time off the processor")
    assert [line.split()[0] for line in lines[3:5]] == ["mine", "the"]
    assert lines[6].split() == ["0", "0", "the", "same"]
    assert lines[-3:] == [
        "● colours 1.0 on edgetpu (tpu) is not ready",
        "      there is no Coral Edge TPU",
        "      -> plug it in, or enable it and its driver",
    ]


def test_one_that_disagrees_is_a_bad_answer(board):
    code, output, _ = board(bad='{ wrong = "nan" }')("prove", "--json")
    bad, missing = json.loads(output)
    assert code == exits.BAD
    assert (bad["state"], bad["samples"][0]["worst"], bad["samples"][0]["same"]) == ("disagrees", None, False)
    assert (missing["delegate"], missing["state"], missing["cpu_latency"]) == ("edgetpu", "not ready", None)


def test_one_that_dies_is_a_bad_answer_too(board):
    code, output, _ = board(bad='{ fail = "abort" }')("prove")
    assert code == exits.BAD
    assert "● colours 1.0 on bad (bad-fast) fails\n      the process of bad aborted: SIGABRT" in output


def test_without_a_configuration_it_is_the_factory_models(tmp_path, capsys):
    here = ["--config", str(tmp_path / "none.toml"), "--runtime-dir", str(tmp_path), "--state-dir", str(tmp_path)]
    assert main(["prove", *here]) == exits.DONE
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("○")]
    assert [head.split()[1] for head in heads] == ["anomaly", "digits", "motion"]
    assert main(["prove", "motoin", *here]) == exits.FAILED
    assert "did you mean 'motion'?" in capsys.readouterr().err


FOUND = {
    "model": "motion",
    "version": "1.2",
    "state": "disagrees",
    "delegate": "edgetpu",
    "variant": "",
    "reason": "1 of 2 samples: the output 'y' is all zeros\x1b[31m",
    "hint": "another version",
    "nodes": 12,
    "delegated": 9,
    "off_processor": 0.876,
    "latency": {"p50": 0.0012, "p99": 0.0034},
    "cpu_latency": {"p50": 0.01, "p99": 0.02},
    "samples": [
        {"worst": 1.0, "same": None, "problem": ""},
        {"worst": None, "same": False, "problem": "has NaN"},
    ],
}


def test_how_a_comparison_looks():
    assert list(prove.lines(FOUND)) == [
        "● motion 1.2 on edgetpu disagrees with the CPU",
        "      1 of 2 samples: the output 'y' is all zeros\ufffd[31m",
        "      -> another version",
        "      9 of 12 nodes, 88% of the time off the processor",
        "               P50 ms  P99 ms",
        "      edgetpu   1.200   3.400",
        "      the CPU  10.000  20.000",
        "      SAMPLE        OFF BY  DECISION",
        "      0                  1  -",
        "      1       not a number  another   has NaN",
    ]


def test_a_daemon_that_runs_is_asked(daemon, edgectl):
    daemon.records = [FOUND]
    code, output, _ = edgectl("prove", "motion", "--json")
    assert (code, json.loads(output)) == (exits.BAD, [FOUND])
    assert daemon.asked[-1] == ("prove", {"model": "motion"})
