"""A plug-in is found by its kind: built in, or through the entry point of an installed package."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edged import plugins
from edged.core.errors import ConfigError

SOURCE = """
from edged.api import SourceConfig

class TideSource(SourceConfig, frozen=True, kw_only=True):
    harbour: str

class Stranger:
    pass
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Install]:
    """Put a distribution on the path as pip would: a module, and a folder of metadata with its entry points."""

    def install(name: str, source: str, **points: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        metadata = tmp_path / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{kind} = {target}" for kind, target in points.items()]
        (metadata / "entry_points.txt").write_text("\n".join(["[edged.sources]", *lines, ""]))

    before = set(sys.modules)
    sys.path.insert(0, str(tmp_path))
    yield install
    sys.path.remove(str(tmp_path))
    for module in set(sys.modules) - before:
        if getattr(sys.modules[module], "__file__", None) and str(tmp_path) in str(sys.modules[module].__file__):
            del sys.modules[module]


def refusal(family: str, kind: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        plugins.load(family, kind)
    return caught.value


@pytest.mark.parametrize(("family", "kind"), [(f, k) for f, kinds in plugins.BUILT_IN.items() for k in kinds])
def test_every_built_in_kind_is_a_configuration_class_with_a_manual(family: str, kind: str) -> None:
    found = plugins.load(family, kind)
    assert issubclass(found, plugins.CONTRACTS[family])
    assert found.__doc__


def test_an_installed_package_adds_a_kind(install: Install) -> None:
    install("tides", SOURCE, tide="tides:TideSource")
    assert plugins.load("sources", "tide").__name__ == "TideSource"
    assert plugins.load("sources", "tide")(harbour="Bergen").harbour == "Bergen"
    assert "tide" in plugins.kinds("sources")


def test_a_package_cannot_replace_a_built_in_kind(install: Install) -> None:
    install("tides", SOURCE, replay="tides:TideSource")
    assert plugins.load("sources", "replay").__name__ == "ReplaySource"


def test_a_kind_nobody_knows_gets_a_suggestion() -> None:
    error = refusal("sources", "seriel")
    assert error.message == "there is no kind 'seriel' of sources"
    assert error.hint == "did you mean 'serial'? known kinds: replay, serial, synthetic"


def test_a_kind_that_resembles_none_gets_the_list() -> None:
    assert refusal("sinks", "xyzzy").hint == "known kinds: jsonl, mqtt, stdout"


def test_a_package_that_cannot_be_imported_says_why(install: Install) -> None:
    install("tides", "raise RuntimeError('no libtide.so')", tide="tides:TideSource")
    error = refusal("sources", "tide")
    assert error.message == "the plug-in 'tide' (tides:TideSource) cannot be imported: no libtide.so"
    assert "reinstall" in error.hint


def test_a_class_of_another_sort_is_refused(install: Install) -> None:
    install("tides", SOURCE, tide="tides:Stranger")
    error = refusal("sources", "tide")
    assert error.message == "the plug-in 'tide' (tides:Stranger) is not a configuration class of sources"
    assert "edged.api.SourceConfig" in error.hint


def test_two_packages_with_one_kind_are_refused(install: Install) -> None:
    install("tides", SOURCE, tide="tides:TideSource")
    install("waves", SOURCE, tide="waves:TideSource")
    error = refusal("sources", "tide")
    assert error.message == "several packages provide the kind 'tide' of sources: tides:TideSource, waves:TideSource"
