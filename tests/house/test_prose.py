"""Docstrings, comments and messages in plain technical English: a named subject instead of a pronoun."""

import ast
import io
import re
import tokenize
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("edged", "benchmarks", "demo", "firmware_models", "packaging", "tests")

NOT_FIRST = re.compile(
    r"\W*(it|what|who|whoever|whether|how|those|one|all|which|where|that|whatever)(?![\w-])", re.IGNORECASE
)
"""Words that begin no docstring and no message."""

PRONOUN = re.compile(
    r"he|him|his|she|her|it|its|itself|they|them|their|theirs|themselves|we|us|our|ours|you|your|yours|that|there|one"
    r"|ones|(any|every|some|no)(one|body|thing)|none|what|whatever|which|whichever|who|whoever|whom|whose|where|wherever"
    r"|whether|how|why",
    re.IGNORECASE,
)
"""Pronouns and wh-words."""

DETERMINER = re.compile(r"this|these|those", re.IGNORECASE)
"""Words that are pronouns only without a noun, as in "this is" and "those of"."""

NO_NOUN = re.compile(
    r"am|is|are|was|were|be|been|has|have|had|do|does|did|can|cannot|could|may|might|must|shall|will|would|should|of|in|on"
    r"|at|to|for|from|with|by|and|or|as|not|than|but|if|when|where|who|whose|which|that"
)

MOST = 5
"""Most pronouns and wh-words for 100 words of a file; modules of Python's standard library have 2.5 to 6.6."""


class Text(NamedTuple):
    """A docstring, a message or a comment, and its first line in the file."""

    line: int
    kind: str
    text: str


class Word(NamedTuple):
    """A word and its line in the file; `ends` if no word follows before the next punctuation mark."""

    line: int
    word: str
    ends: bool


def literal(node):
    """Return the text of a string literal, with "NAME" for each value of an f-string; None for any other node."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(part.value if isinstance(part, ast.Constant) else "NAME" for part in values)
    return None


def texts(source):
    """Return docstrings and comments, and as messages the other strings of three words or more."""
    nodes = list(ast.walk(ast.parse(source)))
    docstrings = [node.value for node in nodes if isinstance(node, ast.Expr) and literal(node.value)]
    parts = {part for node in nodes if isinstance(node, ast.JoinedStr) for part in ast.walk(node) if part is not node}
    strings = [node for node in nodes if literal(node) and node not in parts and node not in docstrings]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [
        *(Text(node.lineno, "docstring", literal(node)) for node in docstrings),
        *(Text(node.lineno, "message", literal(node)) for node in strings if len(literal(node).split()) > 2),
        *(Text(token.start[0], "comment", token.string) for token in tokens if token.type == tokenize.COMMENT),
    ]


def words(text):
    """Yield the words of a text; `code` in backquotes is a single word."""
    plain = re.sub(r"`[^`]*`", "code", text.text)
    for found in re.finditer(r"([A-Za-z_]\w*)(?:'\w+)?( *[^\w ]|\s*$)?", plain):
        yield Word(text.line + plain.count("\n", 0, found.start()), found[1], found[2] is not None)


def begins_badly(text):
    return text.kind != "comment" and NOT_FIRST.match(text.text) is not None


def pronouns(found):
    """Return the pronouns and wh-words among the words of a text."""
    return [
        each
        for each, after in zip_longest(found, found[1:], fillvalue=Word(0, "", True))
        if (PRONOUN.fullmatch(each.word) and each.word != "None")
        or (DETERMINER.fullmatch(each.word) and (each.ends or NO_NOUN.fullmatch(after.word)))
    ]


def named(file):
    return str(file.relative_to(ROOT))


SCRIPTS = [
    file for file in sorted((ROOT / "packaging").iterdir()) if file.is_file() and b"python" in file.read_bytes()[:40]
]
FILES = [*(file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))), *SCRIPTS]


def read(file):
    """Return the texts of a file; the strings of tests are data, so only their docstrings and comments count."""
    found = texts(file.read_text())
    return [text for text in found if text.kind != "message"] if ROOT / "tests" in file.parents else found


@pytest.mark.parametrize("file", FILES, ids=named)
def test_docstrings_and_messages_begin_with_a_verb_or_a_name(file):
    assert [f"{named(file)}:{text.line}: {text.text.strip()[:60]}" for text in read(file) if begins_badly(text)] == []


@pytest.mark.parametrize("file", FILES, ids=named)
def test_pronouns_are_rare(file):
    """A file of fewer than 100 words may hold as many as a file of 100."""
    found = [list(words(text)) for text in read(file)]
    total, wrong = sum(map(len, found)), [each for group in found for each in pronouns(group)]
    listed = "\n".join(f"{named(file)}:{each.line}: {each.word}" for each in sorted(wrong))
    rate = 100 * len(wrong) / max(total, 100)
    assert rate <= MOST, f"{rate:.1f} pronouns and wh-words for 100 of {total} words\n{listed}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Return the file that it names", ["that", "it"]),
        ("This file is larger than that.", ["that"]),
        ("This is the rest, and these, too", ["This", "these"]),
        ("Return None if there is none", ["there", "none"]),
        ("Pass `--all-that-is-there` to the command's parser", []),
    ],
)
def test_the_meter_counts_pronouns(text, expected):
    assert [each.word for each in pronouns(list(words(Text(1, "comment", text))))] == expected


def test_the_meter_reads_docstrings_messages_and_comments():
    source = '"""It is."""\nraise ValueError(f"{name}: what is wrong")  # that is it\nKEY = "short"\n'
    found = texts(source)
    assert [(text.line, text.kind) for text in found] == [(1, "docstring"), (2, "message"), (2, "comment")]
    assert [begins_badly(text) for text in found] == [True, False, False]
