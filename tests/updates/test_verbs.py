import asyncio
import base64
import fcntl
import hashlib
import os
import socket
import threading
import time
from functools import partial

import pytest
from msgspec.structs import replace

import edged.updates.verbs
from edged.api import BundleError, ControlError, StoreError
from edged.core.ledger import Installed, Ledger
from edged.models.bare_file import Bare
from edged.transfer.options import FetchOptions
from edged.transfer.partial_files import Transfer
from edged.updates.fetch_jobs import MAX_DESIRED, MAX_REQUESTED
from edged.updates.jobs import ANY, MAX_JOBS, NAME_IT, InstallOptions, ModelReport, Wanted
from edged.updates.requests import MAX_CHUNK
from tests.containers import MODEL
from tests.plain_client import connect
from tests.receiving import Board, bundle, names
from tests.web_server import WebServer, cut_after, redirect, silence, status

BUNDLE = bundle()
NAMES = names(BUNDLE)


@pytest.fixture
def board(tmp_path):
    with Board(tmp_path) as running:
        yield running


@pytest.fixture
def ask(board):
    """Ask over the socket."""
    return lambda verb, **args: connect(str(board.runtime_dir)).call(verb, **args)


@pytest.fixture
def watch(board):
    return lambda job, **args: list(connect(str(board.runtime_dir)).stream("job-watch", id=job, **args))


@pytest.fixture
def send(ask):
    """Send a container from an offset up to another in chunks, and return the position."""

    def send(data=BUNDLE, start=0, end=None):
        end = len(data) if end is None else end
        there = start
        while there < end:
            piece = base64.b64encode(data[there : min(end, there + MAX_CHUNK)]).decode()
            there = ask("receive-chunk", id=names(data)["id"], offset=there, data=piece)["offset"]
        return there

    return send


def test_a_container_comes_in_chunks_and_is_installed(board, ask, send, watch):
    assert ask("receive-open", **NAMES) == {"offset": 0}
    assert send() == len(BUNDLE)
    job = ask("receive-done", id=NAMES["id"], origin="a test", confirm_within=90)["job"]
    *steps, end = watch(job)
    assert [step["id"] for step in steps] == ["update.verified", "update.serving"]
    assert (end["id"], end["state"], end["version"]) == ("job.ended", "done", "2.0")
    [(installed, options)] = board.updater.installed
    assert installed == BUNDLE
    assert (options.origin, options.confirm_within, options.allow_downgrade) == ("a test", 90.0, False)
    assert board.gone()


def test_it_goes_on_where_it_was(ask, send):
    ask("receive-open", **NAMES)
    send(end=70_000)
    assert ask("receive-open", **NAMES) == {"offset": 70_000}


def test_it_goes_on_after_a_restart(tmp_path):
    for offset in (0, 100_000):
        with Board(tmp_path) as board:
            call = connect(str(board.runtime_dir)).call
            assert call("receive-open", **NAMES) == {"offset": offset}
            for start in range(offset, 100_000, 25_000):
                data = base64.b64encode(BUNDLE[start : start + 25_000]).decode()
                call("receive-chunk", id=NAMES["id"], offset=start, data=data)


@pytest.mark.parametrize("left", [[], ["part"], ["transfer.json"]])
def test_a_kill_during_the_removal_of_a_file_leaves_nothing_for_ever(tmp_path, left):
    folder = tmp_path / "incoming" / NAMES["id"]
    folder.mkdir(parents=True)
    contents = {"part": b"", "transfer.json": b'{"durable":150000,"total":150000,"tag":""}'}
    for name in left:
        (folder / name).write_bytes(contents[name])
    with Board(tmp_path) as board:
        assert board.gone()


def test_it_goes_on_after_it_was_put_to_rest(tmp_path):
    with Board(tmp_path, idle=0.05) as board:
        call = connect(str(board.runtime_dir)).call
        call("receive-open", **NAMES)
        call("receive-chunk", id=NAMES["id"], offset=0, data=base64.b64encode(BUNDLE[:30_000]).decode())
        wait_until_unlocked(board.incoming / NAMES["id"])
        with pytest.raises(ControlError, match="no such transfer is open") as caught:
            call("receive-chunk", id=NAMES["id"], offset=30_000, data="eA==")
        assert caught.value.retryable
        assert call("receive-open", **NAMES) == {"offset": 30_000}


