"""What a hostile HTTP/2 client gets: GOAWAY, and no more than its own bounds; an innocent one notices nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from bench.abuse.attacks import FLOODS, Enemy
from tests.conftest import Run
from tests.wire.backends import Backend, echo
from tests.wire.clients import TEXT, Client, frame
from tests.wire.sockets import DEADLINE_S, Wire
from tests.wire.stage import LogTap
from wstunnel import Route, Settings, TcpAddress, Tunnel

MOST = 100_000
"""Pieces of an attack that are never all taken."""

Place = Callable[[], AbstractAsyncContextManager["Scene"]]


class Scene:
    """A Tunnel with a route that echoes, a route whose backend says nothing, and files; and an innocent client."""

    def __init__(self, address: TcpAddress, client: Client) -> None:
        self.address, self._client = address, client
        self.met = 0
        """Connections to the backend that echoes."""

    async def enemy(self) -> Enemy:
        enemy = await Enemy.meet(self.address.host, self.address.port)
        await enemy.greet()
        return enemy

    async def echo(self, wire: Wire) -> None:
        self.met += 1
        await echo(wire)

    async def check_innocent(self) -> None:
        await self._client.send(frame(TEXT, b"hello"))
        assert await self._client.payload(5) == b"hello"


@pytest.fixture
def run() -> Run:
    """HTTP/2 is served by the hub, whatever reads other sockets."""
    return Run("uvloop", "hub")


@pytest.fixture
def place(tmp_path) -> Place:
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("hello\n")
    (site / "large").write_bytes(bytes(1 << 20))

    @asynccontextmanager
    async def opened() -> AsyncIterator[Scene]:
        backend, silent = Backend(str(tmp_path / "b.sock")), Backend(str(tmp_path / "s.sock"))
        routes = (Route(path="/ws", **backend.route), Route(path="/silent", close_timeout_s=0.1, **silent.route))
        settings = Settings(
            listen=(TcpAddress("127.0.0.1", 0),), h2c=True, document_root=str(site), io="hub", routes=routes
        )
        try:
            with LogTap("wstunnel", logging.ERROR) as errors:
                async with Tunnel(settings) as tunnel:
                    address = tunnel.addresses[0]
                    client = await Client.reach(address)
                    scene = Scene(address, client)
                    backend.serve(scene.echo)
                    await client.upgrade("/ws", ())
                    try:
                        yield scene
                    finally:
                        client.close()
            assert not errors.texts()
        finally:
            await backend.stop()
            await silent.stop()

    return opened


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_answered_by_goaway_and_an_innocent_client_goes_on(run: Run, place: Place, name: str):
    attack, codes = FLOODS[name]

    async def story():
        async with place() as on, await on.enemy() as enemy:
            sent = await enemy.flood(attack(enemy), MOST)
            await asyncio.wait_for(enemy.ended.wait(), DEADLINE_S)
            await on.check_innocent()
            assert sent < MOST, "the flood was taken to its end"
            assert enemy.goaway in codes
            assert on.met < 500, "backend connections"

    run(story())
