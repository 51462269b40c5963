"""`edgectl inspect`: what is in a bundle."""

import json

import pytest

from edged.ctl.inspect import STATE
from edged.ctl.main import main
from tests.bundles import DATA, write_bundle
from tests.containers import MODEL, NOTES, colours, container
from tests.signing import signature


@pytest.fixture
def bundle(tmp_path):
    """A container with a bit of everything in its manifest."""
    manifest = colours(
        description="Which colour it is\x1b[2J",
        created=1_700_000_000,
        preprocess=[{"step": "normalise", "mean": [2], "std": [4, 4, 4, 4]}],
        needs={"memory_bytes": 1000},
        limits={"latency_p99": 0.05},
        probation={"windows": 7},
    )
    file = tmp_path / "colours.edgm"
    file.write_bytes(container(manifest, signatures=signature(b"alice")))
    return file


def test_what_a_person_sees(bundle, capsys):
    assert main(["inspect", str(bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    digest = lines.pop(2)
    assert digest.startswith("digest        ")
    assert lines == [
        "model         colours 1.0",
        "              Which colour it is�[2J",
        "created       2023-11-14 22:13:20 UTC",
        "signed by     SHA256:K9gGyX8OAK8aH8Myj6djqSaXI8jbj6xPk69x2xhtbpA (not verified)",
        "files         model.tflite, 1 kB",
        "              notes.bin, 262 kB",
        "window        1 samples of c0, c1, c2, c3, a new window every 1",
        "preprocess    normalise mean [2.0], std [4.0,4.0,4.0,4.0]",
        "inputs        x: float32 [1, 4]",
        "outputs       y: float32 [1, 3]",
        "says          a label of 3: red, green, blue",
        "golden        no samples",
        "needs         memory_bytes 1000",
        "limits        latency_p99 0.05",
        "probation     windows 7",
    ]


def test_what_a_machine_sees(bundle, capsys):
    assert main(["inspect", str(bundle), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["bytes"] == bundle.stat().st_size
    assert shown["signatures"][0]["namespace"] == "edged-bundle"
    assert shown["manifest"]["name"] == "colours"
    assert shown["manifest"]["files"]["notes.bin"]["bytes"] == len(NOTES)


def test_variants(tmp_path, capsys):
    variants = [
        {"name": "coral", "delegate": "edgetpu", "file": "model.tflite"},
        {"name": "soc", "delegate": "vx", "file": "model.tflite", "options": {"device_id": "0"}},
    ]
    assert main(["inspect", str(write_bundle(tmp_path / "colours", variants=variants))]) == 0
    assert (
        'variants      coral: model.tflite on edgetpu\n              soc: model.tflite on vx, with device_id "0"\n'
    ) in capsys.readouterr().out


def test_a_folder(tmp_path, capsys):
    assert main(["inspect", str(write_bundle(tmp_path / "colours"))]) == 0
    assert "signed by     nobody" in capsys.readouterr().out


def shown(file, capsys):
    assert main(["inspect", str(file)]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_bare_file_and_what_is_derived_from_it(capsys):
    assert shown(DATA / "metadata.tflite", capsys) == [
        "file          metadata.tflite, 1.55 kB, with no manifest",
        "inputs        serving_default_x:0: float32 [1, 4]",
        "                metadata: reading; normalised by mean [2.0], std [4.0]",
        "outputs       PartitionedCall:0: float32 [1, 3]",
        "                metadata: colour; threshold 0.25; 3 labels: red, green, blue",
        "ops           FULLY_CONNECTED, in 1 nodes",
        "signatures    serving_default",
        "derived       1 samples of 4 channels, named c0 and so on, normalised as in the metadata",
        "              3 scores, by the labels; labels from the metadata",
    ]


def test_a_bare_file_and_what_has_to_be_said_of_it(capsys):
    lines = shown(DATA / "stateful.tflite", capsys)
    assert f"state         {STATE}" in lines
    assert lines[-3:-1] == [
        "not certain   the meaning of the input is not certain: float32 [1, 1]",
        "              the output of the op READ_VARIABLE may not be scores: float32 [1, 1]",
    ]
    assert lines[-1].startswith(
        "to do         save this part of a manifest, completed, as part.json, and run edgectl pack"
    )
    assert lines[-1].endswith('"postprocess":{"kind":"regression","output":0,"names":["v0"]}}')


def test_a_bundle_of_a_model_with_state(tmp_path, capsys):
    part = {
        "window": {"length": 1, "hop": 1, "channels": [{"name": "c0"}]},
        "postprocess": {"kind": "regression", "names": ["sum"]},
    }
    (tmp_path / "part.json").write_text(json.dumps(part))
    words = ["--manifest", tmp_path / "part.json", "--version", "1", "--name", "sums", "-o", tmp_path / "sums.edgm"]
    assert main([*map(str, ["pack", DATA / "stateful.tflite", *words])]) == 0
    capsys.readouterr()
    assert f"state         {STATE}" in shown(tmp_path / "sums.edgm", capsys)


def test_a_bare_file_that_no_cpu_runs(capsys):
    assert shown(DATA / "edgetpu.tflite", capsys)[-1].startswith(
        "cannot run    it is compiled for the Edge TPU and does not run on a CPU (use the original model"
    )


def test_a_bare_file_for_a_machine(capsys):
    assert main(["inspect", str(DATA / "float.tflite"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["inputs"] == [
        {"name": "serving_default_x:0", "shape": [1, 4], "dtype": "float32", "scale": 0.0, "zero_point": 0}
    ]
    assert (told["ops"], told["derived"], told["obstacle"]) == (["FULLY_CONNECTED"], [], "")
    assert told["part"]["postprocess"] == {"kind": "regression", "output": 0, "names": ["v0", "v1", "v2"]}


def test_a_long_list_is_cut_with_a_count(tmp_path, capsys):
    names = [f"v{index}" for index in range(640)]
    output = {"name": "y", "shape": [1, 640], "dtype": "float32"}
    rule = {"kind": "regression", "names": names}
    folder = write_bundle(tmp_path / "b", labels=None, outputs=[output], postprocess=rule)
    assert "says          values of v0, v1, v2, v3, v4, v5, v6, v7, v8, v9 and 630 more" in shown(folder, capsys)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"<html>", "the container breaks off after 6 bytes"),
        (MODEL, "not a container: the file does not begin with edgm"),
        (container()[:-1], "breaks off"),
    ],
)
def test_what_is_not_sound_is_not_shown(tmp_path, capsys, content, complaint):
    (tmp_path / "bad.edgm").write_bytes(content)
    assert main(["inspect", str(tmp_path / "bad.edgm")]) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert complaint in said.err
