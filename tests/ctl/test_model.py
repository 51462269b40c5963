"""`edgectl model draft`: from a .tflite file to a folder that `edgectl pack` takes, open lines and all."""

import json
import tomllib
from pathlib import Path

import pytest
from msgspec import convert

from edged.core.derived import derive
from edged.core.errors import BundleError, StoreError
from edged.core.manifest import WindowSpec
from edged.core.tflite_file import TensorMetadata, TfliteFile
from edged.core.types import TensorSpec
from edged.ctl import bundle_file, model
from edged.ctl import draft as drafts
from edged.ctl import exit_codes as exits
from edged.ctl.draft import FILL_IN, draft, unfilled
from edged.ctl.main import main
from edged.models.bundle import open_folder, read_structure
from tests.bundles import DATA
from tests.real_models import real_model


@pytest.fixture
def drafted(tmp_path, capsys):
    """Draft a model, and return the manifest, the open lines and the text."""

    def drafted(model, *args):
        folder = tmp_path / "draft"
        words = ["model", "draft", str(model), "-o", str(folder), "--json", *map(str, args)]
        assert main(words) == exits.DONE, capsys.readouterr().err
        told = json.loads(capsys.readouterr().out)
        text = (folder / "manifest.toml").read_text()
        assert (folder / "model.tflite").read_bytes() == Path(model).read_bytes()
        for each in told["open"]:
            assert "TO DO: " + each["why"][:20] in "\n".join(text.splitlines()[: each["number"]])
        return tomllib.loads(text), told["open"], text

    return drafted


def must(lines):
    return [line["number"] for line in lines if line["must"]]


def refusal(capsys, *args):
    assert main([str(arg) for arg in args]) == exits.FAILED
    return capsys.readouterr().err


# What a file settles


def test_the_metadata_of_a_file_settle_labels_and_normalisation(drafted):
    manifest, lines, _ = drafted(DATA / "metadata.tflite")
    assert manifest["postprocess"]["kind"] == "classification"
    assert manifest["labels"] == list(read_structure(DATA / "metadata.tflite").output_metadata[0].labels)
    assert manifest["preprocess"][0]["step"] == "normalise"
    assert must(lines) == []


def test_what_a_file_does_not_settle_is_listed_by_line(drafted):
    manifest, lines, text = drafted(DATA / "float.tflite")
    whys = {text.splitlines()[line["number"] - 1].partition(" = ")[0]: line["why"] for line in lines}
    assert whys.keys() == {"preprocess", "[window]", "# rate", "channels", "[postprocess]", "names"}
    assert "the meaning of the input is not certain" in whys["[window]"]
    assert manifest["window"]["channels"] == [{"name": f"c{index}", "unit": ""} for index in range(4)]
    assert manifest["postprocess"] == {"kind": "regression", "output": 0, "names": ["v0", "v1", "v2"]} or manifest[
        "postprocess"
    ] == {"kind": "regression", "names": ["v0", "v1", "v2"]}


def test_labels_in_a_file_make_a_classification(drafted, tmp_path):
    (tmp_path / "labels.txt").write_text('red\ngreen "1"\nblue\n')
    manifest, lines, _ = drafted(DATA / "float.tflite", "--labels", tmp_path / "labels.txt", "--name", "colours")
    assert (manifest["name"], manifest["labels"]) == ("colours", ["red", 'green "1"', "blue"])
    assert manifest["postprocess"]["activation"] == "none"
    assert must(lines) == []


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("hey_jarvis", "threshold"),
        ("mlperf_tiny_ad01_int8", "threshold"),
        ("mlperf_tiny_resnet_cifar10_fp32", "preprocess"),
        ("tflm_simple_add_int8", "channels"),
        ("deeplabv3_mnv2_dm05_pascal_quant", "labels"),
    ],
)
def test_what_nobody_may_guess_is_to_be_filled_in(drafted, tmp_path, capsys, model, key):
    _, lines, text = drafted(real_model(f"{model}.tflite"))
    (number,) = unfilled(text)
    assert text.splitlines()[number - 1].startswith(f"{key} = ")
    assert must(lines) == [number]
    assert f"'FILL-IN' stands in line {number}" in refusal(capsys, "pack", tmp_path / "draft")


