"""A backend that does what the test says: accepts when told, reads when told, ends as told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from tests.wire.sockets import Wire

__all__ = ["Backend", "echo"]


class Backend:
    """A listening socket, UNIX at `path` or TCP on loopback without one.

    Whoever connects waits in the backlog until `accept` is called: this is how a backend that is busy looks.
    """

    def __init__(self, path: str | None = None, *, backlog: int = 128) -> None:
        if path is None:
            self.sock = socket.socket(socket.AF_INET)
            self.sock.bind(("127.0.0.1", 0))
            self.route: dict[str, Any] = {"host": "127.0.0.1", "port": self.sock.getsockname()[1]}
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.bind(path)
            self.route = {"socket": path}
        self.sock.listen(backlog)
        self.sock.setblocking(False)
        self._wires: list[Wire] = []
        self._serving: list[asyncio.Task[None]] = []

    async def accept(self) -> Wire:
        """The next connection of the tunnel."""
        sock, _ = await asyncio.get_running_loop().sock_accept(self.sock)
        wire = Wire(sock)
        self._wires.append(wire)
        return wire

    def serve(self, script: Callable[[Wire], Awaitable[None]]) -> None:
        """From now on accept everybody and run `script` for each; the connection is closed when it returns."""
        self._serving.append(asyncio.get_running_loop().create_task(self._accept_all(script)))

    async def _accept_all(self, script: Callable[[Wire], Awaitable[None]]) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._follow(script, await self.accept()))

    @staticmethod
    async def _follow(script: Callable[[Wire], Awaitable[None]], wire: Wire) -> None:
        try:
            await script(wire)
        finally:
            wire.close()

    async def stop(self) -> None:
        """End the scripts, close every connection and the listening socket; may be called again."""
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        for wire in self._wires:
            wire.close()
        self.sock.close()


async def echo(wire: Wire) -> None:
    """Say back what was heard, to the end."""
    try:
        while piece := await wire.recv():
            await wire.send(piece)
    except (BrokenPipeError, ConnectionResetError):
        pass
