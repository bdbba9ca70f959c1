"""The proxy over real connections on both sides: what may not be slipped past it, and bodies both ways."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import pytest
import websockets

from tests.conftest import IO, Run
from tests.wire.backends import echo
from tests.wire.sockets import Wire, connected, eventually
from tests.wire.stage import Stage
from wstunnel import Route, Settings, TcpAddress, Tunnel

pytestmark = pytest.mark.over("h1", because="what two readers of HTTP/1.1 could disagree on")

GET = b"GET /%d HTTP/1.1\r\nHost: here.test\r\n\r\n"
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: here.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MIB = 1 << 20


class WebServer:
    """A backend that answers with the request's path and body, as h11 understood them, and remembers every request.

    Paths: /413 answers before it has read the body, and closes; /cut breaks off its answer.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, bytes]] = []
        self.connections = self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            connection = h11.Connection(h11.SERVER)
            while await self._answer(connection, reader, writer):
                connection.start_next_cycle()
        except (ConnectionError, h11.RemoteProtocolError):  # a request that breaks off
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _answer(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request; is the connection still good?"""
        target, body = b"", b""
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(1 << 16))
            elif isinstance(event, h11.ConnectionClosed):
                return False
            elif isinstance(event, h11.Request):
                target = event.target
                self.requests.append((event.method, target))
                if target == b"/413":
                    writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    return False
                if target == b"/cut":
                    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
                    return False
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
        body = target + body
        framing = ("Transfer-Encoding", "chunked") if len(body) > MIB else ("Content-Length", str(len(body)))
        for answer in (h11.Response(status_code=200, headers=[framing]), h11.Data(data=body), h11.EndOfMessage()):
            writer.write(connection.send(answer) or b"")
        await writer.drain()
        return True


class Front:
    """A tunnel whose one route is a proxy."""

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel

    async def client(self) -> Wire:
        return Wire(await connected(self.tunnel.addresses[0]))


@asynccontextmanager
async def standing(folder: Path, **options: Any) -> AsyncIterator[tuple[Front, WebServer]]:
    web = WebServer()
    path = str(folder / "web")
    server = await asyncio.start_unix_server(web.serve, path)
    route = Route(gateway="proxy", socket=path, **options)
    try:
        async with Tunnel(Settings(listen=(TcpAddress("127.0.0.1", 0),), io=IO.get(), routes=(route,))) as tunnel:
            yield Front(tunnel), web
    finally:
        server.close()
        await eventually(lambda: not web.open, "the server's own connections closed")


async def answers(wire: Wire, *methods: str) -> list[tuple[int, bytes]]:
    """Status and body of the next answers, as h11 reads them."""
    found = []
    connection = h11.Connection(h11.CLIENT)
    for number, method in enumerate(methods):
        if number:
            connection.start_next_cycle()
        connection.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        connection.send(h11.EndOfMessage())
        status, body = 0, b""
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                connection.receive_data(await wire.recv())
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
        found.append((status, body))
    return found


def test_requests_in_one_write_are_answered_in_turn_over_one_connection(run: Run, tmp_path):
    async def check() -> None:
        async with standing(tmp_path) as (front, web):
            client = await front.client()
            await client.send(GET % 1 + GET % 2 + GET % 3)
            assert await answers(client, "GET", "GET", "GET") == [(200, b"/1"), (200, b"/2"), (200, b"/3")]
            assert web.connections == 1
            client.close()

    run(check())


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("size", [0, 1, 100_000, 3 * MIB])
def test_bodies_go_both_ways_whole(run: Run, tmp_path, size, is_chunked):
    async def check() -> None:
        async with standing(tmp_path) as (front, web):
            body = os.urandom(size)
            framing = [("Transfer-Encoding", "chunked")] if is_chunked else [("Content-Length", str(size))]
            wire = h11.Connection(h11.CLIENT)
            request = h11.Request(method="POST", target="/", headers=[("Host", "a"), *framing])
            raw = wire.send(request) + (wire.send(h11.Data(data=body)) if size else b"") + wire.send(h11.EndOfMessage())
            client = await front.client()
            for _ in range(2):
                sending = asyncio.ensure_future(client.send(raw))
                assert await answers(client, "POST") == [(200, b"/" + body)]
                await sending
            assert web.connections == 1
            client.close()

    run(check())


def test_a_client_that_waits_for_a_100_gets_it_and_the_backend_is_not_asked(run: Run, tmp_path):
    async def check() -> None:
        async with standing(tmp_path) as (front, _web):
            client = await front.client()
            await client.send(b"POST /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            go_on = b"HTTP/1.1 100 Continue\r\n\r\n"
            assert await client.recv_exactly(len(go_on)) == go_on
            await client.send(b"ab")
            assert await answers(client, "POST") == [(200, b"/eab")]
            client.close()

    run(check())


def test_a_refusal_before_the_end_of_a_body_arrives(run: Run, tmp_path):
    async def check() -> None:
        async with standing(tmp_path) as (front, _web):
            client = await front.client()
            sending = asyncio.ensure_future(
                client.send(b"POST /413 HTTP/1.1\r\nHost: a\r\nContent-Length: 8388608\r\n\r\n" + bytes(8 * MIB))
            )
            assert await answers(client, "POST") == [(413, b"")]
            sending.cancel()
            await asyncio.wait((sending,))
            client.close()

    run(check())


def test_an_answer_that_breaks_off_is_not_whole_to_the_client(run: Run, tmp_path, caplog):
    async def check() -> None:
        async with standing(tmp_path) as (front, _web):
            client = await front.client()
            await client.send(GET.replace(b"/%d", b"/cut"))
            got = b""
            try:
                while piece := await client.recv():
                    got += piece
            except ConnectionResetError:
                pass
            assert b"\r\n0\r\n" not in got
            client.close()

    run(check())
    assert "its last chunk of its answer missing" in caplog.text


# --- what must not be slipped past the proxy


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 5\r\n 0\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding\x00: chunked\r\n",
        b"X: y\r\n folded: Content-Length: 5\r\n",
        b"X: y\nContent-Length: 5\r\n",
        b"Host: elsewhere\r\n",
    ],
)
def test_a_request_that_two_readers_could_end_elsewhere_never_reaches_the_backend(run: Run, tmp_path, fields):
    async def check() -> None:
        async with standing(tmp_path) as (front, web):
            client = await front.client()
            smuggled = b"0\r\n\r\n" + GET.replace(b"%d", b"smuggled")
            await client.send(b"POST / HTTP/1.1\r\nHost: here.test\r\n" + fields + b"\r\n" + smuggled)
            assert (await client.recv_to_end()).startswith(b"HTTP/1.1 400 ")
            assert web.requests == []
            client.close()

    run(check())


@pytest.mark.parametrize("fields", [b"Content_Length: 5\r\n", b"Transfer_Encoding: chunked\r\n", b"X: \xff\r\n"])
def test_a_request_with_odd_fields_is_one_request_to_both(run: Run, tmp_path, fields):
    async def check() -> None:
        async with standing(tmp_path) as (front, web):
            client = await front.client()
            await client.send(b"GET /1 HTTP/1.1\r\nHost: here.test\r\n" + fields + b"\r\n" + GET % 2)
            assert await answers(client, "GET", "GET") == [(200, b"/1"), (200, b"/2")]
            assert web.requests == [(b"GET", b"/1"), (b"GET", b"/2")]
            client.close()

    run(check())


@pytest.mark.parametrize("is_passed_on", [False, True])
def test_what_comes_behind_a_handshake_that_is_refused_is_never_a_request(run: Run, tmp_path, is_passed_on):
    async def check() -> None:
        async with standing(tmp_path, upgrade=is_passed_on) as (front, web):
            client = await front.client()
            await client.send(HANDSHAKE + GET.replace(b"%d", b"smuggled"))
            got = await client.recv_to_end()
            assert got.startswith(b"HTTP/1.1 200 ")
            assert got.count(b"HTTP/1.1 ") == 1
            assert web.requests == [(b"GET", b"/ws")]
            client.close()

    run(check())


def test_a_chunk_that_is_malformed_is_400_and_its_request_is_never_whole(run: Run, tmp_path):
    async def check() -> None:
        async with standing(tmp_path) as (front, web):
            client = await front.client()
            smuggled = GET.replace(b"%d", b"smuggled")
            await client.send(
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0 \r\n\r\n" + smuggled
            )
            assert (await client.recv_to_end()).startswith(b"HTTP/1.1 400 ")
            assert (b"GET", b"/smuggled") not in web.requests
            client.close()

    run(check())


# --- upgrades


@pytest.mark.parametrize("size", [0, 125, 65536, MIB])
def test_a_websocket_goes_through_a_proxy_to_a_tunnel(run: Run, tmp_path, size):
    async def check() -> None:
        async with Stage(tmp_path, frame_type="binary") as behind:
            behind.backend.serve(echo)
            host = behind.tunnel.addresses[0]
            route = Route(gateway="proxy", host=host.host, port=host.port, upgrade=True, origins=("*",))
            settings = Settings(listen=(TcpAddress("127.0.0.1", 0),), io=IO.get(), routes=(route,))
            async with Tunnel(settings) as front:
                where = front.addresses[0]
                uri = f"ws://{where.host}:{where.port}/"
                async with websockets.connect(uri, max_size=None, compression=None) as client:
                    behind.joined += 2  # each of the two writes its line
                    sent = os.urandom(size)
                    await client.send(sent)
                    got = b""
                    while len(got) < size:
                        got += await client.recv()
                    assert got == sent
                assert client.close_code == 1000

    run(check())


def test_what_comes_with_the_handshake_goes_through_when_it_is_taken(run: Run, tmp_path):
    async def check() -> None:
        async with Stage(tmp_path, frame_type="binary") as behind:
            behind.backend.serve(echo)
            host = behind.tunnel.addresses[0]
            route = Route(gateway="proxy", host=host.host, port=host.port, upgrade=True)
            settings = Settings(listen=(TcpAddress("127.0.0.1", 0),), io=IO.get(), routes=(route,))
            async with Tunnel(settings) as front:
                client = Wire(await connected(front.addresses[0]))
                behind.joined += 2  # each of the two writes its line
                await client.send(HANDSHAKE + b"\x82\x83\0\0\0\0abc")
                got = b""
                while not got.endswith(b"\x82\x03abc"):
                    piece = await client.recv()
                    assert piece
                    got += piece
                client.close()

    run(check())