def test_a_detector_with_labels_leaves_only_its_threshold_to_be_checked(drafted):
    manifest, _, _ = drafted(real_model("coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite"))
    assert manifest["postprocess"]["kind"] == "detection"
    assert manifest["postprocess"]["decoder"] == {"decoder": "ssd_postprocess"}
    assert manifest["postprocess"]["decision"]["threshold"] == 0.5
    assert (manifest["labels"][0], manifest["labels"][11], len(manifest["labels"])) == ("person", "???", 90)
    assert manifest["preprocess"] == [{"step": "none"}]


def test_sound_has_its_rate(drafted):
    manifest, _, _ = drafted(real_model("yamnet_audio_classifier_with_metadata.tflite"))
    assert (manifest["window"]["rate"], manifest["window"]["length"]) == (16000.0, 15600)
    assert (len(manifest["labels"]), manifest["preprocess"]) == (521, [])


# What becomes of a draft


def test_a_complete_draft_is_packed_with_its_card_and_what_the_options_say(drafted, tmp_path, capsys):
    drafted(DATA / "metadata.tflite")
    (tmp_path / "draft" / "CARD.md").write_text("# A card\n")
    out = tmp_path / "out.edgm"
    assert main(["pack", str(tmp_path / "draft"), "--version", "2.5", "-o", str(out)]) == exits.DONE
    assert main(["inspect", str(out)]) == exits.DONE
    told = capsys.readouterr().out
    assert "metadata 2.5" in told
    assert "CARD.md" in told
    assert "golden        samples in golden.npz" in told


def test_a_draft_is_no_bundle_yet(drafted, tmp_path):
    drafted(DATA / "metadata.tflite")
    with pytest.raises(BundleError) as refused:
        open_folder(tmp_path / "draft")
    assert refused.value.hint == f"make a bundle: edgectl pack {tmp_path / 'draft'}"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("hop = [", "manifest.toml: "),
        ('hop = "often"', "Expected `int`, got `str` - at `$.window.hop`"),
        ("hop = 0", "Expected `int` >= 1 - at `$.window.hop`"),
        ("hopp = 1", "manifest.toml: Object contains unknown field `hopp`"),
        ("hop = 1\nsample_shape = [4]", "manifest.toml: window: needs either channels or sample_shape"),
    ],
)
def test_a_mistake_in_a_draft_is_told(drafted, tmp_path, capsys, line, problem):
    _, _, text = drafted(DATA / "metadata.tflite")
    (tmp_path / "draft" / "manifest.toml").write_text(text.replace("hop = 1\n", line + "\n"))
    assert problem in refusal(capsys, "pack", tmp_path / "draft")


@pytest.mark.parametrize("length", ["-1", "0", "99999999999999999999"])
def test_a_length_that_cannot_be_is_refused_before_a_runtime_sees_it(drafted, tmp_path, capsys, length):
    _, _, text = drafted(DATA / "dynamic.tflite")
    (tmp_path / "draft" / "manifest.toml").write_text(text.replace("length = 4\n", f"length = {length}\n"))
    assert "at `$.window.length`" in refusal(capsys, "pack", tmp_path / "draft")


def test_a_draft_and_another_manifest_are_one_too_many(drafted, tmp_path, capsys):
    drafted(DATA / "metadata.tflite")
    assert "leave --manifest out" in refusal(capsys, "pack", tmp_path / "draft", "--manifest", "part.json")


# What is refused


def test_nothing_is_written_over(drafted, tmp_path, capsys):
    drafted(DATA / "metadata.tflite")
    told = refusal(capsys, "model", "draft", DATA / "metadata.tflite", "-o", tmp_path / "draft")
    assert "exists already, and is not empty" in told


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("edgetpu.tflite", "is compiled for the Edge TPU"),
        ("custom_op.tflite", "custom op"),
        ("colours.txt", "not a TFLite file"),
        ("nowhere.tflite", "cannot be read"),
    ],
)
def test_what_is_no_model_for_a_cpu_leaves_no_folder(tmp_path, capsys, model, problem):
    told = refusal(capsys, "model", "draft", DATA / model, "-o", tmp_path / "draft")
    assert problem in told
    assert not (tmp_path / "draft").exists()


def test_a_full_disk_leaves_no_half_of_a_draft(drafted, tmp_path, capsys, monkeypatch):
    def full(file, pieces):
        if file.name == "manifest.toml":
            raise StoreError(f"{file} cannot be written: No space left on device", hint="")
        bundle_file.save(file, pieces)

    monkeypatch.setattr(model, "save", full)
    told = refusal(capsys, "model", "draft", DATA / "metadata.tflite", "-o", tmp_path / "draft")
    assert "No space left on device" in told
    monkeypatch.undo()
    assert drafted(DATA / "metadata.tflite")


