"""The proxy beside scripted backends: every step of both sides is the test's; the client's is an exchange made up."""

from __future__ import annotations

import asyncio
import base64
import errno
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from tests.conftest import Run, open_descriptors
from tests.wire.sockets import Wire, eventually, turns
from wstunnel._hub import Hub
from wstunnel.errors import BackendError, PeerError
from wstunnel.gateways.claim import Upgraded
from wstunnel.gateways.proxy import ProxyGateway
from wstunnel.limits import GatewayLimits, Limits, MasterLimits
from wstunnel.net.exchange import Exchange
from wstunnel.net.wheel import TimerWheel
from wstunnel.proto.handshake import accept_hash
from wstunnel.proto.request import Request
from wstunnel.settings import Route, UnixAddress
from wstunnel.supervise.balance import Balancer, HostSlots
from wstunnel.supervise.board import Board, SlotColumn, SlotState
from wstunnel.supervise.place import SlotPlace
from wstunnel.supervise.slot import Slot

READ_BYTES = 4096
KEY = base64.b64encode(b"0123456789abcdef").decode()
OK = b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 5\r\n\r\nhello"


class Backend:
    """A listening socket, and the connections that were made to it."""

    def __init__(self, path: str) -> None:
        self.address = UnixAddress(path)
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(path)
        self.sock.listen(16)
        self.sock.setblocking(False)
        self.wires: list[Wire] = []

    async def accept(self) -> Wire:
        near, _ = await asyncio.get_running_loop().sock_accept(self.sock)
        self.wires.append(Wire(near))
        return self.wires[-1]

    async def request(self) -> tuple[Wire, bytes]:
        """The next connection, and the head that comes on it."""
        wire = await self.accept()
        return wire, await head(wire)

    def has_waiting(self) -> bool:
        try:
            self.wires.append(Wire(self.sock.accept()[0]))
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        for each in (self.sock, *(wire.sock for wire in self.wires)):
            each.close()


async def head(wire: Wire) -> bytes:
    got = b""
    while not got.endswith(b"\r\n\r\n"):
        got += await wire.recv_exactly(1)
    return got


