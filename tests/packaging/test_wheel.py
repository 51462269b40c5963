"""The wheel, installed as `pipx install` does: into an environment of its own, with no checkout in sight."""

import os
import subprocess
import sys

import pytest

from edged import __version__
from tests.debian_package import REPOSITORY


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """The folder of the commands of an environment that a wheel, made from an sdist, was installed into."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--outdir", folder, REPOSITORY]
    subprocess.run(build, capture_output=True, timeout=300, check=True)
    assert (folder / f"edged-{__version__}.tar.gz").exists()
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    wheel = folder / f"edged-{__version__}-py3-none-any.whl"
    install = [venv / "bin/pip", "install", "--quiet", "--disable-pip-version-check", wheel]
    subprocess.run(install, capture_output=True, timeout=300, check=True)
    return venv / "bin"


def run(command, *words, cwd):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EDGED"))}
    done = subprocess.run([command, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_commands_work(commands, tmp_path):
    assert run(commands / "edged", "--version", cwd=tmp_path) == f"edged {__version__}\n"
    assert run(commands / "edgectl", "version", cwd=tmp_path).startswith(f"edgectl         {__version__}\n")


def test_it_has_the_factory_models_with_it(commands, tmp_path):
    config = tmp_path / "edged.toml"
    config.write_text((REPOSITORY / "packaging/debian/edged.toml").read_text())
    said = run(commands / "edged", f"--config={config}", "--check", cwd=tmp_path)
    assert "model motion 1.0.0 on ai-edge-litert" in said
