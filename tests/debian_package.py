"""Build the Debian package as `make deb` does, and a copy with another version number."""

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
    """Return a field of a package's control data."""
    return subprocess.check_output(["dpkg-deb", "--field", package, name], text=True).strip()


def under_another_version(package, folder, version):
    """Return a copy of the package with another version number."""
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
