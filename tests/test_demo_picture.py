"""The picture in the README is a recording of the demo."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"

_SPEC = spec_from_file_location("picture", ROOT / "demo/picture.py")
picture = module_from_spec(_SPEC)
sys.modules["picture"] = picture
_SPEC.loader.exec_module(picture)


def test_each_line_appears_at_its_time():
    drawn = ElementTree.fromstring(picture.draw([picture.Line(2.0, "first <line>"), picture.Line(5.0, "second")]))
    texts = drawn.findall(f"{SVG}text")
    assert [text.text for text in texts] == ["$ make demo", "first <line>", "second"]
    animations = [text.find(f"{SVG}animate") for text in texts]
    assert animations[0] is None
    assert [each.get("keyTimes") for each in animations[1:]] == ["0;0.2000", "0;0.5000"]
    assert animations[1].get("dur") == "10.0s"


def test_the_picture_of_the_readme_shows_correct_predictions():
    drawn = ElementTree.parse(ROOT / "docs/demo.svg").getroot()
    lines = [text.text or "" for text in drawn.findall(f"{SVG}text")]
    assert lines[0] == "$ make demo"
    assert any("decided: walking" in line and line.endswith("ok") for line in lines)
