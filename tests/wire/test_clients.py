"""Clients that nobody here wrote: `websockets` and `picows`, as their users would use them."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import picows
import pytest
import websockets

from tests.conftest import Run
from tests.wire.backends import echo
from tests.wire.clients import BINARY, frame
from tests.wire.tlsend import client_context
from wstunnel import Settings, TcpAddress, UnixAddress

pytestmark = pytest.mark.over("h1", "h1+tls", because="what these clients speak")


def uri(on, path: str = "/") -> str:
    return f"{on.way.scheme.replace('http', 'ws')}://{on.address}{path}"


def trust(on, name: str) -> dict[str, Any]:
    """The argument that makes a client trust our papers, by the name it has there."""
    return {name: client_context("http/1.1")} if on.way.scheme == "https" else {}


async def talk(stream, words: list[Any]) -> None:
    """Say each word and hear it back, in as many messages as it pleases the tunnel."""
    for word in words:
        await stream.send(word)
        back = await stream.recv()
        while len(back) < len(word):
            back += await stream.recv()
        assert back == word


def test_websockets_talks_text_and_leaves_cleanly(run: Run, stage):
    async def story():
        async with stage() as on:
            on.backend.serve(echo)
            async with websockets.connect(uri(on), proxy=None, **trust(on, "ssl")) as stream:
                await talk(stream, ["hello", "añ😀" * 50_000, "x" * 65_536])
                latency_s = await (await stream.ping())
                assert latency_s >= 0
                await stream.close(4321, "enough")
            assert (stream.close_code, stream.close_reason) in {(4321, "enough"), (4321, "")}
            on.joined += 1
            assert (await on.line())["code"] == 4321

    run(story())


def test_websockets_talks_binary_by_subprotocol_and_in_fragments(run: Run, stage):
    async def story():
        async with stage() as on:
            on.backend.serve(echo)
            async with websockets.connect(uri(on), proxy=None, **trust(on, "ssl"), subprotocols=["binary"]) as stream:
                assert stream.subprotocol == "binary"
                await talk(stream, [bytes(range(256)) * 4_000])
                await stream.send([b"one ", b"two ", b"three"])
                back = b""
                while len(back) < 13:
                    back += await stream.recv()
                assert back == b"one two three"
            on.joined += 1

    run(story())


def test_websockets_hears_the_backends_end_as_ok(run: Run, stage):
    async def story():
        async with stage() as on:

            async def count(wire):
                for number in range(1, 6):
                    await wire.send(b"%d\n" % number)

            on.backend.serve(count)
            async with websockets.connect(uri(on), proxy=None, **trust(on, "ssl")) as stream:
                heard = "".join([message async for message in stream])
            assert heard == "1\n2\n3\n4\n5\n"
            assert stream.close_code == 1000
            on.joined += 1

    run(story())


@pytest.mark.over("h1", because="who trusts a path needs no papers")
def test_websockets_comes_in_by_a_unix_socket(run: Run, stage, tmp_path):
    async def story():
        path = str(tmp_path / "client.sock")
        async with stage(settings=Settings(listen=(UnixAddress(path),))) as on:
            on.backend.serve(echo)
            async with websockets.unix_connect(path, "ws://localhost/") as stream:
                await talk(stream, ["hello", "x" * 300_000])
            on.joined += 1
            assert (await on.line())["peer"].startswith("unix:")

    run(story())


def test_websockets_comes_in_by_ipv6(run: Run, stage):
    async def story():
        async with stage(settings=Settings(listen=(TcpAddress("::1", 0),))) as on:
            on.backend.serve(echo)
            async with websockets.connect(uri(on), proxy=None, **trust(on, "ssl")) as stream:
                await talk(stream, ["hello"])
            on.joined += 1
            assert (await on.line())["peer"].startswith("[::1]:")

    run(story())


def test_a_hundred_websockets_clients_at_once_hear_their_own_words(run: Run, stage):
    async def story():
        async with stage() as on:
            on.backend.serve(echo)

            async def visit(number: int) -> None:
                dice = random.Random(number)
                async with websockets.connect(uri(on), proxy=None, **trust(on, "ssl")) as stream:
                    await talk(stream, [f"{number}:" + "y" * dice.randrange(20_000) for _ in range(5)])

            await asyncio.gather(*(visit(number) for number in range(100)))
            on.joined += 100

    run(story())


class Ear(picows.WSListener):
    """Keeps what a picows client hears."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.kinds: set[picows.WSMsgType] = set()
        self.something = asyncio.Event()
        self.code: int | None = None

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.CLOSE:
            self.code = int(frame.get_close_code())
            transport.send_close(frame.get_close_code())
            transport.disconnect()
        elif frame.msg_type == picows.WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        else:
            self.kinds.add(frame.msg_type)
            self.heard += frame.get_payload_as_bytes()
        self.something.set()

    async def has(self, count: int) -> bytes:
        while len(self.heard) < count:
            self.something.clear()
            await self.something.wait()
        return bytes(self.heard)


@pytest.mark.parametrize("size", [1, 125, 126, 65_535, 65_536, 1_000_000])
def test_picows_hears_its_echo(run: Run, stage, size):
    async def story():
        async with stage(frame_type="binary") as on:
            on.backend.serve(echo)
            transport, ear = await picows.ws_connect(Ear, uri(on), **trust(on, "ssl_context"))
            sent = random.Random(size).randbytes(size)
            transport.send(picows.WSMsgType.BINARY, sent)
            assert await ear.has(size) == sent
            assert ear.kinds == {picows.WSMsgType.BINARY}
            transport.send_close(picows.WSCloseCode.GOING_AWAY)
            await transport.wait_disconnected()
            assert ear.code == 1001
            on.joined += 1

    run(story())


def test_picows_hears_all_of_a_stream_and_its_end(run: Run, stage):
    async def story():
        async with stage(frame_type="text") as on:
            said = "żółw😀".encode() * 100_000

            async def pour(wire):
                await wire.send(said)

            on.backend.serve(pour)
            transport, ear = await picows.ws_connect(Ear, uri(on), **trust(on, "ssl_context"))
            assert await ear.has(len(said)) == said
            await transport.wait_disconnected()
            assert ear.code == 1000
            on.joined += 1

    run(story())


def test_different_clients_share_one_tunnel_process_and_never_each_others_words(run: Run, stage):
    async def story():
        async with stage(frame_type="binary") as on:
            on.backend.serve(echo)
            raw = await on.client()
            transport, ear = await picows.ws_connect(Ear, uri(on), **trust(on, "ssl_context"))
            async with websockets.connect(uri(on), proxy=None, **trust(on, "ssl")) as stream:
                on.joined += 2
                for number in range(200):
                    await raw.send(frame(BINARY, b"raw %d" % number))
                    transport.send(picows.WSMsgType.BINARY, b"pic %03d" % number)
                    await talk(stream, [b"lib %d" % number])
                    assert await raw.payload(len(b"raw %d" % number)) == b"raw %d" % number
                    assert (await ear.has(7 * (number + 1)))[-7:] == b"pic %03d" % number
            transport.disconnect()
            await transport.wait_disconnected()

    run(story())
