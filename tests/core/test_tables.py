"""Conversion of tables to structs: all problems at once, in words, with their places."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from edged.core.tables import MASK, SECRET, Problem, Tables, dotted, plain, shown

Key = Annotated[str, Meta(pattern="^[a-z]+$", description="lower-case letters")]


class Frame(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    size: Annotated[int, Meta(ge=1, le=9)] = 1


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    port: Annotated[int, Meta(ge=1, le=65535)]
    ratio: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    mode: Literal["text", "binary"] = "text"
    fast: bool = False
    name: Key | None = None
    columns: Annotated[tuple[int, ...], Meta(min_length=1, max_length=3)] = (0,)
    limits: dict[str, float] = {}
    file: PurePosixPath | None = None
    token: Annotated[str, Meta(extra=SECRET, max_length=8)] | None = None
    token_file: str = ""
    frame: Frame = Frame()

    def __post_init__(self) -> None:
        if self.fast and self.mode == "text":
            raise ValueError("fast needs mode = binary")


def hook(kind: type, value: Any, file: str) -> Any:
    if kind is PurePosixPath and isinstance(value, str):
        return PurePosixPath(file).parent / value
    raise ValueError


def read(*files: dict[str, Any]) -> tuple[Options | None, list[Problem]]:
    """The table `[port]` of files a.toml, b.toml and so on as Options."""
    tables = Tables(hook)
    for letter, table in zip("abc", files, strict=False):
        tables.merge({"sensor": table}, f"/etc/{letter}.toml")
    return tables.struct(("sensor",), Options), tables.problems


def only_problem(**table: Any) -> tuple[str, str, str, str]:
    options, problems = read({"port": 1} | table)
    assert options is None
    assert len(problems) == 1, problems
    assert problems[0].file == "/etc/a.toml"
    return problems[0].path, problems[0].found, problems[0].allowed, problems[0].hint


def test_a_sound_table_becomes_a_struct() -> None:
    table = {"port": 80, "columns": [2, 1], "limits": {"x": 1}, "name": "bo", "file": "x/y", "frame": {"size": 3}}
    assert read(table) == (
        Options(
            port=80,
            columns=(2, 1),
            limits={"x": 1.0},
            name="bo",
            file=PurePosixPath("/etc/x/y"),
            frame=Frame(size=3),
        ),
        [],
    )


def test_a_later_file_adds_keys_and_overrides_them() -> None:
    options, _ = read({"port": 1, "frame": {"size": 3}, "limits": {"x": 1.0}}, {"port": 2, "limits": {"y": 2.0}})
    assert options == Options(port=2, frame=Frame(size=3), limits={"x": 1.0, "y": 2.0})


def test_a_scalar_replaces_a_table_and_is_then_what_is_wrong() -> None:
    _, problems = read({"port": 1, "frame": {"size": 3}}, {"frame": 3})
    assert problems == [Problem("/etc/b.toml", "sensor.frame", "3", "a table")]


def test_every_problem_is_told_at_once_and_with_its_own_file() -> None:
    _, problems = read({"port": "x", "ratio": 2.0}, {"ratio": 0, "colour": 1})
    assert [(problem.file, problem.path) for problem in problems] == [
        ("/etc/b.toml", "sensor.colour"),
        ("/etc/a.toml", "sensor.port"),
        ("/etc/b.toml", "sensor.ratio"),
    ]


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"port": 0}, ("sensor.port", "0", "a whole number, at least 1 and at most 65535", "")),
        ({"port": True}, ("sensor.port", "true", "a whole number, at least 1 and at most 65535", "")),
        ({"ratio": 1.5}, ("sensor.ratio", "1.5", "a number, more than 0 and less than 1", "")),
        ({"fast": "yes"}, ("sensor.fast", '"yes"', "true or false", "")),
        ({"mode": "texte"}, ("sensor.mode", '"texte"', '"binary" or "text"', 'did you mean "text"?')),
        ({"name": "Bo"}, ("sensor.name", '"Bo"', "lower-case letters", "")),
        ({"columns": [1, "x"]}, ("sensor.columns[1]", '"x"', "a whole number", "")),
        ({"columns": []}, ("sensor.columns", "[]", "an array of 1 to 3 items, each a whole number", "")),
        ({"columns": 5}, ("sensor.columns", "5", "an array of 1 to 3 items, each a whole number", "")),
        ({"limits": {"x": "y"}}, ("sensor.limits.x", '"y"', "a number", "")),
        ({"limits": 1}, ("sensor.limits", "1", "a table, each key text, each value a number", "")),
        ({"file": 5}, ("sensor.file", "5", "a pureposixpath", "")),
        ({"frame": {"size": 10}}, ("sensor.frame.size", "10", "a whole number, at least 1 and at most 9", "")),
        ({"frame": {"sise": 1}}, ("sensor.frame.sise", "an unknown key", '"size"', 'did you mean "size"?')),
        ({"fast": True}, ("sensor", "fast needs mode = binary", "values that fit together", "")),
    ],
)
def test_a_problem_says_what_was_found_and_what_is_allowed(
    table: dict[str, Any], problem: tuple[str, str, str, str]
) -> None:
    assert only_problem(**table) == problem


def test_a_missing_key_is_found_to_be_nothing() -> None:
    _, problems = read({})
    assert problems == [
        Problem(
            "/etc/a.toml",
            "sensor.port",
            "nothing",
            "a whole number, at least 1 and at most 65535",
            "add this key",
        )
    ]


@pytest.mark.parametrize(
    ("value", "found", "allowed"),
    [
        (float("nan"), "nan", "a finite number"),
        (float("-inf"), "-inf", "a finite number"),
        ([1.0, [float("inf")]], "inf", "a finite number"),
        (2**63, "a whole number of more than 64 bits", "a number of at most 64 bits"),
    ],
)
def test_numbers_nothing_can_take_are_refused_wherever_they_stand(value: Any, found: str, allowed: str) -> None:
    tables = Tables(hook)
    tables.merge({"x": {"y": value}}, "a.toml")
    assert tables.problems == [Problem("a.toml", "x.y", found, allowed)]


def test_nesting_is_bounded() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    tables = Tables(hook)
    tables.merge(deep, "a.toml")
    assert [problem.allowed for problem in tables.problems] == ["at most 16 levels"]


def test_a_secret_is_never_shown() -> None:
    assert only_problem(token="hunter2hunter2")[1] == MASK
    assert plain(Options(port=1, token="hunter2"))["token"] == MASK


def test_a_secret_key_that_has_a_file_instead_points_to_it() -> None:
    tables = Tables(hook)
    tables.merge({"sensor": {"pass": "hunter2"}}, "a.toml")
    tables.refuse_strangers(("sensor",), ["pass_file"])
    assert tables.problems[0].found == "an unknown key"
    assert tables.problems[0].hint.endswith("name this file in pass_file")


def test_plain_is_what_could_have_been_written() -> None:
    assert plain(Options(port=1, file=PurePosixPath("/x"), columns=(1, 2))) == {
        "port": 1,
        "ratio": 0.5,
        "mode": "text",
        "fast": False,
        "columns": [1, 2],
        "limits": {},
        "file": "/x",
        "token_file": "",
        "frame": {"size": 1},
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("mqtts://bo:hunter2@broker/x", f'"mqtts://{MASK}@broker/x"'),
        ("https://bo:hunt@er2@store/x", f'"https://{MASK}@store/x"'),
        ("https://bo:hunt/er?2@store/x", f'"https://{MASK}@store/x"'),
        ("https://store:8443/@scope/x", '"https://store:8443/@scope/x"'),
        ("https://[::1]:8443/x@1", '"https://[::1]:8443/x@1"'),
        ("https://store/x?signature=1f3", f'"https://store/x?{MASK}"'),
        ("\x1b[2J", '"\\u001b[2J"'),
        ([1, "x", True, {}, 5, 6], '[1, "x", true, a table, 5, ...]'),
        ("x" * 1000, '"' + "x" * 96 + "..."),
    ],
)
def test_values_are_shown_short_and_harmless(value: Any, text: str) -> None:
    assert shown(value) == text


def test_a_place_is_written_as_toml_writes_it() -> None:
    assert dotted(("sources", "imu-1", "a b")) == 'sources.imu-1."a b"'


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


@given(st.dictionaries(st.sampled_from(Options.__struct_fields__) | st.text(max_size=5), values))
def test_whatever_stands_there_gives_a_struct_or_problems(table: dict[str, Any]) -> None:
    options, problems = read(table)
    assert (options is None) == bool(problems)
