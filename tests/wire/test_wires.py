"""The clients' own wires tell the truth: shown on servers made of `ssl` and h2 alone, without a line of wstunnel."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset
from h2.settings import SettingCodes, Settings

from tests.conftest import Run
from tests.wire.clients import TEXT, frame, silent
from tests.wire.h2client import WINDOW_BYTES, Connection, H2Client
from tests.wire.sockets import Plain, Wire, connected, eventually, quiet
from tests.wire.tls import issued
from tests.wire.tlsend import NAME, Tls, client_context
from wstunnel import TcpAddress

pytestmark = pytest.mark.over("h1", because="no tunnel is run")

SAID = bytes(range(256)) * 4_000


def server_context(*protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued(NAME, "127.0.0.1", "::1").configure_cert(context)
    context.set_alpn_protocols(list(protocols))
    return context


@asynccontextmanager
async def listening(serve: Callable[[socket.socket], Awaitable[None]]) -> AsyncIterator[TcpAddress]:
    """Whoever connects is served; what goes wrong there fails the test."""
    async with asyncio.TaskGroup() as group:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            sock.setblocking(False)

            async def accept() -> None:
                while True:
                    accepted, _ = await asyncio.get_running_loop().sock_accept(sock)
                    accepted.setblocking(False)
                    group.create_task(serve(accepted))

            accepting = group.create_task(accept())
            yield TcpAddress("127.0.0.1", sock.getsockname()[1])
            accepting.cancel()


# --- TLS

Script = Callable[[ssl.SSLSocket], bytes]


async def met_by(script: Script, story: Callable[[Wire], Awaitable[None]]) -> bytes:
    """Run `story` with a client's wire and `script`, in a thread, with the server's socket; what that heard."""
    heard: list[bytes] = []
    context = server_context("http/1.1")

    def serve(sock: socket.socket) -> None:
        sock.setblocking(True)
        sock.settimeout(20.0)
        with context.wrap_socket(sock, server_side=True) as secure:
            heard.append(script(secure))

    async with listening(lambda sock: asyncio.to_thread(serve, sock)) as address:
        wire = Wire(Tls(await connected(address), client_context("http/1.1")))
        try:
            await story(wire)
        finally:
            wire.close()
    return heard[0]


def to_end(secure: ssl.SSLSocket) -> bytes:
    """All up to the close_notify; without one, ssl.SSLError."""
    secure.suppress_ragged_eofs = False
    got = bytearray()
    while piece := secure.recv(1 << 16):
        got += piece
    return bytes(got)


def test_tls_carries_bytes_and_says_close_notify_at_its_half_close(run: Run):
    async def story(wire: Wire) -> None:
        await wire.send(SAID)
        wire.half_close()
        assert await wire.recv_to_end() == SAID[::-1]

    def script(secure: ssl.SSLSocket) -> bytes:
        got = to_end(secure)
        secure.sendall(got[::-1])
        secure.unwrap()
        return got

    assert run(met_by(script, story)) == SAID


def test_tls_without_close_notify_is_a_reset(run: Run):
    async def story(wire: Wire) -> None:
        await wire.send(b"x")
        assert await wire.recv_exactly(5) == b"never"
        with pytest.raises(ConnectionResetError):
            await wire.recv()

    def script(secure: ssl.SSLSocket) -> bytes:
        got = secure.recv(1)
        secure.sendall(b"never")
        secure.shutdown(socket.SHUT_RDWR)
        return got

    run(met_by(script, story))


def test_tls_that_is_half_closed_with_something_unread_loses_nothing(run: Run):
    async def story(wire: Wire) -> None:
        await wire.send(b"go")
        got = await wire.recv(1)
        wire.half_close()
        got += await wire.recv_to_end()
        assert got == SAID

    def script(secure: ssl.SSLSocket) -> bytes:
        got = secure.recv(2)
        secure.sendall(SAID)
        got += to_end(secure)
        secure.unwrap()
        return got

    assert run(met_by(script, story)) == b"go"


@pytest.mark.parametrize("way", ["close", "reset"])
def test_a_tls_client_ends_with_close_notify_or_by_a_reset(run: Run, way):
    async def story(wire: Wire) -> None:
        await wire.send(b"bye")
        assert await wire.recv() == b"?"
        wire.close() if way == "close" else wire.reset()

    def script(secure: ssl.SSLSocket) -> bytes:
        got = secure.recv(3)
        secure.sendall(b"?")
        try:
            return got + to_end(secure)
        except (ConnectionResetError, ssl.SSLEOFError):  # ssl makes either of a reset
            return got + b", reset"

    assert run(met_by(script, story)) == (b"bye" if way == "close" else b"bye, reset")


def test_a_tls_client_that_does_not_read_stops_the_server(run: Run):
    sent = 0

    async def story(wire: Wire) -> None:
        await wire.send(b"go")
        assert await quiet(lambda: sent) < 64 << 20
        assert len(await wire.recv_to_end()) == 64 << 20

    def script(secure: ssl.SSLSocket) -> bytes:
        nonlocal sent
        got = secure.recv(2)
        while sent < 64 << 20:
            secure.sendall(bytes(1 << 16))
            sent += 1 << 16
        secure.unwrap()
        return got

    run(met_by(script, story))


# --- HTTP/2


class Server:
    """h2 on the server's side of one connection. It answers every request with 200 and does what the test says."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.local_settings = Settings(
            client=False,
            initial_values={SettingCodes.ENABLE_CONNECT_PROTOCOL: 1, SettingCodes.MAX_CONCURRENT_STREAMS: 100},
        )
        self.requests: dict[int, dict[str, str]] = {}
        self.heard: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.gives_back = True
        """Windows are opened again as soon as something has come."""

    async def run(self) -> None:
        self.h2.initiate_connection()
        try:
            await self.say()
            while piece := await self.wire.recv():
                for event in self.h2.receive_data(piece):
                    self._note(event)
                await self.say()
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            self.wire.close()

    async def say(self) -> None:
        await self.wire.send(self.h2.data_to_send())

    def _note(self, event: object) -> None:
        if isinstance(event, RequestReceived):
            self.requests[event.stream_id] = dict(event.headers)
            self.heard[event.stream_id] = bytearray()
            self.h2.send_headers(event.stream_id, [(":status", "200")])
        elif isinstance(event, DataReceived):
            self.heard[event.stream_id] += event.data
            if self.gives_back:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, StreamReset):
            self.resets[event.stream_id] = event.error_code


