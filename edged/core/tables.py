"""Conversion of tables of plain values, as read from TOML, to frozen structs, with all problems and their places.

`Tables` is a document merged from files, in which later files override earlier files key by key; the document records
the origin of each key. `struct` converts one of the tables to a struct. Since msgspec stops at the first error, each
field is converted separately, and errors are explained to a reader who knows TOML but not Python. Values of fields
annotated with `SECRET` are never shown.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import inspect

from edged.core.errors import closest

MAX_DEPTH = 16
SECRET = {"secret": True}
MASK = "********"

URL_USER = re.compile(r"""://(?:[^\s"'<>/?#]*|(?!\[)[^\s"'<>/?#:]*:(?!\d*(?:[\s"'<>/?#]|\Z))[^\s"'<>]*)@""")
"""User and password in a URL, also if a character was not written as %XX."""

URL_QUERY = re.compile(r"""(://[^\s"'<>?]+\?)[^\s"'<>]+""")
"""Query of a URL, which may hold a signature."""

TablePath = tuple[str, ...]
S = TypeVar("S", bound=msgspec.Struct)


class Problem(msgspec.Struct, frozen=True):
    """A mistake: file, path, value found, allowed values, and remedy."""

    file: str
    path: str
    found: str
    allowed: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.file}: {self.path}: found {self.found}; allowed: {self.allowed}"
        return f"{text} ({self.hint})" if self.hint else text


class Tables:
    """Document of nested tables, with the origin of each key, and the problems found so far.

    `hook(type, value, file)` makes values of types unknown to msgspec, like msgspec's `dec_hook`. `belongs(key)`
    returns a hint that names the right tables for a misplaced key, or "".
    """

    def __init__(self, hook: Callable[[type, Any, str], Any], belongs: Callable[[str], str] = lambda key: "") -> None:
        self.root: dict[str, Any] = {}
        self.origins: dict[TablePath, str] = {}
        self.problems: list[Problem] = []
        self._hook = hook
        self._belongs = belongs

    def merge(self, table: dict[str, Any], file: str) -> None:
        """Merge the content of another file: tables are merged, other values replaced."""
        self.origins[()] = file
        self._merge(self.root, table, (), file)

    def keys(self, place: TablePath) -> list[str]:
        """Return the keys of the table at a place; [] without a table."""
        found = self.get(place)
        return list(found) if isinstance(found, dict) else []

    def get(self, place: TablePath) -> Any:
        """Return the plain value at a place, or None."""
        found: Any = self.root
        for key in place:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def origin(self, place: TablePath) -> str:
        """Return the file that set the value at a place, or that last changed the nearest table around the place."""
        while place not in self.origins and place:
            place = place[:-1]
        return self.origins.get(place, "")

    def refuse(self, place: TablePath, found: str, allowed: str, hint: str = "", *, item: str = "") -> None:
        """Record a problem; `item` is the part of an array concerned, such as "[2]"."""
        self.problems.append(Problem(self.origin(place), dotted(place) + item, found, allowed, hint))

    def blame(self, place: TablePath, error: Exception, allowed: str) -> None:
        """Record an exception raised for the values at a place as a problem."""
        self.refuse(place, str(getattr(error, "message", error)), allowed, str(getattr(error, "hint", "")))

    def refuse_strangers(self, place: TablePath, known: Collection[str]) -> bool:
        """Record every key of the table at a place that is not in `known`; return True if one is a misspelt key."""
        misspelt = False
        for key in self.keys(place):
            if key not in known:
                elsewhere = self._belongs(key) if place else ""
                meant = did_you_mean(key, known)
                hint = _secret_hint(key, known) or elsewhere or meant
                self.refuse((*place, key), "an unknown key", listed(known), hint)
                misspelt = misspelt or bool(meant)
        return misspelt

    def struct(self, place: TablePath, kind: type[S], *, beside: Collection[str] = ()) -> S | None:
        """Return the table at a place as a struct; without a table, the defaults.

        `beside` holds keys in the table that are read elsewhere. If the table has problems, record them and return
        None. A key that resembles no key of the struct is a problem too, but the struct is whole without it.
        """
        found = self.get(place)
        if found is None:
            found = {}
        if not isinstance(found, dict):
            self.refuse(place, shown(found), "a table")
            return None
        if not found and _has_defaults(kind):
            return self._make(place, kind, {})
        fields = _fields(kind)
        misspelt = self.refuse_strangers(place, [*fields, *beside])
        before = len(self.problems)
        values = {}
        for key, field in fields.items():
            if key in found:
                values[field.name] = self._value((*place, key), found[key], field.type)
            elif field.required:
                self.refuse((*place, key), "nothing", _words(inspect.type_info(field.type)), "add this key")
        return None if misspelt or len(self.problems) > before else self._make(place, kind, values)

    def _make(self, place: TablePath, kind: type[S], values: dict[str, Any]) -> S | None:
        try:
            return kind(**values)
        except Exception as error:  # from a plug-in's own checks at construction
            self.blame(place, error, "values that fit together")
            return None

    def _merge(self, into: dict[str, Any], table: dict[str, Any], place: TablePath, file: str) -> None:
        for key, value in table.items():
            here = (*place, key)
            self.origins[here] = file
            if isinstance(value, dict) and len(here) < MAX_DEPTH:
                if not isinstance(into.get(key), dict):
                    into[key] = {}
                self._merge(into[key], value, here, file)
            elif unsound := _unsound(value, MAX_DEPTH - len(here)):
                self.refuse(here, *unsound)
            else:
                into[key] = value

    def _value(self, place: TablePath, found: Any, kind: Any) -> Any:
        info = inspect.type_info(kind)
        inner = _bare(info)
        if isinstance(inner, inspect.StructType) and inner.tag is None:
            return self.struct(place, inner.cls)
        try:
            return msgspec.convert(
                found, kind, strict=True, dec_hook=lambda type_, value: self._hook(type_, value, self.origin(place))
            )
        except msgspec.ValidationError as error:
            self._explain(place, found, kind, str(error))
            return None

    def _explain(self, place: TablePath, found: Any, kind: Any, error: str) -> None:
        info = inspect.type_info(kind)
        is_table = isinstance(_bare(info), inspect.DictType) and isinstance(found, dict)
        if is_table and self._explain_items(place, found, kind):
            return
        item = ""
        for index in re.findall(r"\[(\d+)\]", error.rpartition(" - at `")[2]):
            if isinstance(array := _bare(info), inspect.ListType | inspect.VarTupleType):
                found, info, item = found[int(index)], array.item_type, f"{item}[{index}]"
        hint = did_you_mean(found, _choices(_bare(info))) if isinstance(found, str) else ""
        self.refuse(place, MASK if secret(kind) else shown(found), _words(info), hint, item=item)

    def _explain_items(self, place: TablePath, found: dict[str, Any], kind: Any) -> bool:
        before = len(self.problems)
        while get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        for key, value in found.items():
            self._value((*place, key), value, get_args(kind)[1])
        return len(self.problems) > before


