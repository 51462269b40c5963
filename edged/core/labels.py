"""Reader of label files in common forms, which gives unique names to all labels of a model.

A file has a label per line. Other forms are read as well: lines that begin with the index of the label ("7  cat",
"7: cat", "7,cat"), and a table with a header (CSV); gaps in either become "class_N". Numbers that cannot be indices of
this model are taken as parts of the names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from edged.core.errors import ControlError, some

MAX_LABEL = 200
MAX_CLASSES = 100_000

GAP = "???"
"""Mark of a number without a label in a label map, as in TensorFlow's. A label map may hold several."""

MAX_FILE_BYTES = 16 << 20

_INDEXED = re.compile(r"([0-9]{1,9})(\s*[:;=,]\s*|\s+)(.*\S.*)", re.ASCII)
_QUOTED = re.compile(r'"([^"]+)"')
_SEPARATORS = (",", ";", "\t")
_NAMES = ("display_name", "label", "labels", "name", "names", "class_name", "class", "category")
_INDICES = ("index", "idx", "id", "class_id", "class_index", "label_id", "number", "#", "")


class LabelFile(NamedTuple):
    """Labels of a file, and a note about their interpretation ("" for plain lines)."""

    labels: tuple[str, ...]
    note: str


class _Line(NamedTuple):
    number: int
    text: str


def numbered(labels: Sequence[str]) -> tuple[str, ...]:
    """Return unique labels: the second "crane" becomes "crane (2)", and an empty label becomes "class_N"."""
    taken = set(labels)
    seen: dict[str, int] = {}
    found = []
    for index, given in enumerate(labels):
        label = given or f"class_{index}"
        if label not in seen:
            seen[label] = 1
            taken.add(label)
            found.append(label)
            continue
        while True:
            seen[label] += 1
            suffix = f" ({seen[label]})"
            name = label[: MAX_LABEL - len(suffix)] + suffix
            if name not in taken:
                break
        taken.add(name)
        seen[name] = 1
        found.append(name)
    return tuple(found)


def mapped(labels: Sequence[str]) -> tuple[str, ...]:
    """Return unique labels for a label map, with `GAP` for each number without a label."""
    named = iter(numbered([label for label in labels if label not in ("", GAP)]))
    return tuple(GAP if label in ("", GAP) else next(named) for label in labels)


def renamed(before: Sequence[str], after: Sequence[str]) -> str:
    """Return the labels changed by `numbered` in words, or ""."""
    changes = [f"{old!r} is {new!r}" for old, new in zip(before, after, strict=True) if old != new]
    return f"labels that are not unique are numbered: {some(changes, 3)}" if changes else ""


def read(data: bytes, file: str, scores: int) -> LabelFile:
    """Return the labels in the bytes of a label file, for a model with `scores` scores.

    Raises:
        ControlError: the file is no label file or does not fit the model; the message names the file and the line.
    """
    lines = _lines(data, file)
    note = ""
    table = _table(lines, file, scores)
    if table is not None:
        found, note = table
    elif _is_indexed(lines, scores):
        found = _by_index([_split(line) for line in lines], file, scores)
        note = f"{file}: numbers at the beginning of lines are taken as indices of the labels"
    else:
        found = dict(enumerate(lines))
        _check_count(lines, file, scores)
    for line in found.values():
        if len(line.text) > MAX_LABEL:
            _refuse(file, line, f"the label has {len(line.text)} characters", f"at most {MAX_LABEL} are allowed")
    gaps = scores - len(found)
    if gaps:
        note += f"; missing labels, named class_N: {gaps}"
    return LabelFile(tuple(found[index].text if index in found else f"class_{index}" for index in range(scores)), note)


def read_map(data: bytes, file: str) -> tuple[str, ...]:
    """Return the labels in the bytes of a label map: a label per line, or lines of index and label with `GAP` between.

    Raises:
        ControlError: the file is no label file; the message names the file and the line.
    """
    lines = _lines(data, file)
    if not all(_INDEXED.fullmatch(line.text) for line in lines):
        return tuple(line.text for line in lines)
    found = _by_index([_split(line) for line in lines], file, MAX_CLASSES)
    return tuple(found[index].text if index in found else GAP for index in range(max(found) + 1))


