import pytest

from edged.core.errors import ConfigError
from edged.core.manifest import Channel, WindowSpec
from edged.core.source_match import match_source
from edged.core.types import SourceInfo

MODEL = WindowSpec(
    length=100,
    hop=50,
    rate=10.0,
    channels=(Channel(name="ax", unit="g"), Channel(name="ay", unit="g"), Channel(name="temperature")),
)
PICTURES = WindowSpec(length=1, hop=1, sample_shape=(8, 8), dtype="uint8")


def columns(spec: WindowSpec, info: SourceInfo) -> list[int] | None:
    found = match_source(spec, info, "imu", "motion")
    return None if found is None else found.tolist()


@pytest.mark.parametrize(
    ("info", "found"),
    [
        (SourceInfo(shape=(3,), channels=("ax", "ay", "temperature")), None),
        (SourceInfo(shape=(3,), channels=("temperature", "ay", "ax")), [2, 1, 0]),
        (SourceInfo(shape=(5,), channels=("t", "ay", "ax", "noise", "temperature")), [2, 1, 4]),
        (SourceInfo(shape=(4,), channels=("ax", "ay", "temperature", "noise")), [0, 1, 2]),
        (SourceInfo(shape=(3,)), None),
    ],
)
def test_channels_are_found_by_name_or_counted(info: SourceInfo, found: list[int] | None) -> None:
    assert columns(MODEL, info) == found


@pytest.mark.parametrize(
    "info",
    [
        SourceInfo(shape=(3,), channels=("ax", "ay", "temperature"), units=("g", "g", "K")),
        SourceInfo(shape=(3,), channels=("ax", "ay", "temperature"), units=("g", "", "")),
        SourceInfo(shape=(3,), rate=10.5),
        SourceInfo(shape=(3,), rate=None),
    ],
)
def test_what_one_side_leaves_unstated_is_not_held_against_the_other(info: SourceInfo) -> None:
    assert columns(MODEL, info) is None


def test_a_model_without_a_rate_takes_any() -> None:
    assert columns(PICTURES, SourceInfo(shape=(8, 8), rate=1000.0)) is None


@pytest.mark.parametrize(
    ("spec", "info", "problem"),
    [
        (MODEL, SourceInfo(shape=(2,), channels=("ax", "ay")), "there is no channel 'temperature' among ax, ay"),
        (
            MODEL,
            SourceInfo(shape=(3,), channels=("ax", "ay", "temperature"), units=("g", "m/s^2", "K")),
            "the channel 'ay' is in m/s^2, the model takes g",
        ),
        (MODEL, SourceInfo(shape=(3,), units=("mg", "g", "K")), "the channel 'ax' is in mg, the model takes g"),
        (MODEL, SourceInfo(shape=(3,), rate=10.6), "the rate is 10.6 samples per second, the model takes 10"),
        (MODEL, SourceInfo(shape=(6,)), "a sample has 6 columns without names, the model takes 3: ax, ay, temperature"),
        (MODEL, SourceInfo(shape=(96, 96)), "a sample has the shape [96, 96], the model takes rows of channels"),
        (PICTURES, SourceInfo(shape=(64,)), "a sample has the shape [64], the model takes [8, 8]"),
    ],
)
def test_what_does_not_fit_is_named(spec: WindowSpec, info: SourceInfo, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        match_source(spec, info, "imu", "motion")
    assert caught.value.message.startswith(f"the source 'imu' does not fit the model 'motion': {problem}")
    assert caught.value.hint


def test_many_channels_that_are_missing_are_cut_with_a_count() -> None:
    """An autoencoder of 640 channels on a wrong source: `config check` printed 640 clauses."""
    model = WindowSpec(length=1, hop=1, channels=tuple(Channel(name=f"c{index}") for index in range(640)))
    info = SourceInfo(shape=(50,), channels=tuple(f"s{index}" for index in range(50)))
    with pytest.raises(ConfigError) as caught:
        match_source(model, info, "imu", "autoencoder")
    among = "among s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 and 40 more"
    clauses = [f"there is no channel 'c{index}' {among}" for index in range(5)]
    assert caught.value.message == (
        "the source 'imu' does not fit the model 'autoencoder': "
        + "; ".join([*clauses, "and 635 more of the model's channels do not fit"])
    )
    with pytest.raises(ConfigError) as caught:
        match_source(model, SourceInfo(shape=(50,)), "imu", "autoencoder")
    assert caught.value.message.endswith("the model takes 640: c0, c1, c2, c3, c4, c5, c6, c7, c8, c9 and 630 more")


def test_everything_that_does_not_fit_is_in_one_message() -> None:
    info = SourceInfo(shape=(2,), channels=("ax", "az"), units=("mg", "mg"), rate=100.0)
    with pytest.raises(ConfigError) as caught:
        match_source(MODEL, info, "imu", "motion")
    assert caught.value.message == (
        "the source 'imu' does not fit the model 'motion': "
        "the channel 'ax' is in mg, the model takes g; "
        "there is no channel 'ay' among ax, az; "
        "there is no channel 'temperature' among ax, az; "
        "the rate is 100 samples per second, the model takes 10 (within 5 %)"
    )
    assert caught.value.hint == (
        "change the source to deliver the model's units; "
        "name the source's channels as the model does; "
        "set the sensor and the source to 10 samples per second"
    )
