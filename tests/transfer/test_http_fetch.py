"""Fetching from misbehaving servers over breaking links: the file arrives whole, or the reason is reported."""

from __future__ import annotations

import random
import socket
from itertools import repeat
from pathlib import Path

import pytest

from edged.core.errors import BundleError, ConfigError, StoreError
from edged.models.container_check import ContainerCheck
from edged.system.urls import FetchError
from edged.transfer.http_fetch import Fetcher, transfer_id
from edged.transfer.options import FetchOptions
from edged.transfer.partial_files import PartialFiles
from tests.broker import server as scripted
from tests.containers import CHUNK, colours, container, entry
from tests.fetching import ID, fetch, open_transfer, options
from tests.flaky_proxy import FlakyProxy
from tests.web_server import (
    WebServer,
    behave,
    corrupt,
    cut_after,
    encoded,
    for_ever,
    redirect,
    status,
    swap,
    whole,
    without_length,
    wrong_start,
    wrong_total,
)

FILE = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(200_000)


def test_a_file_is_fetched(tmp_path: Path) -> None:
    with WebServer(FILE) as server:
        content, fetched = fetch(server.url(), tmp_path)
        assert content == FILE
        assert (fetched.total, fetched.connections, fetched.cuts, fetched.restarts) == (300_000, 1, 0, 0)
        [request] = server.requests
        assert request.headers["User-Agent"].startswith("edged/")
        assert request.headers["Accept-Encoding"] == "identity"
        assert "Range" not in request.headers


# Breaking links


def test_fifty_cuts_cost_two_percent_at_most(tmp_path: Path) -> None:
    file = random.Random(3).randbytes(3_600_000)
    with WebServer(file) as server, FlakyProxy(server.port, cut_after=repeat(70_000, 50)) as link:
        content, fetched = fetch(f"http://127.0.0.1:{link.port}/", tmp_path)
        assert content == file
        assert fetched.cuts == link.cuts == 50
        assert link.up + link.down <= 1.02 * len(file)
        assert fetched.restarts == 0


def test_a_link_that_hardly_lives_still_does(tmp_path: Path) -> None:
    with WebServer(FILE) as server, FlakyProxy(server.port, cut_after=repeat(3_000)) as link:
        content, fetched = fetch(f"http://127.0.0.1:{link.port}/", tmp_path)
        assert content == FILE
        assert fetched.cuts > 100
        assert link.up + link.down <= 1.3 * len(FILE)


def test_it_goes_on_after_a_restart_of_everything(tmp_path: Path) -> None:
    with WebServer(FILE) as server:
        server.orders += [cut_after(100_000), status(404)]
        with pytest.raises(FetchError, match="answers 404"):
            fetch(server.url(), tmp_path)
        content, fetched = fetch(server.url(), tmp_path)
        assert content == FILE
        assert fetched.resumed == 100_000
        assert server.requests[-1].start == 100_000
        assert server.requests[-1].headers["If-Range"] == server.etag


def test_what_is_here_already_costs_one_question(tmp_path: Path) -> None:
    with WebServer(FILE) as server:
        fetch(server.url(), tmp_path)
        content, fetched = fetch(server.url(), tmp_path)
        assert content == FILE
        assert (fetched.connections, fetched.resumed) == (1, 300_000)
        assert fetched.moved < 1000


def test_without_an_edition_nothing_is_stitched(tmp_path: Path) -> None:
    with WebServer(FILE) as server:
        server.tags = False
        server.orders.append(cut_after(100_000))
        content, fetched = fetch(server.url(), tmp_path)
        assert content == FILE
        assert fetched.restarts == 1
        assert [request.start for request in server.requests] == [0, 0]


