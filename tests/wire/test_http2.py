"""What only HTTP/2 has: heads that CONNECT, streams side by side, windows, and the ends of streams and connections."""

from __future__ import annotations

import asyncio
import os

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from tests.conftest import Run
from tests.wire.backends import echo
from tests.wire.clients import BINARY, CLOSE, TEXT, close_frame, frame
from tests.wire.h2client import Connection, H2Client
from tests.wire.sockets import eventually, quiet
from tests.wire.tlsend import NAME

pytestmark = pytest.mark.over("h2c", "h2+tls", because="streams")

BULK = os.urandom(1 << 20)
BLOCK = os.urandom(65_521)


def head(client: H2Client, **changes: str | None) -> list[tuple[str, str]]:
    """An extended CONNECT without fault, but for what is changed; None leaves a field out."""
    fields = {
        "method": "CONNECT",
        "protocol": "websocket",
        "scheme": client.connection.scheme,
        "authority": NAME,
        "path": "/",
        "sec_websocket_version": "13",
    } | changes
    pseudo = {"method", "protocol", "scheme", "authority", "path"}
    return [
        (f":{name}" if name in pseudo else name.replace("_", "-"), value)
        for name, value in fields.items()
        if value is not None
    ]


async def speaks(client: H2Client, word: bytes = b"hello") -> None:
    await client.send(frame(TEXT, word))
    assert await client.payload(len(word)) == word


# --- the handshake

