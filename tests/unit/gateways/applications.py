"""Applications that speak SCGI or FastCGI, scripted by the test; what they hear is read by sioscgi and fcgiproto."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from fcgiproto import FastCGIConnection, RequestAbortEvent, RequestBeginEvent, RequestDataEvent
from sioscgi.request import Body, End, Headers, SCGIReader

from tests.conftest import open_descriptors
from tests.exchanges import FakeExchange, request_of
from tests.wire.sockets import DEADLINE_S, Wire, eventually
from wstunnel._hub import Hub
from wstunnel.gateways.claim import Connected, Upgraded
from wstunnel.gateways.fastcgi import FastcgiGateway
from wstunnel.gateways.scgi import ScgiGateway
from wstunnel.limits import GatewayLimits, Limits
from wstunnel.net.wheel import TimerWheel
from wstunnel.proto.request import Request
from wstunnel.settings import Gateway, Route

__all__ = ["KEY", "Application", "Stand", "handshake_of", "record", "within"]

T = TypeVar("T")
READ_BYTES = 4096
MOST_BYTES = 0xFFFF
"""What a record holds at most."""
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def handshake_of(**given: Any) -> Request:
    fields = (
        ("host", "a.example"),
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", KEY),
    )
    return request_of(**({"wants_websocket": True, "headers": fields} | given))


def record(kind: int, content: bytes = b"", padding: int = 0) -> bytes:
    """A FastCGI record of request 1, made by hand."""
    return bytes((1, kind, 0, 1)) + len(content).to_bytes(2, "big") + bytes((padding, 0)) + content + bytes(padding)


class Lease:
    """A claim that tells how often it was given back."""

    name, where, host_index = "app-0", "unix:/run/app-0", 0

    def __init__(self) -> None:
        self.releases = 0

    def is_exiting(self) -> bool:
        return False

    async def exit_status(self) -> None:
        return None

    def release(self) -> None:
        self.releases += 1


class Application:
    """The other end of a connection: it hears one request, and says what the test wants.

    in      kind  scgi or fastcgi
    """

    def __init__(self, kind: Gateway, wire: Wire) -> None:
        self.kind, self.wire = kind, wire
        self.environ: dict[str, str] = {}
        self.is_aborted = False
        self.pieces: deque[bytes] = deque()
        self._scgi, self._fastcgi = SCGIReader(), FastCGIConnection()

    async def begin(self) -> dict[str, str]:
        """The variables of the request."""
        while not self.environ:
            await self._hear()
        return self.environ

    async def body(self) -> bytes:
        """The next piece of the body (its stdin, for FastCGI); empty at its end."""
        while not self.pieces:
            await self._hear()
        return self.pieces.popleft()

    async def whole_body(self) -> bytes:
        found = b""
        while piece := await self.body():
            found += piece
        return found

    async def aborted(self) -> None:
        """Returns when it is told to abort."""
        while not self.is_aborted:
            await self._hear()

    async def say(self, data: bytes) -> None:
        if self.kind == "scgi":
            await self.wire.send(data)
            return
        for start in range(0, len(data), MOST_BYTES):
            await self.wire.send(record(6, data[start : start + MOST_BYTES]))

    async def complain(self, data: bytes) -> None:
        """Say on stderr."""
        await self.wire.send(record(7, data))

    async def end(self, status: int = 0) -> None:
        """End the request as a good program does."""
        if self.kind == "fastcgi":
            await self.wire.send(record(6) + record(3, status.to_bytes(4, "big") + bytes(4)))
        self.wire.close()

    async def _hear(self) -> None:
        data = await self.wire.recv()
        assert data, "the connection has ended"
        if self.kind == "scgi":
            self._scgi.receive_data(data)
            while (event := self._scgi.next_event()) is not None:
                match event:
                    case Headers():
                        self.environ = {name: raw.decode() for name, raw in event.environment.items()}
                    case Body():
                        self.pieces.append(event.data)
                    case End():
                        self.pieces.append(b"")
            return
        for event in self._fastcgi.feed_data(data):
            match event:
                case RequestBeginEvent():
                    assert (event.request_id, event.role, event.keep_connection) == (1, 1, 0)
                    self.environ = dict(event.params)
                case RequestDataEvent():
                    self.pieces.append(bytes(event.data))
                case RequestAbortEvent():
                    self.is_aborted = True


class Stand:
    """`async with Stand(kind, **route options) as stand`: a gateway whose connections the test has the other ends of.

    On leaving it, every connection and claim that was not passed on is given back.

    in      error  what connecting raises
    """

    def __init__(
        self, kind: Gateway, *, error: Exception | None = None, limits: GatewayLimits | None = None, **route: Any
    ) -> None:
        self.kind: Gateway = kind
        self.error = error
        self.limits = Limits(gateway=limits or GatewayLimits(end_wait_s=0.1))
        given = Route(gateway=kind, socket="/run/app", **({"path": "/cgi"} | route))
        connector: Any = self
        made = ScgiGateway if kind == "scgi" else FastcgiGateway
        self.gateway: ScgiGateway | FastcgiGateway = made(connector, given, self.limits)
        self.is_refusing = False
        """Are connections ended as soon as they are made?"""
        self.leases: list[Lease] = []
        self._accepted: asyncio.Queue[Application] = asyncio.Queue()
        self._applications: list[Application] = []
        self._tasks: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> Stand:
        self._fds = _descriptors()
        loop = asyncio.get_running_loop()
        self.wheel = TimerWheel(0.02, loop.time())
        self.wheel.start(loop)
        self.hub = Hub(
            loop,
            self.wheel,
            read_bytes=READ_BYTES,
            bulk_bytes=READ_BYTES,
            turn_bytes=4 * READ_BYTES,
            look_s=0.5,
        )
        self.gateway.open(self.hub)
        return self

    async def __aexit__(self, *raised: Any) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for application in self._applications:
            application.wire.close()
        if raised[0] is None:
            await eventually(lambda: all(lease.releases == 1 for lease in self.leases), "every claim given back once")
            await eventually(lambda: len(self.wheel) == 1, "nobody but the hub waits for the wheel")
        self.wheel.stop()
        self.hub.close()
        if raised[0] is None:
            await eventually(lambda: _descriptors() == self._fds, "every descriptor closed")

    async def connect(self, request: Request) -> Connected:
        """As a connector does."""
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, READ_BYTES)
        self._applications.append(Application(self.kind, Wire(theirs)))
        if self.is_refusing:
            theirs.close()
        self._accepted.put_nowait(self._applications[-1])
        self.leases.append(Lease())
        return Connected(ours.detach(), self.leases[-1])

    async def accept(self, *, is_deaf: bool = False) -> Application:
        """The application that has been connected, behind the variables of its request unless it is deaf."""
        async with asyncio.timeout(DEADLINE_S):
            application = await self._accepted.get()
            if not is_deaf:
                await application.begin()
        return application

    def serve(self, exchange: FakeExchange) -> asyncio.Task[Upgraded | None]:
        """Begin to serve an exchange."""
        given: Any = exchange
        task = asyncio.create_task(self.gateway.serve(given))
        self._tasks.append(task)
        return task

    async def ask(self, exchange: FakeExchange | None = None) -> tuple[Application, asyncio.Task[Upgraded | None]]:
        """An exchange that is being served, and the application that was asked."""
        serving = self.serve(exchange or FakeExchange())
        return await self.accept(), serving

    @contextlib.asynccontextmanager
    async def upgrade(self, said: bytes = b"") -> AsyncIterator[tuple[Application, Wire, Upgraded]]:
        """The application, and the end that a relay would have of what it has become by an upgrade.

        in      said  what stands behind its 101
        """
        application, serving = await self.ask(FakeExchange(handshake_of()))
        await application.say(b"Status: 101\r\nUpgrade: websocket\r\n\r\n" + said)
        upgraded = await within(serving)
        assert upgraded is not None
        near = Wire(socket.socket(fileno=os.dup(upgraded.backend.transport.fileno())))
        try:
            yield application, near, upgraded
        finally:
            near.close()
            upgraded.close()


async def within(awaited: Awaitable[T]) -> T:
    """The result, or a failure by `DEADLINE_S`."""
    async with asyncio.timeout(DEADLINE_S):
        return await awaited


def _descriptors() -> dict[int, str]:
    return {fd: name for fd, name in open_descriptors().items() if name != "/dev/null"}
