"""The proxy over real connections on both sides: what may not be slipped past it, and bodies both ways."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import pytest

from tests.conftest import Run
from tests.wire.sockets import Wire, connected, eventually, turns
from wstunnel._hub import Hub, PlainTransport
from wstunnel.errors import BackendError
from wstunnel.gateways.proxy import ProxyGateway
from wstunnel.limits import Limits, MasterLimits
from wstunnel.net.accept import Acceptor
from wstunnel.net.h1 import Exchange, H1Connection
from wstunnel.net.listen import open_listener
from wstunnel.net.wheel import TimerWheel
from wstunnel.settings import Route, TcpAddress, UnixAddress
from wstunnel.supervise.balance import Balancer, HostSlots
from wstunnel.supervise.board import Board, SlotColumn, SlotState
from wstunnel.supervise.place import SlotPlace
from wstunnel.supervise.slot import Slot

LIMITS = Limits(master=MasterLimits(worker_rows=2, slot_rows=8))
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
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            connection = h11.Connection(h11.SERVER)
            while await self._answer(connection, reader, writer):
                connection.start_next_cycle()
        except ConnectionError:
            pass
        finally:
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
    """A way in with a proxy behind it."""

    def __init__(self, address: UnixAddress, **options: Any) -> None:
        loop = asyncio.get_running_loop()
        self.wheel = TimerWheel(LIMITS.relay.tick_s, loop.time())
        relay = LIMITS.relay
        self.hub = Hub(
            loop,
            self.wheel,
            read_bytes=relay.read_bytes,
            bulk_bytes=relay.bulk_bytes,
            turn_bytes=relay.turn_bytes,
            look_s=relay.look_s,
        )
        self.board = Board(LIMITS.master)
        self.board.slot(0)[SlotColumn.STATE] = SlotState.RUNNING
        slot = Slot(SlotPlace("web", address, 0), self.board, 1, LIMITS)
        route = Route(gateway="proxy", socket=address.path, **options)
        balancer = Balancer([HostSlots(route, [slot])], route.balance, limits=LIMITS, clock=time.monotonic)
        self.gateway = ProxyGateway(balancer, "/", route, LIMITS.gateway)
        self.gateway.open(self.hub)
        self.listener = open_listener(TcpAddress("127.0.0.1", 0), backlog=16)
        self.acceptor = Acceptor(
            loop, [self.listener], max_connections=99, limits=LIMITS.accept, on_connection=self._admit
        )
        self.connections: set[H1Connection] = set()
        self.wheel.start(loop)
        self.acceptor.start()

    def _admit(self, fd: int, peer: str, local: str) -> None:
        connection = H1Connection(
            loop=asyncio.get_running_loop(),
            on_request=self._serve,
            peer=peer,
            local=local,
            scheme="http",
            limits=LIMITS.head,
            body_limits=LIMITS.gateway,
            wheel=self.wheel,
            buffer=self.hub.view,
            on_closed=self.connections.discard,
        )
        self.connections.add(connection)
        PlainTransport(self.hub, fd, connection)

    async def _serve(self, exchange: Exchange) -> None:
        try:
            assert await self.gateway.serve(exchange) is None
        except BackendError as error:
            if exchange._is_started:
                raise
            exchange.refuse(error.status, "no backend can be had")

    async def client(self) -> Wire:
        return Wire(await connected(self.listener.address))

    async def close(self) -> None:
        self.acceptor.stop()
        self.gateway.close()
        for connection in list(self.connections):
            connection.abort()
        await eventually(lambda: not self.connections, "every connection closed")
        await turns(3)
        self.wheel.stop()
        self.hub.close()
        self.listener.close()
        self.board.close()


@asynccontextmanager
async def standing(folder: Path, **options: Any) -> AsyncIterator[tuple[Front, WebServer]]:
    web = WebServer()
    path = str(folder / "web")
    server = await asyncio.start_unix_server(web.serve, path)
    front = Front(UnixAddress(path), **options)
    try:
        yield front, web
    finally:
        await front.close()
        server.close()


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
            client.close()
            await asyncio.wait((sending,))
            assert not isinstance(sending.exception(), AssertionError)

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
