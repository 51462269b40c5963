"""Imports go down only, without cycles, and wings never import each other, by a table of layers.

Every import statement of every module counts, also within functions and for type checkers.
"""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "edged"

RULES = {"core", "system"}
EDGES = RULES | {"api", "outbox", "control", "pictures"}
WINGS = EDGES | {"flow", "models", "transfer", "sources", "backends", "sinks", "plugins"}
MACHINES = WINGS | {"updates", "acceleration", "config"}

MAY_IMPORT = {
    "core": set(),
    "system": {"core"},
    "api": RULES,
    "outbox": RULES,
    "control": RULES,
    "pictures": RULES,
    "flow": RULES | {"api"},
    "models": RULES | {"api"},
    "transfer": RULES | {"api"},
    "sources": RULES | {"api", "pictures"},
    "backends": RULES | {"api"},
    "sinks": RULES | {"api"},
    "plugins": RULES | {"api"},
    "testing": RULES | {"api", "pictures"},
    "updates": WINGS,
    "acceleration": WINGS,
    "config": WINGS,
    "app": MACHINES,
    "__main__": MACHINES | {"app"},
    "ctl": MACHINES | {"app"},
}
"""Imports allowed to each part besides the part itself; `edged` alone (the version) is free to all."""

CORE_MAY_IMPORT = {
    *("__future__", "collections", "typing", "dataclasses", "enum", "functools", "itertools", "operator", "graphlib"),
    *("math", "cmath", "statistics", "array", "bisect", "heapq", "struct", "zlib", "hashlib", "binascii", "base64"),
    *("json", "re", "string", "textwrap", "difflib", "unicodedata", "copy", "io", "zipfile", "datetime", "contextlib"),
    *("lzma", "csv", "_sha2", "_sha256"),
    *("numpy", "msgspec"),
}
"""Modules without knowledge of an operating system, a thread, a socket or a clock."""


def imports(file):
    """The dotted names a file imports, and the line of each."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        match node:
            case ast.Import(names=names):
                yield from ((name.name, node.lineno) for name in names)
            case ast.ImportFrom(module=module, names=names, level=0):
                yield from ((f"{module}.{name.name}", node.lineno) for name in names)
            case ast.ImportFrom():
                yield ".", node.lineno


def part(name):
    """Return the part of the package for a dotted name; None for `edged` itself and for other packages."""
    words = name.split(".")
    return words[1] if words[0] == "edged" and len(words) > 1 and words[1] in MAY_IMPORT else None


MODULES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


def named(file):
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("file", MODULES, ids=named)
def test_imports_go_down_only(file):
    own = part(named(file))
    assert own is not None, "a new part needs a line in the table"
    wrong = [f"line {line}: {name}" for name, line in imports(file) if part(name) not in {None, own, *MAY_IMPORT[own]}]
    assert not wrong


@pytest.mark.parametrize("file", MODULES, ids=named)
def test_imports_name_the_whole_path(file):
    assert not [line for name, line in imports(file) if name == "."]


@pytest.mark.parametrize("file", [file for file in MODULES if part(named(file)) == "core"], ids=named)
def test_core_is_pure(file):
    roots = {(name.split(".")[0], line) for name, line in imports(file)}
    assert not [f"line {line}: {root}" for root, line in roots if root not in CORE_MAY_IMPORT | {"edged"}]


def test_there_are_no_cycles():
    """An import of a package's name counts as an import of the package's module."""
    known = {named(file): file for file in MODULES}

    def targets(file):
        for name, _ in imports(file):
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name:
                yield name

    graph = {name: {target for target in targets(file) if target != name} for name, file in known.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(known)


def test_the_table_itself_has_no_cycles():
    assert list(TopologicalSorter(MAY_IMPORT).static_order())


def test_the_house_has_seven_floors():
    def floor(name):
        return 1 + max(map(floor, MAY_IMPORT[name]), default=0)

    assert max(map(floor, MAY_IMPORT)) <= 7


def test_only_the_command_imports_the_daemon():
    """Every other part is handed callables: nobody reaches back into the object that composes all."""
    importers = {
        named(file) for file in MODULES for name, _ in imports(file) if f"{name}.".startswith("edged.app.daemon.")
    }
    assert importers == {"edged.__main__"}


def test_no_function_is_handed_the_daemon():
    arguments = [
        (f"{named(file)}:{node.lineno}", ast.unparse(node.annotation))
        for file in MODULES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.arg) and node.annotation
    ]
    assert [place for place, annotation in arguments if "Daemon" in re.findall(r"\w+", annotation)] == []


def test_the_state_of_the_service_imports_nothing_else_of_app():
    assert [name for name, _ in imports(PACKAGE / "app" / "state.py") if part(name) == "app"] == []