class FakeExchange:
    """What a client asked, piece by piece, and what it was answered."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.pieces: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.status = 0
        self.fields = b""
        self.length: int | None = -1
        self.body = b""
        self.is_whole = False
        self.takes = asyncio.Event()
        """The client takes what it is sent."""
        self.takes.set()

    async def read(self) -> bytes:
        piece = await self.pieces.get()
        if isinstance(piece, Exception):
            raise piece
        return piece

    async def respond(self, status: int, fields: bytes = b"", body: bytes = b"", *, close: bool = False) -> None:
        await self.start(status, fields, len(body))
        self.body, self.is_whole = body, True
        await self.takes.wait()

    async def start(self, status: int, fields: bytes, length: int | None, *, close: bool = False) -> None:
        assert not self.status, "a request is answered once"
        self.status, self.fields, self.length = status, fields, length
        self.is_whole = self.request.method == "HEAD" or length == 0

    async def write(self, chunk: bytes) -> None:
        assert chunk
        self.body += chunk
        self.is_whole = len(self.body) == self.length
        await self.takes.wait()

    async def finish(self) -> None:
        assert self.length is None
        self.is_whole = True


def request(*headers: tuple[str, str], **changes: Any) -> Request:
    given: dict[str, Any] = {
        "method": "GET",
        "target": "/p",
        "path": "/p",
        "query": "",
        "host": "here.test",
        "headers": (("host", "here.test"), *headers),
        "peer": "10.0.0.7:4711",
    }
    return Request(**{**given, **changes})


def upgrade(*headers: tuple[str, str], **changes: Any) -> Request:
    fields = (
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-key", KEY),
        ("sec-websocket-version", "13"),
        *headers,
    )
    return request(*fields, **{"wants_websocket": True, **changes})


def switching(*fields: bytes, accept: str = accept_hash(KEY), upgrade: bytes = b"websocket") -> bytes:
    given = (b"Upgrade: " + upgrade, b"Connection: Upgrade", b"Sec-WebSocket-Accept: " + accept.encode())
    return b"\r\n".join((b"HTTP/1.1 101 Switching Protocols", *given, *fields, b"", b""))


class Stand:
    """A proxy to some backends, each of them a slot."""

    def __init__(self, folder: str, *, count: int = 1, idle_per_slot: int = 2, **options: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.wheel = TimerWheel(0.1, self.loop.time())
        self.hub = Hub(
            self.loop, self.wheel, read_bytes=READ_BYTES, bulk_bytes=READ_BYTES, turn_bytes=4 * READ_BYTES, look_s=0.5
        )
        limits = Limits(master=MasterLimits(worker_rows=2, slot_rows=8))
        self.board = Board(limits.master)
        self.backends = [Backend(f"{folder}/{number}") for number in range(count)]
        self.slots = []
        for row, backend in enumerate(self.backends):
            self.board.slot(row)[SlotColumn.STATE] = SlotState.RUNNING
            self.slots.append(Slot(SlotPlace(f"web-{row}", backend.address, row), self.board, 1, limits))
        route = Route(gateway="proxy", socket="/x", **options)
        balancer = Balancer([HostSlots(route, self.slots)], "least-connection", limits=limits, clock=self.loop.time)
        self.gateway = ProxyGateway(balancer, "/p", route, GatewayLimits(idle_per_slot=idle_per_slot))
        self.gateway.open(self.hub)
        self.tasks: list[asyncio.Task[Upgraded | None]] = []

    @property
    def backend(self) -> Backend:
        return self.backends[0]

    @property
    def loads(self) -> list[int]:
        return [slot.load for slot in self.slots]

    @property
    def idle(self) -> int:
        return len(self.gateway._idle)

    def ask(self, request: Request) -> tuple[FakeExchange, asyncio.Task[Upgraded | None]]:
        exchange = FakeExchange(request)
        serving = self.gateway.serve(cast(Exchange, exchange))
        self.tasks.append(self.loop.create_task(serving))
        return exchange, self.tasks[-1]

    async def used(self) -> Wire:
        """A connection that has had its first answer, and waits."""
        _, served = self.ask(request())
        wire, _ = await self.backend.request()
        await wire.send(OK)
        await served
        assert self.idle == 1
        return wire

    async def close(self) -> None:
        self.gateway.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)
        await turns(3)
        assert self.loads == [0] * len(self.slots)
        assert len(self.wheel) == 1  # the hub
        self.hub.close()
        self.board.close()
        for backend in self.backends:
            backend.close()


@pytest.fixture
def proxy(run: Run, tmp_path) -> Callable[..., None]:
    """`proxy(check, **options)` runs `check(stand)`; behind it every lease and descriptor is back."""

    @asynccontextmanager
    async def stand(**options: Any) -> AsyncIterator[Stand]:
        before = _descriptors()
        made = Stand(str(tmp_path), **options)
        try:
            yield made
        finally:
            await made.close()
        await eventually(lambda: _descriptors() == before, "every descriptor closed")

    def go(check: Callable[[Stand], Coroutine[Any, Any, None]], **options: Any) -> None:
        async def main() -> None:
            async with stand(**options) as made:
                await check(made)

        run(main())

    return go


def _descriptors() -> dict[int, str]:
    """But that of the board's memory, which goes with the last row that somebody holds."""
    return {fd: name for fd, name in open_descriptors().items() if name != "/dev/null" and "board" not in name}


# --- one request


def test_a_request_goes_to_the_backend_and_its_answer_comes_back(proxy):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(request(("cookie", "a")))
        wire, got = await stand.backend.request()
        assert got.startswith(b"GET /p HTTP/1.1\r\nHost: here.test\r\ncookie: a\r\nX-Forwarded-For: 10.0.0.7\r\n")
        assert stand.loads == [1]

        await wire.send(OK)

        assert await served is None
        assert (exchange.status, exchange.fields, exchange.body) == (200, b"X: y\r\n", b"hello")
        assert stand.loads == [0]

    proxy(check)


def test_forwarded_is_what_the_route_says(proxy):
    async def check(stand: Stand) -> None:
        stand.ask(request())
        _, got = await stand.backend.request()
        assert b"\r\nForwarded: for=10.0.0.7\r\n" in got

    proxy(check, forwarded=("for",))


