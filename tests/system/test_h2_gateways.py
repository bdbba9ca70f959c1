"""HTTP/2 in front, scripted backends behind: what they get of a client, and what it gets of them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from h2.errors import ErrorCodes

from tests.conftest import Run
from tests.h2client import H2Client, connected
from tests.system.test_cgi import MIB
from tests.wire.backends import Backend
from tests.wire.sockets import Wire, eventually, quiet
from tests.wire.stage import LogTap
from wstunnel import Route, Settings, TcpAddress, Tunnel

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
WELCOME = b"\x81\x07welcome"
"""A frame of the server's."""

Script = Callable[[Wire], Awaitable[None]]


@pytest.fixture
def run() -> Run:
    return Run("uvloop")


@asynccontextmanager
async def standing(
    folder: Path, script: Script, *, gateway: str = "proxy", window_bytes: int | None = None, **options: Any
) -> AsyncIterator[H2Client]:
    """A client of one route, whose backend follows the script for each connection."""
    backend = Backend(str(folder / "backend"))
    backend.serve(script)
    given: Any = {"gateway": gateway, **backend.route, **options}
    settings = Settings(listen=(TcpAddress("127.0.0.1", 0),), h2c=True, routes=(Route(**given),))
    try:
        async with Tunnel(settings) as tunnel:
            address = tunnel.addresses[0]
            assert isinstance(address, TcpAddress)
            async with connected(window_bytes, host=address.host, port=address.port) as client:
                await client.settled()
                yield client
                assert client.goaway_codes == []
    finally:
        await backend.stop()


async def head_of(wire: Wire) -> bytes:
    """What the backend is asked, to the end of its head."""
    got = b""
    while not got.endswith(b"\r\n\r\n"):
        piece = await wire.recv(1)
        assert piece, got
        got += piece
    return got


async def netstring(wire: Wire) -> dict[str, str]:
    """What an SCGI backend is asked."""
    digits = b""
    while (piece := await wire.recv(1)) != b":":
        digits += piece
    got = b""
    while len(got) <= int(digits):
        got += await wire.recv(int(digits) + 1 - len(got))
    words = got[:-1].decode().split("\0")
    return dict(zip(words[::2], words[1::2], strict=False))


def saying(answer: bytes, heads: list[bytes] | None = None) -> Script:
    """A backend of HTTP/1.1 that answers every request with these bytes, and ends."""

    async def script(wire: Wire) -> None:
        head = await head_of(wire)
        if heads is not None:
            heads.append(head)
        await wire.send(answer)

    return script


def accept_of(key: str) -> str:
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode(), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


# --- what backends get


def test_a_backend_is_asked_over_http1(run: Run, tmp_path: Path):
    heads: list[bytes] = []

    async def story() -> None:
        async with standing(tmp_path, saying(b"HTTP/1.1 204 No\r\n\r\n", heads)) as client:
            fields = (("cookie", "a=1"), ("x-two", "2"), ("cookie", "b=2"), ("te", "trailers"), ("host", "a.example"))
            assert (await client.ask("/x%20y?z", *fields).answer()).status == 204

    run(story())
    (head,) = heads
    assert head.startswith(b"GET /x%20y?z HTTP/1.1\r\nHost: a.example\r\n")
    lines = head.lower().split(b"\r\n")
    for line in (b"cookie: a=1; b=2", b"x-two: 2", b"x-forwarded-proto: http", b"x-forwarded-host: a.example"):
        assert lines.count(line) == 1, line
    assert head.lower().count(b"\r\nhost:") == 1
    assert b"\r\n:" not in head


def test_a_body_of_unknown_length_goes_on_in_chunks(run: Run, tmp_path: Path):
    heard: list[bytes] = []

    async def script(wire: Wire) -> None:
        heard.append(await head_of(wire))
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            body += await wire.recv()
        heard.append(body)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def story() -> None:
        async with standing(tmp_path, script) as client:
            stream = client.ask("/", method="POST", is_whole=False)
            await stream.send(b"hello", is_last=False)
            client.h2.send_headers(stream.id, [("x-trailer", "1")], end_stream=True)
            client.push()
            assert bytes((await stream.answer()).body) == b"ok"

    run(story())
    assert b"\r\nTransfer-Encoding: chunked\r\n" in heard[0]
    assert heard[1] == b"5\r\nhello\r\n0\r\n\r\n", "without the trailers"


