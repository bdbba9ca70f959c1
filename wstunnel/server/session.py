"""One tunnel as the server sees it: from the connected backend to the access line."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import cast

from wstunnel._h2 import H2Leg
from wstunnel._hub import Hub, HubTransport
from wstunnel._relay import BackendLeg, ClientLeg, Policy, Relay
from wstunnel.gateways.claim import Claim
from wstunnel.limits import Limits
from wstunnel.net.exchange import Taken
from wstunnel.proto.close import CloseCode
from wstunnel.proto.request import Request
from wstunnel.server.accesslog import log_tunnel, tunnels_are_logged, wire_of
from wstunnel.supervise.board import WorkerColumn, close_column

__all__ = ["Session"]

_log = logging.getLogger("wstunnel")
_OPENED, _TUNNELS = int(WorkerColumn.OPENED), int(WorkerColumn.TUNNELS)  # for what counts every tunnel


class Session:
    """Joins a client and a backend, and gives everything back when the relay says that it is over.

    in      row  the worker's row of the board, in which the tunnel is counted
    """

    __slots__ = (
        "_hub",
        "_lease",
        "_limits",
        "_on_ended",
        "_opened_s",
        "_path",
        "_peer",
        "_row",
        "_subject",
        "_verdict",
        "_wire",
        "relay",
    )

    def __init__(
        self,
        hub: Hub,
        request: Request,
        lease: Claim,
        *,
        limits: Limits,
        on_ended: Callable[[Session], None],
        row: memoryview,
    ) -> None:
        self._hub = hub
        self._lease = lease
        self._limits = limits
        self._on_ended = on_ended
        self._row = row
        self._opened_s = hub.loop.time()
        self._peer = request.peer
        self._path = request.path
        self._wire = wire_of(request)
        self._subject = request.client_subject
        self._verdict: asyncio.Task[None] | None = None
        self.relay: Relay

    async def open(self, taken: Taken, backend_fd: int, policy: Policy, *, is_binary: bool) -> None:
        """Let bytes flow, the 101 being out. Both sockets are the relay's from here on."""
        transport = taken.transport
        client = _client_leg(self._hub, transport)
        backend = BackendLeg(self._hub, backend_fd)
        self.relay = Relay(self._hub, policy, client, backend, self, is_binary)
        self._row[_OPENED] += 1
        self._row[_TUNNELS] += 1
        sock = None if isinstance(transport, HubTransport | H2Leg) else socket.socket(fileno=backend_fd)
        is_owned = False
        try:
            self.relay.open(transport)
            if sock is None:
                is_owned = True  # by the leg, which closes it with the relay
                backend.own()
            else:
                await self._hub.loop.connect_accepted_socket(lambda: backend, sock)
        except BaseException:
            self.relay.abort(CloseCode.INTERNAL_ERROR)
            if sock is not None:
                sock.close()
            elif not is_owned:
                os.close(backend_fd)
            raise
        self.relay.join(bytearray(taken.leftover), taken.is_at_eof)

    def pipe(self, taken: Taken, backend: Taken, policy: Policy) -> None:
        """Let bytes through as they are, both 101s being out. Both connections are the relay's from here on."""
        client = _client_leg(self._hub, taken.transport)
        transport = cast(HubTransport, backend.transport)
        self.relay = Relay(self._hub, policy, client, BackendLeg(self._hub, transport.fileno()), self, is_pipe=True)
        self._row[_OPENED] += 1
        self._row[_TUNNELS] += 1
        try:
            self.relay.open(taken.transport)
            self.relay.adopt(transport)
        except BaseException:
            self.relay.abort(CloseCode.INTERNAL_ERROR)
            transport.abort()
            raise
        self.relay.join(bytearray(taken.leftover), taken.is_at_eof, bytearray(backend.leftover), backend.is_at_eof)

    def backend_ended(self) -> int:
        """The close code for a backend that ended its connection; 0: its process is exiting, `verdict` follows."""
        if not self._lease.is_exiting():
            return CloseCode.NORMAL
        self._verdict = self._hub.loop.create_task(self._await_verdict())
        return 0

    async def _await_verdict(self) -> None:
        status = await self._lease.exit_status()
        is_clean = status is None or status.clean
        self.relay.verdict(CloseCode.NORMAL if is_clean else CloseCode.INTERNAL_ERROR)

    def ended(self) -> None:
        """Both legs are released: the lease goes back, the end is counted, and the access line is written."""
        relay, claim = self.relay, self._lease
        if self._verdict is not None:
            self._verdict.cancel()
        claim.release()
        self._row[_TUNNELS] -= 1
        self._row[close_column(relay.close_code)] += 1
        if relay.is_text_broken:
            _log.warning(
                "%s sent bytes that are not UTF-8 on a text route (%s): the tunnel was closed with 1011; if the "
                'backend speaks binary, set --frame-type binary (frame-type = "binary")',
                claim.name,
                claim.where,
            )
        if tunnels_are_logged():
            log_tunnel(
                peer=self._peer,
                path=self._path,
                wire=self._wire,
                client_subject=self._subject,
                backend=claim.name,
                bytes_in=relay.bytes_in,
                bytes_out=relay.bytes_out,
                messages_in=relay.messages_in,
                messages_out=relay.messages_out,
                duration_s=self._hub.loop.time() - self._opened_s,
                code=relay.close_code,
                closed_by=relay.closed_by or "server",
                limits=self._limits.log,
            )
        self._on_ended(self)


def _client_leg(hub: Hub, transport: asyncio.Transport | HubTransport | H2Leg) -> ClientLeg | H2Leg:
    """Over a socket, or the stream that is one already."""
    return transport if isinstance(transport, H2Leg) else ClientLeg(hub, transport.get_extra_info("socket").fileno())
