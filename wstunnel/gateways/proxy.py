"""HTTP to a backend that speaks it: a request goes on, its answer comes back, or both become a pipe."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection

from wstunnel._hub import Hub
from wstunnel.errors import BackendError, PeerError
from wstunnel.gateways.claim import Upgraded
from wstunnel.gateways.connecting import Connector, connect
from wstunnel.limits import GatewayLimits
from wstunnel.net.exchange import Exchange, Taken
from wstunnel.net.idle import IdleStreams
from wstunnel.net.stream import BackendStream
from wstunnel.proto import handshake
from wstunnel.proto.chunked import LAST_CHUNK, encode_chunk
from wstunnel.proto.forwarding import encode_request
from wstunnel.proto.http1_response import RawHead, ResponseReader
from wstunnel.proto.request import Request, tokens
from wstunnel.settings import Host, Route
from wstunnel.supervise.balance import Balancer
from wstunnel.supervise.lease import Lease

__all__ = ["ProxyGateway"]

_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Methods that may be sent twice (RFC 9110 §9.2.2)."""


class _StaleError(Exception):
    """A connection that had waited was gone when it was wanted, and nothing has come of it."""


class ProxyGateway:
    """Passes each request on to the slot that the balancer chooses, over a connection that waits there or a new one.

    in      name  of the route's backend, for errors

    Fields that speak of one connection stay on their side; bodies flow as they come, both ways at once, and neither
    side is read while the other one does not take what there is. A backend with a strict max-load-policy gets a
    connection for each request, since one that waits would occupy it.
    """

    def __init__(self, balancer: Balancer, name: str, route: Route, limits: GatewayLimits) -> None:
        self._connector = Connector(balancer, name)
        self._route, self._limits = route, limits
        self._hub: Hub
        self._idle: IdleStreams

    def open(self, hub: Hub) -> None:
        """Have `hub` read the backends, from now on."""
        self._hub = hub
        self._idle = IdleStreams(hub, self._limits)

    def close(self) -> None:
        """Keep no connection any more. Requests under way are served."""
        self._idle.close()

    def finds(self, request: Request) -> bool:  # noqa: ARG002
        """Every request is for the backend."""
        return True

    async def serve(self, exchange: Exchange) -> Upgraded | None:
        """The backend that has taken a WebSocket handshake; None: the request has been answered.

        raises  PeerError for what is no handshake though it wants to be one, and for a broken body; BackendError with
                502 for an answer that is none, 503 when no backend can be had, 504 when it is silent for read-timeout
                or takes nothing for write-timeout. Behind the head of an answer there is no other status any more:
                whoever serves the exchange ends the connection then
        """
        request = exchange.request
        accept = self._accept(request)
        dial = self._dial if accept is None else self._dial_anew
        while True:
            turn = await self._connector.take(request, dial)
            try:
                return await turn.run(exchange, accept, self._route.forwarded)
            except _StaleError:
                dial = self._dial_anew
            finally:
                turn.end()

    def _accept(self, request: Request) -> str | None:
        """What a backend has to answer to the key of a handshake that is to be passed on; None: to no such request."""
        if not self._route.upgrade or not request.wants_websocket:
            return None
        if request.body_bytes != 0:
            raise PeerError("a WebSocket handshake has no body")
        return handshake.answer(request).accept

    async def _dial(self, lease: Lease, host: Host) -> _Turn:
        waiting = self._idle.take(lease.slot)
        if waiting is None:
            return await self._dial_anew(lease, host)
        return _Turn(waiting, lease, self._idle, self._limits, is_reused=True)

    async def _dial_anew(self, lease: Lease, host: Host) -> _Turn:
        fd = await connect(lease.address, host.connect_timeout_s)
        try:
            stream = BackendStream(
                self._hub, fd, read_timeout_s=host.read_timeout_s, write_timeout_s=host.write_timeout_s
            )
        except OSError:
            os.close(fd)
            raise
        return _Turn(stream, lease, self._idle if host.max_load_policy == "share" else None, self._limits)