def test_variables_say_what_was_spoken(run: Run, tmp_path: Path):
    told: list[dict[str, str]] = []

    async def script(wire: Wire) -> None:
        told.append(await netstring(wire))
        body = b""
        while len(body) < int(told[-1].get("CONTENT_LENGTH") or 0):
            body += await wire.recv()
        await wire.send(b"Status: 200\r\n\r\n" + body)

    async def story() -> None:
        async with standing(tmp_path, script, gateway="scgi") as client:
            stream = client.ask("/x?y", ("cookie", "a=1"), ("cookie", "b=2"), method="POST", is_whole=False)
            await stream.send(b"of unknown length")
            assert bytes((await stream.answer()).body) == b"of unknown length"

    run(story())
    (variables,) = told
    wanted = {
        "SERVER_PROTOCOL": "HTTP/2.0",
        "REQUEST_SCHEME": "http",
        "CONTENT_LENGTH": "17",
        "HTTP_COOKIE": "a=1; b=2",
        "HTTP_HOST": "a.example",
        "REQUEST_URI": "/x?y",
    }
    assert {name: variables.get(name) for name in wanted} == wanted


# --- what clients get


@pytest.mark.parametrize(
    ("answer", "fields", "body"),
    [
        (
            b"HTTP/1.1 200 OK\r\nX-UPPER: 1\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nDate: x\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n",
            {"x-upper": "1", "date": "x"},
            b"hello",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\nProxy-Connection: x\r\nDate: x\r\n\r\nhello",
            {"date": "x", "content-length": "5"},
            b"hello",
        ),
        (b"HTTP/1.0 200 OK\r\nDate: x\r\n\r\nto the end", {"date": "x"}, b"to the end"),
    ],
    ids=["chunks", "length", "end"],
)
def test_nothing_that_speaks_of_one_connection_reaches_the_client(
    run: Run, tmp_path: Path, answer: bytes, fields: dict[str, str], body: bytes
):
    async def story() -> None:
        async with standing(tmp_path, saying(answer)) as client:
            got = await client.ask().answer()
            assert (got.status, bytes(got.body)) == (200, body)
            assert {**got.fields, "content-length": fields.get("content-length")} == {"content-length": None, **fields}
            assert got.fields.get("content-length", str(len(body))) == str(len(body))
            assert (got.is_whole, got.has_trailers) == (True, False)

    run(story())


def test_head_has_the_length_of_what_get_would_bring(run: Run, tmp_path: Path):
    async def story() -> None:
        async with standing(tmp_path, saying(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")) as client:
            got = await client.ask(method="HEAD").answer()
            assert (got.status, got.fields["content-length"], bytes(got.body)) == (200, "1000", b"")
            assert got.is_whole

    run(story())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf",
    ],
    ids=["length", "chunks"],
)
def test_a_backend_that_dies_within_its_answer_resets_its_stream_alone(run: Run, tmp_path: Path, answer: bytes):
    async def script(wire: Wire) -> None:
        if (await head_of(wire)).startswith(b"GET /cut"):
            await wire.send(answer)
        else:
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")

    async def story() -> None:
        with LogTap("wstunnel") as log:
            async with standing(tmp_path, script) as client:
                cut, good = client.ask("/cut"), client.ask("/good")
                assert (await cut.answer()).reset_code == ErrorCodes.INTERNAL_ERROR
                assert bytes(cut.body) == b"half"
                assert bytes((await good.answer()).body) == b"good"
            assert any("/cut" in text for text in log.texts())

    run(story())