def test_a_dead_link_is_given_up_on(tmp_path: Path) -> None:
    with WebServer(FILE) as server, FlakyProxy(server.port) as link:
        link.refuse()
        with pytest.raises(FetchError, match=r"given up at 0 of .* no progress for 0\.2 s; last: ") as refusal:
            fetch(f"http://127.0.0.1:{link.port}/", tmp_path, stall_seconds=0.2)
        assert refusal.value.retryable
        assert "the received bytes are kept" in refusal.value.hint


def test_a_link_that_swallows_everything_is_given_up_on(tmp_path: Path) -> None:
    with WebServer(FILE) as server, FlakyProxy(server.port) as link:
        link.blackhole()
        with pytest.raises(FetchError, match=r"no progress .*; last: only 0 bytes arrived within 0\.1 s"):
            fetch(f"http://127.0.0.1:{link.port}/", tmp_path, stall_seconds=2.0, low_speed_seconds=0.1)
        assert link.connections > 1


def test_time_is_bounded_even_with_progress(tmp_path: Path) -> None:
    with WebServer(FILE) as server, FlakyProxy(server.port, rate=100_000) as link:
        slow = f"http://127.0.0.1:{link.port}/"
        with pytest.raises(FetchError, match=r"given up at \d+ of 300000 bytes, as the transfer has taken 1\.5 s"):
            fetch(slow, tmp_path, max_seconds=1.5)


def test_traffic_is_bounded(tmp_path: Path) -> None:
    """A server without ranges, behind a link that never carries the whole file."""
    file = FILE * 4
    with WebServer(file) as server, FlakyProxy(server.port, cut_after=repeat(1_000_000)) as link:
        server.orders.extend(repeat(whole, 100))
        with pytest.raises(FetchError, match="bytes were transferred for a file of 1200000"):
            fetch(f"http://127.0.0.1:{link.port}/", tmp_path)
        assert link.down < 3.0 * len(file) + (2 << 20)


# Misbehaving servers


@pytest.mark.parametrize(
    "order",
    [whole, wrong_start(1), wrong_start(-100_000), wrong_total],
    ids=["all of it", "too late", "too early", "another total"],
)
def test_answers_that_do_not_fit_mean_starting_again(tmp_path: Path, order) -> None:
    with WebServer(FILE) as server:
        server.orders += [cut_after(100_000), order]
        content, fetched = fetch(server.url(), tmp_path)
        assert content == FILE
        assert fetched.restarts == 1


@pytest.mark.parametrize("order", [behave, wrong_start(0)], ids=["If-Range", "ranges of whatever is there"])
def test_a_file_that_changes_on_the_way_is_fetched_anew(tmp_path: Path, order) -> None:
    with WebServer(FILE) as server:
        server.orders += [cut_after(100_000), swap(OTHER, order)]
        content, fetched = fetch(server.url(), tmp_path)
        assert content == OTHER
        assert fetched.restarts == 1


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_what_is_final_is_not_asked_for_twice(tmp_path: Path, code: int) -> None:
    with WebServer(FILE) as server:
        server.orders.append(status(code))
        with pytest.raises(FetchError, match=f"answers {code}") as refusal:
            fetch(server.url(), tmp_path)
        assert not refusal.value.retryable
        assert len(server.requests) == 1


def test_what_passes_is_waited_for(tmp_path: Path) -> None:
    with WebServer(FILE) as server:
        server.orders += [status(429, retry_after="0"), status(503, retry_after="0"), status(500), status(502)]
        content, fetched = fetch(server.url(), tmp_path)
        assert content == FILE
        assert fetched.connections == 5


def test_a_server_that_wants_to_be_left_alone_for_long_is(tmp_path: Path) -> None:
    with WebServer(FILE) as server:
        server.orders.append(status(429, retry_after="7200"))
        with pytest.raises(FetchError, match="answers 429, and requests a wait of 7200 s") as refusal:
            fetch(server.url(), tmp_path)
        assert refusal.value.retryable
        assert len(server.requests) == 1


