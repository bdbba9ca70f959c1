"""One tunnel as the server sees it: the lease, the verdict, the access line, and what is left when joining fails."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import pytest

from tests.conftest import Run, open_descriptors
from tests.wire.clients import BINARY, Client, close_frame, frame
from tests.wire.sockets import Wire, eventually, turns
from wstunnel._hub import Hub
from wstunnel._relay import Policy
from wstunnel.limits import Limits
from wstunnel.net.exchange import Taken
from wstunnel.net.wheel import TimerWheel
from wstunnel.proto.request import Request
from wstunnel.server.session import Session
from wstunnel.supervise.board import WORKER_WORDS, WorkerColumn, close_column
from wstunnel.supervise.child import ExitStatus

REQUEST = Request(method="GET", target="/ws", path="/ws", query="", host="here.test", headers=(), peer="127.0.0.1:4711")
POLICY = Policy(
    is_binary=False,
    ping_interval_s=0.0,
    ping_timeout_s=20.0,
    max_read_idle_s=0.0,
    max_write_idle_s=0.0,
    close_timeout_s=5.0,
)


class Claim:
    """A claim on a process that ends as the test says."""

    name, where, host_index = "echo-0", "unix:/run/echo.sock-0", 0

    def __init__(self) -> None:
        self.releases = 0
        self.exiting = False
        self.status: asyncio.Future[ExitStatus | None] = asyncio.get_running_loop().create_future()

    def release(self) -> None:
        self.releases += 1

    def is_exiting(self) -> bool:
        return self.exiting

    async def exit_status(self) -> ExitStatus | None:
        return await self.status


class FailingLoop:
    """The running loop, where a transport cannot be made."""

    def __init__(self, loop: asyncio.AbstractEventLoop, error: BaseException) -> None:
        self._loop, self._error = loop, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def connect_accepted_socket(self, *_args: Any) -> Any:
        raise self._error


class Stand:
    """`async with Stand() as stand`: a session over socket pairs, opened by `open`; its clock stands still."""

    def __init__(self, *, error: BaseException | None = None) -> None:
        self._error = error

    async def __aenter__(self) -> Stand:
        self._fds = _descriptors()
        loop: Any = asyncio.get_running_loop()
        (client, far_client), (backend, far_backend) = socket.socketpair(), socket.socketpair()
        for sock in (client, far_client, backend, far_backend):
            sock.setblocking(False)
        transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, client)
        transport.pause_reading()
        self._transport, self._client = transport, client
        self.client, self.backend = Client(far_client), Wire(far_backend)
        if self._error is not None:
            loop = FailingLoop(loop, self._error)
        self._hub = Hub(
            loop, TimerWheel(0.1, loop.time()), read_bytes=1 << 16, bulk_bytes=1 << 17, turn_bytes=1 << 18, look_s=0.5
        )
        self.lease = Claim()
        self.over: list[Session] = []
        self.row = memoryview(bytearray(8 * WORKER_WORDS)).cast("q")
        self._backend_fd = backend.detach()
        self.session = Session(
            self._hub,
            REQUEST,
            self.lease,
            limits=Limits(),
            on_ended=self.over.append,
            row=self.row,
        )
        return self

    async def open(self, leftover: bytes = b"", *, is_at_eof: bool = False, is_binary: bool = False) -> None:
        taken = Taken(self._transport, leftover, is_at_eof)
        await self.session.open(taken, self._backend_fd, POLICY, is_binary=is_binary)

    def counted(self) -> dict[int, int]:
        """The words of the worker's row that are not 0."""
        return {column: word for column, word in enumerate(self.row) if word}

    async def ended(self) -> None:
        await eventually(lambda: bool(self.over), "the end")

    async def __aexit__(self, kind: Any, *_: Any) -> None:
        self.client.close()
        self.backend.close()
        if kind is None:
            await self.ended()
            assert self.over == [self.session]
            assert self.lease.releases == 1
            assert self.counted() == {
                WorkerColumn.OPENED: 1,
                close_column(self.session.relay.close_code): 1,
            }
        self._hub.close()
        if kind is None:
            await eventually(lambda: _descriptors() == self._fds, "every descriptor closed")


def _descriptors() -> dict[int, str]:
    """What is open, without the /dev/null that libuv keeps for a loop from its first stream on."""
    return {fd: name for fd, name in open_descriptors().items() if name != "/dev/null"}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """`lines()`: the facts of each access line so far."""
    caplog.set_level(logging.INFO)
    return lambda: [record.fields for record in caplog.records if record.name == "wstunnel.access"]


def test_a_tunnel_is_joined_relayed_and_logged(run: Run, lines):
    async def check() -> None:
        async with Stand() as stand:
            await stand.open(frame(BINARY, b"early"))
            await stand.client.send(frame(BINARY, b" bird"))
            assert await stand.backend.recv_exactly(10) == b"early bird"
            await stand.backend.send(b"worm")
            assert await stand.client.payload(4) == b"worm"
            await stand.client.send(close_frame(4001))
            stand.backend.close()
            assert (await stand.client.to_end()).code == 4001
            stand.client.close()
            await stand.ended()

            (line,) = lines()

            assert 0 <= line.pop("duration_s") < 20
            assert line == {
                "peer": "127.0.0.1:4711",
                "path": "/ws",
                "wire": "http/1.1",
                "backend": "echo-0",
                "bytes_in": 10,
                "bytes_out": 4,
                "messages_in": 2,
                "messages_out": 1,
                "code": 4001,
                "closed_by": "client",
            }

    run(check())


