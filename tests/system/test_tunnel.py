"""Tunnel as a library: inside somebody's asyncio or uvloop loop, beside whatever else runs there."""

from __future__ import annotations

import asyncio
import os
import socket
import sys

import pytest

from tests.conftest import Run
from tests.wire.backends import Backend, echo
from tests.wire.clients import TEXT, Client, close_frame, frame
from wstunnel import Route, Settings, StartError, TcpAddress, Tunnel, UnixAddress

LOOPBACK = TcpAddress("127.0.0.1", 0)

ECHO_PROGRAM = """
import socket
listener = socket.socket(fileno=0)
while True:
    peer, _ = listener.accept()
    while said := peer.recv(65536):
        peer.sendall(said)
    peer.close()
"""


@pytest.fixture
def backend(tmp_path):
    """Builds an echo backend; it must be made inside the loop, and stopped there."""

    def build(name: str = "b.sock") -> Backend:
        made = Backend(str(tmp_path / name))
        made.serve(echo)
        return made

    return build


async def echoes(address, path: str = "/", word: bytes = b"hello") -> None:
    """A whole visit: handshake, a word and its echo, CLOSE and its answer."""
    client = await Client.reach(address)
    try:
        await client.upgrade(path)
        await client.send(frame(TEXT, word))
        assert await client.payload(len(word)) == word
        await client.send(close_frame(1000))
        assert (await client.to_end()).code == 1000
    finally:
        client.close()


def test_it_serves_inside_the_block_and_not_after_it(run: Run, backend):
    async def story():
        one = backend()
        async with Tunnel(Settings(listen=(LOOPBACK,), routes=(Route(**one.route),))) as tunnel:
            (address,) = tunnel.addresses
            assert address.host == "127.0.0.1"
            assert address.port > 0
            await echoes(address)
        with pytest.raises(ConnectionRefusedError):
            await Client.reach(address)
        await one.stop()

    run(story())


def test_it_starts_and_stops_without_a_block_and_stopping_twice_is_once(run: Run, backend):
    async def story():
        one = backend()
        tunnel = Tunnel(Settings(listen=(LOOPBACK,), routes=(Route(**one.route),)))
        await tunnel.start()
        await echoes(tunnel.addresses[0])
        await tunnel.stop()
        await tunnel.stop()
        await one.stop()

    run(story())


def test_every_listener_is_served_and_its_address_told_in_order(run: Run, backend, tmp_path):
    async def story():
        one = backend()
        unix = UnixAddress(str(tmp_path / "front.sock"))
        listen = (LOOPBACK, unix, TcpAddress("::1", 0), LOOPBACK)
        async with Tunnel(Settings(listen=listen, routes=(Route(**one.route),))) as tunnel:
            assert tunnel.addresses[1] == unix
            assert [type(address) for address in tunnel.addresses] == [type(address) for address in listen]
            assert len({address.port for address in tunnel.addresses if isinstance(address, TcpAddress)}) == 3
            for address in tunnel.addresses:
                await echoes(address)
        assert not os.path.exists(unix.path)
        await one.stop()

    run(story())


def test_two_tunnels_share_one_loop(run: Run, backend):
    async def story():
        one, two = backend("one.sock"), backend("two.sock")
        async with (
            Tunnel(Settings(listen=(LOOPBACK,), routes=(Route(**one.route),))) as first,
            Tunnel(Settings(listen=(LOOPBACK,), routes=(Route(**two.route),))) as second,
        ):
            await asyncio.gather(echoes(first.addresses[0]), echoes(second.addresses[0]))
            await first.stop()
            await echoes(second.addresses[0])
        await one.stop()
        await two.stop()

    run(story())


def test_the_first_route_that_fits_is_taken(run: Run, backend, tmp_path):
    async def story():
        one = backend()
        dead = {"socket": str(tmp_path / "nobody.sock")}
        routes = (Route(path="/a/", **one.route), Route(path="/a/b/", **dead), Route(path="/", **one.route))
        async with Tunnel(Settings(listen=(LOOPBACK,), routes=routes)) as tunnel:
            await echoes(tunnel.addresses[0], "/a/b/c")
            await echoes(tunnel.addresses[0], "/elsewhere")
        await one.stop()

    run(story())