@asynccontextmanager
async def served(share: int = 1, *, window_bytes: int = WINDOW_BYTES) -> AsyncIterator[tuple[Server, list[H2Client]]]:
    """A server, and this many clients on one connection whose handshakes it has answered."""
    servers: list[Server] = []

    async def serve(sock: socket.socket) -> None:
        servers.append(Server(Wire(sock)))
        await servers[0].run()

    async with listening(serve) as address:
        connection = Connection(Plain(await connected(address)), "http")
        clients = [H2Client(connection, window_bytes) for _ in range(share)]
        try:
            for client in clients:
                await client.upgrade("/where")
            yield servers[0], clients
        finally:
            connection.close()


def test_an_http2_client_asks_as_rfc_8441_wants_it(run: Run):
    async def story() -> None:
        async with served() as (server, _):
            assert server.requests[1] == {
                ":method": "CONNECT",
                ":protocol": "websocket",
                ":scheme": "http",
                ":authority": NAME,
                ":path": "/where",
                "sec-websocket-version": "13",
            }

    run(story())


def test_an_http2_client_carries_bytes_within_the_servers_window_and_ends_its_stream(run: Run):
    async def story() -> None:
        async with served() as (server, (client,)):
            server.gives_back = False
            sending = asyncio.create_task(client.send(SAID))
            assert await quiet(lambda: len(server.heard[1])) == WINDOW_BYTES
            assert client.send_now(b"more") == 0
            server.gives_back = True
            server.h2.acknowledge_received_data(WINDOW_BYTES, 1)
            await server.say()
            await sending
            client.half_close()
            await eventually(lambda: 1 in server.ended, "END_STREAM")
            assert bytes(server.heard[1]) == SAID

    run(story())


