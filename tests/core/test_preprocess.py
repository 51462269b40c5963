from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edged.core.manifest import (
    SCHEMA,
    Channel,
    Clip,
    DetectAnomaly,
    File,
    Input,
    Manifest,
    Normalise,
    NoStep,
    Postprocess,
    PreprocessStep,
    Regress,
    Standardise,
    WindowSpec,
    check,
)
from edged.core.manifest_parts import Decision
from edged.core.pictures import PictureSpec
from edged.core.preprocess import Preprocessor
from edged.core.types import TensorSpec

ROWS = WindowSpec(length=2, hop=2, channels=(Channel(name="a"), Channel(name="b"), Channel(name="c")))
PIXELS = WindowSpec(length=1, hop=1, sample_shape=(2, 2), dtype="uint8")
VALUE = TensorSpec(name="value", shape=(1, 1), dtype="float32")


def tensor(
    shape: tuple[int, ...], dtype: str = "float32", scale: float = 0.0, zero_point: int = 0, name: str = "x"
) -> TensorSpec:
    return TensorSpec(name=name, shape=shape, dtype=dtype, scale=scale, zero_point=zero_point)


def preprocessor(
    window: WindowSpec,
    *inputs: TensorSpec | Input,
    steps: tuple[PreprocessStep, ...] = (),
    outputs: tuple[TensorSpec, ...] = (VALUE,),
    postprocess: Postprocess = Regress(names=("value",)),  # noqa: B008 it is frozen
    picture: PictureSpec | None = None,
) -> Preprocessor:
    manifest = Manifest(
        schema=SCHEMA,
        name="m",
        version="1",
        files={"model.tflite": File(bytes=1, sha256="0" * 64)},
        window=window,
        picture=picture,
        inputs=tuple(each if isinstance(each, Input) else Input(tensor=each) for each in inputs),
        outputs=outputs,
        preprocess=steps,
        postprocess=postprocess,
    )
    check(manifest)
    return Preprocessor(manifest)


def prepare(window: WindowSpec, samples: Any, into: TensorSpec, *steps: PreprocessStep) -> Any:
    """Return the content of one input tensor."""
    (stored,) = preprocessor(window, into, steps=steps)(np.array(samples, dtype=window.dtype))
    assert stored.dtype == into.dtype
    assert stored.shape == into.shape
    return stored.tolist()


SAMPLES = [[1.0, 20.0, 300.0], [3.0, 40.0, 500.0]]