@pytest.mark.parametrize(
    ("answer", "length", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", 9, b"some more"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            None,
            b"4\r\nsome\r\n5\r\n more\r\n0\r\nT: v\r\n\r\n",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n", None, b"some more"),
        (b"HTTP/1.0 200 OK\r\n\r\n", None, b"some more"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 299 Odd\r\nContent-Length: 9\r\n\r\n", 9, b"some more"),
    ],
)
def test_an_answer_streams_in_however_it_is_framed(proxy, answer, length, body):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(request())
        wire, _ = await stand.backend.request()
        await wire.send(answer)
        await eventually(lambda: exchange.status, "the head of the answer")
        for at in range(len(body)):
            await wire.send(body[at : at + 1])
            await turns(2)
        if length is None and body == b"some more":
            assert not served.done()
            wire.sock.close()
        await served
        assert (exchange.length, exchange.body) == (length, b"some more")
        assert exchange.is_whole

    proxy(check)


@pytest.mark.parametrize(
    ("method", "answer", "length"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 5),
        ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n", None),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 0),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 0),
    ],
)
def test_an_answer_without_a_body_is_over_with_its_head(proxy, method, answer, length):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(request(method=method))
        wire, _ = await stand.backend.request()
        await wire.send(answer)
        await served
        assert (exchange.length, exchange.body) == (length, b"")
        assert stand.idle == 1

    proxy(check)


def test_every_line_of_set_cookie_and_the_date_are_kept_and_the_connections_own_fields_are_not(proxy):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(request())
        wire, _ = await stand.backend.request()
        await wire.send(
            b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nDate: x\r\nConnection: keep-alive, X-Own\r\nX-Own: 1\r\n"
            b"Set-Cookie: b\r\nKeep-Alive: 5\r\nContent-Length: 0\r\n\r\n"
        )
        await served
        assert exchange.fields == b"Set-Cookie: a\r\nDate: x\r\nSet-Cookie: b\r\n"

    proxy(check)


# --- bodies


@pytest.mark.parametrize(
    ("body_bytes", "framing", "wire_body"),
    [
        (9, b"Content-Length: 9", b"some more"),
        (None, b"Transfer-Encoding: chunked", b"4\r\nsome\r\n5\r\n more\r\n0\r\n\r\n"),
    ],
)
def test_a_body_streams_on_as_it_comes(proxy, body_bytes, framing, wire_body):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(request(method="POST", body_bytes=body_bytes))
        wire, got = await stand.backend.request()
        assert framing in got
        at = wire_body.index(b"some") + 4
        exchange.pieces.put_nowait(b"some")
        assert await wire.recv_exactly(at) == wire_body[:at]
        exchange.pieces.put_nowait(b" more")
        exchange.pieces.put_nowait(b"")
        assert await wire.recv_exactly(len(wire_body) - at) == wire_body[at:]
        await wire.send(OK)
        await served
        assert exchange.body == b"hello"
        assert stand.idle == 1

    proxy(check)


def test_a_body_waits_in_the_client_while_the_backend_takes_none(proxy):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(request(method="POST", body_bytes=None))
        wire, _ = await stand.backend.request()
        for _ in range(400):
            exchange.pieces.put_nowait(bytes(READ_BYTES))
        exchange.pieces.put_nowait(b"")
        await turns(500)
        held = exchange.pieces.qsize()
        assert held > 100
        await turns(20)
        assert exchange.pieces.qsize() == held

        got = b""
        while not got.endswith(b"0\r\n\r\n"):
            got += await wire.recv()
        await wire.send(OK)
        await served

    proxy(check)


def test_an_answer_waits_in_the_backend_while_the_client_takes_none(proxy):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(request())
        exchange.takes.clear()
        wire, _ = await stand.backend.request()
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            sent = wire.send_now(bytes(READ_BYTES))
            if not sent:
                await turns(20)
                if not wire.send_now(bytes(READ_BYTES)):
                    break
        assert len(exchange.body) <= READ_BYTES
        exchange.takes.set()
        wire.sock.close()
        await served

    proxy(check)


