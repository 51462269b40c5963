"""A delta made by `edgectl pack`, from which the real daemon rebuilds the new version."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edged_process import Edged
from tests.motion import FACTORY, bundle, config, edgectl, serving


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Edged]:
    with Edged(tmp_path, config()) as running:
        running.wait_for_log("serves")
        yield running


def test_a_delta_from_the_factory_version_is_enough(daemon: Edged, tmp_path: Path):
    new = bundle(tmp_path, "1.1")
    said = edgectl(daemon, "pack", new, "--delta-from", FACTORY)
    assert said.code == 0, said
    assert new.with_suffix(".edgd").stat().st_size < new.stat().st_size / 2
    said = edgectl(daemon, "update-model", new)
    assert said.code == 0, said
    assert serving(daemon) == "1.1"
    assert "giving a delta for motion 1.1 to the daemon" in said.output


def test_a_delta_from_what_the_board_never_had_is_no_hindrance(daemon: Edged, tmp_path: Path):
    old, new = bundle(tmp_path, "1.1"), bundle(tmp_path, "1.2")
    assert edgectl(daemon, "pack", new, "--delta-from", old).code == 0
    said = edgectl(daemon, "update-model", new)
    assert said.code == 0, said
    assert serving(daemon) == "1.2"