def test_a_backend_is_held_back_by_a_client_that_does_not_read(run: Run, tmp_path: Path):
    sent = 0

    async def script(wire: Wire) -> None:
        nonlocal sent
        await head_of(wire)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (32 * MIB))
        for _ in range(32 * 16):
            await wire.send(bytes(MIB // 16))
            sent += MIB // 16

    async def story() -> None:
        async with standing(tmp_path, script, window_bytes=10_000) as client:
            client.is_slow = True
            stream = client.ask()
            await client.until(lambda: len(stream.body) == 10_000)
            assert await quiet(lambda: sent) < 8 * MIB, "every buffer is full"
            client.is_slow = False
            stream.take()
            assert len((await stream.answer()).body) == 32 * MIB

    run(story())


@pytest.mark.parametrize("gateway", ["proxy", "scgi"])
def test_a_client_that_leaves_within_its_answer_frees_the_backend(run: Run, tmp_path: Path, gateway: str):
    ended = asyncio.Event()

    async def script(wire: Wire) -> None:
        if gateway == "proxy":
            await head_of(wire)
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun")
        else:
            await netstring(wire)
            await wire.send(b"Status: 200\r\n\r\nbegun")
        assert await wire.recv() == b""
        ended.set()

    async def story() -> None:
        async with standing(tmp_path, script, gateway=gateway) as client:
            stream = client.ask()
            await client.until(lambda: stream.body)
            stream.reset()
            async with asyncio.timeout(20):
                await ended.wait()

    run(story())


# --- WebSockets


def upgrade(accept: str | None = None, more: bytes = b"") -> Script:
    """A backend that takes each handshake, says a frame, and echoes what it gets, as it is."""

    async def script(wire: Wire) -> None:
        head = await head_of(wire)
        assert head.startswith(b"GET /ws HTTP/1.1\r\n")
        (key,) = re.findall(rb"(?i)\r\nSec-WebSocket-Key: ([A-Za-z0-9+/=]{24})\r\n", head)
        for line in (b"upgrade: websocket", b"connection: upgrade", b"sec-websocket-version: 13"):
            assert head.lower().split(b"\r\n").count(line) == 1, head
        told = accept or accept_of(key.decode())
        await wire.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (told.encode(), more) + WELCOME
        )
        while piece := await wire.recv():
            await wire.send(piece)

    return script


@pytest.mark.parametrize("key", [None, KEY])
def test_a_backends_101_is_a_200(run: Run, tmp_path: Path, key: str | None):
    """The Accept is for a client that has sent a key. A length, which a 101 must not have, is not passed on."""

    async def story() -> None:
        more = b"Sec-WebSocket-Protocol: chat\r\nContent-Length: 0\r\n"
        async with standing(tmp_path, upgrade(more=more), upgrade=True) as client:
            stream = client.shake("/ws", *((("sec-websocket-key", key),) if key else ()))
            await client.until(lambda: len(stream.body) == len(WELCOME))
            assert stream.status == 200
            wanted = {"sec-websocket-protocol": "chat"}
            if key:
                wanted["sec-websocket-accept"] = accept_of(key)
            assert stream.fields == wanted
            body = os.urandom(MIB)
            await stream.send(body)
            await stream.answer()
            assert bytes(stream.body) == WELCOME + body
            assert stream.is_whole

    run(story())


@pytest.mark.parametrize("more", [b"", b"Content-Length: 3\r\n"])
def test_an_scgi_programs_101_is_a_200(run: Run, tmp_path: Path, more: bytes):
    """With lighttpd it hangs, or with a length breaks off."""

    async def script(wire: Wire) -> None:
        told = await netstring(wire)
        assert (told["HTTP_UPGRADE"], told["HTTP_CONNECTION"], told["REQUEST_METHOD"]) == (
            "websocket",
            "Upgrade",
            "GET",
        )
        accept = accept_of(told["HTTP_SEC_WEBSOCKET_KEY"]).encode()
        await wire.send(
            b"Status: 101\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %b\r\n%b\r\n" % (accept, more) + WELCOME
        )
        while piece := await wire.recv():
            await wire.send(piece)

    async def story() -> None:
        async with standing(tmp_path, script, gateway="scgi", upgrade=True) as client:
            stream = await client.shake("/ws").head()
            assert (stream.status, stream.pairs) == (200, [])
            await stream.send(b"and back")
            await stream.answer()
            assert (bytes(stream.body), stream.is_whole) == (WELCOME + b"and back", True)

    run(story())


def test_a_wrong_accept_is_502(run: Run, tmp_path: Path):
    async def story() -> None:
        async with standing(tmp_path, upgrade(accept_of("another key")), upgrade=True) as client:
            got = await client.shake("/ws").answer()
            assert (got.status, WELCOME in got.body) == (502, False)

    run(story())


@pytest.mark.parametrize(("said", "told"), [(b"403 No", 403), (b"404 Not Found", 404), (b"200 OK", 400)])
def test_a_backend_that_refuses_a_handshake_has_its_answer_passed_on(run: Run, tmp_path: Path, said: bytes, told: int):
    """Its 200 refuses too, which it would not do over HTTP/2."""

    async def story() -> None:
        answer = b"HTTP/1.1 %b\r\nContent-Length: 7\r\nX-Why: so\r\n\r\nno way\n" % said
        async with standing(tmp_path, saying(answer), upgrade=True) as client:
            got = await client.shake("/ws").answer()
            assert (got.status, bytes(got.body), got.fields["x-why"]) == (told, b"no way\n", "so")

    run(story())


@pytest.mark.parametrize("way", ["end", "reset", "gone"])
def test_a_client_that_leaves_its_websocket_is_noticed_by_the_backend(run: Run, tmp_path: Path, way: str):
    ended = asyncio.Event()

    async def script(wire: Wire) -> None:
        await upgrade()(wire)
        ended.set()

    async def story() -> None:
        async with standing(tmp_path, script, upgrade=True) as client:
            stream = await client.shake("/ws").head()
            if way == "end":
                stream.end()
            elif way == "reset":
                stream.reset()
            else:
                client.reset()
            async with asyncio.timeout(20):
                await ended.wait()
            await eventually(lambda: stream.is_over, "the stream is over")

    run(story())


def test_a_backend_that_ends_its_websocket_ends_the_stream(run: Run, tmp_path: Path):
    async def script(wire: Wire) -> None:
        head = await head_of(wire)
        (key,) = re.findall(rb"(?i)\r\nSec-WebSocket-Key: (\S+)\r\n", head)
        await wire.send(
            b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n%b"
            % (accept_of(key.decode()).encode(), WELCOME)
        )

    async def story() -> None:
        async with standing(tmp_path, script, upgrade=True) as client:
            stream = await client.shake("/ws").answer()
            assert (stream.status, bytes(stream.body)) == (200, WELCOME)

    run(story())