def wait_until_unlocked(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.close(descriptor)


ANNOUNCED = {**NAMES, "name": "colours", "number": "2.0"}


def test_the_watcher_of_a_job_hears_of_its_probation(board, ask, send, monkeypatch):
    monkeypatch.setattr(edged.updates.verbs, "_ALIVE_SECONDS", 0.1)
    board.do(board.updater.go.clear)
    ask("receive-open", **NAMES)
    send()
    job = ask("receive-done", id=NAMES["id"])["job"]
    items = connect(str(board.runtime_dir)).stream("job-watch", id=job)
    alive = next(item for item in items if item["id"] == "job.alive")
    board.do(board.updater.go.set)
    assert alive["text"] == "on probation: 5 of 300 s, 7 of 20 windows"
    assert [item["id"] for item in items][-1] == "job.ended"


def test_each_installed_version_has_a_role():
    serving, former, lost, unsure = (letter * 64 for letter in "abcd")
    versions = {
        unsure: Installed(version="1.3", reverted="no operator confirmed it within 60 s"),
        lost: Installed(version="1.2"),
        former: Installed(version="1.1", confirmed=True),
        serving: Installed(version="1.4", confirmed=True),
    }
    ledger = Ledger(schema="edged.ledger/1", active=serving, versions=versions)
    report = ModelReport(name="m", serving=serving, active="1.4", ledger=ledger, factory={}, unfit={}, named="")
    assert [(each["version"], each["roles"], each["reason"]) for each in edged.updates.verbs._versions(report)] == [
        ("1.4", ["serves"], ""),
        ("1.1", ["former"], ""),
        ("1.2", ["unconfirmed"], ""),
        ("1.3", ["reverted"], "no operator confirmed it within 60 s"),
    ]


def test_an_older_version_is_refused_before_it_is_sent(board, ask):
    board.updater.serve("a" * 64, "3.0")
    with pytest.raises(BundleError, match=r"colours 2\.0 is older than 3\.0, .*--allow-downgrade"):
        ask("receive-open", **ANNOUNCED)
    assert ask("receive-open", **ANNOUNCED, allow_downgrade=True) == {"offset": 0}


def test_what_is_pinned_is_told_before_anything_is_sent(board, ask):
    board.updater.ledger = replace(board.updater.ledger, pinned=True)
    bare = {**NAMES, "model": "colours"}
    for announced in (ANNOUNCED, bare, {**bare, "version": "1.1"}):
        with pytest.raises(BundleError, match=r"colours is pinned to 1\.0 \(unpin the model"):
            ask("receive-open", **announced)


def test_another_version_than_the_configuration_names_is_refused_before_it_is_sent(board, ask):
    board.updater.named = "1.0"
    with pytest.raises(BundleError, match=r"the configuration keeps colours at version 1\.0"):
        ask("receive-open", **ANNOUNCED)


@pytest.mark.parametrize(
    ("bare", "why"),
    [
        ({"model": "shapes"}, r"there is no model 'shapes' \(choose one of: colours\)"),
        ({"model": "colours", "version": "0.9"}, r"colours 0\.9 is older than 1\.0"),
    ],
)
def test_a_bare_file_that_may_not_come_in_is_refused_before_it_is_sent(ask, bare, why):
    with pytest.raises(BundleError, match=why):
        ask("receive-open", **NAMES, **bare)


def test_what_is_active_is_told_to_serve_only_where_it_does(board, ask):
    board.updater.serve(NAMES["digest"], "2.0")
    assert ask("receive-open", **NAMES) == {"present": True}
    board.updater.serving = None
    assert ask("receive-open", **NAMES) == {"present": True, "unused": NAME_IT}
    board.updater.serving = ""
    assert ask("receive-open", **NAMES) == {"offset": 0}


def test_two_senders_help_each_other(board, ask, send):
    ask("receive-open", **NAMES)
    assert send(end=100_000) == 100_000
    assert ask("receive-open", **NAMES) == {"offset": 100_000}
    assert send(end=40_000) == 100_000  # present bytes are skipped, without loss
    assert send(start=90_000) == len(BUNDLE)
    board.do(board.updater.go.clear)
    assert ask("receive-done", id=NAMES["id"]) == ask("receive-done", id=NAMES["id"])
    board.do(board.updater.go.set)


def test_what_is_being_installed_need_not_be_sent(board, ask, send, watch):
    board.do(board.updater.go.clear)
    ask("receive-open", **NAMES)
    send()
    job = ask("receive-done", id=NAMES["id"])
    assert ask("receive-open", **NAMES) == job
    other = names(bundle(signatures=b"the same version, signed by somebody else"))
    assert other["digest"] == NAMES["digest"]
    assert ask("receive-open", **other) == job
    board.do(board.updater.go.set)
    watch(job["job"])
    assert ask("receive-open", **NAMES) == {"present": True}


def test_what_was_rejected_is_refused_before_it_is_sent(board, ask):
    board.updater.reject(NAMES["digest"], "it is 12 times too slow")
    with pytest.raises(
        BundleError, match=r"colours 2\.0 was rejected on this board: it is 12 times too slow"
    ) as caught:
        ask("receive-open", **NAMES)
    assert caught.value.hint == f"to try the version again, run `edgectl forget colours {NAMES['digest'][:12]}`"
    assert board.gone()


def test_whoever_is_not_trusted_gets_no_further_than_the_head(board, ask, send):
    forged = bundle(signatures=b"mallory was here")
    ask("receive-open", **names(forged))
    with pytest.raises(BundleError, match="mallory is not an allowed signer"):
        send(forged)
    assert board.gone()


def test_what_does_not_keep_its_word_is_refused(board, ask, send):
    other = bundle("3.0")
    ask("receive-open", **{**names(other), "id": NAMES["id"]})
    with pytest.raises(BundleError, match="another file was sent than announced"):
        ask("receive-chunk", id=NAMES["id"], offset=0, data=base64.b64encode(other[:40_000]).decode())
    assert board.gone()


def test_no_more_is_taken_than_is_signed(board, ask, send):
    longer = BUNDLE + b"x"
    ask("receive-open", **NAMES)
    with pytest.raises(BundleError, match=r"more than the 2\d{5} bytes that were announced"):
        send(longer)


def test_whoever_sends_more_takes_nothing_from_what_is_being_installed(board, ask, send, watch):
    board.do(board.updater.go.clear)
    ask("receive-open", **NAMES)
    send()
    job = ask("receive-done", id=NAMES["id"])["job"]
    with pytest.raises(BundleError, match="were announced"):
        ask("receive-chunk", id=NAMES["id"], offset=len(BUNDLE), data="eA==")
    kept = board.parts()
    board.do(board.updater.go.set)
    assert kept == [NAMES["id"]]
    assert watch(job)[-1]["state"] == "done"
    assert board.updater.installed[0][0] == BUNDLE


def test_a_damaged_chunk_is_asked_for_again(ask, send):
    damaged = bytearray(BUNDLE)
    damaged[-1] ^= 1
    ask("receive-open", **NAMES)
    with pytest.raises(BundleError, match=r"noise\.bin: .* are damaged") as caught:
        send(bytes(damaged))
    assert caught.value.retryable
    offset = ask("receive-open", **NAMES)["offset"]
    assert 0 < offset < len(BUNDLE)
    assert send(start=offset) == len(BUNDLE)


def test_half_of_it_is_not_installed(ask, send):
    ask("receive-open", **NAMES)
    send(end=90_000)
    with pytest.raises(BundleError, match="incomplete: the file ends after 90000 bytes"):
        ask("receive-done", id=NAMES["id"])


def test_what_is_too_big_is_not_begun(ask):
    with pytest.raises(StoreError, match="are too many"):
        ask("receive-open", **{**NAMES, "size": 65 << 20})


@pytest.mark.parametrize(
    ("verb", "args", "complaint"),
    [
        ("receive-open", {**NAMES, "id": "../../etc"}, "id"),
        ("receive-open", {**NAMES, "size": 0}, "size"),
        ("receive-open", {**NAMES, "path": "/etc/passwd"}, "path"),
        ("receive-chunk", {"id": NAMES["id"], "offset": -1, "data": "eA=="}, "offset"),
        ("receive-chunk", {"id": NAMES["id"], "offset": 0, "data": "?"}, "base64"),
        ("receive-chunk", {"id": NAMES["id"], "offset": 0, "data": ""}, "data"),
        ("receive-done", {"id": NAMES["id"], "confirm_within": 1e9}, "confirm_within"),
        ("fetch", {"url": 5}, "url"),
        ("pin", {"model": "no such name!", "pinned": True}, "model"),
    ],
)
def test_nonsense_is_refused(ask, verb, args, complaint):
    with pytest.raises(ControlError, match=f"invalid request: .*{complaint}"):
        ask(verb, **args)


def test_a_chunk_out_of_place(ask):
    ask("receive-open", **NAMES)
    with pytest.raises(ControlError, match="begins at 10, and only 0 bytes are here") as caught:
        ask("receive-chunk", id=NAMES["id"], offset=10, data="eA==")
    assert caught.value.retryable


def test_what_an_operator_decides(board, ask):
    told = {"model": "colours", "serving": "a" * 64, "version": "1.0", "factory": False}
    serves = {**told, "pinned": False, "under_way": False}
    assert ask("rollback", model="colours", to="1.0") == serves
    assert ask("confirm", model="colours") == serves
    assert ask("pin", model="colours", pinned=True) == {**told, "pinned": True, "under_way": False, "changed": True}
    assert ask("pin", model="colours", pinned=True)["changed"] is False
    assert ask("pin", model="colours", pinned=False)["changed"] is True
    assert ask("clear-rejection", model="colours", digest="abc") == serves
    assert board.updater.asked == [
        ("rollback", "colours", "1.0"),
        ("confirm", "colours"),
        ("pin", "colours", True),
        ("pin", "colours", True),
        ("pin", "colours", False),
        ("forget", "colours", "abc"),
    ]


def test_jobs_are_remembered(ask, send, watch):
    ask("receive-open", **NAMES)
    send()
    job = ask("receive-done", id=NAMES["id"], origin="a test")["job"]
    steps = watch(job)
    [listed] = ask("jobs")
    assert (listed["job"], listed["model"], listed["state"], listed["origin"]) == (job, "colours", "done", "a test")
    assert ask("job", id=job)["events"] == steps[:-1]
    assert [step["id"] for step in watch(job, after=steps[0]["at"])] == ["update.serving", "job.ended"]
    assert watch(job, after=time.monotonic() + 1000) == steps  # from before the restart of the board


def test_a_job_is_not_taken_for_another_of_that_number(ask, send, watch):
    ask("receive-open", **NAMES)
    send()
    job = ask("receive-done", id=NAMES["id"])["job"]
    watch(job)
    with pytest.raises(ControlError, match="there is no job '1' since the start of the daemon"):
        watch(job, digest="f" * 64)


def test_a_daemon_that_stops_is_not_the_end_of_an_update(board, ask, send):
    board.do(board.updater.go.clear)
    ask("receive-open", **NAMES)
    send()
    steps = connect(str(board.runtime_dir)).stream("job-watch", id=ask("receive-done", id=NAMES["id"])["job"])
    assert next(steps)["id"] == "update.verified"
    board.run(board.updates.stop())
    fetch = partial(ask, "fetch", url="http://models.example/m.edgm")
    for answer in (lambda: next(steps), lambda: ask("receive-open", **NAMES), lambda: send(end=1), fetch):
        with pytest.raises(ControlError, match="the daemon is stopping") as caught:
            answer()
        assert caught.value.retryable


def test_a_disk_that_hangs_does_not_keep_the_daemon_from_its_end(board, ask, send, monkeypatch):
    hanging = threading.Event()
    ask("receive-open", **NAMES)
    send(end=70_000)
    monkeypatch.setattr(Transfer, "close", lambda _transfer: hanging.wait())
    monkeypatch.setattr(edged.updates.verbs, "STOP_SECONDS", 0.05)
    try:
        board.run(asyncio.wait_for(board.updates.stop(), 120))
    finally:
        hanging.set()


def test_a_container_from_a_url(board, ask, watch):
    with WebServer(BUNDLE) as server:
        job = ask("fetch", url=server.url("/model.edgm?token=secret"), allow_downgrade=True)["job"]
        *steps, end = watch(job)
    assert job == "fetch-1"
    assert [step["id"] for step in steps if step["id"].startswith("update")] == ["update.verified", "update.serving"]
    assert (end["state"], end["version"]) == ("done", "2.0")
    [(fetched, options)] = board.updater.installed
    assert fetched == BUNDLE
    assert options.origin == f"{server.url()}?***"
    assert options.allow_downgrade
    assert [listed["job"] for listed in ask("jobs")] == ["fetch-1"]
    assert board.gone()


def test_a_url_that_brings_nothing(board, ask, watch):
    with WebServer(BUNDLE) as server:
        server.orders.append(status(404))
        end = watch(ask("fetch", url=server.url())["job"])[-1]
    assert end["state"] == "failed"
    assert "404" in end["text"]
    assert board.updater.installed == []


def test_fetches_beyond_those_that_may_be_under_way_wait_for_their_turn(board, ask, watch):
    arrived, free = threading.Semaphore(0), threading.Event()
    under_way, most = [], []

    def held(handler):
        under_way.append(handler)
        most.append(len(under_way))
        arrived.release()
        assert free.wait(120)
        under_way.remove(handler)
        status(404)(handler)

    with WebServer(BUNDLE) as server:
        server.orders += [held] * 6
        jobs = [ask("fetch", url=server.url(f"/{number}.edgm"))["job"] for number in range(6)]
        for _ in range(MAX_REQUESTED):
            assert arrived.acquire(timeout=120)
        free.set()
        assert ["404" in watch(job)[-1]["text"] for job in jobs] == [True] * 6
    assert max(most) == MAX_REQUESTED


def trickle(asked, stop):
    """Send the first bytes of a bundle and then none, at the slowest permitted speed."""

    def order(handler):
        handler.answer(200, {"Content-Length": str(len(BUNDLE))}, BUNDLE[:100])
        asked.release()
        stop.wait()

    return order


def test_an_operator_does_not_wait_for_wishes_that_come_to_no_end(tmp_path):
    asked, stop = threading.Semaphore(0), threading.Event()
    with WebServer(BUNDLE) as slow, WebServer(BUNDLE) as server, Board(tmp_path, urls=(slow.url(),)) as board:
        slow.orders += [trickle(asked, stop)] * (MAX_DESIRED + 1)
        for number in range(MAX_DESIRED + 1):
            board.run(fetch(board, slow.url(f"/{number}.edgm"), f"model-{number}"))
        for _ in range(MAX_DESIRED):
            assert asked.acquire(timeout=120)
        job = connect(str(board.runtime_dir)).call("fetch", url=server.url())
        *_, end = connect(str(board.runtime_dir)).stream("job-watch", id=job["job"])
        assert end["state"] == "done"
        assert len(slow.requests) == MAX_DESIRED
        stop.set()


def test_of_wishes_for_one_model_the_latest_is_fetched(tmp_path):
    asked, stop = threading.Semaphore(0), threading.Event()
    with WebServer(BUNDLE) as server, Board(tmp_path, urls=(server.url(),)) as board:
        server.orders += [trickle(asked, stop)]
        for number in range(MAX_JOBS):
            board.run(fetch(board, server.url(f"/{number}.edgm")))
            assert number or asked.acquire(timeout=120)
        jobs = connect(str(board.runtime_dir)).call("jobs")
        *others, last = [[*connect(str(board.runtime_dir)).stream("job-watch", id=job["job"])][-1] for job in jobs]
        assert last["state"] == "done"
        assert {end["text"] for end in others} == {"replaced by a newer desired version of colours"}
        assert [event.id for event in board.said if event.outcome] == []
        stop.set()


def test_what_an_operator_asks_for_takes_the_place_of_a_wish_for_the_same(tmp_path):
    asked, stop = threading.Semaphore(0), threading.Event()
    with WebServer(BUNDLE) as server, Board(tmp_path, urls=(server.url(),)) as board:
        call = connect(str(board.runtime_dir)).call
        server.orders += [trickle(asked, stop)] * MAX_DESIRED
        for number in range(MAX_DESIRED):
            board.run(fetch(board, server.url(f"/{number}.edgm"), f"model-{number}"))
            assert asked.acquire(timeout=120)
        board.run(fetch(board, server.url("/waits.edgm"), "model-w"))
        for path in ("/waits.edgm", "/0.edgm"):
            job = call("fetch", url=server.url(path), confirm_within=60)
            *_, end = connect(str(board.runtime_dir)).stream("job-watch", id=job["job"])
            assert end["state"] == "done"
            board.updater.serve("a" * 64, "1.0")
        states = {job["job"]: job["text"] for job in call("jobs")}
        assert [options.confirm_within for _, options in board.updater.installed] == [60, 60]
        assert states["fetch-1"] == states["fetch-5"] == "replaced by an operator's fetch of the same URL"
        stop.set()


def test_a_url_that_brings_what_nobody_trusts(board, ask, watch):
    with WebServer(bundle(signatures=b"mallory was here")) as server:
        end = watch(ask("fetch", url=server.url())["job"])[-1]
    assert (end["state"], end["text"]) == ("refused", "mallory is not an allowed signer")
    assert board.updater.installed == []


def test_a_bare_file_is_not_fetched_where_only_signed_versions_may_come_in(board, ask):
    board.door.open = False
    with WebServer(MODEL) as server:
        with pytest.raises(BundleError, match="only signed versions may come in here"):
            ask("fetch", url=server.url("/colours.tflite"), model="colours")
        with pytest.raises(BundleError, match="only signed versions may come in here"):
            board.run(fetch(board, server.url("/colours.tflite"), bare=Bare(model="colours", version="2.0")))
        assert server.requests == []


def test_how_far_it_is_is_told_while_it_comes(board, ask, send):
    ask("receive-open", **NAMES)
    send(end=90_000)
    said = board.wait_for("update.receiving", received=90_000)
    assert (said.model, said.version, said.digest, said.phase) == ("colours", "2.0", NAMES["digest"], "receiving")
    assert (said.bytes, said.total) == (90_000, len(BUNDLE))


def web_page(handler):
    handler.answer(200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><title>Welcome to the hotel</title>")


def empty(handler):
    handler.answer(200, {})


def hang_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("order", "text", "details"),
    [
        (status(404), "not found", "the server answers 404"),
        (status(403), "not found", "the server answers 403"),
        (web_page, "not a bundle", "a web page arrived instead of a bundle"),
        (empty, "not a bundle", "an empty file arrived"),
        (lambda handler: handler.answer(200, {}, b"root:x:0:0:root:/root:/bin/sh"), "not a bundle", "not a container"),
        (hang_up, "unreachable", "no progress for 0.1 s"),
    ],
    ids=["404", "403", "a web page", "nothing", "another file", "no answer"],
)
def test_little_is_published_of_a_wish_that_failed_and_all_of_it_logged(tmp_path, caplog, order, text, details):
    options = FetchOptions(origins=("http://127.0.0.1",), proxy="none", stall_seconds=0.1, pause=0.01)
    with WebServer(b"") as server, Board(tmp_path, fetch=options, urls=(server.url(),)) as board:
        server.orders += [order] * 100
        board.run(fetch(board, server.url("/secret.edgm")))
        said = board.wait_for("update.failed")
        [job] = connect(str(board.runtime_dir)).call("jobs")
    assert (said.model, said.text, said.outcome, said.phase) == ("colours", text, "failed", "")
    assert (said.bytes, said.total) == (None, None)
    assert details in job["text"]
    assert details in caplog.text


def test_how_much_there_is_at_a_url_is_not_published_before_it_is_known_what(tmp_path):
    arrived, go_on, told = threading.Event(), threading.Event(), threading.Event()

    def part_of_the_head(handler):
        handler.answer(200, {"Content-Length": "123456"}, BUNDLE[:100])
        arrived.set()
        go_on.wait()

    def half(handler):
        handler.answer(200, {"Content-Length": str(len(BUNDLE))}, BUNDLE[:150_000])
        told.wait()

    with WebServer(BUNDLE) as server, Board(tmp_path, urls=(server.url(),)) as board:
        server.tags = False
        server.orders += [part_of_the_head, half]
        board.run(fetch(board, server.url()))
        assert arrived.wait(120)
        board.run(asyncio.sleep(0.1))  # enough time for a notification
        assert board.said == []
        go_on.set()
        assert board.wait_for("update.fetching", received=100_000).total is not None
        told.set()


def test_a_verdict_on_a_version_is_published(tmp_path):
    with WebServer(bundle(signatures=b"mallory was here")) as server, Board(tmp_path, urls=(server.url(),)) as board:
        board.run(fetch(board, server.url()))
        assert board.wait_for("update.refused").text == "mallory is not an allowed signer"


def test_a_wish_for_a_place_in_this_network_is_refused(tmp_path):
    with WebServer(BUNDLE) as server, WebServer(BUNDLE) as other, Board(tmp_path, urls=(other.url(),)) as board:
        board.run(fetch(board, server.url()))
        assert board.wait_for("update.refused").text == "refused by policy"
        other.orders.append(redirect(server.url()))
        board.run(fetch(board, other.url("/other.edgm")))
        board.wait_for_times("update.refused", 2)
        [first, second] = connect(str(board.runtime_dir)).call("jobs")
        assert f"http://127.0.0.1:{server.port} is at 127.0.0.1, an address of this board" in first["text"]
        assert f"http://127.0.0.1:{server.port} is at 127.0.0.1, an address of this board" in second["text"]
        assert (server.requests, len(other.requests)) == ([], 1)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"origins": ()}, "the configuration does not name http://models.example"),
        ({"origins": ("https://models.example",)}, "the configuration does not name http://models.example"),
        ({"token_file": "a-token"}, "the configuration does not name http://models.example"),
        ({"cert_file": "a", "key_file": "b"}, "the configuration does not name http://models.example"),
        ({"proxy": "http://127.0.0.1:1"}, "is reached through a proxy"),
    ],
)
def test_a_wish_for_another_origin_is_refused_where_the_configuration_says_so(tmp_path, options, complaint):
    with Board(tmp_path, fetch=FetchOptions(**{"proxy": "none", **options})) as board:
        board.run(fetch(board, "http://models.example/colours.edgm"))
        board.wait_for("update.refused")
        [job] = connect(str(board.runtime_dir)).call("jobs")
    assert complaint in job["text"]
    assert "origins in [updates.fetch]" in job["hint"]