def test_an_http2_client_that_does_not_read_opens_no_window_and_hears_all_when_it_does(run: Run):
    async def story() -> None:
        async with served(2, window_bytes=4_096) as (server, (client, beside)):
            assert server.h2.local_flow_control_window(1) == 4_096
            server.h2.send_data(1, SAID[:4_096])
            await server.say()
            await quiet(lambda: len(client.end.unread), for_s=0.1)
            assert server.h2.local_flow_control_window(1) == 0

            server.h2.send_data(3, b"another stream")
            await server.say()
            assert await beside.recv() == b"another stream"

            assert await client.recv_exactly(3_000) == SAID[:3_000]
            await eventually(lambda: server.h2.local_flow_control_window(1) == 3_000, "WINDOW_UPDATE")
            server.h2.send_data(1, b"the end", end_stream=True)
            await server.say()
            assert await client.recv_to_end() == SAID[3_000:4_096] + b"the end"

    run(story())


@pytest.mark.parametrize(
    ("has_ended", "code", "is_reset"),
    [
        (True, None, False),
        (True, ErrorCodes.NO_ERROR, False),
        (True, ErrorCodes.CANCEL, True),
        (False, ErrorCodes.NO_ERROR, True),
        (False, ErrorCodes.CANCEL, True),
    ],
)
def test_what_an_http2_client_takes_for_an_end_and_for_a_reset(run: Run, has_ended, code, is_reset):
    async def story() -> None:
        async with served() as (server, (client,)):
            server.h2.send_data(1, b"last words", end_stream=has_ended)
            if code is not None:
                server.h2.reset_stream(1, code)
            await server.say()
            await quiet(lambda: client.end.has_ended + (client.end.reset_code is not None), for_s=0.1)
            assert await client.recv_exactly(10) == b"last words"
            if is_reset:
                with pytest.raises(ConnectionResetError):
                    await client.recv()
            else:
                assert await client.recv() == b""
            if code is not None:
                with pytest.raises(ConnectionResetError):
                    await client.send(b"x")

    run(story())


@pytest.mark.parametrize("unread", [False, True])
def test_an_http2_client_that_closes_is_silent_or_resets_what_it_would_not_read(run: Run, unread):
    async def story() -> None:
        async with served(2) as (server, (client, beside)):
            if unread:
                server.h2.send_data(1, b"unread")
                await server.say()
                await eventually(lambda: len(client.end.unread) == 6, "it has come")
            client.close()
            if not unread:
                await eventually(lambda: 1 in server.ended, "END_STREAM")
                assert server.resets == {}
                server.h2.send_data(1, b"and another thing")
                await server.say()
            await eventually(lambda: server.resets == {1: ErrorCodes.CANCEL}, "RST_STREAM")
            beside.reset()
            await eventually(lambda: server.resets == {1: ErrorCodes.CANCEL, 3: ErrorCodes.CANCEL}, "RST_STREAM")

    run(story())


def test_an_http2_client_hears_its_streams_out_after_a_goaway(run: Run):
    async def story() -> None:
        async with served() as (server, (client,)):
            await server.wire.send(b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\0")
            server.h2.send_data(1, b"still here")
            await server.say()
            assert await client.recv() == b"still here"
            assert client.connection.goaway_code == 0
            await client.send(frame(TEXT, b"me too"))
            await eventually(lambda: len(server.heard[1]) == 12, "and says on")

    run(story())


def test_the_end_of_the_connection_is_a_reset_of_its_streams(run: Run):
    async def story() -> None:
        async with served() as (server, (client,)):
            assert await silent(client, for_s=0.01)
            server.wire.half_close()
            with pytest.raises(ConnectionResetError):
                await client.recv()
            assert client.connection.is_over

    run(story())


def test_a_server_that_sends_more_than_the_window_is_found_out(run: Run):
    async def story() -> None:
        async with served(window_bytes=2_048) as (server, (client,)):
            await server.wire.send(b"\0\x08\x01\0\0\0\0\0\x01" + bytes(2_049))
            with pytest.raises(AssertionError, match="FlowControlError"):
                await client.recv()

    run(story())
