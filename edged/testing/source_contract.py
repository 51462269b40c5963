"""Tests of every source: derive a class from `SourceContract` and override the fixture `config`.

A source of pictures derives from `PictureSourceContract`.

A source without a real device needs a fake device: start the fake in the fixture `config` before the `yield`, and stop
the fake afterwards. The device must deliver at least ten samples without faults, for as long as the test reads.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edged.api import Chunk, Source, SourceConfig
from edged.core import device_requirements
from edged.core.pictures import PictureForm, PictureSpec, place

DEADLINE_SECONDS = 120.0


class SourceContract:
    """Contract of a source: a single thread reads and closes the source."""

    @pytest.fixture
    def config(self, tmp_path: Path) -> SourceConfig:
        """Return the configuration of the source under test, ready to be opened."""
        raise NotImplementedError

    @pytest.fixture
    def source(self, config: SourceConfig) -> Iterator[Source]:
        """Open the source, and close it after the test."""
        source = config.open()
        yield source
        source.close()

    def test_the_configuration_is_made_from_a_table_and_refuses_unknown_keys(self, config: SourceConfig) -> None:
        table = msgspec.to_builtins(config, enc_hook=str)
        assert msgspec.convert(table, type(config), dec_hook=lambda kind, value: kind(value)) == config
        with pytest.raises(msgspec.ValidationError, match="no_such_option"):
            msgspec.convert({"no_such_option": 1}, type(config))

    def test_the_docstring_describes_every_key(self, config: SourceConfig) -> None:
        manuals = [kind.__doc__ or "" for kind in type(config).__mro__]
        lists = "".join(manual.partition("Keys:")[2] for manual in manuals)
        keys = re.findall(r"^ +(\w+)(?: \([^)]*\))?: ", lists, re.M)
        undocumented = [name for name in type(config).__struct_fields__ if name not in keys]
        assert undocumented == []

    def test_the_description_is_sound_and_stays_the_same(self, config: SourceConfig) -> None:
        info = config.describe()
        assert all(size >= 1 for size in info.shape)
        assert info.channels == () or info.shape == (len(info.channels),)
        assert len(info.units) in (0, len(info.channels))
        assert info.rate is None or info.rate > 0
        assert config.describe() == info

    def test_devices_are_stated(self, config: SourceConfig) -> None:
        found = config.devices()
        assert device_requirements.check(found) == found
        assert config.devices() == found

    def test_chunks_match_the_description(self, config: SourceConfig, source: Source) -> None:
        shape = config.describe().shape
        for chunk in chunks(source, samples=10):
            assert len(chunk.samples) >= 1
            assert chunk.samples.shape[1:] == shape
            assert chunk.samples.dtype in (np.float32, np.uint8, np.int16)
            assert np.isfinite(chunk.samples).all()

    def test_a_healthy_source_loses_no_samples(self, source: Source) -> None:
        assert {chunk.lost for chunk in chunks(source, samples=10)} == {0}

    def test_times_of_chunks_never_go_back_and_are_past(self, source: Source) -> None:
        before = 0.0
        for chunk in chunks(source, samples=10):
            assert before <= chunk.time <= time.monotonic()
            before = chunk.time

    def test_a_healthy_source_counts_no_faults(self, source: Source) -> None:
        chunks(source, samples=10)
        assert dict(source.faults) == {}

    def test_a_read_without_waiting_is_allowed(self, source: Source) -> None:
        found = source.read(0.0)
        assert found is None or isinstance(found, Chunk)

    def test_a_source_may_be_closed_twice_and_opened_again(self, config: SourceConfig) -> None:
        for _ in range(2):
            source = config.open()
            assert chunks(source, samples=1)
            source.close()
            source.close()


class PictureSourceContract(SourceContract):
    """Contract of a source of pictures: see `SourceContract`. The device must deliver pictures of changing content."""

    FORM = PictureForm(PictureSpec(width=8, height=6, filter="nearest"))

    def test_the_description_is_sound_and_stays_the_same(self, config: SourceConfig) -> None:
        info = config.describe()
        assert info.pictures
        assert (info.shape, info.channels, info.units) == ((), (), ())
        assert info.rate is None or info.rate > 0
        assert config.describe() == info

    def test_chunks_match_the_description(self, config: SourceConfig, source: Source) -> None:
        for chunk in chunks(source, samples=10):
            assert chunk.picture is not None
            assert chunk.samples.dtype == np.uint8
            assert chunk.samples.shape == (1, chunk.samples.size)

    def test_pictures_are_fitted_to_models(self, source: Source) -> None:
        for chunk in chunks(source, samples=3):
            picture = chunk.picture
            assert picture is not None
            pixels = picture.fitted(self.FORM)
            assert pixels is picture.fitted(self.FORM)
            assert pixels.shape == (6, 8, 3)
            assert pixels.dtype == np.uint8
            assert picture.placement(self.FORM) == place(self.FORM, picture.width, picture.height)

    def test_pictures_stay_as_they_are_after_the_next_read(self, source: Source) -> None:
        first, _ = chunks(source, samples=2)[:2]
        assert first.picture is not None
        before = first.picture.jpeg()
        chunks(source, samples=2)
        assert first.picture.jpeg() == before

    def test_pictures_are_shown_as_jpegs(self, source: Source) -> None:
        from PIL import Image  # sources of samples are tested without Pillow

        (chunk, *_) = chunks(source, samples=1)
        assert chunk.picture is not None
        with Image.open(BytesIO(chunk.picture.jpeg(max_width=16))) as shown:
            assert (shown.format, shown.width) == ("JPEG", min(16, chunk.picture.width))


def chunks(source: Source, samples: int) -> list[Chunk]:
    """Return copies of the next chunks, with at least `samples` samples in all."""
    found: list[Chunk] = []
    deadline = time.monotonic() + DEADLINE_SECONDS
    while sum(len(chunk.samples) for chunk in found) < samples:
        assert time.monotonic() < deadline, f"{samples} samples did not come within {DEADLINE_SECONDS} s"
        chunk = source.read(0.5)
        if chunk is not None:
            found.append(chunk._replace(samples=chunk.samples.copy()))
    return found
