"""Files that hold the outer interfaces of edged; tests report added, removed and changed parts.

Write them anew with `EDGED_GOLDEN=write .venv/bin/pytest tests/golden`, and read the diff.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

HOW_TO_WRITE = "if this is meant, write the files anew: EDGED_GOLDEN=write .venv/bin/pytest tests/golden"


def check(name: str, found: Any) -> None:
    """Compare a JSON document with the stored one, or store it where EDGED_GOLDEN=write."""
    file = FOLDER / f"{name}.json"
    if os.environ.get("EDGED_GOLDEN") == "write":
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    stored = json.loads(file.read_bytes())
    found = json.loads(json.dumps(found))
    told = differences(dict(_leaves(stored)), dict(_leaves(found)))
    assert not told, "\n".join([f"{file.name} holds something else:", *told, HOW_TO_WRITE])


def differences(stored: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return a line for each added, removed or changed path."""
    came = [f"  came: {path} = {found[path]!r}" for path in found if path not in stored]
    went = [f"  went: {path} = {stored[path]!r}" for path in stored if path not in found]
    changed = [
        f"  changed: {path} was {stored[path]!r}, is {found[path]!r}"
        for path in stored
        if path in found and stored[path] != found[path]
    ]
    return [*came, *went, *changed]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and value of all values without parts."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path} > {key}" if path else key)
    elif isinstance(value, list) and value and all(isinstance(inner, str) for inner in value):
        yield from ((f"{path} > {inner}", "in the list") for inner in value)
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, value
