"""One Tunnel with a scripted backend behind it, and the promises that hold for every test that uses it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from tests.wire.backends import Backend
from tests.wire.clients import Client
from tests.wire.sockets import Wire, eventually
from tests.wire.ways import Way, fitted
from wstunnel import Route, Settings, TcpAddress, Tunnel

__all__ = ["LogTap", "Stage"]


class LogTap(logging.Handler):
    """Keeps every record of a logger and those below it, from the given level up."""

    def __init__(self, name: str, level: int = logging.INFO) -> None:
        super().__init__(level)
        self.records: list[logging.LogRecord] = []
        self._logger = logging.getLogger(name)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    def __enter__(self) -> LogTap:
        self._level_before = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level_before)


class Stage:
    """`async with Stage(tmp_path, **route options)`: a Tunnel on a free port in front of `self.backend`.

    On leaving, everything the test opened is closed, the Tunnel is stopped, and each tunnel that was joined must have
    left exactly one line in the access log.
    """

    def __init__(self, folder: Any, *, backend: Backend | None = None, settings: Settings | None = None, **route: Any):
        self.backend = backend or Backend(os.path.join(folder, "b.sock"))
        settings = settings or Settings(listen=(TcpAddress("127.0.0.1", 0),))
        options = {"ping_interval_s": 0.0} | self.backend.route | route
        self.settings = replace(fitted(settings, folder), routes=(Route(**options),))
        self.way = Way()
        self.joined = 0
        self._clients: list[Client] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Stage:
        async with AsyncExitStack() as stack:
            self.log = stack.enter_context(LogTap("wstunnel"))
            self._access = stack.enter_context(LogTap("wstunnel.access"))
            stack.push_async_callback(self.backend.stop)
            self.tunnel = await stack.enter_async_context(Tunnel(self.settings))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        for client in self._clients:
            client.close()
        self.way.close()
        await self.backend.stop()
        await self._stack.__aexit__(*raised)
        if raised[0] is None:
            assert len(self.lines) == self.joined, f"{self.joined} tunnels left {len(self.lines)} lines: {self.lines}"

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The fields of every access line of a tunnel so far."""
        fields = [getattr(record, "fields", {}) for record in self._access.records]
        return [line for line in fields if "closed_by" in line]

    async def line(self) -> dict[str, Any]:
        """The access line of the only tunnel, once it has ended."""
        await eventually(lambda: bool(self.lines), "an access line")
        (line,) = self.lines
        return line

    @property
    def address(self) -> Any:
        return self.tunnel.addresses[0]

    async def reach(self, *, buffer_bytes: int | None = None) -> Client:
        """A client that is connected and has said nothing."""
        client = await self.way.reach(self.address, buffer_bytes=buffer_bytes)
        self._clients.append(client)
        return client

    async def client(
        self,
        path: str = "/",
        headers: Sequence[tuple[str, str]] = (),
        *,
        buffer_bytes: int | None = None,
        **how: Any,
    ) -> Client:
        """A client whose handshake opened a tunnel; the backend may not have accepted yet."""
        client = await self.reach(buffer_bytes=buffer_bytes)
        await client.upgrade(path, headers, **how)
        self.joined += 1
        return client

    async def join(self, *args: Any, **how: Any) -> tuple[Client, Wire]:
        """A client and, at the other end of the tunnel, the connection that the backend accepted."""
        client = await self.client(*args, **how)
        return client, await self.backend.accept()
