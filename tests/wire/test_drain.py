"""The server goes away under load: whatever each side is in the middle of, what was said arrives, and then the CLOSE.

Everything here happens while `Tunnel.stop` runs. What needs an invented clock stands in tests/unit/test_relay.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator

import pytest

from tests.conftest import Run
from tests.wire.clients import BINARY, CLOSE, CONT, PING, TEXT, Client, Heard, close_frame, frame
from tests.wire.sockets import Wire, eventually, turns
from tests.wire.stage import Stage
from wstunnel import Settings, TcpAddress

DRAIN_S, CLOSE_S = 2.0, 0.5
"""Half of the time to leave is a message's, then a quarter the backend's, then a quarter the client's."""
SLACK_S = 1.5
"""What a busy machine may add."""
GOING_AWAY = 1001
BULK = random.Random(3).randbytes(300_000)


@pytest.fixture
def leaving(stage):
    """A stage whose tunnels have DRAIN_S to leave; frames are binary."""
    settings = Settings(listen=(TcpAddress("127.0.0.1", 0),), drain_timeout_s=DRAIN_S)
    return lambda **route: stage(settings=settings, **{"frame_type": "binary", "close_timeout_s": CLOSE_S} | route)


@contextlib.asynccontextmanager
async def stopping(on: Stage, *, within_s: float = DRAIN_S) -> AsyncIterator[None]:
    """The block runs while the tunnel stops, which is done in time."""
    since_s = time.monotonic()
    stop = asyncio.ensure_future(on.tunnel.stop())
    await turns(4)
    yield
    await stop
    assert time.monotonic() - since_s < within_s + SLACK_S


async def hear(client: Client) -> Heard:
    """All that the client is told, answering the CLOSE."""
    return await client.to_end(answer=True)


# --- a client in the middle of a message


@pytest.mark.parametrize("cut", [1, 5, 20, 150_000, 300_020])
@pytest.mark.parametrize("code", [BINARY, TEXT])
def test_a_message_under_way_arrives_whole_and_then_comes_the_close(run: Run, leaving, cut, code):
    said = BULK if code is BINARY else b"a" * len(BULK)
    message = frame(code, said[:200_000], fin=False) + frame(PING, b"?") + frame(CONT, said[200_000:])

    async def story():
        async with leaving() as on:
            client, backend = await on.join()
            hearing = asyncio.ensure_future(hear(client))
            reading = asyncio.ensure_future(backend.recv_to_end())
            await client.send(message[:cut])
            await turns(50)
            async with stopping(on):
                await turns(50)
                assert not hearing.done()
                await client.send(message[cut:] + frame(BINARY, b"not this one"))
                assert (await reading).startswith(said)
                backend.close()
                heard = await hearing
                assert (heard.pongs, heard.code, heard.reset) == ([b"?"], GOING_AWAY, False)
            assert (await on.line())["code"] == GOING_AWAY

    run(story())


@pytest.mark.parametrize(
    "start", [frame(BINARY, b"all of it", fin=False), frame(BINARY, b"all of it" + bytes(99))[:-99]]
)
def test_a_message_whose_rest_never_comes_ends_with_the_close_and_what_came_arrives(run: Run, leaving, start):
    async def story():
        async with leaving() as on:
            client, backend = await on.join()
            await client.send(start)
            async with stopping(on, within_s=CLOSE_S):
                assert await backend.recv_to_end() == b"all of it"
                backend.close()
                assert (await client.frame()).data == GOING_AWAY.to_bytes(2, "big")
                client.close()

    run(story())


