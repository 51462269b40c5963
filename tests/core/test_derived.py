"""Properties derived from a bare file: cases missing among the model files of the tests."""

import pytest

from edged.core.derived import derive
from edged.core.manifest import Classify, WindowSpec
from edged.core.tflite_file import TensorMetadata, TfliteFile
from edged.core.types import TensorSpec


def file(
    shape=(1, 96, 96, 3),
    dtype="uint8",
    scale=1 / 255,
    zero_point=0,
    opened=(),
    outputs=((1, 10),),
    last="SOFTMAX",
    **said,
):
    """Return a file with this input, and outputs made by this op; `said` is the input's metadata."""
    tensor = TensorSpec(name="x", shape=shape, dtype=dtype, scale=scale, zero_point=zero_point)
    return TfliteFile(
        inputs=(tensor,),
        outputs=tuple(TensorSpec(name="y", shape=output, dtype="uint8", scale=1 / 256) for output in outputs),
        nodes=1,
        ops=(),
        custom_ops=(),
        input_metadata=(TensorMetadata(**said),) if said else (),
        dynamic=(opened,),
        last_ops=(last,) * len(outputs),
    )


PICTURE = WindowSpec(length=1, hop=1, sample_shape=(96, 96, 3), dtype="uint8")


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point"),
    [
        ("uint8", 1 / 255, 0),
        ("uint8", 1 / 128, 128),
        ("uint8", 2 / 255, 127),
        ("uint8", 1.0, 0),
        ("uint8", 0.0, 0),
        ("int8", 1 / 255, -128),
        ("int8", 2 / 255, -1),
        ("int8", 1.0, 0),
    ],
)
def test_8_bits_of_pixels_are_a_picture(dtype, scale, zero_point):
    assert derive(file(dtype=dtype, scale=scale, zero_point=zero_point)).input.fields == {"window": PICTURE}


@pytest.mark.parametrize(
    "parts",
    [
        {"scale": 0.0187, "zero_point": 114},  # pixels with another normalisation
        {"shape": (1, 49, 10, 1), "dtype": "int8", "scale": 0.58, "zero_point": 83},  # of features
        {"shape": (1, 8, 8, 1)},
        {"shape": (1, 96, 96, 4)},
        {"shape": (1, 96, 96)},
        {"dtype": "float32", "scale": 0.0},
        {"dtype": "int16", "scale": 1 / 255},
        {"dtype": "int8", "scale": 0.0},
        {"content": "audio"},
        {"shape": ()},
    ],
)
def test_an_input_that_may_be_anything(parts):
    side = derive(file(**parts)).input
    assert side.fields == {}
    assert side.problem.startswith("the meaning of the input is not certain: ")
    assert side.part["window"]["length"] >= 1


def test_metadata_that_say_it_is_a_picture_are_believed():
    odd = {"scale": 0.0187, "zero_point": 114}
    assert derive(file(content="image", mean=(0.0,), std=(1.0,), **odd)).input.fields == {"window": PICTURE}
    side = derive(file(dtype="float32", scale=0.0, mean=(127.5,), std=(127.5,))).input
    assert side.fact == "pictures of 96 x 96 pixels, RGB, normalised as in the metadata: (x - 127.5) / 127.5"


def test_sound_that_states_its_rate():
    side = derive(file((15600,), "float32", 0.0, content="audio", sample_rate=16000, channels=1)).input
    assert (side.fields["window"].rate, side.fields["window"].length) == (16000, 15600)


@pytest.mark.parametrize(
    ("shape", "opened", "words", "sizes"),
    [
        ((1, 1, 1, 3), (0, 1, 2), "[?, ?, ?, 3]", ["SIZE", "SIZE", 3]),
        ((1, 1, 6), (1,), "[1, ?, 6]", ["SIZE", 6]),
        ((0, 96, 96, 3), (0,), "[?, 96, 96, 3]", [96, 96, 3]),
    ],
)
def test_an_open_shape_comes_first(shape, opened, words, sizes):
    side = derive(file(shape, opened=opened)).input
    assert side.problem == f"the input has an open shape: {words}"
    assert side.part["window"]["sample_shape"] == sizes


def test_a_batch_that_is_open_is_one():
    assert derive(file(opened=(0,))).input.fields == {"window": PICTURE}


@pytest.mark.parametrize("last", ["SOFTMAX", "LOGISTIC"])
def test_ops_that_make_scores(last):
    assert derive(file(last=last)).output.fields == {
        "labels": tuple(f"class_{index}" for index in range(10)),
        "postprocess": Classify(),
    }


@pytest.mark.parametrize(
    ("outputs", "last", "problem"),
    [
        (((1, 1404),), "CONV_2D", "the output of the op CONV_2D may not be scores"),
        (((1, 10),), "", "the output may not be scores"),
        (((1, 1),), "LOGISTIC", "a single score needs a threshold"),
        (((1, 7, 10),), "SOFTMAX", "the meaning of the output is not certain"),
        (((),), "SOFTMAX", "the meaning of the output is not certain"),
        (((1, 10), (1, 4)), "SOFTMAX", "the model has 2 outputs: y uint8 [1, 10] of scale 0.003906, y uint8 [1, 4]"),
        (((1, 10),) * 9, "SOFTMAX", "of scale 0.003906 and 5 more"),
        ((), "SOFTMAX", "the model has 0 outputs"),
    ],
)
def test_outputs_that_may_be_anything(outputs, last, problem):
    side = derive(file(outputs=outputs, last=last)).output
    assert problem in side.problem
    assert side.fields == {}


def test_the_part_to_fill_in_is_as_long_as_people_read():
    many = derive(file(outputs=((1, 640),), last="CONV_2D")).output.part["postprocess"]["names"]
    assert (len(many), many[-1]) == (13, "...")
    assert derive(file(outputs=((1, 1404),), last="CONV_2D")).output.part["postprocess"] == {
        "kind": "regression",
        "output": 0,
    }


def test_points_of_a_person_are_known_by_their_shape():
    assert derive(file(outputs=((1, 1, 17, 3),))).output.part == {
        "postprocess": {"kind": "keypoints", "preset": "coco17"}
    }
