import hashlib
import io
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edged.core.detection_spec import AnchorTable, DetectObjects, SsdPostprocess
from edged.core.errors import BundleError, StoreError
from edged.core.manifest import Channel, Classify, Normalise, NoStep
from edged.core.preprocess import Preprocessor
from edged.core.types import TensorSpec
from edged.models.atomic_files import Disk
from edged.models.bundle import derive, digest, examine, open_folder, unpack
from tests.bundles import DATA, write_bundle
from tests.containers import MODEL, NOTES, PlainDisk, container
from tests.real_models import real_model

# A folder with a manifest


def test_a_sound_folder(tmp_path):
    bundle = open_folder(write_bundle(tmp_path / "colours", files={"card.md": b"# Colours"}))
    assert (bundle.manifest.name, bundle.manifest.labels) == ("colours", ("red", "green", "blue"))
    assert bundle.model == tmp_path / "colours" / "model.tflite"
    assert bundle.file("card.md").read_text() == "# Colours"


def test_a_file_the_manifest_does_not_list_is_not_given(tmp_path):
    with pytest.raises(BundleError, match=r"lists no file '\.\./secret'"):
        open_folder(write_bundle(tmp_path)).file("../secret")


def change(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.tflite").write_bytes(content) and None


def flip_a_bit(folder: Path) -> None:
    model = bytearray((folder / "model.tflite").read_bytes())
    model[-200] ^= 1
    (folder / "model.tflite").write_bytes(model)


def replace_by_link(folder: Path) -> None:
    (folder / "model.tflite").unlink()
    (folder / "model.tflite").symlink_to(DATA / "float.tflite")


def replace_by_folder(folder: Path) -> None:
    (folder / "model.tflite").unlink()
    (folder / "model.tflite").mkdir()


def replace_by_pipe(folder: Path) -> None:
    (folder / "model.tflite").unlink()
    os.mkfifo(folder / "model.tflite")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json cannot be read: No such file"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json: "),
        (lambda folder: (folder / "manifest.json").write_bytes(bytes(2 << 20)), "manifest.json has "),
        (lambda folder: (folder / "model.tflite").unlink(), "model.tflite cannot be read: No such file"),
        (change(b""), "model.tflite has 0 bytes, and the manifest says 1004"),
        (change(bytes(2000)), "model.tflite has 2000 bytes, and the manifest says 1004"),
        (flip_a_bit, "model.tflite is damaged: the SHA-256"),
        (replace_by_link, "model.tflite cannot be read"),
        (replace_by_folder, "model.tflite is not a regular file"),
        (replace_by_pipe, "model.tflite is not a regular file"),
        (lambda folder: (folder / "extra.bin").write_bytes(b"x"), "extra.bin is not in the manifest"),
        (lambda folder: (folder / "sub").mkdir(), "sub is not in the manifest"),
        (lambda folder: (folder / os.fsdecode(b"\xff")).touch(), "\ufffd is not in the manifest"),
        (shutil.rmtree, "manifest.json cannot be read: No such file"),
    ],
)
def test_a_folder_that_is_not_sound_names_the_file(tmp_path, damage, reason):
    folder = write_bundle(tmp_path / "colours")
    damage(folder)
    with pytest.raises(BundleError, match=reason) as refused:
        open_folder(folder)
    assert str(folder) in refused.value.message
    assert refused.value.hint


