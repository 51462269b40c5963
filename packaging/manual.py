"""The manual pages: texts in packaging/man, filled in with the options of the commands and the keys of edged.toml."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import option_docs
import reference
from command_line import Command, CommandLine, Option

_MAN = Path(__file__).parent / "man"


def pages(line: CommandLine, version: str, date: str) -> dict[str, str]:
    """Return the pages by file name, such as "edgectl.1", in roff (see man(7)), with `date` at the foot."""
    filled = {
        "version": version,
        "date": date,
        "daemon_options": _lines(_definitions(line.edged.options)),
        "common_options": _lines(_definitions(line.common)),
        "verbs": _lines(part for verb, command in line.verbs.items() for part in _verb(verb, command)),
        "tables": _lines(part for section in reference.configuration() for part in _table(section)),
        "exits": _lines(part for code, meaning in line.exits.items() for part in (".TP", f".B {code}", _text(meaning))),
    }
    found = {}
    for template in sorted(_MAN.iterdir()):
        text = template.read_text()
        for name, value in filled.items():
            text = text.replace(f"@{name}@", value)
        found[template.name] = text
    return found


def _verb(verb: str, command: Command) -> Iterator[str]:
    yield f'.SS "{_text(f"edgectl {verb} {command.usage}".strip())}"'
    yield from _prose(command.prose)
    yield from _definitions([*command.words, *command.options])


def _table(section: reference.Section) -> Iterator[str]:
    yield f'.SS "{_text(section.title)}"'
    yield from _prose(option_docs.prose(section.struct))
    for key in option_docs.keys(section.struct):
        default = "required" if key.required else f"default {key.default}" if key.default else ""
        yield ".TP"
        yield f"\\fB{_text(key.name)}\\fR ({_text('; '.join(filter(None, [key.type, key.unit, default])))})"
        yield _text(key.meaning.replace("`", ""))


def _prose(text: str) -> Iterator[str]:
    """Return the paragraphs of a docstring in roff; indented lines are kept."""
    for paragraph in text.strip("\n").split("\n\n"):
        lines = paragraph.rstrip().splitlines()
        yield ".PP"
        if all(each.startswith("    ") for each in lines):
            yield from (".RS 4", ".nf", *(_text(each[4:]) for each in lines), ".fi", ".RE")
        else:
            yield from map(_text, lines)


def _definitions(options: Sequence[Option]) -> Iterator[str]:
    for option in options:
        names = ", ".join(f"\\fB{_text(name)}\\fR" for name in option.names)
        value = f"\\fI{_text(option.value)}\\fR" if option.value else ""
        yield ".TP"
        yield " ".join(filter(None, [names, value]))
        yield _text(option.help or "choose a word")


def _text(text: str) -> str:
    r"""Escape characters special to roff: \, -, and a dot or ' at the start of a line."""
    safe = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{safe}" if safe.startswith((".", "'")) else safe


def _lines(parts: Iterator[str]) -> str:
    return "\n".join(parts)
