"""Answers to requests for a user and a password, by the examples of the RFCs."""

import re

from hypothesis import given
from hypothesis import strategies as st

from edged.core.http_login import Challenge, Login, authorization, challenges

MUFASA = Login("Mufasa", "Circle of Life")
OFFER = (
    'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={}, '
    'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
)
CNONCE = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"


def answer(header: str, login: Login = MUFASA) -> str:
    return authorization(header, login, "GET", "/dir/index.html", CNONCE)


def fields(value: str) -> dict[str, str]:
    return dict(re.findall(r'(\w+)="?([^",]*)"?', value.removeprefix("Digest ")))


def test_the_examples_of_rfc_7616() -> None:
    assert fields(answer(OFFER.format("SHA-256")))["response"] == (
        "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"
    )
    assert fields(answer(OFFER.format("MD5"))) == {
        "username": "Mufasa",
        "realm": "http-auth@example.org",
        "nonce": "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
        "uri": "/dir/index.html",
        "response": "8ca523f5e9506fed4657c9700eebdbec",
        "opaque": "FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS",
        "cnonce": CNONCE,
        "algorithm": "MD5",
        "qop": "auth",
        "nc": "00000001",
    }


def test_the_example_of_rfc_2069_without_qop() -> None:
    offer = 'Digest realm="testrealm@host.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093"'
    value = answer(offer, Login("Mufasa", "CircleOfLife"))
    assert fields(value)["response"] == "1949323746fe6a43ef61f9606e7febea"
    assert "nc=" not in value


def test_the_example_of_rfc_7617() -> None:
    assert answer('Basic realm="WallyWorld"', Login("Aladdin", "open sesame")) == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="


def test_digest_is_preferred_and_sha_256_within() -> None:
    offer = f"Basic realm=x, {OFFER.format('MD5')}, {OFFER.format('SHA-256')}"
    assert "algorithm=SHA-256" in answer(offer)
    assert answer('Basic realm=x, Digest realm="y", nonce="1", qop="auth-int"').startswith("Basic ")
    assert answer('Basic realm=x, Digest realm="y", nonce="1", algorithm=SHA-512-256').startswith("Basic ")


def test_unknown_schemes_get_no_answer() -> None:
    assert answer("Negotiate, NTLM") == ""
    assert answer("") == ""


def test_challenges_in_one_header() -> None:
    assert challenges(r'Negotiate, Basic realm="a \"b\", c", Digest nonce=1 , qop="auth"') == [
        Challenge("negotiate", {}),
        Challenge("basic", {"realm": 'a "b", c'}),
        Challenge("digest", {"nonce": "1", "qop": "auth"}),
    ]


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255)))
def test_any_header_has_an_answer_of_one_line(header: str) -> None:
    assert "\n" not in answer(header)
