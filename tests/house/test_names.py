"""Names: public types are unique, former words stay away, and the glossary names real classes."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "edged"
GLOSSARY = ROOT / "docs" / "development" / "glossary.md"

OLD_WORDS = {
    *("door", "wish", "shelf", "shelves", "scissors", "patience", "vitals", "leash", "tally", "tallies"),
    *("standing", "standings", "coming"),
}
"""Words of names that plainer ones replaced: Admission, DesiredVersion, ModelFolder, SegmentFile, Cancellation ..."""

OLD_CLASSES = {"Arrival", "Board", "Flight", "Home", "Incoming", "Line", "Needs", "Pace", "Parts", "Spent"}
"""Names of former classes, parts of other names today: Submission, InFlight, PartialFiles, SshSession ..."""

EMPTY_WORDS = {"Helper", "Helpers", "Manager", "Util", "Utils"}
"""Empty words."""


def words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def trees():
    for file in sorted(PACKAGE.rglob("*.py")):
        yield file, ast.parse(file.read_text(), str(file))


def alias(node: ast.stmt) -> str | None:
    """Return the name of a type alias; None for other statements and for type variables."""
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if re.match(r"[A-Z]\w*[a-z]", name):
            is_variable = isinstance(value, ast.Call) and ast.unparse(value.func).endswith("TypeVar")
            return None if is_variable else name
    return None


def public_types() -> dict[str, list[str]]:
    """Return the places of each public class and type alias, by name."""
    found = defaultdict(list)
    for file, tree in trees():
        names = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        names += filter(None, map(alias, tree.body))
        for name in names:
            if not name.startswith("_"):
                found[name].append(str(file.relative_to(PACKAGE)))
    return found


def public_names():
    """Yield the place and the name of each class, module and public function."""
    for file, tree in trees():
        yield file.relative_to(PACKAGE), file.stem
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                yield file.relative_to(PACKAGE), node.name


def test_each_public_type_has_a_name_of_its_own() -> None:
    assert {name: files for name, files in public_types().items() if len(files) > 1} == {}


def test_old_words_are_in_no_name() -> None:
    assert [f"{file}: {name}" for file, name in public_names() if words(name) & OLD_WORDS] == []


def test_old_classes_are_gone() -> None:
    assert OLD_CLASSES & public_types().keys() == set()


def test_no_class_has_an_empty_word_in_its_name() -> None:
    names = {word for name in public_types() for word in re.findall(r"[A-Z][a-z]*", name) if word in EMPTY_WORDS}
    assert names == set()


def test_classes_of_the_glossary_exist() -> None:
    named = set(re.findall(r"`([A-Z]\w*[a-z]\w*)`", GLOSSARY.read_text()))
    assert named
    assert named - public_types().keys() == set()
