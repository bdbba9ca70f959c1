"""What scgi and fastcgi share: programs that stay up and are told of a request in the variables of CGI."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from wstunnel._hub import Hub
from wstunnel.errors import BackendError, CutAnswerError
from wstunnel.folders import find_file, names_of
from wstunnel.gateways.answer import Output, beside, check_upgrade, collect_body, pass_on, passes_upgrade, read_head
from wstunnel.gateways.claim import Claim, Connected, Gateway, Upgraded
from wstunnel.gateways.program import SOFTWARE
from wstunnel.limits import GatewayLimits
from wstunnel.net.exchange import Exchange
from wstunnel.net.stream import BackendStream
from wstunnel.proto.cgi import split_path, variables
from wstunnel.proto.request import Headers, Request
from wstunnel.settings import Route

__all__ = ["Application", "upgraded_of"]


class Application:
    """The backend of a route, as far as it is the same for both protocols.

    in      connector  connects one of the route's backends
    """

    def __init__(self, connector: Gateway, route: Route, limits: GatewayLimits) -> None:
        self._connector, self._route, self._limits = connector, route, limits
        self._hub: Hub

    def open(self, hub: Hub) -> None:
        """Have `hub` read the backends from now on."""
        self._hub = hub

    def finds(self, request: Request) -> bool:
        """May the backend have this request? With check-local, only if its path leads to a file under the docroot."""
        return not self._route.check_local or self._script(request) is not None

    def passes_upgrade(self, request: Request) -> bool:
        """As the function `passes_upgrade`."""
        return passes_upgrade(self._route, request)

    async def told(self, exchange: Exchange, *, with_upgrade: bool) -> tuple[dict[str, str], bytes]:
        """The variables of a request, and its body if that had to be collected: CONTENT_LENGTH is told before it.

        raises  PeerError on what cannot be told; LimitError(413) on a long body of unknown length
        """
        request, root = exchange.request, self._route.docroot
        collected = b"" if request.body_bytes is not None else await collect_body(exchange, self._limits)
        prefix = self._script(request) or self._prefix(request)
        script_name, path_info = split_path(request.path, prefix)
        return variables(
            request,
            script_name=prefix,
            software=SOFTWARE,
            content_length=len(collected) if request.body_bytes is None else request.body_bytes,
            script_filename=None if root is None else root + script_name,
            document_root=root,
            path_translated=root + path_info if root is not None and path_info else None,
            with_upgrade=with_upgrade,
        ), collected

    async def connect(self, request: Request) -> tuple[Connected, BackendStream]:
        """A backend, and a stream over its connection, which owns the descriptor from here on.

        raises  BackendError(503) when none can be had
        """
        connected = await self._connector.connect(request)
        host = self._route.backends[connected.lease.host_index]
        try:
            stream = BackendStream(
                self._hub,
                connected.fd,
                read_timeout_s=host.read_timeout_s,
                write_timeout_s=host.write_timeout_s,
            )
        except OSError as error:
            connected.close()
            raise BackendError(f"{connected.lease.where}: {error.strerror}") from error
        return connected, stream

    async def converse(
        self, exchange: Exchange, asking: Coroutine[Any, Any, None], output: Output, *, with_upgrade: bool
    ) -> tuple[Headers, bytes] | None:
        """Send the request and, at the same time if it has a body, pass on the answer.

        in      asking  sends the whole request
                output  what the backend says
        out     None: the exchange is over; else the fields of a 101, and the first bytes behind it
        raises  as `ScgiGateway.serve`
        """
        if exchange.request.body_bytes == 0:
            await asking
            return await self._pass_on(exchange, output, with_upgrade=with_upgrade)
        async with beside(asking):
            return await self._pass_on(exchange, output, with_upgrade=with_upgrade)

    async def _pass_on(self, exchange: Exchange, output: Output, *, with_upgrade: bool) -> tuple[Headers, bytes] | None:
        head, first = await read_head(output, self._limits)
        if head.is_upgrade:
            return check_upgrade(exchange.request, head, is_allowed=with_upgrade), first
        try:
            await pass_on(exchange, head, first, output)
        except BackendError as error:
            raise CutAnswerError(str(error)) from error
        return None

    def _prefix(self, request: Request) -> str:
        """What of the path leads to the program, where no file does."""
        return (self._route.path or "/") if self._route.suffix is None else request.path

    def _script(self, request: Request) -> str | None:
        """The beginning of the path that leads to a file, if check-local is on and there is one."""
        if not self._route.check_local or self._route.docroot is None:
            return None
        names = names_of(request.path)
        count = None if names is None else find_file(self._route.docroot, names)
        return None if count is None else "/".join(request.path.split("/", count + 1)[: count + 1])


def upgraded_of(stream: BackendStream, lease: Claim, headers: Headers, following: bytes) -> Upgraded:
    """A backend that has answered with 101, and `following` behind it, for whoever joins it to its client."""
    taken = stream.release()
    return Upgraded(headers, replace(taken, leftover=following + taken.leftover), lease)
