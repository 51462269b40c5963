import numpy as np
import pytest

from edged.api import ConfigError
from edged.sources.synthetic import Synthesizer, SyntheticSource
from edged.testing.source_contract import SourceContract


class TestContract(SourceContract):
    @pytest.fixture
    def config(self) -> SyntheticSource:
        return SyntheticSource(channels=("x", "y"), units=("g", "g"), rate=1000.0)


class Time:
    """Clock that moves only during sleep."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def made(count: int, **options: object) -> np.ndarray:
    """Return the first samples without waiting."""
    time = Time()
    source = Synthesizer(SyntheticSource(channels=("x", "y"), **options), time, time.sleep)  # type: ignore[arg-type]
    samples: list[np.ndarray] = []
    while len(samples) < count:
        chunk = source.read(1.0)
        samples.extend(chunk.samples if chunk else ())
    return np.array(samples[:count])


def test_sines_one_octave_apart() -> None:
    assert made(4, rate=4.0, amplitude=2.0) == pytest.approx(
        np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0], [-2.0, 0.0]]), abs=1e-6
    )


def test_a_constant() -> None:
    assert made(2, waveform="constant", amplitude=9.5).tolist() == [[9.5, 9.5], [9.5, 9.5]]


@pytest.mark.parametrize("waveform", ["sine", "noise"])
def test_the_same_samples_in_chunks_of_any_size(waveform: str) -> None:
    whole = made(60, waveform=waveform, chunk=60, seed=3)
    assert np.array_equal(whole, made(60, waveform=waveform, chunk=7, seed=3))


def test_noise_depends_on_its_seed() -> None:
    assert not np.array_equal(made(10, waveform="noise", seed=1), made(10, waveform="noise", seed=2))


def test_a_chunk_comes_when_its_last_sample_is_due() -> None:
    time = Time()
    source = Synthesizer(SyntheticSource(channels=("x",), rate=10.0, chunk=5), time, time.sleep)
    assert source.read(0.25) is None
    assert time.now == 50.25
    chunk = source.read(1.0)
    assert chunk is not None
    assert (len(chunk.samples), chunk.time, time.now) == (5, 50.5, 50.5)


def test_a_chunk_that_fell_due_while_the_board_was_busy_comes_at_once() -> None:
    time = Time()
    source = Synthesizer(SyntheticSource(channels=("x",), rate=1.0, chunk=5), time, lambda seconds: time.sleep(60.0))
    chunk = source.read(0.5)
    assert chunk is not None
    assert (chunk.time, time.now) == (55.0, 110.0)


def test_units_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="units has 1 entries for 2 channels"):
        SyntheticSource(channels=("x", "y"), units=("g",)).describe()