def test_what_an_operator_asks_for_is_fetched_from_anywhere_and_still_is_after_a_restart(tmp_path):
    options = FetchOptions(origins=())
    with WebServer(BUNDLE) as server:
        stop, asked = threading.Event(), threading.Event()
        server.orders += [cut_after(100_000), silence(stop, asked)]
        with Board(tmp_path, fetch=options) as board:
            connect(str(board.runtime_dir)).call("fetch", url=server.url())
            assert asked.wait(120)
        stop.set()
        with Board(tmp_path, fetch=options) as board:
            [job] = connect(str(board.runtime_dir)).call("jobs")
            *_, end = connect(str(board.runtime_dir)).stream("job-watch", id=job["job"])
    assert end["state"] == "done"


def test_what_a_wish_began_is_no_operator_s_after_a_restart(tmp_path):
    with WebServer(BUNDLE) as server:
        stop, asked = threading.Event(), threading.Event()
        server.orders += [cut_after(100_000), silence(stop, asked)]
        with Board(tmp_path, urls=(server.url(),)) as board:
            board.run(fetch(board, server.url()))
            assert asked.wait(120)
        stop.set()
        with Board(tmp_path) as board:
            assert board.wait_for("update.refused").text == "refused by policy"


async def fetch(board, url, model="colours", wanted=ANY, *, operator=False, **options):
    return board.updates.fetch_jobs.fetch(url, InstallOptions(**options), model, wanted, operator=operator)


