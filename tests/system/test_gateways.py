"""One table for every gateway and wire: what docs/gateways.md shows runs as it stands there, and does the same
everywhere. Over HTTP/2 no program notices that it is not asked over HTTP/1.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close

from tests.conftest import Run
from tests.h2client import H2Stream, H2WebSocket, connected
from tests.system.test_cgi import DEADLINE_S, MIB, Answer, Client, until
from tests.system.test_control import ROOT, Service
from tests.system.test_scgi_fastcgi import needs_perl
from tests.wire.tls import client_context, issued, pem
from wstunnel import TcpAddress

FRAMED = ("tunnel", "stdio")
"""Gateways that end the WebSocket themselves."""
SPOKEN = ("proxy", "cgi", "scgi", "fastcgi")
"""Gateways whose programs are asked over HTTP, and speak WebSocket themselves."""
ASKED = [pytest.param(kind, marks=needs_perl if kind == "fastcgi" else ()) for kind in SPOKEN]
PAGE = (ROOT / "docs" / "gateways.md").read_text(encoding="utf-8")
SHARED = "Frames for cgi and scgi"
GOODBYE = "a client has left"
Wire = Literal["h1", "h2c", "h2"]
WIRES: tuple[Wire, ...] = ("h1", "h2c", "h2")
"""In the clear, in the clear with prior knowledge, and over TLS with ALPN."""


def examples() -> dict[str, dict[str, str]]:
    """Under each heading of the page that has any: its files, by name."""
    found = {}
    for section in PAGE.split("\n## ")[1:]:
        files = dict(re.findall(r"^`([a-z.]+)`[^\n]*:\n\n```[a-z]+\n(.*?)^```$", section, re.DOTALL | re.MULTILINE))
        if files:
            found[section.partition("\n")[0]] = files
    return found


class Socket(H2WebSocket):
    """As websockets' client, as far as the table needs it."""

    async def ping(self, data: bytes) -> Awaitable[None]:
        return self.pinged(data)


class OneSocket:
    """The same face of both clients."""

    def __init__(self, websocket: ClientConnection | Socket) -> None:
        self._websocket = websocket

    def __getattr__(self, name: str) -> Any:
        return getattr(self._websocket, name)

    @property
    def close_rcvd(self) -> Close | None:
        return self._websocket.protocol.close_rcvd

    def leave(self) -> None:
        """Without a word."""
        if isinstance(self._websocket, Socket):
            self._websocket.drop()
        else:
            self._websocket.transport.abort()


class Example:
    """An example of the page, run by `python -m wstunnel`, and asked over one wire."""

    def __init__(self, gateway: str, folder: Path, addresses: dict[Wire, TcpAddress]) -> None:
        self.gateway, self.folder, self._addresses = gateway, folder, addresses
        self.wire: Wire = "h1"

    @property
    def is_framed(self) -> bool:
        return self.gateway in FRAMED

    @contextlib.asynccontextmanager
    async def client(self, *, is_binary: bool = False) -> AsyncIterator[OneSocket]:
        """A WebSocket; the program notices its end, in whatever way that comes."""
        before = self.goodbyes()
        async with self.websocket(is_binary=is_binary) as websocket:
            yield websocket
        await until(lambda: self.goodbyes() == before + 1)

    @contextlib.asynccontextmanager
    async def websocket(self, *, is_binary: bool = False) -> AsyncIterator[OneSocket]:
        """A client; where frames are ours it says what it wants to get."""
        wanted = ["binary"] if self.is_framed and is_binary else None
        if self.wire == "h1":
            address = self._addresses["h1"]
            async with connect(
                f"ws://{address}/echo", proxy=None, compression=None, max_size=None, subprotocols=wanted
            ) as websocket:
                yield OneSocket(websocket)
            return
        fields = (("sec-websocket-protocol", "binary"),) if wanted else ()
        async with self.connected() as client:
            await client.settled()
            stream = await client.shake("/echo", *fields).head()
            assert stream.status == 200, bytes(stream.body)
            assert not {"upgrade", "connection", "sec-websocket-accept"} & set(stream.fields)
            socket = Socket(stream)
            yield OneSocket(socket)
            if not stream.is_over:
                await socket.close()
            assert client.goaway_codes == []

    def connected(self, **how: Any) -> Any:
        """A connection of HTTP/2."""
        address = self._addresses[self.wire]
        if self.wire == "h2":
            context = client_context()
            context.set_alpn_protocols(["h2"])
            how |= {"ssl": context, "server_hostname": "localhost", "scheme": "https"}
        return connected(host=address.host, port=address.port, **how)

    async def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, *, is_length_told: bool = True
    ) -> Answer | H2Answer:
        if self.wire != "h1":
            async with self.connected() as client:
                fields = () if body is None or not is_length_told else (("content-length", str(len(body))),)
                stream = client.ask(path, *fields, method=method, is_whole=body is None)
                if body is not None:
                    await stream.send(body)
                await stream.answer()
                assert client.goaway_codes == []
                return H2Answer(stream)
        address = self._addresses["h1"]
        client = Client(*await asyncio.open_connection(address.host, address.port))
        try:
            return await client.ask(path, method=method, body=body, chunks=0 if is_length_told else 3)
        finally:
            await client.close()

    def goodbyes(self) -> int:
        """How many clients the programs have seen leave."""
        return (self.folder / "log").read_text().count(GOODBYE)

    def kill_programs(self) -> None:
        """Kill every process that runs a file of the example's folder."""
        named = [name.encode() for name in map(str, self.folder.glob("echo*"))]
        killed = 0
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
                if any(name in words for name in named):
                    os.kill(int(entry), signal.SIGKILL)
                    killed += 1
            except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                continue
        assert killed, "no program was found"


