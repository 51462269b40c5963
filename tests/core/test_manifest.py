import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.errors import BundleError
from edged.core.manifest import (
    MAX_MANIFEST_BYTES,
    Classify,
    DetectAnomaly,
    Manifest,
    Regress,
    Versions,
    decode,
    encode,
    version_key,
)
from edged.core.pictures import PictureSpec

DIGEST = "0" * 64
NESTED = b"[" * 100_000 + b"]" * 100_000

MOTION: dict[str, Any] = {
    "schema": "edged.manifest/1",
    "name": "motion",
    "version": "1.2",
    "files": {
        "model.tflite": {"bytes": 10, "sha256": DIGEST},
        "golden.npz": {"bytes": 10, "sha256": DIGEST},
    },
    "window": {"length": 100, "hop": 20, "rate": 10.0, "channels": [{"name": "ax", "unit": "g"}, {"name": "ay"}]},
    "inputs": [{"tensor": {"name": "x", "shape": [1, 100, 2], "dtype": "int8", "scale": 0.1, "zero_point": -3}}],
    "outputs": [{"name": "y", "shape": [1, 3], "dtype": "int8", "scale": 0.1, "zero_point": -128}],
    "preprocess": [{"step": "normalise", "mean": [0.0, 1.0], "std": [2.0]}, {"step": "clip", "low": -4, "high": 4}],
    "labels": ["rest", "walk", "run"],
    "postprocess": {"kind": "classification", "decision": {"k": 3, "n": 5, "background": ["rest"]}},
    "golden": {},
}

REFERENCE = {"windows": 9, **{name: [1.0] * 2 for name in ("mean", "std", "min", "max")}}
REGRESSION = {"labels": [], "postprocess": {"kind": "regression", "names": ["x", "y", "z"], "units": ["m", "m", "m"]}}
DETECTION = {
    "labels": [],
    "outputs": [{"name": "y", "shape": [1, 100, 2], "dtype": "int8", "scale": 0.1}],
    "postprocess": {"kind": "anomaly", "decision": {"threshold": 0.5}},
}
FEEDBACK = {
    "inputs": [
        MOTION["inputs"][0],
        {"tensor": {"name": "h", "shape": [1, 3], "dtype": "int8"}, "feed": "feedback", "feedback": "y"},
    ]
}

VARIANTS = {
    "files": {**MOTION["files"], "edgetpu.tflite": {"bytes": 10, "sha256": DIGEST}},
    "variants": [
        {"name": "coral", "delegate": "edgetpu", "file": "edgetpu.tflite"},
        {"name": "vivante", "delegate": "teflon", "file": "model.tflite", "options": {"Performance": "Low"}},
    ],
}


def motion(*changes: dict[str, Any], **paths: Any) -> bytes:
    """Return MOTION with parts replaced, and then single values by path: `window__length=3`; None removes a value."""
    manifest = copy.deepcopy(MOTION)
    for change in changes:
        manifest |= copy.deepcopy(change)
    for path, value in paths.items():
        *parents, last = [int(key) if key.isdecimal() else key for key in path.split("__")]
        place: Any = manifest
        for key in parents:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return json.dumps(manifest).encode()


def test_a_manifest():
    manifest = decode(motion())
    assert (manifest.name, manifest.version, manifest.model, manifest.backend) == (
        "motion",
        "1.2",
        "model.tflite",
        "tflite",
    )
    assert manifest.window.shape == (2,)
    assert manifest.inputs[0].tensor.shape == (1, 100, 2)
    assert isinstance(manifest.postprocess, Classify)
    assert manifest.postprocess.decision.background == ("rest",)
    assert manifest.golden is not None
    assert manifest.golden.steps == 2.0


def test_a_regression():
    manifest = decode(motion(REGRESSION))
    assert isinstance(manifest.postprocess, Regress)
    assert manifest.postprocess.names == ("x", "y", "z")


