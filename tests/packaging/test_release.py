"""`make release` refuses an unready checkout. RELEASING.md has the steps of a whole release."""

import shutil
import subprocess
import sys

import pytest

from edged import __version__
from tests.debian_package import REPOSITORY

pytestmark = pytest.mark.skipif(
    shutil.which("git") is None or not (REPOSITORY / ".git").exists(), reason="no checkout of git"
)
IDENTITY = {"GIT_AUTHOR_NAME": "anna", "GIT_AUTHOR_EMAIL": "anna@example.org"}
IDENTITY |= {name.replace("AUTHOR", "COMMITTER"): value for name, value in IDENTITY.items()}


def git(checkout, *words):
    subprocess.run(["git", "-C", checkout, *words], env=IDENTITY | {"PATH": "/usr/bin:/bin"}, check=True)


@pytest.fixture
def checkout(tmp_path):
    """Return a clone with a dated section for the version at the head of the changelog."""
    subprocess.run(
        ["git", "clone", "--quiet", "--depth=1", "--no-tags", f"file://{REPOSITORY}", tmp_path / "edged"], check=True
    )
    shutil.copy(REPOSITORY / "packaging/release", tmp_path / "edged/packaging/release")
    (tmp_path / "edged/CHANGELOG.md").write_text(f"## [Unreleased]\n\n## [{__version__}] - 2026-01-01\n")
    (tmp_path / "edged/edged/__init__.py").write_text(f'__version__ = "{__version__}"\n')
    git(tmp_path / "edged", "commit", "--quiet", "--all", "--message=Release")
    return tmp_path / "edged"


def refusal(checkout):
    done = subprocess.run([sys.executable, checkout / "packaging/release"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_an_uncommitted_change_is_refused(checkout):
    (checkout / "README.md").write_text("mine\n")
    assert refusal(checkout) == (
        "packaging/release: the checkout has uncommitted changes: commit or remove each file of `git status`\n"
    )


def test_a_version_that_the_changelog_does_not_have_is_refused(checkout):
    (checkout / "edged/__init__.py").write_text('__version__ = "9.9.9"\n')
    git(checkout, "commit", "--quiet", "--all", "--message=Release 9.9.9")
    assert "CHANGELOG.md has no dated section for 9.9.9 at its head" in refusal(checkout)


def test_a_version_that_is_the_tag_of_another_commit_is_refused(checkout):
    git(checkout, "tag", f"v{__version__}")
    git(checkout, "commit", "--quiet", "--allow-empty", "--message=Later")
    assert f"v{__version__} is the tag of another commit" in refusal(checkout)