def test_a_server_in_trouble_for_ever_is_given_up_on(tmp_path: Path) -> None:
    with WebServer(FILE) as server:
        server.orders.extend(repeat(status(500), 10_000))
        with pytest.raises(FetchError, match=r"no progress for 0\.2 s; last: the server answers 500"):
            fetch(server.url(), tmp_path, stall_seconds=0.2)


def test_a_server_that_sends_for_ever_is_stopped(tmp_path: Path) -> None:
    with WebServer(FILE) as server, PartialFiles(tmp_path, 1 << 20, 4, reserve=0).open(ID) as transfer:
        server.orders.append(for_ever)
        with pytest.raises(StoreError, match="too many: at most 1048576"):
            Fetcher(options()).fetch(server.url(), transfer)


def test_a_body_without_a_length_ends_where_the_connection_does(tmp_path: Path) -> None:
    with WebServer(FILE) as server:
        server.orders.append(without_length)
        assert fetch(server.url(), tmp_path)[0] == FILE


def test_what_is_compressed_is_refused(tmp_path: Path) -> None:
    with WebServer(FILE) as server:
        server.orders.append(encoded("gzip"))
        with pytest.raises(FetchError, match="encoded"):
            fetch(server.url(), tmp_path)
        assert open_transfer(tmp_path).received == 0


