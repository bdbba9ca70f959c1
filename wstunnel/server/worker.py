"""One event loop that carries traffic: accepts, serves, drains, stops. Knows nothing of processes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from typing import Any

from wstunnel._handshake import Handshake
from wstunnel._hub import Hub, HubTransport
from wstunnel.gateways.claim import Claim
from wstunnel.limits import Limits
from wstunnel.net.accept import Acceptor
from wstunnel.net.exchange import Exchange
from wstunnel.net.h1 import H1Connection
from wstunnel.net.h2 import H2Connection
from wstunnel.net.h2_exchange import H2Exchange
from wstunnel.net.listen import Listener
from wstunnel.net.tls import ServerTls, subject_of
from wstunnel.net.wheel import TimerWheel
from wstunnel.proto.close import CloseCode
from wstunnel.server.routes import HttpRoute, OpenPipe, OpenTunnel, Router, TunnelRoute
from wstunnel.server.session import Session
from wstunnel.settings import Io
from wstunnel.supervise.board import WorkerColumn

__all__ = ["Worker"]

_log = logging.getLogger("wstunnel")
_Connection = H1Connection | H2Connection | H2Exchange
_ACCEPTED, _CONNECTIONS = int(WorkerColumn.ACCEPTED), int(WorkerColumn.CONNECTIONS)  # for what counts every connection


class Worker:
    """Carries the traffic of some listeners. The listeners and the backends belong to somebody else.

    in      row         its row of the board, in which it counts
            may_accept  asked before it takes from a listener that several workers share
            io          how plain sockets are read
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        routes: Sequence[TunnelRoute | HttpRoute],
        *,
        max_connections: int,
        limits: Limits,
        row: memoryview,
        may_accept: Callable[[], bool] = lambda: True,
        io: Io = "auto",
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self._row = row
        self._wheel = TimerWheel(limits.relay.tick_s, self._loop.time())
        self._hub = Hub(
            self._loop,
            self._wheel,
            read_bytes=limits.relay.read_bytes,
            bulk_bytes=limits.relay.bulk_bytes,
            turn_bytes=limits.relay.turn_bytes,
            look_s=limits.relay.look_s,
            counters=row[WorkerColumn.BYTES_IN : WorkerColumn.MESSAGES_OUT + 1],
        )
        self._acceptor = Acceptor(
            self._loop,
            listeners,
            max_connections=max_connections,
            limits=limits.accept,
            on_connection=self._admit,
            may_accept=may_accept,
        )
        self._gateways = [route.gateway for route in routes if isinstance(route, HttpRoute)]
        for gateway in self._gateways:
            gateway.open(self._hub)
        self._router = Router(routes, limits=limits, tunnel=self._open_tunnel, pipe=self._open_pipe, row=row)
        self._admissions: set[asyncio.Task[Any]] = set()
        self._handshakes: set[Handshake] = set()
        self._connections: set[_Connection] = set()
        self._sessions: set[Session] = set()
        self._is_over_hub = io != "protocol"
        self._is_quiet = False
        self._leave_code: CloseCode | None = None
        self._leave_by_s = 0.0
        self._is_idle = asyncio.Event()

    def start(self) -> None:
        """Accept and serve from now on."""
        self._wheel.start(self._loop)
        self._acceptor.start()

    def quiet(self) -> None:
        """Accept no more, and serve what there is to its end; `idle` tells when that is."""
        self._is_quiet = True
        self._acceptor.stop()
        if self._leave_code is not None:
            for handshake in list(self._handshakes):
                handshake.abort()
        for connection in list(self._connections):
            connection.drain(is_patient=self._leave_code is None)
        self._note_idle()

    async def idle(self) -> None:
        """Wait until nothing is open any more, after `quiet`."""
        await self._is_idle.wait()

    async def drain(self, code: CloseCode, *, within_s: float) -> None:
        """Accept no more, let every tunnel end with `code` and what was received delivered; cut what takes longer.

        The tunnels are not asked all at once, so that their clients do not all come back at once.
        """
        self._leave_code = code
        self._leave_by_s = self._loop.time() + within_s
        self.quiet()
        try:
            async with asyncio.timeout(within_s):
                await self._leave_in_turn(list(self._sessions), code, within_s)
                await self._is_idle.wait()
        except TimeoutError:
            _log.warning("%d tunnels had not ended after %g s and were cut", len(self._sessions), within_s)
        finally:
            self.abort(code)

    async def _leave_in_turn(self, sessions: list[Session], code: CloseCode, within_s: float) -> None:
        tick_s = self._limits.relay.tick_s
        step = ceil(tick_s * max(self._limits.relay.closes_per_s, 2 * len(sessions) / max(within_s, tick_s)))
        for start in range(0, len(sessions), step):
            if start:
                await asyncio.sleep(tick_s)
            for session in sessions[start : start + step]:
                self._leave(session, code)

    def _leave(self, session: Session, code: CloseCode) -> None:
        session.relay.leave(code, max(self._leave_by_s - self._loop.time(), 0.0))

    def abort(self, code: CloseCode = CloseCode.GOING_AWAY) -> None:
        """Cut what is left: CLOSE with `code`, sockets released. `drain` then returns."""
        self._acceptor.stop()
        for task in list(self._admissions):
            task.cancel()
        for handshake in list(self._handshakes):
            handshake.abort()
        for session in list(self._sessions):
            session.relay.abort(code)
        for connection in list(self._connections):
            connection.abort()
        self._is_idle.set()

    def close(self) -> None:
        """Give the loop back; nothing is open any more."""
        for gateway in self._gateways:
            gateway.close()
        self._wheel.stop()
        self._hub.close()

    def _admit(self, fd: int, peer: str, local: str, listener: Listener) -> None:
        """The accepted descriptor becomes a connection that reads requests."""
        self._row[_ACCEPTED] += 1
        self._row[_CONNECTIONS] += 1
        if listener.tls is not None:
            self._shake_hands(fd, peer, local, listener, listener.tls)
            return
        connection = self._connection(peer, local, listener)
        if self._is_over_hub:
            self._attach(connection, fd, peer)
            return
        sock = socket.socket(fileno=fd)
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: connection, sock))
        self._admissions.add(task)
        task.add_done_callback(lambda _: self._admitted(task, connection, sock, peer))

    def _go_on_by_h2(self, listener: Listener, begun: H1Connection, transport: HubTransport, said: bytes) -> None:
        """A client speaks HTTP/2 in the clear: it has one connection, and that is another one."""
        connection = self._h2(transport.fileno(), listener, begun.peer, begun.local, begun.subject)
        self._connections.discard(begun)
        self._connections.add(connection)
        self._start(connection, transport, said)

    def _start(self, connection: H2Connection, before: HubTransport | Handshake, said: bytes = b"") -> None:
        try:
            connection.start(before, said)
        except OSError as error:
            _log.info("%s: cannot be served: %s", connection.peer, error)
            self._connection_closed(connection)
            return
        if self._is_quiet:
            connection.drain(is_patient=self._leave_code is None)

    def _h2(
        self, fd: int, listener: Listener, peer: str, local: str, subject: str, *, spent_s: float = 0.0
    ) -> H2Connection:
        return H2Connection(
            self._hub,
            fd,
            on_request=self._router.serve,
            admit=self._admit_stream,
            on_closed=self._connection_closed,
            peer=peer,
            local=local,
            scheme="http" if listener.tls is None else "https",
            subject=subject,
            spent_s=spent_s,
            max_streams=listener.front.max_streams,
            limits=self._limits,
            wheel=self._wheel,
        )

    def _admit_stream(self, exchange: H2Exchange) -> bool:
        """A stream takes a place as a connection does: it may need as many descriptors."""
        if not self._acceptor.take_place():
            return False
        self._connections.add(exchange)
        self._row[_CONNECTIONS] += 1
        return True

    def _shake_hands(self, fd: int, peer: str, local: str, listener: Listener, tls: ServerTls) -> None:
        """Have TLS agreed on first."""
        limits = self._limits.head

        def ended(handshake: Handshake, fault: str | None) -> None:
            self._handshakes.discard(handshake)
            if fault is None:
                self._secured(handshake, peer, local, listener)
                return
            if fault:
                _log.info("%s: TLS handshake failed: %s", peer, fault)
            self._release()

        try:
            handshake = Handshake(
                self._hub,
                fd,
                tls.context,
                on_end=ended,
                within_s=limits.head_timeout_s,
                max_bytes=limits.max_handshake_bytes,
                per_turn=self._limits.accept.handshakes_per_turn,
            )
        except OSError as error:
            _log.error("%s: cannot be served: %s", peer, error)
            os.close(fd)
            self._release()
        else:
            self._handshakes.add(handshake)

    def _secured(self, handshake: Handshake, peer: str, local: str, listener: Listener) -> None:
        """TLS is agreed on, and so is what is spoken over it."""
        spent_s = self._limits.head.head_timeout_s - handshake.left_s
        subject = subject_of(handshake.certificate)
        if handshake.protocol == "h2":
            over = self._h2(handshake.fileno(), listener, peer, local, subject, spent_s=spent_s)
            self._connections.add(over)
            self._start(over, handshake)
            return
        connection = self._connection(peer, local, listener, subject=subject, spent_s=spent_s)
        if self._is_quiet:
            connection.drain(is_patient=self._leave_code is None)
        try:
            handshake.attach(connection)
        except OSError as error:
            _log.error("%s: cannot be served: %s", peer, error)
            self._connection_closed(connection)

    def _connection(
        self, peer: str, local: str, listener: Listener, *, subject: str = "", spent_s: float = 0.0
    ) -> H1Connection:
        connection = H1Connection(
            loop=self._loop,
            on_request=self._router.serve,
            peer=peer,
            local=local,
            scheme="http" if listener.tls is None else "https",
            subject=subject,
            limits=self._limits.head,
            body_limits=self._limits.gateway,
            wheel=self._wheel,
            buffer=self._hub.view,
            on_closed=self._connection_closed,
            on_h2=partial(self._go_on_by_h2, listener) if listener.front.h2c and listener.tls is None else None,
            spent_s=spent_s,
        )
        self._connections.add(connection)
        return connection

    def _attach(self, connection: H1Connection, fd: int, peer: str) -> None:
        """Have the hub read the socket."""
        try:
            HubTransport(self._hub, fd, connection)
        except OSError as error:
            _log.error("%s: cannot be served: %s", peer, error)
            os.close(fd)
            self._connection_closed(connection)

    def _admitted(self, task: asyncio.Task[Any], connection: H1Connection, sock: socket.socket, peer: str) -> None:
        self._admissions.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("%s: cannot be served: %s", peer, error)
        if error is not None or task.cancelled():
            sock.close()
            self._connection_closed(connection)

    def _connection_closed(self, connection: _Connection) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            self._release()

    async def _open_tunnel(self, opening: OpenTunnel) -> None:
        """The handshake passed and the backend is connected: answer 101 and join the two."""
        exchange = opening.exchange
        try:
            taken = await exchange.take_over(opening.answer)
        except BaseException:
            opening.connected.close()
            raise
        session = self._session(exchange, opening.connected.lease)
        await session.open(taken, opening.connected.fd, opening.policy, is_binary=opening.is_binary)
        self._leave_if_late(session)

    async def _open_pipe(self, opening: OpenPipe) -> None:
        """The backend has agreed to the handshake: pass its answer on and join the two."""
        exchange, upgraded = opening.exchange, opening.upgraded
        try:
            taken = await exchange.take_over(upgraded)
        except BaseException:
            upgraded.close()
            raise
        session = self._session(exchange, upgraded.lease)
        session.pipe(taken, upgraded.backend, opening.policy)
        self._leave_if_late(session)

    def _session(self, exchange: Exchange, lease: Claim) -> Session:
        """In the place of the connection that it was."""
        self._connections.discard(exchange.connection)
        session = Session(
            self._hub, exchange.request, lease, limits=self._limits, row=self._row, on_ended=self._session_ended
        )
        self._sessions.add(session)
        return session

    def _leave_if_late(self, session: Session) -> None:
        """It was opened while the others were asked to end."""
        if self._leave_code is not None:
            self._leave(session, self._leave_code)

    def _session_ended(self, session: Session) -> None:
        self._sessions.discard(session)
        self._release()

    def _release(self) -> None:
        """A connection, or the tunnel that it became, is gone."""
        self._row[_CONNECTIONS] -= 1
        self._acceptor.release()
        self._note_idle()

    def _note_idle(self) -> None:
        if self._is_quiet and not (self._sessions or self._connections or self._handshakes):
            self._is_idle.set()
