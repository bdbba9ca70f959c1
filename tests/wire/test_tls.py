"""Clients that nobody here wrote, over wss."""

from __future__ import annotations

import random
from pathlib import Path

import picows
import pytest
import websockets

from tests.authority import Authority
from tests.conftest import LOOPS, Run
from tests.wire.backends import echo
from tests.wire.stage import Stage
from tests.wire.test_clients import Ear, talk
from wstunnel import Settings, TcpAddress

MIB = 1 << 20


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Run:
    return Run(request.param)


def secured(folder: Path, authority: Authority, **route: object) -> Stage:
    """A Tunnel with a certificate for localhost."""
    files = authority.files("localhost")
    front = Settings(listen=(TcpAddress("127.0.0.1", 0),), tls_cert=(files.cert,), tls_key=(files.key,))
    return Stage(str(folder), settings=front, **route)


def uri(on: Stage) -> str:
    return f"wss://localhost:{on.address.port}/"


def test_websockets_talks_over_wss_by_subprotocol_and_leaves_cleanly(run: Run, tmp_path: Path, authority: Authority):
    async def story():
        async with secured(tmp_path, authority) as on:
            on.backend.serve(echo)
            async with websockets.connect(
                uri(on), ssl=authority.trusting(), proxy=None, subprotocols=["binary"]
            ) as stream:
                on.joined += 1
                assert stream.subprotocol == "binary"
                await talk(stream, [b"hello", random.Random(1).randbytes(MIB), b"x" * 65_536])
                assert await (await stream.ping()) >= 0
                await stream.close(4321, "enough")
            assert stream.close_code == 4321
            assert (await on.line())["code"] == 4321

    run(story())


def test_websockets_hears_the_backends_end_over_wss(run: Run, tmp_path: Path, authority: Authority):
    async def story():
        async with secured(tmp_path, authority) as on:

            async def count(wire):
                for number in range(1, 6):
                    await wire.send(b"%d\n" % number)

            on.backend.serve(count)
            async with websockets.connect(uri(on), ssl=authority.trusting(), proxy=None) as stream:
                on.joined += 1
                heard = "".join([message async for message in stream])
            assert heard == "1\n2\n3\n4\n5\n"
            assert stream.close_code == 1000

    run(story())


@pytest.mark.parametrize("size", [1, 16_384, 65_536, MIB])
def test_picows_hears_its_echo_over_wss(run: Run, tmp_path: Path, authority: Authority, size: int):
    async def story():
        async with secured(tmp_path, authority, frame_type="binary") as on:
            on.backend.serve(echo)
            transport, ear = await picows.ws_connect(Ear, uri(on), ssl_context=authority.trusting())
            on.joined += 1
            sent = random.Random(size).randbytes(size)
            transport.send(picows.WSMsgType.BINARY, sent)
            assert await ear.has(size) == sent
            transport.send_close(picows.WSCloseCode.GOING_AWAY)
            await transport.wait_disconnected()
            assert ear.code == 1001

    run(story())


def test_picows_hears_all_of_a_stream_and_its_end_over_wss(run: Run, tmp_path: Path, authority: Authority):
    async def story():
        async with secured(tmp_path, authority, frame_type="text") as on:
            said = "żółw😀".encode() * 100_000

            async def pour(wire):
                await wire.send(said)

            on.backend.serve(pour)
            transport, ear = await picows.ws_connect(Ear, uri(on), ssl_context=authority.trusting())
            on.joined += 1
            assert await ear.has(len(said)) == said
            await transport.wait_disconnected()
            assert ear.code == 1000

    run(story())
