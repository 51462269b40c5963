"""JSON documents with placeholders for varying values, and structs as the types of their wire names."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from msgspec import inspect


def shape(value: Any, words: Mapping[str, str] = {}, varying: Collection[str] = (), key: str = "") -> Any:
    """Return a document with its keys sorted and placeholders for numbers.

    `words` are replaced within strings; the values of the keys in `varying` are replaced whole.
    """
    if key in varying:
        return f"<{key}>"
    match value:
        case dict():
            return {
                _text(name, words): shape(inner, words, varying, name)
                for name, inner in sorted(value.items(), key=lambda each: _text(each[0], words))
            }
        case list():
            return [shape(inner, words, varying, key) for inner in value]
        case bool() | None:
            return value
        case int():
            return "<integer>"
        case float():
            return "<number>"
    return _text(value, words)


def _text(text: str, words: Mapping[str, str]) -> str:
    for word, placeholder in words.items():
        text = text.replace(word, placeholder)
    text = re.sub(r"(?<=<boot>:)(\w+):\d+", r"\1:<seq>", text)
    return re.sub(r"\b[0-9a-f]{64}\b", "<digest>", text)


def keys(struct: type) -> dict[str, Any]:
    """Return the type and default of each key of a struct, nested structs included."""
    return _keys(inspect.type_info(struct))


def _keys(struct: inspect.StructType) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if struct.tag_field is not None:
        found[struct.tag_field] = json.dumps(struct.tag)
    for field in struct.fields:
        name = field.encode_name
        found[name] = _type(field.type) + _default(field)
        for inner in _structs(field.type):
            tag = f" with {inner.tag_field} {inner.tag}" if inner.tag_field else ""
            if inner.fields or inner.tag_field:
                found[f"in {name}{tag}"] = _keys(inner)
    if not struct.forbid_unknown_fields:
        found["(other keys)"] = "ignored"
    return found


def _default(field: inspect.Field) -> str:
    if field.required:
        return ", required"
    if field.default_factory is not inspect.NODEFAULT:
        made = "{}" if field.default_factory is dict else "[]" if field.default_factory is list else "computed"
        return f" = {made}"
    if field.default is msgspec.UNSET:
        return " = (missing)"
    if isinstance(field.default, msgspec.Struct) and field.default == type(field.default)():
        return " = (its defaults)"
    return f" = {json.dumps(msgspec.to_builtins(field.default, enc_hook=str), ensure_ascii=False)}"


def _structs(kind: Any) -> list[inspect.StructType]:
    match kind:
        case inspect.StructType():
            return [kind]
        case inspect.Metadata(type=inner) | inspect.VarTupleType(item_type=inner) | inspect.ListType(item_type=inner):
            return _structs(inner)
        case inspect.DictType(value_type=inner):
            return _structs(inner)
        case inspect.UnionType(types=types):
            return [each for part in types for each in _structs(part)]
    return []


_BOUNDS = ("ge", "gt", "le", "lt", "multiple_of", "pattern", "min_length", "max_length")


def _number(value: Any) -> Any:
    """Return 60 for 60.0: `typing` caches equal annotations, so the order of imports decides between the two."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


def _type(kind: Any) -> str:
    bounds = "".join(
        f" {name}={_number(value)}" for name in _BOUNDS if (value := getattr(kind, name, None)) is not None
    )
    match kind:
        case inspect.Metadata(type=inner):
            return _type(inner)
        case inspect.UnionType(types=types):
            return " | ".join(_type(each) for each in types)
        case inspect.LiteralType(values=values):
            return " | ".join(json.dumps(each) for each in values)
        case inspect.StructType():
            return "table"
        case inspect.DictType(key_type=key, value_type=value):
            return f"table{bounds} of {_type(key)}: {_type(value)}"
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            return f"list{bounds} of ({_type(item)})"
        case inspect.TupleType(item_types=items):
            return f"list of ({', '.join(map(_type, items))})"
        case inspect.CustomType(cls=cls):
            return "missing" if cls is msgspec.UnsetType else cls.__name__.lower()
    return type(kind).__name__.removesuffix("Type").lower() + bounds
