"""Who is silent is asked; who does not answer, or takes nothing, is let go. Lower bounds only: machines are slow."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from tests.conftest import Run
from tests.wire.clients import BINARY, CLOSE, PING, PONG, TEXT, close_frame, frame, silent
from tests.wire.sockets import DEADLINE_S, quiet
from wstunnel import Settings, UnixAddress

GRAIN_S = 0.11
"""The timer wheel's tick, and a little for the clock."""


def unix_settings(tmp_path) -> Settings:
    """UNIX sockets hold a fixed and small amount, so that slow and stalled can be told apart quickly."""
    return Settings(listen=(UnixAddress(str(tmp_path / "client.sock")),))


# --- PING


def test_a_silent_client_gets_pings_and_its_pongs_keep_it(run: Run, stage):
    async def story():
        async with stage(ping_interval_s=0.3, ping_timeout_s=5.0) as on:
            client, backend = await on.join()
            began = time.monotonic()
            for _ in range(4):
                heard = await client.frame()
                assert heard.opcode is PING
                await client.send(frame(PONG, heard.data))
            assert time.monotonic() - began > 4 * (0.3 - GRAIN_S)

            await client.send(frame(TEXT, b"still here"))
            assert await backend.recv_exactly(10) == b"still here"

    run(story())


def test_there_is_no_ping_while_there_is_traffic(run: Run, stage):
    async def story():
        async with stage(ping_interval_s=1.5, ping_timeout_s=5.0) as on:
            client, backend = await on.join()
            began = time.monotonic()
            while time.monotonic() - began < 4.0:
                await client.send(frame(TEXT, b"x"))
                await backend.send(await backend.recv_exactly(1))
                heard = await client.frame()
                assert heard.opcode is TEXT, heard
                await asyncio.sleep(0.01)

            heard = await client.frame()  # and there is one when it stops
            assert heard.opcode is PING

    run(story())


@pytest.mark.parametrize("reads", [True, False], ids=["reads on", "frozen"])
def test_a_client_that_does_not_answer_the_ping_is_told_1011_and_let_go(run: Run, stage, reads):
    async def story():
        async with stage(ping_interval_s=0.2, ping_timeout_s=0.3, close_timeout_s=0.3) as on:
            client, backend = await on.join()
            began = time.monotonic()
            if not reads:
                await backend.gone()
            heard = await client.to_end()
            assert time.monotonic() - began > 0.5 - 2 * GRAIN_S
            assert len(heard.pings) == 1, "one PING is asked, and no other before its answer"
            assert heard.code == 1011
            await backend.gone()
            line = await on.line()
            assert line["code"] == 1011
            assert line["closed_by"] == "server"

    run(story())


def test_a_client_that_answers_late_but_in_time_stays(run: Run, stage):
    async def story():
        async with stage(ping_interval_s=0.1, ping_timeout_s=DEADLINE_S) as on:
            client, _backend = await on.join()
            first = await client.frame()
            assert first.opcode is PING
            assert await silent(client, for_s=0.6), "no second PING before the first is answered"
            await client.send(frame(PONG, first.data))
            assert (await client.frame()).opcode is PING

    run(story())


def test_an_interval_of_zero_is_off(run: Run, stage):
    async def story():
        async with stage(ping_interval_s=0.0, ping_timeout_s=0.1) as on:
            client, backend = await on.join()
            assert await silent(client, for_s=0.8)
            await backend.send(b"x")
            assert await client.payload(1) == b"x"

    run(story())


def test_a_ping_does_not_come_between_the_halves_of_a_frame(run: Run, stage, tmp_path):
    """The client reads so slowly that a PING falls due while a frame is half sent; the parser would trip over it."""

    async def story():
        async with stage(
            settings=unix_settings(tmp_path), frame_type="binary", ping_interval_s=0.1, ping_timeout_s=DEADLINE_S
        ) as on:
            client, backend = await on.join()
            said = os.urandom(1_000_000)
            saying = asyncio.create_task(backend.send(said))
            client.read_bytes = 50_000
            got = bytearray()
            while len(got) < len(said):
                heard = await client.frame()
                assert heard.opcode in {BINARY, PING}
                if heard.opcode is BINARY:
                    got += heard.data
                    await asyncio.sleep(0.05)
            assert bytes(got) == said
            await saying

    run(story())


# --- idle timeouts


