"""The reference in docs/reference, made from the code by `make reference`; a test holds the pages current.

configuration.md  manifest.md   the structs of edged.toml and manifest.json
mqtt.md                         the topics of the AsyncAPI document, and the structs of their payloads
commands.md  exit-codes.md      the parsers of `edged` and `edgectl`, their exit codes, and the kinds of errors
metrics.md                      the families in the source text of edged
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import command_line
import development_pages
import msgspec
import option_docs
from command_line import Command, Option
from msgspec import inspect as shapes

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

_MADE = "<!-- Made by `make reference` from the code. Do not edit. -->\n"


class Section(NamedTuple):
    """Table of edged.toml, or object in JSON: title, and struct of the keys."""

    title: str
    struct: type


def pages() -> dict[str, str]:
    """Return the pages by the name of their file below docs."""
    line = command_line.read()  # first: edged is imported from the checkout from then on
    made = {
        "configuration": _configuration(),
        "manifest": _manifest(),
        "mqtt": _mqtt(),
        "commands": _commands(line),
        "exit-codes": _exit_codes(line),
        "metrics": _metrics(),
    }
    pages = {f"reference/{name}.md": _MADE + "\n" + "\n\n".join(parts) + "\n" for name, parts in made.items()}
    machine = "development/updates.md"
    pages[machine] = development_pages.filled((DOCS / machine).read_text(), "updates", development_pages.updates())
    pages["development/layers.svg"] = development_pages.drawing()
    return pages


# The configuration


def configuration() -> Iterator[Section]:
    """Yield the tables of edged.toml, in order of configuration."""
    from edged import plugins
    from edged.config.options import Config
    from edged.core.detection_spec import ObjectDecision

    families = {"sources": ("sources", "kind"), "models": ("backends", "backend"), "sinks": ("sinks", "kind")}
    for field in _struct(Config).fields:
        name = field.encode_name
        for struct in option_docs.nested(field.type):
            many = isinstance(field.type, shapes.DictType)
            yield Section(f"[{name}.X]" if many else f"[{name}]", struct.cls)
            family, key = families.get(name, ("", ""))
            for kind in plugins.BUILT_IN.get(family, {}):
                yield Section(f'[{name}.X] with {key} = "{kind}"', plugins.load(family, kind))
            for inner in struct.fields:
                if inner.encode_name != "options":
                    place = f"[{name}.X.{inner.encode_name}]" if many else f"[{name}.{inner.encode_name}]"
                    yield from (Section(place, each.cls) for each in option_docs.nested(inner.type))
            if name == "pipelines":
                yield Section("[pipelines.X.decision]", ObjectDecision)


def _configuration() -> Iterator[str]:
    yield "# Configuration: edged.toml"
    yield (
        "The daemon reads `/etc/edged/edged.toml`, then `conf.d/*.toml` beside it in order of their names. A later "
        "file adds keys and overrides those before it. `X` stands for a name of your choice, of lower-case letters, "
        "digits, `-` and `_`. A relative path starts at the folder of the file that names it. `edgectl config "
        "check` lists every mistake; `edgectl config show` prints the configuration in effect. The same text is in "
        "`man edged.toml`."
    )
    for section in configuration():
        yield from _section(section)


# The manifest


def manifest() -> Iterator[Section]:
    """Yield the objects of manifest.json, outer objects first, and each struct once."""
    from edged.core.manifest import Manifest

    yield Section("The whole manifest", Manifest)
    yield from _inside("", _struct(Manifest), {Manifest})


def _inside(path: str, struct: shapes.StructType, seen: set[type]) -> Iterator[Section]:
    for field in struct.fields:
        place = f"{path}{field.encode_name}{_brackets(field.type)}"
        for inner in option_docs.nested(field.type):
            if inner.cls not in seen:
                seen.add(inner.cls)
                tag = f' with {inner.tag_field} = "{inner.tag}"' if inner.tag_field else ""
                yield Section(place + tag, inner.cls)
                yield from _inside(f"{place}.", inner, seen)


def _brackets(kind: shapes.Type) -> str:
    if isinstance(kind, shapes.Metadata):
        return _brackets(kind.type)
    return "[]" if isinstance(kind, shapes.VarTupleType) else ".NAME" if isinstance(kind, shapes.DictType) else ""


def _manifest() -> Iterator[str]:
    yield "# Manifest: manifest.json"
    yield (
        "The manifest lies beside the model file in a bundle and states how the model is to be fed and understood. "
        "Unknown keys are errors. `edgectl pack` fills in `files`, tensors and digests; `edgectl inspect` shows the "
        "manifest of a bundle. `a.b` is the key `b` of the object `a`, `a[]` an element of the list `a`, and `a.NAME` "
        "a value of the object `a`, whose keys are names. An object described once has the same keys everywhere."
    )
    for section in manifest():
        yield from _section(section, json=True)


# MQTT


def _mqtt() -> Iterator[str]:
    from edged import __version__
    from edged.core import discovery, record
    from edged.core.asyncapi import document
    from edged.core.description import Description, PipelineOutput
    from edged.core.topics import Topics
    from edged.updates.desired import DesiredVersion

    topics, name = Topics("edged", "<device>"), "<name>"
    pipelines = (PipelineOutput(name, "unknown"),)
    described = document(
        Description(
            topics=topics,
            version=__version__,
            sources=(name,),
            models=(name,),
            accelerated=(name,),
            pipelines=pipelines,
        )
    )
    yield "# MQTT: topics and payloads"
    yield (
        "`edged` is the `prefix` of [mqtt], `<device>` the `name` of [device]. Messages are sent with QoS 1, results "
        "with the `qos` of their sink. Payloads are JSON, but for `availability`. `edgectl asyncapi` prints the "
        "interface of a configured board as an AsyncAPI 3.0 document, with JSON schemas."
    )
    rows = []
    for key, channel in described["channels"].items():
        retain = described["operations"][f"send_{key}"]["bindings"]["mqtt"]["retain"]
        payload = _payload(channel["messages"]["message"]["payload"])
        rows.append([f"`{channel['address']}`", channel["summary"], payload, "yes" if retain else "never"])
    rows.append(
        [
            f"`{topics.model_desired(name)}`",
            "Received: another version to install.",
            _linked(DesiredVersion),
            "by others",
        ]
    )
    masks = "With `publish_mask`: masks of a segmentation, of one of several outcomes at `mask/<outcome>`."
    rows.append([f"`{topics.mask(name)}`", masks, f"{_linked(record.MaskRecord)} or PNG", "never"])
    device = discovery.topic("homeassistant", topics.device)
    rows.append([f"`{device}`", "With `home_assistant`: the announcement to Home Assistant.", "its format", "yes"])
    yield _table(("topic", "content", "payload", "retained"), rows)
    yield (
        "With MQTT 5 a result has a content type, the user properties `schema`, `id`, `model` and `version`, and, with "
        "`expiry` of [sinks.X], a message expiry. Fields may be added to a record; `schema` changes when one changes."
    )
    records = [
        *record.Result.__subclasses__(), record.ObjectRecord, *record.DecisionRecord.__subclasses__(),
        record.MaskRecord, record.State, record.AcceleratorState, record.UpdateStep, DesiredVersion,
    ]  # fmt: skip
    for struct in records:
        yield from _section(Section(struct.__name__, struct), json=True, received=struct is DesiredVersion)
        if example := _EXAMPLES.get(struct.__name__):
            message = msgspec.json.encode(msgspec.convert(example, struct))  # refuses a wrong example
            yield f"```json\n{msgspec.json.format(message, indent=2).decode()}\n```"


def _payload(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    refs = [each["$ref"] for each in schema.get("oneOf", [schema])]
    return " or ".join(f"[{name}](#{name.lower()})" for name in (ref.rpartition("/")[2] for ref in refs))


def _linked(struct: type) -> str:
    return f"[{struct.__name__}](#{struct.__name__.lower()})"


_EXAMPLES: dict[str, dict[str, Any]] = {
    "ClassificationResult": {
        "kind": "classification", "schema": "edged.result/1", "device": "board", "boot": "18e48143c3ce",
        "pipeline": "motion", "model": "motion", "version": "1.0.0", "seq": 17, "id": "18e48143c3ce:motion:17",
        "time": 1795328568.73, "start": 1795328564.83, "synchronised": True, "latency": 0.0009, "inference": 0.0002,
        "label": "walking", "score": 0.98, "scores": {"walking": 0.98, "running": 0.02}, "decision": "walking",
        "changed": False,
    },
    "State": {
        "schema": "edged.state/1", "name": "wrist", "state": "failed", "reason": "/dev/ttyUSB0 is not there",
        "hint": "plug it in; no USB serial port is available now", "since": 1795328568.7, "details": {},
    },
    "UpdateStep": {
        "schema": "edged.update/1", "model": "motion", "id": "update.proven",
        "text": "version 1.1.0 has passed its self-test", "time": 1795328570.1, "version": "1.1.0",
        "digest": "0" * 64, "phase": "probation",
    },
    "DesiredVersion": {"url": "https://models.example.org/motion-1.1.0.edgm", "version": "1.1.0", "spread": 3600.0},
}  # fmt: skip


# Commands, exit codes and errors


def _commands(line: command_line.CommandLine) -> Iterator[str]:
    yield "# Commands: edged and edgectl"
    yield "## edged"
    yield _code(f"edged {line.edged.usage}")
    yield from _understood(line.edged)
    yield "## edgectl"
    yield "These options may stand before the verb or after it. Every verb answers in JSON with `--json`."
    yield _options(line.common)
    for verb, command in line.verbs.items():
        yield f"## edgectl {verb}"
        yield _code(f"edgectl {verb} {command.usage}".strip())
        yield _paragraphs(command.prose)
        yield from _understood(command)


def _understood(command: Command) -> Iterator[str]:
    if command.words or command.options:
        yield _options([*command.words, *command.options])


def _options(options: Iterable[Option]) -> str:
    rows = []
    for option in options:
        names = ", ".join(f"`{name}`" for name in option.names)
        value = f"`{option.value}`" if option.value else ""
        rows.append([" ".join(filter(None, [names, value])), _text(option.help)])
    return _table(("option", "meaning"), rows)


def _exit_codes(line: command_line.CommandLine) -> Iterator[str]:
    from edged import __main__ as daemon
    from edged.core import errors, protocol

    yield "# Exit codes and errors"
    yield "## edged"
    yield _table(("code", "meaning"), re.findall(r"^(\d+) +(\S.*)$", daemon.__doc__ or "", re.M))
    yield "## edgectl"
    yield _table(("code", "meaning"), [[str(code), _text(meaning)] for code, meaning in line.exits.items()])
    yield "## Kinds of errors"
    yield (
        "An error on the control socket has a `kind`, a `message` and a `hint`; `retryable` "
        "is true where trying again unchanged may succeed."
    )
    rows = []
    for error in (errors.EdgedError, *errors.EdgedError.__subclasses__()):
        if error.__module__ == errors.__name__:
            kind = json.loads(protocol.encode_error(1, error("")))["error"]["kind"]
            meaning = "Any other error." if error is errors.EdgedError else inspect.cleandoc(error.__doc__ or "")
            rows.append([f"`{kind}`", _text(meaning)])
    yield _table(("kind", "meaning"), rows)


# Metrics


class Metric(NamedTuple):
    """Family of metrics, from the source text of edged."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]