@pytest.mark.parametrize("is_closed", [False, True])
def test_an_answer_that_comes_before_the_body_is_over_is_given_and_the_rest_is_not_read(proxy, is_closed):
    """A backend that says 413 at once may close, or read on for ever."""

    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(request(method="POST", body_bytes=None))
        wire, _ = await stand.backend.request()
        for _ in range(400):
            exchange.pieces.put_nowait(bytes(READ_BYTES))
        await eventually(lambda: exchange.pieces.qsize() < 400, "some of the body sent")
        wire.send_now(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        if is_closed:
            wire.sock.close()
        assert await served is None
        assert exchange.status == 413
        assert exchange.pieces.qsize()
        assert stand.idle == 0

    proxy(check)


def test_a_body_that_goes_on_behind_the_answer_disturbs_nobody(proxy):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(request(method="POST", body_bytes=9))
        exchange.takes.clear()
        wire, _ = await stand.backend.request()
        await wire.send(OK)
        await wire.gone()
        exchange.pieces.put_nowait(b"some more")
        await eventually(exchange.pieces.empty, "the body read")
        await turns(3)
        exchange.takes.set()
        assert await served is None
        assert exchange.body == b"hello"

    proxy(check)


def test_a_head_that_the_backend_does_not_take_to_its_end_is_answered_by_what_it_says(proxy):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(request(("cookie", "x" * (1 << 20))))
        wire = await stand.backend.accept()
        await wire.recv(10)
        await wire.send(b"HTTP/1.1 431 Too Large\r\nContent-Length: 0\r\n\r\n")
        wire.sock.close()
        await served
        assert exchange.status == 431

    proxy(check)


def test_an_answer_streams_while_the_body_does(proxy):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(request(method="POST", body_bytes=6))
        wire, _ = await stand.backend.request()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
        for piece in (b"ab", b"cd", b"ef"):
            exchange.pieces.put_nowait(piece)
            assert await wire.recv_exactly(2) == piece
            await wire.send(piece)
            await eventually(lambda piece=piece: exchange.body.endswith(piece), "the answer")
        exchange.pieces.put_nowait(b"")
        await served
        assert exchange.body == b"abcdef"

    proxy(check)


@pytest.mark.parametrize("fault", [PeerError("a malformed chunk"), ConnectionResetError("the client is gone")])
def test_a_body_that_breaks_is_never_whole_to_the_backend(proxy, fault):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(request(method="POST", body_bytes=None))
        wire, _ = await stand.backend.request()
        exchange.pieces.put_nowait(b"some")
        exchange.pieces.put_nowait(fault)
        assert await wire.recv_to_end() == b"4\r\nsome\r\n"
        with pytest.raises(PeerError if isinstance(fault, PeerError) else BackendError):
            await served
        assert not exchange.status

    proxy(check)


def test_a_client_that_leaves_ends_the_request_at_the_backend(proxy):
    async def check(stand: Stand) -> None:
        _, served = stand.ask(request(method="POST", body_bytes=None))
        wire, _ = await stand.backend.request()
        await turns(5)
        served.cancel()
        assert await wire.recv_to_end() == b""
        with pytest.raises(asyncio.CancelledError):
            await served
        assert stand.loads == [0]

    proxy(check)


# --- connections that wait


def test_the_next_request_takes_the_connection_that_waits(proxy):
    async def check(stand: Stand) -> None:
        wire = await stand.used()
        for _ in range(3):
            exchange, served = stand.ask(request())
            await head(wire)
            assert (stand.idle, stand.loads) == (0, [1])
            await wire.send(OK)
            await served
            assert exchange.body == b"hello"
        assert not stand.backend.has_waiting()

    proxy(check)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        OK + b"x",
    ],
)
def test_a_connection_that_may_not_carry_another_request_is_ended(proxy, answer):
    async def check(stand: Stand) -> None:
        _, served = stand.ask(request())
        wire, _ = await stand.backend.request()
        await wire.send(answer)
        await served
        assert stand.idle == 0
        await wire.gone()

    proxy(check)


