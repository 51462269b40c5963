import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.errors import ConfigError, ControlError, EdgedError
from edged.core.protocol import (
    MAX_REQUEST,
    Reply,
    Request,
    decode_reply,
    decode_request,
    encode_end,
    encode_error,
    encode_event,
    encode_ok,
    encode_request,
)


def test_a_request_is_one_line_of_json():
    assert encode_request(Request(1, "watch", {"pipeline": "door"})) == (
        b'{"id":1,"verb":"watch","args":{"pipeline":"door"}}\n'
    )


def test_args_may_be_left_out():
    assert decode_request(b'{"id": 7, "verb": "status"}\n') == Request(7, "status", {})


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (b"", "is not JSON"),
        (b"hello\n", "is not JSON"),
        (b"\xff\xfe{}\n", "is not JSON"),
        (b'{"id": 1, "verb": "status"', "is not JSON"),
        (b'{"id": 1, "verb": "status", "args": {"x": NaN}}', "is not JSON"),
        (b'{"id": %s, "verb": "status"}' % (b"9" * 5000), "is not JSON"),
        (b"[" * MAX_REQUEST, "is not JSON"),
        (b'{"a":' * 10_000, "is not JSON"),
        (b"[1]\n", "is not a JSON object"),
        (b"{}\n", "must have the fields"),
        (b'{"id": 1, "verb": "status", "shell": "rm"}', "must have the fields"),
        (b'{"id": "1", "verb": "status"}', "whole number"),
        (b'{"id": true, "verb": "status"}', "whole number"),
        (b'{"id": -1, "verb": "status"}', "whole number"),
        (b'{"id": 1e400, "verb": "status"}', "whole number"),
        (b'{"id": 1, "verb": 5}', "verb of lower-case letters"),
        (b'{"id": 1, "verb": "STATUS"}', "verb of lower-case letters"),
        (b'{"id": 1, "verb": "status\\n"}', "verb of lower-case letters"),
        (b'{"id": 1, "verb": "status", "args": []}', "plain values"),
        (b'{"id": 1, "verb": "status", "args": {"x": {"y": 1}}}', "plain values"),
        (b'{"id": 1, "verb": "status", "args": {"x": [[1]]}}', "plain values"),
        (b'{"id": 1, "verb": "status", "args": {"x": "\\ud800"}}', "outside Unicode"),
        (b" " * (MAX_REQUEST + 1), "is longer than 65536 bytes"),
    ],
)
def test_what_is_not_a_request_is_refused_and_says_why(line, rule):
    with pytest.raises(ControlError, match=rule) as refused:
        decode_request(line)
    assert refused.value.hint


def test_replies_come_back_as_they_were_sent():
    assert decode_reply(encode_ok(1, {"state": "running"})) == Reply(1, "ok", {"state": "running"})
    assert decode_reply(encode_event(2, [1, None, "é"])) == Reply(2, "event", [1, None, "é"])
    assert decode_reply(encode_end(3)) == Reply(3, "end", True)


def test_an_error_is_raised_at_the_other_end_as_it_was_raised_at_this_one():
    with pytest.raises(ConfigError, match="no model 'door'") as raised:
        decode_reply(encode_error(1, ConfigError("no model 'door'", hint="did you mean 'doors'?")))
    assert raised.value.hint == "did you mean 'doors'?"


def test_a_value_that_json_cannot_hold_is_null():
    value = {"score": math.nan, "all": [1.5, math.inf], "pair": (1, -math.inf)}
    assert decode_reply(encode_event(1, value)).value == {"score": None, "all": [1.5, None], "pair": [1, None]}


@pytest.mark.parametrize("line", [b"", b"HTTP/1.1 400 Bad Request\r\n", b"[]", b"{}", b'{"ok": 1}', b'{"id": null}'])
def test_what_is_not_a_reply_is_an_error(line):
    with pytest.raises(ControlError, match="the answer"):
        decode_reply(line)


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(line):
    for decode in (decode_request, decode_reply):
        try:
            decode(line)
        except EdgedError:
            pass


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["id", "verb", "args", "x"]), json_values))
def test_a_request_that_is_taken_can_be_sent_on(fields):
    try:
        request = decode_request(json.dumps(fields).encode())
    except ControlError:
        return
    assert decode_request(encode_request(request)) == request


flat = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
flat |= st.text(st.characters(codec="utf-8"), max_size=20)


@given(
    st.integers(0, 2**53),
    st.from_regex(r"[a-z][a-z0-9-]{0,63}", fullmatch=True),
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=10), flat | st.lists(flat, max_size=5), max_size=5),
)
def test_every_flat_request_arrives_as_it_was_sent(number, verb, args):
    line = encode_request(Request(number, verb, args))
    assert line.count(b"\n") == 1
    assert decode_request(line) == Request(number, verb, args)
