"""A plug-in is found by its kind: built in, or through the entry point of an installed package."""

from __future__ import annotations

from collections.abc import Callable

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


def refusal(family: str, kind: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        plugins.load(family, kind)
    return caught.value


@pytest.mark.parametrize(("family", "kind"), [(f, k) for f, kinds in plugins.BUILT_IN.items() for k in kinds])
def test_every_built_in_kind_is_a_configuration_class_with_a_manual(family: str, kind: str) -> None:
    found = plugins.load(family, kind)
    assert issubclass(found, plugins.CONTRACTS[family])
    assert found.__doc__


def test_an_installed_package_adds_a_kind(install_plugin: Install) -> None:
    install_plugin("tides", SOURCE, tide="tides:TideSource")
    assert plugins.load("sources", "tide").__name__ == "TideSource"
    assert plugins.load("sources", "tide")(harbour="Bergen").harbour == "Bergen"
    assert "tide" in plugins.kinds("sources")


def test_a_package_cannot_replace_a_built_in_kind(install_plugin: Install) -> None:
    install_plugin("tides", SOURCE, replay="tides:TideSource")
    assert plugins.load("sources", "replay").__name__ == "ReplaySource"


def test_a_kind_nobody_knows_gets_a_suggestion() -> None:
    error = refusal("sources", "seriel")
    assert error.message == "there is no kind 'seriel' of sources"
    hint = "did you mean 'serial'? known kinds: camera, command, http_camera, images, replay, rtsp, serial, synthetic"
    assert error.hint == hint


def test_a_kind_that_resembles_none_gets_the_list() -> None:
    assert refusal("sinks", "xyzzy").hint == "known kinds: jsonl, mqtt, stdout"


def test_a_package_that_cannot_be_imported_says_why(install_plugin: Install) -> None:
    install_plugin("tides", "raise RuntimeError('no libtide.so')", tide="tides:TideSource")
    error = refusal("sources", "tide")
    assert error.message == "the plug-in 'tide' (tides:TideSource) cannot be imported: no libtide.so"
    assert "reinstall" in error.hint


def test_a_class_of_another_sort_is_refused(install_plugin: Install) -> None:
    install_plugin("tides", SOURCE, tide="tides:Stranger")
    error = refusal("sources", "tide")
    assert error.message == "the plug-in 'tide' (tides:Stranger) is not a configuration class of sources"
    assert "edged.api.SourceConfig" in error.hint


def test_two_packages_with_one_kind_are_refused(install_plugin: Install) -> None:
    install_plugin("tides", SOURCE, tide="tides:TideSource")
    install_plugin("waves", SOURCE, tide="waves:TideSource")
    error = refusal("sources", "tide")
    assert error.message == "several packages provide the kind 'tide' of sources: tides:TideSource, waves:TideSource"
