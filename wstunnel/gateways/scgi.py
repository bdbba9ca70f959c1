"""SCGI to a backend: one connection for each request, or for each WebSocket, which then is a pipe."""

from __future__ import annotations

from wstunnel._hub import Hub
from wstunnel.gateways.application import Application, upgraded_of
from wstunnel.gateways.claim import Gateway, Upgraded
from wstunnel.limits import Limits
from wstunnel.net.exchange import Exchange
from wstunnel.net.stream import BackendStream
from wstunnel.proto.request import Request
from wstunnel.proto.scgi import encode_request
from wstunnel.settings import Route

__all__ = ["ScgiGateway"]


class ScgiGateway:
    """Passes each request on to the slot that the balancer chooses.

    The end of the connection is the end of the answer, so a backend that breaks off looks like one that has finished,
    unless it has announced a Content-Length.
    """

    def __init__(self, connector: Gateway, route: Route, limits: Limits) -> None:
        self._application = Application(connector, route, limits.gateway)

    def open(self, hub: Hub) -> None:
        """Have `hub` read the backends from now on."""
        self._application.open(hub)

    def close(self) -> None:
        """Nothing is kept between requests."""

    def finds(self, request: Request) -> bool:
        """As `Application.finds`."""
        return self._application.finds(request)

    async def serve(self, exchange: Exchange) -> Upgraded | None:
        """The pipe that a WebSocket handshake has become; None: the request has been answered.

        raises  PeerError on a request that is not passed on; BackendError with 502 for an answer that is none, 503
                when no backend can be had, 504 when it is silent for read-timeout; CutAnswerError when it breaks off
        bound   one read in each direction; a body of unknown length is collected, up to `max_collected_bytes`
        """
        application = self._application
        with_upgrade = application.passes_upgrade(exchange.request)
        variables, body = await application.told(exchange, with_upgrade=with_upgrade)
        connected, stream = await application.connect(exchange.request)
        upgraded = None
        try:
            asking = _ask(exchange, stream, encode_request(variables) + body)
            output = _Output(stream, has_body=exchange.request.body_bytes != 0)
            agreed = await application.converse(exchange, asking, output, with_upgrade=with_upgrade)
            if agreed is not None:
                upgraded = upgraded_of(stream, connected.lease, *agreed)
        finally:
            if upgraded is None:
                stream.abort()
                connected.lease.release()
        return upgraded


class _Output:
    """What the backend says. When it leaves some of a request's body unread, its end is a reset, behind all that it has
    said."""

    __slots__ = ("_has_body", "_stream")

    def __init__(self, stream: BackendStream, *, has_body: bool) -> None:
        self._stream, self._has_body = stream, has_body

    async def read(self) -> bytes:
        """As `answer.Output`."""
        try:
            return await self._stream.read()
        except ConnectionResetError:
            if self._has_body:
                return b""
            raise


async def _ask(exchange: Exchange, stream: BackendStream, head: bytes) -> None:
    """Send all of the request, and count the backend's silence from then on."""
    stream.hold_clock()
    is_there = await stream.offer(head)
    while is_there and (piece := await exchange.read()):
        is_there = await stream.offer(piece)
    stream.start_clock()
