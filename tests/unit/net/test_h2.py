"""One HTTP/2 connection over a real socket, on both loops. h2 is the client, and fails a server that breaks a rule."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame

from tests.conftest import Run
from tests.h2client import H2Client, connected
from tests.wire.sockets import eventually
from wstunnel._hub import Hub
from wstunnel.errors import BackendError, CutAnswerError, PeerError
from wstunnel.limits import HeadLimits, Limits
from wstunnel.net.exchange import Exchange, Taken
from wstunnel.net.h2 import H2Connection
from wstunnel.net.h2_exchange import H2Exchange
from wstunnel.net.wheel import TimerWheel
from wstunnel.proto.handshake import answer

HEAD = HeadLimits(head_timeout_s=20.0, keep_alive_s=20.0, write_stall_s=20.0, body_stall_s=20.0, linger_s=0.2)
"""Nothing times out unless a test says so."""
LIMITS = Limits(head=HEAD)
SHORT_S = 0.2
MIB = 1024 * 1024

Serving = Callable[[Exchange], Awaitable[None]]


def limits_of(**head: Any) -> Limits:
    return replace(LIMITS, head=replace(HEAD, **head))


class Server:
    """Makes an H2Connection of each client, and counts what becomes of it and its streams."""

    def __init__(self, serve: Serving, limits: Limits, max_streams: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.wheel = TimerWheel(0.02, self.loop.time())
        self.hub = Hub(self.loop, self.wheel, read_bytes=48 * 1024, bulk_bytes=128 * 1024, turn_bytes=MIB, look_s=0.5)
        self.limits, self.max_streams, self.serve = limits, max_streams, serve
        self.connections: list[H2Connection] = []
        self.exchanges: list[Exchange] = []
        self.admitted: list[H2Exchange] = []
        self.closed: list[H2Connection | H2Exchange] = []
        self.ended: list[BaseException | None] = []
        """How each coroutine ended."""
        self.admits = True

    async def count(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        try:
            await self.serve(exchange)
        except BaseException as error:
            self.ended.append(error)
            raise
        self.ended.append(None)

    def admit(self, exchange: H2Exchange) -> bool:
        if self.admits:
            self.admitted.append(exchange)
        return self.admits

    @asynccontextmanager
    async def client(self, window_bytes: int | None = None) -> AsyncIterator[H2Client]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        async with self._served(ours, theirs, window_bytes) as client:
            yield client

    @asynccontextmanager
    async def client_nearby(self) -> AsyncIterator[H2Client]:
        """Over a UNIX socket: who leaves has been heard to the end."""
        async with self._served(*socket.socketpair()) as client:
            yield client

    @asynccontextmanager
    async def _served(
        self, ours: socket.socket, theirs: socket.socket, window_bytes: int | None = None
    ) -> AsyncIterator[H2Client]:
        ours.setblocking(False)
        connection = H2Connection(
            self.hub,
            ours.detach(),
            on_request=self.count,
            admit=self.admit,
            on_closed=self.closed.append,
            peer="127.0.0.1:9",
            local="127.0.0.1:8",
            scheme="http",
            subject="CN=client",
            max_streams=self.max_streams,
            limits=self.limits,
            wheel=self.wheel,
        )
        self.connections.append(connection)
        connection.start()
        async with connected(window_bytes, sock=theirs) as client:
            await client.settled()
            yield client


@asynccontextmanager
async def serving(serve: Serving, limits: Limits = LIMITS, *, max_streams: int = 100) -> AsyncIterator[Server]:
    """A server, whose clients must all have been served to their end behind the block."""
    server = Server(serve, limits, max_streams)
    server.wheel.start(server.loop)
    try:
        yield server
        await eventually(
            lambda: set(server.closed) == {*server.connections, *(e for e in server.admitted if not e.is_taken)},
            "everything is reported as closed",
        )
        assert len(server.closed) == len(set(server.closed)), "reported twice"
        await eventually(lambda: len(server.ended) == len(server.exchanges), "every coroutine has ended")
        assert len(server.wheel) == 1, "somebody besides the hub waits for the wheel"
    finally:
        for connection in server.connections:
            if connection not in server.closed:
                connection.abort()
        await asyncio.sleep(0.01)
        server.wheel.stop()
        server.hub.close()


async def hello(exchange: Exchange) -> None:
    await exchange.respond(200, (("X-Path", exchange.request.path),), b"hello")


async def echo(exchange: Exchange) -> None:
    """The body as it comes."""
    await exchange.start(200, (), None)
    while piece := await exchange.read():
        await exchange.write(piece)
    await exchange.finish()


async def body_of(exchange: Exchange) -> bytes:
    whole = b""
    while piece := await exchange.read():
        whole += piece
    return whole


async def collect(exchange: Exchange) -> None:
    """The body when it is whole."""
    await exchange.respond(200, (), await body_of(exchange))


class Held:
    """A coroutine that waits until it is let go, or cancelled."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.begun = 0
        self.cancelled = 0

    async def __call__(self, exchange: Exchange) -> None:
        self.begun += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        await exchange.respond(200, (), b"at last")


