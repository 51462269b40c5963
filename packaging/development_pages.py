"""Generated parts of docs/development: the drawing of the layers, and examples of updates.

The drawing shows the table of tests/house/test_layers.py. The examples let `decide` of edged/core/decide.py drive an
update in a world of plain values, and write down each step.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

_STYLE = 'font-family="sans-serif" font-size="13"'
_BOX, _GAP, _FLOOR, _WIDTH = 26, 8, 58, 860


def layers() -> dict[str, set[str]]:
    """Return the parts that each part of edged may import, from the test."""
    tree = ast.parse((ROOT / "tests/house/test_layers.py").read_text())
    names: dict[str, Any] = {"set": set}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name.isupper():
                try:
                    names[name] = eval(compile(ast.Expression(value), "test_layers.py", "eval"), names)
                except NameError:
                    continue  # made of more than other tables
    return names["MAY_IMPORT"]


def floors(table: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the parts by floor, the lowest first: a part stands above all parts open to its imports."""
    heights: dict[str, int] = {}

    def height(part: str) -> int:
        if part not in heights:
            heights[part] = 1 + max(map(height, table[part]), default=-1)
        return heights[part]

    found: list[list[str]] = [[] for _ in range(1 + max(map(height, table)))]
    for part in sorted(table):
        found[heights[part]].append(part)
    return found


def drawing() -> str:
    """Return the layers as an SVG picture, a row of boxes a floor."""
    rows = list(reversed(floors(layers())))
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_FLOOR * len(rows)}" {_STYLE}>']
    parts.append("<title>The parts of edged: each may import parts on lower floors only</title>")
    for row, names in enumerate(rows):
        top = row * _FLOOR
        fill = "#eef3f8" if row % 2 else "#f8fafc"
        parts.append(f'<rect x="0" y="{top}" width="{_WIDTH}" height="{_FLOOR}" fill="{fill}"/>')
        parts.append(f'<text x="10" y="{top + 33}" fill="#64748b">{len(rows) - row}</text>')
        widths = [16 + 8 * len(name) for name in names]
        left = (_WIDTH - sum(widths) - _GAP * (len(names) - 1)) // 2
        for name, width in zip(names, widths, strict=True):
            parts.append(
                f'<rect x="{left}" y="{top + 16}" width="{width}" height="{_BOX}" rx="4" fill="#fff" stroke="#334155"/>'
                f'<text x="{left + width // 2}" y="{top + 33}" text-anchor="middle">{escape(name)}</text>'
            )
            left += width + _GAP
    return "\n".join([*parts, "</svg>", ""])


def updates() -> str:
    """Return the examples of updates as Markdown."""
    from edged.core import decide, ledger

    old, new, board = "b" * 64, "c" * 64, "a" * 64
    installed = {old: ledger.Installed(version="1.0", confirmed=True)}
    idle = ledger.Ledger(schema="edged.ledger/1", active=old, floor="1.0", versions=installed)
    bad = decide.VersionFault("rejected", "wrong answers to golden samples")
    names = {old: "version 1.0", new: "version 1.1", board: "the factory's version"}

    def example(title: str, events: Sequence[tuple[str, dict[str, Any]]], **offer: Any) -> str:
        """Play an update; each of `events` is an event from outside, after the last step, with changed facts."""
        offered = ledger.offered(idle, new, ledger.Installed(version="1.1"), offer.get("confirm_within", 0.0))
        present = {old: 100, new: 100}
        facts = decide.ModelFacts(ledger=offered, run="1", factory=(board,), present=present, serving=old, current=old)
        lines = [f"### {title}", "", "1. *version 1.1 passed its checks, and version 1.0 serves*"]
        for happened, changed in (("", {}), *events):
            if happened:
                facts = decide.replace(facts, **changed)
                lines.append(f"1. *{happened}*")
            while step := decide.decide(facts):
                facts, text = _done(decide, facts, step, names)
                lines.append(f"1. {text}")
                if isinstance(step, decide.Try):
                    break
        return "\n".join(lines)

    passed = ("the self-test is good", {"trial": "good"})
    restart = {"run": "2", "trial": "open", "serving": "", "watched": "open"}
    return "\n\n".join(
        [
            example("A good version", [passed, ("version 1.1 kept its limits", {"watched": "good"})]),
            example("A version that fails its self-test", [("the self-test fails", {"trial": bad})]),
            example("A version that misbehaves", [passed, ("version 1.1 answers wrongly", {"watched": bad})]),
            example(
                "A power cut during probation",
                [passed, ("power is cut, and the daemon starts again", restart),
                 ("version 1.1 kept its limits", {"watched": "good"})],
            ),
            example(
                "A version that takes the board down each time",
                [passed, *((f"the board goes down, and starts for the {nth} time", {**restart, "run": nth})
                           for nth in ("second", "third", "fourth"))],
            ),
            example(
                "A version that nobody confirms",
                [passed, ("600 seconds pass", {"waited": 600.0, "watched": "good"})],
                confirm_within=600.0,
            ),
        ]
    )  # fmt: skip


def _done(decide: Any, facts: Any, step: Any, names: Mapping[str, str]) -> tuple[Any, str]:
    """Return the facts after a step, and the step in words."""
    match step:
        case decide.ReplaceLedger(ledger=ledger, event=event, text=text):
            return decide.replace(facts, ledger=ledger), f"Record `{event}`: {text}."
        case decide.Serve(digest=digest):
            return decide.replace(facts, serving=digest), f"Serve {names[digest]}."
        case decide.Try(digest=digest):
            return facts, f"Try {names[digest]} in a child process."
        case decide.PointLink(digest=digest):
            return decide.replace(facts, current=digest), f"Point `current` at {names[digest]}."
        case decide.Remove(path=path):
            present = {each: size for each, size in facts.present.items() if not path.endswith(each)}
            return decide.replace(facts, present=present), f"Remove the folder of {names[path[-64:]]}."
    raise TypeError(step)


def filled(page: str, name: str, made: str) -> str:
    """Return a page with the part between `<!-- made: NAME -->` and `<!-- end -->` made anew."""
    begin = f"<!-- made: {name} -->\n"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}{made}\n{rest[rest.index('<!-- end -->') :]}"
