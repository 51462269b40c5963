"""Builds the Debian package as `make deb` does, and another version of it that differs in nothing else."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def build(arch, suite):
    """The package of an architecture and a suite."""
    command = [sys.executable, REPOSITORY / "packaging" / "deb", f"--arch={arch}", f"--suite={suite}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def field(package, name):
    """What a package says of itself."""
    return subprocess.check_output(["dpkg-deb", "--field", package, name], text=True).strip()


def under_another_version(package, folder, version):
    """The same package, but for its version."""
    tree = folder / version
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN" / "control"
    lines = control.read_text().splitlines(keepends=True)
    control.write_text("".join(f"Version: {version}\n" if line.startswith("Version:") else line for line in lines))
    other = folder / f"edged_{version}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, other], check=True, capture_output=True
    )
    return other