def test_a_client_that_had_ended_its_side_before_the_join_is_heard_to_its_end(run: Run):
    async def check() -> None:
        async with Stand() as stand:
            await stand.open(frame(BINARY, b"all I say"), is_at_eof=True)
            assert await stand.backend.recv_exactly(9) == b"all I say"
            assert await stand.backend.recv() == b""
            await stand.backend.send(b"answer")
            stand.backend.close()
            assert (await stand.client.to_end()).data == b"answer"

    run(check())


def test_a_tunnel_counts_from_its_first_moment_to_its_last(run: Run):
    async def check() -> None:
        async with Stand() as stand:
            assert stand.counted() == {}
            opening = asyncio.ensure_future(stand.open())
            await turns(1)
            assert stand.counted() == {WorkerColumn.OPENED: 1, WorkerColumn.TUNNELS: 1}
            await opening
            await stand.client.send(close_frame(4001))
            stand.backend.close()
            await stand.client.to_end()
            stand.client.close()
            await stand.ended()
            assert stand.counted() == {WorkerColumn.OPENED: 1, close_column(4001): 1}

    run(check())


@pytest.mark.parametrize("is_binary", [False, True])
def test_the_subprotocol_decides_over_the_route(run: Run, is_binary):
    async def check() -> None:
        async with Stand() as stand:
            await stand.open(is_binary=is_binary)
            await stand.backend.send(b"a")
            assert ((await stand.client.frame()).opcode is BINARY) == is_binary

    run(check())


# --- the verdict


def test_the_end_of_a_backend_that_lives_on_is_1000_at_once(run: Run):
    async def check() -> None:
        async with Stand() as stand:
            await stand.open()
            stand.backend.close()
            assert (await stand.client.to_end(answer=True)).code == 1000

    run(check())


@pytest.mark.parametrize(
    ("status", "code"),
    [(ExitStatus(code=0), 1000), (ExitStatus(code=1), 1011), (ExitStatus(signal=9), 1011), (None, 1000)],
)
def test_the_exit_status_of_an_exiting_backend_decides(run: Run, lines, status, code):
    async def check() -> None:
        async with Stand() as stand:
            stand.lease.exiting = True
            await stand.open()
            stand.backend.close()
            await turns(8)
            assert stand.over == []

            stand.lease.status.set_result(status)

            assert (await stand.client.to_end(answer=True)).code == code
            stand.client.close()
            await stand.ended()
            assert (lines()[0]["code"], lines()[0]["closed_by"]) == (code, "backend")

    run(check())


def test_a_verdict_that_nobody_needs_any_more_is_called_off(run: Run, lines):
    """The runner finds a task that is left behind."""

    async def check() -> None:
        async with Stand() as stand:
            stand.lease.exiting = True
            await stand.open()
            stand.backend.close()
            await turns(8)
            await stand.client.send(close_frame(4001))
            assert (await stand.client.to_end()).code == 4001
            stand.client.close()
            await stand.ended()
            assert lines()[0]["code"] == 4001
            await eventually(stand.lease.status.cancelled, "the verdict called off")

    run(check())


# --- the log


def test_broken_text_names_the_backend_and_the_remedy(run: Run, caplog):
    async def check() -> None:
        async with Stand() as stand:
            await stand.open()
            await stand.backend.send(b"\xff")
            assert (await stand.client.to_end(answer=True)).code == 1011

    run(check())

    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "echo-0" in line
    assert "unix:/run/echo.sock-0" in line
    assert "--frame-type binary" in line


def test_an_ordinary_end_is_no_warning(run: Run, caplog):
    async def check() -> None:
        async with Stand() as stand:
            await stand.open()

    run(check())

    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# --- when joining fails


def test_a_backend_transport_that_cannot_be_made_is_1011_and_leaves_nothing(run: Run, lines):
    async def check() -> None:
        async with Stand(error=OSError(12, "Cannot allocate memory")) as stand:
            with pytest.raises(OSError, match="allocate"):
                await stand.open(frame(BINARY, b"early"))

            assert stand.over == [stand.session]
            assert (await stand.client.to_end()).code == 1011
            assert await stand.backend.recv() == b""
            assert (lines()[0]["code"], lines()[0]["closed_by"]) == (1011, "server")

    run(check())


def test_joining_that_is_called_off_leaves_nothing(run: Run):
    async def check() -> None:
        async with Stand() as stand:
            opening = asyncio.ensure_future(stand.open())
            await turns(1)

            opening.cancel()

            with pytest.raises(asyncio.CancelledError):
                await opening
            assert stand.over == [stand.session]
            assert (await stand.client.to_end()).code == 1011
            assert await stand.backend.recv() == b""

    run(check())


def test_a_tunnel_that_is_aborted_while_it_is_joined_leaves_nothing(run: Run):
    async def check() -> None:
        async with Stand() as stand:
            opening = asyncio.ensure_future(stand.open(frame(BINARY, b"early")))
            await turns(1)
            stand.session.relay.abort(1001)
            await opening
            assert stand.over == [stand.session]
            assert (await stand.client.to_end()).code == 1001
            assert await stand.backend.recv() == b""

    run(check())
