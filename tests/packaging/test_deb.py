"""The Debian package as a file: content, size, and the verdict of Debian's own checker."""

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys

import pytest

from edged.ctl.main import VERBS
from tests.debian_package import REPOSITORY, build, field

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")

MEGABYTE = 1_000_000
THERE = [
    "./etc/edged/conf.d/",
    "./etc/edged/edged.toml",
    "./usr/bin/edgectl",
    "./usr/bin/edged",
    "./usr/lib/edged/ai_edge_litert/interpreter.py",
    "./usr/lib/edged/edged/app/daemon.py",
    "./usr/lib/edged/edged/firmware_models/anomaly/1.0.0/model.tflite",
    "./usr/lib/edged/edged/firmware_models/digits/1.0.0/model.tflite",
    "./usr/lib/edged/edged/firmware_models/motion/1.0.0/model.tflite",
    "./usr/lib/systemd/system/edged-retry.timer",
    "./usr/lib/systemd/system/edged.service",
    "./usr/lib/sysusers.d/edged.conf",
    "./usr/lib/tmpfiles.d/edged.conf",
    "./usr/lib/udev/rules.d/60-edged.rules",
    "./usr/share/bash-completion/completions/edgectl",
    "./usr/share/doc/edged/changelog.Debian.gz",
    "./usr/share/doc/edged/changelog.gz",
    "./usr/share/doc/edged/copyright",
    "./usr/share/man/man1/edgectl.1.gz",
    "./usr/share/man/man5/edged.toml.5.gz",
    "./usr/share/man/man8/edged.8.gz",
]


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def package(request):
    return build("amd64", request.param)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The files of the package for bookworm."""
    folder = tmp_path_factory.mktemp("package")
    subprocess.run(["dpkg-deb", "--extract", build("amd64", "bookworm"), folder], check=True)
    return folder


def listing(package):
    """Return mode, owner and name of all files."""
    lines = subprocess.check_output(["dpkg-deb", "--contents", package], text=True).splitlines()
    return {words[5]: (words[0], words[1]) for words in map(str.split, lines)}


def test_all_that_belongs_in_it_is_there_and_is_roots(package):
    files = listing(package)
    assert set(THERE) - set(files) == set()
    assert {owner for _, owner in files.values()} == {"root/root"}
    writable = [name for name, (mode, _) in files.items() if "w" in mode[5:] and mode[0] != "l"]
    assert writable == []


def test_nothing_is_in_it_that_was_only_needed_to_make_it(package):
    droppings = (
        "__pycache__",
        "RECORD",
        "INSTALLER",
        "direct_url.json",
        "train",
        ".pyi",
        "WebGpu",
        "vendors",
        "/tests/",
        "/testing/",
    )
    assert [name for name in listing(package) if any(word in name for word in droppings)] == []


@pytest.mark.parametrize(("arch", "suite"), [("amd64", "bookworm"), ("arm64", "bookworm"), ("arm64", "trixie")])
def test_it_is_small(arch, suite):
    package = build(arch, suite)
    assert package.stat().st_size < 20 * MEGABYTE
    assert int(field(package, "Installed-Size")) * 1024 < 60 * MEGABYTE


def test_it_wants_the_python_that_it_was_made_for(package):
    minor = 11 if "deb12" in package.name else 13
    wanted = field(package, "Depends").split(", ")
    assert wanted[:2] == [f"python3 (>= 3.{minor})", f"python3 (<< 3.{minor + 1})"]
    assert {"python3-numpy", "python3-serial", "python3-systemd"} < set(wanted)
    assert any(f"cpython-3{minor}" in name for name in listing(package))


def test_the_configuration_is_the_administrators(package):
    assert subprocess.check_output(["dpkg-deb", "--info", package, "conffiles"], text=True) == "/etc/edged/edged.toml\n"


def test_lintian_has_nothing_to_say(package):
    if shutil.which("lintian") is None:
        pytest.skip("lintian is not installed")
    done = subprocess.run(
        ["lintian", "--fail-on=error,warning", package], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_every_override_says_why():
    paragraphs = (REPOSITORY / "packaging/debian/lintian-overrides").read_text().strip().split("\n\n")
    assert [each for each in paragraphs if not each.startswith("# ")] == []


def test_the_same_input_makes_the_same_bytes(tmp_path):
    once = build("amd64", "bookworm")
    command = [sys.executable, "packaging/deb", "--arch=amd64", "--suite=bookworm", f"--output={tmp_path}"]
    elsewhere = {"TZ": "Pacific/Auckland", "LC_ALL": "C", "EDGED_STATE_DIR": "/mine", "XDG_RUNTIME_DIR": "/x"}
    careful = ["sh", "-c", 'umask 077; exec "$@"', "sh", *command]
    subprocess.run(careful, cwd=REPOSITORY, env=os.environ | elsewhere, capture_output=True, timeout=300, check=True)
    again = tmp_path / once.name
    if inputs(again) != inputs(once):
        pytest.skip("somebody changed the checkout meanwhile")
    assert digest(again) == digest(once)


def inputs(package):
    return package.with_suffix(".inputs").read_text()


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_what_cannot_be_built_is_refused_with_words():
    command = [sys.executable, REPOSITORY / "packaging/deb", "--arch=armhf", "--suite=trixie"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no TFLite runtime has a wheel for 32-bit ARM and Python 3.12 or newer" in done.stderr
    assert "--arch arm64" in done.stderr


# Files for users


def manual(tree, name):
    section = name[-1]
    return gzip.decompress((tree / f"usr/share/man/man{section}/{name}.gz").read_bytes()).decode()


def test_the_manual_has_every_verb_and_what_it_understands(tree):
    page = manual(tree, "edgectl.1").replace("\\-", "-")
    assert [verb for verb in VERBS if f'.SS "edgectl {verb}' not in page] == []
    assert [name for name in ("--confirm-within", "--delta-from") if f"\\fB{name}\\fR" not in page] == []
    assert ".B 8\nthe new version served and was rolled back" in page
    assert "--state-dir\\fR \\fIDIR\\fR\ndata of the daemon (EDGED_STATE_DIR; the daemon's; /var/lib/edged)" in page


def test_the_manual_has_every_key_of_the_configuration(tree):
    page = manual(tree, "edged.toml.5").replace("\\-", "-")
    assert '.SS "[mqtt]"' in page
    assert "\\fBkeepalive\\fR (integer, 2 to 3600; s; default 30)\nTime between two signs of life." in page


@pytest.mark.parametrize("name", ["edgectl.1", "edged.toml.5", "edged.8"])
def test_the_manual_is_sound_and_whole(tree, tmp_path, name):
    if shutil.which("man") is None:
        pytest.skip("man is not installed")
    page = tmp_path / name
    page.write_text(manual(tree, name))
    assert re.findall(r"@[a-z_]+@", page.read_text()) == []
    done = subprocess.run(
        ["man", "--warnings", "--local-file", "-Tutf8", "--ditroff", page], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def complete(tree, *words):
    """Return bash's completions of these words."""
    script = tree / "usr/share/bash-completion/completions/edgectl"
    program = 'compopt() { :; }; source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _"$1"; echo "${COMPREPLY[@]}"'
    return subprocess.check_output(["bash", "-c", program, script, *words], text=True, cwd=tree).split()


def test_completion(tree):
    assert complete(tree, "edgectl", "st") == ["status"]
    assert complete(tree, "edgectl", "") == list(VERBS)
    assert complete(tree, "edgectl", "--json", "spool", "") == ["show", "retry", "drop"]
    assert complete(tree, "edgectl", "--config", "x", "update-model", "--conf") == ["--config", "--confirm-within"]
    assert complete(tree, "edgectl", "--state-dir", "us") == ["usr"]
    assert complete(tree, "edgectl", "inspect", "us") == ["usr"]
    assert complete(tree, "edged", "--ch") == ["--check"]
