"""Tests of every sink: derive a class from `SinkContract` and override the fixture `config`."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edged.api import Outcome, SinkConfig
from edged.testing.fakes import LEVELS, STRANGE, WALKING, context, prediction


class SinkContract:
    """Contract of a sink: a single thread calls `send`, which returns after sending."""

    @pytest.fixture
    def config(self, tmp_path: Path) -> SinkConfig:
        """Return the configuration of the sink under test, able to work."""
        raise NotImplementedError

    def test_options_are_frozen_and_unknown_keys_are_refused(self, config: SinkConfig) -> None:
        table = msgspec.to_builtins(config, enc_hook=str)
        with pytest.raises(AttributeError):
            setattr(config, type(config).__struct_fields__[0], None)
        with pytest.raises(msgspec.ValidationError, match="no_such_option"):
            msgspec.convert({**table, "no_such_option": 1}, type(config), dec_hook=lambda kind, value: kind(value))

    def test_the_configuration_has_a_docstring(self, config: SinkConfig) -> None:
        assert type(config).__doc__

    def test_every_kind_of_outcome_is_sent(self, config: SinkConfig) -> None:
        sink = config.open(context())
        outcomes: tuple[Outcome, ...] = (WALKING, LEVELS, STRANGE)
        for seq, outcome in enumerate(outcomes):
            sink.send(prediction(seq, outcome))
        sink.close()

    def test_several_pipelines_share_a_sink(self, config: SinkConfig) -> None:
        sink = config.open(context())
        for name in ("motion", "other", "motion"):
            sink.send(prediction(pipeline=name))
        sink.close()

    def test_a_sink_may_be_closed_twice(self, config: SinkConfig) -> None:
        sink = config.open(context())
        sink.close()
        sink.close()

    def test_a_sink_may_be_opened_again(self, config: SinkConfig) -> None:
        for seq in range(2):
            sink = config.open(context())
            sink.send(prediction(seq))
            sink.close()