@pytest.mark.parametrize("is_known", [False, True])
def test_a_second_answer_for_one_request_never_reaches_the_next_client(proxy, is_known):
    """It comes behind the first in a read of its own, when the connection waits already."""

    async def check(stand: Stand) -> None:
        old = await stand.used()
        old.sock.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        if is_known:
            await turns(5)

        exchange, served = stand.ask(request(method="POST"))
        wire, _ = await stand.backend.request()
        await wire.send(OK)
        await served

        assert exchange.body == b"hello"
        await old.gone()

    proxy(check)


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_a_request_that_dies_with_a_connection_that_had_waited_is_sent_again(proxy, method, is_reset):
    async def check(stand: Stand) -> None:
        old = await stand.used()
        exchange, served = stand.ask(request(method=method))
        await head(old) if not is_reset else await old.recv(1)  # unread bytes: a reset
        old.sock.close()
        wire, _ = await stand.backend.request()
        await wire.send(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        await served
        assert exchange.status == 201
        assert stand.loads == [0]

    proxy(check)


def test_a_request_is_sent_again_over_a_new_connection_though_another_one_waits(proxy):
    """That one will be as dead."""

    async def check(stand: Stand) -> None:
        asked = [stand.ask(request()) for _ in range(2)]
        wires = [(await stand.backend.request())[0] for _ in asked]
        for wire, (_, served) in zip(wires, asked, strict=True):
            await wire.send(OK)
            await served
        _, served = stand.ask(request())
        await head(wires[1])
        wires[1].sock.close()
        wire, _ = await stand.backend.request()
        await wire.send(OK)
        await served
        assert stand.idle == 2

    proxy(check)


def test_a_request_whose_first_byte_cannot_be_sent_is_sent_again_whatever_its_method(proxy, monkeypatch):
    async def check(stand: Stand) -> None:
        old = await stand.used()
        old.sock.close()
        monkeypatch.setattr("wstunnel.net.stream.BackendStream.is_silent", lambda _: True)  # it dies just after
        exchange, served = stand.ask(request(method="POST", body_bytes=3))
        wire, _ = await stand.backend.request()
        exchange.pieces.put_nowait(b"abc")
        exchange.pieces.put_nowait(b"")
        assert await wire.recv_exactly(3) == b"abc"
        await wire.send(OK)
        await served
        assert exchange.body == b"hello"

    proxy(check)


@pytest.mark.parametrize("changes", [{"method": "POST"}, {"method": "PATCH"}, {"method": "PUT", "body_bytes": 3}])
def test_a_request_that_may_not_be_repeated_is_502(proxy, changes):
    async def check(stand: Stand) -> None:
        old = await stand.used()
        _, served = stand.ask(request(**changes))
        await head(old)
        old.sock.close()
        with pytest.raises(BackendError) as raised:
            await served
        assert raised.value.status == 502
        assert not stand.backend.has_waiting()

    proxy(check)


def test_a_request_that_dies_on_a_connection_of_its_own_is_502(proxy):
    async def check(stand: Stand) -> None:
        _, served = stand.ask(request())
        wire, _ = await stand.backend.request()
        wire.sock.close()
        with pytest.raises(
            BackendError, match=r"web-0 \(unix:.*\): the backend ended the connection without an answer"
        ):
            await served
        assert not stand.backend.has_waiting()

    proxy(check)


def test_a_request_whose_answer_has_begun_is_not_repeated(proxy):
    async def check(stand: Stand) -> None:
        old = await stand.used()
        _, served = stand.ask(request())
        await head(old)
        await old.send(b"H")
        old.sock.close()
        with pytest.raises(BackendError) as raised:
            await served
        assert raised.value.status == 502

    proxy(check)


def test_no_more_connections_wait_than_may(proxy):
    async def check(stand: Stand) -> None:
        asked = [stand.ask(request()) for _ in range(4)]
        wires = [(await stand.backend.request())[0] for _ in asked]
        for wire in wires:
            await wire.send(OK)
        for _, served in asked:
            await served
        assert stand.idle == 2
        await wires[0].gone()

    proxy(check)


def test_a_connection_that_nobody_wants_is_ended_after_a_while(proxy):
    async def check(stand: Stand) -> None:
        wire = await stand.used()
        stand.wheel.advance(stand.loop.time() + 3.0)
        assert stand.idle == 1
        stand.wheel.advance(stand.loop.time() + 5.0)
        assert stand.idle == 0
        await wire.gone()

    proxy(check)


def test_after_close_no_connection_waits(proxy):
    async def check(stand: Stand) -> None:
        waiting = await stand.used()
        exchange, served = stand.ask(request())
        await head(waiting)
        stand.gateway.close()
        await waiting.send(OK)
        await served
        assert exchange.body == b"hello"
        await waiting.gone()

    proxy(check)


def test_a_backend_with_a_strict_load_has_no_connection_that_waits(proxy):
    """It would occupy a program that serves one connection at a time."""

    async def check(stand: Stand) -> None:
        _, served = stand.ask(request())
        wire, got = await stand.backend.request()
        assert b"Connection: close\r\n" in got
        await wire.send(OK)
        await served
        assert stand.idle == 0

    proxy(check, max_load_policy="queue")


def test_a_backend_is_free_when_it_has_answered_though_the_client_is_slow(proxy):
    async def check(stand: Stand) -> None:
        for answer in (OK, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"):
            exchange, served = stand.ask(request())
            exchange.takes.clear()
            wire = stand.backend.wires[0] if stand.backend.wires else await stand.backend.accept()
            await head(wire)
            await wire.send(answer)
            if answer is not OK:
                await eventually(lambda exchange=exchange: exchange.status, "the head of the answer")
                await wire.send(b"hello")
            await eventually(lambda: stand.idle == 1, "the connection waits for another request")
            assert stand.loads == [0]
            exchange.takes.set()
            await served

    proxy(check)


# --- what goes wrong


def test_no_backend_is_503(proxy):
    async def check(stand: Stand) -> None:
        stand.backend.sock.close()
        with pytest.raises(BackendError, match="no backend of /p can be connected") as raised:
            await stand.ask(request())[1]
        assert raised.value.status == 503

    proxy(check)


def test_a_connection_that_the_hub_cannot_watch_is_closed_and_503(proxy, monkeypatch):
    async def check(stand: Stand) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "no room")

        monkeypatch.setattr("wstunnel.gateways.proxy.BackendStream", fail)
        with pytest.raises(BackendError, match="No space") as raised:
            await stand.ask(request())[1]
        assert raised.value.status == 503
        wire = await stand.backend.accept()
        await wire.gone()

    proxy(check)


def test_another_slot_is_taken_when_one_cannot_be_connected(proxy):
    async def check(stand: Stand) -> None:
        stand.backends[0].sock.close()
        exchange, served = stand.ask(request())
        wire, _ = await stand.backends[1].request()
        await wire.send(OK)
        await served
        assert exchange.status == 200

    proxy(check, count=2)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"SSH-2.0-x\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "malformed field"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "cannot be told"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "one length"),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "cannot be told"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "malformed line of a chunk"),
        (switching(), "nobody has asked for"),
        (switching(b"Content-Length: 3") + b"abc", "announces"),
    ],
)
def test_an_answer_that_is_none_is_502_and_its_connection_ends(proxy, answer, text):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(request())
        wire, _ = await stand.backend.request()
        await wire.send(answer)
        with pytest.raises(BackendError, match=rf"web-0 \(.*{text}") as raised:
            await served
        assert raised.value.status == 502
        assert not exchange.status
        await wire.gone()

    proxy(check)