REFUSED = {
    "no version": ({"sec_websocket_version": None}, 400),
    "another version": ({"sec_websocket_version": "8"}, 400),
    "two versions": ({"sec_websocket_version": "13, 8"}, 400),
    "a key that is none": ({"sec_websocket_key": "c2hvcnQ="}, 400),
    "a path that nobody serves": ({"path": "/other"}, 404),
    "a foreign origin": ({"origin": "https://evil.example"}, 403),
    "a protocol that is not spoken": ({"protocol": "connect-udp"}, 501),
    "CONNECT as a proxy knows it": (
        {"protocol": None, "scheme": None, "path": None, "authority": "elsewhere.test:443"},
        501,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_handshake_has_its_status_and_disturbs_no_other_stream(run: Run, stage, name):
    changes, status = REFUSED[name]

    async def story():
        async with stage(path="/ws") as on:
            on.backend.serve(echo)
            beside = await on.client("/ws")
            for _ in range(3):
                client = await on.reach()
                assert client.connection is beside.connection
                response = await client.ask(head(client, **{"path": "/ws", **changes}))
                assert response.status == status
                assert "upgrade" not in response.headers
                client.close()
                await speaks(beside)
            await (await on.reach()).upgrade("/ws")
            on.joined += 1

    run(story())


def test_a_client_that_sends_a_key_all_the_same_gets_its_accept(run: Run, stage):
    """undici and niquests do, and insist."""

    async def story():
        async with stage() as on:
            on.backend.serve(echo)
            client = await on.client(has_key=True)
            await speaks(client)

    run(story())


@pytest.mark.parametrize("host", ["tunnel.test", "TUNNEL.test:443", "tunnel.test:80"])
def test_the_authority_is_what_an_origin_is_compared_with(run: Run, stage, host):
    async def story():
        async with stage() as on:
            client = await on.reach()
            scheme = client.connection.scheme
            is_own = host.lower() in {"tunnel.test", "tunnel.test:443" if scheme == "https" else "tunnel.test:80"}
            response = await client.ask(head(client, authority=host, origin=f"{scheme}://tunnel.test"))
            assert response.status == (200 if is_own else 403)
            on.joined += is_own

    run(story())


# --- streams side by side


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_stream_that_stalls_stalls_no_other(run: Run, stage, way):
    async def story():
        async with stage(frame_type="binary") as on:
            stalled, sink = await on.join()
            on.backend.serve(echo)
            others = [await on.client() for _ in range(9)]
            assert {client.connection for client in others} == {stalled.connection}
            sent, count = 0, 256

            async def push():
                nonlocal sent
                for _ in range(count):
                    await (stalled.send(frame(BINARY, BLOCK)) if way == "up" else sink.send(BLOCK))
                    sent += 1

            pushing = asyncio.create_task(push())
            assert await quiet(lambda: sent) < count
            for client in others:
                sending = asyncio.create_task(client.send(frame(BINARY, BULK)))
                assert await client.payload(len(BULK)) == BULK
                await sending

            got = bytearray()
            while len(got) < count * len(BLOCK):
                got += await sink.recv() if way == "up" else (await stalled.frame()).data
            assert bytes(got) == BLOCK * count
            await pushing

    run(story())


def test_a_hundred_tunnels_of_one_connection_hear_their_own_words(run: Run, stage):
    async def story():
        async with stage(frame_type="binary") as on:
            on.backend.serve(echo)
            clients = [await on.client() for _ in range(100)]
            assert len({client.connection for client in clients}) == 1

            async def visit(client: H2Client, number: int) -> None:
                words = number.to_bytes(2, "big") * (1 + number * 1_000)
                sending = asyncio.create_task(client.send(frame(BINARY, words)))
                assert await client.payload(len(words)) == words
                await sending
                await client.send(close_frame(3000 + number))
                assert (await client.to_end()).code == 3000 + number

            await asyncio.gather(*(visit(client, number) for number, client in enumerate(clients)))
            await eventually(lambda: len(on.lines) == 100, "every access line")
            await eventually(lambda: not clients[0].connection.streams, "every stream has ended on both sides")

    run(story())


def test_tunnels_come_and_go_on_one_connection(run: Run, stage):
    """More of them, one after the other, than may be open at once."""

    async def story():
        async with stage() as on:
            on.backend.serve(echo)
            first = await on.client()
            for number in range(300):
                client = await on.client()
                assert client.connection is first.connection
                await speaks(client, b"%d" % number)
                if number % 3:
                    await client.send(close_frame(1000))
                    assert (await client.to_end()).code == 1000
                else:
                    client.reset()
            await speaks(first)

    run(story())


# --- windows and frames


def test_payload_and_the_end_of_the_stream_in_one_frame(run: Run, stage):
    async def story():
        async with stage() as on:
            client, backend = await on.join()
            client.end.finish(frame(TEXT, b"the last"))
            assert await backend.recv_to_end() == b"the last"
            await backend.send(b"goodbye")
            backend.close()
            heard = await client.to_end()
            assert (bytes(heard.data), heard.code, heard.reset) == (b"goodbye", None, False)

    run(story())


def test_padding_is_no_payload_and_comes_back_to_the_windows(run: Run, stage):
    """More padding than any window holds."""

    async def story():
        async with stage() as on:
            client, backend = await on.join()
            h2, stream = client.connection.h2, client.end
            for number in range(1_000):
                wire = frame(BINARY, b"%04d" % number)
                await client.connection.until(lambda: h2.local_flow_control_window(stream.id) >= 300)
                h2.send_data(stream.id, wire, pad_length=255)
                client.connection.push()
                assert await backend.recv_exactly(4) == b"%04d" % number

    run(story())


def test_a_window_that_becomes_negative_is_waited_for(run: Run, stage):
    """SETTINGS_INITIAL_WINDOW_SIZE changes the windows of streams that are open (RFC 9113 §6.9.2)."""

    async def story():
        async with stage(frame_type="binary") as on:
            client, backend = await on.join()
            connection: Connection = client.connection
            saying = asyncio.create_task(backend.send(BULK))
            got = bytearray()
            for size in (1, 100_000, 0, 16_384, 2_048):
                await quiet(lambda: len(client.end.unread), for_s=0.05)
                connection.check()
                connection.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: size})
                connection.push()
                while len(got) < len(BULK) // 8 * (size > 0):
                    got += (await client.frame()).data
            while len(got) < len(BULK):
                got += (await client.frame()).data
            await saying
            assert bytes(got) == BULK

    run(story())


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_window_of_a_few_bytes_is_kept_to_and_enough(run: Run, stage, size):
    """The head of a frame comes in pieces too."""

    async def story():
        async with stage(frame_type="binary") as on:
            client = await on.reach(buffer_bytes=size)
            await client.connection.open()
            client.connection.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: size})
            await client.upgrade()
            on.joined += 1
            backend = await on.backend.accept()
            await backend.send(b"x" * 300)
            client.read_bytes = size
            got = bytearray()
            while len(got) < 300:
                got += (await client.frame()).data
            assert got == b"x" * 300
            backend.close()
            assert (await client.frame()).opcode is CLOSE

    run(story())


