"""The reference describes a struct by its annotations and by the Keys in its docstring."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

_SPEC = spec_from_file_location("option_docs", Path(__file__).parents[2] / "packaging/option_docs.py")
option_docs = module_from_spec(_SPEC)
sys.modules["option_docs"] = option_docs
_SPEC.loader.exec_module(option_docs)
Key = option_docs.Key


class Pump(msgspec.Struct, kw_only=True):
    """Options of a pump.

    A pump runs dry.

    Keys:
        name: Name of the pump.
        pause (s): Time between two strokes: at least
            one.
    """

    name: str
    pause: Annotated[float, Meta(gt=0, le=60)] = 2.5


class Pumps(Pump, kw_only=True):
    """Options of several.

    Keys:
        mode: Way of pumping.
        limits (bytes): Limit of each.
    """

    mode: Literal["slow", "fast"] | None = None
    limits: tuple[Annotated[int, Meta(ge=1 << 20)], ...] = ()


class Undocumented(msgspec.Struct):
    """Options without keys."""

    key: int = 0


class Stale(msgspec.Struct):
    """Options of nothing.

    Keys:
        gone: Key of a former version.
    """


def test_a_key_has_a_type_a_default_a_unit_and_a_meaning():
    assert list(option_docs.keys(Pump)) == [
        Key("name", "string", "", True, "", "Name of the pump."),
        Key("pause", "number, above 0 to 60", "2.5", False, "s", "Time between two strokes: at least one."),
    ]


def test_a_struct_has_the_keys_it_inherits():
    *_, mode, limits = option_docs.keys(Pumps)
    assert mode == Key("mode", '"fast", "slow"', "", False, "", "Way of pumping.")
    assert limits.type == "list of integers, each 1048576 (1 MiB) or more"


def test_the_prose_is_what_stands_before_the_keys():
    assert option_docs.prose(Pump) == "Options of a pump.\n\nA pump runs dry."


def test_a_key_that_the_docstring_leaves_out_is_refused():
    with pytest.raises(KeyError, match="Undocumented has no line for key"):
        list(option_docs.keys(Undocumented))


def test_a_key_without_a_field_is_refused():
    with pytest.raises(KeyError, match="Stale has no field for gone"):
        list(option_docs.keys(Stale))