# --- requests and answers


def test_a_request_is_answered_with_length_and_date(run: Run):
    async def main() -> None:
        async with serving(hello) as server, server.client() as client:
            got = await client.ask("/a%20b", ("cookie", "a=1"), ("cookie", "b=2")).answer()
            assert (got.status, bytes(got.body), got.is_whole) == (200, b"hello", True)
            fields = got.fields
            assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", fields.pop("date"))
            assert fields == {"x-path": "/a b", "content-length": "5"}
            request = server.exchanges[0].request
            assert (request.method, request.host, request.version) == ("GET", "a.example", "HTTP/2")
            assert (request.peer, request.local, request.client_subject) == ("127.0.0.1:9", "127.0.0.1:8", "CN=client")
            assert request.body_bytes == 0
            assert client.resets == []

    run(main())


def test_a_date_of_the_backend_is_kept(run: Run):
    async def dated(exchange: Exchange) -> None:
        await exchange.respond(200, b"Date: long ago\r\nX-One: 1\r\nConnection: x\r\n")

    async def main() -> None:
        async with serving(dated) as server, server.client() as client:
            got = await client.ask().answer()
            assert got.fields == {"date": "long ago", "x-one": "1", "content-length": "0"}

    run(main())


def test_head_tells_the_length_and_sends_nothing(run: Run):
    async def started(exchange: Exchange) -> None:
        if exchange.request.path == "/started":
            await exchange.start(200, (), 5)
            await exchange.write(b"hello")
            await exchange.finish()
        else:
            await hello(exchange)

    async def main() -> None:
        async with serving(started) as server, server.client() as client:
            for path in ("/", "/started"):
                got = await client.ask(path, method="HEAD").answer()
                assert (got.status, bytes(got.body), got.fields["content-length"]) == (200, b"", "5")
                assert got.is_whole

    run(main())


@pytest.mark.parametrize("status", [204, 304])
def test_some_answers_have_no_body_and_no_length(run: Run, status: int):
    async def bodiless(exchange: Exchange) -> None:
        await exchange.respond(status, (), b"never sent")

    async def main() -> None:
        async with serving(bodiless) as server, server.client() as client:
            got = await client.ask().answer()
            assert (got.status, bytes(got.body), "content-length" in got.fields) == (status, b"", False)

    run(main())


@pytest.mark.parametrize("length", [None, 10])
def test_an_answer_may_come_in_pieces(run: Run, length: int | None):
    async def pieces(exchange: Exchange) -> None:
        await exchange.start(200, (), length)
        for _ in range(2):
            await exchange.write(b"hello")
        await exchange.finish()

    async def main() -> None:
        async with serving(pieces) as server, server.client() as client:
            got = await client.ask().answer()
            assert (bytes(got.body), got.is_whole, got.fields.get("content-length")) == (
                b"hellohello",
                True,
                None if length is None else "10",
            )

    run(main())


def test_more_than_was_announced_is_not_sent(run: Run, caplog: pytest.LogCaptureFixture):
    async def much(exchange: Exchange) -> None:
        await exchange.start(200, (), 3)
        await exchange.write(b"hello")

    async def main() -> None:
        async with serving(much) as server, server.client() as client:
            got = await client.ask().answer()
            assert (bytes(got.body), got.reset_code) == (b"", ErrorCodes.INTERNAL_ERROR)

    run(main())
    assert "5 bytes for an answer of which only 3 are missing" in caplog.text


def test_an_answer_that_ends_too_early_is_reset(run: Run):
    async def little(exchange: Exchange) -> None:
        await exchange.start(200, (), 10)
        await exchange.write(b"hello")

    async def main() -> None:
        async with serving(little) as server, server.client() as client:
            got, other = client.ask(), client.ask()
            await got.answer()
            assert (got.is_whole, got.reset_code) == (False, ErrorCodes.INTERNAL_ERROR)
            assert (await other.answer()).reset_code == ErrorCodes.INTERNAL_ERROR
            assert not client.is_over

    run(main())


def test_a_second_answer_is_an_error_of_ours(run: Run):
    async def twice(exchange: Exchange) -> None:
        await exchange.respond(200, (), b"once")
        with pytest.raises(RuntimeError):
            await exchange.respond(200, (), b"twice")
        assert exchange.is_started

    async def main() -> None:
        async with serving(twice) as server, server.client() as client:
            assert bytes((await client.ask().answer()).body) == b"once"
            await eventually(lambda: server.ended, "it ends")
            assert server.ended == [None]

    run(main())


def test_a_request_that_nobody_answers_gets_500(run: Run, caplog: pytest.LogCaptureFixture):
    async def silent(exchange: Exchange) -> None:
        pass

    async def main() -> None:
        async with serving(silent) as server, server.client() as client:
            got = await client.ask("/quiet").answer()
            assert (got.status, bytes(got.body)) == (500, b"the server failed\n")

    run(main())
    assert "127.0.0.1:9: no answer to /quiet" in caplog.text