def test_what_is_no_web_server_is_told(tmp_path: Path) -> None:
    def greet(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\x1b[2J\r\n")

    with scripted(greet) as port, pytest.raises(FetchError, match=r"last: SSH-2\.0-OpenSSH_9\.2\?\[2J"):
        fetch(f"http://127.0.0.1:{port}/", tmp_path, stall_seconds=0.1)


@pytest.mark.parametrize("tags", [True, False])
def test_a_server_that_sends_the_same_bytes_for_each_range_leads_nowhere(tmp_path: Path, tags: bool) -> None:
    def same(handler) -> None:
        headers = {"Content-Range": f"bytes 0-29999/{len(BUNDLE)}"}
        handler.answer(206, headers, BUNDLE[:30_000])

    with WebServer(BUNDLE) as server:
        server.tags = tags
        server.orders.extend(repeat(same, 100_000))
        with pytest.raises(FetchError, match=r"no progress for 0\.5 s") as refusal:
            fetch(server.url(), tmp_path, check=check, stall_seconds=0.5, max_traffic=1000)
        assert refusal.value.retryable


# Redirects


@pytest.mark.parametrize(
    ("location", "path"),
    [
        (b"/new models/m.edgm", "/new%20models/m.edgm"),
        (b"  /m.edgm ", "/m.edgm"),
        ("/modèles/m.edgm?für=alle boards".encode(), "/mod%C3%A8les/m.edgm?f%C3%BCr=alle%20boards"),
        ("/modèles/m.edgm".encode("latin-1"), "/mod%C3%A8les/m.edgm"),
        (b"/a%20b/m.edgm?x=%2F#here", "/a%20b/m.edgm?x=%2F"),
    ],
)
def test_redirects_are_followed_as_browsers_do(tmp_path: Path, location: bytes, path: str) -> None:
    with WebServer(FILE) as server:
        server.orders.append(redirect(location.decode("latin-1")))
        assert fetch(server.url(), tmp_path)[0] == FILE
        assert server.requests[1].path == path


def test_redirects_are_followed(tmp_path: Path) -> None:
    with WebServer(FILE) as server, WebServer(b"elsewhere") as other:
        server.orders += [redirect("/b"), redirect(other.url("/c"))]
        content, fetched = fetch(server.url(), tmp_path)
        assert content == b"elsewhere"
        assert fetched.connections == 3


def test_five_redirects_are_enough(tmp_path: Path) -> None:
    with WebServer(FILE) as server:
        server.orders.extend(repeat(redirect("/model.edgm"), 100))
        with pytest.raises(FetchError, match="more than 5 redirects"):
            fetch(server.url(), tmp_path)
        assert len(server.requests) == 6


def test_it_goes_on_where_a_redirect_leads(tmp_path: Path) -> None:
    with WebServer(b"") as server, WebServer(FILE) as other:
        server.orders.extend(repeat(redirect(other.url()), 2))
        other.orders.append(cut_after(100_000))
        assert fetch(server.url(), tmp_path)[0] == FILE
        assert [request.start for request in other.requests] == [0, 100_000]


# Reading along

NOTES = random.Random(4).randbytes(3 * CHUNK)
MODEL = b"a model, for all that anybody knows"
BUNDLE = container(colours(files={"model.tflite": entry(MODEL), "notes.bin": entry(NOTES)}), body=MODEL + NOTES)


def check() -> ContainerCheck:
    return ContainerCheck(lambda head: None)


def test_a_bad_way_costs_a_chunk(tmp_path: Path) -> None:
    with WebServer(BUNDLE) as server:
        server.orders.append(corrupt(len(BUNDLE) - 1000))
        content, fetched = fetch(server.url(), tmp_path, check=check)
        assert content == BUNDLE
        assert (fetched.damages, fetched.restarts) == (1, 0)
        assert server.requests[1].start == len(BUNDLE) - CHUNK
        assert server.requests[1].headers["Cache-Control"] == "no-cache"


def test_a_bad_file_is_given_up_on(tmp_path: Path) -> None:
    with WebServer(BUNDLE[:-1] + b"?") as server:
        with pytest.raises(BundleError, match=r"notes\.bin: .* are damaged"):
            fetch(server.url(), tmp_path, check=check)
        assert [request.start for request in server.requests] == [0, *repeat(len(BUNDLE) - CHUNK, 2)]


def test_a_page_that_asks_to_log_in_is_no_bundle(tmp_path: Path) -> None:
    page = b"<!DOCTYPE html><title>Welcome to the hotel's network</title>"
    with (
        WebServer(page) as server,
        pytest.raises(FetchError, match="a web page arrived instead of a bundle") as refusal,
    ):
        fetch(server.url(), tmp_path, check=check)
    assert refusal.value.retryable


def test_a_page_of_words_is_a_page_whatever_it_says_of_itself(tmp_path: Path) -> None:
    def page(handler) -> None:
        handler.answer(200, {"Content-Type": "text/html; charset=utf-8"}, b"Please log in")

    with WebServer(BUNDLE) as server:
        server.orders += [redirect("/portal?from=model.edgm"), page]
        with pytest.raises(FetchError, match="a web page arrived instead of a bundle"):
            fetch(server.url(), tmp_path, check=check)
        server.orders.append(page)
        with pytest.raises(FetchError, match="a web page arrived instead of a bundle"):
            fetch(server.url("/m.tflite"), tmp_path)


def test_a_bundle_is_one_whatever_the_server_takes_it_for(tmp_path: Path) -> None:
    with WebServer(BUNDLE) as server:
        server.orders.append(lambda handler: handler.answer(200, {"Content-Type": "text/html"}, BUNDLE))
        assert fetch(server.url(), tmp_path, check=check)[0] == BUNDLE


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_nothing_is_no_bundle(tmp_path: Path, bare: bool, chunked: bool) -> None:
    def nothing(handler) -> None:
        headers = {"Content-Length": None, "Transfer-Encoding": "chunked"} if chunked else {}
        handler.answer(200, headers, b"0\r\n\r\n" if chunked else b"")

    with WebServer(BUNDLE) as server:
        server.orders.append(nothing)
        with pytest.raises(FetchError, match="an empty file arrived instead of") as refusal:
            fetch(server.url(), tmp_path, check=None if bare else check)
        assert refusal.value.retryable
        assert len(server.requests) == 1


def test_a_page_that_asks_to_log_in_costs_nothing_of_what_has_come(tmp_path: Path) -> None:
    def page(handler) -> None:
        handler.answer(200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><title>Log in again</title>")

    with WebServer(BUNDLE) as server:
        server.orders += [cut_after(500_000), page]
        content, fetched = fetch(server.url(), tmp_path, check=check)
        assert content == BUNDLE
        assert (fetched.restarts, server.requests[2].start) == (0, 500_000)


def test_a_bundle_goes_on_without_an_edition_as_its_digests_tie_it_together(tmp_path: Path) -> None:
    with WebServer(BUNDLE) as server:
        server.tags = False
        server.orders.append(cut_after(500_000))
        content, fetched = fetch(server.url(), tmp_path, check=check)
        assert content == BUNDLE
        assert (fetched.restarts, server.requests[1].start) == (0, 500_000)


def test_a_bundle_that_is_here_already_needs_no_server(tmp_path: Path) -> None:
    with WebServer(BUNDLE) as server:
        assert fetch(server.url(), tmp_path, check=check)[0] == BUNDLE
        content, fetched = fetch(server.url(), tmp_path, check=check)
        assert (content, fetched.connections, len(server.requests)) == (BUNDLE, 0, 1)


def test_a_bundle_that_is_cut_without_a_length_goes_on(tmp_path: Path) -> None:
    """The length is known from the head of the bundle, so an earlier end is a cut."""

    def stub(handler) -> None:
        handler.answer(200, {"Content-Length": None}, BUNDLE[:1000])

    with WebServer(BUNDLE) as server:
        server.orders.append(stub)
        assert fetch(server.url(), tmp_path, check=check)[0] == BUNDLE
        assert server.requests[1].start == 1000


def test_nothing_after_the_end_of_a_bundle_is_taken(tmp_path: Path) -> None:
    with WebServer(BUNDLE + b"more") as server, pytest.raises(BundleError, match="were announced"):
        fetch(server.url(), tmp_path, check=check)


def test_a_bundle_without_a_length_and_without_an_end_ends_where_its_head_says(tmp_path: Path) -> None:
    def overlong(handler) -> None:
        handler.answer(200, {"Content-Length": None}, BUNDLE + bytes(1 << 20))

    with WebServer(BUNDLE) as server:
        server.orders.append(overlong)
        assert fetch(server.url(), tmp_path, check=check)[0] == BUNDLE


# Cancelling, and being told


def test_progress_is_told(tmp_path: Path) -> None:
    heard: list[tuple[int, int | None]] = []
    with WebServer(FILE) as server, open_transfer(tmp_path) as transfer:
        Fetcher(options()).fetch(
            server.url(), transfer, progress=lambda received, total, rate: heard.append((received, total))
        )
    assert heard[-1] == (300_000, 300_000)


def test_secrets_are_in_no_error_and_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with WebServer(FILE) as server:
        server.orders += [status(500), status(404)]
        url = server.url("/m?token=swordfish").replace("http://", "http://user:swordfish@")
        with pytest.raises(FetchError, match=rf"http://\*\*\*@127\.0\.0\.1:{server.port}/m\?\*\*\*: ") as refusal:
            fetch(url, tmp_path)
    assert "swordfish" not in str(refusal.value) + caplog.text
    assert "the server answers 500; trying again" in caplog.text


def test_ids_of_urls_tell_nothing_of_them() -> None:
    assert transfer_id("https://x/?token=swordfish") == transfer_id("https://x/?token=swordfish")
    assert "swordfish" not in transfer_id("https://x/?token=swordfish")
    assert len(transfer_id("https://x/" + "y" * 4000)) < 100


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"cert_file": "/a"}, "cert_file and key_file go together"),
        ({"proxy": "socks5://x:1080"}, "no usable proxy"),
        ({"proxy": "http://x:99999"}, "no usable proxy"),
    ],
)
def test_options_that_make_no_sense(given: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        FetchOptions(**given)