@pytest.mark.parametrize(
    ("model", "wanted", "reason"),
    [
        ("motion", ANY, "the file is for colours, not for motion"),
        ("colours", Wanted(version="2.1"), "the file is version 2.0, not 2.1"),
        ("colours", Wanted(digest="ab" * 32), f"the file has the digest {NAMES['digest']}, not {'ab' * 32}"),
    ],
)
def test_a_wish_brings_nothing_but_what_it_names(tmp_path, caplog, model, wanted, reason):
    with WebServer(BUNDLE) as server, Board(tmp_path, urls=(server.url(),)) as board:
        server.orders.append(cut_after(50_000))
        board.run(fetch(board, server.url(), model, wanted))
        said = board.wait_for("update.refused")
        assert (said.model, said.text, said.version, said.digest) == (model, "not the desired version", "", "")
        assert len(server.requests) == 1
        assert board.updater.installed == []
        assert board.gone()
    assert f"no desired version of {model}: {server.url()}: {reason}" in caplog.text


def test_a_wish_brings_what_it_names(tmp_path):
    with WebServer(BUNDLE) as server, Board(tmp_path, urls=(server.url(),)) as board:
        job = board.run(fetch(board, server.url(), "colours", Wanted(NAMES["digest"], "2.0")))
        board.run(job.ended.wait())
        assert job.state == "done"