# --- ends


def test_a_reset_stream_ends_its_own_backend_only(run: Run, stage):
    async def story():
        async with stage() as on:
            client, backend = await on.join()
            on.backend.serve(echo)
            beside = await on.client()
            await client.send(frame(TEXT, b"cut me"))
            client.reset()
            assert await backend.recv_to_end() == b"cut me"
            backend.close()
            await eventually(lambda: len(on.lines) == 1, "its access line")
            assert (on.lines[0]["code"], on.lines[0]["closed_by"], on.lines[0]["bytes_in"]) == (1006, "client", 6)
            await speaks(beside)

    run(story())


@pytest.mark.parametrize("way", ["close", "reset"])
def test_the_end_of_the_connection_ends_every_tunnel_and_delivers_what_was_in(run: Run, stage, way):
    async def story():
        async with stage() as on:
            pairs = [await on.join() for _ in range(10)]
            for number, (client, backend) in enumerate(pairs):
                await client.send(frame(TEXT, b"%d" % number))
                if way == "reset":  # which may overtake what it follows
                    assert await backend.recv_exactly(1) == b"%d" % number
            connection = pairs[0][0].connection
            connection.reset() if way == "reset" else connection.close()
            for number, (_, backend) in enumerate(pairs):
                assert await backend.recv_to_end() == (b"" if way == "reset" else b"%d" % number)
                backend.close()
            await eventually(lambda: len(on.lines) == 10, "every access line")
            assert {(line["code"], line["closed_by"]) for line in on.lines} == {(1006, "client")}

    run(story())


def test_a_server_that_has_ended_a_stream_lets_the_client_off_without_an_error(run: Run, stage):
    """After its CLOSE and END_STREAM the server may say RST_STREAM(NO_ERROR), and nothing worse (RFC 9113 §8.1)."""

    async def story():
        async with stage(close_timeout_s=0.3) as on:
            client, backend = await on.join()
            backend.close()
            assert (await client.frame()).opcode is CLOSE
            assert await client.frame() is None
            await eventually(lambda: client.end.reset_code is not None, "the client is told not to go on")
            assert client.end.reset_code is ErrorCodes.NO_ERROR

    run(story())


@pytest.mark.parametrize("is_used", [False, True])
def test_stop_says_goaway_and_ends_the_connection(run: Run, stage, is_used):
    async def story():
        async with stage(path="/ws") as on:
            client = await on.reach()
            await client.connection.open()
            if is_used:
                assert (await client.request("/nothing")).status == 404
            await on.tunnel.stop()
            await eventually(lambda: client.connection.is_over, "the connection ends")
            assert client.connection.goaway_code == ErrorCodes.NO_ERROR
            assert client.connection.fault is None

    run(story())


def test_stop_says_goaway_while_tunnels_end_and_refuses_new_ones(run: Run, stage):
    async def story():
        async with stage(frame_type="binary") as on:
            client, backend = await on.join()
            stopping = asyncio.create_task(on.tunnel.stop())
            await eventually(lambda: client.connection.goaway_code == ErrorCodes.NO_ERROR, "GOAWAY")
            assert await backend.recv_to_end() == b""
            await backend.send(b"goodbye")
            backend.close()
            heard = await client.to_end(answer=True)
            assert (bytes(heard.data), heard.code, heard.reset) == (b"goodbye", 1001, False)
            await stopping
            await eventually(lambda: client.connection.is_over, "the connection ends")

    run(story())