def _has_defaults(kind: type[msgspec.Struct]) -> bool:
    """Return whether every field of a struct has a default. No annotation is resolved for the answer."""
    defaults = kind.__struct_defaults__
    return len(defaults) == len(kind.__struct_fields__) and msgspec.NODEFAULT not in defaults


@cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    """Return the fields of a struct by key; resolving the annotations takes a millisecond, so once for each class."""
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


def secret(kind: Any) -> bool:
    """Return whether a field's type is annotated with `SECRET` at any depth."""
    return any(isinstance(part, inspect.Metadata) and (part.extra or {}).get("secret") for part in _parts(kind))


def plain(struct: msgspec.Struct) -> dict[str, Any]:
    """Return a struct as a table for people: None fields omitted, secrets masked."""
    values = {}
    for field in msgspec.structs.fields(type(struct)):
        value = getattr(struct, field.name)
        if value is not None:
            values[field.encode_name] = MASK if secret(field.type) and value else _plain(value)
    return values


def shown(value: Any) -> str:
    """Return a value as in a TOML file, shortened, without possible secrets in URLs."""
    match value:
        case dict():
            return "a table"
        case list():
            return _short("[" + ", ".join(shown(item) for item in value[:5]) + (", ...]" if len(value) > 5 else "]"))
        case bool():
            return "true" if value else "false"
        case str():
            return _short(json.dumps(_without_password(value), ensure_ascii=False))
        case _:
            return _short(str(value))


def dotted(place: TablePath) -> str:
    """Return a place in TOML notation: pipelines.motion.source."""
    return ".".join(key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _short(json.dumps(key)) for key in place)


