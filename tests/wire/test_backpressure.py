"""Whoever is slow slows the other side down: nothing piles up in the tunnel, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from tests.conftest import Run
from tests.wire.backends import Backend, echo
from tests.wire.clients import BINARY, CLOSE, PING, TEXT, close_frame, frame
from tests.wire.sockets import quiet, rss_kib
from wstunnel import Settings, TcpAddress, UnixAddress

TOTAL = 64 << 20
BLOCK = os.urandom(65_521)
"""A prime length: a lost or repeated piece of any usual size shifts everything behind it."""

COUNT = TOTAL // len(BLOCK)
GROWTH_KIB = 8 * 1024


class Order:
    """Checks a stream of BLOCKs as it comes, without keeping it."""

    def __init__(self) -> None:
        self.seen = 0

    def take(self, piece: bytes) -> None:
        at = self.seen % len(BLOCK)
        expected = (BLOCK * (2 + len(piece) // len(BLOCK)))[at : at + len(piece)]
        assert piece == expected, f"not what was sent, somewhere after byte {self.seen}"
        self.seen += len(piece)


class Pusher:
    """Sends one piece over and over, in a task of its own, and counts."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]], piece: bytes, count: int = COUNT) -> None:
        self.sent = 0
        self.task = asyncio.get_running_loop().create_task(self._push(send, piece, count))

    async def _push(self, send, piece, count) -> None:
        for _ in range(count):
            await send(piece)
            self.sent += 1


@pytest.fixture(params=["tcp-unix", "unix-tcp"])
def legs(request, stage, tmp_path):
    """A stage whose two legs are TCP and UNIX, or UNIX and TCP."""

    def build(**route):
        if request.param == "tcp-unix":
            return stage(settings=Settings(listen=(TcpAddress("127.0.0.1", 0),)), **route)
        return stage(
            settings=Settings(listen=(UnixAddress(str(tmp_path / "client.sock")),)), backend=Backend(), **route
        )

    return build


async def warm(client, backend) -> None:
    """A few MiB each way, so that what is allocated once is not taken for growth."""
    for _ in range(3):
        sending = asyncio.create_task(client.send(frame(BINARY, BLOCK * 16)))
        assert len(await backend.recv_exactly(len(BLOCK) * 16)) == len(BLOCK) * 16
        await sending
        sending = asyncio.create_task(backend.send(BLOCK * 16))
        await client.payload(len(BLOCK) * 16)
        await sending


def test_a_stalled_backend_stops_the_client_and_every_byte_arrives_when_it_goes_on(run: Run, legs):
    """mod_wstunnel takes all 64 MiB into memory, or into temporary files."""

    async def story():
        async with legs(frame_type="binary") as on:
            client, backend = await on.join()
            await warm(client, backend)
            before = rss_kib()
            pusher = Pusher(client.send, frame(BINARY, BLOCK))

            assert await quiet(lambda: pusher.sent) < COUNT, "the client was never stopped"
            assert rss_kib() - before < GROWTH_KIB

            order = Order()
            while order.seen < COUNT * len(BLOCK):
                order.take(await backend.recv())
            await pusher.task
            assert rss_kib() - before < GROWTH_KIB
            await client.send(close_frame(1000))
            assert await backend.recv_to_end() == b""

    run(story())


def test_a_stalled_client_stops_the_backend_and_every_byte_arrives_when_it_goes_on(run: Run, legs):
    async def story():
        async with legs(frame_type="binary") as on:
            client, backend = await on.join()
            await warm(client, backend)
            before = rss_kib()
            pusher = Pusher(backend.send, BLOCK)

            assert await quiet(lambda: pusher.sent) < COUNT, "the backend was never stopped"
            assert rss_kib() - before < GROWTH_KIB

            order = Order()
            while order.seen < COUNT * len(BLOCK):
                order.take((await client.frame()).data)
            await pusher.task
            assert rss_kib() - before < GROWTH_KIB
            backend.half_close()
            assert (await client.frame()).opcode is CLOSE

    run(story())


def test_both_sides_stalled_at_once_come_free_in_either_order(run: Run, stage):
    async def story():
        async with stage(frame_type="binary") as on:
            client, backend = await on.join()
            count = 400
            up, down = Pusher(client.send, frame(BINARY, BLOCK), count), Pusher(backend.send, BLOCK, count)
            assert await quiet(lambda: up.sent + down.sent) < 2 * count

            hearing = Order()
            while hearing.seen < count * len(BLOCK):
                hearing.take((await client.frame()).data)
            assert up.sent < count, "the way up is still blocked"
            reading = Order()
            while reading.seen < count * len(BLOCK):
                reading.take(await backend.recv())
            await asyncio.gather(up.task, down.task)

    run(story())


def test_many_stalled_tunnels_cost_little_each(run: Run, stage):
    """20 clients push 16 MiB each, more than the kernel holds for them, into backends that do not read."""

    async def story():
        tunnels, count = 20, 256
        async with stage(frame_type="binary") as on:
            pairs = [await on.join() for _ in range(tunnels)]
            await warm(*pairs[0])
            before = rss_kib()
            pushers = [Pusher(client.send, frame(BINARY, BLOCK), count) for client, _ in pairs]
            assert await quiet(lambda: sum(pusher.sent for pusher in pushers)) < tunnels * count
            assert rss_kib() - before < tunnels * 256

            async def read(backend):
                order = Order()
                while order.seen < count * len(BLOCK):
                    order.take(await backend.recv())

            await asyncio.gather(*(read(backend) for _, backend in pairs))
            await asyncio.gather(*(pusher.task for pusher in pushers))

    run(story())


@pytest.mark.parametrize("stalled", ["backend", "client"])
def test_our_own_pings_do_not_end_a_tunnel_that_waits_for_the_other_side(run: Run, stage, stalled):
    """A client that we stopped cannot answer a PING, nor can one that has not come to it yet."""

    async def story():
        async with stage(frame_type="binary", ping_interval_s=0.2, ping_timeout_s=0.2) as on:
            client, backend = await on.join()
            count = 600
            if stalled == "backend":
                pusher = Pusher(client.send, frame(BINARY, BLOCK), count)
            else:
                pusher = Pusher(backend.send, BLOCK, count)
            assert await quiet(lambda: pusher.sent, for_s=1.5) < count

            order = Order()
            while order.seen < count * len(BLOCK):
                if stalled == "backend":
                    order.take(await backend.recv())
                elif (heard := await client.frame()).opcode is BINARY:
                    order.take(heard.data)
                else:
                    assert heard.opcode is PING, heard
            await pusher.task

    run(story())


def test_a_tunnel_under_load_leaves_the_others_their_turn(run: Run, stage):
    async def story():
        async with stage(frame_type="binary") as on:
            heavy, sink = await on.join()
            on.backend.serve(echo)
            light = await on.client()
            pusher = Pusher(heavy.send, frame(BINARY, BLOCK), 1 << 30)

            async def drain():
                while await sink.recv():
                    pass

            draining = asyncio.create_task(drain())
            for number in range(100):
                sent = pusher.sent
                await light.send(frame(TEXT, b"%d" % number))
                assert await light.payload(len(str(number))) == b"%d" % number
                assert pusher.sent - sent < 2_000, "an echo waited for more than 128 MiB of someone else's"
            pusher.task.cancel()
            draining.cancel()
            await asyncio.gather(pusher.task, draining, return_exceptions=True)

    run(story())
