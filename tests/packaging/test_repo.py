"""The apt repository of `make repo`: apt installs packages, and refuses the repository after any change of a file.

The packages are empty, for speed; tests/end_to_end/test_package.py installs the real package from a repository.
"""

import shutil
import subprocess

import pytest

from tests.apt_repository import make_repository, throw_away_key

TOOLS = ("apt-get", "dpkg-deb", "gpg")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not installed")

CONTROL = """\
Package: edged
Version: {version}
Architecture: {arch}
Maintainer: anna <anna@example.org>
Description: empty
"""


def package(folder, version, arch):
    tree = folder / f"{version}_{arch}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(CONTROL.format(version=version, arch=arch))
    file = folder / f"edged_{version}_{arch}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, file], capture_output=True, check=True)
    return file


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    versions = [("1.0-1+deb12", "amd64"), ("1.1-1+deb12", "amd64"), ("1.1-1+deb12", "armhf"), ("1.1-1+deb13", "amd64")]
    return [package(folder, *each) for each in versions]


@pytest.fixture(scope="module")
def gpg(tmp_path_factory):
    with throw_away_key(tmp_path_factory.mktemp("gpg")) as environment:
        yield environment


@pytest.fixture(scope="module")
def made(packages, gpg, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "repo"
    done = make_repository(folder, gpg, *packages)
    assert (done.returncode, done.stdout) == (0, f"{folder}\n"), done.stderr
    return folder


@pytest.fixture
def repository(made, tmp_path):
    """Return a copy of the repository for a test to change."""
    return shutil.copytree(made, tmp_path / "repo")


@pytest.fixture
def apt(repository, tmp_path):
    """Run apt-get on the copy alone, with folders of the test."""

    def run(*words, suite="bookworm", arch="amd64"):
        for name in (
            "etc/preferences.d",
            "etc/apt.conf.d",
            "etc/trusted.gpg.d",
            "lists/partial",
            "cache/archives/partial",
        ):
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "status").touch()
        key = repository / "edged-archive-keyring.asc"
        (tmp_path / "etc/sources.list").write_text(f"deb [signed-by={key}] file://{repository} {suite} main\n")
        options = {
            "Dir::Etc": tmp_path / "etc",
            "Dir::State": tmp_path,
            "Dir::State::lists": tmp_path / "lists",
            "Dir::State::status": tmp_path / "status",
            "Dir::Cache": tmp_path / "cache",
            "APT::Architecture": arch,
            "APT::Architectures": arch,
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
        }
        command = ["apt-get", "-qq", *(f"--option={name}={value}" for name, value in options.items()), *words]
        return subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
        )

    return run


def test_apt_finds_the_newest_package_of_its_suite_and_architecture(apt, packages, tmp_path):
    assert apt("update").returncode == 0
    assert apt("download", "edged").returncode == 0
    assert (tmp_path / packages[1].name).read_bytes() == packages[1].read_bytes()


@pytest.mark.parametrize(("suite", "arch", "file"), [("bookworm", "armhf", 2), ("trixie", "amd64", 3)])
def test_every_suite_and_architecture_has_its_own_package(apt, packages, tmp_path, suite, arch, file):
    assert apt("update", suite=suite, arch=arch).returncode == 0
    assert apt("download", "edged", suite=suite, arch=arch).returncode == 0
    assert (tmp_path / packages[file].name).exists()


@pytest.mark.parametrize(
    ("changed", "was", "becomes"),
    [
        ("dists/bookworm/InRelease", b"Components: main", b"Components: mine"),
        ("dists/bookworm/main/binary-amd64/Packages", b"Version: 1.1", b"Version: 1.9"),
    ],
)
def test_a_changed_index_is_refused(apt, repository, changed, was, becomes):
    file = repository / changed
    file.write_bytes(file.read_bytes().replace(was, becomes))
    assert apt("update").returncode != 0
    assert apt("download", "edged").returncode != 0


def test_a_changed_package_is_refused(apt, repository, packages, tmp_path):
    file = repository / "pool/bookworm" / packages[1].name
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    assert apt("update").returncode == 0
    assert apt("download", "edged").returncode != 0


def test_a_repository_signed_by_another_key_is_refused(apt, repository, packages, tmp_path):
    key = (repository / "edged-archive-keyring.asc").read_bytes()
    with throw_away_key(tmp_path / "other") as other:
        assert make_repository(repository, other, *packages).returncode == 0
    (repository / "edged-archive-keyring.asc").write_bytes(key)
    refused = apt("update")
    assert refused.returncode != 0
    assert "not signed" in refused.stderr


def test_a_repository_without_a_signature_is_refused(apt, repository):
    (repository / "dists/bookworm/InRelease").unlink()
    (repository / "dists/bookworm/Release.gpg").unlink()
    assert apt("update").returncode != 0


@pytest.mark.parametrize(
    ("key", "words"),
    [("", "make repo KEY=FINGERPRINT"), ("nobody@example.org", "'nobody@example.org' names 0 secret keys")],
)
def test_a_key_that_cannot_sign_is_refused(gpg, packages, tmp_path, key, words):
    refused = make_repository(tmp_path / "repo", gpg, *packages, key=key)
    assert (refused.returncode, words in refused.stderr) == (1, True)
    assert not (tmp_path / "repo").exists()


def test_a_package_for_no_release_of_debian_is_refused(gpg, tmp_path):
    refused = make_repository(tmp_path / "repo", gpg, package(tmp_path, "1.0-1", "amd64"))
    assert (refused.returncode, "must end in +deb12 or +deb13" in refused.stderr) == (1, True)
