"""Every row of the table of endings: nothing received before an end is lost, and the end is told truthfully.

Each test that has a Stage also proves that both sockets were given back (the leak check counts descriptors) and that
exactly one access line was written.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket

import pytest

from tests.conftest import Run
from tests.wire.backends import Backend, echo
from tests.wire.clients import BINARY, CLOSE, NO_STATUS, TEXT, Client, Refused, close_frame, crooked, frame, silent
from tests.wire.sockets import eventually, quiet
from tests.wire.stage import Stage
from wstunnel import Settings, UnixAddress

BULK = os.urandom(1 << 21)
"""More than the kernel and the tunnel hold together between two UNIX sockets, so that someone has to wait."""

SHORT_S = 0.4
"""A close-timeout that a test can wait for."""


def unix_settings(tmp_path) -> Settings:
    return Settings(listen=(UnixAddress(str(tmp_path / "client.sock")),))


# --- the client says CLOSE


@pytest.mark.parametrize(
    "code", [None, 1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
)
def test_a_client_close_is_answered_with_its_own_code(run: Run, stage, code):
    async def story():
        async with stage() as on:
            client, backend = await on.join()
            await client.send(close_frame(code))
            assert await backend.recv_to_end() == b""
            backend.close()

            heard = await client.to_end()
            assert heard.code == (NO_STATUS if code is None else code)
            assert not heard.reset
            line = await on.line()
            assert (line["code"], line["closed_by"]) == (heard.code, "client")

    run(story())


def test_a_close_with_the_longest_reason_is_answered(run: Run, stage):
    async def story():
        async with stage() as on:
            client, backend = await on.join()
            await client.send(close_frame(4000, "ß" * 61 + "."))
            assert await backend.recv_to_end() == b""
            backend.close()
            assert (await client.to_end()).code == 4000

    run(story())


@pytest.mark.parametrize("size", [1, 10, 2_000, 65_536, 200_000, len(BULK)])
def test_data_and_close_in_one_write_the_data_wins(run: Run, stage, size):
    """mod_wstunnel drops it: 10 bytes in, 0 bytes out."""

    async def story():
        async with stage() as on:
            client, backend = await on.join()
            sending = asyncio.create_task(client.send(frame(BINARY, BULK[:size]) + close_frame(1000)))

            assert await backend.recv_to_end() == BULK[:size]
            await sending
            backend.close()
            assert (await client.to_end()).code == 1000
            line = await on.line()
            assert (line["bytes_in"], line["messages_in"]) == (size, 1)

    run(story())


def test_what_the_backend_still_says_after_a_client_close_arrives_before_the_answer(run: Run, stage):
    async def story():
        async with stage(frame_type="binary") as on:
            client, backend = await on.join()
            await client.send(frame(TEXT, b"last question") + close_frame(3000))
            assert await backend.recv_to_end() == b"last question"
            answering = asyncio.create_task(backend.send(BULK))

            heard = asyncio.create_task(client.to_end())
            await answering
            backend.half_close()
            ended = await heard
            assert bytes(ended.data) == BULK
            assert ended.code == 3000
            assert (await on.line())["bytes_out"] == len(BULK)

    run(story())


def test_data_under_way_both_ways_when_the_client_closes_arrives_both_ways(run: Run, stage):
    """The client has not read a byte yet when it says CLOSE; the backend has not either."""

    async def story():
        async with stage(frame_type="binary") as on:
            client, backend = await on.join()
            upward = asyncio.create_task(client.send(frame(BINARY, BULK) + close_frame(1001)))
            downward = asyncio.create_task(backend.send(BULK[::-1]))
            listening = asyncio.create_task(client.to_end())

            assert await backend.recv_to_end() == BULK
            await asyncio.gather(upward, downward)
            backend.close()
            heard = await listening
            assert bytes(heard.data) == BULK[::-1]
            assert heard.code == 1001

    run(story())


@pytest.mark.parametrize("way", ["client CLOSE", "client EOF"])
def test_a_backend_that_never_ends_is_left_after_the_close_timeout(run: Run, stage, way):
    async def story():
        async with stage(close_timeout_s=SHORT_S) as on:
            client, backend = await on.join()
            await client.send(frame(TEXT, b"so long"))
            if way == "client CLOSE":
                await client.send(close_frame(4001))
            else:
                client.half_close()

            assert await backend.recv_to_end() == b"so long"
            heard = await client.to_end()
            assert heard.code == (4001 if way == "client CLOSE" else None)
            await eventually_refused(backend)

    run(story())


async def eventually_refused(wire):
    """The tunnel's end of this connection is closed: what is said to it comes back as an error."""

    def refused():
        try:
            wire.send_now(b"x")
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    await eventually(refused, "the other end is closed")


