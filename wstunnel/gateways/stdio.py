"""A program of its own for every tunnel, which is its standard input and output."""

from __future__ import annotations

from wstunnel.gateways.claim import Connected
from wstunnel.gateways.program import SOFTWARE, Forker, ProgramClaim, start_program
from wstunnel.limits import SpawnLimits
from wstunnel.proto.cgi import variables
from wstunnel.proto.request import Request
from wstunnel.settings import Route

__all__ = ["StdioGateway"]


class StdioGateway:
    """Has the route's program started for every tunnel, and says in its environment what the client has asked.

    in      index  the number of the route, by which `forker` knows the program
    """

    def __init__(self, forker: Forker, index: int, route: Route, limits: SpawnLimits) -> None:
        self._forker, self._index, self._route, self._limits = forker, index, route, limits

    async def connect(self, request: Request) -> Connected:
        """Our end of the program's stream. To end it for writing is EOF on the program's stdin; what the program does
        when its tunnel is over all the same is up to `release`.

        raises  BackendError when the program cannot be started, or must not be; PeerError on a request that cannot
                be told in variables
        """
        prefix = self._route.path if self._route.suffix is None else request.path
        environment = variables(request, script_name=prefix or "/", software=SOFTWARE)
        path = self._route.stdio[0]
        stream, program = await start_program(self._forker, self._index, environment, path=path)
        return Connected(stream.detach(), ProgramClaim(program, path, self._limits))