@pytest.mark.parametrize("is_reset", [False, True])
def test_an_answer_that_breaks_off_is_an_error_and_never_whole(proxy, is_reset):
    async def check(stand: Stand) -> None:
        for framing in (b"Content-Length: 9", b"Transfer-Encoding: chunked"):
            exchange, served = stand.ask(request())
            wire, _ = await stand.backend.request()
            await wire.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
            await eventually(lambda exchange=exchange: exchange.status, "the head of the answer")
            if is_reset:
                wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wire.sock.close()
            with pytest.raises(BackendError):
                await served
            assert not exchange.is_whole

    proxy(check)


def test_a_backend_that_is_silent_for_read_timeout_is_504(proxy):
    async def check(stand: Stand) -> None:
        _, served = stand.ask(request())
        wire, _ = await stand.backend.request()
        stand.wheel.advance(stand.loop.time() + 1.0)
        await turns(3)
        assert not served.done()
        stand.wheel.advance(stand.loop.time() + 6.0)
        with pytest.raises(BackendError, match="no answer in time") as raised:
            await served
        assert raised.value.status == 504
        await wire.gone()

    proxy(check, read_timeout_s=5.0)


def test_a_backend_waits_for_a_slow_client_as_long_as_that_takes(proxy):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(request(method="POST", body_bytes=3))
        wire, _ = await stand.backend.request()
        await turns(3)
        stand.wheel.advance(stand.loop.time() + 100.0)
        await turns(3)
        assert not served.done()
        exchange.pieces.put_nowait(b"abc")
        exchange.pieces.put_nowait(b"")
        assert await wire.recv_exactly(3) == b"abc"
        await turns(3)
        stand.wheel.advance(stand.loop.time() + 200.0)
        with pytest.raises(BackendError) as raised:
            await served
        assert raised.value.status == 504

    proxy(check, read_timeout_s=5.0)


def test_a_backend_that_takes_nothing_for_write_timeout_is_504(proxy):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(request(method="POST", body_bytes=None))
        await stand.backend.request()
        for _ in range(400):
            exchange.pieces.put_nowait(bytes(READ_BYTES))
        await turns(500)
        stand.wheel.advance(stand.loop.time() + 6.0)
        stand.wheel.advance(stand.loop.time() + 12.0)
        with pytest.raises(BackendError) as raised:
            await served
        assert raised.value.status == 504

    proxy(check, write_timeout_s=5.0)


