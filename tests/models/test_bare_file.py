"""Properties of a bare file: inherited from the previous version, or its own."""

import json

import msgspec
import pytest

from edged.core.errors import BundleError
from edged.core.manifest import Manifest, Normalise, NoStep, decode
from edged.models.bare_file import inherit, own_parts
from tests.bundles import COLOURS, DATA
from tests.labelled import relabelled

FLOAT = (DATA / "float.tflite").read_bytes()
METADATA = (DATA / "metadata.tflite").read_bytes()


def colours(**parts: object) -> Manifest:
    files = {"model.tflite": {"bytes": 1, "sha256": "0" * 64}}
    return decode(json.dumps({**COLOURS, "files": files, **parts}).encode())


def inherited(data: bytes, base: Manifest, before: bytes | None) -> Manifest:
    return inherit(data, base, "1.1", before).manifest


def test_labels_of_the_file_s_own_are_taken():
    base = colours(preprocess=[{"step": "normalise", "mean": [2], "std": [4]}])
    turned = relabelled(["blue", "red", "green"])
    found = inherited(turned, base, METADATA)
    assert found.labels == ("blue", "red", "green")
    assert own_parts(found, base) == ["labels (blue, red, green)"]
    assert inherited(METADATA, base, turned).labels == ("red", "green", "blue")


def test_labels_that_are_there_twice_are_numbered():
    assert inherited(relabelled(["red", "red", "blue"]), colours(), FLOAT).labels == ("red", "red (2)", "blue")


def test_what_the_metadata_said_before_is_still_overruled():
    base = colours(labels=["rot", "gruen", "blau"], preprocess=[{"step": "none"}])
    found = inherited(METADATA, base, METADATA)
    assert (found.labels, found.preprocess) == (("rot", "gruen", "blau"), (NoStep(),))
    assert own_parts(found, base) == []


def test_a_file_that_says_nothing_inherits_everything():
    found = inherited(FLOAT, colours(), METADATA)
    assert (found.labels, found.preprocess) == (("red", "green", "blue"), ())


def test_a_normalisation_that_is_new_is_taken_unless_the_version_has_steps_of_its_own():
    found = inherited(METADATA, colours(), FLOAT)
    assert found.preprocess == (Normalise(mean=(2.0,), std=(4.0,)),)
    assert own_parts(found, colours()) == ["normalisation"]
    with pytest.raises(BundleError, match="state another normalisation than before, and colours"):
        inherited(METADATA, colours(preprocess=[{"step": "standardise"}]), FLOAT)


@pytest.mark.parametrize(
    "parts",
    [
        {"postprocess": {"kind": "classification", "decision": {"background": ["red"]}}},
        {"postprocess": {"kind": "classification", "decision": {"thresholds": {"red": 0.5}}}},
        {
            "reference": {
                "windows": 1,
                "mean": [0] * 4,
                "std": [0] * 4,
                "min": [0] * 4,
                "max": [0] * 4,
                "shares": {"red": 1.0},
            }
        },
    ],
)
def test_labels_that_lack_one_that_the_contract_names_are_refused(parts):
    labels = relabelled(["rot", "green", "blue"])
    with pytest.raises(BundleError, match="rot, green, blue, and no 'red', which colours") as refused:
        inherited(labels, colours(**parts), METADATA)
    assert "edgectl pack" in refused.value.hint


def test_labels_that_are_too_few_are_refused():
    with pytest.raises(BundleError, match="rot, blau, 2 of them"):
        inherited(relabelled(["rot", "blau"]), colours(), METADATA)


def test_an_open_shape_is_that_of_the_version_before():
    base = colours(
        window={"length": 3, "hop": 3, "channels": [{"name": name} for name in "abcd"]},
        inputs=[{"tensor": {"name": "x", "shape": [3, 4], "dtype": "float32"}}],
        outputs=[{"name": "y", "shape": [3, 3], "dtype": "float32"}],
        labels=[],
        postprocess={"kind": "regression", "names": [f"y{index}" for index in range(9)]},
    )
    found = inherited((DATA / "open.tflite").read_bytes(), base, None)
    assert (found.inputs, found.outputs) == (base.inputs, base.outputs)
    with pytest.raises(BundleError, match=r"input 0, 'x', is float32 \[3, 4\] in colours 1\.0, and float32 \[1, 4\]"):
        inherited(FLOAT, base, None)


def test_the_head_is_always_the_same():
    base = msgspec.structs.replace(colours(), created=1)
    assert inherit(METADATA, base, "2", FLOAT) == inherit(METADATA, base, "2", FLOAT)
