"""A program of its own for every tunnel, which is its standard input and output."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from wstunnel.errors import BackendError
from wstunnel.gateways.claim import Connected
from wstunnel.limits import SpawnLimits
from wstunnel.proto.cgi import variables
from wstunnel.proto.request import Request
from wstunnel.settings import Route
from wstunnel.supervise.child import ExitStatus

__all__ = ["ForkedProgram", "Forker", "StdioGateway"]

_SOFTWARE = "wstunnel"


class ForkedProgram(Protocol):
    """A program that runs for one tunnel."""

    pid: int

    def is_exiting(self) -> bool:
        """Has it ended, or is it in the act of exiting?"""

    async def exit_status(self) -> ExitStatus | None:
        """How it ended; None at once if it has not, or when nobody could tell in time."""

    def release(self) -> None:
        """The tunnel is over: end the program and all that it has forked."""


class Forker(Protocol):
    """Whoever starts programs: `Forks` in the same event loop, or the master on a worker's behalf."""

    async def fork(self, index: int, environment: Mapping[str, str], stream: socket.socket) -> ForkedProgram:
        """The program of the route with this number, `stream` being its stdin and stdout. raises BackendError"""


@dataclass(frozen=True, slots=True)
class _Claim:
    """A program, as the server sees a backend."""

    program: ForkedProgram
    path: str
    limits: SpawnLimits

    @property
    def name(self) -> str:
        return f"{os.path.basename(self.path)}[{self.program.pid}]"

    @property
    def where(self) -> str:
        return self.path

    @property
    def host_index(self) -> int:
        return 0

    def is_exiting(self) -> bool:
        """Always: a program that has ended its stream is as a rule about to exit. Some (cat, head) close it before they
        do, so that the kernel has not marked them as exiting yet."""
        return True

    async def exit_status(self) -> ExitStatus | None:
        """How it ended; None `fork_exit_wait_s` later for one that lives on."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self.limits.fork_exit_wait_s
        while not self.program.is_exiting() and loop.time() < deadline_s:  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(self.limits.settle_poll_s)
        return await self.program.exit_status()

    def release(self) -> None:
        self.program.release()


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
        await asyncio.sleep(0)  # whoever forks wants to run in a task: net/eager.py
        prefix = self._route.path if self._route.suffix is None else request.path
        environment = variables(request, script_name=prefix or "/", software=_SOFTWARE)
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise BackendError(f"no stream for {self._route.stdio[0]}: {error.strerror}") from error
        with theirs:
            try:
                program = await self._forker.fork(self._index, environment, theirs)
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        return Connected(ours.detach(), _Claim(program, self._route.stdio[0], self._limits))