# --- upgrades


def test_a_handshake_goes_through_and_becomes_a_pipe(proxy):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(upgrade(("sec-websocket-extensions", "permessage-deflate")))
        wire, got = await stand.backend.request()
        for line in (
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"sec-websocket-key: " + KEY.encode(),
            b"sec-websocket-version: 13",
            b"sec-websocket-extensions: permessage-deflate",
        ):
            assert got.count(b"\r\n" + line + b"\r\n") == 1
        await wire.send(switching(b"Sec-WebSocket-Protocol: chat", b"Content-Length: 0") + b"\x81\x02hi")

        pipe = await served

        assert pipe is not None
        assert pipe.headers == (
            ("upgrade", "websocket"),
            ("sec-websocket-accept", accept_hash(KEY)),
            ("sec-websocket-protocol", "chat"),
            ("Connection", "Upgrade"),
        )
        assert (pipe.backend.leftover, pipe.backend.is_at_eof) == (b"\x81\x02hi", False)
        assert stand.loads == [1]
        assert not exchange.status
        pipe.close()
        await wire.gone()
        assert stand.loads == [0]

    proxy(check, upgrade=True)


@pytest.mark.parametrize(
    "answer",
    [
        switching(accept=accept_hash(KEY)[::-1]),
        switching(accept=""),
        switching(b"Sec-WebSocket-Accept: " + accept_hash(KEY).encode()),
        switching(upgrade=b"h2c"),
        switching(upgrade=b"websocket, h2c"),
        switching().replace(b"Connection: Upgrade", b"Connection: keep-alive"),
        switching().replace(b"Upgrade: websocket\r\n", b""),
        switching(b"Content-Length: 5"),
        switching(b"Transfer-Encoding: chunked"),
    ],
)
def test_a_101_that_does_not_take_the_handshake_is_502_and_the_connection_ends(proxy, answer):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(upgrade())
        wire, _ = await stand.backend.request()
        await wire.send(answer)
        with pytest.raises(BackendError) as raised:
            await served
        assert raised.value.status == 502
        assert not exchange.status
        await wire.gone()

    proxy(check, upgrade=True)


def test_a_refused_handshake_is_an_ordinary_answer(proxy):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(upgrade())
        wire, _ = await stand.backend.request()
        await wire.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        assert await served is None
        assert (exchange.status, exchange.body) == (403, b"no")
        assert stand.idle == 0, "nobody knows what the backend takes the next bytes for"

    proxy(check, upgrade=True)


def test_a_handshake_never_takes_a_connection_that_waits(proxy):
    async def check(stand: Stand) -> None:
        await stand.used()
        stand.ask(upgrade())
        await stand.backend.request()
        assert stand.idle == 1

    proxy(check, upgrade=True)


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (upgrade(method="POST"), 405),
        (upgrade(body_bytes=5), 400),
        (upgrade(body_bytes=None), 400),
        (upgrade(("sec-websocket-key", KEY)), 400),
        (upgrade(("sec-websocket-version", "8")), 426),
        (request(("upgrade", "websocket"), ("connection", "upgrade"), wants_websocket=True), 426),
    ],
)
def test_what_is_no_handshake_is_not_passed_on(proxy, asked, status):
    async def check(stand: Stand) -> None:
        with pytest.raises(PeerError) as raised:
            await stand.ask(asked)[1]
        assert raised.value.status == status
        assert not stand.backend.has_waiting()

    proxy(check, upgrade=True)


def test_without_upgrade_a_handshake_is_an_ordinary_request(proxy):
    async def check(stand: Stand) -> None:
        exchange, served = stand.ask(upgrade())
        wire, got = await stand.backend.request()
        assert b"upgrade" not in got.lower()
        await wire.send(OK)
        await served
        assert exchange.status == 200

    proxy(check)


def test_without_upgrade_a_101_is_502(proxy):
    async def check(stand: Stand) -> None:
        _, served = stand.ask(upgrade())
        wire, _ = await stand.backend.request()
        await wire.send(switching())
        with pytest.raises(BackendError, match="nobody has asked for") as raised:
            await served
        assert raised.value.status == 502

    proxy(check)
