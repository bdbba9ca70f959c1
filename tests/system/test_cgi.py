"""Scripts by CGI, from the client's request to the last process: in one loop, and in processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import struct
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import h11
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.conftest import Run
from tests.wire.stage import LogTap
from tools.chaos.service import Service
from wstunnel import Route, Settings, TcpAddress, Tunnel
from wstunnel.supervise import procfs

DEADLINE_S = 20.0
"""How long anything that must happen may take."""
MIB = 1024 * 1024
ASSIGN = {".sh": "/bin/sh", ".pl": shutil.which("perl"), ".py": sys.executable, ".cgi": ""}


async def until(claim: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not claim():
        assert time.monotonic() < deadline_s, "what was waited for did not happen"
        await asyncio.sleep(0.005)


class Answer:
    def __init__(self, response: h11.Response, body: bytes, is_whole: bool) -> None:
        self.status = response.status_code
        self.fields = {name.decode(): value.decode() for name, value in response.headers}
        self.body, self.is_whole = body, is_whole


class Client:
    """One HTTP connection, parsed by h11."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._http = h11.Connection(h11.CLIENT)

    async def ask(
        self, target: str, *fields: tuple[str, str], method: str = "GET", body: bytes | None = None, chunks: int = 0
    ) -> Answer:
        """The answer to one request; `is_whole` is False for one that broke off.

        in      chunks  send the body in so many, without its length
        """
        headers = [("Host", "localhost"), *fields]
        if chunks:
            headers.append(("Transfer-Encoding", "chunked"))
        elif body is not None:
            headers.append(("Content-Length", str(len(body))))
        await self._say(h11.Request(method=method, target=target, headers=headers))
        sending = asyncio.create_task(self._send(body or b"", max(chunks, 1)))
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._hear()
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
                self._http.start_next_cycle()

    async def _send(self, body: bytes, pieces: int) -> None:
        step = -(-len(body) // pieces) or 1
        for at in range(0, len(body), step):
            await self._say(h11.Data(body[at : at + step]))
        await self._say(h11.EndOfMessage())

    async def _say(self, event: h11.Event) -> None:
        with contextlib.suppress(ConnectionError):  # an answer may come before the whole body was taken
            self.writer.write(self._http.send(event) or b"")
            await self.writer.drain()

    async def _hear(self) -> Answer:
        response, body = None, b""
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError:
                assert response is not None, "the connection ended before an answer"
                return Answer(response, body, is_whole=False)
            match event:
                case h11.NEED_DATA:
                    self._http.receive_data(await self.reader.read(65536))
                case h11.Response():
                    response = event
                case h11.Data():
                    body += event.data
                case h11.EndOfMessage():
                    assert response is not None
                    return Answer(response, body, is_whole=True)

    def reset(self) -> None:
        """Leave so that the server sees it: RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class Served:
    """A route of scripts, and what its operator sees."""

    def __init__(self, address: TcpAddress, root: Path, log: Callable[[], str]) -> None:
        self.address, self.root, self.log = address, root, log

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        client = Client(*await asyncio.open_connection(self.address.host, self.address.port))
        try:
            yield client
        finally:
            await client.close()

    async def ask(self, target: str, *fields: tuple[str, str], **how: Any) -> Answer:
        async with self.client() as client:
            return await client.ask(target, *fields, **how)

    def websocket(self, path: str, **how: Any) -> connect:
        return connect(f"ws://{self.address}{path}", proxy=None, compression=None, max_size=None, **how)

    def said(self, name: str) -> str:
        """What a script has written into a file beside it; empty when it has not yet."""
        path = self.root / name
        return path.read_text() if path.exists() else ""


@contextlib.asynccontextmanager
async def in_one_loop(root: Path, **route: Any) -> AsyncIterator[Served]:
    usual = {"path": "/", "gateway": "cgi", "docroot": str(root), "cgi_assign": tuple(ASSIGN.items())}
    made = Route(**(usual | route))
    listen = (TcpAddress("127.0.0.1", 0),)
    settings = Settings(listen=listen, kill_timeout_s=DEADLINE_S, routes=(made,), document_root=str(root))
    with LogTap("wstunnel") as log:
        async with Tunnel(settings) as tunnel:
            yield Served(tunnel.addresses[0], root, lambda: "\n".join(log.texts()))


@contextlib.asynccontextmanager
async def in_processes(root: Path, **route: Any) -> AsyncIterator[Served]:
    options = {name.removesuffix("_s").replace("_", "-"): value for name, value in route.items()}
    config = {
        "workers": 2,
        "allow-unsafe-places": False,
        "kill-timeout": DEADLINE_S,
        "document-root": str(root),
        "route": [{"path": "/", "gateway": "cgi", "docroot": str(root), "cgi-assign": ASSIGN, **options}],
    }
    async with Service(str(root.parent), config) as service:
        yield Served(TcpAddress(*service.tcp), root, service.log)
        service.signal(signal.SIGTERM)
        assert await service.ended() == 0
        assert not [pid for pid in service.pids() if not procfs.is_gone_or_ending(pid)]  # init may be slow to reap
        assert service.complaints() == []


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Served]]


@pytest.fixture(params=["asyncio", "uvloop", "processes"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def run(kind: str) -> Run:
    return Run("uvloop" if kind == "processes" else kind)


@pytest.fixture
def serve(kind: str, tmp_path: Path) -> Serve:
    """`async with serve(**route options) as served`, with the scripts below; nothing of it is left behind."""
    root = tmp_path / "root"
    root.mkdir()
    for name, text in SCRIPTS.items():
        (root / name).write_text(textwrap.dedent(text).lstrip())
    (root / "run.cgi").chmod(0o755)
    (root / "page.html").write_text("<!doctype html>")

    def start(**route: Any):
        return (in_processes if kind == "processes" else in_one_loop)(root, **route)

    return start


# Each answers with the method, PATH_INFO, and the body that it got.
SCRIPTS = {
    "tell.sh": r"""
        printf 'Content-Type: text/plain\r\nX-By: sh\r\n\r\n'
        printf '%s %s ' "$REQUEST_METHOD" "$PATH_INFO"
        cat
    """,
    "tell.pl": r"""
        use strict; use warnings;
        my $body = '';
        while (read STDIN, my $piece, 65536) { $body .= $piece }
        my $text = "$ENV{REQUEST_METHOD} " . ($ENV{PATH_INFO} // '') . " $body";
        print "Content-Type: text/plain\nX-By: perl\nContent-Length: ", length $text, "\n\n$text";
    """,
    "tell.py": r"""
        import os, sys

        body = sys.stdin.buffer.read(int(os.environ.get("CONTENT_LENGTH", 0)))
        sys.stdout.write("Status: 200 Well\nContent-Type: text/plain\nX-By: python\n\n")
        sys.stdout.write(f"{os.environ['REQUEST_METHOD']} {os.environ['PATH_INFO']} ")
        sys.stdout.flush()
        sys.stdout.buffer.write(body)
    """,
    "run.cgi": r"""
        #!/bin/sh
        case $PATH_INFO in
        /nothing) printf 'Status: 204\n\n';;
        /elsewhere) printf 'Location: https://elsewhere.example/\n\n';;
        /fail) echo 'no luck today' >&2; exit 3;;
        /junk) echo 'this is no head'; echo;;
        /half) printf 'Content-Type: text/plain\n\nhalf'; kill -KILL $$;;
        /short) printf 'Content-Length: 10\n\nhalf';;
        /switch) printf 'Status: 101\nUpgrade: websocket\n\n';;
        /wait) echo $$ >pid; exec sleep 1000;;
        /drip) printf 'A: b\n\nfirst'; echo $$ >pid; exec sleep 1000;;
        /refuse) printf 'Status: 413\n\ntoo much';;
        esac
    """,
    "echo.py": r"""
        # A WebSocket echo, started for each client: the handshake is its environment, frames are its stdin and stdout.
        import base64, hashlib, os, signal

        from wsproto.connection import Connection, ConnectionType
        from wsproto.events import CloseConnection, Message, Ping


        def say(data):
            while data:
                data = data[os.write(1, data) :]


        key = os.environ["HTTP_SEC_WEBSOCKET_KEY"].encode()
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        say(b"Status: 101 Switching Protocols\nUpgrade: websocket\nConnection: Upgrade\n")
        say(b"Sec-WebSocket-Accept: " + accept + b"\n\n")
        socket = Connection(ConnectionType.SERVER)
        while data := os.read(0, 65536):
            socket.receive_data(data)
            for event in socket.events():
                if isinstance(event, Message):
                    if event.data == "die":
                        os.kill(os.getpid(), signal.SIGKILL)
                    say(socket.send(event))
                elif isinstance(event, Ping | CloseConnection):
                    say(socket.send(event.response()))
                    if isinstance(event, CloseConnection):
                        raise SystemExit
        with open("left", "w") as file:
            file.write("the client has left without a word")
    """,
    "echo.pl": r"""
        # The same for short masked text messages, without any library, to show that a pipe needs none.
        use strict; use warnings; use Digest::SHA 'sha1_base64';
        $| = 1; binmode STDIN; binmode STDOUT;
        print "Status: 101\nUpgrade: websocket\nSec-WebSocket-Accept: ",
            sha1_base64("$ENV{HTTP_SEC_WEBSOCKET_KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"), "=\n\n";
        while (read(STDIN, my $head, 2) == 2) {
            my ($first, $second) = unpack 'CC', $head;
            read STDIN, my $mask, 4;
            read STDIN, my $text, $second & 127 if $second & 127;
            $text = defined $text ? $text ^ substr($mask x 32, 0, length $text) : '';
            print pack('CC', $first, length $text), $text;
            last if ($first & 15) == 8;
        }
    """,
}


# --- requests


@pytest.mark.parametrize("name", ["tell.sh", "tell.pl", "tell.py"])
def test_every_language_answers(run: Run, serve: Serve, name):
    async def story() -> None:
        async with serve() as served:
            got = await served.ask(f"/{name}/a%20b")
            assert (got.status, got.body) == (200, b"GET /a b ")
            assert got.fields["content-type"] == "text/plain"
            got = await served.ask(f"/{name}/", method="POST", body=b"the body")
            assert got.body == b"POST / the body"
            got = await served.ask(f"/{name}/", method="POST", body=b"in chunks", chunks=3)
            assert got.body == b"POST / in chunks"
            got = await served.ask(f"/{name}/", method="HEAD")
            assert (got.status, got.body) == (200, b"")

    run(story())


@pytest.mark.parametrize("name", ["tell.sh", "tell.pl", "tell.py"])
def test_a_mebibyte_goes_through_both_ways(run: Run, serve: Serve, name):
    async def story() -> None:
        body = os.urandom(MIB)
        async with serve() as served:
            got = await served.ask(f"/{name}/", method="PUT", body=body)
            assert got.body == b"PUT / " + body

    run(story())


def test_what_has_no_body_has_none_and_a_location_redirects(run: Run, serve: Serve):
    async def story() -> None:
        async with serve() as served, served.client() as client:
            got = await client.ask("/run.cgi/nothing")
            assert (got.status, got.body) == (204, b"")
            assert "content-length" not in got.fields
            assert (await client.ask("/tell.sh")).body == b"GET  "  # over the same connection
            got = await client.ask("/run.cgi/elsewhere")
            assert (got.status, got.fields["location"]) == (302, "https://elsewhere.example/")

    run(story())


def test_what_is_no_script_goes_on_to_the_files(run: Run, serve: Serve):
    async def story() -> None:
        async with serve() as served:
            assert (await served.ask("/page.html")).body == b"<!doctype html>"
            assert (await served.ask("/nothing.pl")).status == 404
            assert (await served.ask("/../../etc/passwd")).status == 404

    run(story())


@pytest.mark.parametrize(
    ("path", "status", "why"),
    [
        ("/fail", 502, "exited with status 3 before the head of its answer; its last words: no luck today"),
        ("/junk", 502, "is no field"),
        ("/switch", 502, "says 101 which nobody has asked it for"),
    ],
)
def test_a_script_that_gives_no_answer_is_a_bad_gateway_and_the_log_says_why(run: Run, serve: Serve, path, status, why):
    async def story() -> None:
        async with serve() as served:
            got = await served.ask(f"/run.cgi{path}")
            assert got.status == status
            await until(lambda: why in served.log())

    run(story())


@pytest.mark.parametrize("path", ["/half", "/short"])
def test_an_answer_that_breaks_off_is_seen_to(run: Run, serve: Serve, kind, path):
    async def story() -> None:
        async with serve() as served:
            got = await served.ask(f"/run.cgi{path}")
            assert (got.status, got.body, got.is_whole) == (200, b"half", False)

    run(story())


def test_a_silent_script_is_a_gateway_timeout(run: Run, serve: Serve):
    async def story() -> None:
        async with serve(read_timeout_s=0.3) as served:
            assert (await served.ask("/run.cgi/wait")).status == 504

    run(story())


def test_beyond_max_forks_a_client_is_told_to_come_again(run: Run, serve: Serve):
    async def story() -> None:
        async with serve(max_forks=1) as served, served.client() as first:
            waiting = asyncio.create_task(first.ask("/run.cgi/wait"))
            await until(lambda: served.said("pid"))
            got = await served.ask("/tell.sh")
            assert (got.status, got.fields["retry-after"]) == (503, "1")
            waiting.cancel()
            await asyncio.wait([waiting])

    run(story())


@pytest.mark.parametrize("path", ["/wait", "/drip"])
def test_a_client_that_leaves_is_the_end_of_the_script(run: Run, serve: Serve, path):
    """One that only ends its side (FIN) may still want its answer."""

    async def story() -> None:
        async with serve() as served:
            async with served.client() as client:
                asking = asyncio.create_task(client.ask(f"/run.cgi{path}"))
                await until(lambda: served.said("pid").endswith("\n"))
                asking.cancel()
                await asyncio.wait([asking])
                client.reset()
            pid = int(served.said("pid"))
            await until(lambda: procfs.is_gone_or_ending(pid))

    run(story())


def test_a_script_that_wants_no_body_answers_all_the_same(run: Run, serve: Serve):
    async def story() -> None:
        async with serve() as served:
            got = await served.ask("/run.cgi/refuse", method="POST", body=bytes(16 * MIB))
            assert (got.status, got.body) == (413, b"too much")

    run(story())


# --- WebSockets


async def echoed(ws: ClientConnection, message: str | bytes) -> None:
    await ws.send(message)
    assert await ws.recv() == message


def test_a_script_that_others_may_write_to_is_not_run_and_the_log_says_why(run: Run, serve: Serve):
    async def story() -> None:
        async with serve() as served:
            os.chmod(served.root / "tell.sh", 0o777)
            assert (await served.ask("/tell.sh")).status == 403
            why = f"script {served.root}/tell.sh: everybody may write to it (mode 0777), so it is not run"
            await until(lambda: why in served.log())
            os.chmod(served.root / "tell.sh", 0o755)
            assert (await served.ask("/tell.sh")).status == 200

    run(story())


def test_a_script_that_takes_the_handshake_is_a_pipe(run: Run, serve: Serve):
    async def story() -> None:
        async with serve(upgrade=True) as served, served.websocket("/echo.py?a=b") as ws:
            await echoed(ws, "text äöü")
            await echoed(ws, b"\x00\xff")
            await echoed(ws, os.urandom(MIB))
            await (await ws.ping(b"are you there"))
            await echoed(ws, "")
            await ws.close(4321, "enough")
            assert (ws.close_code, ws.close_reason) == (4321, "enough")

    run(story())


def test_a_script_needs_no_library(run: Run, serve: Serve):
    async def story() -> None:
        async with serve(upgrade=True) as served, served.websocket("/echo.pl") as ws:
            for word in ("one", "two", "x" * 125):
                await echoed(ws, word)
            await (await ws.ping(b"are you there"))

    run(story())


def test_every_client_has_a_script_of_its_own(run: Run, serve: Serve):
    async def story() -> None:
        async with serve(upgrade=True) as served, contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(served.websocket("/echo.py")) for _ in range(5)]
            for number, ws in enumerate(clients):
                await ws.send(f"number {number}")
            for number, ws in enumerate(clients):
                assert await ws.recv() == f"number {number}"

    run(story())


def test_a_client_that_leaves_without_a_word_is_the_end_of_the_scripts_input(run: Run, serve: Serve):
    async def story() -> None:
        async with serve(upgrade=True) as served:
            async with served.websocket("/echo.py") as ws:
                await echoed(ws, "hello")
                ws.transport.abort()
            await until(lambda: served.said("left"))

    run(story())


def test_a_script_that_dies_is_the_end_of_its_client(run: Run, serve: Serve):
    async def story() -> None:
        async with serve(upgrade=True) as served, served.websocket("/echo.py") as ws:
            await ws.send("die")
            with pytest.raises(ConnectionClosed):
                await ws.recv()
            assert ws.close_code == 1006

    run(story())


def test_a_handshake_is_not_passed_on_unless_the_route_says_so(run: Run, serve: Serve):
    async def story() -> None:
        async with serve() as served:
            with pytest.raises(InvalidStatus) as caught:
                await served.websocket("/tell.sh")
            assert caught.value.response.status_code == 200

    run(story())


def test_a_page_of_another_origin_does_not_reach_a_script(run: Run, serve: Serve):
    async def story() -> None:
        async with serve(upgrade=True) as served:
            with pytest.raises(InvalidStatus) as caught:
                await served.websocket("/echo.py", origin="https://evil.example")
            assert caught.value.response.status_code == 403

    run(story())