def _refuse(file: str, line: _Line, problem: str, hint: str) -> NoReturn:
    raise ControlError(f"{file}, line {line.number}: {problem}", hint=hint)


def _lines(data: bytes, file: str) -> list[_Line]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = _Line(data.count(b"\n", 0, error.start) + 1, "")
        _refuse(file, line, "not UTF-8 text", "use a text file with a label per line")
    ends = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = [_Line(number, line.strip()) for number, line in enumerate(ends.split("\n"), 1) if line.strip()]
    if not lines:
        raise ControlError(f"{file} is empty", hint="use a text file with a label per line")
    return lines


def _check_count(lines: list[_Line], file: str, scores: int) -> None:
    if len(lines) == scores:
        return
    problem = f"{file} has {len(lines)} labels, and the model {scores} scores"
    if len(lines) == scores - 1:
        hint = 'if the background class at 0 is missing, insert a first line "background"'
    elif len(lines) == scores + 1:
        hint = (
            f"if line {lines[0].number}, {lines[0].text[:80]!r}, is a heading or a class unknown to the model, delete "
            "the line"
        )
    else:
        hint = "give a label for each score, in the order of the scores"
    raise ControlError(f"{problem}: line {lines[-1].number} is the last", hint=hint)


# Lines that begin with an index


def _split(line: _Line) -> tuple[int, _Line]:
    found = _INDEXED.fullmatch(line.text)
    assert found is not None
    return int(found[1]), _Line(line.number, _QUOTED.sub(r"\1", found[3].strip()))


def _is_indexed(lines: list[_Line], scores: int) -> bool:
    """Return whether all lines begin with a number that can be the index of a label.

    A sign after the number decides. Without a sign, numbers that distinguish otherwise equal lines ("2 fingers",
    "3 fingers") are parts of the names.
    """
    found = [_INDEXED.fullmatch(line.text) for line in lines]
    matches = [each for each in found if each]
    if len(matches) < len(lines):
        return False
    indices, names = {int(each[1]) for each in matches}, {each[3] for each in matches}
    plausible = len(indices) == len(names) == len(lines) and max(indices) < scores
    return plausible or all(each[2] != " " for each in matches)


def _by_index(rows: list[tuple[int, _Line]], file: str, scores: int) -> dict[int, _Line]:
    found: dict[int, _Line] = {}
    for index, line in rows:
        if index >= scores:
            _refuse(file, line, f"the index is {index}", f"the model has {scores} scores: 0 to {scores - 1}")
        if index in found:
            _refuse(file, line, f"the index {index} is also in line {found[index].number}", "use each index once")
        found[index] = line
    return found


# A table


def _table(lines: list[_Line], file: str, scores: int) -> tuple[dict[int, _Line], str] | None:
    """Return the labels of a table by index, with a note on the columns, or None if there is no header."""
    import csv

    for separator in _SEPARATORS:
        head = [cell.strip().lower() for cell in next(csv.reader([lines[0].text], delimiter=separator))]
        name = next((head.index(each) for each in _NAMES if each in head), None)
        alone = len(head) == 1 and (file.lower().endswith(".csv") or len(lines) == scores + 1)
        if name is None or not (alone or len(head) > 1):
            continue
        index = next((head.index(each) for each in _INDICES if each in head and head.index(each) != name), None)
        rows = [_cells(line, separator, head, file) for line in lines[1:]]
        names = [_Line(line.number, row[name].strip()) for line, row in zip(lines[1:], rows, strict=True)]
        note = f"{file}: labels from column {head[name]!r}"
        if index is None:
            _check_count(names or lines, file, scores)
            return dict(enumerate(names)), note
        found = _by_index(
            [(_number(row[index], line, file), line) for row, line in zip(rows, names, strict=True)], file, scores
        )
        return found, f"{note}, indices from column {head[index]!r}"
    return None


def _cells(line: _Line, separator: str, head: list[str], file: str) -> list[str]:
    import csv

    cells = next(csv.reader([line.text], delimiter=separator))
    if len(cells) != len(head):
        _refuse(file, line, f"the line has {len(cells)} columns", f"write {len(head)} columns, as in the header")
    return cells


def _number(text: str, line: _Line, file: str) -> int:
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text, re.ASCII):
        _refuse(file, line, f"{text[:80]!r} is no index", "use whole numbers from 0 on as indices")
    return int(text)