def test_a_backend_that_reads_slowly_is_not_cut_off_by_the_close_timeout(run: Run, stage):
    """The close-timeout counts from when it has taken in all that was sent to it."""

    async def story():
        async with stage(close_timeout_s=SHORT_S) as on:
            client, backend = await on.join()
            sending = asyncio.create_task(client.send(frame(BINARY, BULK[:600_000]) + close_frame(1000)))
            got = bytearray()
            while piece := await backend.recv(30_000):
                got += piece
                await asyncio.sleep(SHORT_S / 5)  # slow: 20 pieces take 4 times the close-timeout
            assert bytes(got) == BULK[:600_000]
            await sending
            await backend.send(b"got it all")
            backend.close()
            heard = await client.to_end()
            assert (bytes(heard.data), heard.code) == (b"got it all", 1000)

    run(story())


@pytest.mark.parametrize("way", ["client CLOSE", "backend EOF"])
def test_a_client_that_reads_slowly_is_not_cut_off_by_the_close_timeout(run: Run, stage, tmp_path, way):
    async def story():
        async with stage(settings=unix_settings(tmp_path), frame_type="binary", close_timeout_s=SHORT_S) as on:
            client, backend = await on.join()
            if way == "client CLOSE":
                await client.send(close_frame(1000))
                assert await backend.recv_to_end() == b""

            async def say():
                await backend.send(BULK[:800_000])
                backend.half_close()

            saying = asyncio.create_task(say())
            client.read_bytes = 40_000
            got = bytearray()
            while (heard := await client.frame()).opcode is not CLOSE:
                got += heard.data
                await asyncio.sleep(SHORT_S * len(heard.data) / 200_000)  # slow: all takes 4 times the close-timeout
            assert bytes(got) == BULK[:800_000]
            assert heard.data == (1000).to_bytes(2, "big")
            await saying
            if way == "backend EOF":
                await client.send(close_frame(1000))
            assert await client.frame() is None

    run(story())


def test_frames_after_the_clients_close_are_not_listened_to(run: Run, stage):
    async def story():
        async with stage() as on:
            client, backend = await on.join()
            await client.send(frame(TEXT, b"in time") + close_frame(1000) + frame(TEXT, b"too late") + b"\xff\xff\xff")

            assert await backend.recv_to_end() == b"in time"
            backend.close()
            heard = await client.to_end()
            assert (heard.code, heard.pongs) == (1000, [])

    run(story())


def test_a_backend_that_resets_while_it_is_drained_does_not_hold_the_tunnel(run: Run, stage):
    async def story():
        async with stage() as on:
            client, backend = await on.join()
            await client.send(frame(TEXT, b"unread") + close_frame(3000))
            await backend.recv_exactly(1)
            backend.close()  # with unread bytes

            heard = await client.to_end()
            assert heard.code in {3000, 1011}

    run(story())


def test_a_client_that_leaves_right_after_its_close_has_said_everything(run: Run, stage):
    async def story():
        async with stage() as on:
            client, backend = await on.join()
            await client.send(frame(BINARY, BULK[:100_000]) + close_frame(1000))
            client.close()

            assert await backend.recv_to_end() == BULK[:100_000]
            backend.close()
            assert (await on.line())["bytes_in"] == 100_000

    run(story())