def test_a_name_must_fit(tmp_path, capsys):
    told = refusal(capsys, "model", "draft", DATA / "float.tflite", "--name", "My Model", "-o", tmp_path / "draft")
    assert "'My Model' is no name of a model" in told


def test_names_in_a_file_stay_within_their_comment_or_string():
    evil = 'x\nversion = "9" # \x1b[2J'
    structure = read_structure(DATA / "float.tflite")
    tensor = TensorSpec(name=evil, shape=(1, 8), dtype="float32")
    back = structure._replace(
        inputs=(*structure.inputs, tensor), outputs=(*structure.outputs, tensor), dynamic=((), ()),
        last_ops=("", ""),
    )  # fmt: skip
    made = draft(f"a{evil}.tflite", back, derive(back), "evil")
    manifest = tomllib.loads(made.text)
    assert (manifest["version"], manifest["inputs"][1]["feedback"]) == ("1", evil)
    assert "\x1b" not in made.text


def test_lines_are_counted_as_an_editor_counts_them():
    assert unfilled('a = "\u2028"\n# b = "FILL-IN"\nc = ["FILL-IN"]\n') == [3]


@pytest.mark.parametrize(("shape", "length", "columns"), [((28, 28), 28, 28), ((1, 49, 10, 1), 49, 10)])
def test_a_tensor_of_two_axes_may_hold_rows_of_channels(shape, length, columns):
    tensor = TensorSpec(name="x", shape=shape, dtype="int8", scale=0.58, zero_point=83)
    structure = TfliteFile(inputs=(tensor,), outputs=(tensor,), nodes=1, ops=(), custom_ops=(), dynamic=((),))
    made = draft("x.tflite", structure._replace(last_ops=("",)), derive(structure), "x")
    rows = made.text[made.text.index(f"# length = {length}\n") :].partition("\n\n")[0]
    text = "\n".join(line.removeprefix("# ") for line in rows.splitlines())
    window = convert(tomllib.loads(text), WindowSpec)
    assert (window.length, len(window.channels), window.rate, window.sample_shape) == (length, columns, 100.0, ())


def test_a_mark_is_found_until_its_author_deletes_it():
    assert drafts.marked("# TO DO: a\n#   more\na = 1\n\n# TO DO: b\n") == [1, 5]


def test_packing_warns_of_marks_left_in_a_draft(drafted, tmp_path, capsys):
    _, lines, text = drafted(DATA / "metadata.tflite")
    assert lines
    assert main(["pack", str(tmp_path / "draft"), "-o", str(tmp_path / "a.edgm")]) == exits.DONE
    assert f"still marked TO DO: line {drafts.marked(text)[0]}" in capsys.readouterr().err
    checked = "\n".join(line for line in text.splitlines() if not line.startswith("# TO DO"))
    (tmp_path / "draft" / "manifest.toml").write_text(checked)
    assert main(["pack", str(tmp_path / "draft"), "-o", str(tmp_path / "b.edgm")]) == exits.DONE
    assert "TO DO" not in capsys.readouterr().err


def test_a_model_without_tensors_is_drafted_too():
    empty = TfliteFile(inputs=(), outputs=(), nodes=0, ops=(), custom_ops=())
    made = draft("empty.tflite", empty, derive(empty), "empty")
    assert tomllib.loads(made.text)["postprocess"]["kind"] == FILL_IN


def test_an_input_of_no_size_is_drafted_too():
    said = TensorMetadata(name="nothing")
    tensor = TensorSpec(name="x", shape=(1, 0), dtype="float32")
    empty = TfliteFile(inputs=(tensor,), outputs=(tensor,), nodes=0, ops=(), custom_ops=(), input_metadata=(said,))
    empty = empty._replace(dynamic=((),), last_ops=("",))
    made = draft("empty.tflite", empty, derive(empty), "empty")
    assert tomllib.loads(made.text)["window"]["channels"] == []


def test_the_keys_of_comments_are_keys_of_a_manifest():
    text = "\n".join(line.removeprefix("# ") for line in drafts._OPTIONAL.splitlines() if " = " in line or "[" in line)
    tables = tomllib.loads(text)
    from edged.core.manifest import Golden, Limits, ModelRequirements, Probation

    for name, struct in (
        ("golden", Golden),
        ("limits", Limits),
        ("needs", ModelRequirements),
        ("probation", Probation),
    ):
        struct(**tables[name])