def test_errors_become_answers_or_resets(run: Run, caplog: pytest.LogCaptureFixture):
    """Of a peer: its status; of ours: 500 and the log; behind the head: the end of the stream, and of no other."""

    async def failing(exchange: Exchange) -> None:
        match exchange.request.path:
            case "/peer":
                raise PeerError("no such thing", status=404, headers=(("X-Why", "so"),))
            case "/backend":
                raise BackendError("the backend is out")
            case "/bug":
                raise KeyError("bug")
            case "/cut":
                await exchange.start(200, (), 100)
                await exchange.write(b"the beginning")
                raise CutAnswerError("cut short")
            case _:
                await hello(exchange)

    async def main() -> None:
        async with serving(failing) as server, server.client() as client:
            got = {path: client.ask(path) for path in ("/peer", "/backend", "/bug", "/cut", "/good")}
            for stream in got.values():
                await stream.answer()
            assert [stream.status for stream in got.values()] == [404, 500, 500, 200, 200]
            assert got["/peer"].fields["x-why"] == "so"
            assert bytes(got["/peer"].body) == b"no such thing\n"
            assert (bytes(got["/cut"].body), got["/cut"].reset_code) == (b"the beginning", ErrorCodes.INTERNAL_ERROR)
            assert (bytes(got["/good"].body), got["/good"].reset_code) == (b"hello", None)

    run(main())
    told = {record.getMessage(): record.exc_info for record in caplog.records if record.levelno == logging.ERROR}
    assert told.pop("127.0.0.1:9: GET /backend failed: the backend is out") is None
    assert told.pop("127.0.0.1:9: GET /cut failed: cut short") is None
    assert told.pop("127.0.0.1:9: GET /bug failed: 'bug'") is not None
    assert not told