@pytest.mark.parametrize(
    ("steps", "prepared"),
    [
        ((), SAMPLES),
        ((Normalise(mean=(1.0,), std=(2.0,)),), [[0.0, 9.5, 149.5], [1.0, 19.5, 249.5]]),
        ((Normalise(mean=(1.0, 20.0, 300.0), std=(2.0, 4.0, 8.0)),), [[0.0, 0.0, 0.0], [1.0, 5.0, 25.0]]),
        ((Normalise(mean=(1.0, 20.0, 300.0), std=(2.0,)),), [[0.0, 0.0, 0.0], [1.0, 10.0, 100.0]]),
        ((Clip(low=2.0, high=300.0),), [[2.0, 20.0, 300.0], [3.0, 40.0, 300.0]]),
        ((Standardise(),), [[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]),
        ((Standardise(floor=10.0),), [[-0.1, -1.0, -1.0], [0.1, 1.0, 1.0]]),
        ((Clip(low=0.0, high=20.0), Normalise(mean=(10.0,), std=(10.0,))), [[-0.9, 1.0, 1.0], [-0.7, 1.0, 1.0]]),
        ((Normalise(mean=(10.0,), std=(10.0,)), Clip(low=0.0, high=20.0)), [[0.0, 1.0, 20.0], [0.0, 3.0, 20.0]]),
        ((Normalise(mean=(0.0,), std=(2.0,)), Standardise(), Clip(low=0.0, high=9.0)), [[0.0] * 3, [1.0] * 3]),
    ],
)
def test_steps_are_taken_in_order(steps: tuple[PreprocessStep, ...], prepared: list[list[float]]) -> None:
    assert np.allclose(prepare(ROWS, SAMPLES, tensor((1, 2, 3)), *steps), [prepared], rtol=1e-6)


def test_a_constant_channel_is_not_blown_up_by_standardising() -> None:
    assert prepare(ROWS, [[7.0, 1.0, 1.0], [7.0, 1.0, 1.0]], tensor((1, 2, 3)), Standardise()) == [[[0.0] * 3] * 2]


def test_a_picture_without_channels_is_standardised_as_a_whole() -> None:
    assert prepare(PIXELS, [[[10, 20], [30, 40]]], tensor((1, 4)), Standardise()) == [
        pytest.approx([-1.3416408, -0.4472136, 0.4472136, 1.3416408])
    ]


def test_a_picture_with_channels_is_standardised_by_channel() -> None:
    picture = WindowSpec(length=1, hop=1, sample_shape=(1, 2, 3), dtype="uint8")
    stored = prepare(picture, [[[[10, 0, 5], [20, 200, 5]]]], tensor((1, 1, 2, 3)), Standardise())
    assert stored == [[[[-1.0, -1.0, 0.0], [1.0, 1.0, 0.0]]]]


@pytest.mark.parametrize("shape", [(1, 2, 3), (1, 2, 3, 1), (2, 3), (6,)])
def test_a_window_takes_the_shape_of_the_tensor(shape: tuple[int, ...]) -> None:
    stored = prepare(ROWS, SAMPLES, tensor(shape, "int8", 4.0, 1))
    assert np.ravel(stored).tolist() == [1, 6, 76, 2, 11, 126]


PICTURE = [[[0, 1], [128, 255]]]
HALF = Normalise(mean=(127.5,), std=(127.5,))


@pytest.mark.parametrize(
    ("into", "steps", "stored"),
    [
        (tensor((1, 2, 2, 1), "uint8", 1.0), (), [0, 1, 128, 255]),
        (tensor((1, 2, 2, 1), "int8", 1.0, -128), (), [-128, -127, 0, 127]),
        (tensor((1, 2, 2, 1), "uint8", 1 / 64, 64), (Normalise(mean=(128.0,), std=(128.0,)),), [0, 0, 64, 128]),
        (tensor((1, 2, 2, 1), "int8", 2.0, 0), (), [0, 0, 64, 127]),
        (tensor((1, 2, 2, 1), "int8", 1.0, -128), (Clip(low=1.0, high=200.0),), [-127, -127, 0, 72]),
        (tensor((1, 2, 2, 1), "int16", 0.5, 0), (), [0, 2, 256, 510]),
        (tensor((1, 2, 2, 1), "float32"), (), [0.0, 1.0, 128.0, 255.0]),
        (tensor((1, 2, 2, 1), "float32"), (HALF,), [-1.0, np.float32(-126.5) / np.float32(127.5), 1 / 255, 1.0]),
        (tensor((1, 2, 2, 1), "int8", 0.5, 0), (Normalise(mean=(0.0, 1.0), std=(1.0, 1.0)),), [0, 0, 127, 127]),
    ],
)
def test_pixels_become_what_the_model_was_trained_on(
    into: TensorSpec, steps: tuple[PreprocessStep, ...], stored: list
) -> None:
    assert np.allclose(np.ravel(prepare(PIXELS, PICTURE, into, *steps)), stored, rtol=1e-6)


def test_inputs_may_take_some_channels_in_an_order_of_their_own() -> None:
    first = Input(tensor=tensor((1, 2, 2), "int8", 1.0, name="first"), channels=("b", "a"))
    second = Input(tensor=tensor((1, 2), name="second"), channels=("c",))
    preprocess = preprocessor(ROWS, first, second, steps=(Normalise(mean=(1.0, 20.0, 300.0), std=(1.0, 10.0, 100.0)),))
    stored, floats = preprocess(np.array(SAMPLES, dtype=np.float32))
    assert stored.tolist() == [[[0, 0], [2, 2]]]
    assert floats.tolist() == [[0.0, 2.0]]


def test_real_values_are_kept_only_for_a_model_that_scores_how_well_it_rebuilds_them() -> None:
    into = tensor((1, 2, 3), "int8", 2.0)
    rebuilt = tensor((1, 2, 3), "int8", 2.0, name="rebuilt")
    half = Normalise(mean=(0.0,), std=(2.0,))
    samples = np.array(SAMPLES, dtype=np.float32)

    autoencoder = preprocessor(
        ROWS, into, steps=(half,), outputs=(rebuilt,), postprocess=DetectAnomaly(decision=Decision(threshold=1.0))
    )
    (stored,) = autoencoder(samples)
    assert autoencoder.prepared is not None
    assert autoencoder.prepared.tolist() == [[0.5, 10.0, 150.0], [1.5, 20.0, 250.0]]
    assert stored.tolist() == [[[0, 5, 75], [1, 10, 125]]]

    regressor = preprocessor(ROWS, into, steps=(half,))
    regressor(samples)
    assert regressor.prepared is None


def test_real_values_are_kept_without_any_steps_too() -> None:
    preprocess = preprocessor(
        PIXELS,
        tensor((1, 4), "uint8", 1.0),
        outputs=(tensor((1, 4), "uint8", 1.0, name="rebuilt"),),
        postprocess=DetectAnomaly(decision=Decision(threshold=1.0)),
    )
    preprocess(np.array(PICTURE, dtype=np.uint8))
    assert preprocess.prepared is not None
    assert preprocess.prepared.tolist() == [[[0.0, 1.0], [128.0, 255.0]]]


def stateful(state: TensorSpec, said: TensorSpec) -> Preprocessor:
    return preprocessor(
        ROWS,
        tensor((1, 2, 3)),
        Input(tensor=state, feed="feedback", feedback="said"),
        outputs=(VALUE, said),
    )


def test_what_an_output_said_is_fed_back() -> None:
    preprocess = stateful(tensor((1, 2), "int8", 0.5, -3, "state"), tensor((1, 2), "int8", 0.5, -3, "said"))
    samples = np.array(SAMPLES, dtype=np.float32)
    outputs = [np.zeros((1, 1), np.float32), np.array([[5, -7]], dtype=np.int8)]

    assert preprocess(samples)[1].tolist() == [[-3, -3]]
    preprocess.feed_back(outputs)
    outputs[1][:] = 99  # overwritten by the runner's next run
    assert preprocess(samples)[1].tolist() == [[5, -7]]
    preprocess.reset()
    assert preprocess(samples)[1].tolist() == [[-3, -3]]


def test_what_is_fed_back_is_requantised_where_the_tensors_differ() -> None:
    preprocess = stateful(tensor((1, 2), "int8", 0.5, -3, "state"), tensor((1, 2), "int8", 1.0, 0, "said"))
    preprocess.feed_back([np.zeros((1, 1), np.float32), np.array([[5, -100]], dtype=np.int8)])
    assert preprocess(np.array(SAMPLES, dtype=np.float32))[1].tolist() == [[7, -128]]


def naive(samples: NDArray, steps: tuple[PreprocessStep, ...], into: TensorSpec) -> NDArray[np.float64]:
    """Apply the steps by their definitions in float64, one after the other; then quantise by the textbook."""
    real = samples.astype(np.float64)
    for step in steps:
        match step:
            case Normalise(mean=mean, std=std):
                real = (real - mean) / std
            case Clip(low=low, high=high):
                real = np.clip(real, low, high)
            case Standardise(floor=floor):
                real = (real - real.mean(axis=0)) / np.maximum(real.std(axis=0), floor)
    limits = np.iinfo(into.dtype)
    return np.clip(np.rint(real / into.scale) + into.zero_point, limits.min, limits.max).reshape(into.shape)


COEFFICIENTS = st.floats(0.125, 8.0, width=32)
STEPS = st.one_of(
    st.builds(
        Normalise,
        mean=st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3).map(tuple),
        std=st.one_of(st.tuples(COEFFICIENTS), st.tuples(COEFFICIENTS, COEFFICIENTS, COEFFICIENTS)),
    ),
    st.builds(Clip, low=st.floats(-50, -1, width=32), high=st.floats(1, 50, width=32)),
    st.just(Standardise(floor=0.5)),
)


