"""The wheel, installed as `pipx install` does: into an environment of its own, with no checkout in sight."""

import os
import subprocess
import sys
import tarfile
from zipfile import ZipFile

import pytest

from edged import __version__
from tests.debian_package import REPOSITORY


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel, made from an sdist, and that."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--outdir", folder, REPOSITORY]
    subprocess.run(build, capture_output=True, timeout=300, check=True)
    return folder / f"edged-{__version__}-py3-none-any.whl", folder / f"edged-{__version__}.tar.gz"


@pytest.fixture(scope="module")
def commands(built, tmp_path_factory):
    """The folder of the commands of an environment that the wheel was installed into."""
    wheel, _ = built
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install = [venv / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", wheel]
    subprocess.run(install, capture_output=True, timeout=300, check=True)
    return venv / "bin"


def run(command, *words, cwd):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EDGED"))}
    done = subprocess.run([command, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_has_the_factory_models_and_the_sdist_also_what_made_them(built):
    wheel, sdist = built
    models = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("firmware_models/*/*/*")}
    trainers = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("firmware_models/*/train.py")}
    with ZipFile(wheel) as packed, tarfile.open(sdist) as source:
        wheels = {name.removeprefix("edged/") for name in packed.namelist() if "firmware_models/" in name}
        sdists = {name.partition("/")[2] for name in source.getnames()}
    assert wheels == models
    assert models | trainers <= sdists


def test_its_commands_work(commands, tmp_path):
    assert run(commands / "edged", "--version", cwd=tmp_path) == f"edged {__version__}\n"
    assert run(commands / "edgectl", "version", cwd=tmp_path).startswith(f"edgectl         {__version__}\n")


def test_it_has_the_factory_models_with_it(commands, tmp_path):
    config = tmp_path / "edged.toml"
    config.write_text((REPOSITORY / "packaging/debian/edged.toml").read_text())
    said = run(commands / "edged", f"--config={config}", "--check", cwd=tmp_path)
    assert "model motion 1.0.0 on ai-edge-litert" in said
