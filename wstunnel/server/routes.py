"""Which request goes where: Request -> Route -> policy -> gateway."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from wstunnel._relay import Policy
from wstunnel.errors import BackendError, PeerError, safe
from wstunnel.gateways.claim import Connected, Gateway
from wstunnel.gateways.static import StaticGateway
from wstunnel.limits import Limits
from wstunnel.net.h1 import Exchange
from wstunnel.proto import handshake
from wstunnel.proto.handshake import Answer
from wstunnel.proto.origin import OriginPolicy
from wstunnel.proto.request import Request
from wstunnel.settings import Host, Route
from wstunnel.supervise.board import WorkerColumn

__all__ = ["OpenTunnel", "Router", "TunnelRoute"]

_log = logging.getLogger("wstunnel")

_BINARY_SUBPROTOCOL = "binary"


class TunnelRoute:
    """A route of the settings, with what its requests need, made once."""

    __slots__ = ("gateway", "origins", "policies", "route")

    def __init__(self, route: Route, gateway: Gateway) -> None:
        self.route = route
        self.gateway = gateway
        self.origins = OriginPolicy(route.origins)
        self.policies = tuple(_policy(route, host) for host in route.backends or (route,))
        """One for each host; a claim knows the number of its host."""

    def matches(self, path: str) -> bool:
        """As in lighttpd: a prefix (`/ws` takes `/wsx` too) or a suffix of the URL path."""
        if self.route.suffix is not None:
            return path.endswith(self.route.suffix)
        return path.startswith(self.route.path or "/")


def _policy(route: Route, host: Host) -> Policy:
    return Policy(
        is_binary=route.frame_type == "binary",
        ping_interval_s=route.ping_interval_s,
        ping_timeout_s=route.ping_timeout_s,
        max_read_idle_s=route.max_read_idle_s,
        max_write_idle_s=route.max_write_idle_s,
        close_timeout_s=route.close_timeout_s,
        read_timeout_s=host.read_timeout_s,
        write_timeout_s=host.write_timeout_s,
        fin_propagate=host.tcp_fin_propagate,
    )


@dataclass(slots=True)
class OpenTunnel:
    """A handshake that passed, and the backend that was connected for it."""

    exchange: Exchange
    answer: Answer
    connected: Connected
    policy: Policy

    @property
    def is_binary(self) -> bool:
        """Did the client ask for binary frames (noVNC's subprotocol)?"""
        return self.answer.subprotocol == _BINARY_SUBPROTOCOL


class Router:
    """Serves every request of a worker.

    in      routes    in the settings' order: the first match wins
            static    for plain requests, where there is a document root
            tunnel    joins a client to its connected backend
            row       the worker's row of the board, in which refusals are counted
    """

    def __init__(
        self,
        routes: Sequence[TunnelRoute],
        static: StaticGateway | None,
        *,
        limits: Limits,
        tunnel: Callable[[OpenTunnel], Awaitable[None]],
        row: memoryview,
    ) -> None:
        self._routes = routes
        self._static = static
        self._limits = limits
        self._tunnel = tunnel
        self._row = row

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request, or turn it into a tunnel.

        raises  PeerError for a request that is refused
        """
        request = exchange.request
        route = next((route for route in self._routes if route.matches(request.path)), None)
        if self._static is not None and not request.wants_websocket:
            await self._static.serve(exchange)
            return
        try:
            if route is None:
                raise PeerError("no route for this path", status=404)
            await self._serve_tunnel(exchange, route)
        except PeerError as error:
            self._note_refusal(request, error.status, error)
            raise

    async def _serve_tunnel(self, exchange: Exchange, route: TunnelRoute) -> None:
        request = exchange.request
        answer = handshake.answer(request, route.route.subprotocols)
        route.origins.check(request)
        try:
            connected = await route.gateway.connect(request)
        except BackendError as error:
            self._note_refusal(request, error.status, error)
            retry = (("Retry-After", str(self._limits.spawn.retry_after_s)),)
            exchange.refuse(error.status, "no backend can be had", retry)
            return
        await self._tunnel(OpenTunnel(exchange, answer, connected, route.policies[connected.lease.host_index]))

    def _note_refusal(self, request: Request, status: int, error: Exception) -> None:
        self._row[WorkerColumn.REFUSED] += 1
        _log.info('%s: %d for "%s": %s', request.peer, status, safe(request.path), error)
