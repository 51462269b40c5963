"""The real server on a real socket, and clients of every kind."""

import asyncio
import contextlib
import grp
import json
import logging
import os
import socket
import stat

import pytest

from edged.control.control_socket import ControlSocket
from edged.control.server import MAX_CONNECTIONS, Server
from edged.core.errors import ControlError, ModelError


class FakeOperations:
    """Operations with a verb of each kind, and a record of closed streams."""

    calls = ("status", "reload", "fail", "crash", "big")
    streams = ("count", "flood", "wait", "break")
    changes = ("reload",)

    def __init__(self):
        self.closed = asyncio.Event()

    async def call(self, verb, args):
        match verb:
            case "fail":
                raise ModelError("the model is too big", hint="use a smaller one")
            case "crash":
                raise KeyError("oops")
            case "big":
                return "x" * 4_000_000
        return {"verb": verb, **args}

    async def stream(self, verb, args):
        try:
            match verb:
                case "count":
                    for number in range(args["to"]):
                        yield number
                case "break":
                    yield 1
                    raise ModelError("the pipeline has gone", hint="")
                case "flood":
                    while True:
                        yield "x" * 100_000
                case "wait":
                    yield "here"
                    await asyncio.Event().wait()
        finally:
            self.closed.set()


@contextlib.asynccontextmanager
async def serving(path, operations=None, *, mode=0o660, group=None, **options):
    server = Server(ControlSocket(path, mode=mode, group=group), operations or FakeOperations(), **options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class Peer:
    """Client that can misbehave."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def at(cls, path):
        return cls(*await asyncio.open_unix_connection(path))

    def send(self, data):
        self.writer.write(data if isinstance(data, bytes) else json.dumps(data).encode() + b"\n")

    async def reply(self):
        """The next reply; None when the server has closed."""
        try:
            return json.loads(line) if (line := await self.reader.readline()) else None
        except ConnectionResetError:
            return None

    async def ask(self, verb, **args):
        self.send({"id": 1, "verb": verb, "args": args})
        return await self.reply()

    async def gone(self):
        """Read until the server has closed."""
        with contextlib.suppress(ConnectionResetError):
            await self.reader.read()

    def close(self):
        self.writer.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "edged.sock"


def test_calls_are_answered_in_turn_on_one_connection(path):
    async def scenario():
        async with serving(path):
            peer = await Peer.at(path)
            peer.send(b'{"id": 1, "verb": "status"}\n{"id": 2, "verb": "status", "args": {"x": 5}}\n')
            assert await peer.reply() == {"id": 1, "ok": {"verb": "status"}}
            assert await peer.reply() == {"id": 2, "ok": {"verb": "status", "x": 5}}

    asyncio.run(scenario())


def test_an_answer_larger_than_any_buffer_arrives_whole(path):
    async def scenario():
        async with serving(path):
            reader, writer = await asyncio.open_unix_connection(path, limit=8_000_000)
            peer = Peer(reader, writer)
            assert len((await peer.ask("big"))["ok"]) == 4_000_000

    asyncio.run(scenario())


def test_a_stream_ends_with_end(path):
    async def scenario():
        async with serving(path):
            peer = await Peer.at(path)
            assert await peer.ask("count", to=2) == {"id": 1, "event": 0}
            assert await peer.reply() == {"id": 1, "event": 1}
            assert await peer.reply() == {"id": 1, "end": True}
            assert await peer.reply() is None

    asyncio.run(scenario())


def test_a_stream_that_fails_says_why(path):
    async def scenario():
        async with serving(path):
            peer = await Peer.at(path)
            assert await peer.ask("break") == {"id": 1, "event": 1}
            error = {"message": "the pipeline has gone", "hint": "", "kind": "model"}
            assert await peer.reply() == {"id": 1, "error": error}

    asyncio.run(scenario())


def test_a_stream_is_closed_when_its_client_leaves(path):
    async def scenario():
        operations = FakeOperations()
        async with serving(path, operations):
            peer = await Peer.at(path)
            assert await peer.ask("wait") == {"id": 1, "event": "here"}
            peer.close()
            await operations.closed.wait()

    asyncio.run(scenario())


def test_a_stream_is_closed_when_the_server_stops(path):
    async def scenario():
        operations = FakeOperations()
        async with serving(path, operations) as server:
            peer = await Peer.at(path)
            await peer.ask("wait")
            await server.stop()
            assert operations.closed.is_set()
            assert await peer.reply() is None

    asyncio.run(scenario())


def test_an_error_carries_its_kind_and_hint(path):
    async def scenario():
        async with serving(path):
            peer = await Peer.at(path)
            error = {"message": "the model is too big", "hint": "use a smaller one", "kind": "model"}
            assert await peer.ask("fail") == {"id": 1, "error": error}
            assert (await peer.ask("status"))["ok"] == {"verb": "status"}

    asyncio.run(scenario())


def test_a_fault_of_ours_is_told_and_logged_and_the_connection_goes_on(path, caplog):
    async def scenario():
        async with serving(path):
            peer = await Peer.at(path)
            reply = await peer.ask("crash")
            assert reply["error"]["message"] == "the daemon failed to answer: KeyError('oops')"
            assert (await peer.ask("status"))["ok"] == {"verb": "status"}

    asyncio.run(scenario())
    assert "the verb 'crash' failed" in caplog.text
    assert "Traceback" in caplog.text


def test_an_unknown_verb_is_answered_with_the_nearest_known(path):
    async def scenario():
        async with serving(path):
            error = (await (await Peer.at(path)).ask("staus"))["error"]
            assert error["message"] == "the daemon knows no verb 'staus'"
            assert error["hint"].startswith("did you mean 'status'? choose one of: big, break, count,")

    asyncio.run(scenario())


@pytest.mark.parametrize("garbage", [b"\x00\xff\xfe\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\n", b"{}\n" * 1000])
def test_garbage_is_answered_once_and_closed(path, garbage):
    async def scenario():
        async with serving(path):
            peer = await Peer.at(path)
            peer.send(garbage)
            assert (await peer.reply())["id"] is None
            assert await peer.reply() is None
            assert (await (await Peer.at(path)).ask("status"))["ok"] == {"verb": "status"}

    asyncio.run(scenario())


def test_a_line_without_end_is_refused_at_64_kib(path):
    async def scenario():
        async with serving(path):
            peer = await Peer.at(path)
            peer.send(b"x" * 10_000_000)
            assert "longer than 65536 bytes" in (await peer.reply())["error"]["message"]
            await peer.gone()

    asyncio.run(scenario())


def test_half_a_request_is_no_request(path):
    async def scenario():
        async with serving(path):
            peer = await Peer.at(path)
            peer.send(b'{"id": 1, "verb": "status"}')
            peer.writer.write_eof()
            assert await peer.reply() is None

    asyncio.run(scenario())


def test_a_silent_client_is_let_go(path):
    async def scenario():
        async with serving(path, idle=0.05):
            assert await (await Peer.at(path)).reply() is None

    asyncio.run(scenario())


@pytest.mark.parametrize("verb", ["flood", "big"])
def test_a_client_that_never_reads_is_let_go(path, verb):
    async def scenario():
        operations = FakeOperations()
        async with serving(path, operations, timeout=0.05) as server:
            deaf = socket.socket(socket.AF_UNIX)
            deaf.connect(str(path))
            deaf.sendall(b'{"id": 1, "verb": "%s"}\n' % verb.encode())
            while not (busy := server._connections):
                await asyncio.sleep(0)
            await asyncio.wait(busy)
            peer = await Peer.at(path)
            assert (await peer.ask("status"))["ok"] == {"verb": "status"}
            assert operations.closed.is_set() == (verb == "flood")
            deaf.close()

    asyncio.run(scenario())


def test_the_client_that_was_silent_for_longest_makes_room(path):
    async def scenario():
        async with serving(path):
            peers = [await Peer.at(path) for _ in range(MAX_CONNECTIONS)]
            for peer in [*peers, peers[0]]:
                await peer.ask("status")
            assert (await (await Peer.at(path)).ask("status"))["ok"] == {"verb": "status"}
            problem = (await peers[1].reply())["error"]
            assert problem["message"] == "16 clients were connected, and this client was silent for longest"
            assert problem["retryable"]
            assert await peers[1].reply() is None
            assert (await peers[0].ask("status"))["ok"] == {"verb": "status"}

    asyncio.run(scenario())


def test_clients_that_never_say_anything_keep_nobody_out(path):
    async def scenario():
        async with serving(path):
            mute = [await Peer.at(path) for _ in range(3 * MAX_CONNECTIONS)]
            mute[-1].send(b'{"id": 1')
            assert (await (await Peer.at(path)).ask("status"))["ok"] == {"verb": "status"}

    asyncio.run(scenario())


def test_streams_of_one_verb_do_not_take_all_places(path):
    async def scenario():
        async with serving(path):
            watching = [await Peer.at(path) for _ in range(MAX_CONNECTIONS)]
            answers = [await peer.ask("wait") for peer in watching]
            assert answers[:12] == [{"id": 1, "event": "here"}] * 12
            problem = answers[12]["error"]
            assert problem["message"] == "12 clients have a stream of 'wait', which is the limit"
            assert problem["retryable"]
            assert (await (await Peer.at(path)).ask("status"))["ok"] == {"verb": "status"}
            watching[0].close()
            while "error" in (answer := await (await Peer.at(path)).ask("wait")):
                pass
            assert answer == {"id": 1, "event": "here"}

    asyncio.run(scenario())


def test_streams_of_several_verbs_do_not_take_all_places_either(path):
    async def scenario():
        async with serving(path):
            peers = [await Peer.at(path) for _ in range(MAX_CONNECTIONS)]
            for peer in peers[:12]:
                assert await peer.ask("wait") == {"id": 1, "event": "here"}
            for peer in peers[12:14]:
                peer.send({"id": 1, "verb": "flood", "args": {}})
                await peer.reader.read(1)
            problem = (await peers[14].ask("flood"))["error"]
            assert problem["message"] == "14 clients have streams, which is the limit"
            assert problem["retryable"]
            assert (await (await Peer.at(path)).ask("status"))["ok"] == {"verb": "status"}

    asyncio.run(scenario())


def test_who_changes_something_is_logged(path, caplog):
    async def scenario():
        async with serving(path):
            peer = await Peer.at(path)
            await peer.ask("status")
            await peer.ask("reload")
            await peer.ask("reload", allow_downgrade=True)

    caplog.set_level(logging.INFO, "edged.control")
    asyncio.run(scenario())
    assert [record.message for record in caplog.records] == [
        f"reload, asked for by user {os.getuid()}, process {os.getpid()}",
        f"reload with allow_downgrade, asked for by user {os.getuid()}, process {os.getpid()}",
    ]


def test_the_socket_is_for_owner_and_group_and_leaves_with_the_server(path):
    async def scenario():
        async with serving(path, group=grp.getgrgid(os.getgid()).gr_name):
            assert stat.filemode(path.stat().st_mode) == "srw-rw----"
            assert path.stat().st_gid == os.getgid()
        assert not path.exists()

    asyncio.run(scenario())


def test_a_socket_left_by_a_killed_daemon_is_replaced(path):
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    async def scenario():
        async with serving(path):
            assert (await (await Peer.at(path)).ask("status"))["ok"] == {"verb": "status"}

    asyncio.run(scenario())


def test_a_second_daemon_is_refused_and_the_first_serves_on(path):
    async def scenario():
        async with serving(path):
            with pytest.raises(ControlError, match="another edged is running"):
                await Server(ControlSocket(path), FakeOperations()).start()
            assert (await (await Peer.at(path)).ask("status"))["ok"] == {"verb": "status"}

    asyncio.run(scenario())


def test_a_server_that_failed_to_start_can_start_later(path):
    async def scenario():
        with pytest.raises(ControlError, match="no group 'nobody-has-this'"):
            await Server(ControlSocket(path, group="nobody-has-this"), FakeOperations()).start()
        assert not path.exists()
        async with serving(path):
            pass

    asyncio.run(scenario())


def test_a_file_in_the_way_is_not_touched(path):
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(ControlError, match="in the way and not a socket"):
        asyncio.run(Server(ControlSocket(path), FakeOperations()).start())
    assert path.read_text() == "precious"


def test_a_path_too_long_for_a_socket_says_what_to_do(tmp_path):
    with pytest.raises(ControlError, match="cannot be made") as refused:
        asyncio.run(Server(ControlSocket(tmp_path / ("x" * 120) / "edged.sock"), FakeOperations()).start())
    assert "less than 100 bytes" in refused.value.hint
