"""The whole of wstunnel in one event loop: supervising and serving, side by side."""

from __future__ import annotations

import asyncio
from functools import partial
from types import TracebackType

from wstunnel.net.listen import Listener, open_listener
from wstunnel.proto.close import CloseCode
from wstunnel.server.budget import connection_budget
from wstunnel.server.certificates import CertificateWatch, material_of, renew, servers_of
from wstunnel.server.service import Service, forks_of, hosts_of, places_of
from wstunnel.server.worker import Worker
from wstunnel.settings import Address, Settings
from wstunnel.supervise.board import Board, WorkerColumn, WorkerState
from wstunnel.supervise.forks import Forks
from wstunnel.supervise.pools import Pools

__all__ = ["Tunnel"]

_ROW = 1


class Tunnel:
    """Serves `settings` inside the running asyncio or uvloop loop.

        async with Tunnel(settings) as tunnel:
            print(tunnel.addresses)
            await something

    Leaving the block ends every tunnel with CLOSE 1001 after what was received is delivered, ends the backends
    that were spawned, and unlinks their sockets. What concerns processes (workers, user, group, control, the log)
    is not for a library: those settings are not looked at. Files with certificates are read by it, and again when they
    change.

    raises  from `start`: StartError when an address, a socket or a program cannot be had; ConfigError when a
            certificate or its key cannot be used
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._listeners: list[Listener] = []
        self._board: Board | None = None
        self._pools: Pools | None = None
        self._forks: Forks | None = None
        self._watch: CertificateWatch | None = None
        self._worker: Worker | None = None
        self._stopping: Worker | None = None
        self._ending = asyncio.Lock()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where clients connect, in the settings' order; port 0 has become the real port."""
        return tuple(listener.address for listener in self._listeners)

    async def start(self) -> None:
        """Bind, spawn, and serve. On failure nothing is left behind.

        raises  RuntimeError if it runs already
        """
        if self._worker is not None:
            raise RuntimeError("this Tunnel runs already; stop it first, or make another one")
        settings, limits = self.settings, self.settings.limits
        max_connections = connection_budget(settings)
        material = material_of(settings)
        tls = servers_of(settings.fronts, material)
        try:
            for address, front in zip(settings.addresses, settings.fronts, strict=True):
                listener = open_listener(address, backlog=limits.accept.listen_backlog)
                listener.front, listener.tls = front, tls.get(front)
                self._listeners.append(listener)
            self._board = Board(limits.master, is_shared=False)
            service: Service | None = None

            def died(row: int) -> None:
                if service is not None:
                    service.note_death(row)

            self._pools = Pools(self._board, limits, kill_timeout_s=settings.kill_timeout_s, on_death=died)
            await self._pools.start(hosts_of(settings))
            self._forks = forks_of(settings)
            service = Service(settings, places_of(settings, self._pools.places), self._board, _ROW, self._forks)
            row = self._board.worker(_ROW)
            row[WorkerColumn.STATE] = WorkerState.SERVING
            self._worker = Worker(
                self._listeners,
                service.routes,
                max_connections=max_connections,
                limits=limits,
                row=row,
                io=settings.io,
            )
            self._watch = CertificateWatch(tls, material, limits.certificate, partial(renew, tls))
        except BaseException:
            await self.stop()
            raise
        self._worker.start()

    async def stop(self) -> None:
        """End every tunnel with CLOSE 1001, what was received delivered; then the backends; then the sockets.

        A second call waits for the first. One that is cancelled cuts the tunnels, and ends the rest as ever.
        """
        async with self._ending:
            self._stopping, self._worker = self._worker, None
            if self._watch is not None:
                self._watch.stop()
            try:
                if self._stopping is not None:
                    await self._drain(self._stopping)
            finally:
                self._stopping = None
                await asyncio.gather(*(each.stop() for each in (self._forks, self._pools) if each is not None))
                for listener in self._listeners:
                    listener.close()
                self._listeners.clear()
                if self._board is not None:
                    self._board.close()
                self._forks = self._pools = self._board = None

    async def _drain(self, worker: Worker) -> None:
        try:
            await worker.drain(CloseCode.GOING_AWAY, within_s=self.settings.drain_timeout_s)
        finally:
            worker.close()

    def abort(self) -> None:
        """Make a `stop` that is under way, or comes next, end at once: tunnels are cut, backends get SIGKILL."""
        worker = self._stopping or self._worker
        if worker is not None:
            worker.abort()
        for each in (self._forks, self._pools):
            if each is not None:
                each.abort()

    async def __aenter__(self) -> Tunnel:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