def test_a_regression_of_more_values_than_can_be_named():
    many = motion(REGRESSION, postprocess__names=[], postprocess__units=[], outputs__0__shape=[1, 1001])
    assert decode(many).postprocess == Regress()


def test_an_anomaly():
    manifest = decode(motion(DETECTION))
    assert isinstance(manifest.postprocess, DetectAnomaly)
    assert manifest.postprocess.decision.threshold == 0.5


def test_a_model_fed_with_what_it_said():
    assert decode(motion(FEEDBACK)).inputs[1].feedback == "y"


def test_labels_may_be_left_to_the_model_file():
    assert decode(motion(labels=None)).labels == ()


def test_a_picture():
    manifest = decode(
        motion(
            window={"length": 1, "hop": 1, "sample_shape": [10, 10, 2], "dtype": "uint8"},
            inputs__0__tensor__shape=[1, 10, 10, 2],
        )
    )
    assert manifest.window.shape == (10, 10, 2)


def test_what_a_model_needs_of_a_device_and_is_held_to():
    manifest = decode(
        motion(
            needs={"runtimes": {"ai-edge-litert": {"at_least": "2.3", "below": "3"}}, "memory_bytes": 8 << 20},
            limits={"latency_p99": 0.05, "rss_bytes": 100 << 20, "seconds": 30},
            probation={"seconds": 60, "windows": 100, "constant_windows": 50, "max_decisions_per_hour": 12},
        )
    )
    assert manifest.needs.runtimes["ai-edge-litert"] == Versions(at_least="2.3", below="3")
    assert manifest.limits.latency_p99 == 0.05
    assert (manifest.probation.constant_windows, manifest.probation.max_error_share) == (50, 0.05)
    assert decode(encode(manifest)) == manifest


def test_variants():
    coral, vivante = decode(motion(VARIANTS, limits={"delegated_share": 0.9})).variants
    assert (coral.delegate, coral.file, coral.signature, coral.options) == ("edgetpu", "edgetpu.tflite", None, {})
    assert (vivante.file, vivante.options) == ("model.tflite", {"Performance": "Low"})


def test_a_manifest_with_no_variants_says_nothing_of_them():
    assert b"variants" not in encode(decode(motion()))


def test_digests_of_chunks():
    chunks = ["1" * 64, "2" * 64]
    manifest = decode(motion(files__extra={"bytes": 262_145, "sha256": DIGEST, "chunks": chunks}))
    assert manifest.files["extra"].chunks == tuple(chunks)
    assert manifest.files["model.tflite"].chunks == ()


@pytest.mark.parametrize(
    "change",
    [{}, REGRESSION, DETECTION, FEEDBACK, VARIANTS],
    ids=["class", "value", "anomaly", "feedback", "variants"],
)
def test_it_survives_encoding(change):
    manifest = decode(motion(change))
    assert decode(encode(manifest)) == manifest


def test_what_would_not_decode_is_not_encoded():
    manifest = decode(motion())
    broken = Manifest(
        **{field: getattr(manifest, field) for field in manifest.__struct_fields__ if field != "labels"},
        labels=("one",),
    )
    with pytest.raises(BundleError, match="1 labels for 3 scores"):
        encode(broken)


