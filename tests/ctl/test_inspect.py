"""`edgectl inspect`: what is in a bundle."""

import json

import pytest

from edged.ctl.main import main
from tests.bundles import write_bundle
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
        "window        1 samples of c0, c1, c2, c3, a new one every 1",
        "preprocess    normalise mean [2.0], std [4.0,4.0,4.0,4.0]",
        "inputs        x: float32 [1, 4]",
        "outputs       y: float32 [1, 3]",
        "says          one of 3 labels: red, green, blue",
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


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"<html>", "the container breaks off after 6 bytes"),
        (MODEL, "not a container: it does not begin with edgm"),
        (container()[:-1], "breaks off"),
    ],
)
def test_what_is_not_sound_is_not_shown(tmp_path, capsys, content, complaint):
    (tmp_path / "bad.edgm").write_bytes(content)
    assert main(["inspect", str(tmp_path / "bad.edgm")]) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert complaint in said.err