def test_a_wish_brings_no_other_bare_file_than_it_names(tmp_path):
    bare = Bare(model="colours", version="2.0")
    with WebServer(MODEL) as server, Board(tmp_path, urls=(server.url(),)) as board:
        url = server.url("/m.tflite")
        board.run(fetch(board, url, wanted=Wanted(digest="ab" * 32), bare=bare))
        said = board.wait_for("update.refused")
        assert (said.model, said.text) == ("colours", "not the desired version")
        assert board.updater.installed == []
        job = board.run(fetch(board, url, wanted=Wanted(digest=hashlib.sha256(MODEL).hexdigest()), bare=bare))
        board.run(job.ended.wait())
        assert job.state == "done"


def test_what_a_wish_names_outlives_a_restart(tmp_path):
    with WebServer(BUNDLE) as server:
        stop, asked = threading.Event(), threading.Event()
        server.orders += [cut_after(50), silence(stop, asked)]
        with Board(tmp_path, urls=(server.url(),)) as board:
            board.run(fetch(board, server.url(), "motion"))
            assert asked.wait(120)
        stop.set()
        with Board(tmp_path, urls=(server.url(),)) as board:
            assert board.wait_for("update.refused").model == "motion"
            assert board.updater.installed == []


def test_wishes_of_two_models_for_one_url_are_two(tmp_path):
    with WebServer(BUNDLE) as server, Board(tmp_path, urls=(server.url(),)) as board:
        stop, asked = threading.Event(), threading.Event()
        server.orders.append(silence(stop, asked))
        first = board.run(fetch(board, server.url(), "motion"))
        assert asked.wait(120)
        second = board.run(fetch(board, server.url(), "colours"))
        assert second is not first
        stop.set()
        board.run(asyncio.wait_for(second.ended.wait(), 120))
        assert (first.state, second.state) == ("refused", "done")