class _Turn:
    """One request at one backend.

    in      idle  where the connection goes behind the answer, if it may carry another request; None: nowhere
    """

    __slots__ = ("_idle", "_is_over", "_is_reused", "_is_sent", "_lease", "_limits", "_reader", "_stream")

    _reader: ResponseReader

    def __init__(
        self,
        stream: BackendStream,
        lease: Lease,
        idle: IdleStreams | None,
        limits: GatewayLimits,
        *,
        is_reused: bool = False,
    ) -> None:
        self._stream, self._lease, self._idle, self._limits = stream, lease, idle, limits
        self._is_reused = is_reused
        self._is_sent = False
        self._is_over = False

    async def run(self, exchange: Exchange, accept: str | None, forwarded: Collection[str]) -> Upgraded | None:
        """As `ProxyGateway.serve`. raises _StaleError when it is to be tried with another connection"""
        request = exchange.request
        self._reader = ResponseReader(self._limits, request.method)
        if accept is not None:
            self._idle = None  # nobody knows what a backend that refuses takes the next bytes for
        keeps_alive = self._idle is not None
        head = encode_request(request, forwarded=forwarded, keeps_alive=keeps_alive, with_upgrade=accept is not None)
        await self._stream.offer(head)
        if self._is_reused and self._stream.is_broken:
            raise _StaleError  # nothing of it has left
        if request.body_bytes == 0:
            self._is_sent = True
            return await self._answer(exchange, accept)
        self._stream.hold_clock()
        sending = asyncio.get_running_loop().create_task(self._send_body(exchange))
        try:
            return await self._answer(exchange, accept)
        except BackendError:
            if sending.done() and isinstance(fault := sending.exception(), PeerError):
                raise fault from None
            raise
        finally:
            sending.cancel()
            await asyncio.wait((sending,))

    def end(self) -> None:
        """The request is over; a second call does nothing."""
        if not self._is_over:
            self._is_over = True
            if self._idle is not None and self._is_sent and self._reader.is_reusable:
                self._idle.keep(self._lease.slot, self._stream)
            else:
                self._stream.abort()
            self._lease.release()

    async def _send_body(self, exchange: Exchange) -> None:
        stream, is_chunked = self._stream, exchange.request.body_bytes is None
        try:
            while piece := await exchange.read():
                if not await stream.offer(encode_chunk(piece) if is_chunked else piece):
                    return
            if is_chunked and not await stream.offer(LAST_CHUNK):
                return
        except BaseException:
            stream.abort()  # so that nobody takes what has been sent for the whole
            raise
        self._is_sent = True
        self._stream.start_clock()

    async def _answer(self, exchange: Exchange, accept: str | None) -> Upgraded | None:
        request, reader = exchange.request, self._reader
        payload = b""
        while (head := reader.head) is None:
            payload = await self._next(request)
        if head.is_upgrade:
            return self._pipe(head, accept)
        if reader.is_complete and request.method != "HEAD":
            self.end()
            await exchange.respond(head.status, head.fields, payload)
            return None
        await exchange.start(head.status, head.fields, head.body_bytes)
        while True:
            if reader.is_complete:
                self.end()  # the backend need not wait until the client has it all
            if payload:
                await exchange.write(payload)
            if reader.is_complete:
                break
            payload = await self._next(request)
        if head.body_bytes is None:
            await exchange.finish()
        return None

    async def _next(self, request: Request) -> bytes:
        """The payload that comes next, which may be none."""
        reader = self._reader
        try:
            data = await self._stream.read()
            if data:
                return reader.feed(data)
            if reader.is_empty and self._may_repeat(request):
                raise _StaleError
            reader.feed_eof()
        except BackendError as error:
            raise self._fault(str(error), error.status) from error
        except TimeoutError as error:
            raise self._fault(f"{error} in time", 504) from error
        except OSError as error:
            if reader.is_empty and self._may_repeat(request):
                raise _StaleError from error
            raise self._fault(f"the connection broke: {error.strerror or error}", 502) from error
        return b""

    def _may_repeat(self, request: Request) -> bool:
        return self._is_reused and request.body_bytes == 0 and request.method in _IDEMPOTENT

    def _pipe(self, head: RawHead, accept: str | None) -> Upgraded:
        headers = head.headers
        upgrades = tokens(headers, "upgrade")
        accepts = [value for name, value in headers if name == "sec-websocket-accept"]
        if accept is None:
            raise self._fault("an answer of 101 that nobody has asked for", 502)
        if upgrades != ["websocket"] or accepts != [accept]:
            raise self._fault("an answer of 101 that does not take this WebSocket handshake", 502)
        self._is_over = True
        taken = self._stream.release()
        backend = Taken(taken.transport, self._reader.leftover + taken.leftover, taken.is_at_eof)
        return Upgraded((*headers, ("Connection", "Upgrade")), backend, self._lease)

    def _fault(self, text: str, status: int) -> BackendError:
        return BackendError(f"{self._lease.name} ({self._lease.where}): {text}", status=status)
