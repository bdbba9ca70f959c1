"""FastCGI to a responder: one connection for each request, or for each WebSocket, whose bytes stay in records."""

from __future__ import annotations

import asyncio

from wstunnel._hub import Hub
from wstunnel.gateways.application import Application
from wstunnel.gateways.claim import Gateway, Upgraded
from wstunnel.gateways.records import REQUEST_ID, RecordPipe, Responder
from wstunnel.limits import Limits
from wstunnel.net.exchange import Exchange
from wstunnel.net.stream import BackendStream
from wstunnel.proto.fastcgi import begin, params, stdin
from wstunnel.proto.request import Request
from wstunnel.settings import Route

__all__ = ["FastcgiGateway"]


class FastcgiGateway:
    """Passes each request on to the slot that the balancer chooses.

    What the program says on its stderr goes to the log. When the client leaves, the program is told to abort.
    """

    def __init__(self, connector: Gateway, route: Route, limits: Limits) -> None:
        self._application = Application(connector, route, limits.gateway)
        self._limits = limits
        self._pipes: set[RecordPipe] = set()
        self._hub: Hub

    def open(self, hub: Hub) -> None:
        """Have `hub` read the backends from now on."""
        self._hub = hub
        self._application.open(hub)

    def close(self) -> None:
        """Cut what has become a pipe."""
        for pipe in list(self._pipes):
            pipe.cut()

    def finds(self, request: Request) -> bool:
        """As `Application.finds`."""
        return self._application.finds(request)

    async def serve(self, exchange: Exchange) -> Upgraded | None:
        """As `ScgiGateway.serve`.

        bound   as there; and `end_wait_s` at the end, for the backend to end the request
        """
        application = self._application
        with_upgrade = application.passes_upgrade(exchange.request)
        variables, body = await application.told(exchange, with_upgrade=with_upgrade)
        connected, stream = await application.connect(exchange.request)
        responder = Responder(stream, connected.lease.name, self._limits)
        upgraded = None
        try:
            head = begin(REQUEST_ID, keep=False) + params(REQUEST_ID, variables)
            asking = _ask(exchange, stream, head, body, is_open=with_upgrade)
            agreed = await application.converse(exchange, asking, responder, with_upgrade=with_upgrade)
            if agreed is None:
                await responder.hear_end()
            else:
                pipe = RecordPipe(self._hub, responder, connected.lease, *agreed, on_ended=self._pipes.discard)
                self._pipes.add(pipe)
                upgraded = pipe.upgraded
        except asyncio.CancelledError:
            await responder.abandon()
            raise
        finally:
            if upgraded is None:
                responder.close()
                connected.lease.release()
        return upgraded


async def _ask(exchange: Exchange, stream: BackendStream, head: bytes, body: bytes, *, is_open: bool) -> None:
    """Send all of the request, and count the backend's silence from then on.

    in      is_open  stdin does not end: it may become what the client of a WebSocket says
    """
    stream.hold_clock()
    is_there = await stream.offer(head + stdin(REQUEST_ID, body) if body else head)
    while is_there and (piece := await exchange.read()):
        is_there = await stream.offer(stdin(REQUEST_ID, piece))
    if is_there and not is_open:
        await stream.offer(stdin(REQUEST_ID, b""))
    stream.start_clock()
