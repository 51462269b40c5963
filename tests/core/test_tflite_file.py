import io
import struct
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core import tflite_file
from edged.core.errors import BundleError
from edged.core.tflite_file import Signature, TensorMetadata, TfliteFile, inspect
from edged.core.types import TensorSpec
from tests.real_models import real_model

DATA = Path(__file__).resolve().parents[1] / "data"
FLOAT = (DATA / "float.tflite").read_bytes()
METADATA = (DATA / "metadata.tflite").read_bytes()


def read(name: str) -> TfliteFile:
    return inspect((DATA / name).read_bytes())


def test_a_model():
    assert inspect(FLOAT) == TfliteFile(
        inputs=(TensorSpec(name="serving_default_x:0", shape=(1, 4), dtype="float32"),),
        outputs=(TensorSpec(name="PartitionedCall:0", shape=(1, 3), dtype="float32"),),
        nodes=1,
        ops=("FULLY_CONNECTED",),
        custom_ops=(),
        signatures=(Signature(name="serving_default", subgraph=0, inputs=("x",), outputs=("y",)),),
        dynamic=((),),
        last_ops=("FULLY_CONNECTED",),
    )


def test_quantised_tensors():
    (tensor,) = read("int8.tflite").inputs
    assert (tensor.dtype, tensor.zero_point) == ("int8", -1)
    assert tensor.scale == pytest.approx(2 / 256, rel=1e-3)


def test_metadata_and_the_labels_zipped_behind():
    model = inspect(METADATA)
    assert model.input_metadata == (TensorMetadata(name="reading", mean=(2.0,), std=(4.0,), low=(-2.0,), high=(6.0,)),)
    assert model.output_metadata == (TensorMetadata(name="colour", threshold=0.25, labels=("red", "green", "blue")),)


def test_labels_are_found_behind_a_model_bigger_than_what_is_searched():
    unzipped = METADATA[: METADATA.index(b"PK\x03\x04")]
    file = io.BytesIO(unzipped + bytes(5 << 20))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("labels.txt", "red\ngreen\nblue\n")
    assert inspect(file.getvalue()).output_metadata[0].labels == ("red", "green", "blue")


def test_signatures_of_several_subgraphs():
    assert [(each.name, each.subgraph) for each in read("signatures.tflite").signatures] == [
        ("double", 0),
        ("negate", 1),
    ]


def test_custom_ops_are_told_apart():
    model = read("edgetpu.tflite")
    assert (model.ops, model.custom_ops) == (("edgetpu-custom-op",), ("edgetpu-custom-op",))
    assert (model.compiled_for, read("custom_op.tflite").compiled_for) == ("edgetpu", None)


@pytest.mark.parametrize(("name", "remembers"), [("stateful.tflite", True), ("float.tflite", False)])
def test_resource_variables_are_noticed(name, remembers):
    assert read(name).remembers is read(name).stateful is remembers


def test_variable_tensors_are_state_too():
    assert inspect(real_model("keras_lstm_mnist_ptq.tflite").read_bytes()).stateful


@pytest.mark.parametrize(
    "data", [b"", b"TFL3", b"\x89PNG\r\n\x1a\n" * 10, b"version https://git-lfs.github.com/spec/v1"]
)
def test_another_file_is_no_tflite_file(data):
    with pytest.raises(BundleError, match="not a TFLite file"):
        inspect(data)


@pytest.mark.parametrize("whole", [FLOAT, METADATA], ids=["float", "metadata"])
def test_a_model_cut_at_any_length_is_refused(whole):
    """Any length except without the last few bytes, which are padding."""
    for length in range(len(whole) - 8):
        with pytest.raises(BundleError):
            inspect(whole[:length])


@given(position=st.integers(0, len(METADATA) - 1), byte=st.integers(0, 255))
def test_a_model_with_a_byte_changed_is_read_or_refused(position, byte):
    read_or_refused(METADATA[:position] + bytes([byte]) + METADATA[position + 1 :])