def listed(names: Iterable[str]) -> str:
    """Return names as a list: "a", "b" and so on."""
    return ", ".join(json.dumps(name) for name in sorted(names)) or "nothing"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint with the name that a mistyped word resembles, or ""."""
    close = closest(word, known)
    return f"did you mean {json.dumps(close)}?" if close else ""


def _secret_hint(key: str, known: Collection[str]) -> str:
    if f"{key}_file" not in known:
        return ""
    return f"write the secret to a file of its own, and name this file in {key}_file"


def _unsound(value: Any, depth: int) -> tuple[str, str] | None:
    """Return the fault of a value that TOML permits but edged does not, and the allowed values; None if sound."""
    match value:
        case float() if not math.isfinite(value):
            return str(value), "a finite number"
        case int() if not -(2**63) <= value < 2**63:
            return "a whole number of more than 64 bits", "a number of at most 64 bits"
        case dict() | list() if depth <= 0:
            return "tables or arrays nested too deeply", f"at most {MAX_DEPTH} levels"
        case dict() | list():
            inner = value.values() if isinstance(value, dict) else value
            return next((bad for item in inner if (bad := _unsound(item, depth - 1))), None)
    return None


def _plain(value: Any) -> Any:
    match value:
        case msgspec.Struct():
            return plain(value)
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case str():
            return _without_password(value)
        case bool() | int() | float():
            return value
        case _:
            return str(value)


def _without_password(text: str) -> str:
    return URL_QUERY.sub(rf"\1{MASK}", URL_USER.sub(f"://{MASK}@", text))


def _short(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."


def _parts(kind: Any) -> Iterable[inspect.Type]:
    todo: list[Any] = [inspect.type_info(kind)]
    while todo:
        part = todo.pop()
        yield part
        todo.extend(getattr(part, "types", ()))
        todo.extend(inner for name in ("type", "item_type", "value_type") if (inner := getattr(part, name, None)))


def _bare(info: inspect.Type) -> inspect.Type:
    """Return a type without annotations and without None."""
    while isinstance(info, inspect.Metadata):
        info = info.type
    if isinstance(info, inspect.UnionType):
        others = [kind for kind in info.types if not isinstance(kind, inspect.NoneType)]
        return _bare(others[0]) if len(others) == 1 else info
    return info


def _choices(info: inspect.Type) -> list[str]:
    match info:
        case inspect.LiteralType():
            return [str(value) for value in info.values]
        case inspect.EnumType():
            return [str(member.value) for member in info.cls]
    return []


def _words(info: inspect.Type) -> str:
    """Return the values allowed by a type in words."""
    match info:
        case inspect.Metadata():
            return (info.extra_json_schema or {}).get("description") or _words(info.type)
        case inspect.UnionType():
            return " or ".join(_words(kind) for kind in info.types if not isinstance(kind, inspect.NoneType))
        case inspect.LiteralType() | inspect.EnumType():
            return " or ".join(shown(value) for value in _choices(info))
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "a whole number" + _bounds(info)
        case inspect.FloatType():
            return "a number" + _bounds(info)
        case inspect.StrType():
            return "text" + _length(info, "characters") + (f" matching {info.pattern}" if info.pattern else "")
        case inspect.ListType() | inspect.VarTupleType() | inspect.SetType() | inspect.FrozenSetType():
            return f"an array{_length(info, 'items')}, each {_words(info.item_type)}"
        case inspect.TupleType():
            return "an array of " + ", ".join(_words(kind) for kind in info.item_types)
        case inspect.DictType():
            key, value = _words(info.key_type), _words(info.value_type)
            return f"a table{_length(info, 'keys')}, each key {key}, each value {value}"
        case inspect.CustomType():
            return f"a {info.cls.__name__.lower()}"
        case _:
            return "a table"


def _bounds(info: inspect.IntType | inspect.FloatType) -> str:
    said = {"at least": info.ge, "more than": info.gt, "at most": info.le, "less than": info.lt}
    bounds = [f"{words} {bound}" for words, bound in said.items() if bound is not None]
    return ", " + " and ".join(bounds) if bounds else ""


def _length(info: Any, of: str) -> str:
    match (info.min_length, info.max_length):
        case (None, None):
            return ""
        case (None, most):
            return f" of at most {most} {of}"
        case (least, None):
            return f" of at least {least} {of}"
        case (least, most):
            return f" of {least} to {most} {of}"
    return ""
