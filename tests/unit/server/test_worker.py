"""The loop that carries traffic: who is let in, and that everybody is out at the end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from typing import Any

import h2.connection
import h2.events
import pytest

from tests.conftest import Run, open_descriptors
from tests.wire.clients import BINARY, Client, Refused, close_frame, frame
from tests.wire.sockets import DEADLINE_S, Wire, eventually, turns
from tests.wire.tls import TlsClient, TlsPeer, authority, client_context, credentials, issued
from wstunnel.errors import BackendError
from wstunnel.gateways.claim import Connected
from wstunnel.gateways.static import StaticGateway
from wstunnel.limits import FileLimits, HeadLimits, Limits, RelayLimits
from wstunnel.net.listen import open_listener
from wstunnel.net.tls import ServerTls
from wstunnel.proto.close import CloseCode
from wstunnel.proto.request import Request
from wstunnel.server.routes import HttpRoute, TunnelRoute
from wstunnel.server.worker import Worker
from wstunnel.settings import Io, Route, TcpAddress
from wstunnel.supervise.board import Board, WorkerColumn, close_column
from wstunnel.supervise.child import ExitStatus


class Claim:
    """A backend that never dies; `load` of its gateway counts those that are not released."""

    name, where, host_index = "echo-0", "unix:/run/echo.sock", 0

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._is_released = False
        gateway.load += 1

    def is_exiting(self) -> bool:
        return False

    async def exit_status(self) -> ExitStatus | None:
        return None

    def release(self) -> None:
        if not self._is_released:
            self._is_released = True
            self._gateway.load -= 1


class Gateway:
    """A backend that is a socket pair; `backends` are its far ends. `gate`: a connect waits until that is done."""

    def __init__(self) -> None:
        self.load = 0
        self.backends: list[Wire] = []
        self.gate: asyncio.Future[None] | None = None
        self.error: BackendError | None = None
        self.waiting = 0

    async def connect(self, _request: Request) -> Connected:
        claim = Claim(self)
        try:
            if self.gate is not None:
                self.waiting += 1
                await self.gate
            if self.error is not None:
                raise self.error
        except BaseException:
            claim.release()
            raise
        near, far = socket.socketpair()
        near.setblocking(False)
        self.backends.append(Wire(far))
        return Connected(near.detach(), claim)


class Stand:
    """`async with Stand() as stand`: a worker on a free port. At the end nothing may be left of it."""

    def __init__(
        self,
        *,
        max_connections: int = 100,
        root: str | None = None,
        limits: Limits | None = None,
        io: Io = "auto",
        tls: ServerTls | None = None,
        **route: Any,
    ) -> None:
        self._tls = tls
        self._io = io
        self._limits = limits or Limits()
        self.row = Board(self._limits.master, is_shared=False).worker(1)
        self._max_connections, self._root = max_connections, root
        self._route = Route(**({"ping_interval_s": 0.0} | route))

    async def __aenter__(self) -> Stand:
        self._fds = _descriptors()
        self.listener = open_listener(TcpAddress("127.0.0.1", 0), backlog=64)
        self.listener.tls = self._tls
        self.gateway = Gateway()
        routes: list[TunnelRoute | HttpRoute] = [TunnelRoute(self._route, self.gateway)]
        if self._root is not None:
            routes.append(HttpRoute(Route(gateway="static"), StaticGateway(self._root, FileLimits())))
        self.worker = Worker(
            [self.listener],
            routes,
            max_connections=self._max_connections,
            limits=self._limits,
            row=self.row,
            io=self._io,
        )
        self.worker.start()
        self._clients: list[Client] = []
        return self

    async def reach(self) -> Client:
        client = await Client.reach(self.listener.address)
        self._clients.append(client)
        return client

    async def client(self, **how: Any) -> Client:
        client = await self.reach()
        await client.upgrade("/", **how)
        return client

    async def drain(self, *, within_s: float = DEADLINE_S) -> None:
        await self.worker.drain(CloseCode.GOING_AWAY, within_s=within_s)

    async def __aexit__(self, kind: Any, *_: Any) -> None:
        for wire in (*self._clients, *self.gateway.backends):
            wire.close()
        if kind is None:
            await self.drain()
        else:
            self.worker.abort()
        await turns(4)
        self.worker.close()
        self.listener.close()
        if kind is None:
            assert self.gateway.load == 0
            await eventually(lambda: _descriptors() == self._fds, "every descriptor closed")
        gc.collect()


def _descriptors() -> dict[int, str]:
    """What is open, without the /dev/null that libuv keeps for a loop from its first stream on."""
    return {fd: name for fd, name in open_descriptors().items() if name != "/dev/null"}


def _is_hung_up(sock: socket.socket) -> bool:
    try:
        sock.send(b"")
    except ConnectionRefusedError:  # a datagram socket's peer is gone
        return True
    return False


async def is_let_in(client: Client) -> bool:
    """Is a request of this client answered within a moment?"""
    try:
        async with asyncio.timeout(0.2):
            await client.upgrade("/")
    except TimeoutError:
        return False
    return True


# --- places


@pytest.mark.parametrize("how", ["tunnel", "plain", "refused", "no backend", "reset", "nothing said"])
def test_a_place_is_free_again_however_a_connection_ended(run: Run, how):
    async def check() -> None:
        async with Stand(max_connections=1) as stand:
            for _ in range(3):
                client = await stand.reach()
                if how == "tunnel":
                    await client.upgrade("/")
                    await client.send(close_frame(1000))
                    stand.gateway.backends[-1].close()
                    assert (await client.to_end()).code == 1000
                elif how == "plain":
                    assert (await client.request("/", [("Connection", "close")])).status == 426
                elif how == "refused":
                    with pytest.raises(Refused):
                        await client.upgrade("/", [("Origin", "https://elsewhere.test")])
                elif how == "no backend":
                    stand.gateway.error = BackendError("none")
                    with pytest.raises(Refused):
                        await client.upgrade("/")
                    stand.gateway.error = None
                if how == "reset":
                    client.reset()
                else:
                    client.close()

            await stand.client()

    run(check())


def test_a_client_over_the_limit_waits_and_is_served_when_there_is_room(run: Run):
    async def check() -> None:
        async with Stand(max_connections=2) as stand:
            first, second, third = await stand.client(), await stand.client(), await stand.reach()
            serving = asyncio.ensure_future(third.upgrade("/"))
            await asyncio.wait((serving,), timeout=0.2)
            assert not serving.done()

            first.close()
            stand.gateway.backends[0].close()

            await serving
            for wire, backend in ((second, stand.gateway.backends[1]), (third, stand.gateway.backends[2])):
                await wire.send(frame(BINARY, b"a"))
                assert await backend.recv_exactly(1) == b"a"

    run(check())


# --- a client that is lost on the way


def test_a_client_that_resets_while_its_backend_is_connected_leaves_no_lease(run: Run):
    async def check() -> None:
        async with Stand(max_connections=1) as stand:
            stand.gateway.gate = asyncio.get_running_loop().create_future()
            client = await stand.reach()
            upgrading = asyncio.ensure_future(client.upgrade("/"))
            await eventually(lambda: stand.gateway.waiting == 1, "the connect under way")
            upgrading.cancel()
            await asyncio.wait((upgrading,))
            client.reset()

            await eventually(lambda: stand.gateway.load == 0, "the lease given back")

            stand.gateway.gate = None
            await stand.client()

    run(check())


def test_a_client_that_half_closed_meanwhile_is_served_to_its_end(run: Run):
    async def check() -> None:
        async with Stand() as stand:
            stand.gateway.gate = asyncio.get_running_loop().create_future()
            client = await stand.reach()
            upgrading = asyncio.ensure_future(client.upgrade("/", early=frame(BINARY, b"all I say")))
            await eventually(lambda: stand.gateway.waiting == 1, "the connect under way")
            client.half_close()
            await turns(8)
            stand.gateway.gate.set_result(None)
            await upgrading
            (backend,) = stand.gateway.backends

            assert await backend.recv_to_end() == b"all I say"
            await backend.send(b"answer")
            backend.close()

            assert (await client.to_end()).data == b"answer"

    run(check())


# --- drain


def test_a_drain_without_connections_is_over_at_once(run: Run):
    async def check() -> None:
        async with Stand() as stand:
            async with asyncio.timeout(1.0):
                await stand.drain()

    run(check())


def test_a_drain_ends_idle_connections_and_tells_tunnels_1001(run: Run, tmp_path):
    (tmp_path / "index.html").write_text("hello")

    async def check() -> None:
        async with Stand(root=str(tmp_path)) as stand:
            idle, tunnel = await stand.reach(), await stand.client()
            assert (await idle.request("/")).status == 200
            draining = asyncio.ensure_future(stand.drain())
            assert await idle.recv() == b""
            assert await stand.gateway.backends[0].recv() == b""
            await stand.gateway.backends[0].send(b"bye")
            stand.gateway.backends[0].close()

            heard = await tunnel.to_end(answer=True)

            assert (heard.data, heard.code) == (b"bye", 1001)
            tunnel.close()
            async with asyncio.timeout(1.0):
                await draining

    run(check())


def test_a_tunnel_whose_backend_was_being_connected_when_the_drain_began_is_told_1001_too(run: Run):
    async def check() -> None:
        async with Stand() as stand:
            stand.gateway.gate = asyncio.get_running_loop().create_future()
            client = await stand.reach()
            upgrading = asyncio.ensure_future(client.upgrade("/", early=frame(BINARY, b"early")))
            await eventually(lambda: stand.gateway.waiting == 1, "the connect under way")
            draining = asyncio.ensure_future(stand.drain())
            await turns(4)
            stand.gateway.gate.set_result(None)
            await upgrading
            (backend,) = stand.gateway.backends

            assert await backend.recv_to_end() == b"early"
            backend.close()

            assert (await client.to_end(answer=True)).code == 1001
            client.close()
            await draining

    run(check())


def test_a_connection_that_was_just_accepted_when_the_drain_began_does_not_hold_it(run: Run):
    """Beside a tunnel that ends slowly, it would have been served like any other."""

    async def check() -> None:
        async with Stand(io="protocol") as stand:
            tunnel = await stand.client()
            near, far = socket.socketpair()
            near.setblocking(False)
            draining = asyncio.ensure_future(stand.drain())
            stand.worker._acceptor.open_connections += 1
            stand.worker._admit(near.detach(), "unix:", "unix:", stand.listener)
            with far:
                late = Wire(far)
                await late.send(b"GET / HTTP/1.1\r\n")
                assert await late.recv() == b""
            assert not draining.done()
            stand.gateway.backends[0].close()
            assert (await tunnel.to_end(answer=True)).code == 1001
            tunnel.close()
            await draining

    run(check())


def test_a_drain_cuts_what_takes_longer_and_says_how_many(run: Run, caplog):
    async def check() -> None:
        async with Stand() as stand:
            clients = [await stand.client() for _ in range(3)]
            await stand.drain(within_s=0.05)

            for client in clients:
                assert (await client.to_end()).code == 1001
            for backend in stand.gateway.backends:
                assert await backend.recv() == b""

    run(check())
    assert "3 tunnels had not ended after 0.05 s and were cut" in caplog.messages


def test_an_abort_makes_a_drain_return_at_once(run: Run):
    async def check() -> None:
        async with Stand() as stand:
            client = await stand.client()
            draining = asyncio.ensure_future(stand.drain())
            await turns(4)
            assert not draining.done()

            stand.worker.abort()

            async with asyncio.timeout(1.0):
                await draining
            assert (await client.to_end()).code == 1001

    run(check())


def test_a_drain_that_is_called_off_cuts_what_is_left(run: Run):
    """Whoever cancels it goes away: tunnels that nobody looks after any more may not stay."""

    async def check() -> None:
        async with Stand() as stand:
            client = await stand.client()
            draining = asyncio.ensure_future(stand.drain())
            await turns(4)

            draining.cancel()

            with pytest.raises(asyncio.CancelledError):
                await draining
            assert (await client.to_end()).code == 1001
            assert await stand.gateway.backends[0].recv() == b""

    run(check())


# --- abort


@pytest.mark.parametrize("turn", range(4))
def test_an_abort_while_a_connection_is_being_let_in_leaves_nothing(run: Run, turn):
    async def check() -> None:
        async with Stand() as stand:
            near, far = socket.socketpair()
            near.setblocking(False)
            stand.worker._acceptor.open_connections += 1
            stand.worker._admit(near.detach(), "unix:", "unix:", stand.listener)
            await turns(turn)

            stand.worker.abort()

            with far:
                assert await Wire(far).recv() == b""
            gc.collect()  # a socket that nobody closed warns, and a warning is a failure

    run(check())


@pytest.mark.parametrize("turn", range(8))
def test_an_abort_at_any_point_of_an_opening_tunnel_leaves_nothing(run: Run, turn):
    async def check() -> None:
        async with Stand() as stand:
            stand.gateway.gate = asyncio.get_running_loop().create_future()
            client = await stand.reach()
            upgrading = asyncio.ensure_future(client.upgrade("/", early=frame(BINARY, b"early")))
            await eventually(lambda: stand.gateway.waiting == 1, "the connect under way")
            stand.gateway.gate.set_result(None)
            await turns(turn)

            stand.worker.abort()

            await asyncio.gather(upgrading, return_exceptions=True)
            await eventually(lambda: stand.gateway.load == 0, "the lease given back")

    run(check())


def test_a_connection_that_the_loop_cannot_take_is_closed_logged_and_gives_its_place_back(run: Run, caplog):
    async def check() -> None:
        async with Stand(max_connections=1, io="protocol") as stand:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # both loops want a stream
            stand.worker._acceptor.open_connections += 1
            stand.worker._admit(near.detach(), "unix:", "unix:", stand.listener)
            far.setblocking(False)
            await eventually(lambda: _is_hung_up(far), "the socket closed")
            far.close()

            await stand.client()

    run(check())
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line.startswith("unix:: cannot be served: A Stream Socket was expected")


def test_a_connection_that_the_hub_cannot_watch_is_closed_logged_and_gives_its_place_back(run: Run, caplog):
    async def check() -> None:
        async with Stand(max_connections=1) as stand:
            fd = os.open(os.devnull, os.O_RDONLY)  # epoll refuses what is no socket
            stand.worker._acceptor.open_connections += 1
            stand.worker._admit(fd, "unix:", "unix:", stand.listener)
            assert fd not in open_descriptors()

            await stand.client()

    run(check())
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line == "unix:: cannot be served: [Errno 1] Operation not permitted"


def test_tunnels_are_asked_to_end_one_after_the_other(run: Run):
    """Their clients would all come back at once; the drain still asks all of them before half of its time is over."""
    limits = Limits(relay=RelayLimits(closes_per_s=10.0))

    async def check() -> None:
        async with Stand(limits=limits) as stand:
            clients = [await stand.client() for _ in range(4)]
            draining = asyncio.ensure_future(stand.drain())

            def asked() -> int:
                return sum(not session.relay.is_open for session in stand.worker._sessions)

            await eventually(lambda: asked() > 0, "the first tunnel asked")
            assert asked() < len(clients)
            await eventually(lambda: asked() == len(clients), "every tunnel asked")
            for backend in stand.gateway.backends:
                backend.close()
            for client in clients:
                assert (await client.to_end(answer=True)).code == 1001
                client.close()
            await draining

    run(check())


# --- quiet


def test_a_quiet_worker_accepts_no_more_and_serves_what_there_is_to_its_end(run: Run, tmp_path):
    """A reload fails nobody: not a tunnel, not a client that has connected and not asked yet."""
    (tmp_path / "index.html").write_text("hello")

    async def check() -> None:
        async with Stand(root=str(tmp_path)) as stand:
            served, silent, tunnel = await stand.reach(), await stand.reach(), await stand.client()
            assert (await served.request("/")).status == 200
            await eventually(lambda: stand.row[WorkerColumn.ACCEPTED] == 3, "all let in")
            idle = asyncio.ensure_future(stand.worker.idle())

            stand.worker.quiet()

            assert await served.recv() == b""
            late = await stand.reach()
            await silent.upgrade("/")
            await silent.send(frame(BINARY, b"asked late"))
            assert await stand.gateway.backends[1].recv() == b"asked late"
            await tunnel.send(frame(BINARY, b"still"))
            assert await stand.gateway.backends[0].recv() == b"still"
            assert stand.row[WorkerColumn.ACCEPTED] == 3
            assert not idle.done()
            for backend, client in zip(stand.gateway.backends, (tunnel, silent), strict=True):
                backend.close()
                assert (await client.to_end(answer=True)).code == 1000
                client.close()
            await idle
            late.close()

    run(check())


# --- counters


def test_what_is_open_and_what_ever_was_stands_in_the_row(run: Run):
    async def check() -> None:
        async with Stand() as stand:
            row = stand.row

            def counted(*columns: WorkerColumn) -> list[int]:
                return [row[column] for column in columns]

            client, other = await stand.client(), await stand.reach()
            await other.request("/nowhere")
            open_now = (WorkerColumn.CONNECTIONS, WorkerColumn.TUNNELS)
            assert counted(WorkerColumn.ACCEPTED, WorkerColumn.OPENED, WorkerColumn.TUNNELS) == [2, 1, 1]
            await client.send(frame(BINARY, b"12345"))
            assert await stand.gateway.backends[0].recv() == b"12345"
            assert counted(WorkerColumn.BYTES_IN, WorkerColumn.MESSAGES_IN) == [5, 1]
            stand.gateway.backends[0].close()
            assert (await client.to_end(answer=True)).code == 1000
            client.close()
            other.close()
            await eventually(lambda: counted(*open_now) == [0, 0], "all gone")
            assert row[close_column(1000)] == 1

    run(check())


# --- TLS


def test_a_tunnel_over_tls_carries_and_ends_as_any_other(run: Run):
    async def check() -> None:
        async with Stand(tls=ServerTls(credentials()), frame_type="binary") as stand:
            client = await TlsClient.meet(stand.listener.address)
            await client.upgrade("/", early=frame(BINARY, b"early"))
            (backend,) = stand.gateway.backends
            assert await backend.recv_exactly(5) == b"early"
            for size in (1, 64, 20_000, 300_000):
                data = os.urandom(size)
                sending = asyncio.ensure_future(client.send(frame(BINARY, data)))
                assert await backend.recv_exactly(size) == data
                await sending
                sending = asyncio.ensure_future(backend.send(data))
                assert await client.payload(size) == data
                await sending
            assert stand.row[WorkerColumn.BYTES_IN] == 5 + 1 + 64 + 20_000 + 300_000
            await client.send(frame(BINARY, b"last") + close_frame(1000))
            assert await backend.recv_to_end() == b"last"
            await backend.send(b"bye")
            backend.close()
            heard_last = await client.to_end()

            assert (heard_last.data, heard_last.code, heard_last.reset) == (b"bye", 1000, False)
            assert not client.peer.is_cut
            client.close()

    run(check())


def test_a_client_whose_tls_ends_still_hears_what_its_backend_says(run: Run):
    async def check() -> None:
        async with Stand(tls=ServerTls(credentials())) as stand:
            client = await TlsClient.meet(stand.listener.address)
            await client.upgrade("/", early=frame(BINARY, b"all I say"))
            client.half_close()
            (backend,) = stand.gateway.backends
            assert await backend.recv_to_end() == b"all I say"
            await backend.send(b"answer")
            backend.close()

            assert (await client.to_end()).data == b"answer"
            client.close()
            await eventually(lambda: stand.row[close_column(1006)] == 1, "the end")

    run(check())


def test_requests_over_tls_know_the_scheme_and_the_clients_certificate(run: Run):
    async def check() -> None:
        requests: list[Request] = []
        tls = ServerTls(credentials(client_ca=authority("ours").cert_pem.bytes()))
        async with Stand(tls=tls) as stand:
            connect = stand.gateway.connect

            async def noting(request: Request) -> Connected:
                requests.append(request)
                return await connect(request)

            stand.gateway.connect = noting  # type: ignore[method-assign]
            context = client_context(leaf=issued("ann@example.org", common_name="Ann"))
            client = await TlsClient.meet(stand.listener.address, context)
            await client.upgrade("/")

            assert requests[0].scheme == "https"
            assert requests[0].client_subject.startswith("CN=Ann,")
            client.close()
            stand.gateway.backends[0].close()

    run(check())


def test_a_handshake_that_fails_is_logged_with_its_peer_and_gives_its_place_back(run: Run, caplog):
    caplog.set_level(logging.INFO, "wstunnel")

    async def check() -> None:
        async with Stand(max_connections=1, tls=ServerTls(credentials())) as stand:
            for said in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x02\x01\x00", b""):
                client = await stand.reach()
                await client.send(said)
                client.half_close()
                await client.gone()
                client.close()
            client = await TlsClient.meet(stand.listener.address)
            assert (await client.request("/nowhere", [("Connection", "close")])).status
            client.close()

    run(check())
    told = [record.getMessage() for record in caplog.records if "TLS" in record.getMessage()]
    assert len(told) == 2
    assert all(each.startswith("127.0.0.1:") for each in told)
    assert told[0].endswith(": TLS handshake failed: the client speaks plain HTTP")


def test_handshakes_count_and_a_drain_ends_them(run: Run):
    async def check() -> None:
        async with Stand(max_connections=1, tls=ServerTls(credentials())) as stand:
            first, second = await stand.reach(), await stand.reach()
            await first.send(b"\x16\x03")
            await eventually(lambda: stand.row[WorkerColumn.CONNECTIONS] == 1, "the first one")
            await turns(8)
            assert stand.row[WorkerColumn.ACCEPTED] == 1
            async with asyncio.timeout(DEADLINE_S):
                await stand.drain()
            await first.gone()
            second.close()

            assert stand.row[WorkerColumn.CONNECTIONS] == 0

    run(check())


def test_a_handshake_under_way_when_the_worker_becomes_quiet_is_served(run: Run):
    async def check() -> None:
        async with Stand(tls=ServerTls(credentials())) as stand:
            wire = await stand.reach()
            peer = TlsPeer(wire.sock)
            peer.step()
            await eventually(lambda: stand.row[WorkerColumn.CONNECTIONS] == 1, "the connection")
            stand.worker.quiet()
            idle = asyncio.ensure_future(stand.worker.idle())
            await peer.shake()
            await peer.send(b"GET /nowhere HTTP/1.1\r\nHost: tunnel.test\r\n\r\n")

            assert (await peer.recv_to_end()).startswith(b"HTTP/1.1 ")
            assert not idle.done()
            peer.close()
            await idle

    run(check())


def test_the_time_of_a_head_begins_with_the_accept(run: Run):
    """A handshake byte by byte buys no time."""

    async def check() -> None:
        limits = Limits(head=HeadLimits(head_timeout_s=0.6))
        async with Stand(tls=ServerTls(credentials()), limits=limits) as stand:
            loop = asyncio.get_running_loop()
            begun_s = loop.time()
            client = await stand.reach()
            peer = TlsPeer(client.sock)
            peer.step()
            await eventually(lambda: loop.time() - begun_s > 0.4, "some time")
            await peer.shake()
            assert (await peer.recv_to_end()).startswith(b"HTTP/1.1 408 ")
            assert loop.time() - begun_s < 0.95

    run(check())


def test_http2_is_spoken_with_those_who_choose_it(run: Run):
    async def check() -> None:
        async with Stand(tls=ServerTls(credentials())) as stand:
            context = client_context()
            context.set_alpn_protocols(["h2"])
            client = await TlsClient.meet(stand.listener.address, context)
            engine = h2.connection.H2Connection()
            engine.initiate_connection()
            fields = [(":method", "GET"), (":path", "/nowhere"), (":scheme", "https"), (":authority", "tunnel.test")]
            engine.send_headers(1, fields, end_stream=True)
            await client.send(engine.data_to_send())
            events: list[h2.events.Event] = []
            while not any(isinstance(event, h2.events.StreamEnded) for event in events):
                events += engine.receive_data(await client.recv())
            engine.close_connection()
            await client.send(engine.data_to_send())
            client.half_close()
            await client.recv_to_end()
            assert not client.peer.is_cut
            client.close()

    run(check())
