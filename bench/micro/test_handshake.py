"""What a handshake costs, from the bytes of a head to the bytes of its 101, beside picows, websockets and wsproto.

    python -m pytest bench/micro/test_handshake.py --benchmark-enable

The head is a browser's; nothing is sent, and no backend is asked. Of picows only the reading and answering is counted,
not what it does with a new connection; it writes to a transport that keeps what it is given. A route is chosen out of
ten, the last of which matches.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import picows
import pytest
import wsproto
import wsproto.events
from websockets.server import ServerProtocol

from wstunnel._heads import read_plain_head
from wstunnel.limits import HeadLimits
from wstunnel.proto import handshake
from wstunnel.proto.http1 import HeadReader
from wstunnel.proto.origin import OriginPolicy
from wstunnel.proto.request import Request
from wstunnel.server.routes import TunnelRoute
from wstunnel.settings import Route

LIMITS = HeadLimits()
HEAD = (
    b"GET /ws/echo HTTP/1.1\r\nHost: 127.0.0.1:8081\r\nConnection: Upgrade\r\nPragma: no-cache\r\n"
    b"Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)\r\n"
    b"Upgrade: websocket\r\nOrigin: http://127.0.0.1:8081\r\nSec-WebSocket-Version: 13\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\n"
    b"Sec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
)
BUFFER = memoryview(bytearray(HEAD))
ORIGINS = OriginPolicy(None)


def of_plain_head() -> bytes:
    found = read_plain_head(BUFFER, len(HEAD), LIMITS, "127.0.0.1:4711", "127.0.0.1:8081", "http", "")
    assert found is not None
    ORIGINS.check(found[0])
    return handshake.answer(found[0]).head


def of_head_reader() -> bytes:
    request = HeadReader(LIMITS, peer="127.0.0.1:4711", local="127.0.0.1:8081").feed(bytes(BUFFER))
    assert request is not None
    ORIGINS.check(request)
    return handshake.answer(request).head


def of_websockets() -> bytes:
    server = ServerProtocol()
    server.receive_data(HEAD)
    (request,) = server.events_received()
    server.send_response(server.accept(request))
    return b"".join(server.data_to_send())


def of_wsproto() -> bytes:
    server = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    server.receive_data(HEAD)
    next(server.events())
    return server.send(wsproto.events.AcceptConnection())


WAYS = {
    "wstunnel": of_plain_head,
    "wstunnel, the careful reader": of_head_reader,
    "websockets": of_websockets,
    "wsproto": of_wsproto,
}


@pytest.mark.parametrize("way", WAYS)
def test_handshake(benchmark, way):
    said = benchmark.pedantic(WAYS[way], rounds=200, iterations=20, warmup_rounds=10)

    assert said.startswith(b"HTTP/1.1 101 ")
    assert b"\r\nSec-WebSocket-Accept: " in said


class Kept:
    """A transport that keeps what is written to it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.said = b""

    def get_extra_info(self, name: str) -> Any:
        return self.sock if name == "socket" else ("127.0.0.1", 1)

    def write(self, data: bytes) -> None:
        self.said += data

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def test_handshake_of_picows(benchmark, monkeypatch):
    factories = []

    async def create_server(factory: Any, **_: Any) -> None:
        factories.append(factory)

    async def main() -> bytes:
        monkeypatch.setattr(asyncio.get_running_loop(), "create_server", create_server)
        await picows.ws_create_server(lambda _: picows.WSListener(), "127.0.0.1", 0, use_aiofastnet=False)
        made = []

        def connected() -> tuple[tuple[Any], dict[str, Any]]:
            protocol, transport = factories[0](), Kept(sock)
            protocol.connection_made(transport)
            made.append(transport)
            return (protocol,), {}

        def handshake(protocol: Any) -> None:
            protocol.get_buffer(-1)[: len(HEAD)] = HEAD
            protocol.buffer_updated(len(HEAD))

        benchmark.pedantic(handshake, setup=connected, rounds=2000)
        return made[-1].said

    with socket.socket() as sock:
        said = asyncio.run(main())

    assert said.startswith(b"HTTP/1.1 101 ")
    assert b"\r\nSec-WebSocket-Accept: " in said


def test_choose_a_route(benchmark):
    routes = [TunnelRoute(Route(path=f"/{n}/"), None) for n in range(9)] + [TunnelRoute(Route(path="/ws"), None)]

    request = Request(
        method="GET", target="/ws/echo", path="/ws/echo", query="", host="a", headers=(), peer="", wants_websocket=True
    )

    chosen = benchmark(lambda: next((route for route in routes if route.takes(request)), None))

    assert chosen is routes[-1]