# --- the client's EOF without CLOSE


@pytest.mark.parametrize("size", [0, 10, len(BULK)])
def test_a_client_half_close_ends_the_backends_input_and_its_output_goes_on(run: Run, stage, size):
    """mod_wstunnel hangs here until its idle timeout (data and FIN together), or loses the answer."""

    async def story():
        async with stage(frame_type="binary") as on:
            client, backend = await on.join()

            async def say():
                await client.send(frame(BINARY, BULK[:size]))
                client.half_close()

            saying = asyncio.create_task(say())
            assert await backend.recv_to_end() == BULK[:size]
            await saying
            answering = asyncio.create_task(backend.send(BULK[::-1]))
            listening = asyncio.create_task(client.to_end())
            await answering
            backend.close()
            heard = await listening
            assert bytes(heard.data) == BULK[::-1]
            assert heard.code is None, "there is no CLOSE to answer"
            line = await on.line()
            assert (line["code"], line["closed_by"], line["bytes_out"]) == (1006, "client", len(BULK))

    run(story())


@pytest.mark.parametrize("cut", [1, 2, 5, 6, 7, 12])
def test_an_eof_inside_a_frame_delivers_the_part_that_came(run: Run, stage, cut):
    async def story():
        async with stage() as on:
            client, backend = await on.join()
            await client.send(frame(TEXT, b"whole ") + frame(TEXT, b"broken")[:cut])
            client.half_close()

            assert await backend.recv_to_end() == b"whole " + b"broken"[: max(0, cut - 6)]
            backend.close()
            assert (await client.to_end()).code is None

    run(story())


# --- the client's reset


def test_a_client_reset_ends_the_backends_connection(run: Run, stage):
    async def story():
        async with stage() as on:
            client, backend = await on.join()
            await client.send(frame(TEXT, b"cut me"))
            assert await backend.recv_exactly(6) == b"cut me"
            client.reset()

            await backend.gone()
            backend.close()
            line = await on.line()
            assert (line["code"], line["closed_by"], line["bytes_in"]) == (1006, "client", 6)

    run(story())


def test_a_client_reset_while_the_backend_talks_stops_the_backend(run: Run, stage):
    async def story():
        async with stage(frame_type="binary", close_timeout_s=SHORT_S) as on:
            client, backend = await on.join()

            async def talk():
                while True:
                    await backend.send(BULK)

            talking = asyncio.create_task(talk())
            await client.frame()
            client.reset()

            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                await talking
            assert (await on.line())["closed_by"] == "client"

    run(story())


def test_a_client_reset_behind_a_stalled_backend_delivers_what_was_in_and_is_released(run: Run, stage):
    async def story():
        async with stage() as on:
            client, backend = await on.join()
            wire, sent = frame(BINARY, BULK), 0

            async def push():
                nonlocal sent
                while sent < len(wire):
                    sent += client.send_now(wire[sent : sent + 65_536])
                    await asyncio.sleep(0)

            pushing = asyncio.create_task(push())
            await quiet(lambda: sent, for_s=0.1)
            pushing.cancel()
            client.reset()

            got = bytearray()
            try:
                while piece := await backend.recv():
                    got += piece
            except ConnectionResetError:
                pass
            assert got
            assert BULK.startswith(bytes(got))
            backend.close()
            await on.line()

    run(story())


# --- the backend's EOF


@pytest.mark.parametrize("half", [False, True], ids=["close", "half-close"])
@pytest.mark.parametrize("size", [0, 1, 65_536, len(BULK)])
def test_a_backend_eof_is_a_close_1000_behind_all_that_it_said(run: Run, stage, size, half):
    async def story():
        async with stage(frame_type="binary") as on:
            client, backend = await on.join()

            async def say():
                await backend.send(BULK[:size])
                backend.half_close() if half else backend.close()

            saying = asyncio.create_task(say())
            heard = await client.to_end(answer=True)
            assert bytes(heard.data) == BULK[:size]
            assert (heard.code, heard.reset) == (1000, False)
            await saying
            line = await on.line()
            assert (line["code"], line["closed_by"], line["bytes_out"]) == (1000, "backend", size)

    run(story())