def test_of_what_is_installed_and_no_pipeline_uses_only_the_head_is_fetched(board, ask, watch):
    board.updater.serve(NAMES["digest"], "2.0")
    board.updater.serving = None
    with WebServer(BUNDLE) as server:
        *_, end = watch(ask("fetch", url=server.url())["job"])
    text = "colours 2.0 is installed already, but used by no pipeline"
    assert (end["state"], end["text"], end["hint"]) == ("installed", text, NAME_IT)
    assert board.updater.installed == []


def test_what_was_rejected_is_not_fetched_once_that_is_seen(board, ask, watch):
    board.updater.reject(NAMES["digest"], "it is 12 times too slow")
    with WebServer(BUNDLE) as server:
        server.orders.append(cut_after(50_000))
        end = watch(ask("fetch", url=server.url())["job"])[-1]
        assert len(server.requests) == 1
    assert (end["state"], end["text"]) == (
        "refused",
        "colours 2.0 was rejected on this board: it is 12 times too slow",
    )
    assert board.gone()


def test_what_was_fetched_and_is_being_installed_need_not_be_sent(board, ask, watch):
    board.do(board.updater.go.clear)
    with WebServer(BUNDLE) as server:
        job = ask("fetch", url=server.url())["job"]
        steps = connect(str(board.runtime_dir)).stream("job-watch", id=job)
        while next(steps)["id"] != "update.verified":
            pass
        assert ask("receive-open", **NAMES)["job"] == job
        board.do(board.updater.go.set)
        assert watch(job)[-1]["state"] == "done"


