"""URLs of web servers, by literal examples."""

import pytest

from edged.core.errors import ConfigError
from edged.system.urls import FetchError, follow, mask, origin, parse_origin, parse_url


@pytest.mark.parametrize(
    ("location", "leads_to"),
    [
        ("/b", "https://user:secret@one.example/b"),
        ("https://two.example/b?key=1", "https://two.example/b?key=1"),
        ("https://eve:x@two.example/b", "https://two.example/b"),
        ("//two.example:8443/b#part", "https://two.example:8443/b"),
    ],
)
def test_where_redirects_lead(location, leads_to):
    home = parse_url("https://user:secret@one.example/a")
    assert follow(home, location).geturl() == leads_to.replace("user:secret@", "")


@pytest.mark.parametrize("location", ["file:///etc/shadow", "ftp://one.example/a", "https://a b/", "http://[::1/"])
def test_redirects_out_of_the_web_are_refused(location):
    with pytest.raises(FetchError, match="is no http or https URL"):
        follow(parse_url("https://one.example/a"), location)


def test_redirects_never_lead_out_of_encryption():
    with pytest.raises(FetchError, match=r"redirects from https to http://one\.example/a"):
        follow(parse_url("https://one.example/a"), "http://one.example/a")


@pytest.mark.parametrize(
    "url", ["", "model.edgm", "ftp://x/y", "https:///y", "http://x:99999/", "http://x:0/", "http://ä.example/",
            "http://x/a b", "http://x/\r\nHost: y", "http://x/" + "a" * 5000, "http://[::1/a", "http://a..example/a",
            f"http://{'a' * 64}.example/a"],
)  # fmt: skip
def test_urls_that_cannot_be_asked_for(url):
    with pytest.raises(FetchError):
        parse_url(url)


def test_origins_are_scheme_host_and_port():
    assert origin(parse_url("HTTPS://One.example/a")) == origin(parse_url("https://u:p@one.example:443/b"))
    assert origin(parse_url("https://one.example")) != origin(parse_url("http://one.example"))
    assert origin(parse_url("https://one.example")) != origin(parse_url("https://one.example:8443"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://one.example/a.edgm", "https://one.example/a.edgm"),
        ("https://user:secret@one.example/a", "https://***@one.example/a"),
        ("https://user:se@cret@one.example/a", "https://***@one.example/a"),
        ("https://one.example/a?token=secret#secret", "https://one.example/a?***"),
        ("https://one.example/a#secret?secret", "https://one.example/a?***"),
        ("https://user:se/cr?e#t@one.example/a?token=secret", "https://***@one.example/a?***"),
        ("user:se/cret@one.example/a", "***@one.example/a"),
        ("user:se//cret@one.example/a", "***@one.example/a"),
        ("one.example/a?token=sec//ret", "one.example/a?***"),
        ("//user:secret@one.example/a", "//***@one.example/a"),
        ("https://one.example:8443/@scope/a.edgm", "https://one.example:8443/@scope/a.edgm"),
        ("https://[::1]:8443/a@1.edgm", "https://[::1]:8443/a@1.edgm"),
        ("no url", "no url"),
    ],
)
def test_secrets_are_not_shown(url, shown):
    assert mask(url) == shown


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://models.example.org", ("https", "models.example.org", 443)),
        ("https://Models.Example.org:443/", ("https", "models.example.org", 443)),
        ("http://10.0.0.5", ("http", "10.0.0.5", 80)),
        ("http://[fd00::5]:8080", ("http", "fd00::5", 8080)),
    ],
)
def test_an_origin_is_scheme_host_and_port(text: str, origin: tuple[str, str, int]):
    assert parse_origin(text) == origin


@pytest.mark.parametrize(
    "text",
    [
        *("", "models.example.org", "//models.example.org", "ftp://models.example.org", "https://", "https://:443"),
        *("https://models.example.org/path", "https://models.example.org?x", "https://models.example.org#x"),
        *("https://user@models.example.org", "https://user:secret@models.example.org", "https://models.example.org:0"),
        *("https://models.example.org:x", "https://[::1", "https://a..b", "https://*.example.org"),
    ],
)
def test_what_is_no_origin_is_refused_without_its_secrets(text: str):
    with pytest.raises(ConfigError, match="is no origin") as refused:
        parse_origin(text)
    assert "secret" not in str(refused.value)
