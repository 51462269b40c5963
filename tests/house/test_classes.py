"""Classes stay small enough to be read at once, or their docstring says why they are not."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "edged"

MAX_LINES = 400
MAX_METHODS = 25

REASON = re.compile(r"\b(Longer than 400 lines|More than 25 methods),? because \w+")
"""The sentence in the docstring of a larger class."""


def classes():
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(), str(file))):
            if isinstance(node, ast.ClassDef):
                yield pytest.param(node, id=f"{file.relative_to(PACKAGE)}-{node.name}")


def is_large(node):
    methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    return node.end_lineno - node.lineno + 1 > MAX_LINES or len(methods) > MAX_METHODS


@pytest.mark.parametrize("node", list(classes()))
def test_a_large_class_says_why(node):
    if is_large(node):
        assert REASON.search(" ".join((ast.get_docstring(node) or "").split()))