def address_of(service: Service) -> TcpAddress:
    """The next one that it says it listens at."""
    assert service.process.stdout is not None
    found = re.search(r"127\.0\.0\.1:([0-9]+)/", service.process.stdout.readline())
    assert found, service.log()
    return TcpAddress("127.0.0.1", int(found[1]))


class H2Answer:
    """As `Answer`."""

    def __init__(self, stream: H2Stream) -> None:
        self.status, self.fields, self.body = stream.status, stream.fields, bytes(stream.body)
        self.is_whole = stream.is_whole


@pytest.fixture(params=WIRES)
def example(service: Example, request: pytest.FixtureRequest) -> Example:
    """The example of each gateway, over each wire in turn."""
    service.wire = request.param
    return service


@pytest.fixture(scope="module", params=[*FRAMED, *ASKED])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    """The example of each gateway in turn, with our interpreter and free ports."""
    gateway, folder = request.param, tmp_path_factory.mktemp(request.param)
    files = examples()[gateway]
    if gateway in ("cgi", "scgi"):
        files |= examples()[SHARED]
    for name, text in files.items():
        (folder / name).write_text(text.replace("/usr/bin/python3", sys.executable))
        (folder / name).chmod(0o755)
    config = (folder / "wstunnel.toml").read_text()
    assert 'listen = ["127.0.0.1:8081"]\n' in config
    config = config.replace("127.0.0.1:8081", "127.0.0.1:0", 1)
    chain, key = pem(issued("localhost"))
    (folder / "cert.pem").write_bytes(chain)
    (folder / "key.pem").touch(0o600)
    (folder / "key.pem").write_bytes(key)
    more = f"""
        [[listener]]
        listen = "127.0.0.1:0"
        h2c = true

        [[listener]]
        listen = "127.0.0.1:0"
        tls-cert = "{folder}/cert.pem"
        tls-key = "{folder}/key.pem"
        """
    with Service(folder, f'allow-unsafe-places = true\nlog-file = "log"\n{config}{more}') as service:
        yield Example(gateway, folder, {"h1": service.address, "h2c": address_of(service), "h2": address_of(service)})
        service.process.terminate()
        assert service.ended() == 0
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture
def run() -> Run:
    return Run("uvloop")


async def echoed(websocket: OneSocket, message: str | bytes, *, is_whole: bool) -> None:
    """`message` comes back with its type, and as one message if `is_whole`."""
    async with asyncio.timeout(DEADLINE_S):
        await websocket.send(message)
        got = await websocket.recv()
        while not is_whole and len(got) < len(message):
            got += await websocket.recv()
    assert got == message


# --- WebSockets


@pytest.mark.parametrize("message", ["text äöü 🐘", bytes(range(256))], ids=["text", "binary"])
def test_a_message_comes_back_as_what_it_was(run: Run, example: Example, message: str | bytes):
    async def story() -> None:
        async with example.client(is_binary=isinstance(message, bytes)) as websocket:
            for _ in range(3):
                await echoed(websocket, message, is_whole=True)

    run(story())