@pytest.mark.parametrize(
    ("data", "reason"),
    [  # the place, or the project's own words: messages of the decoder differ between versions
        pytest.param(b"", r"manifest\.json", id="empty"),
        pytest.param(motion()[:-1], r"manifest\.json", id="cut"),
        pytest.param(b"[" * 100_000, r"manifest\.json", id="deep"),
        pytest.param(motion(**{"y" * 100_000: 1}), r"y{900,1000}\.\.\. \(", id="endless words"),
        pytest.param(b'{"postprocess": {"x": ' + NESTED + b"}}", r"manifest\.json", id="deep, before a tag"),
        pytest.param(b'{"name": "\xff"}', "(?i)utf-8", id="not UTF-8"),
        pytest.param(b" " * (MAX_MANIFEST_BYTES + 1), "has 1048577 bytes", id="big"),
        pytest.param(motion(colour="red"), "`colour`", id="unknown field"),
        pytest.param(motion(window__colour="red"), r"`colour` .*`\$.window`", id="unknown field inside"),
        pytest.param(motion(outputs__0__colour="red"), "`colour`", id="unknown field of a tensor"),
        pytest.param(motion(schema="edged.manifest/2"), "edged.manifest/2", id="another schema"),
        pytest.param(motion(window__length="100"), r"`\$.window.length`", id="type"),
        pytest.param(motion().replace(b"10.0", b"NaN"), r"manifest\.json", id="nan"),
        pytest.param(motion().replace(b"10.0", b"1e999"), r"manifest\.json", id="infinite"),
        pytest.param(motion(window__rate=1e300), r"\$.window.rate", id="too big for float32"),
        pytest.param(motion(name="../etc"), r"`\$.name`", id="a path for a name"),
        pytest.param(motion().replace(b'"labels"', b'"name": "walk", "labels"'), "'name' occurs twice", id="twice"),
        pytest.param(motion().replace(b'"k": 3', b'"k": 3, "k": 4'), "'k' occurs twice", id="twice, inside"),
        pytest.param(motion(version="1.0-beta"), r"`\$.version`", id="version"),
    ],
)
def test_what_is_no_manifest_is_refused(data, reason):
    with pytest.raises(BundleError, match=reason) as refused:
        decode(data)
    assert refused.value.message.startswith("manifest.json")
    assert refused.value.hint


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        # reference
        (motion(reference={**REFERENCE, "std": [1.0]}), "reference.std: has 1 values, but 2 are needed"),
        (motion(reference={**REFERENCE, "shares": {"flying": 1.0}}), "reference.shares: no label 'flying'"),
        (motion(reference={**REFERENCE, "shares": {"walk": 0.5}}), "reference.shares: the sum is 0.5, not 1"),
        (motion(reference={**REFERENCE, "scores": [0, 1, 2, 3, 4]}), "reference.scores: only an anomaly has a score"),
        (motion(probation={"max_label_shift": 0.2}), "probation.max_label_shift: needs reference.shares"),
        # files
        (motion(model="other.tflite"), "model: other.tflite is not in files"),
        (motion(golden__file="other.npz"), "golden.file: other.npz is not in files"),
        (motion(golden__file="model.tflite"), "golden.file: is the model itself"),
        (motion(files={"manifest.json": {"bytes": 1, "sha256": DIGEST}}), "files: manifest.json cannot be listed"),
        (motion(files={"../model": {"bytes": 1, "sha256": DIGEST}}), "regex"),
        (motion(files={"manifest.json.sig": {"bytes": 1, "sha256": DIGEST}}), "files: manifest.json.sig cannot be"),
        (motion(files__extra={"bytes": 0, "sha256": DIGEST}), r"\$.files"),
        (motion(files__one={"bytes": 256 << 20, "sha256": DIGEST}, files__two={"bytes": 256 << 20, "sha256": DIGEST}),
         "files: have more than 536870912 bytes together"),
        (motion(files__extra={"bytes": 10, "sha256": DIGEST, "chunks": [DIGEST, DIGEST]}),
         "files: extra: 10 bytes have 1 chunks, but 2 digests are given"),
        (motion(files__extra={"bytes": 262_145, "sha256": DIGEST, "chunks": [DIGEST]}), "262145 bytes have 2 chunks"),
        (motion(files__extra={"bytes": 10, "sha256": DIGEST, "chunks": ["1" * 64]}), "the digest of the only chunk"),
        (motion(files__extra={"bytes": 1, "sha256": DIGEST.upper().replace("0", "A")}), "regex"),
        # window
        (motion(window__sample_shape=[2]), "window: needs either channels or sample_shape"),
        (motion(window__channels=[]), "window: needs either channels or sample_shape"),
        (motion(window__channels=[{"name": "ax"}, {"name": "ax"}]), "window.channels: 'ax' occurs twice"),
        (motion(window={"length": 1, "hop": 1, "sample_shape": [5000, 5000]}), "window: has more than 16777216"),
        (motion(window__hop=0), "window.hop"),
        # tensors
        (motion(outputs__0__shape=[1, 0]), r"tensor 'y': the shape \[1, 0\] is impossible"),
        (motion(outputs__0__shape=[1] * 9), "tensor 'y': the shape"),
        (motion(outputs__0__shape=[5000, 5000]), "tensor 'y': has more than"),
        (motion(outputs__0__dtype="object"), "tensor 'y': the dtype 'object' is none of"),
        (motion(outputs__0__dtype="float32"), "tensor 'y': float32 has no scale"),
        (motion(outputs__0__scale=-0.1), "tensor 'y': the scale -0.1"),
        (motion(outputs__0__name="y" * 1001), "outputs: the name of a tensor has 1001 characters"),
        (motion(REGRESSION, outputs__0__scale=0, outputs__0__zero_point=1 << 31), "tensor 'y': the zero point is no"),
        (motion(outputs__0__zero_point=-129), "tensor 'y': the zero point -129 does not fit int8"),
        (motion(outputs=[MOTION["outputs"][0]] * 2), "outputs: 'y' occurs twice"),
        (motion(inputs=[MOTION["inputs"][0]] * 2), "inputs: 'x' occurs twice"),
        # inputs
        (motion(window__length=99), r"tensor 'x': the shape \[1, 100, 2\] does not hold a window of \[99, 2\]"),
        (motion(inputs__0__tensor__shape=[1, 2, 100]), "tensor 'x': the axes of the window"),
        (motion(inputs__0__channels=["az"]), "tensor 'x': the window has no channel 'az'"),
        (motion(inputs__0__channels=["ax", "ax"]), "tensor 'x': channels: 'ax' occurs twice"),
        (motion(inputs__0__channels=["ax"]), r"does not hold a window of \[100, 1\]"),
        (motion(inputs__0__feedback="y"), "names a feedback but its feed is"),
        (motion(FEEDBACK, inputs__1__feedback="z"), "tensor 'h': the feedback 'z' is not an output"),
        (motion(FEEDBACK, inputs__1__tensor__shape=[3]), "tensor 'h': the shape differs from the output 'y'"),
        (motion(FEEDBACK, inputs__1__channels=["ax"]), "tensor 'h': names channels but its feed is"),
        (motion(FEEDBACK, inputs__0=None), "inputs: no input is fed by the window"),
        # preprocess
        (motion(preprocess__0__mean=[1, 2, 3]), r"preprocess\[0\].mean: has 3 values, but 1 or 2 are needed"),
        (motion(preprocess__0__std=[1, 2, 3]), r"preprocess\[0\].std: has 3 values"),
        (motion(preprocess__0__std=[0]), "preprocess"),
        (motion(preprocess__1__low=4), r"preprocess\[1\]: low \(4.0\) is not below high"),
        # needs, limits, probation
        (motion(needs={"runtimes": {"tflite": {"at_least": "2.3", "below": "2.3.0"}}}), "needs.runtimes: tflite: no"),
        (motion(needs={"delegates": ["cpu", "cpu"]}), "needs.delegates: 'cpu' occurs twice"),
        (motion(needs={"memory_bytes": 0}), r"\$.needs.memory_bytes"),
        (motion(limits={"latency_p99": 2, "seconds": 1}), "limits: latency_p99 exceeds seconds"),
        (motion(limits={"seconds": 0}), r"\$.limits.seconds"),
        (motion(probation={"max_error_share": 1.5}), r"\$.probation.max_error_share"),
        (motion(probation={"windows": 5, "constant_windows": 6}), "probation: constant_windows exceeds windows"),
        (motion(probation={"min_decisions_per_hour": 3, "max_decisions_per_hour": 2}), "is more than max_decisions"),
        (motion(REGRESSION, probation={"max_decisions_per_hour": 2}), "the kind 'regression' makes no decisions"),
        # variants
        (motion(VARIANTS, variants__1__name="coral"), "variants: 'coral' occurs twice"),
        (motion(VARIANTS, variants__0__file="other.tflite"), "variants: coral: other.tflite is not in files"),
        (motion(VARIANTS, variants__0__file="golden.npz"), "variants: coral: golden.npz is the golden samples"),
        (motion(VARIANTS, variants__0__file="/usr/lib/model.tflite"), "regex"),
        (motion(VARIANTS, variants__0__name="cpu"), "variants: cpu: 'cpu' is reserved"),
        (motion(VARIANTS, variants__0__delegate="auto"), "variants: coral: 'auto' is reserved"),
        (motion(VARIANTS, variants__0__delegate="libedgetpu.so"), "regex"),
        (motion(VARIANTS, variants__0__delegate=None), "missing required field `delegate`"),
        (motion(VARIANTS, variants__0__library="/tmp/x.so"), "`library`"),
        (motion(VARIANTS, variants__0__options={"library_path": "/tmp/x.so"}), "regex"),
        (motion(VARIANTS, variants__0__options={"device": "usb\0"}), "regex"),
        (motion(VARIANTS, variants__0__options={"a b": "1"}), "regex"),
        (motion(VARIANTS, variants=VARIANTS["variants"][:1] * 17), "length <= 16"),
        (motion(VARIANTS, backend="fake"), "variants: the backend fake has no delegates"),
        (motion(VARIANTS, limits={"delegated_share": 1.1}), r"\$.limits.delegated_share"),
        (motion(limits={"delegated_share": 0.5}), "limits.delegated_share: needs a variant"),
        # postprocess
        (motion(postprocess__output=1), "postprocess.output: no output 1 exists, only 1"),
        (motion(labels=["rest", "walk"]), "labels: 2 labels for 3 scores"),
        (motion(labels=["rest", "walk", "rest"]), "labels: 'rest' occurs twice"),
        (motion(preprocess=[{"step": "none"}, {"step": "standardise"}]), r"preprocess\[0\]: \"none\" stands alone"),
        (motion(DETECTION, postprocess__decision__threshold=0), "threshold: an anomaly needs a threshold other than 0"),
        (motion(postprocess__decision__background=["fly"]), "postprocess.decision: no label 'fly'"),
        (motion(postprocess__decision__thresholds={"fly": 0.5}), "postprocess.decision: no label 'fly'"),
        (motion(postprocess__decision__k=6), r"postprocess.decision: k \(6\) is more than n \(5\)"),
        (motion(REGRESSION, postprocess__names=["x", "y"]), "postprocess.names: 2 names for 3 values"),
        (motion(REGRESSION, postprocess__names=["x", "x", "y"]), "postprocess.names: 'x' occurs twice"),
        (motion(REGRESSION, postprocess__names=[]), "postprocess.names: 0 names for 3 values"),
        (
            motion(REGRESSION, postprocess__names=["x"], postprocess__units=[], outputs__0__shape=[1, 1001]),
            "postprocess.names: 1 names for 1001 values: more than 1000 have no names",
        ),
        (
            motion(REGRESSION, postprocess__names=[], postprocess__units=[], outputs__0__shape=[1, 100_001]),
            "postprocess.output: has 100001 values, and 100000 are allowed",
        ),
        (motion(REGRESSION, postprocess__units=["m"]), "postprocess.units: 1 units for 3 values"),
        (motion(REGRESSION, labels=["a", "b", "c"]), "labels: the kind 'regression' has no labels"),
        (motion(DETECTION, outputs__0__shape=[1, 99, 2]), "postprocess.score: 198 elements cannot rebuild the 200"),
        (motion(DETECTION, postprocess__score="output"), "postprocess.output: an anomaly score is a single number"),
        (motion(DETECTION, postprocess__decision__background=["rest"]), "an anomaly has no labels"),
        (motion(DETECTION, postprocess__decision=None), "missing required field `decision`"),
    ],
)  # fmt: skip
def test_parts_that_contradict_each_other_are_refused(data, reason):
    with pytest.raises(BundleError, match=reason):
        decode(data)


