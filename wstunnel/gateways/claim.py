"""What every gateway hands over: a connected descriptor, and the claim on what stands behind it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol, cast

from wstunnel._hub import Hub, HubTransport
from wstunnel.net.exchange import Exchange, Taken
from wstunnel.proto.http1 import encode_head
from wstunnel.proto.request import Headers, Request
from wstunnel.supervise.child import ExitStatus

__all__ = ["Claim", "Connected", "Gateway", "HttpGateway", "Upgraded"]


class Claim(Protocol):
    """A backend's end of a tunnel, from the connect until it is released."""

    @property
    def name(self) -> str:
        """The backend in the access line."""

    @property
    def where(self) -> str:
        """Its address or its program, for the log."""

    @property
    def host_index(self) -> int:
        """Which of the route's hosts it is: `Route.backends`; 0 for a route of `stdio`."""

    def is_exiting(self) -> bool:
        """To be asked when the backend has ended the connection: has its process ended, or is it about to?"""

    async def exit_status(self) -> ExitStatus | None:
        """How the process ended; None when it did not, or nobody could tell in time."""

    def release(self) -> None:
        """The tunnel is over; a second call does nothing."""


@dataclass(slots=True)
class Connected:
    """A connected, non-blocking descriptor, and the claim on the backend behind it. Whoever takes the descriptor over
    does not call `close`."""

    fd: int
    lease: Claim

    def close(self) -> None:
        os.close(self.fd)
        self.lease.release()


@dataclass(slots=True)
class Upgraded:
    """A backend that has answered a handshake with 101: from here on bytes are piped as they are.

    headers  what the client is told with its 101, Upgrade and Connection included
    backend  its connection; `leftover` goes to the client before anything else
    """

    headers: Headers
    backend: Taken
    lease: Claim

    @property
    def head(self) -> bytes:
        """The 101 of these fields."""
        return encode_head(HTTPStatus.SWITCHING_PROTOCOLS, self.headers)

    def close(self) -> None:
        """Give the backend back instead."""
        cast(HubTransport, self.backend.transport).abort()
        self.lease.release()


class Gateway(Protocol):
    """How a route reaches its backend."""

    async def connect(self, request: Request) -> Connected:
        """A backend, connected before the client hears of it. raises BackendError when none can be had."""


class HttpGateway(Protocol):
    """How a route has its requests answered by something that speaks of requests."""

    def open(self, hub: Hub) -> None:
        """Have `hub` read the backends from now on; called once, before any request."""

    def close(self) -> None:
        """Give back what is kept between requests; called once, when all of them are over."""

    def finds(self, request: Request) -> object:
        """Is it for this route, as far as a matching path can tell? If not, later routes are asked."""

    async def serve(self, exchange: Exchange) -> Upgraded | None:
        """Answer a request; or the backend that has agreed to a WebSocket, to be joined with the client.

        raises  PeerError for a request that is refused, BackendError when there is nobody to answer it
        """