def test_a_port_is_free_again_after_the_end(run: Run, backend):
    async def story():
        one = backend()
        routes = (Route(**one.route),)
        async with Tunnel(Settings(listen=(LOOPBACK,), routes=routes)) as tunnel:
            address = tunnel.addresses[0]
            await echoes(address)
        async with Tunnel(Settings(listen=(address,), routes=routes)) as tunnel:
            assert tunnel.addresses == (address,)
            await echoes(address)
        await one.stop()

    run(story())


def test_an_address_in_use_is_an_error_that_names_it_and_leaves_nothing_behind(run: Run, tmp_path):
    async def story():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = TcpAddress(*taken.getsockname())
            unix = UnixAddress(str(tmp_path / "front.sock"))
            with pytest.raises(StartError) as caught:
                await Tunnel(Settings(listen=(unix, address), routes=(Route(socket="/nowhere"),))).start()
            assert str(address) in str(caught.value)
            assert not os.path.exists(unix.path)

    run(story())


def test_an_exception_in_the_block_goes_through_and_everything_is_given_back(run: Run, backend):
    async def story():
        one = backend()
        client = None
        with pytest.raises(LookupError, match="mine"):  # noqa: PT012
            async with Tunnel(Settings(listen=(LOOPBACK,), routes=(Route(**one.route),))) as tunnel:
                client = await Client.reach(tunnel.addresses[0])
                await client.upgrade()
                hearing = asyncio.create_task(client.to_end(answer=True))
                raise LookupError("mine")
        assert (await hearing).code == 1001
        await one.stop()

    run(story())


def test_a_cancelled_block_still_says_1001_to_its_clients(run: Run, backend):
    async def story():
        one = backend()
        address = asyncio.get_running_loop().create_future()

        async def serve():
            async with Tunnel(Settings(listen=(LOOPBACK,), routes=(Route(**one.route),))) as tunnel:
                address.set_result(tunnel.addresses[0])
                await asyncio.Event().wait()

        serving = asyncio.create_task(serve())
        client = await Client.reach(await address)
        await client.upgrade()
        hearing = asyncio.create_task(client.to_end(answer=True))
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert (await hearing).code == 1001
        await one.stop()

    run(story())


@pytest.mark.parametrize("procs", [1, 3])
def test_a_program_is_spawned_served_and_gone_at_the_end(run: Run, tmp_path, procs):
    async def story():
        program = tmp_path / "echo.py"
        program.write_text(ECHO_PROGRAM)
        path = str(tmp_path / "spawned.sock")
        route = Route(socket=path, bin_path=(sys.executable, str(program)), max_procs=procs)
        async with Tunnel(Settings(listen=(LOOPBACK,), routes=(route,))) as tunnel:
            assert all(os.path.exists(f"{path}-{slot}") for slot in range(procs))
            await asyncio.gather(*(echoes(tunnel.addresses[0]) for _ in range(6)))
        assert not any(os.path.exists(f"{path}-{slot}") for slot in range(procs))

    run(story())


def test_a_program_that_is_killed_is_1011_for_its_client_and_back_for_the_next(run: Run, tmp_path):
    async def story():
        program = tmp_path / "die.py"
        program.write_text(
            "import os, socket\n"
            "listener = socket.socket(fileno=0)\n"
            "while True:\n"
            "    peer, _ = listener.accept()\n"
            "    while said := peer.recv(65536):\n"
            "        peer.sendall(said)\n"
            "        if said == b'die': os.kill(os.getpid(), 9)\n"
            "    peer.close()\n"
        )
        route = Route(socket=str(tmp_path / "s.sock"), bin_path=(sys.executable, str(program)))
        async with Tunnel(Settings(listen=(LOOPBACK,), routes=(route,))) as tunnel:
            client = await Client.reach(tunnel.addresses[0])
            await client.upgrade()
            await client.send(frame(TEXT, b"die"))
            heard = await client.to_end(answer=True)
            assert (bytes(heard.data), heard.code) == (b"die", 1011)
            await echoes(tunnel.addresses[0])

    run(story())