@given(
    st.lists(STEPS, max_size=3).map(tuple),
    st.sampled_from([tensor((1, 2, 3), "int8", 0.25, -5), tensor((1, 2, 3, 1), "uint8", 0.5, 128)]),
    arrays(np.float32, (2, 3), elements=st.floats(-100, 100, width=32)),
)
def test_shortcuts_leave_the_outcome_as_it_is(
    steps: tuple[PreprocessStep, ...], into: TensorSpec, samples: NDArray
) -> None:
    (stored,) = preprocessor(ROWS, into, steps=steps)(samples)
    assert np.abs(stored - naive(samples, steps, into)).max() <= 1


@given(
    st.lists(
        st.one_of(
            st.builds(Normalise, mean=st.tuples(st.floats(-300, 300)), std=st.tuples(COEFFICIENTS)),
            st.builds(Clip, low=st.floats(-50, 50), high=st.floats(51, 300)),
        ),
        max_size=3,
    ).map(tuple),
    st.sampled_from([tensor((1, 256), "int8", 1.0, -128), tensor((1, 256), "uint8", 0.7, 3)]),
)
def test_looking_pixels_up_is_reckoning_with_them(steps: tuple[PreprocessStep, ...], into: TensorSpec) -> None:
    window = WindowSpec(length=1, hop=1, sample_shape=(16, 16), dtype="uint8")
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    (stored,) = preprocessor(window, into, steps=steps)(pixels)
    assert np.abs(stored - naive(pixels, steps, into)).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point", "stored"),
    [
        ("uint8", 1 / 128, 128, [0, 1, 128, 255]),  # -1 to 1: quantised as values, all would be white
        ("uint8", 1 / 255, 0, [0, 1, 128, 255]),
        ("uint8", 0.0, 0, [0, 1, 128, 255]),
        ("int8", 1 / 255, -128, [-128, -127, 0, 127]),
        ("int8", 2 / 255, -1, [-128, -127, 0, 127]),
        ("int8", 0.0, 0, [-128, -127, 0, 127]),
        ("float32", 0.0, 0, [0.0, 1.0, 128.0, 255.0]),
    ],
)
def test_the_step_none_leaves_pixels_as_they_are(
    dtype: str, scale: float, zero_point: int, stored: list[float]
) -> None:
    pixels = np.array([[[0, 1], [128, 255]]], dtype=np.uint8)
    (got,) = preprocessor(PIXELS, tensor((1, 2, 2), dtype, scale, zero_point), steps=(NoStep(),))(pixels)
    assert got.reshape(-1).tolist() == stored