def test_a_message_without_end_does_not_take_the_time_of_the_close(run: Run, leaving):
    async def story():
        async with leaving() as on:
            client, backend = await on.join()
            said = bytearray()

            async def talk() -> None:
                opcode = BINARY
                while True:
                    await client.send(frame(opcode, b"and so on, ", fin=False))
                    said.extend(b"and so on, ")
                    opcode = CONT
                    await asyncio.sleep(0.01)

            talking = asyncio.ensure_future(talk())
            reading = asyncio.ensure_future(backend.recv_to_end())
            await eventually(lambda: len(said) > 0, "the message has begun")
            async with stopping(on):
                before = len(said)
                got = await reading
                backend.close()
                told = await client.frame()
                talking.cancel()
                assert (told.opcode, told.data) == (CLOSE, GOING_AWAY.to_bytes(2, "big"))
                assert len(got) >= before, "what was said before the end was begun was delivered"
                assert bytes(said).startswith(got)
                client.close()

    run(story())


# --- a backend in the middle of its answer


def test_an_answer_under_way_arrives_whole_and_then_comes_the_close(run: Run, leaving):
    """Longer than close-timeout, and more than the kernel holds."""

    async def story():
        async with leaving() as on:
            client, backend = await on.join()
            hearing = asyncio.ensure_future(hear(client))
            await backend.send(BULK[:1000])
            async with stopping(on):
                assert await backend.recv() == b""
                for at in range(1000, len(BULK), 30_000):
                    await backend.send(BULK[at : at + 30_000])
                    await asyncio.sleep(0.13 * CLOSE_S)
                backend.close()
                heard = await hearing
                assert (bytes(heard.data) == BULK, heard.code) == (True, GOING_AWAY)

    run(story())


def test_both_sides_in_the_middle_finish_what_they_say(run: Run, leaving):
    message = frame(BINARY, BULK)

    async def story():
        async with leaving() as on:
            client, backend = await on.join()
            hearing = asyncio.ensure_future(hear(client))
            reading = asyncio.ensure_future(backend.recv_to_end())
            await client.send(message[:1000])
            await backend.send(BULK[:1000])
            async with stopping(on):
                await client.send(message[1000:])
                await backend.send(BULK[1000:])
                assert await reading == BULK
                backend.close()
                heard = await hearing
                assert (bytes(heard.data) == BULK, heard.code) == (True, GOING_AWAY)

    run(story())


def test_a_backend_that_ignores_the_end_of_its_input_and_is_silent_has_the_close_timeout(run: Run, leaving):
    async def story():
        async with leaving() as on:
            client, backend = await on.join()
            await backend.send(b"that is all")
            async with stopping(on, within_s=CLOSE_S):
                heard = await hear(client)
                assert (heard.data, heard.code) == (b"that is all", GOING_AWAY)

    run(story())


def test_a_backend_that_ignores_the_end_of_its_input_and_talks_is_cut_in_time_for_the_close(run: Run, leaving):
    async def story():
        async with leaving() as on:
            client, backend = await on.join()

            async def talk() -> int:
                said = 0
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    while True:
                        await backend.send(b"and so on, ")
                        said += 11
                        await asyncio.sleep(0.01)
                return said

            talking = asyncio.ensure_future(talk())
            async with stopping(on, within_s=DRAIN_S * 3 / 4):
                heard = await hear(client)
                assert heard.code == GOING_AWAY
                assert len(heard.data) >= await talking - 2 * 11

    run(story())


# --- sides that hold everything up


@pytest.mark.over("h1", "h1+tls", because="the kernel takes what the window of a stream would not")
def test_a_client_that_reads_late_gets_all_and_the_close(run: Run, leaving):
    """The CLOSE stands behind a queue that the client does not take until the tunnel was cut."""

    async def story():
        async with leaving() as on:
            client, backend = await on.join(buffer_bytes=16 * 1024)
            talking = asyncio.ensure_future(backend.send(bytes(8 << 20)))
            async with stopping(on):
                pass
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await talking
            owed = (await on.line())["bytes_out"]
            heard = await hear(client)
            assert (len(heard.data), heard.code, heard.reset) == (owed, GOING_AWAY, False)

    run(story())