def test_what_the_client_says_before_it_answers_reaches_a_backend_that_only_half_closed(run: Run, stage):
    """mod_wstunnel takes a half-close for the end: later client bytes never arrive."""

    async def story():
        async with stage(frame_type="binary") as on:
            client, backend = await on.join()
            await client.send(frame(BINARY, b"before"))
            await backend.send(b"that is all from me")
            backend.half_close()

            assert await client.payload(19) == b"that is all from me"
            assert (await client.frame()).opcode is CLOSE
            sending = asyncio.create_task(client.send(frame(BINARY, BULK) + close_frame(1000)))
            assert await backend.recv_to_end() == b"before" + BULK
            await sending
            assert await client.frame() is None
            client.close()
            line = await on.line()
            assert (line["code"], line["closed_by"], line["bytes_in"]) == (1000, "backend", 6 + len(BULK))

    run(story())


def test_a_client_that_does_not_answer_the_close_is_left_after_the_close_timeout(run: Run, stage):
    async def story():
        async with stage(close_timeout_s=SHORT_S) as on:
            client, backend = await on.join()
            backend.close()

            heard = await client.to_end(answer=False)
            assert heard.code == 1000
            await on.line()

    run(story())


def test_a_client_that_talks_on_and_never_answers_is_left_too(run: Run, stage):
    async def story():
        async with stage(close_timeout_s=SHORT_S) as on:
            client, backend = await on.join()
            backend.close()

            with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012
                while True:
                    await client.send(frame(TEXT, b"and another thing"))
                    await asyncio.sleep(0.001)
            await on.line()

    run(story())


def test_a_client_eof_is_answer_enough_to_a_close(run: Run, stage):
    async def story():
        async with stage(close_timeout_s=60.0) as on:
            client, backend = await on.join()
            backend.close()
            assert (await client.frame()).opcode is CLOSE
            client.half_close()

            assert await client.frame() is None
            await on.line()

    run(story())


def test_a_backend_that_ends_before_it_heard_anything_is_a_close_1000(run: Run, stage):
    async def story():
        async with stage() as on:
            client = await on.client()
            (await on.backend.accept()).close()
            assert (await client.to_end(answer=True)).code == 1000

    run(story())


def test_both_ends_at_once_are_one_clean_end(run: Run, stage):
    async def story():
        async with stage() as on:
            client, backend = await on.join()
            await client.send(frame(TEXT, b"bye") + close_frame(3000))
            await backend.send(b"see you")
            backend.half_close()

            assert await backend.recv_to_end() == b"bye"
            heard = await client.to_end(answer=False)
            assert bytes(heard.data) == b"see you"
            assert heard.code in {1000, 3000}
            assert not heard.reset

    run(story())


# --- the backend breaks