@given(
    position=st.integers(0, len(METADATA) // 4 - 1), word=st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
)
def test_a_model_with_an_offset_or_a_length_changed_is_read_or_refused(position, word):
    read_or_refused(METADATA[: 4 * position] + struct.pack("<I", word) + METADATA[4 * position + 4 :])


@given(st.binary(max_size=2000))
def test_random_bytes_are_refused(data):
    read_or_refused(data[:4] + b"TFL3" + data[4:])


def read_or_refused(data: bytes) -> None:
    with suppress(BundleError):
        inspect(data)


def test_a_small_file_that_looks_endless_is_refused():
    """A thousand times the same subgraph, with a thousand times the same tensor."""
    with pytest.raises(BundleError, match="more than 200000 parts"):
        inspect(endless(1000, 1000))


def test_the_same_file_at_a_size_that_can_be_read():
    assert inspect(endless(2, 3)).nodes == 0


def endless(subgraphs: int, tensors: int) -> bytes:
    tensor_table = struct.pack("<HHi", 4, 4, 4)  # a vtable with no field, and the table
    subgraph_vtable = struct.pack("<HHH", 6, 8, 4)
    subgraph_table = struct.pack("<iI", 6, 4)  # field 0, the tensors, follows at once
    tensor_vector = struct.pack("<I", tensors) + struct.pack(
        f"<{tensors}I", *(4 * (tensors - index) + 4 for index in range(tensors))
    )
    subgraph = subgraph_vtable + subgraph_table + tensor_vector + tensor_table
    subgraph_vector = struct.pack("<I", subgraphs) + struct.pack(
        f"<{subgraphs}I", *(4 * (subgraphs - index) + 6 for index in range(subgraphs))
    )
    model_vtable = struct.pack("<HHHHH", 10, 8, 0, 0, 4)
    model_table = struct.pack("<iI", 10, 4)  # field 2, the subgraphs
    return struct.pack("<I4s", 18, b"TFL3") + model_vtable + model_table + subgraph_vector + subgraph


def test_a_long_name_that_is_that_of_thousands_is_refused():
    """The names would take 4 GB, from a file of 300 kB."""
    with pytest.raises(BundleError, match="more than 200000 parts"):
        inspect(op_codes(60_000, b"x" * 60_000))


def test_the_same_file_with_names_that_can_be_read():
    """The names are readable, and the check for a subgraph fails next."""
    with pytest.raises(BundleError, match="no subgraph"):
        inspect(op_codes(100, b"x" * 60_000))


def op_codes(count: int, name: bytes) -> bytes:
    """So many times the same custom operation."""
    model = struct.pack("<HHHHxxxxiI", 8, 8, 0, 4, 12, 4)  # a vtable, and the table with field 1, the codes
    vector = struct.pack(f"<I{count}I", count, *(4 * (count - index) + 8 for index in range(count)))
    code = struct.pack("<HHHHibxxxI", 8, 12, 4, 8, 8, 32, 4)  # fields 0 and 1: custom, and the name
    return struct.pack("<I4s", 20, b"TFL3") + model + vector + code + struct.pack("<I", len(name)) + name


def with_archive(write) -> bytes:
    file = io.BytesIO(METADATA[: METADATA.index(b"PK\x03\x04")])
    file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file, "a") as archive:
        write(archive)
    return file.getvalue()


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        pytest.param(lambda archive: archive.writestr("other.txt", "red"), "'labels.txt' is missing", id="missing"),
        pytest.param(
            lambda archive: archive.writestr("labels.txt", bytes(5 << 20), zipfile.ZIP_DEFLATED), "too big", id="bomb"
        ),
        pytest.param(
            lambda archive: archive.writestr("labels.txt", "red", zipfile.ZIP_BZIP2), "unsupported method", id="packed"
        ),
        pytest.param(lambda archive: archive.writestr("labels.txt", b"\xff\xfe"), "not UTF-8", id="not UTF-8"),
        pytest.param(lambda archive: archive.writestr("labels.txt", "a\n" * 100_001), "100001 labels", id="too many"),
    ],
)
def test_a_bad_label_file_is_refused(write, reason):
    with pytest.raises(BundleError, match=reason):
        inspect(with_archive(write))


def test_labels_that_are_longer_than_the_archive_says_are_not_unpacked():
    data = with_archive(lambda archive: archive.writestr("labels.txt", bytes(100 << 20), zipfile.ZIP_DEFLATED))
    size = struct.pack("<I", 100 << 20)
    assert data.count(size) == 2  # before the file, and in the directory
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=r"'labels.txt' cannot be read: Bad CRC"):
            inspect(data.replace(size, struct.pack("<I", 10)))
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_to_look_for_labels_costs_as_much_as_thousands_of_tables(monkeypatch):
    """Opening an archive of many files takes a second, and each of thousands of tensors may refer to an archive."""
    monkeypatch.setattr(tflite_file, "MAX_WORK", 5_000)
    assert inspect(FLOAT).nodes == 1
    with pytest.raises(BundleError, match="more than 5000 parts"):
        inspect(METADATA)


def test_a_real_model_with_metadata():
    model = inspect(real_model("mobilenet_v2_1.0_224_quant.tflite").read_bytes())
    assert (model.input_metadata[0].mean, model.input_metadata[0].std) == ((127.5,), (127.5,))
    assert model.output_metadata[0].labels[:2] == ("background", "tench, Tinca tinca")
    assert len(model.output_metadata[0].labels) == 1001
    assert model.nodes == 66


def test_a_real_detection_model():
    model = inspect(real_model("automl_traffic_ssd_lstm.tflite").read_bytes())
    assert [tensor.shape for tensor in model.inputs] == [(1, 256, 256, 3), (1, 8, 8, 320), (1, 8, 8, 320)]
    assert model.custom_ops == ("TFLite_Detection_PostProcess",)


def test_the_op_and_the_label_map_of_a_real_detector():
    model = inspect(real_model("coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite").read_bytes())
    assert model.detection_outputs == (0, 1, 2, 3)
    assert model.output_metadata[1].value_labels[:2] == ("person", "bicycle")
    assert inspect(FLOAT).detection_outputs == ()