@pytest.mark.parametrize("is_binary", [False, True], ids=["text", "binary"])
def test_a_mebibyte_comes_back(run: Run, example: Example, is_binary: bool):
    async def story() -> None:
        message = os.urandom(MIB) if is_binary else "äé" * (MIB // 4)
        async with example.client(is_binary=is_binary) as websocket:
            await echoed(websocket, message, is_whole=not example.is_framed)
            await echoed(websocket, "still here" if not is_binary else b"still here", is_whole=True)

    run(story())


def test_a_ping_is_answered_with_what_it_said(run: Run, example: Example):
    async def story() -> None:
        async with asyncio.timeout(DEADLINE_S), example.client() as websocket:
            await (await websocket.ping(b"are you there"))
            await echoed(websocket, "yes", is_whole=True)
            await (await websocket.ping(b""))

    run(story())


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (3000, "well, good bye")])
def test_a_clients_close_is_answered_with_its_code(run: Run, example: Example, code: int, reason: str):
    async def story() -> None:
        async with example.client() as websocket:
            await echoed(websocket, "hello", is_whole=True)
            await websocket.close(code, reason)
            assert websocket.close_rcvd is not None
            assert websocket.close_rcvd.code == code
            if not example.is_framed:
                assert websocket.close_rcvd.reason == reason

    run(story())


def test_a_client_that_goes_without_a_word_is_noticed_by_the_program(run: Run, example: Example):
    async def story() -> None:
        goodbyes = example.goodbyes()
        async with example.client() as websocket:
            await echoed(websocket, "hello", is_whole=True)
            assert example.goodbyes() == goodbyes
            websocket.leave()

    run(story())


def test_a_program_that_is_killed_ends_its_client_and_the_next_one_is_served(run: Run, example: Example):
    async def story() -> None:
        async with example.websocket() as websocket:
            await echoed(websocket, "hello", is_whole=True)
            example.kill_programs()
            async with asyncio.timeout(DEADLINE_S):
                with pytest.raises(ConnectionClosed):
                    await websocket.recv()
            assert websocket.close_code == (1011 if example.is_framed else 1006)
        async with example.client() as websocket:
            await echoed(websocket, "and again", is_whole=True)

    run(story())


# --- requests


asked = pytest.mark.parametrize("service", ASKED, indirect=True, scope="module")


@asked
def test_a_get_is_answered(run: Run, example: Example):
    async def story() -> None:
        got = await example.ask("/echo" if example.gateway != "proxy" else "/")
        assert (got.status, got.body, got.fields["content-type"], got.is_whole) == (200, b"GET ", "text/plain", True)

    run(story())


@asked
@pytest.mark.parametrize("size", [1, 1000, MIB])
def test_a_post_brings_its_body(run: Run, example: Example, size: int):
    async def story() -> None:
        body = os.urandom(size)
        got = await example.ask("/echo" if example.gateway != "proxy" else "/", "POST", body)
        assert (got.status, got.body, got.is_whole) == (200, b"POST " + body, True)

    run(story())


@pytest.mark.parametrize("service", ASKED[1:], indirect=True, scope="module")
def test_a_post_of_unknown_length_brings_its_body(run: Run, example: Example):
    """Collected first: CONTENT_LENGTH is told. The page's web.py takes no chunks."""

    async def story() -> None:
        body = os.urandom(100_000)
        got = await example.ask("/echo", "POST", body, is_length_told=False)
        assert (got.status, got.body, got.is_whole) == (200, b"POST " + body, True)

    run(story())


@asked
def test_a_204_has_no_body(run: Run, example: Example):
    async def story() -> None:
        got = await example.ask("/echo/nothing" if example.gateway != "proxy" else "/nothing")
        assert (got.status, got.body, "content-length" in got.fields) == (204, b"", False)

    run(story())


# --- the page


def test_the_page_has_an_example_of_every_gateway_in_its_table():
    listed = re.findall(r"^\| `([a-z]+)` \|", PAGE, re.MULTILINE)
    assert sorted(listed) == sorted(FRAMED + SPOKEN)
    assert sorted(examples()) == sorted([*FRAMED, *SPOKEN, SHARED])
    assert PAGE.count("\n```") == 2 * sum(map(len, examples().values())), "a block of the page has no name"