@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize("size", [0, 5_000, 65_536])
def test_a_backend_reset_is_1011_behind_what_it_said(run: Run, stage, kind, size):
    async def story():
        async with stage(frame_type="binary", backend=Backend() if kind == "tcp" else None) as on:
            client, backend = await on.join()
            await client.send(frame(TEXT, b"never read"))
            await backend.recv_exactly(5)  # the rest stays unread: this makes the close a reset
            await backend.send(BULK[:size])
            backend.reset() if kind == "tcp" else backend.close()

            heard = await client.to_end(answer=True)
            # A TCP reset may overtake what it follows; on a UNIX socket nothing can.
            assert bytes(heard.data) == BULK[:size] or (kind == "tcp" and BULK[:size].startswith(bytes(heard.data)))
            assert heard.code == 1011
            line = await on.line()
            assert (line["code"], line["closed_by"]) == (1011, "backend")

    run(story())


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_backend_reset_under_a_clients_burst_is_1011_behind_what_it_said(run: Run, stage, kind):
    """The tunnel notices when it writes, not when it reads: the write must not eat the fault, nor what was said."""

    async def story():
        async with stage(frame_type="binary", backend=Backend() if kind == "tcp" else None) as on:
            client, backend = await on.join()
            listening = asyncio.create_task(client.to_end(answer=True))

            async def push():
                while True:
                    await client.send(frame(BINARY, BULK[:200_000]))

            pushing = asyncio.create_task(push())
            await backend.recv_exactly(1_000_000)
            await backend.send(b"I give up")
            await eventually(lambda: bool(select.select([backend.sock], [], [], 0)[0]), "something is unread")
            backend.reset() if kind == "tcp" else backend.close()

            await asyncio.wait([pushing, listening], return_when=asyncio.FIRST_COMPLETED)
            pushing.cancel()
            heard = await listening
            assert heard.code == 1011
            assert bytes(heard.data) == b"I give up"
            await asyncio.gather(pushing, return_exceptions=True)

    run(story())


# --- no backend


async def refused(on: Stage) -> Refused:
    with pytest.raises(Refused) as caught:
        await (await on.reach()).upgrade()
    return caught.value


@pytest.mark.parametrize("case", ["no socket", "nobody listens", "tcp port closed"])
def test_without_a_backend_the_handshake_is_answered_503_with_retry_after(run: Run, stage, tmp_path, case):
    async def story():
        backend = Backend() if case == "tcp port closed" else Backend(str(tmp_path / "gone.sock"))
        backend.sock.close()
        if case == "no socket":
            os.unlink(backend.route["socket"])
        async with stage(backend=backend) as on:
            response = (await refused(on)).response
            assert response.status == 503
            assert int(response.headers["retry-after"]) >= 1

    run(story())


async def fill(backend: Backend) -> list[socket.socket]:
    """Connect until the kernel takes no more connections for `backend`.

    Not by `connected`: asyncio too takes the EAGAIN of a full UNIX backlog for a connect under way.
    """
    held = []
    while True:
        sock = socket.socket(backend.sock.family)
        sock.setblocking(False)
        held.append(sock)
        if (problem := sock.connect_ex(backend.sock.getsockname())) == errno.EAGAIN:
            return held
        assert problem in {0, errno.EINPROGRESS}, os.strerror(problem)
        if problem and not select.select([], [sock], [], 0.2)[1]:  # the SYN was dropped
            return held


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_full_backlog_is_no_backend_and_not_a_101(run: Run, stage, tmp_path, kind):
    """mod_wstunnel takes EAGAIN for connected: 101, then a broken tunnel."""

    async def story():
        backend = Backend(None if kind == "tcp" else str(tmp_path / "full.sock"), backlog=0)
        async with stage(backend=backend, connect_timeout_s=SHORT_S, disable_time_s=0.0) as on:
            held = await fill(backend)
            try:
                response = (await refused(on)).response
                assert response.status in ({503} if kind == "unix" else {503, 504})
            finally:
                for sock in held:
                    sock.close()
            backend.serve(echo)  # those that we filled it with come first, and end at once
            await eventually(lambda: not select.select([backend.sock], [], [], 0)[0], "room in the backlog")
            client = await on.client()
            await client.send(frame(TEXT, b"room again"))
            assert await client.payload(10) == b"room again"

    run(story())


# --- the tunnel itself ends


async def read_and_close(backend) -> bytes:
    said = await backend.recv_to_end()
    backend.close()
    return said


def test_stop_tells_every_client_1001_and_every_backend_its_eof(run: Run, stage):
    async def story():
        async with stage() as on:
            pairs = [await on.join() for _ in range(20)]
            hearing = [asyncio.create_task(client.to_end(answer=True)) for client, _ in pairs]
            reading = [asyncio.create_task(read_and_close(backend)) for _, backend in pairs]

            await on.tunnel.stop()
            assert {heard.code for heard in await asyncio.gather(*hearing)} == {1001}
            assert set(await asyncio.gather(*reading)) == {b""}
            assert {(line["code"], line["closed_by"]) for line in on.lines} == {(1001, "server")}

    run(story())


