"""Which request goes where: Request -> Route -> policy -> gateway."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import NoReturn

from wstunnel._relay import Policy
from wstunnel.errors import BackendError, PeerError, safe
from wstunnel.gateways.claim import Connected, Gateway, HttpGateway, Upgraded
from wstunnel.limits import Limits
from wstunnel.net.exchange import Exchange
from wstunnel.proto import handshake
from wstunnel.proto.handshake import Answer
from wstunnel.proto.origin import OriginPolicy
from wstunnel.proto.request import Request
from wstunnel.server.conditions import all_hold
from wstunnel.settings import Host, Route
from wstunnel.supervise.board import WorkerColumn

__all__ = ["HttpRoute", "OpenPipe", "OpenTunnel", "Router", "TunnelRoute"]

_log = logging.getLogger("wstunnel")

_BINARY_SUBPROTOCOL = "binary"
_NO_BACKEND = "no backend can be had"
_NO_ANSWER: dict[int, str] = {
    HTTPStatus.BAD_GATEWAY: "the backend gave no answer that could be passed on",
    HTTPStatus.GATEWAY_TIMEOUT: "the backend did not answer in time",
}


class _BoundRoute:
    """A route of the settings, with what its requests need, made once."""

    __slots__ = ("_holds", "origins", "policies", "route")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.origins = OriginPolicy(route.origins)
        self.policies = tuple(_policy(route, host) for host in route.backends or (route,))
        """One for each host; a claim knows the number of its host."""
        self._holds = all_hold(route.when) if route.when else None

    def matches(self, request: Request) -> bool:
        """As in lighttpd: a prefix (`/ws` takes `/wsx` too) or a suffix of the URL path, and all conditions."""
        route, path = self.route, request.path
        at_path = path.endswith(route.suffix) if route.suffix is not None else path.startswith(route.path or "/")
        return at_path and (self._holds is None or self._holds(request))


class TunnelRoute(_BoundRoute):
    """A route whose backend gets plain bytes: for WebSockets only."""

    __slots__ = ("gateway",)

    def __init__(self, route: Route, gateway: Gateway) -> None:
        super().__init__(route)
        self.gateway = gateway

    def takes(self, request: Request) -> bool:
        return request.wants_websocket and self.matches(request)


class HttpRoute(_BoundRoute):
    """A route whose backend gets requests, WebSocket handshakes among them if it is allowed to."""

    __slots__ = ("gateway",)

    def __init__(self, route: Route, gateway: HttpGateway) -> None:
        super().__init__(route)
        self.gateway = gateway

    def takes(self, request: Request) -> bool:
        return self.matches(request) and bool(self.gateway.finds(request))


def _policy(route: Route, host: Host) -> Policy:
    is_framed = route.kind in {"tunnel", "stdio"}
    return Policy(
        is_binary=route.frame_type == "binary",
        ping_interval_s=route.ping_interval_s if is_framed else 0.0,
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


@dataclass(slots=True)
class OpenPipe:
    """A handshake that a backend has agreed to."""

    exchange: Exchange
    upgraded: Upgraded
    policy: Policy


class Router:
    """Serves every request of a worker.

    in      routes    in the settings' order: the first one that takes a request has it
            tunnel    joins a client to its connected backend
            pipe      joins a client to a backend that speaks WebSocket itself
            row       the worker's row of the board, in which refusals are counted
    """

    def __init__(
        self,
        routes: Sequence[TunnelRoute | HttpRoute],
        *,
        limits: Limits,
        tunnel: Callable[[OpenTunnel], Awaitable[None]],
        pipe: Callable[[OpenPipe], Awaitable[None]],
        row: memoryview,
    ) -> None:
        self._routes = routes
        self._limits = limits
        self._tunnel, self._pipe = tunnel, pipe
        self._row = row

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request, or turn it into a tunnel or a pipe.

        raises  PeerError for a request that is refused
        """
        request = exchange.request
        try:
            for route in self._routes:
                if route.takes(request):
                    break
            else:
                self._refuse_unwanted(request)
            if isinstance(route, TunnelRoute):
                await self._serve_tunnel(exchange, route)
            else:
                await self._serve_http(exchange, route)
        except PeerError as error:
            self._note_refusal(request, error.status, error)
            raise

    def _refuse_unwanted(self, request: Request) -> NoReturn:
        """Nobody takes it: a handshake that is none is told why, anything else has no route."""
        for route in self._routes:
            if isinstance(route, TunnelRoute) and route.matches(request):
                handshake.answer(request, route.route.subprotocols)
        raise PeerError("no route for this path", status=404)

    async def _serve_tunnel(self, exchange: Exchange, route: TunnelRoute) -> None:
        request = exchange.request
        answer = handshake.answer(request, route.route.subprotocols)
        route.origins.check(request)
        try:
            connected = await route.gateway.connect(request)
        except BackendError as error:
            self._note_failure(exchange, error, _NO_BACKEND)
            return
        await self._tunnel(OpenTunnel(exchange, answer, connected, route.policies[connected.lease.host_index]))

    async def _serve_http(self, exchange: Exchange, route: HttpRoute) -> None:
        request = exchange.request
        if request.wants_websocket and route.route.upgrade:
            route.origins.check(request)
        try:
            upgraded = await route.gateway.serve(exchange)
        except BackendError as error:
            if exchange.is_started:
                raise  # all that can be said any more is that it ends
            self._note_failure(exchange, error, _NO_ANSWER.get(error.status, _NO_BACKEND))
            return
        if upgraded is not None:
            await self._pipe(OpenPipe(exchange, upgraded, route.policies[upgraded.lease.host_index]))

    def _note_failure(self, exchange: Exchange, error: BackendError, text: str) -> None:
        self._note_refusal(exchange.request, error.status, error)
        retry = (("Retry-After", str(self._limits.spawn.retry_after_s)),)
        exchange.refuse(error.status, text, retry)

    def _note_refusal(self, request: Request, status: int, error: Exception) -> None:
        self._row[WorkerColumn.REFUSED] += 1
        _log.info('%s: %d for "%s": %s', request.peer, status, safe(request.path), error)
