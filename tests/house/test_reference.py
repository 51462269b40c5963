"""docs/reference equals the output of `make reference`, and is therefore complete."""

import re
import subprocess
import sys
from pathlib import Path

from edged.core.topics import Topics

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs/reference"


def test_the_reference_matches_the_code():
    """A key, a manifest field or a record's field without a line in the struct's docstring fails here too."""
    command = [sys.executable, ROOT / "packaging/reference.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_reference_names_no_path_of_the_machine_it_was_made_on():
    pages = "".join(page.read_text() for page in REFERENCE.iterdir())
    assert {str(ROOT), str(Path.home())} & set(re.findall(r"/[\w/.-]+", pages)) == set()
    assert str(ROOT) not in pages


def test_the_reference_has_every_topic():
    names = [name for name in vars(Topics) if not name.startswith("_") and name not in ("prefix", "device")]
    topics = Topics("edged", "<device>")
    expected = {found if isinstance(found := getattr(topics, name), str) else found("<name>") for name in names}
    assert expected == set(re.findall(r"^\| `(edged/<device>/[^`]+)`", (REFERENCE / "mqtt.md").read_text(), re.M))
