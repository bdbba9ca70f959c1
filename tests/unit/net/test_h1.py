"""One HTTP/1.1 connection over real loopback sockets, on both loops. h11 reads what we answer."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import h11
import pytest

from tests.conftest import Run
from wstunnel.errors import PeerError
from wstunnel.limits import GatewayLimits, HeadLimits
from wstunnel.net.exchange import Exchange, Taken
from wstunnel.net.h1 import H1Connection
from wstunnel.net.wheel import TimerWheel
from wstunnel.proto.http1 import HeadReader, encode_head
from wstunnel.proto.request import Headers

LIMITS = HeadLimits(head_timeout_s=20.0, keep_alive_s=20.0, write_stall_s=20.0, linger_s=20.0)
"""Nothing times out unless a test says so."""
SHORT_S = 0.2
SOON_S = 10.0
"""How long anything may take that should happen at once: generous, only ever waited for in a failure."""
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@dataclass
class Agreed:
    headers: Headers

    @property
    def head(self) -> bytes:
        return encode_head(101, self.headers)


SWITCHING = Agreed((("Upgrade", "websocket"), ("Connection", "Upgrade")))
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


async def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline_s, "what was waited for did not happen"
        await asyncio.sleep(0.002)


class Client:
    """A client socket whose every step is the test's."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self.got = b""

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.sock, data)

    def end(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    async def read(self, size_bytes: int = 65536) -> bytes:
        """Some bytes, or none: the server ended its side. Raises ConnectionResetError when it reset the connection."""
        async with asyncio.timeout(SOON_S):
            data = await self.loop.sock_recv(self.sock, size_bytes)
        self.got += data
        return data

    async def read_to_end(self) -> bytes:
        while await self.read():
            pass
        return self.got

    async def read_until(self, mark: bytes) -> bytes:
        while mark not in self.got:
            assert await self.read(), f"the connection ended before {mark!r}: {self.got!r}"
        return self.got

    async def answers(self, *methods: str) -> list[tuple[int, dict[str, str], bytes]]:
        """Status, fields and body of the next answers, one for each request method, as h11 understands them."""
        found = []
        connection = h11.Connection(h11.CLIENT)
        if self.got:
            connection.receive_data(self.got)
        for at, method in enumerate(methods):
            if at:
                connection.start_next_cycle()
            connection.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
            connection.send(h11.EndOfMessage())
            body = b""
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    connection.receive_data(await self.read())
                elif isinstance(event, h11.Response):
                    head = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                else:
                    raise AssertionError(event)
            fields = {name.decode(): value.decode("latin-1") for name, value in head.headers}
            found.append((head.status_code, fields, body))
        self.got = connection.trailing_data[0]
        return found


class Server:
    """Listens, makes an H1Connection of each client, and counts what becomes of it."""

    def __init__(self, serve: Callable[[Exchange], Awaitable[None]], limits: HeadLimits, address: str | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.wheel = TimerWheel(0.02, self.loop.time())
        self.limits, self.address, self.serve = limits, address, serve
        self.buffer = memoryview(bytearray(65536))
        self.connections: list[H1Connection] = []
        self.closed: list[H1Connection] = []
        self.exchanges: list[Exchange] = []
        self.faults: list[BaseException] = []
        """What a test found wrong inside its coroutine, where it would only be logged."""
        if address is None:
            self.listener = socket.create_server(("127.0.0.1", 0))
        else:
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(address)
            self.listener.listen()

    async def count(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        try:
            await self.serve(exchange)
        except (AssertionError, pytest.fail.Exception) as fault:
            self.faults.append(fault)
            raise

    def new(self) -> H1Connection:
        connection = H1Connection(
            loop=self.loop,
            on_request=self.count,
            peer="127.0.0.1:9",
            local="127.0.0.1:8",
            scheme="http",
            limits=self.limits,
            body_limits=GatewayLimits(),
            wheel=self.wheel,
            buffer=self.buffer,
            on_closed=self.closed.append,
        )
        self.connections.append(connection)
        return connection

    @asynccontextmanager
    async def client(self, receive_bytes: int | None = None) -> AsyncIterator[Client]:
        sock = socket.socket(self.listener.family, socket.SOCK_STREAM)
        with sock:
            if receive_bytes is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            sock.setblocking(False)
            await self.loop.sock_connect(sock, self.listener.getsockname())
            accepted, _ = self.listener.accept()
            if receive_bytes is not None:
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, receive_bytes)
            accepted.setblocking(False)
            await self.loop.connect_accepted_socket(self.new, accepted)
            yield Client(sock)


@asynccontextmanager
async def serving(
    serve: Callable[[Exchange], Awaitable[None]], limits: HeadLimits = LIMITS, *, address: str | None = None
) -> AsyncIterator[Server]:
    server = Server(serve, limits, address)
    server.wheel.start(server.loop)
    with server.listener:
        try:
            yield server
            await until(lambda: len(server.closed) == len(server.connections))
            assert not server.faults
            assert len(server.wheel) == 0
        finally:
            server.wheel.stop()
            for connection in server.connections:
                connection.abort()


async def hello(exchange: Exchange) -> None:
    await exchange.respond(200, (("X-Path", exchange.request.path),), b"hello")


# --- requests and answers


def test_request_is_answered_with_length_and_date(run: Run):
    async def main() -> None:
        async with serving(hello) as server, server.client() as client:
            await client.send(b"GET /a%20b HTTP/1.1\r\nHost: a\r\n\r\n")
            ((status, fields, body),) = await client.answers("GET")
            assert (status, body) == (200, b"hello")
            assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", fields.pop("date"))
            assert fields == {"x-path": "/a b", "content-length": "5"}
            assert server.exchanges[0].request.peer == "127.0.0.1:9"
            limits = server.connections[0]._transport.get_write_buffer_limits()
            assert limits == (LIMITS.write_low_bytes, LIMITS.write_high_bytes)

    run(main())


def test_an_answer_that_is_dated_keeps_its_date(run: Run):
    """It is a backend's."""

    async def dated(exchange: Exchange) -> None:
        await exchange.respond(200, b"Date-Not: x\r\ndate: long ago\r\n")

    async def main() -> None:
        async with serving(dated) as server, server.client() as client:
            await client.send(GET)
            await client.read_until(b"\r\n\r\n")
            assert re.findall(rb"(?i)date: (.*)\r\n", client.got) == [b"long ago"]

    run(main())


def test_several_requests_are_served_on_one_connection(run: Run):
    async def main() -> None:
        async with serving(hello) as server, server.client() as client:
            for path in ("/1", "/2", "/3"):
                await client.send(GET.replace(b"/ ", path.encode() + b" "))
                ((_, fields, _),) = await client.answers("GET")
                assert fields["x-path"] == path
            assert len(server.connections) == 1
            assert not server.closed

    run(main())


def test_every_request_says_where_it_came_from_and_to(run: Run):
    """CGI programs are told SERVER_ADDR and SERVER_PORT."""

    async def main() -> None:
        async with serving(hello) as server, server.client() as client:
            await client.send(GET + GET)
            client.end()
            await client.read_to_end()
            names = [(exchange.request.peer, exchange.request.local) for exchange in server.exchanges]
            assert names == [("127.0.0.1:9", "127.0.0.1:8")] * 2

    run(main())


def test_plain_heads_are_read_where_they_lie(run: Run, monkeypatch):
    """The careful reader never sees them, neither the first nor one that came with another."""

    def feed(self: HeadReader, data: bytes) -> None:
        raise AssertionError(data)

    async def main() -> None:
        monkeypatch.setattr(HeadReader, "feed", feed)
        async with serving(hello) as server, server.client() as client:
            await client.send(GET + GET)
            answers = await client.answers("GET", "GET")
            assert [status for status, _, _ in answers] == [200, 200]
            client.end()
            await client.read_to_end()
            assert len(server.exchanges) == 2

    run(main())


def test_head_in_single_bytes_is_served_once(run: Run):
    async def main() -> None:
        async with serving(hello) as server, server.client() as client:
            for at in range(len(GET)):
                await client.send(GET[at : at + 1])
                await asyncio.sleep(0)
            assert (await client.answers("GET"))[0][0] == 200
            assert len(server.exchanges) == 1

    run(main())


def test_heads_of_two_connections_do_not_mix_in_the_shared_buffer(run: Run):
    async def main() -> None:
        async with serving(hello) as server, server.client() as one, server.client() as two:
            await one.send(b"GET /one HTTP/1.1\r\nHo")
            await two.send(b"GET /two HTTP/1.1\r\nHo")
            await until(lambda: all(connection._reader is not None for connection in server.connections))
            await one.send(b"st: a\r\n\r\n")
            await two.send(b"st: a\r\n\r\n")
            assert (await one.answers("GET"))[0][1]["x-path"] == "/one"
            assert (await two.answers("GET"))[0][1]["x-path"] == "/two"

    run(main())


def test_pipelined_requests_are_answered_in_order_and_one_at_a_time(run: Run):
    async def main() -> None:
        running = 0

        async def serve(exchange: Exchange) -> None:
            nonlocal running
            running += 1
            assert running == 1
            await asyncio.sleep(0)
            await hello(exchange)
            await asyncio.sleep(0)
            running -= 1

        async with serving(serve) as server, server.client() as client:
            await client.send(b"".join(GET.replace(b"/ ", b"/%d " % n) for n in range(50)))
            answers = await client.answers(*["GET"] * 50)
            assert [fields["x-path"] for _, fields, _ in answers] == [f"/{n}" for n in range(50)]

    run(main())


def test_requests_sent_while_one_is_served_wait_and_cost_one_read(run: Run):
    """A client cannot make us hold more than a read, however much it sends ahead."""

    async def main() -> None:
        go = asyncio.Event()

        async def serve(exchange: Exchange) -> None:
            await go.wait()
            await hello(exchange)

        async with serving(serve) as server, server.client() as client:
            await client.send(GET)
            await until(lambda: server.exchanges)
            sending = asyncio.create_task(client.send(GET * 20_000))
            (connection,) = server.connections
            await until(lambda: connection._pending)
            for _ in range(100):
                await asyncio.sleep(0)
                assert len(connection._pending) <= len(server.buffer)
            assert len(server.exchanges) == 1
            sending.cancel()
            go.set()
            assert [status for status, _, _ in await client.answers(*["GET"] * 100)] == [200] * 100
            client.reset()

    run(main())


@pytest.mark.parametrize("way", ["respond", "refuse"])
def test_pipelined_client_that_reads_nothing_is_not_served_on(run: Run, way):
    """Answers do not pile up: the next one waits until the client takes those before."""

    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            if way == "respond":
                await exchange.respond(200, (), bytes(100_000))
            else:
                exchange.refuse(404, "x" * 99_999)

        async with serving(serve) as server, server.client(receive_bytes=16384) as client:
            await client.send(GET * 20)
            (connection,) = server.connections
            await until(lambda: connection._is_write_paused)
            for _ in range(100):
                await asyncio.sleep(0)
            assert connection._transport.get_write_buffer_size() < 2 * 100_000 + LIMITS.write_high_bytes
            assert len(server.exchanges) < 10
            answers = await client.answers(*["GET"] * 20)
            assert [len(body) for _, _, body in answers] == [100_000] * 20

    run(main())


@pytest.mark.parametrize("connection", [b"close", b"Close", b"keep-alive, close"])
def test_connection_close_is_honoured(run: Run, connection):
    async def main() -> None:
        async with serving(hello) as server, server.client() as client:
            await client.send(GET[:-2] + b"Connection: " + connection + b"\r\n\r\n" + GET)
            ((status, fields, _),) = await client.answers("GET")
            assert (status, fields["connection"]) == (200, "close")
            assert await client.read_to_end() == b""
            assert len(server.exchanges) == 1
            assert server.connections[0]._pending == b""  # and is not kept while the connection lingers

    run(main())


def test_server_can_close_after_an_answer(run: Run):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            await exchange.respond(200, close=True)

        async with serving(serve) as server, server.client() as client:
            await client.send(GET)
            ((_, fields, _),) = await client.answers("GET")
            assert fields["connection"] == "close"
            assert await client.read() == b""

    run(main())


@pytest.mark.parametrize("way", ["respond", "start"])
def test_head_gets_the_length_and_no_body(run: Run, way, caplog):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            if way == "respond":
                await exchange.respond(200, (), b"hello")
            else:
                await exchange.start(200, (), 5)
                await exchange.write(b"hello")

        async with serving(serve) as server, server.client() as client:
            await client.send(b"HEAD" + GET[3:] + GET)
            head, get = await client.answers("HEAD", "GET")
            assert (head[1]["content-length"], head[2]) == ("5", b"")
            assert get[2] == b"hello"

    run(main())
    assert not caplog.records


@pytest.mark.parametrize("status", [204, 304])
def test_bodiless_status_has_neither_body_nor_length(run: Run, status):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            await exchange.respond(status, (("ETag", '"1"'),), b"no")

        async with serving(serve) as server, server.client() as client:
            await client.send(GET * 2)
            for answer in await client.answers("GET", "GET"):
                assert (answer[0], answer[2], answer[1]["etag"]) == (status, b"", '"1"')
                assert "content-length" not in answer[1]

    run(main())


def test_answer_is_streamed_at_the_pace_of_the_client(run: Run):
    """A slow reader costs the high-water mark and one chunk, and gets every byte."""

    async def main() -> None:
        chunks = [bytes([n]) * 65536 for n in range(20)]
        most_bytes = 0

        async def serve(exchange: Exchange) -> None:
            nonlocal most_bytes
            await exchange.start(200, (), 20 * 65536)
            for chunk in chunks:
                await exchange.write(chunk)
                most_bytes = max(most_bytes, exchange.connection._transport.get_write_buffer_size())

        async with serving(serve) as server, server.client(receive_bytes=16384) as client:
            await client.send(GET)
            await until(lambda: server.connections[0]._is_write_paused)
            ((_, _, body),) = await client.answers("GET")
            assert body == b"".join(chunks)
            assert 0 < most_bytes <= LIMITS.write_high_bytes + 65536 + 1000

    run(main())


def test_empty_streamed_answer_is_whole_at_once(run: Run):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            await exchange.start(200, (), 0)

        async with serving(serve) as server, server.client() as client:
            await client.send(GET * 2)
            assert [body for _, _, body in await client.answers("GET", "GET")] == [b"", b""]

    run(main())


def test_long_answer_lets_other_connections_have_their_turn(run: Run):
    """A client that reads as fast as we write must not hold the loop: each write is one turn at most."""

    async def main() -> None:
        turns = 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            if turns < 100:
                asyncio.get_running_loop().call_soon(turn)

        async def serve(exchange: Exchange) -> None:
            await exchange.start(200, (), 10)
            turn()
            for _ in range(10):
                await exchange.write(b"x")
            assert turns >= 10

        async with serving(serve) as server, server.client() as client:
            await client.send(GET)
            assert (await client.answers("GET"))[0][2] == b"x" * 10

    run(main())


def test_unix_socket_is_served_likewise(run: Run, tmp_path):
    async def main() -> None:
        async with serving(hello, address=str(tmp_path / "s")) as server, server.client() as client:
            await client.send(GET + b"nonsense\r\n\r\n")
            assert [status for status, _, _ in await client.answers("GET", "GET")] == [200, 400]
            assert await client.read() == b""

    run(main())


# --- mistakes of the one who serves


def test_exception_is_500_logged_and_the_end(run: Run, caplog):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            raise ZeroDivisionError

        async with serving(serve) as server, server.client() as client:
            await client.send(GET * 2)
            ((status, fields, body),) = await client.answers("GET")
            assert (status, fields["connection"], body) == (500, "close", b"the server failed\n")
            assert await client.read() == b""
            assert len(server.exchanges) == 1

    run(main())
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("wstunnel", logging.ERROR)
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_no_answer_is_500_and_logged(run: Run, caplog):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            pass

        async with serving(serve) as server, server.client() as client:
            await client.send(GET)
            assert (await client.answers("GET"))[0][0] == 500

    run(main())
    assert "no answer to /" in caplog.text


@pytest.mark.parametrize("raises", [True, False])
def test_answer_that_stays_short_ends_the_connection(run: Run, caplog, raises):
    """So that the client sees the truncation, instead of taking the next answer for the rest."""

    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            await exchange.start(200, (), 10)
            await exchange.write(b"hello")
            if raises:
                raise ZeroDivisionError

        async with serving(serve) as server, server.client() as client:
            await client.send(GET * 2)
            try:
                got = await client.read_to_end()
            except ConnectionResetError:
                got = client.got
            assert got.count(b"HTTP/1.1") <= 1
            assert len(server.exchanges) == 1

    run(main())


def test_more_bytes_than_announced_are_not_sent(run: Run, caplog):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            await exchange.start(200, (), 5)
            await exchange.write(b"hello")
            with pytest.raises(RuntimeError, match="only 0 are missing"):
                await exchange.write(b"!")

        async with serving(serve) as server, server.client() as client:
            await client.send(GET * 2)
            assert [body for _, _, body in await client.answers("GET", "GET")] == [b"hello"] * 2

    run(main())


async def refuse(exchange: Exchange) -> None:
    exchange.refuse(400, "no")


ANSWERS: dict[str, Callable[[Exchange], Awaitable[object]]] = {
    "respond": lambda exchange: exchange.respond(200),
    "start": lambda exchange: exchange.start(200, (), 7),
    "refuse": refuse,
    "take_over": lambda exchange: exchange.take_over(SWITCHING),
}


@pytest.mark.parametrize("second", ANSWERS)
def test_request_is_answered_once(run: Run, second):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            await hello(exchange)
            with pytest.raises(RuntimeError, match="answered once"):
                await ANSWERS[second](exchange)

        async with serving(serve) as server, server.client() as client:
            await client.send(GET * 2)
            assert [body for _, _, body in await client.answers("GET", "GET")] == [b"hello"] * 2

    run(main())


def test_field_that_would_split_the_answer_is_500(run: Run, caplog):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            await exchange.respond(200, (("X", "a\r\nY: b"),))

        async with serving(serve) as server, server.client() as client:
            await client.send(GET)
            ((status, fields, _),) = await client.answers("GET")
            assert status == 500
            assert "y" not in fields

    run(main())
    assert "not a field" in caplog.text


def test_exception_after_the_answer_is_logged_and_harms_nobody(run: Run, caplog):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            await hello(exchange)
            raise ZeroDivisionError

        async with serving(serve) as server, server.client() as client:
            await client.send(GET * 2)
            assert [status for status, _, _ in await client.answers("GET", "GET")] == [200, 200]

    run(main())
    assert len(caplog.records) == 2


# --- refusals


def test_peer_error_is_answered_with_its_status_fields_and_text(run: Run, caplog):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            raise PeerError("not that", status=405, headers=(("Allow", "GET"),))

        async with serving(serve) as server, server.client() as client:
            await client.send(GET * 2)
            for status, fields, body in await client.answers("GET", "GET"):
                assert (status, fields["allow"], body) == (405, "GET", b"not that\n")
                assert fields["content-type"] == "text/plain"

    run(main())
    assert not caplog.records


def test_refusal_is_sent_without_waiting(run: Run):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            exchange.refuse(503, "no backend", (("Retry-After", "1"),))

        async with serving(serve) as server, server.client() as client:
            await client.send(GET * 2)
            for status, fields, body in await client.answers("GET", "GET"):
                assert (status, fields["retry-after"], body) == (503, "1", b"no backend\n")
                assert "connection" not in fields

    run(main())


def test_refused_upgrade_ends_the_connection(run: Run):
    """What follows may be frames that look like requests (RFC 9931): they are never read."""

    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            raise PeerError("no", status=403)

        async with serving(serve) as server, server.client() as client:
            await client.send(UPGRADE + GET)
            ((status, fields, _),) = await client.answers("GET")
            assert (status, fields["connection"]) == (403, "close")
            assert await client.read() == b""
            assert len(server.exchanges) == 1

    run(main())


BAD_HEADS = [
    (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    (b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (b"GET /" + b"a" * 16384, 431),
    (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 100 + b"\r\n", 431),
]


def test_bad_head_gets_one_answer_and_the_end(run: Run):
    async def main() -> None:
        async with serving(hello) as server:
            for head, status in BAD_HEADS:
                server.exchanges.clear()
                async with server.client() as client:
                    await client.send(GET + head + GET)
                    first, second = await client.answers("GET", "GET")
                    assert (first[0], second[0], second[1]["connection"]) == (200, status, "close"), head
                    assert await client.read() == b""
                    assert len(server.exchanges) == 1

    run(main())


def test_refusal_survives_a_client_that_goes_on_sending(run: Run):
    """A plain close with unread input would reset the connection and could destroy the answer on its way."""

    async def main() -> None:
        async with serving(hello) as server, server.client() as client:
            await client.send(b"nonsense\r\n\r\n")
            await client.send(bytes(4_000_000))
            client.end()
            got = await client.read_to_end()
            assert got.startswith(b"HTTP/1.1 400 ")
            assert got.endswith(b"malformed request head: Invalid method encountered\n")

    run(main())


def test_refusals_of_heads_are_logged_with_the_peer(run: Run, caplog):
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with serving(hello) as server, server.client() as client:
            await client.send(b"GET /\x1b[31m HTTP/1.1\r\n\r\n")
            await client.read_to_end()

    run(main())
    assert "127.0.0.1:9: 400" in caplog.text
    assert "\x1b" not in caplog.text


# --- deadlines


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: "])
def test_head_that_does_not_come_is_408(run: Run, sent):
    async def main() -> None:
        async with serving(hello, replace(LIMITS, head_timeout_s=SHORT_S)) as server, server.client() as client:
            started_s = time.monotonic()
            await client.send(sent)
            ((status, fields, _),) = await client.answers("GET")
            assert (status, fields["connection"]) == (408, "close")
            assert time.monotonic() - started_s >= SHORT_S - 0.05
            assert await client.read() == b""

    run(main())


def test_trickled_head_is_408_all_the_same(run: Run):
    async def main() -> None:
        async with serving(hello, replace(LIMITS, head_timeout_s=SHORT_S)) as server, server.client() as client:
            started_s = time.monotonic()

            async def trickle() -> None:
                for byte in b"GET /" + b"a" * 10_000:
                    await client.send(bytes([byte]))
                    await asyncio.sleep(0.01)

            trickling = asyncio.create_task(trickle())
            assert (await client.answers("GET"))[0][0] == 408
            assert time.monotonic() - started_s < SOON_S / 2
            trickling.cancel()

    run(main())


def test_deadline_of_a_later_head_starts_with_its_first_byte(run: Run):
    async def main() -> None:
        limits = replace(LIMITS, head_timeout_s=SHORT_S, keep_alive_s=20.0)
        async with serving(hello, limits) as server, server.client() as client:
            await client.send(GET)
            await client.answers("GET")
            idle_until_s = time.monotonic() + 2 * SHORT_S
            await until(lambda: time.monotonic() > idle_until_s)
            await client.send(GET)
            assert (await client.answers("GET"))[0][0] == 200
            await client.send(b"G")
            assert (await client.answers("GET"))[0][0] == 408

    run(main())


def test_deadline_of_a_pipelined_head_starts_when_its_turn_comes(run: Run):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            serve_until_s = time.monotonic() + 2 * SHORT_S
            await until(lambda: time.monotonic() > serve_until_s)
            await hello(exchange)

        async with serving(serve, replace(LIMITS, head_timeout_s=SHORT_S)) as server, server.client() as client:
            await client.send(GET + GET[:5])
            first, second = await client.answers("GET", "GET")
            assert (first[0], second[0]) == (200, 408)

    run(main())


def test_idle_connection_is_closed_without_a_word(run: Run):
    async def main() -> None:
        async with serving(hello, replace(LIMITS, keep_alive_s=SHORT_S)) as server, server.client() as client:
            await client.send(GET)
            await client.answers("GET")
            assert await client.read() == b""
            assert client.got == b""

    run(main())


def test_client_that_takes_nothing_of_its_answer_is_dropped(run: Run):
    async def main() -> None:
        cancelled = False

        async def serve(exchange: Exchange) -> None:
            nonlocal cancelled
            await exchange.start(200, (), 1 << 40)
            try:
                while True:
                    await exchange.write(bytes(65536))
            except asyncio.CancelledError:
                cancelled = True
                raise

        async with serving(serve, replace(LIMITS, write_stall_s=SHORT_S)) as server, server.client(4096) as client:
            await client.send(GET)
            await until(lambda: server.closed)
            assert cancelled

    run(main())


def test_client_that_takes_its_answer_slowly_is_not_dropped(run: Run):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            exchange.refuse(404, "x" * 300_000, close=True)

        limits = replace(
            LIMITS, write_stall_s=SHORT_S, linger_s=SHORT_S, write_high_bytes=200_000, write_low_bytes=200_000
        )
        async with serving(serve, limits) as server, server.client(4096) as client:
            started_s = time.monotonic()
            await client.send(GET)
            while time.monotonic() - started_s < 4 * SHORT_S:
                await client.read(1024)
                await asyncio.sleep(0.005)
            got = await client.read_to_end()
            assert len(got) > 300_000

    run(main())


def test_stall_that_ended_does_not_count_later(run: Run):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            await exchange.start(200, (), 1_000_001)
            await exchange.write(bytes(1_000_000))
            think_until_s = time.monotonic() + 2 * SHORT_S
            await until(lambda: time.monotonic() > think_until_s)
            await exchange.write(b"!")

        async with serving(serve, replace(LIMITS, write_stall_s=SHORT_S)) as server, server.client(16384) as client:
            await client.send(GET)
            await until(lambda: server.connections[0]._is_write_paused)
            ((_, _, body),) = await client.answers("GET")
            assert len(body) == 1_000_001

    run(main())


def test_client_that_does_not_take_the_last_answer_is_dropped(run: Run):
    """Also when nothing but the flush is left to wait for."""

    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            exchange.refuse(400, "x" * 3_000_000)

        limits = replace(LIMITS, write_stall_s=SHORT_S)
        async with serving(serve, limits) as server, server.client(4096) as client:
            await client.send(UPGRADE)
            await until(lambda: server.closed)

    run(main())


def test_client_that_never_closes_is_closed_after_lingering(run: Run):
    async def main() -> None:
        async with serving(hello, replace(LIMITS, linger_s=SHORT_S)) as server, server.client() as client:
            await client.send(b"nonsense\r\n\r\n")
            await client.read_to_end()
            assert not server.closed
            await until(lambda: server.closed)

    run(main())


# --- clients that leave


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHo"])
def test_end_in_the_middle_of_a_head_just_closes(run: Run, sent):
    async def main() -> None:
        async with serving(hello) as server, server.client() as client:
            await client.send(sent)
            client.end()
            assert await client.read_to_end() == b""
            await until(lambda: server.closed)
            assert not server.exchanges

    run(main())


@pytest.mark.parametrize("requests", [1, 3])
def test_half_closed_client_still_gets_its_answers(run: Run, requests):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            if requests == 1:
                await until(lambda: exchange.connection._is_at_eof)
            await hello(exchange)

        async with serving(serve) as server, server.client() as client:
            await client.send(GET * requests)
            client.end()
            answers = await client.answers(*["GET"] * requests)
            assert requests != 1 or answers[0][1]["connection"] == "close"
            assert [body for _, _, body in answers] == [b"hello"] * requests
            assert await client.read() == b""

    run(main())


def test_half_closed_client_gets_a_long_last_answer_at_its_pace(run: Run):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            await until(lambda: exchange.connection._is_at_eof)
            await exchange.respond(200, (), bytes(500_000))

        async with serving(serve) as server, server.client(16384) as client:
            await client.send(GET)
            client.end()
            ((_, _, body),) = await client.answers("GET")
            assert len(body) == 500_000
            assert await client.read() == b""

    run(main())


@pytest.mark.parametrize("more", [b"", GET])
def test_client_that_goes_away_cancels_what_it_asked_for(run: Run, more):
    """By a reset while we wait; behind pipelined bytes it shows when we write."""

    async def main() -> None:
        cancelled, go = False, asyncio.Event()

        async def serve(exchange: Exchange) -> None:
            nonlocal cancelled
            try:
                await go.wait()
                await exchange.start(200, (), 1 << 40)
                while True:
                    await exchange.write(bytes(1000))
            except asyncio.CancelledError:
                cancelled = True
                raise

        async with serving(serve) as server, server.client() as client:
            await client.send(GET + more)
            await until(lambda: server.exchanges)
            client.reset()
            if more:
                go.set()
            await until(lambda: server.closed)
            assert cancelled
            assert len(server.exchanges) == 1

    run(main())


def test_client_that_goes_away_after_its_answer_cancels_nothing(run: Run):
    """What is left to do then, such as a line in the log, is done."""

    async def main() -> None:
        finished = False

        async def serve(exchange: Exchange) -> None:
            nonlocal finished
            await hello(exchange)
            await until(exchange.connection._transport.is_closing)
            await asyncio.sleep(0.01)
            assert not server.closed
            finished = True

        async with serving(serve) as server, server.client() as client:
            await client.send(GET)
            await client.read_until(b"hello")
            client.reset()
            await until(lambda: server.closed)
            assert finished

    run(main())


def test_client_that_goes_away_with_its_last_bytes_unread_does_not_hang_the_coroutine(run: Run):
    async def main() -> None:
        finished = False

        async def serve(exchange: Exchange) -> None:
            nonlocal finished
            await exchange.start(200, (), 5_000_000)
            await exchange.write(bytes(5_000_000))
            finished = True

        async with serving(serve) as server, server.client(4096) as client:
            await client.send(GET)
            await until(lambda: server.connections[0]._is_write_paused)
            client.reset()
            await until(lambda: server.closed)
            assert finished

    run(main())


def test_coroutine_that_does_not_heed_its_cancellation_cannot_write(run: Run):
    async def main() -> None:
        refused = 0

        async def serve(exchange: Exchange) -> None:
            nonlocal refused
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                for answer in (exchange.respond(200), exchange.start(200, (), 1)):
                    try:
                        await answer
                    except (ConnectionResetError, RuntimeError):
                        refused += 1

        async with serving(serve) as server, server.client() as client:
            await client.send(GET)
            await until(lambda: server.exchanges)
            client.reset()
            await until(lambda: server.closed)
            assert refused == 2

    run(main())


def test_cancelled_coroutine_ends_the_connection(run: Run):
    """By the one who made it serve, when the server stops."""

    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

        async with serving(serve) as server, server.client() as client:
            await client.send(GET)
            await until(lambda: server.closed)

    run(main())


# --- taking over


class Echo(asyncio.BufferedProtocol):
    """A taker: sends everything back, from a buffer of its own."""

    def __init__(self) -> None:
        self.buffer = bytearray(1024)
        self.is_lost = False
        self.got = b""

    def take(self, taken: Taken) -> None:
        self.transport = taken.transport
        taken.transport.set_protocol(self)
        taken.transport.set_write_buffer_limits(65536, 16384)
        taken.transport.write(taken.leftover)
        if taken.is_at_eof:
            taken.transport.close()
        taken.transport.resume_reading()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.got += self.buffer[:nbytes]
        self.transport.write(bytes(self.buffer[:nbytes]))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True


class Taking:
    """Takes over every upgrade."""

    def __init__(self, before: Callable[[Exchange], Awaitable[None]] | None = None) -> None:
        self.echo = Echo()
        self.before = before
        self.taken: Taken | None = None

    async def __call__(self, exchange: Exchange) -> None:
        if not exchange.request.wants_websocket:
            await hello(exchange)
            return
        if self.before is not None:
            await self.before(exchange)
        self.taken = await exchange.take_over(SWITCHING)
        assert self.taken.transport.get_write_buffer_size() == 0
        assert not self.taken.transport.is_reading()
        self.echo.take(self.taken)


@asynccontextmanager
async def taking(taking: Taking, limits: HeadLimits = LIMITS) -> AsyncIterator[Server]:
    """As `serving`, but every connection ends at its taker and none at us."""
    server = Server(taking, limits, None)
    server.wheel.start(server.loop)
    with server.listener:
        yield server
        await until(lambda: taking.echo.is_lost)
    assert not server.faults
    assert not server.closed
    assert len(server.wheel) == 0
    server.wheel.stop()


HEAD_101 = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


@pytest.mark.parametrize("waits", [False, True])
def test_an_upgrade_is_served_without_a_task_until_it_waits(run: Run, waits):
    async def main() -> None:
        tasks: list[object] = []

        async def refuse(exchange: Exchange) -> None:
            tasks.append(asyncio.current_task())
            if waits:
                await asyncio.sleep(0)
                tasks.append(asyncio.current_task())
            raise PeerError("no", status=403)

        async with serving(refuse) as server, server.client() as client:
            await client.send(UPGRADE)
            assert (await client.answers("GET"))[0][0] == 403
            assert tasks[0] is None
            assert len(tasks) == 1 + waits
            assert tasks[-1] is not None or not waits
            await client.read_to_end()

    run(main())


def test_pipelined_requests_are_not_served_inside_each_other(run: Run):
    """A thousand in one read: each in a task of its own, however little it waits."""

    async def main() -> None:
        async def at_once(exchange: Exchange) -> None:
            exchange.refuse(200, "hello")

        async with serving(at_once) as server, server.client() as client:
            await client.send(GET * 1000)
            assert [status for status, _, _ in await client.answers(*["GET"] * 1000)] == [200] * 1000

    run(main())


def test_taken_connection_speaks_with_its_new_protocol(run: Run):
    async def main() -> None:
        echo = Taking()
        async with taking(echo) as server, server.client() as client:
            await client.send(UPGRADE)
            await client.read_until(HEAD_101)
            for n in range(20):
                await client.send(b"<%d>" % n)
                await client.read_until(b"<%d>" % n)
            assert client.got == HEAD_101 + b"".join(b"<%d>" % n for n in range(20))

    run(main())


def test_bytes_behind_the_upgrade_go_to_the_taker(run: Run):
    async def main() -> None:
        echo = Taking()
        async with taking(echo) as server, server.client() as client:
            await client.send(UPGRADE + b"\x81\x85early")
            await client.read_until(b"early")
            assert echo.taken is not None
            assert echo.taken.leftover == b"\x81\x85early"
            await client.send(b"late")
            assert await client.read_until(b"late") == HEAD_101 + b"\x81\x85earlylate"

    run(main())


@pytest.mark.parametrize("first", [b"", b"\x81\x85early"])
def test_no_byte_is_lost_that_comes_while_the_backend_is_connected(run: Run, first):
    """Read into the pending bytes, or left in the socket: the taker sees all of it, once and in order."""

    async def main() -> None:
        go = asyncio.Event()
        data = bytes(range(256)) * 2000

        async def wait(exchange: Exchange) -> None:
            await go.wait()

        echo = Taking(wait)
        async with taking(echo) as server, server.client() as client:
            await client.send(UPGRADE + first)
            await until(lambda: server.exchanges)
            sending = asyncio.create_task(client.send(data))
            await until(lambda: server.connections[0]._pending)
            go.set()
            reading = asyncio.create_task(client.read_until(HEAD_101 + first + data))
            await sending
            await reading
            assert echo.taken is not None
            assert len(echo.taken.leftover) <= len(server.buffer)

    run(main())


def test_upgrade_after_plain_requests_waits_for_their_answers_to_leave(run: Run):
    async def main() -> None:
        echo = Taking()

        async def serve(exchange: Exchange) -> None:
            if exchange.request.wants_websocket:
                await echo(exchange)
            else:
                exchange.refuse(404, "x" * 3_000_000)

        server = Server(serve, LIMITS, None)
        with server.listener:
            async with server.client(4096) as client:
                await client.send(GET + UPGRADE + b"early")
                (connection,) = server.connections
                await until(lambda: connection._is_write_paused)
                await client.read_until(b"\r\n\r\n")
                assert echo.taken is None
                ((_, _, body),) = await client.answers("GET")
                assert len(body) == 3_000_001
                assert await client.read_until(b"early") == HEAD_101 + b"early"
            await until(lambda: echo.echo.is_lost)

    run(main())


def test_101_itself_waits_for_a_slow_client(run: Run):
    """The taker may write to the socket directly: nothing of ours may be left behind."""

    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            big = tuple((f"X-{n}", "x" * 60_000) for n in range(20))
            taken = await exchange.take_over(Agreed(big))
            assert taken.transport.get_write_buffer_size() == 0
            echo.take(taken)

        echo = Echo()
        server = Server(serve, LIMITS, None)
        server.wheel.start(server.loop)
        with server.listener:
            async with server.client(4096) as client:
                await client.send(UPGRADE)
                await until(lambda: server.connections[0]._is_write_paused)
                await client.read_until(b"\r\n\r\n")
                await client.send(b"late")
                await client.read_until(b"late")
            await until(lambda: echo.is_lost)
        assert len(server.wheel) == 0
        server.wheel.stop()

    run(main())


@pytest.mark.parametrize("leaves", ["reset", "stall"])
def test_client_that_leaves_while_the_101_waits_cancels(run: Run, leaves):
    async def main() -> None:
        cancelled = False

        async def serve(exchange: Exchange) -> None:
            nonlocal cancelled
            try:
                await exchange.take_over(Agreed(tuple((f"X-{n}", "x" * 60_000) for n in range(20))))
            except asyncio.CancelledError:
                cancelled = True
                raise

        async with serving(serve, replace(LIMITS, write_stall_s=SHORT_S)) as server, server.client(4096) as client:
            await client.send(UPGRADE)
            await until(lambda: server.connections[0]._is_write_paused)
            if leaves == "reset":
                client.reset()
            await until(lambda: server.closed)
            assert cancelled

    run(main())


def test_taker_learns_that_the_client_has_ended_its_side(run: Run):
    async def main() -> None:
        async def wait(exchange: Exchange) -> None:
            await until(lambda: exchange.connection._is_at_eof)

        echo = Taking(wait)
        async with taking(echo) as server, server.client() as client:
            await client.send(UPGRADE)
            client.end()
            assert await client.read_to_end() == HEAD_101
            assert echo.taken is not None
            assert echo.taken.is_at_eof

    run(main())


def test_end_behind_early_frames_comes_to_the_taker(run: Run):
    """Reading was paused by the frames, so the end is still in the socket."""

    async def main() -> None:
        echo = Taking()
        async with taking(echo) as server, server.client() as client:
            await client.send(UPGRADE + b"early")
            client.end()
            assert await client.read_to_end() == HEAD_101 + b"early"
            assert echo.taken is not None
            assert not echo.taken.is_at_eof

    run(main())


def test_deadlines_end_with_the_taking(run: Run):
    async def main() -> None:
        limits = HeadLimits(head_timeout_s=SHORT_S, keep_alive_s=SHORT_S, write_stall_s=SHORT_S, linger_s=SHORT_S)
        async with taking(Taking(), limits) as server, server.client() as client:
            await client.send(UPGRADE)
            await client.read_until(HEAD_101)
            assert len(server.wheel) == 0
            await client.send(b"still here")
            await client.read_until(b"still here")

    run(main())


def test_connection_that_is_closing_is_not_taken(run: Run):
    async def main() -> None:
        cancelled = False

        async def serve(exchange: Exchange) -> None:
            nonlocal cancelled
            exchange.connection.abort()
            try:
                await exchange.take_over(SWITCHING)
            except asyncio.CancelledError:
                cancelled = True
                raise

        async with serving(serve) as server, server.client() as client:
            await client.send(UPGRADE)
            await until(lambda: server.closed)
            assert cancelled

    run(main())


@pytest.mark.parametrize("raises", [True, False])
def test_connection_that_was_taken_and_then_dropped_is_closed(run: Run, caplog, raises):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            await exchange.take_over(SWITCHING)
            if raises:
                raise ZeroDivisionError

        async with serving(serve) as server, server.client() as client:
            await client.send(UPGRADE)
            await until(lambda: server.closed)

    run(main())


# --- stopping


def test_draining_closes_what_is_idle_and_finishes_what_is_not(run: Run):
    async def main() -> None:
        go = asyncio.Event()

        async def serve(exchange: Exchange) -> None:
            if exchange.request.path == "/slow":
                await go.wait()
            await hello(exchange)

        async with (
            serving(serve) as server,
            server.client() as new,
            server.client() as idle,
            server.client() as busy,
            server.client() as half,
        ):
            await idle.send(GET)
            await idle.answers("GET")
            await busy.send(GET.replace(b"/ ", b"/slow ") + GET)
            await half.send(GET[:5])
            await until(lambda: len(server.exchanges) == 2 and server.connections[3]._reader is not None)

            for connection in server.connections:
                connection.drain()

            assert await new.read() == b""
            assert await idle.read() == b""
            go.set()
            ((status, fields, _),) = await busy.answers("GET")
            assert (status, fields["connection"]) == (200, "close")
            assert await busy.read() == b""
            await half.send(GET[5:])
            assert (await half.answers("GET"))[0][0] == 200
            assert await half.read() == b""
            assert len(server.exchanges) == 3

    run(main())


def test_drained_between_the_answer_and_the_end_of_the_coroutine_it_ends(run: Run):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            await hello(exchange)
            exchange.connection.drain()

        async with serving(serve) as server, server.client() as client:
            await client.send(GET)
            await client.answers("GET")
            assert await client.read() == b""

    run(main())


def test_drained_before_it_began_it_ends_at_once(run: Run):
    async def main() -> None:
        async with serving(hello) as server:
            ours, theirs = socket.socketpair()
            with theirs:
                ours.setblocking(False)
                theirs.setblocking(False)
                connection = server.new()
                connection.abort()
                connection.drain()
                await server.loop.connect_accepted_socket(lambda: connection, ours)
                assert await Client(theirs).read() == b""

    run(main())


def test_aborting_cancels_and_closes(run: Run):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            await asyncio.Event().wait()

        async with serving(serve) as server, server.client() as client:
            await client.send(GET)
            await until(lambda: server.exchanges)
            for connection in server.connections:
                connection.abort()
            await until(lambda: server.closed)
            server.connections[0].abort()
            server.connections[0].drain()

    run(main())


# --- what no loopback socket does at will


class Transport(asyncio.Transport):
    """Notes what is asked of it; `shutdown_fails` as asyncio's does on a connection that was reset."""

    def __init__(self, *, half_closes: bool = True, shutdown_fails: bool = False) -> None:
        super().__init__()
        self.half_closes, self.shutdown_fails = half_closes, shutdown_fails
        self.calls: list[str] = []
        self.sent = b""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: Any) -> None:
        self.sent += data

    def can_write_eof(self) -> bool:
        return self.half_closes

    def write_eof(self) -> None:
        self.calls.append("write_eof")
        if self.shutdown_fails:
            raise OSError(107, "Transport endpoint is not connected")

    def is_closing(self) -> bool:
        return "close" in self.calls or "abort" in self.calls

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")

    def resume_reading(self) -> None:
        self.calls.append("resume_reading")


def with_transport(transport: Transport, act: Callable[[H1Connection, Server], None]) -> None:
    async def main() -> None:
        server = Server(hello, LIMITS, None)
        server.listener.close()
        connection = server.new()
        connection.connection_made(transport)
        act(connection, server)
        connection.connection_lost(None)
        assert server.closed == [connection]
        assert len(server.wheel) == 0

    asyncio.run(main())


def arrive(connection: H1Connection, data: bytes) -> None:
    connection.get_buffer(-1)[: len(data)] = data
    connection.buffer_updated(len(data))


def test_coroutine_whose_last_bytes_were_lost_at_once_is_not_left_waiting():
    """The connection goes in the very turn in which the coroutine lets others have theirs."""

    async def main() -> None:
        finished = asyncio.Event()

        async def serve(exchange: Exchange) -> None:
            await exchange.start(200, (), 5)
            connection.pause_writing()
            asyncio.get_running_loop().call_soon(connection.connection_lost, None)
            await exchange.write(b"hello")
            finished.set()

        server = Server(serve, LIMITS, None)
        server.listener.close()
        connection = server.new()
        connection.connection_made(Transport())
        arrive(connection, GET)
        async with asyncio.timeout(SOON_S):
            await finished.wait()
        await until(lambda: server.closed)

    asyncio.run(main())


def test_connection_that_was_reset_before_our_half_close_is_dropped():
    transport = Transport(shutdown_fails=True)
    with_transport(transport, lambda connection, _: arrive(connection, b"nonsense\r\n"))
    assert transport.calls == ["write_eof", "abort"]


def test_tls_cannot_be_half_closed_and_is_closed_instead():
    def act(connection: H1Connection, server: Server) -> None:
        arrive(connection, b"nonsense\r\n")
        assert transport.calls == ["close"]
        assert not connection.eof_received()
        server.wheel.advance(server.loop.time() + LIMITS.linger_s + 1)  # a peer that does not answer close_notify
        assert transport.calls[-1] == "abort"

    transport = Transport(half_closes=False)
    with_transport(transport, act)
    assert transport.sent.startswith(b"HTTP/1.1 400 ")


def test_end_is_not_touched_on_a_transport_that_is_closing_already():
    def act(connection: H1Connection, server: Server) -> None:
        transport.abort()
        connection.drain()

    transport = Transport()
    with_transport(transport, act)
    assert "write_eof" not in transport.calls


def test_drain_closes_an_idle_connection_without_lingering():
    """A browser keeps idle connections for minutes, and need not notice a half-close at once."""
    transport = Transport()
    with_transport(transport, lambda connection, _: connection.drain())
    assert transport.calls == ["close"]


# --- bodies of requests


def post(body: bytes, *fields: bytes, path: bytes = b"/") -> bytes:
    lines = (b"Host: a", *(fields or (b"Content-Length: %d" % len(body),)))
    return b"POST %b HTTP/1.1\r\n%b\r\n\r\n%b" % (path, b"\r\n".join(lines), body)


CHUNKED = b"Transfer-Encoding: chunked"


async def read_all(exchange: Exchange) -> bytes:
    pieces = []
    while piece := await exchange.read():
        pieces.append(piece)
    return b"".join(pieces)


async def echo(exchange: Exchange) -> None:
    await exchange.respond(200, (), await read_all(exchange))


async def say_nothing_of_it(exchange: Exchange) -> None:
    await exchange.respond(405)


@pytest.mark.parametrize(
    "wire",
    [post(b"hello"), post(b"3\r\nhel\r\n2;a=b\r\nlo\r\n0\r\nTrailer: x\r\n\r\n", CHUNKED)],
    ids=["by length", "by chunks"],
)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_body_is_read_and_the_next_request_behind_it(run: Run, wire, step):
    async def main() -> None:
        async with serving(echo) as server, server.client() as client:
            for at in range(0, len(wire + GET), step):
                await client.send((wire + GET)[at : at + step])
                await asyncio.sleep(0)
            (status, fields, body), (_, _, none) = await client.answers("POST", "GET")
            assert (status, body, none) == (200, b"hello", b"")
            assert "connection" not in fields
            assert len(server.exchanges) == 2

    run(main())


def test_a_body_is_not_read_faster_than_it_is_taken(run: Run):
    """One read is held; the rest waits in the kernel, and then at the client."""
    size = 8 << 20

    async def main() -> None:
        go = asyncio.Event()

        async def serve(exchange: Exchange) -> None:
            await go.wait()
            await exchange.respond(200, (), b"%d" % len(await read_all(exchange)))

        async with serving(serve) as server, server.client() as client:
            await client.send(post(b"", b"Content-Length: %d" % size))
            sending = asyncio.ensure_future(client.send(bytes(size)))
            await until(lambda: server.exchanges and len(server.connections[0]._pending) > 0)
            for _ in range(50):
                await asyncio.sleep(0)
                assert len(server.connections[0]._pending) <= len(server.buffer)
            assert not sending.done()
            go.set()
            await sending
            assert (await client.answers("POST"))[0][2] == b"%d" % size

    run(main())


def test_continue_is_said_when_the_body_is_wanted(run: Run):
    async def main() -> None:
        async with serving(echo) as server, server.client() as client:
            await client.send(post(b"", b"Content-Length: 2", b"Expect: 100-continue"))
            assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.got = b""
            await client.send(b"hi")
            assert (await client.answers("POST"))[0][2] == b"hi"

    run(main())


def test_continue_is_not_said_in_the_middle_of_an_answer(run: Run):
    """It would be taken for a part of it."""

    async def answer_then_read(exchange: Exchange) -> None:
        await exchange.start(200, (), 4)
        await exchange.write(b"so")
        await exchange.write(await exchange.read())

    async def main() -> None:
        async with serving(answer_then_read) as server, server.client() as client:
            await client.send(post(b"", b"Content-Length: 2", b"Expect: 100-continue"))
            await client.read_until(b"\r\n\r\nso")
            await client.send(b"on")
            ((status, _, body),) = await client.answers("POST")
            assert (status, body) == (200, b"soon")

    run(main())


def test_continue_is_not_said_when_the_body_is_there_or_not_wanted(run: Run):
    async def main() -> None:
        async with serving(echo) as server, server.client() as client:
            await client.send(post(b"hi", b"Content-Length: 2", b"Expect: 100-continue"))
            assert (await client.answers("POST"))[0][2] == b"hi"
        async with serving(say_nothing_of_it) as server, server.client() as client:
            await client.send(post(b"", b"Content-Length: 2", b"Expect: 100-continue"))
            ((status, fields, _),) = await client.answers("POST")
            assert (status, fields["connection"]) == (405, "close")

    run(main())


def test_a_body_that_nobody_wanted_is_dropped_when_it_is_there(run: Run):
    async def main() -> None:
        async with serving(say_nothing_of_it) as server, server.client() as client:
            await client.send(post(b"hello") + GET)
            answers = await client.answers("POST", "GET")
            assert [status for status, _, _ in answers] == [405, 405]

    run(main())


@pytest.mark.parametrize("wire", [post(b"hel", b"Content-Length: 5"), post(b"5\r\nhel", CHUNKED)])
def test_behind_a_body_that_nobody_read_comes_no_request(run: Run, wire):
    """Its rest would be taken for one."""

    async def main() -> None:
        async with serving(say_nothing_of_it) as server, server.client() as client:
            await client.send(wire)
            ((status, fields, _),) = await client.answers("POST")
            assert (status, fields["connection"]) == (405, "close")
            await client.send(b"lo" + GET)
            client.end()
            await client.read_to_end()
            assert len(server.exchanges) == 1

    run(main())


def test_a_malformed_chunk_is_refused_and_nothing_read_behind_it(run: Run):
    async def main() -> None:
        async with serving(echo) as server, server.client() as client:
            await client.send(post(b"3\r\nabcd\r\n" + GET, CHUNKED))
            ((status, fields, _),) = await client.answers("POST")
            assert (status, fields["connection"]) == (400, "close")
            await client.read_to_end()
            assert len(server.exchanges) == 1

    run(main())


@pytest.mark.parametrize("wire", [post(b"hel", b"Content-Length: 5"), post(b"5\r\nhel", CHUNKED)])
def test_a_client_that_ends_within_its_body_is_told_so(run: Run, wire):
    async def main() -> None:
        async with serving(echo) as server, server.client() as client:
            await client.send(wire)
            client.end()
            assert (await client.answers("POST"))[0][0] == 400

    run(main())


def test_a_body_that_does_not_come_is_not_waited_for_for_ever(run: Run):
    async def main() -> None:
        async with serving(echo, replace(LIMITS, body_stall_s=SHORT_S)) as server, server.client() as client:
            await client.send(post(b"hel", b"Content-Length: 5"))
            ((status, _, body),) = await client.answers("POST")
            assert (status, body) == (408, b"no byte of the body within 0.2 s\n")
            await client.read_to_end()

    run(main())


def test_a_client_that_leaves_within_its_body_cancels(run: Run):
    async def main() -> None:
        ended: list[type[BaseException]] = []

        async def serve(exchange: Exchange) -> None:
            try:
                await read_all(exchange)
            except BaseException as error:
                ended.append(type(error))
                raise

        async with serving(serve) as server, server.client() as client:
            await client.send(post(b"hel", b"Content-Length: 5"))
            await until(lambda: server.exchanges)
            client.reset()
            await until(lambda: ended)
            assert ended == [asyncio.CancelledError]

    run(main())


def test_body_and_answer_may_go_on_at_the_same_time(run: Run):
    async def main() -> None:
        async def serve(exchange: Exchange) -> None:
            await exchange.start(200, (), None)
            while piece := await exchange.read():
                await exchange.write(piece)
            await exchange.finish()

        async with serving(serve) as server, server.client() as client:
            await client.send(post(b"", CHUNKED))
            await client.read_until(b"\r\n\r\n")
            for word in (b"one", b"two"):
                await client.send(b"3\r\n" + word + b"\r\n")
                await client.read_until(word)
            await client.send(b"0\r\n\r\n")
            ((_, fields, body),) = await client.answers("POST")
            assert (body, fields["connection"]) == (b"onetwo", "close")  # when the head was sent, more was to come

    run(main())


# --- answers of unknown length


@pytest.mark.parametrize("pieces", [[], [b""], [b"a", b"", b"b" * 70_000]])
def test_an_answer_of_unknown_length_is_chunked(run: Run, pieces):
    async def serve(exchange: Exchange) -> None:
        await exchange.start(200, (), None)
        for piece in pieces:
            await exchange.write(piece)
        await exchange.finish()

    async def main() -> None:
        async with serving(serve) as server, server.client() as client:
            await client.send(GET + GET)
            for _, fields, body in await client.answers("GET", "GET"):
                assert body == b"".join(pieces)
                assert fields["transfer-encoding"] == "chunked"
                assert "content-length" not in fields

    run(main())


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_where_there_is_no_body_none_is_sent(run: Run, method, status):
    async def serve(exchange: Exchange) -> None:
        await exchange.start(status, (), None)
        await exchange.write(b"never")
        await exchange.finish()

    async def main() -> None:
        async with serving(serve) as server, server.client() as client:
            await client.send(GET.replace(b"GET", method.encode()) * 2)
            for found, fields, body in await client.answers(method, method):
                assert (found, body) == (status, b"")
                assert ("transfer-encoding" in fields) == (status == 200)

    run(main())


def test_an_answer_of_unknown_length_that_breaks_off_can_be_told(run: Run):
    async def serve(exchange: Exchange) -> None:
        await exchange.start(200, (), None)
        await exchange.write(b"abc")
        raise PeerError("broken")

    async def main() -> None:
        async with serving(serve) as server, server.client() as client:
            await client.send(GET)
            with pytest.raises((ConnectionResetError, AssertionError)):
                await client.read_until(b"0\r\n\r\n")
            assert client.got.endswith((b"abc\r\n", b"\r\n\r\n")) or not client.got

    run(main())


def test_a_status_that_nobody_knows_is_sent_without_a_phrase(run: Run):
    async def serve(exchange: Exchange) -> None:
        await exchange.respond(299)

    async def main() -> None:
        async with serving(serve) as server, server.client() as client:
            await client.send(GET)
            assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 299 \r\n")

    run(main())
