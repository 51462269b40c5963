"""What the README tells people to type and to look at is there."""

import re
from pathlib import Path

import pytest

from edged.config import load
from edged.core.topics import Topics
from edged.ctl.main import VERBS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_its_configuration_is_a_whole_one(tmp_path: Path):
    (example,) = re.findall(r"```toml\n(.*?)```", README, re.S)
    (tmp_path / "edged.toml").write_text(example)
    config = load([tmp_path / "edged.toml"])
    assert list(config.pipelines) == ["motion"]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M))))
def test_every_target_it_names_can_be_made(target: str):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"edgectl ([a-z][a-z-]+)", README))))
def test_every_verb_it_names_exists(verb: str):
    assert verb in VERBS


def test_it_names_every_verb():
    assert {verb for verb in VERBS if f"`{verb}" not in README and f"edgectl {verb}" not in README} == set()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_what_it_points_at_is_there(link: str):
    assert (ROOT / link).exists()


def test_its_table_of_topics_is_that_of_the_code():
    topics = Topics("edged", "<device>")
    said = set(re.findall(r"^\| `(edged/<device>/[^`]+)`", README, re.M))
    assert said == {
        topics.availability,
        topics.state,
        topics.source_state("<name>"),
        topics.model_state("<name>"),
        topics.model_accelerator("<name>"),
        topics.model_update("<name>"),
        topics.model_desired("<name>"),
        topics.pipeline_state("<name>"),
        topics.decision("<name>"),
        topics.result("<name>"),
    }