def test_stop_delivers_what_was_under_way_both_ways(run: Run, stage):
    async def story():
        async with stage(frame_type="binary") as on:
            client, backend = await on.join()
            await client.send(frame(BINARY, BULK[:100_000]))
            await backend.send(BULK[100_000:200_000])

            stopping = asyncio.create_task(on.tunnel.stop())
            heard = asyncio.create_task(client.to_end(answer=True))
            assert await backend.recv_to_end() == BULK[:100_000]
            backend.close()
            ended = await heard
            assert bytes(ended.data) == BULK[100_000:200_000]
            assert ended.code == 1001
            await stopping

    run(story())


def test_stop_does_not_wait_for_ever_for_a_client_that_does_not_answer(run: Run, stage):
    async def story():
        async with stage(close_timeout_s=SHORT_S) as on:
            client, _ = await on.join()
            await on.tunnel.stop()
            assert (await client.to_end(answer=False)).code == 1001

    run(story())


@pytest.mark.over("h1", "h1+tls", because="heads of HTTP/1.1")
@pytest.mark.parametrize("said", [b"", b"GET / HTT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_stop_does_not_wait_for_half_a_head(run: Run, stage, said):
    async def story():
        async with stage() as on:
            client, address = await on.reach(), on.address
            await client.send(said)
            await on.tunnel.stop()
            await client.gone()
            with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
                await Client.reach(address)

    run(story())


# --- whatever the end, the CLOSE is heard


def test_a_client_in_the_middle_of_a_burst_hears_why_it_is_closed(run: Run, stage):
    """A socket that is closed with unread bytes resets: the reset must not take the CLOSE with it."""

    async def story():
        async with stage() as on:
            client, backend = await on.join()

            async def push():
                await client.send(crooked(0xC2, b"fault"))
                while True:
                    await client.send(frame(BINARY, BULK))

            pushing = asyncio.create_task(push())
            heard = await client.frame()
            assert (heard.opcode, heard.data) == (CLOSE, (1002).to_bytes(2, "big"))
            assert await backend.recv_to_end() == b""
            pushing.cancel()
            await asyncio.gather(pushing, return_exceptions=True)

    run(story())


# --- the line that is left


def test_the_access_line_says_who_what_and_how_much(run: Run, stage):
    async def story():
        async with stage(frame_type="binary") as on:
            client, backend = await on.join("/some/where?a=b")
            host, port = client.sock.getsockname()
            await client.send(frame(TEXT, b"12345", fin=True) + frame(BINARY, b"678"))
            assert await backend.recv_exactly(8) == b"12345678"
            assert not on.lines, "the line is written at the end"
            for said in (b"one", b"two", b"three"):
                await backend.send(said)
                assert await client.payload(len(said)) == said
            await client.send(close_frame(1000))
            assert await backend.recv_to_end() == b""
            backend.close()
            await client.to_end()

            line = await on.line()
            assert line["peer"] == f"{host}:{port}"
            assert line["path"].startswith("/some/where")
            assert on.backend.route["socket"] in line["backend"]
            assert (line["bytes_in"], line["messages_in"]) == (8, 2)
            assert (line["bytes_out"], line["messages_out"]) == (11, 3)
            assert 0 <= line["duration_s"] < 60
            assert (line["code"], line["closed_by"]) == (1000, "client")

    run(story())


def test_a_quiet_tunnel_stays_open(run: Run, stage):
    """No PING is asked for and nothing is said: nothing may end it."""

    async def story():
        async with stage(ping_interval_s=0.0, close_timeout_s=SHORT_S / 4) as on:
            client, backend = await on.join()
            assert await silent(client, for_s=SHORT_S)
            await backend.send(b"still here")
            assert await client.payload(10) == b"still here"

    run(story())