def metrics() -> list[Metric]:
    """Return the families of metrics in edged, in order of names."""
    found = []
    for file in sorted((ROOT / "edged").rglob("*.py")):
        tree = ast.parse(file.read_text())
        makers = {node.name: _labels(node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id="Family"), args=arguments):
                    name, kind, meaning, samples = arguments
                    name, kind, meaning = map(ast.literal_eval, (name, kind, meaning))
                    labels = makers.get(samples.func.id, ()) if _is_call(samples) else ()
                    found.append(Metric(name, kind, meaning, labels or _labels(samples)))
    return sorted(found)


def _is_call(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def _labels(node: ast.AST) -> tuple[str, ...]:
    """Return the keys of all dictionaries in a piece of code."""
    keys = [key for each in ast.walk(node) if isinstance(each, ast.Dict) for key in each.keys]
    return tuple(dict.fromkeys(key.value for key in keys if isinstance(key, ast.Constant)))


def _metrics() -> Iterator[str]:
    yield "# Metrics"
    yield (
        "`edgectl metrics` prints these figures in Prometheus' text format. With `port` in [metrics] the daemon serves "
        "them at `http://127.0.0.1:PORT/metrics`, and `/healthz` beside them. A histogram has the names `_bucket`, "
        "`_sum` and `_count`."
    )
    rows = [[f"`{each.name}`", each.kind, ", ".join(f"`{label}`" for label in each.labels), _text(each.help)]
            for each in metrics()]  # fmt: skip
    yield _table(("name", "kind", "labels", "meaning"), rows)


# Markdown


def _section(section: Section, *, json: bool = False, received: bool = True) -> Iterator[str]:
    """Yield the heading, the text and the table of a section; records from edged need no defaults."""
    yield f"## {section.title}"
    yield _paragraphs(option_docs.prose(section.struct))
    head, rows = ["key", "type", "default", "unit", "meaning"], []
    for key in option_docs.keys(section.struct):
        default = "required" if key.required else f"`{key.default}`" if key.default else ""
        kind = re.sub(r"\btable(s?)\b", r"object\1", key.type) if json else key.type
        rows.append([f"`{key.name}`", _text(kind), default, key.unit, _text(key.meaning)])
    if not received:
        head, rows = [*head[:2], *head[3:]], [[*row[:2], *row[3:]] for row in rows]
    if rows:
        yield _table(head, rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def _paragraphs(text: str) -> str:
    parts = (inspect.cleandoc(part) for part in text.strip("\n").split("\n\n"))
    indented = [part.startswith("    ") for part in text.strip("\n").split("\n\n")]
    return "\n\n".join(_code(part) if code else _text(" ".join(part.split()))
                       for part, code in zip(parts, indented, strict=True))  # fmt: skip


def _code(text: str) -> str:
    return f"```text\n{text}\n```"


def _text(text: str) -> str:
    """Escape tags and emphasis of Markdown outside of code."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([<*])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def _struct(cls: type) -> shapes.StructType:
    info = shapes.type_info(cls)
    assert isinstance(info, shapes.StructType)
    return info


def main() -> int:
    """Write the pages; with --check print the pages that are not current, and return 1 for any."""
    parser = argparse.ArgumentParser(description="Make the generated pages of the manual.")
    parser.add_argument("--check", action="store_true", help="change nothing, and fail if a page is not current")
    check = parser.parse_args().check
    made = pages()
    stale = [name for name, text in made.items() if not _holds(DOCS / name, text)]
    if check and stale:
        print(f"{', '.join(stale)} in docs does not match the code; run: make reference")
        return 1
    for name in stale:
        (DOCS / name).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / name).write_text(made[name])
    return 0


def _holds(file: Path, text: str) -> bool:
    return file.exists() and file.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