def test_a_folder_that_the_board_cannot_open_just_now_is_not_damaged(tmp_path):
    folder = write_bundle(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(BundleError, match="Too many open files") as caught:
            open_folder(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.retryable
    assert caught.value.hint == "restart edged, or end other processes"


def test_labels_and_normalisation_come_from_the_metadata_where_the_manifest_is_silent(tmp_path):
    manifest = open_folder(write_bundle(tmp_path, model="metadata.tflite", labels=None)).manifest
    assert manifest.labels == ("red", "green", "blue")
    assert manifest.preprocess == (Normalise(mean=(2.0,), std=(4.0,)),)


def test_what_the_manifest_says_goes_before_the_metadata(tmp_path):
    own = [{"step": "normalise", "mean": [0], "std": [1]}]
    folder = write_bundle(tmp_path, model="metadata.tflite", labels=["a", "b", "c"], preprocess=own)
    manifest = open_folder(folder).manifest
    assert manifest.labels == ("a", "b", "c")
    assert manifest.preprocess == (Normalise(mean=(0.0,), std=(1.0,)),)


def test_a_classifier_with_no_labels_anywhere_is_refused(tmp_path):
    with pytest.raises(BundleError, match="no labels in the manifest, and none in TFLite metadata"):
        open_folder(write_bundle(tmp_path, labels=None))


def test_a_single_label_needs_a_threshold_for_it_is_always_the_best(tmp_path):
    """A wake word "decided" at 0.0156."""
    alone = {"outputs": [{"name": "y", "shape": [1, 1], "dtype": "float32"}], "labels": ["wake"]}
    with pytest.raises(BundleError, match="threshold: a single label needs a threshold"):
        open_folder(write_bundle(tmp_path, **alone))
    decision = {"kind": "classification", "decision": {"threshold": 0.5}}
    open_folder(write_bundle(tmp_path, **alone, postprocess=decision))


def test_metadata_that_contradict_the_manifest_are_refused(tmp_path):
    two = [{"name": "y", "shape": [1, 2], "dtype": "float32"}]
    with pytest.raises(BundleError, match="3 labels for 2 scores"):
        open_folder(write_bundle(tmp_path, model="metadata.tflite", labels=None, outputs=two))


def test_a_decision_is_held_against_labels_from_the_metadata(tmp_path):
    post = {"kind": "classification", "decision": {"background": ["violet"]}}
    with pytest.raises(BundleError, match="no label 'violet' exists"):
        open_folder(write_bundle(tmp_path, model="metadata.tflite", labels=None, postprocess=post))


def test_signatures_may_lie_beside_the_manifest(tmp_path):
    folder = write_bundle(tmp_path / "colours")
    (folder / "manifest.json.sig").write_text("signed by Alice")
    assert open_folder(folder).manifest.name == "colours"
    assert examine(folder).signatures == b"signed by Alice"


def test_the_identity_of_a_folder_is_its_manifest_s(tmp_path):
    folder = write_bundle(tmp_path / "colours")
    assert (
        digest(folder) == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest() == examine(folder).digest
    )
    with pytest.raises(BundleError, match=r"manifest.json cannot be read"):
        digest(tmp_path)


# Containers


def test_a_container_becomes_a_folder(tmp_path):
    head = unpack(io.BytesIO(container(signatures=b"signed by Alice")), tmp_path / "v", Disk())
    bundle = open_folder(tmp_path / "v")
    assert bundle.manifest == head.manifest
    assert (bundle.model.read_bytes(), bundle.file("notes.bin").read_bytes()) == (MODEL, NOTES)
    assert (tmp_path / "v" / "manifest.json.sig").read_bytes() == b"signed by Alice"
    assert digest(tmp_path / "v") == head.digest


def test_the_manifest_comes_last_so_that_no_half_of_a_folder_is_a_bundle(tmp_path):
    disk = PlainDisk()
    unpack(io.BytesIO(container(signatures=b"x")), tmp_path / "v", disk)
    assert disk.effects == [
        "remove v",
        "make v",
        "write model.tflite",
        "write notes.bin",
        "write manifest.json.sig",
        "write manifest.json",
        "sync v",
    ]


def test_what_a_power_cut_left_is_replaced(tmp_path):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "half").write_bytes(b"half")
    unpack(io.BytesIO(container()), tmp_path / "v", PlainDisk())
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == ["manifest.json", "model.tflite", "notes.bin"]


def test_after_an_error_of_the_disk_nothing_is_left(tmp_path):
    class FullDisk(PlainDisk):
        def write(self, file, pieces):
            if file.name == "notes.bin":
                raise StoreError("no space left")
            super().write(file, pieces)

    with pytest.raises(StoreError, match="no space left"):
        unpack(io.BytesIO(container()), tmp_path / "v", FullDisk())
    assert list(tmp_path.iterdir()) == []


def test_a_container_on_disk_is_examined_to_its_end(tmp_path):
    file = tmp_path / "colours.edgm"
    file.write_bytes(container(signatures=b"x"))
    assert (examine(file).manifest.name, examine(file).signatures) == ("colours", b"x")
    file.write_bytes(container()[:-1])
    with pytest.raises(BundleError, match=r"colours.edgm: the container breaks off"):
        examine(file)
    with pytest.raises(StoreError, match=r"absent.edgm cannot be read: No such file") as refused:
        examine(tmp_path / "absent.edgm")
    assert refused.value.hint


# A bare model


def test_a_bare_model_that_takes_a_row():
    bundle = derive(DATA / "metadata.tflite")
    manifest = bundle.manifest
    assert bundle.model == DATA / "metadata.tflite"
    assert (manifest.name, manifest.version) == ("metadata", "0")
    assert manifest.window.channels == tuple(Channel(name=f"c{index}") for index in range(4))
    assert (manifest.window.length, manifest.window.hop, manifest.window.dtype) == (1, 1, "float32")
    assert manifest.inputs[0].tensor == TensorSpec(name="serving_default_x:0", shape=(1, 4), dtype="float32")
    assert manifest.preprocess == (Normalise(mean=(2.0,), std=(4.0,)),)
    assert manifest.labels == ("red", "green", "blue")
    assert isinstance(manifest.postprocess, Classify)
    assert manifest.postprocess.decision.threshold == 0.25


def test_a_bare_model_may_be_a_link(tmp_path):
    """Caches of model hubs hold links."""
    (tmp_path / "link.tflite").symlink_to(DATA / "metadata.tflite")
    bundle = derive(tmp_path / "link.tflite")
    assert (bundle.manifest.name, bundle.model) == ("link", tmp_path / "link.tflite")


def test_what_was_derived_is_said():
    assert derive(DATA / "metadata.tflite").derived == (
        "1 samples of 4 channels, named c0 and so on, normalised as in the metadata",
        "3 scores, by the labels; labels from the metadata",
    )


def test_the_name_is_the_file_s_made_fit(tmp_path):
    file = tmp_path / "My.Model_2.tflite"
    shutil.copy(DATA / "metadata.tflite", file)
    assert derive(file).manifest.name == "my-model_2"


def test_a_file_whose_name_no_bundle_can_have_is_to_be_renamed(tmp_path):
    file = shutil.copy(DATA / "metadata.tflite", tmp_path / "my model (1).tflite")
    with pytest.raises(
        BundleError, match=r"my model \(1\).tflite: a file with this name .* \(rename it: my-model-1.tfl"
    ):
        derive(file)


@pytest.mark.parametrize(
    ("name", "reason", "remedy"),
    [
        ("float.tflite", "the output of the op FULLY_CONNECTED may not be scores: float32 [1, 3]", '"v2"]}'),
        ("float.tflite", "the meaning of the input is not certain: float32 [1, 4]", '{"window":{"length":1,"hop":1,'),
        ("int8.tflite", "the meaning of the input is not certain: int8 [1, 4] of scale 0.00781", '"channels":['),
        (
            "two_by_two.tflite",
            "the model has 2 inputs: serving_default_b:0 float32 [1, 3], ",
            '"inputs":[{},{"channels":',
        ),
        ("dynamic.tflite", "the meaning of the input is not certain: float32 [4]", '"window":{"length":4,"hop":4,'),
        ("open.tflite", "the meaning of the input is not certain: float32 [1, 4]", '"window":{"length":1,"hop":1,'),
        ("stateful.tflite", "the output of the op READ_VARIABLE may not be scores", '"names":["v0"]'),
        # A decisive reason comes alone: filling in a part would not help.
        ("custom_op.tflite", "the model needs the custom op my-op", "without this op"),
        ("edgetpu.tflite", "it is compiled for the Edge TPU and does not run on a CPU", "edgectl pack --variant"),
        ("make_models.py", "not a TFLite file", "name a .tflite file"),
        ("absent.tflite", "cannot be read: No such file", "install the model again"),
    ],
)
def test_a_bare_model_that_needs_a_manifest_or_is_none(name, reason, remedy):
    with pytest.raises(BundleError) as refused:
        derive(DATA / name)
    assert refused.value.message.startswith(f"{DATA / name}: ")
    assert reason in refused.value.message
    assert remedy in refused.value.hint


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mobilenet_v1_0.25_128_quant.tflite", (128, 128, 3)),  # metadata state a normalisation by 127.5
        ("mobilenet_v2_1.0_224_quant.tflite", (224, 224, 3)),
        ("tf2_mobilenet_v2_1.0_224_ptq.tflite", (224, 224, 3)),
        ("mlperf_tiny_resnet_cifar10_int8.tflite", (32, 32, 3)),
        ("mlperf_tiny_vww_96_int8.tflite", (96, 96, 3)),
    ],
)
def test_pixels_go_into_a_real_8_bit_picture_model_as_they_are(name, shape):
    manifest = derive(real_model(name)).manifest
    assert (manifest.window.sample_shape, manifest.window.dtype) == (shape, "uint8")
    assert manifest.preprocess == (NoStep(),)
    pixels = np.resize(np.arange(256, dtype=np.uint8), (1, *shape))
    (stored,) = Preprocessor(manifest)(pixels)
    darkest = np.iinfo(stored.dtype).min
    assert np.array_equal(stored.astype(int), pixels.astype(int) + darkest)