def test_sides_that_take_nothing_and_say_much_do_not_hold_up_the_stop(run: Run, leaving):
    async def story():
        async with leaving(close_timeout_s=1000.0) as on:
            pairs = [await on.join(buffer_bytes=16 * 1024) for _ in range(10)]
            talking = [
                asyncio.ensure_future(talk)
                for client, backend in pairs
                for talk in (client.send(frame(BINARY, bytes(8 << 20))), backend.send(bytes(8 << 20)))
            ]
            await asyncio.sleep(0)
            async with stopping(on):
                pass
            await asyncio.gather(*talking, return_exceptions=True)
            assert {line["code"] for line in on.lines} == {GOING_AWAY}

    run(story())


def test_a_tunnel_that_is_ending_already_keeps_its_code_and_its_bound(run: Run, leaving):
    async def story():
        async with leaving(close_timeout_s=1000.0) as on:
            client, backend = await on.join()
            deaf, _ = await on.join()
            await client.send(close_frame(4001))
            await deaf.send(close_frame(4002))
            assert await backend.recv() == b""
            async with stopping(on):
                await backend.send(b"bye")
                backend.close()
                heard, other = await asyncio.gather(hear(client), hear(deaf))
                assert (heard.data, heard.code, other.code) == (b"bye", 4001, 4002)

    run(story())


def test_a_stop_that_is_aborted_passes_on_what_has_arrived_and_says_why(run: Run, leaving):
    async def story():
        async with leaving() as on:
            pairs = [await on.join() for _ in range(10)]
            for client, backend in pairs:
                await client.send(frame(BINARY, BULK[:1000], fin=False))
                await backend.send(BULK[:500])
            async with stopping(on, within_s=0.0):
                on.tunnel.abort()
                for client, backend in pairs:
                    heard = await hear(client)
                    assert (bytes(heard.data), heard.code) == (BULK[:500], GOING_AWAY)
                    assert await backend.recv_to_end() == BULK[:1000]

    run(story())


# --- all of it at once

TUNNELS = 200
SAYS = "what each of many says, "


async def _client_side(client: Client, kind: int, go: asyncio.Event) -> Heard:
    """Be in the middle of a message until `go`, then end it, or not."""
    said = SAYS.encode() * 100
    first, rest = frame(BINARY, said[:1000], fin=False), frame(CONT, said[1000:])
    cut = len(first) + kind % len(rest)
    await client.send((first + rest)[:cut])
    await go.wait()
    if kind % 4 != 3:
        await client.send((first + rest)[cut:])
        return await hear(client)
    heard = Heard()
    while heard.code is None:
        Client.note(heard, await client.frame())
    client.close()
    return heard


async def _backend_side(backend: Wire, kind: int, go: asyncio.Event) -> bytes:
    """Be in the middle of an answer until `go`, then end it; all that the client said."""
    said = SAYS.encode() * 100
    await backend.send(said[: 1 + kind])
    await go.wait()
    await backend.send(said[1 + kind :])
    heard = await backend.recv_to_end()
    backend.close()
    return heard


def test_many_tunnels_in_the_middle_of_everything_lose_nothing(run: Run, leaving):
    said = SAYS.encode() * 100

    async def story():
        async with leaving() as on:
            pairs = [await on.join() for _ in range(TUNNELS)]
            go = asyncio.Event()
            clients = [asyncio.ensure_future(_client_side(client, kind, go)) for kind, (client, _) in enumerate(pairs)]
            backends = [asyncio.ensure_future(_backend_side(wire, kind, go)) for kind, (_, wire) in enumerate(pairs)]
            await turns(50)
            async with stopping(on):
                await turns(50)
                go.set()
                for heard in await asyncio.gather(*clients):
                    assert (bytes(heard.data) == said, heard.code, heard.reset) == (True, GOING_AWAY, False)
                for kind, heard in enumerate(await asyncio.gather(*backends)):
                    assert said.startswith(heard)
                    assert len(heard) == len(said) if kind % 4 != 3 else len(heard) >= 1000
            await eventually(lambda: len(on.lines) == TUNNELS, "every access line")
            assert {(line["code"], line["closed_by"]) for line in on.lines} == {(GOING_AWAY, "server")}
            assert sum(line["bytes_out"] for line in on.lines) == TUNNELS * len(said)

    run(story())