def test_a_client_that_says_nothing_for_max_read_idle_is_let_go_with_a_close(run: Run, stage):
    """mod_wstunnel's CLOSE never leaves: the client sees a bare EOF."""

    async def story():
        async with stage(max_read_idle_s=0.5, close_timeout_s=0.3) as on:
            client, backend = await on.join()
            began = time.monotonic()
            heard = await client.to_end(answer=True)
            assert time.monotonic() - began > 0.5 - GRAIN_S
            assert heard.code in {1001, 1008, 1011}
            await backend.gone()
            assert (await on.line())["closed_by"] == "server"

    run(story())


@pytest.mark.parametrize("what", ["pongs", "data"])
def test_pongs_and_data_count_as_life(run: Run, stage, what):
    async def story():
        async with stage(max_read_idle_s=1.0, ping_interval_s=0.1 if what == "pongs" else 0.0) as on:
            client, backend = await on.join()
            began = time.monotonic()
            while time.monotonic() - began < 2.5:
                if what == "pongs":
                    heard = await client.frame()
                    assert heard.opcode is PING, heard
                    await client.send(frame(PONG, heard.data))
                else:
                    await client.send(frame(TEXT, b"x"))
                    assert await backend.recv_exactly(1) == b"x"
                    await asyncio.sleep(0.1)
            await client.send(close_frame(1000))
            assert await backend.recv_to_end() == b""

    run(story())


def test_a_client_that_takes_nothing_for_max_write_idle_is_let_go(run: Run, stage, tmp_path):
    async def story():
        async with stage(settings=unix_settings(tmp_path), max_write_idle_s=0.5, close_timeout_s=0.3) as on:
            _client, backend = await on.join()
            began = time.monotonic()
            with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012
                while True:
                    await backend.send(b"x" * 65_536)
            assert time.monotonic() - began > 0.5 - GRAIN_S
            line = await on.line()
            assert line["closed_by"] == "server"

    run(story())


def test_a_backend_that_takes_nothing_for_max_write_idle_is_let_go(run: Run, stage, tmp_path):
    async def story():
        async with stage(settings=unix_settings(tmp_path), max_write_idle_s=0.5, close_timeout_s=0.3) as on:
            client, _backend = await on.join()
            began = time.monotonic()

            async def push():
                while True:
                    await client.send(frame(BINARY, b"x" * 65_536))

            pushing = asyncio.create_task(push())
            heard = await client.frame()
            assert time.monotonic() - began > 0.5 - GRAIN_S
            assert heard.opcode is CLOSE
            assert int.from_bytes(heard.data, "big") in {1001, 1011}
            await asyncio.gather(pushing, return_exceptions=True)
            assert (await on.line())["closed_by"] == "server"

    run(story())


@pytest.mark.parametrize("slow", ["client", "backend"])
def test_a_peer_that_is_slow_but_moves_is_never_cut_off(run: Run, stage, tmp_path, slow):
    """It takes four times as long as max-write-idle in all, and never stands still that long."""

    async def story():
        async with stage(
            settings=unix_settings(tmp_path), frame_type="binary", max_write_idle_s=1.0, close_timeout_s=0.5
        ) as on:
            client, backend = await on.join()
            total, piece = 2_000_000, 50_000  # 40 pieces, 0.1 s each
            if slow == "backend":
                saying = asyncio.create_task(client.send(frame(BINARY, bytes(total)) + close_frame(1000)))
            else:
                saying = asyncio.create_task(backend.send(bytes(total)))
            got = 0
            while got < total:
                if slow == "backend":
                    got += len(await backend.recv_exactly(piece))
                else:
                    client.read_bytes = piece
                    heard = await client.frame()
                    assert heard.opcode is not CLOSE, f"cut off after {got} bytes"
                    got += len(heard.data)
                await asyncio.sleep(0.1)
            await saying
            if slow == "backend":
                assert await backend.recv() == b""
                backend.close()
                assert (await client.to_end()).code == 1000

    run(story())


def test_an_idle_tunnel_is_not_a_stalled_one(run: Run, stage):
    """max-write-idle counts only while there is something to take: mod_wstunnel cuts a client that is talking."""

    async def story():
        async with stage(max_write_idle_s=0.3, close_timeout_s=0.2) as on:
            client, backend = await on.join()
            heard = bytearray()

            async def listen():
                while piece := await backend.recv():
                    heard.extend(piece)

            listening = asyncio.create_task(listen())
            assert await quiet(lambda: len(heard), for_s=1.0) == 0
            began = time.monotonic()
            while time.monotonic() - began < 1.0:
                await client.send(frame(TEXT, b"x"))
                await asyncio.sleep(0.05)
            await client.send(close_frame(1000))
            await listening
            assert heard
            backend.close()
            assert (await client.to_end()).code == 1000

    run(story())
