"""Warnings about a sound configuration."""

from pathlib import Path

import pytest

from edged.config.load import load
from edged.config.warnings import warnings
from edged.models.store import Store
from tests.bundles import write_bundle
from tests.models.test_store import Installer

CONFIG = """
[sources.ramp]
kind = "synthetic"
channels = ["c0", "c1", "c2", "c3"]
[pipelines.colours]
source = "ramp"
model = "colours"
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    write_bundle(tmp_path / "factory" / "colours" / "1.0")
    write_bundle(tmp_path / "mine", version="2.0")
    return Store(tmp_path / "factory", tmp_path / "state")


def found(tmp_path: Path, store: Store, more: str) -> list[tuple[str, str, str]]:
    file = tmp_path / "edged.toml"
    file.write_text(CONFIG + more)
    told = warnings(load([file]), store)
    assert all(each.file == str(file) and each.allowed and each.hint for each in told)
    return [(each.path, each.found, each.hint.partition("; ")[0]) for each in told]


def test_where_everything_has_an_effect_there_is_no_warning(tmp_path: Path, store: Store):
    assert found(tmp_path, store, 'drop = "thin"\nkeep_every = 5\n[models.colours]\npath = "mine"\n') == []


@pytest.mark.parametrize(
    ("more", "path", "what", "hint"),
    [
        ("keep_every = 5", "pipelines.colours.keep_every", 'drop is "oldest"', 'set drop = "thin", or remove the key'),
        (
            'sinks = ["stdout"]\ndurability = "always"',
            "pipelines.colours.durability",
            "no sink of the pipeline sends to the broker",
            'add "mqtt" to `sinks`, or remove the key',
        ),
        (
            "[updates]\nallowed_signers = 'signers'",
            "updates.allowed_signers",
            "no effect, as require_signature is false",
            "set require_signature = true, or unsigned models are installed too",
        ),
        (
            "[mqtt]\ndiscovery_prefix = 'ha'",
            "mqtt.discovery_prefix",
            "no effect, as home_assistant is false",
            "set home_assistant = true, or remove the key",
        ),
        (
            "[models.shapes]\nthreads = 1",
            "models.shapes",
            "no pipeline uses it",
            'write [pipelines.NAME] with model = "shapes", or remove the table',
        ),
        (
            "[models.colours]\nversion = '1.0'\nurl = 'https://example.com/colours.edgm'",
            "models.colours.url",
            "no effect, as `version` keeps the model at 1.0",
            "remove one of the two keys",
        ),
        (
            "[models.colours]\nversion = '3.0'",
            "models.colours",
            "the model 'colours' has no version 3.0",
            "bring one: edgectl update-model FILE",
        ),
        (
            "[sources.other]\nkind = 'synthetic'\nchannels = ['x']",
            "sources.other",
            "no pipeline uses it",
            "name the table in a pipeline, or remove it",
        ),
        (
            "[sinks.file]\nkind = 'jsonl'\npath = 'results.jsonl'",
            "sinks.file",
            "no pipeline uses it",
            "name the table in a pipeline, or remove it",
        ),
    ],
)
def test_what_has_no_effect(tmp_path: Path, store: Store, more: str, path: str, what: str, hint: str):
    assert found(tmp_path, store, more) == [(path, what, hint)]


def test_a_bundle_of_another_name_than_its_table(tmp_path: Path, store: Store):
    more = '[models.mine]\npath = "mine"\n[pipelines.second]\nsource = "ramp"\nmodel = "mine"\n'
    hint = "rename the table to [models.colours], or updates of that model do not reach it"
    assert found(tmp_path, store, more) == [("models.mine.path", "a bundle of the model 'colours'", hint)]


def test_a_path_that_does_not_serve(tmp_path: Path, store: Store):
    installed = Installer(tmp_path)
    installed.write(active=installed.install("3.0"))
    more = '[models.colours]\npath = "mine"\n'
    over = "the installed version 3.0 serves in place of this path"
    back = "return to the path: edgectl rollback colours --to factory"
    assert found(tmp_path, store, more) == [("models.colours.path", over, back)]
    (tmp_path / "mine" / "manifest.json").unlink()
    gone = "no sound model at this path; the installed version 3.0 serves"
    back = "put the file back, or a rollback has no factory version to return to"
    assert found(tmp_path, store, more) == [("models.colours.path", gone, back)]
