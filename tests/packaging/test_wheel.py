"""The wheel, installed as by `pipx install`: into an environment of its own, without a checkout."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from zipfile import ZipFile

import pytest

from edged import __version__
from tests.debian_package import REPOSITORY


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return a wheel, made from an sdist, and the sdist."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--outdir", folder, REPOSITORY]
    subprocess.run(build, capture_output=True, timeout=300, check=True)
    return folder / f"edged-{__version__}-py3-none-any.whl", folder / f"edged-{__version__}.tar.gz"


@pytest.fixture(scope="module")
def commands(built, tmp_path_factory):
    """Return the folder of commands of an environment with the wheel."""
    wheel, _ = built
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install = [venv / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", wheel]
    subprocess.run(install, capture_output=True, timeout=300, check=True)
    return venv / "bin"


def run(command, *words, cwd, status=0):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EDGED"))}
    done = subprocess.run([command, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stdout + done.stderr
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


@pytest.fixture(scope="module")
def plug_in(commands, tmp_path_factory):
    """Return the folder of the package that docs/plug-ins.md shows, installed beside the wheel, with pytest."""
    page = (REPOSITORY / "docs/plug-ins.md").read_text()
    module, *_, suite = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    project, table = re.findall(r"^```toml\n(.*?)^```$", page, re.M | re.S)
    folder = tmp_path_factory.mktemp("plug-in")
    (folder / "tests").mkdir()
    (folder / "thermal_zone.py").write_text(module)
    (folder / "tests/test_thermal_zone.py").write_text(suite)
    (folder / "pyproject.toml").write_text(project)
    (folder / "edged.toml").write_text(table)
    run(commands / "pip", "install", "--quiet", "--disable-pip-version-check", ".", "pytest", cwd=folder)
    return folder


def test_the_plug_in_of_a_stranger_passes_its_contract_suite(commands, plug_in):
    assert re.search(r"^10 passed", run(commands / "pytest", "-q", "tests", cwd=plug_in), re.M)
    assert "valid: 0 pipelines, 1 source" in run(commands / "edgectl", "config", "check", "edged.toml", cwd=plug_in)


def test_type_checkers_find_the_types_of_edged(commands, plug_in):
    (plug_in / "wrong.py").write_text("from edged.api import Chunk\n\nChunk(samples=1, time=True, lost='none')\n")
    check = ["-m", "mypy", "--strict", f"--python-executable={commands / 'python'}"]
    assert "Success" in run(sys.executable, *check, "thermal_zone.py", cwd=plug_in)
    assert '"str"; expected "int"' in run(sys.executable, *check, "wrong.py", cwd=plug_in, status=1)


def test_the_suite_shows_where_a_plug_in_breaks_the_contract(commands, plug_in, tmp_path):
    module = (plug_in / "thermal_zone.py").read_text()
    (tmp_path / "thermal_zone.py").write_text(module.replace("[[value]]", "[[value, value]]"))
    shutil.copytree(plug_in / "tests", tmp_path / "tests")
    said = run(commands / "python", "-m", "pytest", "-q", "tests", cwd=tmp_path, status=1)
    assert "assert (2,) == (1,)" in said  # the compared values: pytest rewrites the suite's assertions
    assert re.search(r"^1 failed, 9 passed", said, re.M)