MALFORMED = [
    ([(":method", "GET"), (":scheme", "http"), (":path", "/")], 400),
    ([(":method", "CONNECT"), (":authority", "a")], 501),
    ([(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a"), ("Upper", "x")], 400),
    ([(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a"), ("x", "a\nb")], 400),
    ([(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a"), ("connection", "close")], 400),
    ([(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a"), ("content-length", "x")], 400),
    (
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "a"),
            ("content-length", "1"),
            ("content-length", "2"),
        ],
        400,
    ),
]


@pytest.mark.parametrize(("pairs", "status"), MALFORMED)
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_malformed_request_is_refused_and_nobody_else_is_harmed(
    run: Run, pairs: list[tuple[str, str]], status: int, is_whole: bool
):
    """Behind a proxy, the other streams are other people's."""
    held = Held()

    async def main() -> None:
        async with serving(held) as server, server.client() as client:
            other = client.ask()
            got = await client.say(pairs, is_whole=is_whole).answer()
            assert got.status == status
            assert got.reset_code in {None, ErrorCodes.NO_ERROR}
            held.go.set()
            assert bytes((await other.answer()).body) == b"at last"
            assert client.goaway_codes == []

    run(main())


# --- bodies


@pytest.mark.parametrize("fields", [(), (("content-length", str(MIB)),)], ids=["unknown", "known"])
def test_a_mebibyte_goes_up_and_down_at_once(run: Run, fields: tuple[tuple[str, str], ...]):
    """Each waits for the other: neither may miss what wakes it."""
    body = bytes(range(256)) * (MIB // 256)

    async def both(exchange: Exchange) -> None:
        """As a gateway: one task reads the body, the other one writes the answer."""
        assert exchange.request.body_bytes == (MIB if fields else None)
        queue: asyncio.Queue[bytes] = asyncio.Queue(1)

        async def hear() -> None:
            while piece := await exchange.read():
                await queue.put(piece)
            await queue.put(b"")

        hearing = asyncio.create_task(hear())
        await exchange.start(200, (), None)
        while piece := await queue.get():
            await exchange.write(piece * 2)
        await hearing
        await exchange.finish()

    async def main() -> None:
        async with serving(both) as server, server.client() as client:
            stream = client.ask("/", *fields, method="POST", is_whole=False)
            await stream.send(body)
            await stream.answer()
            assert stream.is_whole
            assert len(stream.body) == 2 * MIB
            assert client.resets == []

    run(main())


def test_a_reader_and_a_writer_of_one_exchange_do_not_take_each_others_turn(run: Run):
    """A gateway sends the body to its backend while it passes on the answer; both may have to wait."""
    heard = []

    async def both(exchange: Exchange) -> None:
        async def hear() -> None:
            while piece := await exchange.read():
                heard.append(piece)

        hearing = asyncio.create_task(hear())
        await asyncio.sleep(0)  # it waits for the body
        await exchange.start(200, (), None)
        await exchange.write(bytes(MIB))
        await hearing
        await exchange.finish()

    async def main() -> None:
        async with serving(both) as server, server.client() as client:
            client.is_slow = True
            stream = client.ask("/", method="POST", is_whole=False)
            await client.until(lambda: len(stream.body) >= 65535)  # it waits for room
            await stream.send(b"one", is_last=False)
            await eventually(lambda: heard == [b"one"], "what has come of the body is read")
            client.is_slow = False
            stream.take()
            await client.until(lambda: len(stream.body) == MIB)
            await stream.send(b"two")
            assert (await stream.answer()).is_whole
            assert heard == [b"one", b"two"]

    run(main())


def test_a_body_that_nobody_reads_stays_with_the_client(run: Run):
    held = Held()

    async def main() -> None:
        async with serving(held) as server, server.client() as client:
            window = server.limits.h2.window_bytes
            stream = client.ask("/", method="POST", is_whole=False)
            sending = asyncio.create_task(stream.send(bytes(MIB)))
            await client.until(lambda: client.h2.local_flow_control_window(stream.id) == 0)
            assert not sending.done()
            await eventually(lambda: server.admitted[0]._unread_bytes == window, "all that is sent has been heard")
            held.go.set()
            assert bytes((await stream.answer()).body) == b"at last"
            await sending
            assert stream.reset_code in {None, ErrorCodes.NO_ERROR}
            again = client.ask("/again", method="POST", is_whole=False)
            await again.send(bytes(window // 2))
            assert (await again.answer()).status == 200

    run(main())


def test_trailers_of_a_request_are_dropped(run: Run):
    async def main() -> None:
        async with serving(collect) as server, server.client() as client:
            stream = client.ask("/", method="POST", is_whole=False)
            await stream.send(b"the body", is_last=False)
            client.h2.send_headers(stream.id, [("x-checksum", "1")], end_stream=True)
            client.push()
            assert bytes((await stream.answer()).body) == b"the body"

    run(main())


def test_padding_counts_for_windows_and_is_no_body(run: Run):
    async def main() -> None:
        async with serving(collect) as server, server.client() as client:
            stream = client.ask("/", method="POST", is_whole=False)
            for _ in range(1000):
                await client.until(lambda: client.h2.local_flow_control_window(stream.id) > 300)
                client.h2.send_data(stream.id, b"x", pad_length=255)
                client.push()
            stream.end()
            assert bytes((await stream.answer()).body) == b"x" * 1000

    run(main())


@pytest.mark.parametrize(("length", "sent"), [(5, b"hi"), (5, b"hello, you")])
def test_a_body_of_another_length_than_announced_harms_its_stream_alone(run: Run, length: int, sent: bytes):
    """h2 would end the connection. The backend never gets more than was announced to it."""
    heard = []

    async def hear(exchange: Exchange) -> None:
        if exchange.request.method == "GET":
            await hello(exchange)
            return
        while piece := await exchange.read():
            heard.append(piece)
        await exchange.respond(200, (), b"all is well")

    async def main() -> None:
        async with serving(hear) as server, server.client() as client:
            client.h2.config.validate_outbound_headers = False
            stream = client.ask("/", ("content-length", str(length)), method="POST", is_whole=False)
            await stream.send(sent)
            got = await stream.answer()
            assert got.status == 400
            assert len(b"".join(heard)) <= length
            assert bytes((await client.ask().answer()).body) == b"hello"
            assert client.goaway_codes == []

    run(main())


def test_a_length_without_a_body_is_refused(run: Run):
    async def main() -> None:
        async with serving(hello) as server, server.client() as client:
            got = await client.ask("/", ("content-length", "5"), method="POST").answer()
            assert got.status == 400
            assert (await client.ask("/", ("content-length", "0"), method="POST").answer()).status == 200

    run(main())


def test_a_client_that_asks_for_it_is_told_to_continue_when_the_body_is_wanted(run: Run):
    async def main() -> None:
        async with serving(collect) as server, server.client() as client:
            stream = client.ask("/", ("expect", "100-continue"), method="POST", is_whole=False)
            await client.until(lambda: stream.interim)
            await stream.send(b"as you wish")
            assert bytes((await stream.answer()).body) == b"as you wish"
            assert stream.interim == [100]

    run(main())


def test_nobody_is_told_to_continue_behind_an_answer(run: Run):
    async def early(exchange: Exchange) -> None:
        await exchange.start(200, (), None)
        assert await exchange.read() == b"body"
        await exchange.finish()

    async def main() -> None:
        async with serving(early) as server, server.client() as client:
            stream = client.ask("/", ("expect", "100-continue"), method="POST", is_whole=False)
            await stream.head()
            await stream.send(b"body")
            await stream.answer()
            assert (stream.interim, stream.is_whole) == ([], True)

    run(main())


def test_a_body_that_does_not_go_on_is_answered_with_408(run: Run):
    async def main() -> None:
        async with serving(collect, limits_of(body_stall_s=SHORT_S)) as server, server.client() as client:
            stream = client.ask("/", method="POST", is_whole=False)
            await stream.send(b"some", is_last=False)
            assert (await stream.answer()).status == 408

    run(main())


def test_the_rest_of_a_body_is_not_wanted_behind_the_answer(run: Run):
    """RST_STREAM(NO_ERROR), RFC 9113 §8.1; the client's windows do not leak."""

    async def main() -> None:
        async with serving(hello) as server, server.client() as client:
            stream = client.ask("/", method="POST", is_whole=False)
            got = await stream.answer()
            assert bytes(got.body) == b"hello"
            await client.until(lambda: stream.reset_code is not None)
            assert stream.reset_code == ErrorCodes.NO_ERROR
            for _ in range(4):  # was under way
                frame = DataFrame(stream.id, data=bytes(16000))
                client.writer.write(frame.serialize())
            assert bytes((await client.ask().answer()).body) == b"hello"

    run(main())


def test_a_client_that_ends_its_side_behind_a_whole_request_is_answered(run: Run):
    """Half-close: all of the body has come, though not all of it was read."""
    go = asyncio.Event()

    async def late(exchange: Exchange) -> None:
        await go.wait()
        await collect(exchange)

    async def main() -> None:
        async with serving(late) as server, server.client() as client:
            stream = client.ask("/", method="POST", is_whole=False)
            await stream.send(b"the whole body")
            client.writer.write_eof()
            await eventually(lambda: server.connections[0]._is_draining, "the end has come")
            go.set()
            got = await stream.answer()
            assert (got.status, bytes(got.body)) == (200, b"the whole body")

    run(main())


def test_a_client_that_ends_within_its_body_is_refused(run: Run):
    async def main() -> None:
        async with serving(collect) as server, server.client() as client:
            stream = client.ask("/", method="POST", is_whole=False)
            await stream.send(b"half of", is_last=False)
            client.writer.write_eof()
            assert (await stream.answer()).status == 400

    run(main())


# --- clients that are slow, or leave


def test_an_answer_waits_for_a_slow_client_and_nobody_else_does(run: Run):
    written = []

    async def much(exchange: Exchange) -> None:
        if exchange.request.path == "/other":
            await hello(exchange)
            return
        await exchange.start(200, (), MIB)
        for _ in range(64):
            await exchange.write(bytes(MIB // 64))
            written.append(MIB // 64)

    async def main() -> None:
        async with serving(much) as server, server.client(window_bytes=1000) as client:
            client.is_slow = True
            stream = client.ask()
            await client.until(lambda: len(stream.body) == 1000)
            assert bytes((await client.ask("/other").answer()).body) == b"hello"
            assert sum(written) <= server.limits.head.write_high_bytes + MIB // 64
            client.is_slow = False
            stream.take()
            got = await stream.answer()
            assert (len(got.body), got.is_whole) == (MIB, True)

    run(main())


class Clock:
    """A loop whose `call_later` waits for the test."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.timers: list[tuple[asyncio.TimerHandle, Callable[[], None]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_later(self, _: float, callback: Callable[..., None], *given: Any) -> asyncio.TimerHandle:
        handle = self._loop.call_later(1000.0, lambda: None)
        self.timers.append((handle, lambda: callback(*given)))
        return handle

    @property
    def waiting(self) -> list[Callable[[], None]]:
        return [callback for handle, callback in self.timers if not handle.cancelled()]

    def fire(self) -> None:
        """The time of all that wait has come."""
        due = self.waiting
        self.timers.clear()
        for callback in due:
            callback()


def test_a_client_that_takes_its_answer_slowly_is_not_dropped(run: Run):
    """What counts is whether any of it has left since the last look."""

    async def main() -> None:
        async with (
            serving(lambda exchange: exchange.respond(200, (), bytes(MIB))) as server,
            server.client(window_bytes=1000) as client,
        ):
            clock: Any = Clock(server.loop)
            server.connections[0].loop = clock
            client.is_slow = True
            stream = client.ask()
            await client.until(lambda: len(stream.body) == 1000)
            for turn in range(2, 5):
                stream.take()
                await client.until(lambda turn=turn: len(stream.body) == 1000 * turn)
                clock.fire()
                assert len(clock.waiting) == 1, "it is looked at again"
            clock.fire()
            assert (await stream.answer()).reset_code == ErrorCodes.CANCEL

    run(main())


def test_a_client_that_takes_nothing_of_its_answer_is_dropped(run: Run):
    async def main() -> None:
        async with (
            serving(lambda exchange: exchange.respond(200, (), bytes(MIB)), limits_of(write_stall_s=SHORT_S)) as server,
            server.client(window_bytes=1000) as client,
        ):
            client.is_slow = True
            got = await client.ask().answer()
            assert (len(got.body), got.reset_code) == (1000, ErrorCodes.CANCEL)

    run(main())


def test_a_client_that_has_closed_ends_what_nobody_would_write_to(run: Run):
    """Its FIN looks like a half-close, until something is said to it."""

    async def serve(exchange: Exchange) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with serving(serve, limits_of(head_timeout_s=SHORT_S)) as server, server.client() as client:
            client.ask()
            await eventually(lambda: server.exchanges, "the request is there")
            client.writer.close()
            await eventually(lambda: server.ended, "the coroutine ends")
            assert isinstance(server.ended[0], asyncio.CancelledError)

    run(main())


@pytest.mark.parametrize("way", ["reset", "gone"])
@pytest.mark.parametrize("path", ["/silent", "/started", "/whole"])
def test_a_client_that_leaves_ends_the_coroutine(run: Run, way: str, path: str):
    """Before the head of its answer, within it, and while all of it waits for the client."""

    async def serve(exchange: Exchange) -> None:
        if path == "/started":
            await exchange.start(200, (), None)
            while True:
                await exchange.write(bytes(16384))
        elif path == "/whole":
            await exchange.respond(200, (), bytes(MIB))
        else:
            await asyncio.Event().wait()

    async def main() -> None:
        async with serving(serve) as server, server.client() as client:
            client.is_slow = True
            stream = client.ask(path)
            await eventually(lambda: server.exchanges, "the request is there")
            if path != "/silent":
                await client.until(lambda: len(stream.body) == 65535)
            if way == "reset":
                stream.reset()
            else:
                client.reset()
            await eventually(lambda: server.ended, "the coroutine ends")
            if path != "/whole":
                assert isinstance(server.ended[0], asyncio.CancelledError)

    run(main())


def test_a_client_that_leaves_within_the_first_step_ends_the_coroutine(run: Run):
    """A handshake's first step runs before there is a task that could be cancelled."""

    async def much(exchange: Exchange) -> None:
        await exchange.start(200, (), None)
        await exchange.write(bytes(MIB))

    async def main() -> None:
        async with serving(much) as server, server.client_nearby() as client:
            client.shake()
            client.writer.transport.abort()
            await eventually(lambda: server.ended, "the coroutine ends")
            assert isinstance(server.ended[0], asyncio.CancelledError)

    run(main())


def test_a_client_that_leaves_at_once_is_never_served(run: Run):
    """HEADERS and RST_STREAM in one read: the task is cancelled before it starts."""

    async def main() -> None:
        async with serving(hello) as server, server.client() as client:
            stream = client.h2.get_next_available_stream_id()
            client.h2.send_headers(
                stream,
                [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")],
                end_stream=True,
            )
            client.h2.reset_stream(stream)
            client.push()
            assert bytes((await client.ask().answer()).body) == b"hello"
            assert [exchange.request.host for exchange in server.exchanges] == ["a.example"]
            assert len(server.admitted) == 2

    run(main())


def test_what_is_read_of_a_stream_that_was_reset_is_an_error_of_the_client(run: Run):
    """By a coroutine that does not heed its cancellation, or a task beside it."""
    seen: list[type[BaseException]] = []

    async def stubborn(exchange: Exchange) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            for attempt in (exchange.read, lambda: exchange.respond(200, (), b"too late")):
                try:
                    await attempt()
                except (PeerError, ConnectionResetError) as error:
                    seen.append(type(error))
            raise

    async def main() -> None:
        async with serving(stubborn) as server, server.client() as client:
            stream = client.ask("/", ("expect", "100-continue"), method="POST", is_whole=False)
            await eventually(lambda: server.exchanges, "the request is there")
            stream.reset()
            await eventually(lambda: server.ended, "the coroutine ends")
            assert seen == [PeerError, ConnectionResetError]

    run(main())


# --- tunnels


class Relaying:
    """Takes a handshake over, and keeps what it got."""

    def __init__(self) -> None:
        self.taken: Taken | None = None

    async def __call__(self, exchange: Exchange) -> None:
        self.taken = await exchange.take_over(answer(exchange.request))


def test_a_handshake_is_taken_over(run: Run):
    relaying = Relaying()

    async def main() -> None:
        async with serving(relaying) as server, server.client() as client:
            stream = await client.shake("/ws").head()
            assert stream.status == 200
            assert stream.pairs == []
            request = server.exchanges[0].request
            assert (request.method, request.wants_websocket, request.tokens("connection")) == ("GET", True, ["upgrade"])
            assert len(request.first("sec-websocket-key") or "") == 24
            taken = relaying.taken
            assert taken is not None
            assert (taken.leftover, taken.is_at_eof) == (b"", False)
            leg: Any = taken.transport
            leg.reset(ErrorCodes.INTERNAL_ERROR)
            assert (await stream.answer()).reset_code == ErrorCodes.INTERNAL_ERROR
            assert server.closed == [], "a tunnel is its relay's"
            assert server.ended == [None]

    run(main())


@pytest.mark.parametrize("length", [None, 0])
def test_who_asks_for_the_body_of_a_request_without_one_does_not_wait(run: Run, length: int | None):
    """As SCGI and FastCGI do: lighttpd waits for ever for the end of a handshake's stream."""

    async def main() -> None:
        async with serving(collect) as server, server.client() as client:
            if length is None:
                stream = client.shake()
            else:
                stream = client.ask("/", ("content-length", "0"), method="POST", is_whole=False)
            assert (await stream.answer()).is_whole

    run(main())


def test_a_client_that_sends_a_key_gets_its_accept(run: Run):
    """undici and niquests insist on it."""
    relaying = Relaying()

    async def main() -> None:
        async with serving(relaying) as server, server.client() as client:
            stream = await client.shake("/ws", ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")).head()
            assert stream.fields == {"sec-websocket-accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="}
            assert server.exchanges[0].request.all("sec-websocket-key") == ["dGhlIHNhbXBsZSBub25jZQ=="]
            stream.reset()

    run(main())


@pytest.mark.parametrize("is_last", [False, True])
def test_what_a_client_says_before_its_tunnel_is_there_is_kept(run: Run, is_last: bool):
    go = asyncio.Event()
    relaying = Relaying()

    async def late(exchange: Exchange) -> None:
        if exchange.request.wants_websocket:
            await go.wait()
            await relaying(exchange)
        else:
            await hello(exchange)

    async def main() -> None:
        async with serving(late) as server, server.client() as client:
            stream = client.shake("/ws")
            await stream.send(b"early words", is_last=is_last)
            await client.ask().answer()  # so that what stands before it has been read
            go.set()
            await stream.head()
            taken = relaying.taken
            assert taken is not None
            assert (taken.leftover, taken.is_at_eof) == (b"early words", is_last)
            stream.reset()

    run(main())


def test_a_refused_handshake_is_answered_as_over_http1_without_upgrade(run: Run):
    async def refusing(exchange: Exchange) -> None:
        answer(exchange.request)

    async def main() -> None:
        async with serving(refusing) as server, server.client() as client:
            head = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/")]
            stream = client.say([*head, (":authority", "a"), ("sec-websocket-version", "12")], is_whole=False)
            got = await stream.answer()
            assert got.status == 400
            assert got.fields["sec-websocket-version"] == "13"
            assert "upgrade" not in got.fields

    run(main())


@pytest.mark.parametrize("status", [200, 204, 299])
def test_an_answer_that_would_open_a_tunnel_where_there_is_none_has_another_status(run: Run, status: int):
    """Over HTTP/1.1, 200 refuses a handshake; to CONNECT it says that it was agreed to (RFC 9110 §9.3.6)."""

    async def page(exchange: Exchange) -> None:
        await exchange.respond(status, (("Content-Type", "text/plain"),), b"a page")

    async def main() -> None:
        async with serving(page) as server, server.client() as client:
            got = await client.shake().answer()
            assert (got.status, bytes(got.body), got.fields["content-type"]) == (400, b"a page", "text/plain")
            assert (await client.ask(method="HEAD").answer()).status == status

    run(main())


def test_a_stream_whose_client_is_gone_before_it_is_joined_is_given_back(run: Run):
    """Taken over, and not joined with a backend yet."""
    relaying = Relaying()

    async def main() -> None:
        async with serving(relaying) as server, server.client() as client:
            stream = await client.shake("/ws").head()
            stream.reset()
            leg: Any = relaying.taken.transport if relaying.taken else None
            await eventually(lambda: leg.is_over, "the leg knows")
            assert server.connections[0]._exchanges == {}

    run(main())


def test_a_coroutine_that_fails_behind_its_take_over_ends_the_stream(run: Run, caplog: pytest.LogCaptureFixture):
    async def failing(exchange: Exchange) -> None:
        await exchange.take_over(answer(exchange.request))
        raise OSError("no room for a tunnel")

    async def main() -> None:
        async with serving(failing) as server, server.client() as client:
            got = await client.shake("/ws").answer()
            assert (got.status, got.reset_code) == (200, ErrorCodes.INTERNAL_ERROR)

    run(main())
    assert "GET / failed" not in caplog.text
    assert "no room for a tunnel" in caplog.text


# --- streams and connections


def test_more_streams_than_allowed_are_refused(run: Run):
    held = Held()

    async def main() -> None:
        async with serving(held, max_streams=2) as server, server.client() as client:
            assert client.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] == 2
            first, second = client.ask(), client.ask()
            client.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 100
            client.h2.remote_settings.acknowledge()
            third = await client.ask().answer()
            assert third.reset_code == ErrorCodes.REFUSED_STREAM
            held.go.set()
            assert [(await stream.answer()).status for stream in (first, second)] == [200, 200]
            assert (await client.ask().answer()).status == 200

    run(main())


def test_a_stream_for_which_there_is_no_place_is_refused(run: Run):
    async def main() -> None:
        async with serving(hello) as server, server.client() as client:
            server.admits = False
            assert (await client.ask().answer()).reset_code == ErrorCodes.REFUSED_STREAM
            server.admits = True
            assert (await client.ask().answer()).status == 200
            assert len(server.exchanges) == 1

    run(main())


def test_an_idle_connection_ends_with_goaway(run: Run):
    async def main() -> None:
        async with (
            serving(hello, limits_of(head_timeout_s=1.0, keep_alive_s=SHORT_S)) as server,
            server.client() as client,
        ):
            assert (await client.ask().answer()).status == 200
            await eventually(lambda: client.is_over, "the connection ends")
            assert client.goaway_codes == [ErrorCodes.NO_ERROR]

    run(main())


def test_a_connection_that_has_had_a_request_may_be_idle_for_longer(run: Run):
    async def main() -> None:
        head_s = 1.0
        async with serving(hello, limits_of(head_timeout_s=head_s)) as server, server.client() as client:
            assert (await client.ask().answer()).status == 200
            begun_s = server.loop.time()
            await eventually(lambda: server.loop.time() > begun_s + head_s + SHORT_S, "time passes")
            assert (await client.ask().answer()).status == 200

    run(main())


def test_a_connection_without_a_request_ends(run: Run):
    async def main() -> None:
        async with serving(hello, limits_of(head_timeout_s=SHORT_S)) as server, server.client() as client:
            await eventually(lambda: client.is_over, "the connection ends")
            assert client.goaway_codes == [ErrorCodes.NO_ERROR]

    run(main())


def test_a_header_block_that_does_not_end_ends_the_connection(run: Run):
    held = Held()

    async def main() -> None:
        async with serving(held, limits_of(head_timeout_s=SHORT_S)) as server, server.client() as client:
            client.ask()
            await eventually(lambda: held.begun, "the connection is not idle")
            client.writer.write(HeadersFrame(3, data=b"\x82").serialize())
            await eventually(lambda: client.is_over, "the connection ends")
            assert client.goaway_codes == [ErrorCodes.PROTOCOL_ERROR]

    run(main())


def test_a_connection_with_a_stream_is_not_idle(run: Run):
    held = Held()

    async def main() -> None:
        limits = limits_of(head_timeout_s=SHORT_S, keep_alive_s=SHORT_S)
        async with serving(held, limits) as server, server.client() as client:
            stream = client.ask()
            await eventually(lambda: held.begun, "the request is there")
            begun_s = server.loop.time()
            await eventually(lambda: server.loop.time() > begun_s + 3 * SHORT_S, "time passes")
            held.go.set()
            assert (await stream.answer()).status == 200

    run(main())


@pytest.mark.parametrize("is_patient", [False, True])
def test_a_connection_that_is_drained_serves_what_is_under_way(run: Run, is_patient: bool):
    held = Held()

    async def main() -> None:
        limits = replace(LIMITS, h2=replace(LIMITS.h2, goaway_s=SHORT_S))
        async with serving(held, limits) as server, server.client() as client:
            stream = client.ask()
            await eventually(lambda: held.begun, "the request is there")
            for _ in range(2):
                server.connections[0].drain(is_patient=is_patient)
            await client.until(lambda: len(client.goaway_codes) == 2)
            assert not stream.is_over
            held.go.set()
            assert bytes((await stream.answer()).body) == b"at last"
            await eventually(lambda: client.is_over, "the connection ends")
            assert client.goaway_codes == [ErrorCodes.NO_ERROR] * 2

    run(main())


def test_an_idle_connection_that_is_drained_ends_at_once(run: Run):
    async def main() -> None:
        async with serving(hello) as server, server.client() as client:
            await client.ask().answer()
            server.connections[0].drain()
            await eventually(lambda: client.is_over, "the connection ends")
            assert set(client.goaway_codes) == {ErrorCodes.NO_ERROR}

    run(main())


def test_a_client_that_says_goaway_is_served_to_the_end_of_what_it_asked(run: Run):
    held = Held()

    async def main() -> None:
        async with serving(held) as server, server.client() as client:
            stream = client.ask()
            for _ in range(2):
                client.writer.write(GoAwayFrame(0).serialize())
            await eventually(lambda: server.connections[0]._is_draining, "it was heard")
            held.go.set()
            assert bytes((await stream.answer()).body) == b"at last"
            await eventually(lambda: client.is_over, "the connection ends")

    run(main())


def test_an_abort_ends_everything(run: Run):
    held = Held()

    async def main() -> None:
        async with serving(held) as server, server.client() as client:
            client.ask()
            client.ask()
            await eventually(lambda: held.begun == 2, "the requests are there")
            server.connections[0].abort()
            await eventually(lambda: client.is_over, "the connection ends")
            await eventually(lambda: held.cancelled == 2, "so do the coroutines")

    run(main())


def test_a_frame_that_breaks_a_rule_ends_the_connection(run: Run, caplog: pytest.LogCaptureFixture):
    held = Held()

    async def main() -> None:
        async with serving(held) as server, server.client() as client:
            client.ask()
            await eventually(lambda: held.begun, "the request is there")
            client.writer.write(b"\0\0\1\0\0\0\0\0\0x")
            await eventually(lambda: client.is_over, "the connection ends")
            assert client.goaway_codes == [ErrorCodes.PROTOCOL_ERROR]
            await eventually(lambda: held.cancelled == 1, "and its streams")

    with caplog.at_level(logging.INFO):
        run(main())
    assert "127.0.0.1:9: HTTP/2: " in caplog.text
