"""Keys of tables and fields of records, read from their structs: types from annotations, meanings from docstrings.

A docstring describes the keys of its struct in a list at its end, an entry a key. The unit may be left out, and
further lines of an entry are indented deeper:

    Keys:
        keepalive (s): Time between two signs of life. A dead connection is noticed
            within twice this time.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect as shapes

_ENTRY = re.compile(r"    (?P<name>\w+)(?: \((?P<unit>[^)]+)\))?: (?P<meaning>.+)")


class Key(NamedTuple):
    """Key or field; `default` is "" without a default, `required` is true for a key that must be given."""

    name: str
    type: str
    default: str
    required: bool
    unit: str
    meaning: str


class Meaning(NamedTuple):
    """Unit and meaning of a key, from the docstring."""

    unit: str
    text: str


def prose(struct: type) -> str:
    """Return the docstring of a struct without the list of keys, paragraphs parted by blank lines."""
    return _doc(struct).partition("\n\nKeys:")[0]


def meanings(struct: type) -> dict[str, Meaning]:
    """Return the meanings of the keys of a struct, inherited keys included."""
    found: dict[str, Meaning] = {}
    for base in reversed(struct.__mro__):
        name = ""
        for line in _doc(base).partition("Keys:\n")[2].splitlines():
            if entry := _ENTRY.fullmatch(line):
                name = entry["name"]
                found[name] = Meaning(entry["unit"] or "", entry["meaning"])
            elif line.strip():
                found[name] = Meaning(found[name].unit, f"{found[name].text} {line.strip()}")
    return found


def keys(struct: type) -> Iterator[Key]:
    """Yield the keys of a struct in order. Raises KeyError if the docstring and the fields differ."""
    known, fields = meanings(struct), list(_fields(struct))
    if stale := known.keys() - {field.encode_name for field in fields}:
        raise KeyError(
            f"{struct.__qualname__} has no field for {', '.join(sorted(stale))} in the Keys of its docstring"
        )
    for field in fields:
        if field.encode_name not in known:
            raise KeyError(f"{struct.__qualname__} has no line for {field.encode_name} in the Keys of its docstring")
        unit, text = known[field.encode_name]
        default = _default(field, unit)
        yield Key(field.encode_name, type_of(field.type, unit), default, field.required, unit, text)


def _fields(struct: type) -> Iterator[shapes.Field]:
    """Yield the fields of a struct that are keys of its table: the options of a plug-in are a separate struct."""
    info = shapes.type_info(struct)
    assert isinstance(info, shapes.StructType)
    yield from (field for field in info.fields if field.encode_name != "options" or not nested(field.type))


def nested(kind: shapes.Type) -> list[shapes.StructType]:
    """Return the structs inside a type."""
    if isinstance(kind, shapes.Metadata):
        return nested(kind.type)
    if isinstance(kind, shapes.UnionType):
        return [each for part in kind.types for each in nested(part)]
    if isinstance(kind, shapes.VarTupleType | shapes.ListType):
        return nested(kind.item_type)
    if isinstance(kind, shapes.DictType):
        return nested(kind.value_type)
    return [kind] if isinstance(kind, shapes.StructType) else []


def type_of(kind: shapes.Type, unit: str = "") -> str:
    """Return a type in words, with its bounds in `unit`."""
    match kind:
        case shapes.Metadata(type=inner, extra_json_schema={"description": str(text)}):
            return f"{type_of(inner)}: {text}"
        case shapes.Metadata(type=inner):
            return type_of(inner, unit)
        case shapes.UnionType(types=types):
            kinds = [type_of(each, unit) for each in types if not _is_absence(each)]
            return " or ".join(dict.fromkeys(kinds))
        case shapes.LiteralType(values=values):
            return ", ".join(json.dumps(value) for value in values)
        case shapes.BoolType():
            return "boolean"
        case shapes.IntType() | shapes.FloatType():
            return ("integer" if isinstance(kind, shapes.IntType) else "number") + _bounds(kind, unit)
        case shapes.StrType(max_length=longest):
            return f"string, at most {longest} characters" if longest else "string"
        case shapes.VarTupleType(item_type=item) | shapes.ListType(item_type=item):
            return f"list of {_several(type_of(item, unit))}"
        case shapes.TupleType(item_types=items):
            return f"list of {len(items)} {_several(type_of(items[0]))}"
        case shapes.DictType(value_type=value):
            return f"table of {_several(type_of(value, unit))}"
        case shapes.StructType():
            return "table"
        case shapes.CustomType(cls=cls) if cls.__name__ == "Path":
            return "path"
        case shapes.BytesType():
            return "string in base64"
        case shapes.AnyType():
            return "value"
    raise TypeError(f"no words for {kind}")


def _is_absence(kind: shapes.Type) -> bool:
    """Return whether the only value of a type means "none"."""
    return isinstance(kind, shapes.NoneType) or (isinstance(kind, shapes.CustomType) and kind.cls is msgspec.UnsetType)


def _several(words: str) -> str:
    """Return a type in words in the plural."""
    if words.startswith("list of "):
        return words.replace("list", "lists", 1)
    if ": " in words:
        return words.replace(": ", "s: ", 1)
    kind, comma, bounds = words.partition(", ")
    return f"{kind}s" + (f"{comma}each {bounds}" if bounds else "")


def _bounds(kind: shapes.IntType | shapes.FloatType, unit: str) -> str:
    least, above, most, below = (_number(bound, unit) for bound in (kind.ge, kind.gt, kind.le, kind.lt))
    low = least or (above and f"above {above}")
    high = most or (below and f"below {below}")
    if low and high:
        return f", {low} {'to' if most else 'and'} {high}"
    if high:
        return f", at most {high}"
    return f", {least} or more" if least else f", {low}" if low else ""


def _number(value: float | None, unit: str) -> str:
    """Return a number in digits, and round numbers of bytes in MiB and the like too; "" for None."""
    if value is None:
        return ""
    for power, name in ((40, "TiB"), (30, "GiB"), (20, "MiB")):
        if unit == "bytes" and value and not value % (1 << power):
            return f"{value} ({int(value) >> power} {name})"
    return str(int(value)) if abs(value) < 1e16 and value == int(value) else f"{value:g}"


def _default(field: shapes.Field, unit: str) -> str:
    if field.required or field.default_factory is not shapes.NODEFAULT:
        return "" if field.required or field.default_factory not in (dict, list) else "{}"
    default: Any = field.default
    if default is None or default is msgspec.UNSET or isinstance(default, msgspec.Struct):
        return ""
    if isinstance(default, int | float) and not isinstance(default, bool):
        return _number(default, unit)
    return json.dumps(msgspec.to_builtins(default, enc_hook=str), ensure_ascii=False)


def _doc(struct: type) -> str:
    return inspect.cleandoc(struct.__dict__.get("__doc__") or "")
