"""Answers of the daemon are typed for edgectl: `Any` stays in the decoding of JSON alone."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "edged"
FILES = [*sorted((PACKAGE / "ctl").glob("*.py")), *sorted((PACKAGE / "app").glob("*.py")), PACKAGE / "core/protocol.py"]

GENERIC = {"NDArray", "Task", "Coroutine"}
"""Generic types of other packages, with parameters unrelated to answers."""

DECODING = {"core/protocol.py": 2}
"""Files with other uses of `Any`, and the number of uses: to decode JSON, and to check decoded values."""


def uses_of_any(tree: ast.AST) -> list[int]:
    """Return the lines with a use of `Any`, except as a parameter of GENERIC types."""
    harmless = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and (node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")) in GENERIC
        for inner in ast.walk(node.slice)
    }
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "Any"]
    return [node.lineno for node in names if id(node) not in harmless]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_any_is_said_only_where_json_is_decoded(file):
    lines = uses_of_any(ast.parse(file.read_text()))
    assert len(lines) == DECODING.get(str(file.relative_to(PACKAGE)), 0), lines


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("def f(x: dict[str, Any]) -> None: ...", [1]),
        ("x: list[Any] = []", [1]),
        ("def f(\n x: Any) -> None: ...", [2]),
        ("def f(x: NDArray[Any]) -> asyncio.Task[Any]: ...", []),
    ],
)
def test_the_rule_itself(code, lines):
    assert uses_of_any(ast.parse(code)) == lines