def test_values_of_rows_are_quantised_after_the_step_none_as_they_are_without_steps() -> None:
    samples = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)
    (got,) = preprocessor(ROWS, tensor((1, 2, 3), "int8", 0.5), steps=(NoStep(),))(samples)
    assert got.reshape(-1).tolist() == [2, 4, 6, 8, 10, 12]


CHANNELS_FIRST = [
    (tensor((1, 3, 2, 4)), (Normalise(mean=(1.0, 2.0, 3.0), std=(10.0, 20.0, 40.0)),)),
    (tensor((1, 3, 2, 4)), (Normalise(mean=(127.5,), std=(127.5,)),)),
    (tensor((1, 3, 2, 4)), (Standardise(),)),
    (tensor((1, 3, 2, 4), "int8", 0.5, -3), (Normalise(mean=(1.0, 2.0, 3.0), std=(10.0, 20.0, 40.0)),)),
    (tensor((1, 3, 2, 4), "uint8", 1.0, 0), (NoStep(),)),
    (tensor((3, 2, 4), "float16"), ()),
]


@pytest.mark.parametrize(("into", "steps"), CHANNELS_FIRST)
def test_channels_first_hold_the_values_of_channels_last(into: TensorSpec, steps: tuple[PreprocessStep, ...]):
    """Steps work on pixels with the channels last, also by channel; only the tensor is turned round."""
    window = WindowSpec(length=1, hop=1, sample_shape=(2, 4, 3), dtype="uint8")
    pixels = np.random.default_rng(5).integers(0, 256, (2, 1, 2, 4, 3), np.uint8)
    last = tensor((1, 2, 4, 3), into.dtype, into.scale, into.zero_point)
    first = preprocessor(window, into, steps=steps, picture=PictureSpec(width=4, height=2, layout="nchw"))
    usual = preprocessor(window, last, steps=steps, picture=PictureSpec(width=4, height=2))
    for sample in pixels:
        (turned,), (straight,) = first(sample), usual(sample)
        assert turned.dtype == into.dtype
        assert turned.flags.c_contiguous
        assert np.array_equal(turned, np.moveaxis(straight, -1, 1).reshape(into.shape))


def test_the_error_of_a_reconstruction_is_that_of_channels_first():
    window = WindowSpec(length=1, hop=1, sample_shape=(2, 4, 3), dtype="uint8")
    shape = (1, 3, 2, 4)
    preprocess = preprocessor(
        window,
        tensor(shape),
        outputs=(tensor(shape),),
        postprocess=DetectAnomaly(decision=Decision(threshold=1.0)),
        picture=PictureSpec(width=4, height=2, layout="nchw"),
    )
    (stored,) = preprocess(np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3))
    assert preprocess.prepared is not None
    assert np.array_equal(preprocess.prepared.reshape(-1), stored.reshape(-1))
