"""What every source must do. Derive a test class from `SourceContract` and override `config`.

The fixture `config` is also where a fake device belongs: start what plays the samples before it is yielded, and stop
that afterwards. It must play, in good health and for as long as somebody reads, at least ten samples.
"""

import re
import time
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from edged.api import Chunk, Source, SourceConfig

PATIENCE = 120.0


class SourceContract:
    @pytest.fixture
    def config(self) -> SourceConfig:
        """The source under test, ready to be opened."""
        raise NotImplementedError

    @pytest.fixture
    def source(self, config: SourceConfig) -> Iterator[Source]:
        source = config.open()
        yield source
        source.close()

    def test_it_is_made_from_a_table_and_refuses_unknown_keys(self, config: SourceConfig) -> None:
        table = msgspec.to_builtins(config, enc_hook=str)
        assert msgspec.convert(table, type(config), dec_hook=lambda kind, value: kind(value)) == config
        with pytest.raises(msgspec.ValidationError, match="no_such_option"):
            msgspec.convert({"no_such_option": 1}, type(config))

    def test_it_has_a_manual(self, config: SourceConfig) -> None:
        manual = type(config).__doc__ or ""
        keys = re.findall(r"^ +(\w+)(?: \([^)]*\))?: ", manual.partition("Keys:")[2], re.M)
        undocumented = [name for name in type(config).__struct_fields__ if name not in keys]
        assert undocumented == []

    def test_it_says_what_it_will_deliver(self, config: SourceConfig) -> None:
        info = config.describe()
        assert all(size >= 1 for size in info.shape)
        assert info.channels == () or info.shape == (len(info.channels),)
        assert len(info.units) in (0, len(info.channels))
        assert info.rate is None or info.rate > 0
        assert config.describe() == info

    def test_its_chunks_are_what_it_said(self, config: SourceConfig, source: Source) -> None:
        shape = config.describe().shape
        for chunk in chunks(source, samples=10):
            assert len(chunk.samples) >= 1
            assert chunk.samples.shape[1:] == shape
            assert chunk.samples.dtype in (np.float32, np.uint8, np.int16)
            assert np.isfinite(chunk.samples).all()

    def test_healthy_samples_follow_one_another(self, source: Source) -> None:
        assert {chunk.lost for chunk in chunks(source, samples=10)} == {0}

    def test_times_are_monotonic_and_past(self, source: Source) -> None:
        before = 0.0
        for chunk in chunks(source, samples=10):
            assert before <= chunk.time <= time.monotonic()
            before = chunk.time

    def test_it_counts_its_faults(self, source: Source) -> None:
        chunks(source, samples=10)
        assert dict(source.faults) == {}

    def test_asking_for_what_is_there_now_is_allowed(self, source: Source) -> None:
        found = source.read(0.0)
        assert found is None or isinstance(found, Chunk)

    def test_it_can_be_closed_twice_and_opened_again(self, config: SourceConfig) -> None:
        for _ in range(2):
            source = config.open()
            assert chunks(source, samples=1)
            source.close()
            source.close()


def chunks(source: Source, samples: int) -> list[Chunk]:
    """Copies of the chunks with the next samples, at least so many."""
    found: list[Chunk] = []
    deadline = time.monotonic() + PATIENCE
    while sum(len(chunk.samples) for chunk in found) < samples:
        assert time.monotonic() < deadline, f"{samples} samples did not come within {PATIENCE} s"
        chunk = source.read(0.5)
        if chunk is not None:
            found.append(chunk._replace(samples=chunk.samples.copy()))
    return found
