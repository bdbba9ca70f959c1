"""Plain bytes to a socket: connects one backend of a pool, before the client hears of it."""

from __future__ import annotations

from wstunnel.gateways.claim import Connected
from wstunnel.gateways.connecting import Connector, connect
from wstunnel.proto.request import Request
from wstunnel.settings import Host
from wstunnel.supervise.balance import Balancer
from wstunnel.supervise.lease import Lease

__all__ = ["TunnelGateway"]


class TunnelGateway:
    """Connects one of a route's backends.

    in      name  of the route's backend, for errors
    """

    def __init__(self, balancer: Balancer, name: str) -> None:
        self._connector = Connector(balancer, name)

    async def connect(self, request: Request) -> Connected:
        """A backend, connected. raises, bound: as `Connector.take`"""
        return await self._connector.take(request, _dial)


async def _dial(lease: Lease, host: Host) -> Connected:
    return Connected(await connect(lease.address, host.connect_timeout_s), lease)