def test_channels_may_be_shared_out_among_inputs():
    inputs = [
        {"tensor": {"name": name, "shape": [1, 100, 1], "dtype": "float32"}, "channels": [name]}
        for name in ("ax", "ay")
    ]
    assert [each.channels for each in decode(motion(inputs=inputs)).inputs] == [("ax",), ("ay",)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with pytest.raises(BundleError):
        decode(data)


@given(part=st.sampled_from(sorted({*MOTION, *VARIANTS, "limits"})), value=json_values)
def test_any_part_replaced_by_anything_is_refused_or_decoded(part, value):
    data = json.dumps(MOTION | {part: value}).encode()
    try:
        manifest = decode(data)
    except BundleError:
        return
    assert decode(encode(manifest)) == manifest


@given(position=st.integers(0, len(motion()) - 1), byte=st.integers(0, 255))
def test_a_byte_changed_is_refused_or_decoded(position, byte):
    data = bytearray(motion())
    data[position] = byte
    try:
        manifest = decode(bytes(data))
    except BundleError:
        return
    assert decode(encode(manifest)) == manifest


@pytest.mark.parametrize(("older", "newer"), [("1", "2"), ("1.9", "1.10"), ("1.0.0.1", "1.0.1"), ("0", "0.1")])
def test_versions_go_up(older, newer):
    assert version_key(older) < version_key(newer)


def test_versions_that_are_the_same():
    assert version_key("1") == version_key("1.0.0.0")


CAMERA = {
    "window": {"length": 1, "hop": 1, "sample_shape": [96, 64, 3], "dtype": "uint8"},
    "inputs": [{"tensor": {"name": "x", "shape": [1, 96, 64, 3], "dtype": "uint8"}}],
    "preprocess": [],
}


def camera(shape=(1, 96, 64, 3), sample=(96, 64, 3), **picture):
    """Return a manifest of a model of pictures; `picture` are fields besides the size."""
    parts = copy.deepcopy(MOTION | CAMERA)
    parts["inputs"][0]["tensor"]["shape"] = shape
    parts["window"]["sample_shape"] = sample
    parts["picture"] = {"width": 64, "height": 96, **picture}
    return json.dumps(parts).encode()


def test_the_picture_that_a_model_takes():
    assert decode(camera(fit="letterbox", pad=114)).picture_spec == PictureSpec(
        width=64, height=96, fit="letterbox", pad=114
    )
    assert decode(camera((1, 96, 64, 1), (96, 64), colour="gray")).picture_spec.shape == (96, 64, 1)
    assert decode(camera((1, 3, 96, 64), layout="nchw")).picture_spec.layout == "nchw"


def test_without_a_picture_the_window_says_what_a_camera_is_to_send():
    assert decode(json.dumps(MOTION | CAMERA).encode()).picture_spec == PictureSpec(width=64, height=96)
    assert decode(motion()).picture_spec is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (camera(sample=(64, 96, 3)), r"picture: window.sample_shape must be \[96, 64, 3\] for it, not \[64, 96, 3\]"),
        (camera(colour="gray"), r"picture: window.sample_shape must be \[96, 64, 1\] for it"),
        (camera(layout="nchw"), r"the axes of the window \[3, 96, 64\] are turned round in the tensor"),
        (camera((1, 3, 96, 64)), r"the axes of the window \[96, 64, 3\] are turned round in the tensor"),
        (camera(pad=256), r"\$.picture.pad"),
        (camera(fit="zoom"), r"\$.picture.fit"),
        (camera(width=0), r"\$.picture.width"),
        (motion(picture={"width": 2, "height": 100}), "picture: needs a window of length 1, not 100"),
    ],
)
def test_a_picture_that_does_not_fit_the_window_or_the_tensor_is_refused(data, reason):
    with pytest.raises(BundleError, match=reason):
        decode(data)