def test_a_real_float_picture_model_is_normalised_as_its_metadata_say():
    manifest = derive(real_model("mobilenet_v1_0.25_224_1_metadata_1.tflite")).manifest
    assert manifest.preprocess == (Normalise(mean=(127.5,), std=(127.5,)),)
    assert manifest.window.dtype == "uint8"


def test_labels_of_a_real_model_that_are_there_twice_are_numbered():
    labels = derive(real_model("mobilenet_v2_1.0_224_quant.tflite")).manifest.labels
    assert (labels[135], labels[518]) == ("crane", "crane (2)")
    assert len(set(labels)) == 1001


def test_a_real_sound_model_says_its_rate():
    manifest = derive(real_model("yamnet_audio_classifier_with_metadata.tflite")).manifest
    assert (manifest.window.length, manifest.window.rate) == (15600, 16000.0)
    assert (manifest.labels[0], len(manifest.labels)) == ("Speech", 521)


@pytest.mark.parametrize(
    ("name", "reason", "part"),
    [
        ("mlperf_tiny_kws_int8.tflite", "the input is not certain", '"sample_shape":[49,10,1]'),
        ("mlperf_tiny_ad01_int8.tflite", "the output of the op FULLY_CONNECTED", '"kind":"anomaly"'),
        ("hey_jarvis.tflite", "a single score needs a threshold", '"decision":{"threshold":"THRESHOLD"}'),
        ("mlperf_tiny_resnet_cifar10_fp32.tflite", "the input is not certain", '"preprocess":[{"step":"normalise",'),
        ("face_detection_short_range.tflite", "the model has 2 outputs", '{"kind":"regression","output":0}'),
        ("mobilenet_v1_1.0_224_quant_embedding_extractor.tflite", "AVERAGE_POOL_2D", '"output":0}'),
        ("movenet_single_pose_lightning_ptq.tflite", "not certain: float32 [1, 1, 17, 3]", '"preset":"coco17"'),
        ("tflm_hello_world_int8.tflite", "FULLY_CONNECTED may not", '"names":["v0"]'),
        ("keras_lstm_mnist_ptq.tflite", "the input is not certain: uint8 [1, 28, 28]", '"sample_shape":[28,28]'),
        ("automl_traffic_ssd_lstm.tflite", "the model has 3 inputs", '"feedback":"raw_outputs/lstm_c"'),
        ("model_invoking_error.tflite", "the model needs the custom op fake-op-double", "without this op"),
        ("tflm_person_detect_vela.tflite", "it is compiled for an Arm Ethos-U", "use the original model"),
    ],
)  # fmt: skip
def test_a_real_model_that_leaves_doubt_is_refused_with_the_part_to_fill_in(name, reason, part):
    with pytest.raises(BundleError) as refused:
        derive(real_model(name))
    assert reason in refused.value.message
    assert part in refused.value.hint


