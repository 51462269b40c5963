"""The changelog, the addresses and the subjects of commits are as RELEASING.md and CONTRIBUTING.md state."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from edged import __version__

ROOT = Path(__file__).parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
SECTIONS = re.findall(r"^## (.+)$", CHANGELOG, re.M)
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
"""As Keep a Changelog names and orders them."""


def git(*words):
    return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=False).stdout.strip()


def test_the_changelog_begins_with_what_is_unreleased_and_has_dated_versions_below():
    assert SECTIONS[0] == "[Unreleased]"
    assert [each for each in SECTIONS[1:] if not re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", each)] == []


def test_the_newest_released_version_is_that_of_the_code():
    assert SECTIONS[1].startswith(f"[{__version__}] - ")


def test_every_section_of_the_changelog_has_kinds_in_order():
    for section in re.split(r"^## ", CHANGELOG, flags=re.M)[1:]:
        kinds = re.findall(r"^### (.+)$", section, re.M)
        assert kinds == [kind for kind in KINDS if kind in kinds]


def test_every_entry_of_a_released_version_is_one_short_line():
    released = "".join(re.split(r"^## ", CHANGELOG, flags=re.M)[2:])
    entries = [line for line in released.splitlines() if line.startswith(("-", " "))]
    assert [entry for entry in entries if not re.fullmatch(r"- .{1,240}\.", entry)] == []


def test_addresses_that_a_publisher_replaces_are_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {url.split("/")[2] for url in project["urls"].values()} == {"edged.invalid"}
    listing = git("grep", "-l", "edged[.]invalid", "--", ":!pyproject.toml", ":!tests")
    assert listing == ""


def test_subjects_of_commits_since_the_last_release_are_short():
    released = git("describe", "--tags", "--abbrev=0", "--match", "v*")
    if not released:
        pytest.skip("this clone has no tag of a release")
    subjects = git("log", "--no-merges", "--format=%s", f"{released}..HEAD").splitlines()
    assert [subject for subject in subjects if len(subject) > 72] == []


def test_no_package_is_among_the_files():
    assert git("ls-files", "*.whl", "*.deb", "*.tar.gz", "*.edgm") == ""