@pytest.mark.parametrize(
    ("pinned", "complaint"),
    [(True, "colours is pinned to 3.0"), (False, "colours 2.0 is older than 3.0, and versions only go up")],
)
def test_what_may_not_come_in_is_not_fetched_either(board, ask, watch, pinned, complaint):
    board.updater.serve("a" * 64, "3.0")
    board.updater.ledger = replace(board.updater.ledger, pinned=pinned)
    with WebServer(BUNDLE) as server:
        server.orders.append(cut_after(50_000))
        end = watch(ask("fetch", url=server.url())["job"])[-1]
        assert len(server.requests) == 1
    assert (end["state"], end["text"]) == ("refused", complaint)
    assert board.gone()


def test_what_could_not_serve_here_is_not_fetched_once_that_is_seen(board, ask, watch):
    board.door.narrow = True
    with WebServer(BUNDLE) as server:
        server.orders.append(cut_after(50_000))
        end = watch(ask("fetch", url=server.url())["job"])[-1]
        assert len(server.requests) == 1
    assert (end["state"], end["text"]) == ("refused", "it needs another source")
    assert board.gone()


def test_what_could_not_be_installed_for_want_of_room_need_not_come_again(board, ask, send, watch):
    board.updater.end = ("failed", "there is no room", "free some space on this disk")
    with WebServer(BUNDLE) as server:
        assert watch(ask("fetch", url=server.url())["job"])[-1]["text"] == "there is no room"
        ask("receive-open", **NAMES)
        send()
        assert watch(ask("receive-done", id=NAMES["id"])["job"])[-1]["text"] == "there is no room"
        wait_until_unlocked(board.incoming / NAMES["id"])
        assert ask("receive-open", **NAMES) == {"offset": len(BUNDLE)}
        board.updater.end = ("done", "version 2.0 serves", "")
        assert watch(ask("fetch", url=server.url())["job"])[-1]["state"] == "done"
        assert len(server.requests) == 1


