"""One table for every gateway: what docs/gateways.md shows runs as it stands there, and does the same everywhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.conftest import Run
from tests.system.test_cgi import DEADLINE_S, MIB, Answer, Client, until
from tests.system.test_control import ROOT, Service
from tests.system.test_scgi_fastcgi import needs_perl

FRAMED = ("tunnel", "stdio")
"""Gateways that end the WebSocket themselves."""
SPOKEN = ("proxy", "cgi", "scgi", "fastcgi")
"""Gateways whose programs are asked over HTTP, and speak WebSocket themselves."""
ASKED = [pytest.param(kind, marks=needs_perl if kind == "fastcgi" else ()) for kind in SPOKEN]
PAGE = (ROOT / "docs" / "gateways.md").read_text(encoding="utf-8")
SHARED = "Frames for cgi and scgi"
GOODBYE = "a client has left"


def examples() -> dict[str, dict[str, str]]:
    """Under each heading of the page that has any: its files, by name."""
    found = {}
    for section in PAGE.split("\n## ")[1:]:
        files = dict(re.findall(r"^`([a-z.]+)`[^\n]*:\n\n```[a-z]+\n(.*?)^```$", section, re.DOTALL | re.MULTILINE))
        if files:
            found[section.partition("\n")[0]] = files
    return found


class Example:
    """An example of the page, run by `python -m wstunnel`."""

    def __init__(self, gateway: str, folder: Path, service: Service) -> None:
        self.gateway, self.folder, self._service = gateway, folder, service

    @property
    def is_framed(self) -> bool:
        return self.gateway in FRAMED

    @contextlib.asynccontextmanager
    async def client(self, *, is_binary: bool = False) -> AsyncIterator[ClientConnection]:
        """A WebSocket; the program notices its end, in whatever way that comes."""
        before = self.goodbyes()
        async with self.websocket(is_binary=is_binary) as websocket:
            yield websocket
        await until(lambda: self.goodbyes() == before + 1)

    def websocket(self, *, is_binary: bool = False) -> connect:
        """A client; where frames are ours it says what it wants to get."""
        wanted = ["binary"] if self.is_framed and is_binary else None
        return connect(
            f"ws://{self._service.address}/echo", proxy=None, compression=None, max_size=None, subprotocols=wanted
        )

    async def ask(self, path: str, method: str = "GET", body: bytes | None = None) -> Answer:
        address = self._service.address
        client = Client(*await asyncio.open_connection(address.host, address.port))
        try:
            return await client.ask(path, method=method, body=body)
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


@pytest.fixture(scope="module", params=[*FRAMED, *ASKED])
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    """The example of each gateway in turn, with our interpreter and a free port."""
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
    with Service(folder, f'allow-unsafe-places = true\nlog-file = "log"\n{config}') as service:
        yield Example(gateway, folder, service)
        service.process.terminate()
        assert service.ended() == 0
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture
def run() -> Run:
    return Run("uvloop")


async def echoed(websocket: ClientConnection, message: str | bytes, *, is_whole: bool) -> None:
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
            assert websocket.protocol.close_rcvd is not None
            assert websocket.protocol.close_rcvd.code == code
            if not example.is_framed:
                assert websocket.protocol.close_rcvd.reason == reason

    run(story())


def test_a_client_that_goes_without_a_word_is_noticed_by_the_program(run: Run, example: Example):
    async def story() -> None:
        goodbyes = example.goodbyes()
        async with example.client() as websocket:
            await echoed(websocket, "hello", is_whole=True)
            assert example.goodbyes() == goodbyes
            websocket.transport.abort()

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


asked = pytest.mark.parametrize("example", ASKED, indirect=True, scope="module")


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
