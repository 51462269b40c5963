"""`edgectl infer`: a prediction for each window of a file, the same as the daemon's."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edged.core.types import Regression
from edged.ctl.infer import _cells
from edged.ctl.main import main
from tests import containers
from tests.bundles import DATA, write_bundle
from tests.real_models import real_model

RECORDING = Path(__file__).parents[2] / "demo" / "recording.csv"


@pytest.fixture
def colours(tmp_path):
    """Return a model of four channels with scores of half of the first three, plus one; a decision needs a second."""
    decision = {"threshold": 3.0, "min_duration": 1.0}
    window = {"length": 1, "hop": 1, "rate": 2.0, "channels": [{"name": name} for name in ("r", "g", "b", "x")]}
    return str(
        write_bundle(tmp_path / "colours", window=window, postprocess={"kind": "classification", "decision": decision})
    )


def csv(tmp_path, text):
    file = tmp_path / "recording.csv"
    file.write_text(text)
    return str(file)


def test_a_line_for_each_window(tmp_path, colours, capsys):
    file = csv(tmp_path, "x,r,g,b\n0,1,0,0\n0,0,6,0\n0,0,6,0\n0,0,6,0\n")
    assert main(["infer", file, "--model", colours]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "    SEQ    TIME s  LABEL      SCORE  DECISION",
        "      0      0.00  red        1.500  -",
        "      1      0.50  green      4.000  -",
        "      2      1.00  green      4.000  -",
        "      3      1.50  green      4.000  green",
    ]


def test_json_is_an_object_a_line(tmp_path, colours, capsys):
    file = csv(tmp_path, "r,g,b,x\n0,0,8,0\n2,0,0,0\n")
    assert main(["infer", file, "--model", colours, "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first.pop("inference") > 0
    assert first == {
        "seq": 0,
        "time": 0.0,
        "kind": "classification",
        "label": "blue",
        "score": 5.0,
        "scores": [{"label": "blue", "score": 5.0}, {"label": "red", "score": 1.0}, {"label": "green", "score": 1.0}],
        "decision": None,
        "changed": False,
    }
    assert (second["seq"], second["time"], second["label"]) == (1, 0.5, "red")


def test_an_array_holds_the_models_channels_or_what_is_said(tmp_path, colours, capsys):
    np.save(tmp_path / "own.npy", [[0, 6, 0, 0]])
    np.savez(tmp_path / "other.npz", a=[[9, 9]], b=[[0, 0, 9, 0, 6]])
    assert main(["infer", str(tmp_path / "own.npy"), "--model", colours]) == 0
    assert "green" in capsys.readouterr().out
    other = ["infer", str(tmp_path / "other.npz"), "--array", "b", "--columns", "r,x,truth,g,b"]
    assert main([*other, "--model", colours]) == 0
    assert "blue" in capsys.readouterr().out


def test_rows_that_cannot_be_used_are_told(tmp_path, colours, capsys):
    assert main(["infer", csv(tmp_path, "r,g,b,x\n1,0,0,0\n1,nan,0,0\n0,0,3,0\n"), "--model", colours]) == 0
    output = capsys.readouterr()
    assert [line.split()[2] for line in output.out.splitlines()[1:]] == ["red", "blue"]
    assert output.err.startswith("edgectl: rows left out: 1 ")


def test_values_have_columns_of_their_own(tmp_path, capsys):
    names = ["left", "right", "a_long_named_value"]
    model = write_bundle(tmp_path / "values", labels=None, postprocess={"kind": "regression", "names": names})
    assert main(["infer", csv(tmp_path, "c0,c1,c2,c3\n2,4,6,0\n"), "--model", str(model)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "    SEQ    TIME s         left        right  a_long_named_value",
        "      0      0.00            2            3                   4",
    ]


def test_many_values_are_cut_with_a_count():
    outcome = Regression({f"v{index}": float(index) for index in range(13)})
    assert _cells(outcome, 8) == [
        ("VALUES", "v0 0, v1 1, v2 2, v3 3, v4 4, v5 5, v6 6, v7 7, v8 8, v9 9, v10 10, v11 11 and 1 more")
    ]
    assert _cells(Regression([0.5] * 1404), 8)[0][1].endswith("11 0.5 and 1392 more")


def test_anomalies_are_held_against_their_threshold(tmp_path, capsys):
    np.save(tmp_path / "flat.npy", np.full((200, 1), 1000.0))
    file = str(tmp_path / "flat.npy")
    assert main(["infer", file, "--model", "anomaly", "--config", str(tmp_path / "none")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["SEQ", "TIME", "s", "SCORE", "THRESHOLD", "ANOMALOUS"]
    assert [line.split()[-1] for line in lines[1:3]] == ["no", "yes"]  # two in a row make an anomaly


def test_a_factory_model_by_name(tmp_path, capsys):
    assert main(["infer", str(RECORDING), "--model", "motion", "--json", "--config", str(tmp_path / "none")]) == 0
    labels = {json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()}
    assert labels == {"standing", "walking", "running", "badminton"}


def test_a_container_is_a_model_too(tmp_path, capsys):
    described = containers.colours(files={"model.tflite": containers.entry(containers.MODEL)})
    (tmp_path / "colours.edgm").write_bytes(containers.container(described, body=containers.MODEL))
    file = csv(tmp_path, ",".join(f"c{index}" for index in range(4)) + "\n1,0,0,0\n")
    assert main(["infer", file, "--model", str(tmp_path / "colours.edgm"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "red"


def test_a_name_means_what_the_configuration_says(tmp_path, colours, capsys):
    (tmp_path / "edged.toml").write_text('[models.mine]\npath = "colours"\n')
    file = csv(tmp_path, "r,g,b,x\n1,0,0,0\n")
    assert main(["infer", file, "--model", "mine", "--config", str(tmp_path / "edged.toml")]) == 0
    assert "red" in capsys.readouterr().out


def test_a_signature_by_name(tmp_path, capsys):
    np.save(tmp_path / "x.npy", [[1.0, 2.0]])
    arguments = ["infer", str(tmp_path / "x.npy"), "--model", str(DATA / "metadata.tflite"), "--signature", "nonsense"]
    assert main(arguments) == 4
    assert "has no signature 'nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("r,g,b,x\n", "no usable sample"),
        ("r,g,b\n1,2,3\n", "x"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, colours, capsys, content, complaint):
    assert main(["infer", csv(tmp_path, content), "--model", colours]) == 4
    assert complaint in capsys.readouterr().err


def test_a_file_without_one_whole_window_says_so(tmp_path, capsys):
    file = csv(tmp_path, "ax,ay,az,gx,gy,gz\n" + "1,2,3,4,5,6\n" * 39)
    assert main(["infer", file, "--model", "motion", "--config", str(tmp_path / "none")]) == 4
    assert "has no whole window of 40 samples" in capsys.readouterr().err


def test_values_that_the_model_cannot_store_are_told(tmp_path, capsys):
    """Raw pixels in a model for -1 to 1 give a confident answer for a white picture."""
    tensor = {"name": "x", "shape": [1, 4], "dtype": "int8", "scale": 0.007813951000571251, "zero_point": -1}
    output = {"name": "y", "shape": [1, 3], "dtype": "int8", "scale": 0.005878532771021128, "zero_point": -128}
    model = str(write_bundle(tmp_path / "m", model="int8.tflite", inputs=[{"tensor": tensor}], outputs=[output]))
    np.save(tmp_path / "x.npy", [[100.0, 0.5, 0.0, 0.0], [100.0, 200.0, 0.0, 0.0]])
    assert main(["infer", str(tmp_path / "x.npy"), "--model", model]) == 0
    said = capsys.readouterr().err
    assert "38% of the input values are clipped, beyond -0.9924 to 1, the range" in said
    assert "these answers are probably wrong" in said


def test_what_is_derived_from_a_bare_file_is_told(tmp_path, capsys):
    np.save(tmp_path / "x.npy", [[1.0, 2.0, 3.0, 4.0]])
    assert main(["infer", str(tmp_path / "x.npy"), "--model", str(DATA / "metadata.tflite")]) == 0
    assert "derived from metadata.tflite: 1 samples of 4 channels, named c0 and so on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "image", "label", "score"),
    [
        ("mobilenet_v2_1.0_224_quant.tflite", "cat.bmp", "Egyptian cat", 0.789),
        ("tf2_mobilenet_v2_1.0_224_ptq.tflite", "sunflower.bmp", "daisy", 0.945),
        ("mobilenet_v1_0.25_128_quant.tflite", "parrot.jpg", "macaw", 0.762),
        ("mobilenet_v1_0.25_224_1_metadata_1.tflite", "parrot.jpg", "macaw", 0.940),
    ],
)
def test_a_bare_real_model_says_what_is_in_a_picture(model, image, label, score, capsys):
    assert main(["infer", str(real_model(f"images/{image}")), "--model", str(real_model(model)), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["label"] == label
    assert said["score"] == pytest.approx(score, abs=0.1)


def test_a_model_that_is_not_there(tmp_path, capsys):
    assert main(["infer", "x.csv", "--model", str(tmp_path / "none.tflite")]) == 4
    assert "none.tflite cannot be read" in capsys.readouterr().err


# -- pictures -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiles(tmp_path):
    """Return a model of pictures of 4 x 1 gray pixels: the scores are half of the first three, plus one."""
    return str(
        write_bundle(
            tmp_path / "tiles",
            window={"length": 1, "hop": 1, "sample_shape": [1, 4], "dtype": "uint8"},
            postprocess={"kind": "classification", "top_k": 3},
        )
    )


def scores(file, model, capsys):
    """Return the scores by label for each picture."""
    assert main(["infer", str(file), "--model", model, "--json"]) == 0
    answers = map(json.loads, capsys.readouterr().out.splitlines())
    return [{each["label"]: each["score"] for each in answer["scores"]} for answer in answers]


def test_a_picture_is_scaled_to_the_models_size(tmp_path, tiles, capsys):
    image = Image.new("RGBA", (4, 1))
    image.putdata([(value, value, value, 9) for value in (10, 20, 30, 40)])
    image.resize((4, 100), Image.Resampling.NEAREST).save(tmp_path / "x.png")
    assert scores(tmp_path / "x.png", tiles, capsys) == [{"red": 6.0, "green": 11.0, "blue": 16.0}]


def test_a_picture_taken_sideways_is_turned_upright(tmp_path, tiles, capsys):
    sideways = Image.new("L", (1, 4))
    sideways.putdata([10, 20, 30, 40])
    exif = Image.Exif()
    exif[0x0112] = 8  # the camera was turned: rotate by 90 degrees
    sideways.save(tmp_path / "x.png", exif=exif)
    assert scores(tmp_path / "x.png", tiles, capsys) == [{"red": 6.0, "green": 11.0, "blue": 16.0}]


def test_the_pictures_of_a_folder_come_in_the_order_of_their_names(tmp_path, tiles, capsys):
    for name, value in (("b.bmp", 20), ("a.png", 10), ("c.txt", 30)):
        Image.new("L", (8, 8), value).save(tmp_path / name, name[-3:].replace("txt", "png"))
    assert [each["red"] for each in scores(tmp_path, tiles, capsys)] == [6.0, 11.0]


def test_a_model_of_samples_takes_no_pictures(tmp_path, colours, capsys):
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    assert main(["infer", str(tmp_path / "x.png"), "--model", colours]) == 4
    assert "the source 'x.png' delivers pictures, and the model 'colours' takes none" in capsys.readouterr().err


def test_what_is_no_picture_is_refused(tmp_path, tiles, capsys):
    assert main(["infer", str(tmp_path / "absent.png"), "--model", tiles]) == 4
    assert f"there is no file {tmp_path}/absent.png" in capsys.readouterr().err
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    assert main(["infer", str(tmp_path / "x.png"), "--model", tiles]) == 4
    assert f"{tmp_path}/x.png: a picture cannot be decoded" in capsys.readouterr().err
