"""Verdicts on answers, by literal headers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.system.urls import FetchError
from edged.transfer.http_response import Body, RangeRequest, Redirect, StartAgain, TryAgain, Whole, interpret

NEW = RangeRequest(0, None, "")
HALF = RangeRequest(500, 1000, '"v1"')

NOON = "Tue, 10 Nov 2026 12:00:00 GMT"
A_SECOND_LATER = "Tue, 10 Nov 2026 12:00:01 GMT"


@pytest.mark.parametrize(
    ("headers", "meaning"),
    [
        ({"content-length": "1000", "etag": '"v1"'}, Body(0, 1000, '"v1"')),
        ({"etag": '"v1"'}, Body(0, None, '"v1"')),
        ({"content-length": "1000", "transfer-encoding": "chunked"}, Body(0, None, "")),
        ({"content-length": "-5"}, Body(0, None, "")),
        ({"content-length": "9" * 5000}, Body(0, None, "")),
        ({"content-encoding": "identity"}, Body(0, None, "")),
    ],
)
def test_200_is_the_whole_file_whatever_was_asked_for(headers, meaning):
    assert interpret(200, headers, NEW) == interpret(200, headers, HALF) == meaning


def test_a_page_that_comes_instead_of_the_rest_passes():
    page = {"content-type": "Text/HTML; charset=utf-8", "content-length": "80"}
    assert interpret(200, page, HALF) == TryAgain("a web page arrived instead of the rest")
    assert interpret(200, page, NEW) == Body(0, 80, "")


@pytest.mark.parametrize(
    ("headers", "tag"),
    [
        ({"etag": '"v1"'}, '"v1"'),
        ({"etag": 'W/"v1"'}, ""),
        ({"etag": 'W/"v1"', "last-modified": NOON, "date": A_SECOND_LATER}, ""),
        ({"etag": "v1"}, ""),
        ({"etag": '"v1\r\nRange: bytes=0-"'}, ""),
        ({"last-modified": NOON, "date": A_SECOND_LATER}, NOON),
        ({"last-modified": NOON, "date": NOON}, ""),
        ({"last-modified": NOON}, ""),
        ({"last-modified": "yesterday", "date": NOON}, ""),
    ],
)
def test_only_what_identifies_every_byte_ties_two_parts_together(headers, tag):
    assert interpret(200, headers, NEW) == Body(0, None, tag)


def test_206_goes_on():
    headers = {"content-range": "bytes 500-999/1000", "etag": '"v1"'}
    assert interpret(206, headers, HALF) == Body(500, 1000, '"v1"')


def test_206_may_leave_out_what_is_known():
    assert interpret(206, {"content-range": "bytes 500-999/*"}, HALF) == Body(500, 1000, '"v1"')


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"content-range": "bytes 501-999/1000"}, "the part from 501 instead of 500"),
        ({"content-range": "bytes 0-999/1000"}, "the part from 0 instead of 500"),
        ({"content-range": "bytes 500-1000/1001"}, "from 1000 to 1001 bytes"),
        ({"content-range": "bytes 500-999/1000", "etag": '"v2"'}, "has changed"),
        ({}, "an unusable Content-Range"),
        ({"content-range": "lines 500-999/1000"}, "an unusable Content-Range"),
        ({"content-type": "multipart/byteranges; boundary=x"}, "an unusable Content-Range"),
    ],
)
def test_206_that_does_not_fit_means_starting_again(headers, reason):
    answer = interpret(206, headers, HALF)
    assert isinstance(answer, StartAgain)
    assert reason in answer.reason


def test_416_at_the_end_of_the_file_is_all_of_it():
    done = RangeRequest(1000, 1000, '"v1"')
    assert interpret(416, {"content-range": "bytes */1000"}, done) == Whole()
    assert interpret(416, {}, done) == Whole()
    assert interpret(416, {"content-range": "bytes */1000"}, RangeRequest(1000, None, "")) == Whole()


@pytest.mark.parametrize("headers", [{"content-range": "bytes */400"}, {"content-range": "bytes */1000"}, {}])
def test_416_anywhere_else_means_starting_again(headers):
    assert isinstance(interpret(416, headers, HALF), StartAgain)


def test_416_to_no_range_is_nonsense():
    with pytest.raises(FetchError, match="answers 416"):
        interpret(416, {}, NEW)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_some_troubles_pass(status):
    assert interpret(status, {}, NEW) == TryAgain(f"the server answers {status}")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "120"}, 120.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": A_SECOND_LATER, "date": NOON}, 1.0),
        ({"retry-after": NOON, "date": A_SECOND_LATER}, 0.0),
        ({"retry-after": NOON}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "٣"}, None),
    ],
)
def test_a_server_may_say_when(headers, seconds):
    """Dates are held against the server's clock: this board may be in 1970."""
    assert interpret(503, headers, NEW) == TryAgain("the server answers 503", seconds)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "token"), (403, "token"), (404, "check the URL"), (407, "proxy"), (410, "was removed"), (418, "check")],
)
def test_some_do_not(status, remedy):
    with pytest.raises(FetchError, match=f"answers {status}") as refusal:
        interpret(status, {}, NEW)
    assert remedy in refusal.value.hint
    assert not refusal.value.retryable


@pytest.mark.parametrize("status", [200, 206])
def test_what_is_encoded_is_refused(status):
    with pytest.raises(FetchError, match=r"encoded \(gzip\)"):
        interpret(status, {"content-encoding": "gzip", "content-range": "bytes 500-999/1000"}, HALF)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects(status):
    assert interpret(status, {"location": "/there"}, NEW) == Redirect("/there")


def test_a_redirect_to_nowhere_is_final():
    with pytest.raises(FetchError, match="answers 302"):
        interpret(302, {}, NEW)


@given(st.integers(100, 599), st.dictionaries(st.sampled_from(["content-range", "etag", "date", "retry-after",
       "last-modified", "content-length", "location", "content-encoding"]), st.text(max_size=40)))  # fmt: skip
def test_any_answer_has_a_meaning(status, headers):
    try:
        answer = interpret(status, headers, HALF)
    except FetchError:
        return
    assert isinstance(answer, Body | Whole | StartAgain | TryAgain | Redirect)
    assert not isinstance(answer, Body) or answer.start in (0, 500)