def test_a_real_detector_with_labels_says_all_by_itself():
    manifest = derive(real_model("coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite")).manifest
    detect = manifest.postprocess
    assert isinstance(detect, DetectObjects)
    assert detect.decoder == SsdPostprocess(boxes=0, classes=1, scores=2, count=3)
    assert (manifest.labels[:2], manifest.labels[11], len(manifest.labels)) == (("person", "bicycle"), "???", 90)


ANCHORS = np.array([[0.5, 0.5, 0.25, 0.25], [0.25, 0.25, 0.5, 0.5]], np.float32)


def anchored(tmp_path, anchors):
    """A bundle whose anchors are in a file: bytes, or an array."""
    file = io.BytesIO()
    np.save(file, anchors)
    tensor = {"name": "x", "shape": [1, 2, 2, 1], "dtype": "uint8"}
    return write_bundle(
        tmp_path / "find",
        files={"anchors.npy": anchors if isinstance(anchors, bytes) else file.getvalue()},
        window={"length": 1, "hop": 1, "sample_shape": [2, 2, 1], "dtype": "uint8"},
        inputs=[{"tensor": tensor}],
        outputs=[
            {"name": "boxes", "shape": [1, 2, 4], "dtype": "float32"},
            {"name": "scores", "shape": [1, 2, 3], "dtype": "float32"},
        ],
        preprocess=[{"step": "none"}],
        postprocess={
            "kind": "detection",
            "decoder": {"decoder": "ssd_anchors", "anchors": {"from": "file", "file": "anchors.npy"}},
            "decision": {"threshold": 0.5},
        },
    )


def test_anchors_come_from_a_file_of_the_bundle(tmp_path):
    detect = open_folder(anchored(tmp_path, ANCHORS)).manifest.postprocess
    assert detect.decoder.anchors == AnchorTable(rows=tuple(map(tuple, ANCHORS.tolist())))


@pytest.mark.parametrize(
    ("anchors", "reason"),
    [
        (ANCHORS[:1], "1 anchors do not fit the 2 boxes of the model"),
        (ANCHORS[:, :3], r"float32 \[2, 3\], not finite floats of \[anchors, 4\]"),
        (ANCHORS * np.nan, "anchors.npy cannot be read as anchors"),
        (ANCHORS.astype(object), "anchors.npy cannot be read as anchors"),
        (b"no array", "anchors.npy cannot be read as anchors"),
    ],
)
def test_anchors_that_do_not_fit_are_refused(tmp_path, anchors, reason):
    with pytest.raises(BundleError, match=reason):
        open_folder(anchored(tmp_path, anchors))