def test_a_fetch_that_a_daemon_left_is_gone_on_with_and_one_that_failed_is_not(tmp_path):
    with WebServer(BUNDLE) as server:
        stop, asked_again = threading.Event(), threading.Event()
        server.orders += [cut_after(100_000), silence(stop, asked_again)]
        with Board(tmp_path) as board:
            connect(str(board.runtime_dir)).call("fetch", url=server.url(), allow_downgrade=True)
            assert asked_again.wait(120)
        stop.set()
        with Board(tmp_path) as board:
            [job] = connect(str(board.runtime_dir)).call("jobs")
            *_, end = connect(str(board.runtime_dir)).stream("job-watch", id=job["job"])
            assert (end["state"], board.updater.installed[0][1].allow_downgrade) == ("done", True)
            assert server.requests[-1].start > 0
            server.orders += [cut_after(100_000), status(404)]
            *_, end = connect(str(board.runtime_dir)).stream(
                "job-watch", id=connect(str(board.runtime_dir)).call("fetch", url=server.url())["job"]
            )
            assert (end["state"], len(board.parts())) == ("failed", 1)
        with Board(tmp_path) as board:
            assert connect(str(board.runtime_dir)).call("jobs") == []


def test_an_order_that_has_rotted_is_no_reason_not_to_begin(tmp_path):
    not_a_url = b'{"url": "http://[", "options": {}, "model": ""}'
    for number, rotten in enumerate((b"", b"{", b'{"url": "\xff\xfe"}', not_a_url)):
        folder = tmp_path / "incoming" / f"url-{number}"
        folder.mkdir(parents=True)
        (folder / "order.json").write_bytes(rotten)
    with Board(tmp_path) as board:
        [job] = connect(str(board.runtime_dir)).call("jobs")
        *_, end = connect(str(board.runtime_dir)).stream("job-watch", id=job["job"])
    assert (end["state"], end["text"]) == ("failed", "'http://[' is no http or https URL")


@pytest.mark.parametrize(
    "url", ["http://[::1/colours.edgm", "http://a..example/colours.edgm", f"http://{'a' * 64}.example/", "ftp://a/b"]
)
def test_what_is_no_url_comes_to_an_end(ask, watch, url):
    end = watch(ask("fetch", url=url)["job"])[-1]
    assert (end["state"], end["text"]) == ("failed", f"{url!r} is no http or https URL")


def test_a_fetch_that_is_under_way_is_not_taken_for_one_on_other_terms(ask, watch):
    stop, asked = threading.Event(), threading.Event()
    with WebServer(BUNDLE) as server:
        server.orders.append(silence(stop, asked))
        job = ask("fetch", url=server.url(), confirm_within=60)
        assert asked.wait(120)
        assert ask("fetch", url=server.url()) == ask("fetch", url=server.url(), confirm_within=60) == job
        for terms in ({"confirm_within": 90}, {"allow_downgrade": True}):
            with pytest.raises(ControlError, match="already being fetched with"):
                ask("fetch", url=server.url(), **terms)
        stop.set()
        assert watch(job["job"])[-1]["state"] == "done"


def test_a_fetch_of_nobody_knows_what_is_not_taken_for_what_somebody_sent(board, ask):
    stop, asked = threading.Event(), threading.Event()
    with WebServer(BUNDLE) as server:
        server.orders.append(silence(stop, asked))
        job = ask("fetch", url=server.url())["job"]
        assert asked.wait(120)
        with pytest.raises(ControlError, match="there is no job"):
            next(connect(str(board.runtime_dir)).stream("job-watch", id=job, digest=NAMES["digest"]))
        stop.set()


def test_a_bug_is_the_end_of_a_fetch_and_not_of_those_that_follow(board, ask, watch, monkeypatch):
    async def forgets():
        raise KeyError("nowhere")

    monkeypatch.setattr(board.updater, "models", forgets)
    with WebServer(BUNDLE) as server:
        end = watch(ask("fetch", url=server.url())["job"])[-1]
        assert (end["state"], end["text"]) == ("failed", "KeyError: 'nowhere'")
        monkeypatch.undo()
        assert watch(ask("fetch", url=server.url())["job"])[-1]["state"] == "done"


def test_what_is_under_way_is_remembered_however_many_come_after_it(board, ask, watch):
    stop, asked = threading.Event(), threading.Event()
    with WebServer(BUNDLE) as server:
        server.orders.append(silence(stop, asked))
        slow = ask("fetch", url=server.url())["job"]
        assert asked.wait(120)
        for _ in range(MAX_JOBS + 5):
            watch(ask("fetch", url="ftp://a/b")["job"])
        jobs = ask("jobs")
        assert (len(jobs), jobs[0]["job"], jobs[0]["state"]) == (MAX_JOBS, slow, "running")
        stop.set()
        assert watch(slow)[-1]["state"] == "done"


@pytest.mark.parametrize("operator", [True, False])
def test_a_bare_file_for_a_pinned_model_is_not_fetched(tmp_path, operator):
    with WebServer(MODEL) as server, Board(tmp_path, urls=(server.url(),)) as board:
        board.updater.ledger = replace(board.updater.ledger, pinned=True)
        bare = Bare(model="colours", version="2.0")
        job = board.run(fetch(board, server.url("/m.tflite"), operator=operator, bare=bare))
        assert board.wait_for("update.refused").text == job.text == "colours is pinned to 1.0"
        assert server.requests == []
